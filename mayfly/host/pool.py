"""The pool: restored machines that wait for a run, a number of them for each language, within the
memory budget.
"""

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from mayfly.errors import MayflyError
from mayfly.guests.job import Wanted
from mayfly.guests.start import Guest
from mayfly.host.admission import Admission, Ticket
from mayfly.host.observer import Observer
from mayfly.vmm.config import MachineConfig

log = logging.getLogger(__name__)


class Idle(NamedTuple):
    """A machine that waits, and its place in the memory budget, which goes to whoever takes it."""

    guest: Guest
    ticket: Ticket


class Shelf:
    """The machines of one kind that wait."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.idle: list[Idle] = []
        self.filling: asyncio.Task[None] | None = None


class Pool:
    """Keeps `size` machines ready of each kind that was asked for. All of it belongs to the event
    loop.

    Args:
        make: starts a machine.
        admission: the budget. When somebody lacks memory, machines are ended, those of the kind
            first that was not asked for the longest.
    """

    def __init__(self, size: int, make: Callable[[Wanted], Awaitable[Guest]], admission: Admission, observer: Observer) -> None:
        self._size = size
        self._make = make
        self._admission = admission
        self._observer = observer
        self._kinds: collections.OrderedDict[MachineConfig, Shelf] = collections.OrderedDict()  # the one asked for last at the end
        self._ending: set[asyncio.Task[None]] = set()
        self._leaving = 0  # bytes of machines that are being ended
        self._closed = False
        admission.reclaimers.append(self._reclaim)

    def __len__(self) -> int:
        return sum(len(kind.idle) for kind in self._kinds.values())

    @property
    def reclaimable(self) -> int:
        """Bytes of machines that would be ended for a run, or are being ended."""
        return self._leaving + sum(idle.ticket.memory for kind in self._kinds.values() for idle in kind.idle)

    def keep(self, wanted: Wanted) -> Shelf:
        """Keep machines of this kind from now on."""
        kind = self._kinds.setdefault(wanted.machine, Shelf(wanted))
        self._kinds.move_to_end(wanted.machine)
        if kind.wanted.image.manifest != wanted.image.manifest:  # the image was built again
            kind.wanted = wanted
            while kind.idle:
                self._end(kind.idle.pop())
        return kind

    def take(self, wanted: Wanted) -> Idle | None:
        """A machine of this kind, if one is ready. From now on some are kept."""
        kind = self.keep(wanted)
        while kind.idle:
            idle = kind.idle.pop(0)
            if idle.guest.process.alive:
                idle.ticket.granted_at = time.monotonic()  # the time from here on is the run's
                return idle
            self._end(idle)
        return None

    def fill(self) -> None:
        """Make what is missing of the kinds that were asked for, as far as there is room. Call it
        when there may be some.
        """
        for kind in self._kinds.values() if self._size and not self._closed else ():
            if len(kind.idle) < self._size and (kind.filling is None or kind.filling.done()):
                kind.filling = asyncio.create_task(self._fill(kind), name=f"fill the pool with {kind.wanted.image.manifest.language}")

    async def _fill(self, kind: Shelf) -> None:
        while len(kind.idle) < self._size and (ticket := self._admission.enter_idle(kind.wanted.machine.memory, kind.wanted.machine.cpus)):
            with contextlib.ExitStack() as failed:
                failed.callback(self._admission.leave, ticket)
                try:
                    guest = await self._make(kind.wanted)
                except MayflyError as error:
                    log.info("no machine for the pool: %s", error)
                    return
                failed.pop_all()
            kind.idle.append(Idle(guest, ticket))

    def _reclaim(self, missing: int) -> int:
        freed = self._leaving
        for kind in self._kinds.values():
            while kind.idle and freed < missing:
                idle = kind.idle.pop()
                freed += idle.ticket.memory
                self._observer.evicted()
                self._end(idle)
        return freed

    def _end(self, idle: Idle) -> None:
        self._leaving += idle.ticket.memory
        task = asyncio.create_task(self._stop(idle), name="end an idle machine")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _stop(self, idle: Idle) -> None:
        try:
            await idle.guest.process.stop(0)
        finally:
            self._leaving -= idle.ticket.memory
            self._admission.leave(idle.ticket)

    async def close(self) -> None:
        """End all of it."""
        self._closed = True
        filling = [kind.filling for kind in self._kinds.values() if kind.filling]
        for task in filling:
            task.cancel()
        if filling:
            await asyncio.wait(filling)
        for kind in self._kinds.values():
            while kind.idle:
                self._end(kind.idle.pop())
        if self._ending:
            await asyncio.wait(self._ending)
