"""Answers and logs are kept within limits of number, bytes and time, and only for who asked."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from mayfly.errors import FunctionCrashedError, UnknownRequestError
from mayfly.functions import kept
from mayfly.functions.kept import Log, Results, outcome
from mayfly.functions.request import KEPT_LOG, Request
from mayfly.guests.function import FunctionResponse
from mayfly.guests.start import StartKind
from mayfly.host.config import Config
from mayfly.protocol.frames import Stderr, Stdout
from tests.kit.function_fakes import invocation
from tests.kit.virtual_time import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    asyncio.set_event_loop(made)
    yield made
    asyncio.set_event_loop(None)
    made.close()


def make(loop: VirtualLoop, function: str = "f", tenant: str = "") -> Request:
    async def inside() -> Request:
        return Request(invocation(function, tenant=tenant))

    return loop.run_until_complete(inside())


def answer(loop: VirtualLoop, request: Request, payload: bytes = b"") -> None:
    async def inside() -> None:
        request.taken(StartKind.WARM, 1)
        request.sent()
        request.answered(FunctionResponse(kind="answer", content_type="", payload=payload, guest_us=1))

    loop.run_until_complete(inside())
    loop.settle()


def results(loop: VirtualLoop, **config: float) -> Results:
    return Results(Config(**config))  # type: ignore[arg-type]


def add(loop: VirtualLoop, keeping: Results, request: Request) -> Request:
    async def inside() -> None:
        keeping.add(request)

    loop.run_until_complete(inside())
    return request


def test_a_request_is_found_by_its_function_and_owner(loop: VirtualLoop) -> None:
    keeping = results(loop)
    request = add(loop, keeping, make(loop, tenant="ann"))
    assert keeping.get(request.id) is request
    assert keeping.get(request.id, function="f", owner="ann") is request
    for wrong in ({"function": "g"}, {"owner": "bob"}, {"owner": ""}):
        with pytest.raises(UnknownRequestError):
            keeping.get(request.id, **wrong)
    with pytest.raises(UnknownRequestError, match="no request 'x'"):
        keeping.get("x")


def test_an_answer_is_kept_for_some_time_after_its_end(loop: VirtualLoop) -> None:
    keeping = results(loop, keep_s=60)
    request = add(loop, keeping, make(loop))
    loop.advance(1000)
    assert keeping.get(request.id) is request
    answer(loop, request)
    loop.advance(59)
    assert keeping.get(request.id) is request
    loop.advance(2)
    with pytest.raises(UnknownRequestError):
        keeping.get(request.id)


def test_the_oldest_answers_go_when_there_are_many_or_large_ones(loop: VirtualLoop) -> None:
    keeping = results(loop, keep_runs=2, keep_bytes=10_000)
    requests = [add(loop, keeping, make(loop)) for _ in range(3)]
    for request in requests:
        answer(loop, request)
    assert [_knows(keeping, request) for request in requests] == [False, True, True]
    large = add(loop, keeping, make(loop))
    answer(loop, large, bytes(9_700))
    assert [_knows(keeping, request) for request in (*requests, large)] == [False, False, False, True]
    keeping.close()


def _knows(keeping: Results, request: Request) -> bool:
    try:
        return keeping.get(request.id) is request
    except UnknownRequestError:
        return False


def test_a_log_has_lines_of_each_stream(loop: VirtualLoop) -> None:
    log, request = Log(), make(loop)
    for event in (Stdout(b"one\ntw"), Stderr(b"bad\n"), Stdout(b"o\nthree")):
        request.note(event)
    log.add(request)
    assert [(line.stream, line.text) for line in log.lines(10)] == [
        ("stdout", "one"),
        ("stdout", "two"),
        ("stderr", "bad"),
        ("stdout", "three"),
    ]
    assert [line.text for line in log.lines(2)] == ["bad", "three"]
    assert log.lines(0) == []
    assert {line.request_id for line in log.lines(10)} == {request.id}


def test_a_log_keeps_what_was_printed_last(loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LOG_BYTES", 20)
    log = Log()
    for number in range(10):
        request = make(loop)
        request.note(Stdout(f"line {number}\n".encode()))
        log.add(request)
    assert [line.text for line in log.lines(100)] == ["line 8", "line 9"]
    monkeypatch.setattr(kept, "LOG_PIECES", 1)
    request = make(loop)
    request.note(Stdout(b"a\n"))
    log.add(request)
    assert [line.text for line in log.lines(100)] == ["a"]


def test_a_request_keeps_the_end_of_what_it_printed(loop: VirtualLoop) -> None:
    request = make(loop)
    request.note(Stdout(b"a" * KEPT_LOG))
    request.note(Stderr(b"bcd"))
    answer(loop, request)
    log = request.answer.result().log
    assert (len(log), log[-4:]) == (KEPT_LOG, b"abcd")


def test_how_it_ended_in_a_word(loop: VirtualLoop) -> None:
    request, failed = make(loop), make(loop)
    answer(loop, request)
    assert outcome(request) == ("ok", None)
    failed.note(Stderr(b"Traceback"))

    async def fail() -> None:
        failed.fail(FunctionCrashedError("it exited"))

    loop.run_until_complete(fail())
    gone = make(loop)
    gone.answer.cancel()
    assert outcome(gone) == ("cancelled", None)
    word, error = outcome(failed)
    assert word == "function_crashed"
    assert isinstance(error, FunctionCrashedError)
    assert error.log == "Traceback"


def test_times_are_after_the_gateways(loop: VirtualLoop) -> None:
    async def inside() -> Request:
        return Request(invocation("f", received=time.time() - 2))

    request = loop.run_until_complete(inside())
    request.queued_at = loop.now
    loop.now += 1
    answer(loop, request)
    times = request.times()
    assert times.queued_s == pytest.approx(2, abs=0.5)
    assert times.started_s - times.queued_s == pytest.approx(1)
    assert times.answered_s >= times.sent_s >= times.started_s
