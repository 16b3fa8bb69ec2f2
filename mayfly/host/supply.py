"""Gives each run a machine in the quickest way there is: it waits in the pool, or is restored from
its language's base, or boots.

A run that finds no base boots, for making one takes longer than the run itself. When it is over, a
server makes the base, in a place of its own in the memory budget and behind the runs that wait.
"""

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from mayfly import paths
from mayfly.errors import BusyError, HostError, MayflyError, NetworkError, SnapshotError
from mayfly.guests.job import Wanted
from mayfly.guests.spawner import Spawner, VmmProcess
from mayfly.guests.start import Guest, StartKind, start
from mayfly.host.admission import Admission, Ticket
from mayfly.host.config import Config
from mayfly.host.observer import Observer
from mayfly.host.plan import make_standby, make_warmup
from mayfly.host.pool import Idle, Pool
from mayfly.schema import replace
from mayfly.snapshots import live
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.making import base_name, doing, find_base, make, making_ready
from mayfly.snapshots.store import Snapshot
from mayfly.vmm.config import Channel

log = logging.getLogger(__name__)
RETRY_S = 60.0
"""After a base could not be made, until the next attempt."""


class Supply:
    """Machines for the runs of one service. Only a `lasting` one makes bases in the background."""

    def __init__(self, spawner: Spawner, config: Config, admission: Admission, observer: Observer, *, lasting: bool) -> None:
        self._lasting = lasting
        self._spawner = spawner
        self._config = config
        self._admission = admission
        self._observer = observer
        self._bases: dict[str, tuple[object, Snapshot | None]] = {}  # with what shows that it is still the same
        self._missed: set[str] = set()
        self._broken: set[str] = set()
        self._making: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}
        self._origins: weakref.WeakKeyDictionary[VmmProcess, Snapshot] = weakref.WeakKeyDictionary()
        self.pool = Pool(config.warm, self._restore, admission, observer)

    def expect(self, wanted: Wanted) -> None:
        """Runs on such machines will come: make what they start from."""
        if not self._config.cold:
            self.pool.keep(wanted)
            if find_base(wanted) is None:
                self._make_later(wanted)
            else:
                self.pool.fill()

    def idle(self, wanted: Wanted) -> Idle | None:
        """A machine of the pool that fits. None there has a network."""
        return None if self._config.cold or wanted.machine.network else self.pool.take(wanted)

    async def get(self, wanted: Wanted, snapshot: Snapshot | None = None) -> Guest:
        """A machine, restored from `snapshot` if one is given, else as quickly as may be.

        Raises:
            MayflyError: it did not come up.
        """
        if snapshot is not None:
            await asyncio.to_thread(snapshots.check, snapshot, wanted.image, wanted.machine)
            return await self._from(snapshot, wanted)
        if not self._config.cold and wanted.machine.channel is not Channel.TCP:  # no snapshot holds a connection
            base = await self._base(wanted)
            if base is not None:
                try:
                    return await self._from(base, wanted)
                except NetworkError:
                    raise  # a machine that boots would have no other
                except MayflyError as error:
                    log.warning("the snapshot %s cannot be used, and will be made again: %s", base.manifest.name, error)
                    self._broken.add(base.manifest.name)
            self._missed.add(base_name(wanted))
        return await start(self._spawner, wanted)

    async def _base(self, wanted: Wanted) -> Snapshot | None:
        """The base for such a machine, if there is one. It is looked at in a thread, as that may
        mean to read all of it, unless it was found before and nothing has changed since.
        """
        name = base_name(wanted)
        try:
            now = wanted, snapshots.stamps(f"{paths.snapshots_dir()}/{name}", wanted.machine.kernel)
        except OSError:
            now = None
        before, base = self._bases.get(name, (None, None))
        if base is None or now is None or now != before:
            base = await asyncio.to_thread(find_base, wanted)
            self._bases[name] = now, base
        return base

    def run_over(self, wanted: Wanted) -> None:
        """A run on such a machine is over: a lasting supply makes what it has missed, as far as
        there is room.
        """
        if self._lasting:
            if self.lacks_base(wanted):
                self._missed.remove(base_name(wanted))
                self._make_later(wanted)
            self.pool.fill()

    def lacks_base(self, wanted: Wanted) -> bool:
        """Whether a run on such a machine has missed its base."""
        return base_name(wanted) in self._missed

    async def _from(self, snapshot: Snapshot, wanted: Wanted) -> Guest:
        guest = await start(self._spawner, wanted.restored_from(snapshot.chain))
        self._origins[guest.process] = snapshot
        return guest

    def note(self, guest: Guest, origin: Snapshot | None) -> None:
        """A guest that somebody else has made stands on `origin`, if on any."""
        if origin is not None:
            self._origins[guest.process] = origin

    def origin(self, guest: Guest) -> Snapshot | None:
        """What the guest was restored from; None if it booted."""
        return self._origins.get(guest.process)

    @contextlib.asynccontextmanager
    async def stood_up(self, wanted: Wanted, folder: Path, origin: Snapshot | None) -> AsyncIterator[Guest]:
        """A guest that stands still, as it was saved in `folder`, over `origin` if over any. It
        goes on at the end of the block, or is gone if that fails.

        Raises:
            MayflyError: it did not come up. Nothing of it is left.
        """
        guest = await live.clone(self._spawner, wanted, folder)
        try:
            if origin is not None and not snapshots.is_current(origin):
                raise SnapshotError(f"{origin.manifest.name}, which the run's machine stands on, was made anew", hint="start the run again")
            self.note(guest, origin)
            yield guest
            await guest.process.resume()
        except BaseException:
            await guest.process.stop(0)
            raise

    @contextlib.asynccontextmanager
    async def copies(self, guest: Guest, most: int, *, beside: Ticket) -> AsyncIterator[list[Guest]]:
        """Copies of an idle guest, which goes on too: `most`, or as many as there is room for,
        maybe none. They are gone on leaving. `beside` is the guest's own ticket.

        Only what has a snapshot beneath it is copied: of a machine that booted, all memory would
        have to be written.
        """
        origin, made = self.origin(guest), list[Guest]()
        async with contextlib.AsyncExitStack() as held:
            places = 0
            if origin is not None and guest.wanted.machine.network is None and guest.process.alive:
                # One is for the pages in which the copies differ from their origin.
                machine = guest.wanted.machine
                while places < most + 1 and (ticket := self._admission.enter_idle(machine.memory, machine.cpus, beside=beside)):
                    held.callback(self._admission.leave, ticket)
                    places += 1
            if origin is not None and places > 1:
                made += await self._copy(guest, origin, places - 1, held)
            yield made

    async def _copy(self, guest: Guest, origin: Snapshot, count: int, held: contextlib.AsyncExitStack) -> list[Guest]:
        """Make `count` copies, which end with `held`; fewer or none if that fails."""
        timeout_s = guest.wanted.timeout_s
        try:
            with snapshots.passing() as folder:
                await guest.process.snapshot(folder, go_on=True, timeout_s=timeout_s)
                wanted = guest.wanted.restored_from((*origin.chain, folder))
                starting = [asyncio.create_task(start(self._spawner, wanted), name="copy a guest") for _ in range(count)]
                held.push_async_callback(_end_all, starting)
                await asyncio.wait(starting)
        except MayflyError as error:
            log.warning("machine %d cannot be copied: %s", guest.process.number, error)
            return []
        if not snapshots.is_current(origin):
            log.warning("machine %d cannot be copied: %s was made anew", guest.process.number, origin.manifest.name)
            return []
        for task in starting:
            if fault := task.exception():
                log.warning("a copy of machine %d did not start: %s", guest.process.number, fault)
        return [task.result() for task in starting if not task.exception()]

    async def _restore(self, wanted: Wanted) -> Guest:
        base = await asyncio.to_thread(find_base, wanted)
        if base is None:
            self._make_later(wanted)
            raise HostError("its snapshot is not made yet")
        guest = await self._from(base, wanted)
        return replace(guest, kind=StartKind.WARM)

    async def ensure_base(self, wanted: Wanted, *, again: bool = False) -> Snapshot:
        """The base for this machine, made if need be.

        Raises:
            MayflyError: it cannot be made.
        """
        name = base_name(wanted)
        warmup = make_warmup(wanted.image, self._config)
        base = await make(
            self._spawner,
            wanted,
            making_ready(warmup, make_standby(wanted.image, self._config)),
            name=name,
            again=again or name in self._broken,
            use=(wanted, doing(warmup)) if warmup else None,
        )
        self._broken.discard(name)
        return base

    def _make_later(self, wanted: Wanted) -> None:
        """Have the base made as soon as there is room for a machine, unless it is being made, or
        failed a moment ago.
        """
        name = base_name(wanted)
        if self._lasting and name not in self._making and time.monotonic() >= self._not_before.get(name, 0.0):
            task = asyncio.create_task(self._make(wanted), name=f"make the snapshot {name}")
            self._making[name] = task
            task.add_done_callback(lambda _: self._making.pop(name))

    async def _make(self, wanted: Wanted) -> None:
        name = base_name(wanted)
        self._not_before[name] = time.monotonic() + RETRY_S
        with contextlib.ExitStack() as held:
            try:
                ticket = self._admission.enter(wanted.machine.memory, wanted.machine.cpus)
                held.callback(self._admission.leave, ticket)
                await ticket.turn
                snapshot = await self.ensure_base(wanted)
                log.info("made the snapshot %s, %d MiB", name, snapshot.manifest.memory_bytes >> 20)
            except BusyError:
                self._not_before.pop(name)
            except MayflyError as error:
                log.warning("the snapshot %s cannot be made, its language boots for each run: %s", name, error)
        self.pool.fill()

    async def close(self) -> None:
        """End what is under way, and the pool."""
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.pool.close()


async def _end_all(starting: Sequence[asyncio.Task[Guest]]) -> None:
    """End guests that have been started, or are being."""
    for task in starting:
        task.cancel()
    await asyncio.wait(starting)
    guests = [task.result() for task in starting if not task.cancelled() and not task.exception()]
    await asyncio.gather(*(guest.process.stop(0) for guest in guests))
