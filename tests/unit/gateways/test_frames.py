"""The gateway of SnapFaaS's frames: its client as it is, many requests at a time, and clients that
lie, dawdle or do not read.
"""

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ConfigError, ResourceExhaustedError
from mayfly.functions.lines import RequestLine
from mayfly.functions.openloop import Invoke, Reply
from mayfly.gateways import frames
from mayfly.host.listen import open_keyless
from tests.kit.api_fakes import ROOT, small_config

LENGTH = frames.LENGTH


def frame(content: Any) -> bytes:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(data).to_bytes(LENGTH, "big") + data


def request(payload: Any = None, function: str = "echo") -> bytes:
    return frame({"time": 1, "user_id": 7, "function": function, "payload": payload})


async def answer(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(LENGTH), "big"))


async def echo(line: RequestLine) -> Reply:
    """Gives the payload back; some functions do something else."""
    match line.function:
        case "raise":
            return Reply("0" * 32, "exception", "warm", "application/json", b'{"error": "E"}')
        case "full":
            raise ResourceExhaustedError("no memory", resource="memory")
        case "broken":
            raise ZeroDivisionError
        case "nothing":
            return Reply("0" * 32, "ok", "warm", "", b"")
    return Reply("0" * 32, "ok", "warm", "application/json", bytes(line.payload))


Scenario = Callable[[int], Awaitable[None]]


def serve(scenario: Scenario, invoke: Invoke = echo) -> None:
    """Run a scenario against a gateway at a port."""

    async def whole() -> None:
        with open_keyless("127.0.0.1:0", small_config(Path("/nowhere"))) as listeners:
            async with frames.answering(listeners, invoke):
                await scenario(listeners[0].getsockname()[1])

    asyncio.run(asyncio.wait_for(whole(), 60))


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.usefixtures("no_leaks")
def test_snapfaas_client_runs_unchanged(tmp_path: Path) -> None:
    lines = [{"time": 5 * number, "user_id": 2, "function": "echo", "payload": {"number": number}} for number in range(20)]
    lines[3]["function"] = "raise"
    (tmp_path / "requests.json").write_text("".join(json.dumps(line) + "\n" for line in lines))

    async def scenario(port: int) -> None:
        command = [sys.executable, "-m", "tests.kit.snapfaas_client", f"127.0.0.1:{port}", str(tmp_path / "requests.json")]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode == 0
        answers = sorted(json.loads(line) for line in out.splitlines())
        assert answers == sorted([*(f'{{"number": {number}}}' for number in range(20) if number != 3), "Request failed"])

    serve(scenario)


