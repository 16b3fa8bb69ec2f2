"""The queues in which work waits for hosts."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mayfly.errors import FleetError
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.message import SNAPSHOT
from mayfly.fleet.roll import Roll

log = logging.getLogger(__name__)
SWEEP_S = 60.0
STALE_S = 600.0
"""After so long without the snapshot its queue goes: hosts may be away for a while."""


class Queues:
    """Where work waits for hosts: made when it is needed first."""

    def __init__(self, engine: Engine, *, replicas: int, ack_wait_s: float) -> None:
        self.ack_wait_s = ack_wait_s
        self._engine, self._replicas = engine, replicas
        self._made: set[tuple[str, str]] = set()

    async def ensure(self, arch: str, lang: str) -> None:
        """Have a queue of the language for hosts of the architecture.

        Raises:
            SilenceError: not now.
            FleetError: the engine refuses.
        """
        if (arch, lang) not in self._made:
            await self._engine.ensure_consumer(arch, lang, replicas=self._replicas, ack_wait_s=self.ack_wait_s)
            self._made.add((arch, lang))

    def forget(self, arch: str, lang: str) -> None:
        """The queue may be gone: `ensure` sees to it again."""
        self._made.discard((arch, lang))

    async def mend(self, arch: str, lang: str) -> None:
        """The queue is gone: make it again, for what waits there. Raises as `ensure`."""
        self.forget(arch, lang)
        await self.ensure(arch, lang)

    async def remove(self, arch: str, lang: str) -> None:
        """Have no queue of the language: nothing is to wait there any more. Raises as `ensure`."""
        self.forget(arch, lang)
        await self._engine.remove_consumer(arch, lang)

    async def ensure_soon(self, arch: str, lang: str) -> None:
        """The same, as soon as the engine is able to."""
        while True:
            try:
                await self.ensure(arch, lang)
            except (FleetError, NobodyError, SilenceError) as error:
                log.warning("fleet: no queue %s of %s yet: %s", lang, arch, error)
                await asyncio.sleep(1)
            else:
                return


async def of_snapshots(engine: Engine, roll: Roll) -> set[tuple[str, str]]:
    """The queues of snapshots that there are, for the architectures of the hosts that are known.

    Raises:
        FleetError, NobodyError, SilenceError: not now.
    """
    archs = {host.about.arch for host in roll if host.about}
    return {(arch, lang) for arch in archs for lang in await engine.consumers(arch) if lang.startswith(f"{SNAPSHOT}-")}


async def sweep(look: Callable[[], Awaitable[None]], what: str) -> None:
    """Look again and again; what cannot be done now is done later."""
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            await look()
        except (FleetError, NobodyError, SilenceError) as error:
            log.info("fleet: %s looked at later: %s", what, error or "nobody answers")


class Stale:
    """Finds the queues of snapshots that no host has, or can have, any more, and removes those
    where nothing waits. One that is wanted again is made again (`Queues.mend`).
    """

    def __init__(self, engine: Engine, roll: Roll, queues: Queues) -> None:
        self._engine, self._roll, self._queues = engine, roll, queues
        self._since: dict[tuple[str, str], float] = {}

    async def look(self) -> None:
        """Remove those that were stale for long.

        Raises:
            FleetError, NobodyError, SilenceError: not now.
        """
        now, there = asyncio.get_running_loop().time(), self._roll.queues()
        stale = await of_snapshots(self._engine, self._roll) - there
        self._since = {queue: self._since.get(queue, now) for queue in stale}
        for arch, lang in stale:
            if now - self._since[arch, lang] >= STALE_S and not any(await self._engine.load(arch, lang)):
                await self._queues.remove(arch, lang)
                log.info("fleet: the queue %s of %s is removed: no host has its snapshot", lang, arch)
