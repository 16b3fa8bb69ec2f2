"""What a function has in memory: the requests that wait for it, and its guests."""

import asyncio
import collections
import enum
from collections.abc import Iterable, Iterator
from typing import Generic

from mayfly.errors import MayflyError, QueueFullError, ResourceExhaustedError
from mayfly.functions.needs import G, R
from mayfly.functions.request import Request
from mayfly.guests.start import StartKind
from mayfly.host.admission import Admission, Ticket
from mayfly.units import MIB


class State(enum.StrEnum):
    """What a guest of a function does."""

    STARTING = "starting"
    IDLE = "idle"
    IN_USE = "in_use"
    ENDING = "ending"


class Instance(Generic[R, G]):
    """One guest of a function, from the wish for one to its end. It holds a place in the memory
    budget as long.

    Attributes:
        tenant: whose requests it serves, once it has served one.
        rested: whether it has been idle with nobody to serve.
        paid_off_at: until when it does not make room while its function has requests.
    """

    def __init__(self, number: int, desk: "Desk[R, G]", ticket: Ticket) -> None:
        self.number = number
        self.desk = desk
        self.revision = desk.revision
        self.ticket = ticket
        self.state = State.STARTING
        self.guest: G | None = None
        self.kind = StartKind.COLD
        self.tenant: str | None = None
        self.served = 0
        self.rested = False
        self.evicted_at = 0.0
        self.used_at = 0.0
        self.paid_off_at = 0.0
        self.expiry: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.watch: asyncio.Task[None] | None = None

    @property
    def granted(self) -> bool:
        """Whether there is memory for it."""
        return self.ticket.granted_at is not None

    @property
    def is_current(self) -> bool:
        """Whether the function is still what is loaded in it."""
        return self.revision.key == self.desk.revision.key

    def may_serve(self, request: Request) -> bool:
        """Whether it is idle, and the request's to use."""
        return self.state is State.IDLE and self.is_current and self.tenant in (None, request.tenant)


class Desk(Generic[R, G]):
    """One function's queue and guests, the one used last at the end. Until `fill_after` no guest is
    started that nobody waits for.
    """

    def __init__(self, revision: R) -> None:
        self.revision = revision
        self.queue: collections.deque[Request] = collections.deque()
        self.instances: list[Instance[R, G]] = []
        self.removed = False
        self.fill_after = 0.0

    def of(self, *states: State) -> Iterator[Instance[R, G]]:
        """Its guests in these states."""
        return (instance for instance in self.instances if instance.state in states)

    @property
    def coming(self) -> int:
        """How many guests start for whoever is first in the queue, and have memory."""
        return sum(instance.granted and instance.is_current for instance in self.of(State.STARTING))

    @property
    def covered(self) -> int:
        """How many requests at the head of the queue wait only for a guest that is being started,
        or for memory that is on its way.
        """
        starting = [instance for instance in self.of(State.STARTING) if instance.is_current]
        coming = sum(instance.granted or instance.ticket.covered for instance in starting)
        if len(self.instances) < self.revision.spec.concurrency_limit:
            return coming
        return coming + sum(1 for _ in self.of(State.ENDING))

    def awaits(self, ticket: Ticket) -> bool:
        """Whether the ticket is that of a guest that starts for it."""
        return any(instance.ticket is ticket for instance in self.of(State.STARTING))

    def fail_all(self, error: MayflyError) -> None:
        """Fail every request that waits."""
        while self.queue:
            self.queue.popleft().fail(error)

    @property
    def lasting(self) -> int:
        """How many guests there are that are not ending."""
        return sum(instance.is_current for instance in self.of(State.STARTING, State.IDLE, State.IN_USE))


def surplus(idle: Iterable[Instance[R, G]]) -> Iterator[Instance[R, G]]:
    """Those of the idle guests that their function does not want to be ready."""
    return (instance for instance in idle if instance.desk.lasting > instance.desk.revision.spec.min_guests)


def exhausted(desk: Desk[R, G], admission: Admission, typical_s: float) -> ResourceExhaustedError:
    """The error of a request that waited in vain; requests take about `typical_s`."""
    spec, memory = desk.revision.spec, desk.revision.memory
    if sum(instance.granted for instance in desk.instances) >= spec.concurrency_limit:
        wait = max(1, round(typical_s))
        return ResourceExhaustedError(
            f"no guest of {spec.name} was free in time; its concurrency_limit is {spec.concurrency_limit}",
            hint=f"try again in {wait} s, or raise concurrency_limit",
            resource="concurrency",
            retry_after_s=wait,
        )
    wait = admission.typical_wait_s(memory)
    used = f"{admission.used // MIB} of {admission.budget // MIB} MiB"
    return ResourceExhaustedError(
        f"there was no memory in time for a guest of {spec.name} ({memory // MIB} MiB): {used} are used",
        hint=f"try again in {wait} s, or raise memory_budget",
        resource="memory",
        retry_after_s=wait,
    )


def queue_full(desk: Desk[R, G], typical_s: float) -> QueueFullError:
    """The error of a request that there is no room for in the queue."""
    spec = desk.revision.spec
    wait = max(1, round(typical_s * len(desk.queue) / spec.concurrency_limit))
    return QueueFullError(
        f"{spec.queue} requests wait for {spec.name} already", hint=f"try again in {wait} s, or raise its queue", retry_after_s=wait
    )
