"""What a request takes, in this order: an idle guest, a new one, the room of another function's,
its turn in the queue. And what becomes of guests.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mayfly.errors import (
    BusyError,
    FunctionCrashedError,
    FunctionFailedError,
    HostError,
    MayflyError,
    QueueFullError,
    ResourceExhaustedError,
    StoppingError,
    UnknownFunctionError,
)
from mayfly.functions.request import Request
from mayfly.functions.scheduler import Scheduler
from mayfly.host import admission
from mayfly.host.admission import Admission
from mayfly.units import MIB
from tests.kit.function_fakes import FakeGuest, FakeMachines, FakeRevision, FakeWatcher, invocation, revision
from tests.kit.virtual_time import VirtualLoop


class Bench:
    """A scheduler whose guests do what the test says, and whose time is the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> None:
        self.factor = factor
        self.loop = VirtualLoop()
        monkeypatch.setattr(admission, "time", self.loop)
        self.machines = FakeMachines()
        self.watcher = FakeWatcher()
        self.room: Admission
        self.scheduler: Scheduler[FakeRevision, FakeGuest]
        self.call(self._make)

    def _make(self) -> None:
        self.room = Admission(256 * MIB, queue=4)
        self.scheduler = Scheduler(self.machines, self.room, self.watcher, self.factor)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        async def inside() -> Any:
            return function(*args)

        try:
            return self.loop.run_until_complete(inside())
        finally:
            self.loop.settle()

    def ask(self, of: FakeRevision, tenant: str = "", wait_s: float | None = None) -> Request:
        return self.call(self._ask, of, tenant, wait_s)  # type: ignore[no-any-return]

    def _ask(self, of: FakeRevision, tenant: str, wait_s: float | None) -> Request:
        request = Request(invocation(of.spec.name, f"{tenant}/{of.spec.name}/".encode(), tenant=tenant))
        self.scheduler.enter(request, of, wait_s)
        return request

    def start(self) -> FakeGuest:
        """Let the guest that is starting be up."""
        (guest,) = self.machines.starting()
        self.call(guest.started.set_result, None)
        return guest

    def respond(self, request: Request) -> FakeGuest:
        """Let the request's guest answer."""
        (guest,) = [guest for guest in self.machines.asked() if guest.asked and guest.asked.payload == request.payload]
        self.call(guest.respond)
        assert request.answer.done()
        return guest

    def serve(self, of: FakeRevision, tenant: str = "") -> FakeGuest:
        """A request, to its answer."""
        request = self.ask(of, tenant)
        if self.machines.starting():
            self.start()
        return self.respond(request)

    def stop(self) -> None:
        """Let all that end be gone."""
        for guest in self.machines.stopping():
            self.call(guest.stopped.set_result, None)

    def close(self) -> None:
        closing = self.loop.create_task(self.scheduler.close())
        self.loop.settle()
        self.stop()
        assert closing.done()
        assert (self.machines.guests, self.machines.broken, self.room.used) == ([], [], 0)
        self.loop.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    made.close()


def error_of(request: Request) -> MayflyError:
    error = request.answer.exception()
    assert isinstance(error, MayflyError)
    return error


F, G, H = revision("f"), revision("g"), revision("h")


def test_the_first_request_starts_a_guest_and_the_next_finds_it(bench: Bench) -> None:
    first = bench.ask(F)
    guest = bench.start()
    assert bench.respond(first) is guest
    assert first.answer.result().start == "restored"
    second = bench.ask(F)
    assert bench.respond(second) is guest
    assert second.answer.result().start == "warm"
    assert guest.ids == [1, 2]
    assert bench.scheduler.guests("f") == {"starting": 0, "idle": 1, "in_use": 0, "ending": 0}


def test_a_guest_that_took_anothers_place_in_a_request_has_the_next_one(bench: Bench) -> None:
    saved = revision("f", timeout_s=10, checkpoint_every_s=2)
    first = bench.ask(saved)
    lost = bench.start()
    other = bench.call(bench.machines.succeed, lost)
    bench.call(lost.respond)
    assert first.answer.done()
    assert bench.machines.saved_every_s == 2
    assert bench.respond(bench.ask(saved)) is other
    assert len(bench.watcher.started) == 1
    bench.serve(F)
    assert bench.machines.saved_every_s == 0


