"""Work that waits for long, whose gateway may be gone."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from mayfly.fleet import roll
from mayfly.fleet.buckets import RENEW_S, Bucket
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import UnreadableError
from mayfly.fleet.follows import Follows
from mayfly.fleet.message import Claim, Registered, decode
from mayfly.fleet.queues import of_snapshots
from mayfly.fleet.roll import Roll


class Waiting:
    """Keeps on what is known of runs that wait, and follows those that wait for a snapshot which no
    host can use: Watch ends them.
    """

    def __init__(self, engine: Engine, registry: Bucket, follows: Follows, roll: Roll) -> None:
        self._engine, self._registry, self._follows, self._roll = engine, registry, follows, roll
        self._began = self._renewed = asyncio.get_running_loop().time()

    async def look(self) -> None:
        """Do both, when it is time: a gateway ends nothing before it can know all hosts that others
        know.

        Raises:
            FleetError, NobodyError, SilenceError: not now.
        """
        now = asyncio.get_running_loop().time()
        if now - self._began >= roll.KNOWN_S:
            await self.follow()
        if now - self._renewed >= RENEW_S:
            self._renewed = now
            await self.renew()

    async def follow(self) -> None:
        """Follow the runs of snapshots that no host can use now. Raises as `look`."""
        fitting = self._roll.fitting()
        for arch, lang in await of_snapshots(self._engine, self._roll) - fitting:
            await self._for_all(arch, lang, self._follow)

    async def _follow(self, claim: Claim) -> None:
        if not self._follows.knows(claim.id):
            await self._follows.fetch(claim.id)

    async def renew(self) -> None:
        """Keep on what is known of runs in queues where some wait. Raises as `look`."""
        for arch in await self._engine.archs():
            for lang in await self._engine.consumers(arch):
                load = await self._engine.load(arch, lang)
                if load.waiting or load.again:
                    await self._for_all(arch, lang, self._renew)

    async def _renew(self, claim: Claim) -> None:
        entry = await self._registry.get(claim.id)  # of other work than runs there is none
        if entry is not None and (registered := decode(entry.value, type=Registered)).token == claim.token:
            await self._follows.renew(registered, entry)

    async def _for_all(self, arch: str, lang: str, see_to: Callable[[Claim], Awaitable[None]]) -> None:
        number = 0
        while (found := await self._engine.next_work(arch, lang, number + 1)) is not None:
            number, data = found
            with contextlib.suppress(UnreadableError):  # it concerns no other one
                if (claim := decode(data, type=Claim)).id:
                    await see_to(claim)
