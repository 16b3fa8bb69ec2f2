"""Guests of functions that do what a test says, and check how they are used."""

import asyncio
import itertools
from typing import Any

from mayfly.errors import FunctionCrashedError, MayflyError
from mayfly.functions.answer import Invocation
from mayfly.functions.request import Request
from mayfly.functions.spec import FunctionSpec
from mayfly.guests.function import FunctionRequest, FunctionResponse
from mayfly.guests.start import StartKind
from mayfly.host.admission import Tenant
from mayfly.schema import Record
from mayfly.units import MIB


class FakeRevision(Record, frozen=True, kw_only=True):
    """A function without image or code."""

    spec: FunctionSpec
    key: str = "1"
    memory: int = 128 * MIB


def revision(name: str = "f", *, key: str = "1", mib: int = 128, **fields: object) -> FakeRevision:
    """A function with these fields."""
    spec = FunctionSpec(**{"name": name, "language": "toy", "code": "/code", **fields})  # type: ignore[arg-type]
    return FakeRevision(spec=spec, key=f"{name} {key}", memory=mib * MIB)


def invocation(function: str, payload: bytes = b"", content_type: str = "", *, tenant: Tenant | str = "", **more: Any) -> Invocation:
    """A request to a function, of a tenant who may do all, or of nobody."""
    owner = tenant if isinstance(tenant, Tenant) else Tenant(tenant) if tenant else None
    return Invocation(function=function, payload=payload, content_type=content_type, tenant=owner, **more)


class FakeGuest:
    """One guest. `asked` is the request that it has; it is to end soon once it is `evicted`. It is
    lost in its next request if it has a `successor`, which answers that.
    """

    def __init__(self, number: int, of: FakeRevision) -> None:
        self.number = number
        self.of = of
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answer: asyncio.Future[FunctionResponse] | None = None
        self.asked: FunctionRequest | None = None
        self.successor: FakeGuest | None = None
        self.tenants: set[str] = set()
        self.ids: list[int] = []
        self.stopping = self.evicted = False
        self.used_at = 0  # the number of the last event that used it
        self.watched = False

    @property
    def name(self) -> str:
        """Its function's."""
        return self.of.spec.name

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do, and is not ending."""
        return self.started.done() and self.answer is None and not self.stopping and not self.evicted

    def respond(self) -> None:
        """Answer what was asked with its payload."""
        assert self.answer is not None
        assert self.asked is not None
        self.answer.set_result(FunctionResponse(kind="answer", content_type="", payload=self.asked.payload, guest_us=7))

    def fail(self, error: MayflyError | None = None) -> None:
        """Crash over what was asked."""
        assert self.answer is not None
        self.answer.set_exception(error or FunctionCrashedError("it exited"))


class FakeMachines:
    """Guests that start, answer and end when the test says so; `automatic` ones do at once. The
    payload of a request begins with its tenant and its function, each before a /. How guests were
    misused is in `broken`.
    """

    def __init__(self, *, automatic: bool = False) -> None:
        self.guests: list[FakeGuest] = []
        self.broken: list[str] = []
        self.automatic = automatic
        self.saved_every_s = -1.0
        self._numbers = itertools.count(1)
        self._events = itertools.count(1)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note what is not as it must be: an assertion would be taken for a fault of the
        machine.
        """
        if not holds:
            self.broken.append(otherwise)

    async def start(self, of: FakeRevision) -> tuple[FakeGuest, StartKind]:
        guest = FakeGuest(next(self._numbers), of)
        self.guests.append(guest)
        try:
            if not self.automatic:
                await guest.started
            elif not guest.started.done():
                guest.started.set_result(None)
        except BaseException:
            self.guests.remove(guest)
            raise
        guest.used_at = next(self._events)
        return guest, StartKind.RESTORED

    async def ask(
        self, guest: FakeGuest, asked: FunctionRequest, request: Request, timeout_s: float, every_s: float
    ) -> tuple[FakeGuest, FunctionResponse]:
        self.saved_every_s = every_s
        tenant = asked.payload.decode().split("/")[0]
        self.expect(guest.started.done(), "asked before it had started")
        self.expect(guest.answer is None, "asked while it had a request")
        self.expect(not guest.stopping, "asked while it ended")
        self.expect(not guest.watched, "asked while it was watched")
        self.expect(guest.tenants <= {tenant}, "asked for two tenants")
        self.expect(asked.payload.decode().split("/")[1] == guest.name, "asked for another function")
        self.expect(not guest.ids or asked.id > guest.ids[-1], "asked with an id that it knows")
        guest.tenants.add(tenant)
        guest.ids.append(asked.id)
        guest.asked = asked
        guest.answer = asyncio.get_running_loop().create_future()
        if self.automatic:
            guest.respond()
        try:
            response = await guest.answer
            return guest.successor or guest, response
        finally:
            guest.answer = guest.asked = None
            guest.used_at = next(self._events)

    async def stop(self, guest: FakeGuest) -> None:
        self.expect(guest.answer is None, "ended while it had a request")
        self.expect(not guest.stopping, "ended twice")
        guest.stopping = True
        if not self.automatic:
            await guest.stopped
        self.guests.remove(guest)

    def is_alive(self, guest: FakeGuest) -> bool:
        return not guest.dead.done()

    async def watch(self, guest: FakeGuest) -> None:
        self.expect(guest.answer is None, "watched while it had a request")
        guest.watched = True
        try:
            await asyncio.shield(guest.dead)
        finally:
            guest.watched = False

    def succeed(self, guest: FakeGuest) -> FakeGuest:
        """Another guest, which takes this one's place in its request."""
        other = guest.successor = FakeGuest(next(self._numbers), guest.of)
        other.started.set_result(None)
        other.tenants |= guest.tenants
        self.guests[self.guests.index(guest)] = other
        return other

    def starting(self) -> list[FakeGuest]:
        """Those that have not started."""
        return [guest for guest in self.guests if not guest.started.done()]

    def asked(self) -> list[FakeGuest]:
        """Those that have a request."""
        return [guest for guest in self.guests if guest.answer is not None]

    def idle(self) -> list[FakeGuest]:
        """Those that nobody uses."""
        return [guest for guest in self.guests if guest.idle]

    def stopping(self) -> list[FakeGuest]:
        """Those that are ending."""
        return [guest for guest in self.guests if guest.stopping]


class FakeWatcher:
    """Counts guests."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.failed: list[str] = []
        self.evicted: list[tuple[str, int]] = []

    def guest_started(self, function: str, number: int, memory: int, began: float, ended: float) -> None:
        self.started.append(number)

    def guest_failed(self, function: str, error: MayflyError) -> None:
        self.failed.append(function)

    def guest_evicted(self, function: str, number: int) -> None:
        self.evicted.append((function, number))

    def eviction_over(self, number: int, began: float, ended: float) -> None:
        assert began <= ended
