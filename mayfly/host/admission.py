"""Admission: the machines that exist at one time fit into a memory budget, and have no more threads
than the processors shall share; a bounded number of runs waits, in order of arrival. A tenant's
runs are bounded besides.
"""

import asyncio
import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator

from mayfly.errors import BusyError, HostError, KeyLimitError, UnprocessableError
from mayfly.units import MIB

DEFAULT_SHARE = 0.6
"""Of the memory available at the start, for all machines together."""
MAX_RETRY_S = 60


def threads_of(cpus: int) -> int:
    """Of a machine: one for each virtual CPU, and the event loop's."""
    return cpus + 1


class Tenant:
    """Who asks for runs, with limits of its own: runs that begin in a minute (as many may begin at
    once), runs under way, and bytes of their machines; those that wait count too. `readers` is how
    many may read events of its runs at a time. 0: no limit. One that `moves` is another server,
    which hands runs over.
    """

    def __init__(self, name: str, *, rate: int = 0, concurrency: int = 0, memory: int = 0, readers: int = 0, moves: bool = False) -> None:
        self.name = name
        self.moves = moves
        self.rate, self.concurrency, self.memory, self.readers = rate, concurrency, memory, readers
        self.reading = 0
        self.runs = 0
        self.memory_used = 0
        self._left = float(rate)  # of runs that may begin now
        self._at = time.monotonic()

    def counted(self, runs: int, memory_used: int, left: float) -> "Tenant":
        """The same limits, where so much is under way and `left` runs may begin now."""
        other = Tenant(self.name, rate=self.rate, concurrency=self.concurrency, memory=self.memory)
        other.runs, other.memory_used, other._left = runs, memory_used, left
        return other

    def check(self, memory: int, *, begins: bool = True) -> None:
        """Refuse one more run whose machine has `memory` bytes, if a limit is reached. One that
        does not begin, as it comes from another server, does not count against the rate.

        Raises:
            KeyLimitError: it is reached now.
            UnprocessableError: such a machine is over it at any time.
        """
        if self.memory and memory > self.memory:
            raise UnprocessableError(
                f"the machine has {memory // MIB} MiB; this key may use {self.memory // MIB} MiB", hint="choose another language"
            )
        if self.concurrency and self.runs >= self.concurrency:
            raise KeyLimitError(f"{self.runs} runs of this key are under way, as many as it may have", hint="wait for one of them to end")
        if self.memory and self.memory_used + memory > self.memory:
            used = f"{self.memory_used // MIB} of {self.memory // MIB} MiB"
            raise KeyLimitError(f"the runs of this key use {used}", hint="wait for one of them to end")
        if begins and self.rate and (left := self._runs_left()) < 1:
            wait = max(1, math.ceil((1 - left) * 60 / self.rate))
            raise KeyLimitError(f"this key may begin {self.rate} runs a minute", hint=f"try again in {wait} s", retry_after_s=wait)

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Count one more reader until the block is left.

        Raises:
            KeyLimitError: there are as many as there may be.
        """
        if self.readers and self.reading >= self.readers:
            raise KeyLimitError(f"{self.reading} readers of this key follow runs, as many as it may have", hint="end one of them first")
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    def take(self, memory: int, runs: int = 1, *, begins: bool = True) -> None:
        """Count one more run, as of `check`; with `runs` 0 one more machine of a run."""
        self.runs += runs
        self.memory_used += memory
        self._left = self._runs_left() - (runs if begins else 0)
        self._at = time.monotonic()

    def give_back(self, memory: int, runs: int = 1) -> None:
        """What was taken is over."""
        self.runs -= runs
        self.memory_used -= memory

    def _runs_left(self) -> float:
        return min(self.rate, self._left + (time.monotonic() - self._at) * self.rate / 60)


class Ticket:
    """One machine's place. `turn` is done once its memory is granted; `tenant` is who pays for it,
    and for so many `runs`. `of_run` is false for a machine that outlasts what is done in it.

    Attributes:
        entered_at, granted_at: the monotonic clock's times.
        covered: whether its memory was there when it was asked for, or about to be given back.
    """

    def __init__(self, memory: int, threads: int, *, of_run: bool = True) -> None:
        self.memory, self.threads = memory, threads
        self.of_run = of_run
        self.covered = True
        self.entered_at = time.monotonic()
        self.tenant: Tenant | None = None
        self.runs = 1
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.granted_at: float | None = None


class Admission:
    """A budget of `budget` bytes and, unless 0, of `most` threads, and room for `queue` runs that
    wait for their share of it.

    Attributes:
        machines, threads: how many hold a share now.
        reclaimers: each is called with the bytes that are lacking: begins to end machines that
            nobody uses, and says how many bytes such machines are about to give back.
        on_room: called some time after memory was given back that nobody waits for.
    """

    def __init__(self, budget: int, queue: int, most: int = 0) -> None:
        self.budget = budget
        self.most = most
        self.used = 0
        self.machines = self.threads = 0
        self.reclaimers: list[Callable[[int], int]] = []
        self.on_room: list[Callable[[], None]] = []
        self._queue = queue
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._typical_s = 1.0
        self._telling: asyncio.Handle | None = None

    @property
    def waiting(self) -> int:
        """How many runs wait."""
        return sum(ticket.of_run for ticket in self._waiting)

    @property
    def first_waiting(self) -> Ticket | None:
        """The ticket that is granted next."""
        return self._waiting[0] if self._waiting else None

    def check(self, memory: int, cpus: int = 1) -> None:
        """Refuse a machine that is too large at any time.

        Raises:
            HostError: it is.
        """
        if self.most and threads_of(cpus) > self.most:
            raise HostError(
                f"a machine of {cpus} virtual CPUs has {threads_of(cpus)} threads; all machines together may have {self.most}",
                hint="raise threads (--threads), or ask for fewer CPUs",
            )
        if memory > self.budget:
            raise HostError(
                f"a machine of {memory // MIB} MiB does not fit into the budget of {self.budget // MIB} MiB for all machines",
                hint="raise memory_budget (--memory-budget), or serve from a host with more memory",
            )

    def enter(self, memory: int, cpus: int = 1, *, of_run: bool = True) -> Ticket:
        """Ask for a machine of `memory` bytes and so many virtual CPUs. Await the ticket's `turn`,
        and give it back with `leave` in any case. One that is not `of_run` takes no place among the
        runs that may wait.

        Raises:
            BusyError: the queue is full.
            HostError: the budget is too small for it at any time.
        """
        self.check(memory, cpus)
        ticket = Ticket(memory, threads_of(cpus), of_run=of_run)
        missing = self._missing(ticket)
        covered = missing <= 0 or self._reclaim(missing) >= missing
        if of_run and not covered and self.waiting >= self._queue:
            wait = self.typical_wait_s(memory)
            raise BusyError(f"{self.waiting} runs are waiting already", hint=f"try again in {wait} s", retry_after_s=wait)
        ticket.covered = covered
        self._waiting.append(ticket)
        self._grant()
        return ticket

    def _missing(self, *more: Ticket) -> int:
        """Bytes that those who wait are lacking, and `more` machines; less than 0 if there is room.
        Where threads are what lacks, the bytes of those that have as many.
        """
        asked = [*self._waiting, *more]
        bytes_missing = sum(ticket.memory for ticket in asked) + self.used - self.budget
        over = sum(ticket.threads for ticket in asked) + self.threads - self.most
        if self.most and over > 0:
            return max(bytes_missing, -(-over * self.used // max(1, self.threads)), 1)
        return bytes_missing

    def _fits(self, memory: int, threads: int) -> bool:
        return self.used + memory <= self.budget and (not self.most or self.threads + threads <= self.most)

    def _reclaim(self, missing: int) -> int:
        freed = 0
        for reclaim in self.reclaimers:
            if freed < missing:
                freed += reclaim(missing - freed)
        return freed

    def press(self) -> None:
        """Have machines ended that nobody uses, for those who wait."""
        if self._waiting and (missing := self._missing()) > 0:
            self._reclaim(missing)

    def typical_wait_s(self, memory: int) -> int:
        """After how many seconds there may be room for a machine of this size."""
        ahead = len(self._waiting) + 1
        threads = sum(ticket.threads for ticket in self._waiting) + threads_of(1)
        rounds = max(ahead * memory / self.budget, threads / self.most if self.most else 0)
        return min(MAX_RETRY_S, max(1, math.ceil(self._typical_s * rounds)))

    def enter_idle(self, memory: int, cpus: int = 1, *, beside: Ticket | None = None) -> Ticket | None:
        """A ticket for a machine that nobody waits for, if there is room beside all who do. It is
        one more for the run that has the ticket `beside`, if that is given.
        """
        if self._waiting or not self._fits(memory, threads_of(cpus)):
            return None
        tenant = beside.tenant if beside else None
        if tenant is not None and tenant.memory and tenant.memory_used + memory > tenant.memory:
            return None
        ticket = self.enter(memory, cpus)
        if tenant is not None:
            ticket.tenant, ticket.runs = tenant, 0
            tenant.take(memory, 0)
        return ticket

    def date(self, ticket: Ticket, since: float) -> None:
        """Have a ticket that waits be as old as what waits for its machine, which may change."""
        if ticket.entered_at != since and ticket.granted_at is None:
            ticket.covered &= since <= ticket.entered_at  # what is about to be given back may be others' now
            ticket.entered_at = since
            self._waiting = collections.deque(sorted(self._waiting, key=lambda each: each.entered_at))
            self._grant()

    def charge(self, ticket: Ticket, tenant: Tenant, *, begins: bool = True) -> None:
        """Account the ticket to a tenant, whose limits were checked; `begins` is as of its
        `check`.
        """
        ticket.tenant = tenant
        tenant.take(ticket.memory, begins=begins)

    def leave(self, ticket: Ticket) -> None:
        """Give a ticket back, whether it was granted or still waits."""
        if ticket.tenant is not None:
            ticket.tenant.give_back(ticket.memory, ticket.runs)
        if ticket.granted_at is None:
            self._waiting.remove(ticket)
        else:
            if ticket.of_run:
                self._typical_s = 0.8 * self._typical_s + 0.2 * (time.monotonic() - ticket.granted_at)
            self.used -= ticket.memory
            self.machines -= 1
            self.threads -= ticket.threads
        self._grant()
        if not self._waiting and self.on_room and self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = None
        for call in self.on_room:
            call()

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0].memory, self._waiting[0].threads):
            ticket = self._waiting.popleft()
            ticket.granted_at = time.monotonic()
            self.used += ticket.memory
            self.machines += 1
            self.threads += ticket.threads
            if not ticket.turn.done():  # it is when its run was ended while it waited; `leave` comes next
                ticket.turn.set_result(None)