def test_one_request_at_a_time_in_the_order_in_which_they_came(bench: Bench) -> None:
    requests = [bench.ask(F) for _ in range(3)]
    bench.start()
    for request, later in zip(requests, [*requests[1:], None], strict=True):
        assert later is None or not later.sent_at
        bench.respond(request)
    assert [request.answer.done() for request in requests] == [True] * 3
    assert len(bench.watcher.started) == 1


def test_as_many_guests_as_the_limit_allows(bench: Bench) -> None:
    wide = revision("f", concurrency_limit=2)
    for _ in range(3):
        bench.ask(wide)
    assert len(bench.machines.starting()) == 2
    assert bench.scheduler.waiting("f") == 3


def test_no_more_guests_than_requests(bench: Bench) -> None:
    wide = revision("f", concurrency_limit=4, mib=32)
    requests = [bench.ask(wide), bench.ask(wide)]
    assert len(bench.machines.starting()) == 2
    for guest in bench.machines.starting():
        bench.call(guest.started.set_result, None)
    for guest in bench.machines.asked():
        bench.call(guest.respond)
    assert all(request.answer.done() for request in requests)


def test_another_tenants_guest_makes_room_for_one_of_the_same_function(bench: Bench) -> None:
    wide = revision("f", concurrency_limit=2)
    other, bobs = bench.ask(G), bench.ask(wide, "bob")
    for guest in bench.machines.starting():
        bench.call(guest.started.set_result, None)
    anns = bench.ask(wide, "ann")
    assert bench.respond(bobs).stopping
    bench.stop()
    bench.start()
    bench.respond(anns)
    bench.respond(other)


def test_the_guest_used_longest_ago_makes_room(bench: Bench) -> None:
    new = bench.serve(F)
    bench.loop.advance(1)
    old = bench.serve(G)
    bench.loop.advance(1)
    assert bench.serve(F) is new
    request = bench.ask(H)
    assert bench.watcher.evicted == [("g", 2)]
    assert old.stopping
    assert not new.stopping
    assert bench.machines.starting() == []
    bench.stop()
    bench.start()
    bench.respond(request)


def test_a_guest_in_use_is_never_ended_for_room(bench: Bench) -> None:
    busy = [bench.ask(F), bench.ask(G)]
    for guest in bench.machines.starting():
        bench.call(guest.started.set_result, None)
    late = bench.ask(H)
    assert bench.watcher.evicted == []
    bench.loop.advance(10)
    assert isinstance(error_of(late), ResourceExhaustedError)
    assert vars(error_of(late))["resource"] == "memory"
    for request in busy:
        bench.respond(request)


def test_who_waits_for_memory_gets_that_of_the_next_guest_that_is_idle(bench: Bench) -> None:
    first, _ = bench.ask(F), bench.ask(G)
    for guest in bench.machines.starting():
        bench.call(guest.started.set_result, None)
    waiting = bench.ask(H)
    bench.loop.advance(0.1)
    behind = bench.ask(F)
    bench.respond(first)
    assert bench.watcher.evicted == [("f", 1)]  # although a later request to f waits for it
    bench.stop()
    bench.start()
    bench.respond(waiting)
    assert not behind.answer.done()
    bench.stop()
    bench.start()
    bench.respond(behind)


def test_guests_that_a_function_wants_ready_go_last(bench: Bench) -> None:
    ready = revision("f", min_guests=1)
    kept, other = bench.serve(ready), bench.serve(G)
    bench.ask(H)
    assert other.stopping
    assert not kept.stopping
    bench.ask(revision("i"))
    assert kept.stopping


def test_a_tenants_guest_serves_no_other_tenant(bench: Bench) -> None:
    anns = bench.serve(F, "ann")
    assert bench.serve(F, "ann") is anns
    bobs = bench.ask(F, "bob")
    assert anns.stopping  # the limit is 1
    bench.stop()
    guest = bench.start()
    assert guest is not anns
    bench.respond(bobs)
    assert guest.tenants == {"bob"}


