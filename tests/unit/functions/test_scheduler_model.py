"""Whatever comes in whatever order, each request is answered once with its own answer or fails with
a reason, guests fit into the budget and are never shared, and nobody waits for what is free.
"""

import contextlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mayfly.errors import (
    BusyError,
    FunctionCrashedError,
    FunctionFailedError,
    GuestError,
    HostError,
    MayflyError,
    QueueFullError,
    ResourceExhaustedError,
)
from mayfly.functions.answer import Answer
from mayfly.functions.request import Request
from mayfly.functions.scheduler import Scheduler
from mayfly.host import admission
from mayfly.host.admission import Admission, Ticket
from mayfly.units import MIB
from tests.kit.function_fakes import FakeGuest, FakeMachines, FakeRevision, FakeWatcher, invocation, revision
from tests.kit.scale import scaled
from tests.kit.virtual_time import VirtualLoop

BUDGET = 512 * MIB
FIELDS: dict[str, dict[str, Any]] = {
    "one": {"concurrency_limit": 1, "queue": 3, "queue_s": 5, "keep_alive_s": 20},
    "many": {"concurrency_limit": 4, "queue": 8, "queue_s": 10, "keep_alive_s": 5},
    "ready": {"concurrency_limit": 2, "queue": 0, "min_guests": 1, "keep_alive_s": 7, "mib": 256},
}
NAMES = st.sampled_from(sorted(FIELDS))
TENANTS = st.sampled_from(["", "ann", "bob"])


