"""The open loop, against functions that are coroutines."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from mayfly.errors import BusyError, MayflyError
from mayfly.functions.lines import AnswerLine, RequestLine
from mayfly.functions.openloop import Reply, send_all
from mayfly.schema import msgspec


def requests(*times: float, function: str = "f") -> list[tuple[int, RequestLine]]:
    return [(number, RequestLine(function=function, payload=msgspec.Raw(b"1"), time=time)) for number, time in enumerate(times, 1)]


def reply(status: str = "ok") -> Reply:
    return Reply("0" * 32, status, "warm", "application/json", b'{"a": 1}', queued_ms=2.5, guest_ms=1.5)


def run(
    lines: Any, invoke: Callable[[RequestLine], Awaitable[Reply]], on_answer: Callable[[AnswerLine], None] = lambda _: None, **options: Any
) -> list[AnswerLine]:
    found: list[AnswerLine] = []

    def write(answer: AnswerLine) -> None:
        found.append(answer)
        on_answer(answer)

    asyncio.run(asyncio.wait_for(send_all(lines, invoke, write, **options), 60))
    return found


async def at_once(_: RequestLine) -> Reply:
    return reply()


def test_an_answer_says_all() -> None:
    (answer,) = run(requests(3), at_once)
    assert (answer.line, answer.function, answer.status, answer.start, answer.id) == (1, "f", "ok", "warm", "0" * 32)
    assert (answer.due_ms, answer.queued_ms, answer.guest_ms) == (3, 2.5, 1.5)
    assert answer.sent_ms is not None and answer.answered_ms is not None
    assert answer.due_ms <= answer.sent_ms <= answer.answered_ms
    assert bytes(answer.payload) == b""


def test_requests_do_not_wait_for_earlier_ones() -> None:
    together = asyncio.Event()
    under_way = 0

    async def invoke(_: RequestLine) -> Reply:
        nonlocal under_way
        under_way += 1
        if under_way == 20:
            together.set()
        await together.wait()  # for ever, in a closed loop
        return reply()

    assert [answer.status for answer in run(requests(*range(20)), invoke)] == ["ok"] * 20


def test_each_is_sent_at_its_time_and_not_before() -> None:
    answers = run(requests(0, 20, 10, 40), at_once, speed=2)
    assert [(answer.line, answer.due_ms) for answer in sorted(answers, key=lambda each: each.line)] == [(1, 0), (2, 10), (3, 5), (4, 20)]
    for answer in answers:
        assert answer.sent_ms is not None
        assert answer.sent_ms >= answer.due_ms - 0.01


def test_what_is_beyond_the_bound_is_not_sent_and_counted() -> None:
    enough = asyncio.Event()
    refused = 0

    def on_answer(answer: AnswerLine) -> None:
        nonlocal refused
        refused += answer.status == "not_sent"
        if refused == 3:
            enough.set()

    async def invoke(_: RequestLine) -> Reply:
        await enough.wait()
        return reply()

    answers = run([*requests(*[0] * 5)], invoke, on_answer, most=2)
    assert sorted((answer.line, answer.status) for answer in answers) == [
        (1, "ok"),
        (2, "ok"),
        (3, "not_sent"),
        (4, "not_sent"),
        (5, "not_sent"),
    ]
    assert answers[0].sent_ms is None


@pytest.mark.parametrize(("error", "status"), [(BusyError("the queue is full"), "busy"), (MayflyError("a fault"), "internal")])
def test_errors_are_answers(error: MayflyError, status: str) -> None:
    async def invoke(_: RequestLine) -> Reply:
        raise error

    answers = run(requests(0, 0), invoke)
    assert [(answer.status, answer.message) for answer in answers] == [(status, error.message)] * 2


def test_an_exception_of_a_function_is_an_answer() -> None:
    async def invoke(_: RequestLine) -> Reply:
        return reply("exception")

    (answer,) = run(requests(0), invoke, keep_payloads=True)
    assert (answer.status, bytes(answer.payload)) == ("exception", b'{"a":1}')


def test_an_answer_that_does_not_come_is_given_up() -> None:
    async def invoke(request: RequestLine) -> Reply:
        if request.time == 0:
            await asyncio.Event().wait()
        return reply()

    answers = run(requests(0, 1), invoke, timeout_s=0.01)
    assert sorted((answer.line, answer.status) for answer in answers) in [[(1, "not_answered"), (2, "ok")]]


def test_lines_are_read_as_they_are_sent() -> None:
    async def scenario() -> None:
        read = 0
        first = asyncio.Event()

        def lines() -> Iterator[tuple[int, RequestLine]]:
            nonlocal read
            for line in requests(0, 10_000_000, 10_000_000):
                read += 1
                yield line

        async def invoke(_: RequestLine) -> Reply:
            first.set()
            return reply()

        sending = asyncio.create_task(send_all(lines(), invoke, lambda _: None))
        await first.wait()
        assert read == 2
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    asyncio.run(scenario())


def test_those_under_way_are_interrupted_when_it_is_cancelled() -> None:
    async def scenario() -> list[AnswerLine]:
        found: list[AnswerLine] = []
        both = asyncio.Event()
        under_way = 0

        async def invoke(_: RequestLine) -> Reply:
            nonlocal under_way
            under_way += 1
            if under_way == 2:
                both.set()
            await asyncio.Event().wait()
            raise AssertionError

        sending = asyncio.create_task(send_all(requests(0, 0, 10_000_000), invoke, found.append))
        await both.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        return found

    assert sorted((answer.line, answer.status) for answer in asyncio.run(scenario())) == [(1, "interrupted"), (2, "interrupted")]


def test_what_cannot_be_written_ends_it() -> None:
    def full(_: AnswerLine) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        asyncio.run(asyncio.wait_for(send_all(requests(0, 10_000_000), at_once, full), 60))