def busy(bench: Bench, took: float = 0.0) -> tuple[Request, Request]:
    """A function that has all memory, and would like to have more: its guests, which took so long
    to start, each have a request. The one that waits for it is given, and then that of another
    function, behind which there are more of the first.
    """
    f = revision("f", concurrency_limit=4, queue_s=1000)
    waits = [bench.ask(f) for _ in range(3)][-1]
    bench.loop.advance(took)
    for guest in bench.machines.starting():
        bench.call(guest.started.set_result, None)
    bench.loop.advance(1)
    other = bench.ask(revision("g", queue_s=1000))
    bench.loop.advance(1)
    for _ in range(6):
        bench.ask(f)
    return waits, other


def answer(bench: Bench) -> None:
    """Let the first guest that has a request answer."""
    bench.call(bench.machines.asked()[0].respond)


def test_a_busy_function_does_not_come_before_those_that_were_there_first(bench: Bench) -> None:
    waits, other = busy(bench)
    answer(bench)
    assert waits.kind is not None  # it was there before the other function's
    assert not bench.machines.stopping()
    answer(bench)
    (ending,) = bench.machines.stopping()
    assert ending.name == "f"
    bench.stop()
    bench.start()
    bench.respond(other)


def test_a_guest_makes_no_room_before_its_start_has_paid_off(bench: Bench) -> None:
    _, other = busy(bench, took=3.0)
    for _ in range(6):
        answer(bench)
        assert not bench.machines.stopping()
    bench.loop.advance(30)
    answer(bench)
    assert len(bench.machines.stopping()) == 1
    bench.stop()
    bench.start()
    bench.respond(other)


def test_a_guest_that_nobody_wants_ends_after_a_while(bench: Bench) -> None:
    guest = bench.serve(revision("f", keep_alive_s=20))
    bench.loop.advance(19)
    assert not guest.stopping
    bench.serve(revision("f", keep_alive_s=20))
    bench.loop.advance(19)
    assert not guest.stopping
    bench.loop.advance(2)
    assert guest.stopping


def test_times_follow_the_hosts_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, factor=3)
    guest = bench.serve(revision("f", keep_alive_s=20, queue_s=10))
    bench.ask(revision("f", keep_alive_s=20, queue_s=10))
    waits = bench.ask(revision("f", keep_alive_s=20, queue_s=10))
    bench.loop.advance(29)
    assert not waits.answer.done()
    bench.loop.advance(2)
    assert isinstance(error_of(waits), ResourceExhaustedError)
    (asked,) = bench.machines.asked()
    bench.call(asked.respond)
    bench.loop.advance(59)
    assert not guest.stopping
    bench.loop.advance(2)
    assert guest.stopping
    bench.close()


def test_some_guests_stay_ready(bench: Bench) -> None:
    ready = revision("f", min_guests=1, keep_alive_s=5)
    bench.call(bench.scheduler.expect, ready)
    bench.call(bench.scheduler.fill)
    guest = bench.start()
    bench.loop.advance(100)
    assert not guest.stopping
    request = bench.ask(ready)
    bench.respond(request)
    assert request.answer.result().start == "warm"
    bench.call(guest.dead.set_result, None)
    bench.stop()
    assert bench.start() is not guest  # another one takes its place


def test_guests_that_fail_are_not_made_ready_again_and_again(bench: Bench) -> None:
    ready = revision("f", min_guests=1)
    bench.call(bench.scheduler.expect, ready)
    bench.call(bench.scheduler.fill)
    for number in range(1, 4):
        (guest,) = bench.machines.starting()
        bench.call(guest.started.set_exception, HostError("no"))
        assert len(bench.watcher.failed) == number
        assert bench.machines.starting() == []
        bench.loop.advance(61)
        bench.call(bench.scheduler.fill)
    guest = bench.start()
    bench.call(guest.dead.set_result, None)
    bench.stop()
    assert bench.machines.guests == []
    request = bench.ask(ready)  # who asks need not wait for that
    bench.start()
    bench.respond(request)