def test_answers_come_when_they_are_there() -> None:
    gates = {"1": asyncio.Event(), "2": asyncio.Event()}

    async def invoke(line: RequestLine) -> Reply:
        await gates[bytes(line.payload).decode()].wait()
        return await echo(line)

    async def scenario(port: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(request(1) + request(2))
            gates["2"].set()
            assert await answer(reader) == b"2"
            gates["1"].set()
            assert await answer(reader) == b"1"

    serve(scenario, invoke)


@pytest.mark.usefixtures("no_leaks")
def test_what_fails_is_said_so_and_the_connection_goes_on() -> None:
    bad = [
        request(function="raise"),
        request(function="full"),
        request(function="broken"),
        frame(b"{"),
        frame(b"\xff\xfe"),
        frame([]),
        frame({"function": "echo"}),
        frame({"function": 3, "payload": 1}),
        frame(b"x" * (frames.MAX_FRAME + 1)),
    ]

    async def scenario(port: int) -> None:
        async with connected(port) as (reader, writer):
            for data in bad:
                writer.write(data)
                assert await answer(reader) == b"Request failed", data[:80]
            writer.write(frame(b"") * 3 + request("on"))
            assert await answer(reader) == b'"on"'
            writer.write(request(function="nothing"))
            assert await answer(reader) == b"null", "an empty frame would be none to their client"

    serve(scenario)


def test_a_payload_of_the_largest_size_goes_through() -> None:
    text = "x" * (6 * 1024 * 1024 - 2)

    async def scenario(port: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(request(text))
            assert await answer(reader) == json.dumps(text).encode()

    serve(scenario)


@pytest.mark.parametrize("size", [frames.MAX_SKIPPED + 1, 2**63, 2**64 - 1])
def test_a_length_beyond_all_reason_ends_the_connection(size: int) -> None:
    async def scenario(port: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(request(1))
            assert await answer(reader) == b"1"
            writer.write(size.to_bytes(LENGTH, "big"))
            assert await answer(reader) == b"Request failed"
            assert await reader.read() == b""

    serve(scenario)


def test_a_half_closed_client_gets_its_answers() -> None:
    go = asyncio.Event()

    async def invoke(line: RequestLine) -> Reply:
        await go.wait()
        return await echo(line)

    async def scenario(port: int) -> None:
        async with connected(port) as (reader, writer):
            writer.write(request(1))
            writer.write_eof()
            go.set()
            assert await answer(reader) == b"1"
            assert await reader.read() == b""

    serve(scenario, invoke)


def test_what_is_not_answered_is_bounded_and_holds_up_the_client() -> None:
    go = asyncio.Event()
    under_way, most = 0, 0

    async def invoke(line: RequestLine) -> Reply:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go.wait()
        under_way -= 1
        return await echo(line)

    async def scenario(port: int) -> None:
        count = 3 * frames.IN_FLIGHT
        async with connected(port) as (reader, writer):
            writer.write(b"".join(request(number) for number in range(count)))
            while under_way < frames.IN_FLIGHT:
                await asyncio.sleep(0)
            go.set()
            assert sorted([int(await answer(reader)) for _ in range(count)]) == list(range(count))
        assert most == frames.IN_FLIGHT

    serve(scenario, invoke)


def test_a_frame_that_does_not_come_in_time_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_S", 0.05)
    monkeypatch.setattr(frames, "FRAME_RATE", 1e9)

    async def scenario(port: int) -> None:
        for half in (b"\0\0\0", (100).to_bytes(LENGTH, "big") + b"{", (frames.MAX_FRAME + 5).to_bytes(LENGTH, "big")):
            async with connected(port) as (reader, writer):
                writer.write(half)
                assert await reader.read() == b""

    serve(scenario)


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SEND_S", 0.05)
    big = request("x" * 1024 * 1024)

    async def scenario(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as deaf, contextlib.suppress(ConnectionError):
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            for _ in range(1000):  # it raises when the other end is gone
                await loop.sock_sendall(deaf, big)
            pytest.fail("it was never disconnected")

    serve(scenario)


def test_the_memory_of_all_frames_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose answer finds no room is disconnected; requests wait for room."""
    monkeypatch.setattr(frames, "MEMORY", 3000)
    held = 0
    go = asyncio.Event()

    async def invoke(line: RequestLine) -> Reply:
        nonlocal held
        if line.function == "large":
            return Reply("", "ok", "warm", "", b"x" * 4000)
        held += 1
        await go.wait()
        return Reply("", "ok", "warm", "", b"1")

    async def scenario(port: int) -> None:
        async with connected(port) as (first, one), connected(port) as (second, two), connected(port) as (third, three):
            one.write(request("x" * 2000))
            while not held:
                await asyncio.sleep(0)
            two.write(request("x" * 2000))
            three.write(request(function="large"))
            with contextlib.suppress(ConnectionError):
                assert await third.read() == b""
            assert held == 1
            go.set()
            assert (await answer(first), await answer(second)) == (b"1", b"1")

    serve(scenario, invoke)


def test_too_many_connections_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "CONNECTIONS", 2)

    async def scenario(port: int) -> None:
        async with connected(port) as (one, sends), connected(port) as (_, also):
            for writer in (sends, also):
                writer.write(request(1))
            assert await answer(one) == b"1"
            async with connected(port) as (third, _):
                with contextlib.suppress(ConnectionError):
                    assert await third.read() == b""

    serve(scenario)


@pytest.mark.usefixtures("no_leaks")
def test_at_the_end_what_is_under_way_is_answered_and_no_more_is_read() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def invoke(line: RequestLine) -> Reply:
        begun.set()
        await go.wait()
        return await echo(line)

    async def whole() -> None:
        with open_keyless("127.0.0.1:0", small_config(Path("/nowhere"))) as listeners:
            async with contextlib.AsyncExitStack() as stack:
                serving = contextlib.AsyncExitStack()
                await serving.enter_async_context(frames.answering(listeners, invoke))
                reader, writer = await stack.enter_async_context(connected(listeners[0].getsockname()[1]))
                writer.write(request(1))
                await begun.wait()
                ending = asyncio.create_task(serving.aclose())
                await asyncio.sleep(0)
                writer.write(request(2))
                go.set()
                assert await answer(reader) == b"1"
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                await ending

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_only_loopback_is_without_keys() -> None:
    with pytest.raises(ConfigError, match="function_listen"), open_keyless("0.0.0.0:0", small_config(Path("/nowhere"))):
        pass
    with open_keyless("0.0.0.0:0", small_config(Path("/nowhere"), insecure=True)) as (listener,):
        assert listener.getsockname()[1]
