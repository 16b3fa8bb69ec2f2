"""The gateway of files: an open loop, answers by one writer, bad lines by their number."""

import asyncio
import collections
import io
import json
from typing import Any

import pytest

from mayfly.errors import QueueFullError
from mayfly.functions.lines import BadLine, RequestLine
from mayfly.functions.openloop import Invoke, Reply
from mayfly.gateways.lines import replay


async def echo(line: RequestLine) -> Reply:
    match line.function:
        case "raise":
            return Reply("1" * 32, "exception", "warm", "application/json", b'{"error": "E"}')
        case "full":
            raise QueueFullError("64 requests wait already")
    return Reply("0" * 32, "ok", "restored", "application/json", bytes(line.payload), queued_ms=1.5, guest_ms=2.5)


def send(text: bytes, invoke: Invoke = echo) -> tuple[list[dict[str, Any]], list[BadLine], collections.Counter[str]]:
    """The answers to a file's requests."""
    answers, bad = io.BytesIO(), list[BadLine]()
    counts = asyncio.run(asyncio.wait_for(replay(io.BytesIO(text), invoke, answers, bad.append), 60))
    return [json.loads(line) for line in answers.getvalue().splitlines()], bad, counts


def test_each_line_is_answered_with_its_number_and_times() -> None:
    lines = b'{"time": 3, "user_id": 2, "function": "echo", "payload": {"a":\t[1]}}\n{"function": "raise", "payload": 1}\n'
    answers, bad, counts = send(lines + b'{"time": 0, "function": "full", "payload": 1}')
    by_line = {answer["line"]: answer for answer in answers}
    assert sorted(by_line) == [1, 2, 3]
    assert not bad
    assert counts == {"ok": 1, "exception": 1, "queue_full": 1}
    first = by_line[1]
    assert (first["id"], first["status"], first["start"], first["user_id"]) == ("0" * 32, "ok", "restored", 2)
    assert first["payload"] == {"a": [1]}
    assert (first["queued_ms"], first["guest_ms"]) == (1.5, 2.5)
    assert 3 <= first["due_ms"] <= first["sent_ms"] <= first["answered_ms"]
    assert by_line[2]["payload"] == {"error": "E"}
    assert "wait already" in by_line[3]["message"]


def test_bad_lines_are_named_and_skipped() -> None:
    good = b'{"function": "echo", "payload": 1}\n'
    answers, bad, _ = send(good + b"{\n" + b'{"function": "echo"}\n' + b"\xff\n" + good)
    assert [answer["line"] for answer in answers] == [1, 5]
    assert [line.number for line in bad] == [2, 3, 4]
    assert "payload" in bad[1].message


def test_a_request_is_sent_whether_or_not_others_are_answered() -> None:
    """The first waits for the last."""
    last = asyncio.Event()

    async def invoke(line: RequestLine) -> Reply:
        if line.time == 2:
            last.set()
        await last.wait()
        return await echo(line)

    answers, _, _ = send(b"".join(b'{"time": %d, "function": "echo", "payload": %d}\n' % (time, time) for time in range(3)), invoke)
    assert sorted(answer["payload"] for answer in answers) == [0, 1, 2]


class Full(io.BytesIO):
    """As /dev/full."""

    def write(self, data: Any) -> int:
        raise OSError("no space left")


def test_answers_that_cannot_be_written_end_it() -> None:
    cancelled = asyncio.Event()

    async def invoke(line: RequestLine) -> Reply:
        try:
            if line.function == "wait":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return await echo(line)

    source = io.BytesIO(b'{"function": "wait", "payload": 1}\n{"function": "echo", "payload": 1}\n')
    with pytest.raises(OSError, match="no space left"):
        asyncio.run(asyncio.wait_for(replay(source, invoke, Full(), print), 60))
    assert cancelled.is_set()


def test_whoever_interrupts_it_gets_what_was_under_way_as_interrupted() -> None:
    answers = io.BytesIO()

    async def invoke(line: RequestLine) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async def whole() -> None:
        task = asyncio.create_task(replay(io.BytesIO(b'{"function": "wait", "payload": 1}\n'), invoke, answers, print))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(whole())
    assert [json.loads(line)["status"] for line in answers.getvalue().splitlines()] == ["interrupted"]