def test_a_request_waits_as_long_as_it_may(bench: Bench) -> None:
    slow = revision("f", queue_s=10)
    first = bench.ask(slow)
    bench.start()
    second, third = bench.ask(slow), bench.ask(slow, wait_s=4)
    bench.loop.advance(4)
    assert vars(error_of(third))["resource"] == "concurrency"
    assert "concurrency_limit is 1" in str(error_of(third))
    assert not second.answer.done()
    bench.loop.advance(7)
    assert isinstance(error_of(second), ResourceExhaustedError)
    bench.respond(first)


def test_time_to_wait_is_not_the_time_that_a_guest_takes_to_start(bench: Bench) -> None:
    request = bench.ask(revision("f", queue_s=1))
    bench.loop.advance(100)
    assert not request.answer.done()
    bench.start()
    bench.respond(request)


def test_a_full_queue_refuses_at_once(bench: Bench) -> None:
    small = revision("f", queue=1)
    first = bench.ask(small)
    bench.start()
    second = bench.ask(small)
    with pytest.raises(QueueFullError) as caught:
        bench.ask(small)
    assert caught.value.retry_after_s >= 1
    bench.respond(first)
    bench.respond(second)


def test_without_a_queue_a_request_takes_what_is_there_or_fails(bench: Bench) -> None:
    impatient = revision("h", queue=0)
    held = [bench.ask(F), bench.ask(G)]
    for guest in bench.machines.starting():
        bench.call(guest.started.set_result, None)
    with pytest.raises(ResourceExhaustedError) as caught:
        bench.ask(impatient)
    assert caught.value.resource == "memory"
    assert bench.room.first_waiting is None  # nothing of it is left
    bench.respond(held[0])
    request = bench.ask(impatient)  # an idle guest ends for it
    bench.stop()
    bench.start()
    bench.respond(request)
    bench.respond(held[1])


def test_a_machine_that_never_fits_is_refused(bench: Bench) -> None:
    with pytest.raises(HostError, match="does not fit"):
        bench.ask(revision("f", mib=512))


def test_who_goes_away_leaves_the_queue_and_a_guest_that_has_begun_goes_on(bench: Bench) -> None:
    first = bench.ask(F)
    bench.start()
    second = bench.ask(F)
    bench.call(bench.scheduler.withdraw, second)
    assert second.answer.cancelled()
    bench.call(bench.scheduler.withdraw, first)
    assert not first.answer.done()
    bench.respond(first)


def test_a_guest_that_only_waits_for_memory_is_given_up_with_its_request(bench: Bench) -> None:
    for request in (bench.ask(F), bench.ask(G)):
        assert not request.answer.done()
    for guest in bench.machines.starting():
        bench.call(guest.started.set_result, None)
    waiting = bench.ask(H)
    assert bench.room.first_waiting is not None
    bench.call(bench.scheduler.withdraw, waiting)
    assert bench.room.first_waiting is None
    for guest in bench.machines.asked():
        bench.call(guest.respond)


def test_a_crash_ends_its_guest_and_only_its_request(bench: Bench) -> None:
    first = bench.ask(F)
    guest = bench.start()
    second = bench.ask(F)
    bench.call(guest.fail)
    assert isinstance(error_of(first), FunctionCrashedError)
    assert guest.stopping
    bench.stop()
    bench.start()
    bench.respond(second)