class Scheduling(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.loop = VirtualLoop()
        self.patch.setattr(admission, "time", self.loop)
        self.machines = FakeMachines()
        self.loop.set_exception_handler(lambda _, context: self.machines.expect(False, str(context)))
        self.watcher = FakeWatcher()
        self.requests: dict[str, Request] = {}
        self.ends: dict[str, list[object]] = {}
        self.runs: list[Ticket] = []
        self.keys = dict.fromkeys(FIELDS, 1)
        self.seen = dict.fromkeys(FIELDS, "")  # the key of the latest request
        self.by_number: dict[int, FakeGuest] = {}
        self.removed: set[str] = set()
        self.number = 0
        self.run(self.make)

    def run(self, call: Any, *args: Any) -> Any:
        """Call it in the loop, and let happen what follows."""

        async def inside() -> Any:
            return call(*args)

        self.loop.now += 0.001  # no two events at one time
        result = self.loop.run_until_complete(inside())
        self.loop.settle()
        return result

    def make(self) -> None:
        self.room = Admission(BUDGET, queue=4)
        self.scheduler: Scheduler[FakeRevision, FakeGuest] = Scheduler(self.machines, self.room, self)

    # Told by the scheduler

    def guest_started(self, function: str, number: int, memory: int, began: float, ended: float) -> None:
        self.watcher.guest_started(function, number, memory, began, ended)
        self.by_number[number] = max(self.machines.guests, key=lambda guest: guest.used_at)

    def guest_failed(self, function: str, error: MayflyError) -> None:
        self.watcher.guest_failed(function, error)

    def guest_evicted(self, function: str, number: int) -> None:
        """Of the idle guests it is the one used longest ago; those that are to be ready go last."""
        self.watcher.guest_evicted(function, number)
        victim = self.by_number[number]
        self.machines.expect(victim.idle, "evicted while it had a request")
        surplus = [guest for guest in self.machines.idle() if not self.is_to_be_ready(guest)]
        if self.is_to_be_ready(victim):
            self.machines.expect(surplus == [], "evicted although it was to be ready, and others were not")
        else:
            self.machines.expect(victim is min(surplus, key=lambda guest: guest.used_at), "evicted although another was used less lately")
        victim.evicted = True

    def eviction_over(self, number: int, began: float, ended: float) -> None:
        self.watcher.eviction_over(number, began, ended)

    def is_to_be_ready(self, guest: FakeGuest) -> bool:
        current = [each for each in self.machines.guests if each.of.key == self.seen[guest.name] and not each.stopping and not each.evicted]
        waiting = self.scheduler.guests(guest.name)["starting"] - sum(each.name == guest.name for each in self.machines.starting())
        return len(current) + waiting <= int(FIELDS[guest.name].get("min_guests", 0))

    # What comes from outside

    @rule(name=NAMES, tenant=TENANTS, wait_s=st.sampled_from([None, None, 0, 3]))
    def ask(self, name: str, tenant: str, wait_s: float | None) -> None:
        self.number += 1
        payload = f"{tenant}/{name}/{self.number}"
        self.removed.discard(name)
        refused = self.run(self._enter, name, tenant, payload, wait_s)
        if refused:
            assert isinstance(refused, QueueFullError | ResourceExhaustedError)
            assert refused.retry_after_s >= 1

    def _enter(self, name: str, tenant: str, payload: str, wait_s: float | None) -> MayflyError | None:
        request = Request(invocation(name, payload.encode(), tenant=tenant))
        self.requests[payload] = request
        ends = self.ends[payload] = []

        def over(future: Any) -> None:
            ends.append("gone" if future.cancelled() else future.exception() or future.result())

        request.answer.add_done_callback(over)
        of = revision(name, key=str(self.keys[name]), **FIELDS[name])
        self.seen[name] = of.key
        try:
            self.scheduler.enter(request, of, wait_s)
        except MayflyError as error:
            return error
        return None

    @precondition(lambda self: any(not request.answer.done() for request in self.requests.values()))
    @rule(data=st.data())
    def go_away(self, data: st.DataObject) -> None:
        """Whoever asked is gone."""
        waiting = [request for request in self.requests.values() if not request.answer.done()]
        request = data.draw(st.sampled_from(waiting))
        had_guest = request.kind is not None
        self.run(self.scheduler.withdraw, request)
        assert request.answer.done() or had_guest

    @rule(name=NAMES)
    def change(self, name: str) -> None:
        """The function is created anew; the next request sees it."""
        self.keys[name] += 1

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self.removed.add(name)
        self.run(self.scheduler.forget, name)

    @rule(mib=st.sampled_from([64, 128, 256]))
    def begin_run(self, mib: int) -> None:
        with contextlib.suppress(BusyError):
            self.runs.append(self.run(self.room.enter, mib * MIB))

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def end_run(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.runs))
        self.runs.remove(ticket)
        self.run(self.room.leave, ticket)

    @rule(seconds=st.sampled_from([0.5, 2, 6, 30]))
    def wait(self, seconds: float) -> None:
        self.loop.advance(seconds)

    # What guests do

    @precondition(lambda self: self.machines.starting())
    @rule(data=st.data(), good=st.sampled_from([True, True, True, False]))
    def start(self, data: st.DataObject, good: bool) -> None:
        guest = data.draw(st.sampled_from(self.machines.starting()))
        if good:
            self.run(guest.started.set_result, None)
        else:
            error = data.draw(st.sampled_from([HostError("no"), BusyError("no network"), FunctionFailedError("no build")]))
            self.run(guest.started.set_exception, error)

    @precondition(lambda self: self.machines.asked())
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.run(data.draw(st.sampled_from(self.machines.asked())).respond)

    @precondition(lambda self: self.machines.asked())
    @rule(data=st.data(), error=st.sampled_from([FunctionCrashedError("x"), GuestError("x"), None]))
    def crash(self, data: st.DataObject, error: MayflyError | None) -> None:
        self.run(data.draw(st.sampled_from(self.machines.asked())).fail, error)

    @precondition(lambda self: self.machines.stopping())
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        guest = data.draw(st.sampled_from(self.machines.stopping()))
        self.run(guest.stopped.set_result, None)

    @precondition(lambda self: self.machines.idle())
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A guest that nobody uses ends."""
        guest = data.draw(st.sampled_from(self.machines.idle()))
        if not guest.dead.done():
            self.run(guest.dead.set_result, None)

    # What holds at any time

    @invariant()
    def guests_are_used_as_they_may_be(self) -> None:
        assert self.machines.broken == []

    @invariant()
    def budget_holds(self) -> None:
        runs = sum(ticket.memory for ticket in self.runs if ticket.granted_at is not None)
        assert sum(guest.of.memory for guest in self.machines.guests) + runs <= self.room.used <= BUDGET

    @invariant()
    def concurrency_holds(self) -> None:
        for name, fields in FIELDS.items():
            there = [guest for guest in self.machines.guests if guest.name == name]
            assert len(there) <= fields["concurrency_limit"]

    @invariant()
    def each_request_has_one_end(self) -> None:
        for payload, request in self.requests.items():
            ends = self.ends[payload]
            assert len(ends) == request.answer.done()
            assert "a fault of ours" not in str(ends)
            if ends and isinstance(ends[0], Answer):
                assert request.answer.result().payload.decode() == payload

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        """While requests wait and nothing is under way, others hold the memory."""
        waiting = [request for request in self.requests.values() if not request.answer.done() and request.kind is None]
        assert self.scheduler.under_way == sum(not request.answer.done() for request in self.requests.values())
        if not waiting or self.machines.starting() or self.machines.stopping() or self.machines.asked():
            return
        assert not self.machines.idle(), "an idle guest holds what others wait for"
        assert self.room.first_waiting is not None
        assert self.room.used + self.room.first_waiting.memory > BUDGET

    @invariant()
    def nobody_waits_beyond_their_time(self) -> None:
        for request in self.requests.values():
            if not request.answer.done() and request.kind is None and request.deadline < self.loop.now:
                coming = [*self.machines.starting(), *self.machines.stopping()]
                assert any(guest.name == request.function for guest in coming) or self.machines.stopping()

    @invariant()
    def a_removed_function_has_nothing_idle(self) -> None:
        assert not [guest for guest in self.machines.idle() if guest.name in self.removed]

    def teardown(self) -> None:
        try:
            closing = self.loop.create_task(self.scheduler.close())
            self.loop.settle()
            while not closing.done():
                stopping = [guest for guest in self.machines.stopping() if not guest.stopped.done()]
                assert stopping, "closing waits for nothing"
                for guest in stopping:
                    guest.stopped.set_result(None)
                self.loop.settle()
            closing.result()
            self.each_request_has_one_end()
            assert all(request.answer.done() for request in self.requests.values())
            assert (self.machines.guests, self.machines.broken) == ([], [])
            assert self.room.used == sum(ticket.memory for ticket in self.runs if ticket.granted_at is not None)
            assert self.room.waiting == sum(ticket.granted_at is None for ticket in self.runs)
        finally:
            self.loop.close()
            self.patch.undo()


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=scaled(1000), stateful_step_count=60, deadline=None)
