"""What a gateway makes of a host's record is that record, whatever is lost or comes twice."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mayfly.errors import BusyError, GuestError, HostError
from mayfly.fleet.feed import Feed
from mayfly.fleet.message import PIECE, WINDOW, Attach, Begun, Head, Tail, ToGateway, Told, decode, encode, token_of
from mayfly.fleet.mirror import Mirror, conclude, ending_of, head_of, make_run, restore, store
from mayfly.fleet.wire import error_of, place, wire
from mayfly.guests.outcome import Status
from mayfly.host.snippet import Case, Mode
from mayfly.protocol.frames import Done, Exit, ExitHow, Limit, Stage, Stderr, Stdout
from mayfly.runs.record import Attempt, Reader
from mayfly.runs.run import Run


def make(**changes: Any) -> Run:
    return Run(language="toy", version="1", mode=Mode.RAW, step_names=("build", "run"), **changes)


def events_of(run: Run) -> list[Any]:
    reader = Reader(run.record)
    found = []
    while (event := reader.take()) is not None:
        found.append(vars(event) if hasattr(event, "__dict__") else event)
    return found


def step(run: Run, number: int, out: bytes, code: int = 0) -> None:
    run.note(Stage(number, run.outcome.step_names[number]))
    run.note(Stdout(out))
    run.note(Stderr(out[:1]))
    run.note(Stdout(b"!"))
    run.note(Exit(number, ExitHow.EXITED, code, Limit.NONE, 1000, 900, 4096, (False, False)))


class Way:
    """A feed to a mirror over a line that `passes` some messages alone."""

    def __init__(self, run: Run, passes: Callable[[int], bool] = lambda _: True) -> None:
        self.mirror = Mirror(make_run(head_of(run, interactive=False, stop_at_first_failure=False)))
        self.mirror.begun("h1", Begun(token="t", delivered=1, ack="a"))
        self.tail: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.sent = 0
        self.passes = passes
        self.feed = Feed(run, self.send, self.tail, lambda: 1)

    async def send(self, message: ToGateway) -> None:
        self.sent += 1
        if not self.passes(self.sent):
            return
        said = decode(encode(message), type=ToGateway)
        assert isinstance(said, Told | Tail)
        if not (self.mirror.told(said) if isinstance(said, Told) else self.mirror.take_tail(said)):
            again = Attach(gateway="g", after=place(self.mirror.position), tail=self.mirror.tail)
            asyncio.get_running_loop().call_soon(self.feed.attach, again)
        self.feed.grant(said.cost if isinstance(said, Told) else len(said.data))

    async def whole(self) -> None:
        """To the end; who hears nothing asks again."""
        self.feed.begin()
        async with asyncio.timeout(20):
            while self.mirror.ending is None:
                await asyncio.sleep(0.01)
                self.feed.attach(Attach(gateway="g", after=place(self.mirror.position), tail=self.mirror.tail))
        self.feed.close()
        conclude(self.mirror.run, self.mirror.ending)


@pytest.mark.parametrize("passes", [lambda _: True, lambda number: number % 3 != 1], ids=["all", "with losses"])
def test_the_record_is_the_same(passes: Callable[[int], bool]) -> None:
    async def scenario() -> None:
        run = make()
        way = Way(run, passes)
        step(run, 0, b"built")
        step(run, 1, b"x" * 300_000, code=3)
        run.note(Done())
        run.finish()
        way.tail.set_result(encode(ending_of(run, "h1")))
        await way.whole()
        seen = way.mirror.run
        assert events_of(seen) == events_of(run)
        assert seen.record.end == run.record.end
        assert seen.result() == run.result()

    asyncio.run(scenario())


def test_no_more_is_on_its_way_than_was_granted() -> None:
    """However much a run puts out, and however slowly the gateway takes it."""

    async def scenario() -> None:
        run = make()
        costs: list[int] = []

        async def send(message: ToGateway) -> None:
            assert isinstance(message, Told)
            costs.append(message.cost)

        feed = Feed(run, send, asyncio.get_running_loop().create_future(), lambda: 1)
        step(run, 1, b"x" * (4 * WINDOW))
        feed.begin()
        granted = WINDOW
        for _ in range(3):
            await _until_it_waits()
            assert granted <= sum(costs) < granted + 2 * PIECE
            feed.grant(WINDOW // 2)
            granted += WINDOW // 2
        feed.close()

    async def _until_it_waits() -> None:
        for _ in range(1000):
            await asyncio.sleep(0)

    asyncio.run(scenario())


def test_a_run_is_restored_as_it_was_stored() -> None:
    async def scenario() -> None:
        run = make(cases=[Case(name="one"), Case(name="two")])
        step(run, 0, b"built")
        run.fail(GuestError("it crashed", console="oops"))
        head = head_of(run, interactive=False, stop_at_first_failure=False)
        assert decode(encode(head), type=Head) == head
        found = restore(store(head, run, ending_of(run, "h1")))
        assert found.result() == run.result()
        assert found.verdict().status is Status.ERROR
        assert events_of(found)[:4] == events_of(run)[:4]

    asyncio.run(scenario())


def test_a_new_attempt_begins_at_nothing() -> None:
    async def scenario() -> None:
        mirror = Mirror(make())
        assert mirror.begun("h1", Begun(token="t", delivered=1, ack="a"))
        first = make()
        step(first, 0, b"first")
        mirror.run.replay(Stage(0, "build"))
        mirror.run.replay(Stdout(b"first"))
        assert not mirror.begun("h0", Begun(token="t", delivered=1, ack="b")), "an older one"
        assert not mirror.begun("h1", Begun(token="t", delivered=2, ack="c", goes_on=True))
        assert (mirror.ack, mirror.position) == ("c", mirror.run.record.end)
        assert mirror.begun("h2", Begun(token="t", delivered=3, ack="d"))
        assert place(mirror.position) == (-1, 0)
        assert not mirror.belongs("h1", 2)
        run = make()
        way = Way(run)
        way.mirror = mirror
        mirror.delivered = 1
        step(run, 0, b"second")
        step(run, 1, b"out")
        run.finish()
        way.tail.set_result(encode(ending_of(run, "h2")))
        await way.whole()
        events = events_of(mirror.run)
        assert Attempt(2, "h1 is gone, or gave it back") in events
        assert mirror.run.record.output(0) == (b"second!", b"s")
        assert mirror.run.result().steps == run.result().steps
        stored = restore(store(head_of(run, interactive=False, stop_at_first_failure=False), mirror.run, ending_of(run, "h2")))
        assert events_of(stored) == events_of(run), "of several attempts the last one"

    asyncio.run(scenario())


def test_errors_survive_the_way() -> None:
    for error in (BusyError("full", retry_after_s=3), HostError("no disk", hint="buy one")):
        found = error_of(wire(error))
        assert (type(found), str(found)) == (type(error), str(error))
    unknown = error_of({"code": "of_tomorrow", "message": "what", "hint": "", "more": 1})
    assert str(unknown) == "what"
    assert error_of(None) is None


def test_names_become_words_of_a_subject() -> None:
    assert token_of("python@3.12") == "python-3_12"
    assert token_of("c++@14.2") == "c++-14_2"