def test_what_a_fault_of_ours_does_is_a_typed_error(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    request = bench.ask(F)
    (guest,) = bench.machines.starting()
    bench.call(guest.started.set_exception, ZeroDivisionError())
    assert isinstance(error_of(request), HostError)
    assert "ZeroDivisionError" in caplog.text


def test_a_start_that_fails_fails_who_is_first(bench: Bench) -> None:
    first, second = bench.ask(F), bench.ask(F)
    (guest,) = bench.machines.starting()
    bench.call(guest.started.set_exception, HostError("no"))
    assert str(error_of(first)) == "no"
    assert bench.watcher.failed == ["f"]
    bench.start()
    bench.respond(second)


def test_a_function_that_cannot_be_built_fails_all_who_wait(bench: Bench) -> None:
    requests = [bench.ask(F), bench.ask(F)]
    (guest,) = bench.machines.starting()
    bench.call(guest.started.set_exception, FunctionFailedError("no", output="error: x"))
    assert [type(error_of(request)) for request in requests] == [FunctionFailedError] * 2


def test_no_network_is_a_resource_that_is_lacking(bench: Bench) -> None:
    request = bench.ask(F)
    (guest,) = bench.machines.starting()
    bench.call(guest.started.set_exception, BusyError("all networks are taken"))
    assert vars(error_of(request))["resource"] == "networks"


def test_an_idle_guest_that_dies_is_noticed(bench: Bench) -> None:
    guest = bench.serve(F)
    bench.call(guest.dead.set_result, None)
    assert guest.stopping
    request = bench.ask(F)
    bench.stop()
    bench.start()
    bench.respond(request)


def test_a_request_whose_guest_has_just_died_gets_another(bench: Bench) -> None:
    guest = bench.serve(F)
    request: Request

    def both() -> Request:
        guest.dead.set_result(None)  # nobody has noticed when the request comes
        return bench._ask(F, "", None)

    request = bench.call(both)
    bench.stop()
    bench.start()
    bench.respond(request)
    assert request.answer.result().start == "restored"


def test_a_changed_function_is_served_by_new_guests(bench: Bench) -> None:
    first = bench.ask(F)
    old = bench.start()
    second = bench.ask(revision("f", key="2"))
    bench.respond(first)
    assert old.stopping
    bench.stop()
    assert bench.start().of.key == "f 2"
    bench.respond(second)


def test_idle_guests_of_the_old_code_end_when_it_changes(bench: Bench) -> None:
    guest = bench.serve(F)
    bench.call(bench.scheduler.expect, revision("f", key="2"))
    assert guest.stopping


def test_a_removed_function_finishes_its_requests(bench: Bench) -> None:
    first, second = bench.ask(F), bench.ask(F)
    guest = bench.start()
    bench.call(bench.scheduler.forget, "f")
    bench.respond(first)
    bench.respond(second)
    assert guest.stopping


def test_a_removed_function_starts_no_guest(bench: Bench) -> None:
    first, second = bench.ask(F), bench.ask(F)
    guest = bench.start()
    bench.call(bench.scheduler.forget, "f")
    bench.call(guest.fail)
    bench.stop()
    assert isinstance(error_of(first), FunctionCrashedError)
    assert isinstance(error_of(second), UnknownFunctionError)
    assert bench.machines.guests == []


def test_runs_get_the_memory_of_idle_guests(bench: Bench) -> None:
    guests = [bench.serve(F), bench.serve(G)]
    ticket = bench.call(bench.room.enter, 256 * MIB)
    assert all(guest.stopping for guest in guests)
    assert not ticket.turn.done()
    bench.stop()
    assert ticket.turn.done()
    bench.call(bench.room.leave, ticket)


def test_guests_that_wait_take_no_place_among_the_runs_that_may_wait(bench: Bench) -> None:
    run = bench.call(bench.room.enter, 256 * MIB)
    for name in "abcdef":
        bench.ask(revision(name))
    tickets = [bench.call(bench.room.enter, MIB) for _ in range(4)]
    assert bench.room.waiting == 4
    with pytest.raises(BusyError):
        bench.call(bench.room.enter, MIB)
    for ticket in (run, *tickets):
        bench.call(bench.room.leave, ticket)


def test_draining_answers_what_is_under_way_and_takes_no_more(bench: Bench) -> None:
    first, second = bench.ask(F), bench.ask(F)
    bench.start()
    draining = bench.loop.create_task(bench.scheduler.drain(60))
    bench.loop.settle()
    with pytest.raises(StoppingError):
        bench.ask(F)
    bench.respond(first)
    assert not draining.done()
    bench.respond(second)
    assert draining.done()


def test_draining_ends_with_its_time(bench: Bench) -> None:
    request = bench.ask(F)
    draining = bench.loop.create_task(bench.scheduler.drain(60))
    bench.loop.advance(61)
    assert draining.done()
    assert not request.answer.done()


def test_closing_fails_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch)
    requests = [bench.ask(F), bench.ask(F), bench.ask(G), bench.ask(H)]
    bench.call(bench.machines.starting()[0].started.set_result, None)
    bench.close()
    assert [type(error_of(request)) for request in requests] == [StoppingError] * 4
