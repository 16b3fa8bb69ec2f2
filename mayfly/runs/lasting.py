"""Runs that outlast their machine: it is saved every so many seconds, and when it is lost, the run
goes on from the last save.
"""

import asyncio
import contextlib
import logging
import sys
from functools import partial
from typing import NamedTuple, Protocol

from mayfly.errors import HostError, MayflyError, NotRunningError
from mayfly.guests.job import Wanted
from mayfly.guests.meanwhile import whole
from mayfly.guests.start import Guest
from mayfly.host.config import Config
from mayfly.host.snippet import MAX_OF_A_SAVE
from mayfly.host.supply import Supply
from mayfly.runs import saves
from mayfly.runs.described import describe, happened
from mayfly.runs.execute import go_on
from mayfly.runs.moments import Kept, Moment, check_live, go_on_from, keep
from mayfly.runs.record import MAX_RESTORED, Mark, Restored
from mayfly.runs.run import Run
from mayfly.runs.saves import SavedRun
from mayfly.snapshots.store import Snapshot

log = logging.getLogger(__name__)


class Saved(NamedTuple):
    """The last save of a run, as far as it is in memory."""

    moment: Moment
    mark: Mark
    steps: int


class Server(Protocol):
    """What a run that outlasts its machine needs of its server. `home`: its socket, or empty."""

    home: str
    config: Config
    supply: Supply

    def now(self, run: Run, guest: Guest) -> None:
        """The run has another guest than before."""


class Lasting:
    """Sees to it that `run` outlasts its machine, while this block is under way: nothing that was
    saved is left behind it.
    """

    def __init__(self, server: Server, run: Run, every_s: float) -> None:
        self._server = server
        self._run = run
        self._every_s = every_s
        self._held: contextlib.ExitStack | None = None
        self._saved: Saved | None = None
        self._left = MAX_OF_A_SAVE
        self._saving: asyncio.Task[None] | None = None

    def resume(self, saved: Saved, held: contextlib.ExitStack) -> None:
        """Begin with what was saved before; the run is claimed as long as `held`."""
        self._saved, self._held = saved, held
        held.callback(saves.forget, self._run.id)

    def _claim(self) -> None:
        """Have the place where the run is saved, until `close`. Raises HostError: it cannot be."""
        if self._held is None:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(saves.claimed(self._run.id))
                except OSError as error:
                    raise HostError(f"{saves.folder_of(self._run.id)}: {error.strerror}", hint="see that it can be written") from error
                held.callback(saves.forget, self._run.id)
                self._held = held.pop_all()

    async def __aenter__(self) -> None:
        self._saving = asyncio.create_task(self._save_often(), name=f"save run {self._run.id}")

    async def __aexit__(self, *_: object) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.cancel()
            await asyncio.wait([saving])
        await self.drop()  # whoever has the run alone now, as a move may for long, saves nothing

    def _taken(self) -> contextlib.ExitStack:
        held, self._held, self._saved = self._held, None, None
        return held or contextlib.ExitStack()

    def close(self) -> None:
        """Leave nothing that was saved."""
        self._taken().close()

    async def drop(self) -> None:
        """Leave nothing that was saved, until the next save: the run is over here, or about to go
        on elsewhere.
        """
        await whole(self._taken().close)

    async def leave(self) -> None:
        """As `drop`, for a run that is about to go on elsewhere.

        Raises:
            HostError: what was saved cannot be removed.
        """
        if self._held is not None:
            try:
                await whole(lambda: saves.drop(self._run.id))
            except OSError as error:
                message = f"what is saved of the run cannot be removed, so it stays here: {error}"
                raise HostError(message, hint="see that its folder can be written") from error
        await self.drop()

    async def _save_often(self) -> None:
        while self._saving is not None:
            await asyncio.sleep(self._every_s)
            try:
                await self.save()
            except MayflyError as error:
                log.info("run %s is not saved now: %s", self._run.id, error)

    async def save(self) -> None:
        """Save the run, in the place of the last save.

        Raises:
            MayflyError: it cannot be saved now.
        """
        run = self._run
        async with run.alone:
            exchange = check_live(run, "saved", NotRunningError)
            self._claim()
            done = contextlib.ExitStack()
            folder = done.enter_context(saves.saving(run.id))
            try:
                kept = await keep(run, exchange, folder)
                saved = self._describe(exchange.guest, kept)
                await whole(lambda: saves.write(folder, saved))
            except BaseException:
                await whole(partial(done.__exit__, *sys.exc_info()))
                raise
            await whole(done.close)
            self._saved, self._left = Saved(kept.moment, kept.mark, kept.steps), MAX_OF_A_SAVE

    def _describe(self, guest: Guest, kept: Kept) -> SavedRun:
        run, machine = self._run, guest.wanted.machine
        return SavedRun(
            socket=self._server.home,
            run=describe(run, machine),
            cpus=machine.cpus,
            image=guest.wanted.image.manifest.initramfs_digest,
            parent=saves.parent_of(self._server.supply.origin(guest)),
            moment=kept.moment,
            events=tuple(filter(None, map(happened, kept.events))),
            lives=tuple((life.span, life.offset) for life in run.record.lives),
            phases=run.phases,
            came=run.came,
        )

    async def work(self, guest: Guest) -> None:
        """What is to be done with the guest that `revive` gives, or one that was saved."""
        assert self._run.exchange is not None  # noqa: S101 (stand_up has set it)
        await go_on(self._run.exchange, self._run, self._server.config)

    async def revive(self, guest: Guest, error: MayflyError) -> Guest:
        """After `error`, another guest for the run, which goes on as it was saved last.

        Raises:
            MayflyError: `error`, as that was not the loss of the machine, or nothing is saved of
                it, or it was lost again and again.
        """
        run = self._run
        if not guest.process.lost or run.elsewhere is not None or run.record.restored >= MAX_RESTORED:
            raise error
        async with run.alone:  # a save that needs its machine no more is whole then
            saved = self._saved
            if saved is None or self._left <= 0:
                raise error
            self._left -= 1
            log.warning("run %s: its machine is lost (%s); it goes on from its last save", run.id, error)
            run.exchange = None
            try:
                origin = self._server.supply.origin(guest)
                found = await self.stand_up(guest.wanted, saved.moment, origin)
            except MayflyError as fault:
                log.warning("run %s cannot go on from what was saved: %s", run.id, fault)
                raise error from fault
        run.replay(Restored("its machine was lost", saved.mark, saved.steps, run.record.end != saved.mark.position))
        return found

    async def stand_up(self, wanted: Wanted, moment: Moment, origin: Snapshot | None) -> Guest:
        """The guest of the run as it was saved, which goes on.

        Raises:
            MayflyError: it did not come up. Nothing of it is left.
        """
        run = self._run
        try:
            async with self._server.supply.stood_up(wanted, saves.folder_of(run.id), origin) as guest:
                guest = go_on_from(moment, guest, run).guest
        except BaseException:
            run.exchange = None
            raise
        self._server.now(run, guest)
        return guest
