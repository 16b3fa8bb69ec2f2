"""A replay against a server whose functions are coroutines."""

import asyncio
import io
import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.client import AsyncClient
from mayfly.errors import BusyError, ServerLostError
from mayfly.functions.lines import BadLine
from mayfly.workload.replay import Progress, ServerTarget, replay
from tests.kit.fake_functions import FakeFunctions


def scenario(work: Callable[[FakeFunctions, AsyncClient], Awaitable[Any]]) -> Any:
    async def whole(socket: Path) -> Any:
        functions = FakeFunctions()
        async with functions.serving(socket), AsyncClient(socket, patience_s=0) as client:
            return await asyncio.wait_for(work(functions, client), 60)

    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:  # short enough for sockets
        return asyncio.run(whole(Path(folder) / "api.sock"))


def lines(*functions: str, time: int = 0) -> bytes:
    return b"".join(
        json.dumps({"time": time, "user_id": user, "function": name, "payload": {"request": user}}).encode() + b"\n"
        for user, name in enumerate(functions)
    )


def sent(text: bytes, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any], Progress, FakeFunctions, list[BadLine]]:
    """The answers by their lines, the summary, and all the rest."""
    output, progress, bad = io.BytesIO(), Progress(), list[BadLine]()

    async def work(functions: FakeFunctions, client: AsyncClient) -> FakeFunctions:
        await replay(io.BytesIO(text), ServerTarget(client), output, bad.append, progress, **options)
        return functions

    functions = scenario(work)
    *answers, last = map(json.loads, output.getvalue().splitlines())
    return sorted(answers, key=lambda each: each["line"]), last["summary"], progress, functions, bad


def test_answers_and_what_the_server_has_counted_meanwhile() -> None:
    answers, summary, progress, functions, bad = sent(lines("echo", "echo") + b"nonsense\n" + lines("raising"))
    assert [(each["line"], each["status"]) for each in answers] == [(1, "ok"), (2, "ok"), (4, "exception")]
    assert {each["start"] for each in answers} == {"restored", "warm"}
    assert {each["id"] for each in answers} == {f"{number:032x}" for number in (1, 2, 3)}
    assert [(each["guest_ms"], each["queued_ms"]) for each in answers] == [(1.5, 250.0)] * 3
    assert not any("payload" in each for each in answers)
    assert (summary["requests"], summary["bad_lines"], summary["memory"], summary["guests_created"]) == (3, 1, 1 << 30, 1)
    assert summary.get("guests_evicted", 0) == 0
    assert (progress.requests, progress.answered, progress.ok) == (3, 3, 2)
    assert [line.number for line in bad] == [3]
    assert sorted(functions.seen) == [
        ("echo", b'{"request": 0}', "application/json"),
        ("echo", b'{"request": 1}', "application/json"),
        ("raising", b'{"request": 0}', "application/json"),
    ]


def test_failures_of_some_requests_leave_the_others_alone() -> None:
    answers, *_ = sent(lines("echo", "full", "breaking", "echo"))
    assert [each["status"] for each in answers] == ["ok", "busy", "server_lost", "ok"]
    assert answers[1]["message"] == "no memory for another guest"


def test_it_is_an_open_loop() -> None:
    answers, *_ = sent(lines(*["together-50"] * 50))
    assert [each["status"] for each in answers] == ["ok"] * 50


def test_a_server_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        async with AsyncClient(tmp_path / "none.sock", patience_s=0) as client:
            await replay(io.BytesIO(lines("echo")), ServerTarget(client), io.BytesIO(), lambda _: None, Progress())

    with pytest.raises(ServerLostError, match=r"none\.sock"):
        asyncio.run(work())


def test_an_interrupted_one_has_written_what_is_known() -> None:
    output = io.BytesIO()

    async def work(functions: FakeFunctions, client: AsyncClient) -> None:
        text = lines("echo", "held") + lines("echo", time=10_000_000)
        going = asyncio.create_task(replay(io.BytesIO(text), ServerTarget(client), output, lambda _: None, Progress()))
        await functions.held.wait()
        while output.getvalue().count(b"\n") < 1:
            await asyncio.sleep(0.001)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going

    scenario(work)
    first, second, last = map(json.loads, output.getvalue().splitlines())
    assert (first["status"], second["status"]) == ("ok", "interrupted")
    assert last["summary"]["requests"] == 3  # the third was read, and waited for its time
    assert last["summary"]["guests_created"] == 1


def test_the_client_tells_a_function_what_it_is_sent() -> None:
    async def work(functions: FakeFunctions, client: AsyncClient) -> list[tuple[str, bytes, str]]:
        assert (await client.invoke("echo", {"a": 1})).json() == {"a": 1}
        assert (await client.invoke("echo", "text")).text == "text"
        raised = await client.invoke("raising", b"\xff")
        assert (raised.ok, raised.status, raised.json()["error"]) == (False, "exception", "ValueError")
        assert raised.duration_s == 0.0015
        await client.invoke("echo", b"[]", "application/json")
        await client.invoke("a/b c", b"")
        with pytest.raises(BusyError, match="no memory"):
            await client.invoke("full")
        found = await client.functions()
        assert [each.name for each in found.functions] == ["echo"]
        return functions.seen

    assert scenario(work)[:5] == [
        ("echo", b'{"a":1}', "application/json"),
        ("echo", b"text", "text/plain; charset=utf-8"),
        ("raising", b"\xff", "application/octet-stream"),
        ("echo", b"[]", "application/json"),
        ("a/b c", b"", "application/octet-stream"),
    ]
