"""Interactive runs over HTTP: standard input and signals for a run under way, by requests of their
own or over a WebSocket that gives the events.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from mayfly.api import connections, events
from mayfly.client import AsyncClient, StdoutEvent
from mayfly.host.snippet import Snippet
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import ROOM
from tests.unit.api.test_server import URL, folder, get, post, serve

__all__ = ["folder", "serve"]
Serve = Callable[..., Any]
Client = aiohttp.ClientSession
Socket = aiohttp.ClientWebSocketResponse
ASKS = b'echo name?; read name; echo "hello $name"; read again; echo "and $again"'
LOOPS = b"trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done"


def start(service: Service, source: bytes = ASKS, **snippet: Any) -> Run:
    return service.start(Snippet(**{"language": "toy", "source": source, "interactive": True, **snippet}))


def attach(client: Client, run: Run, query: str = "", **options: Any) -> Any:
    return client.ws_connect(f"{URL}/runs/{run.id}/attach{query}", **options)


async def until(socket: Socket, text: str) -> str:
    """The output up to a text, and to the end of its message."""
    found = ""
    while text not in found:
        found += (await socket.receive_json()).get("data", "")
    return found


async def rest(socket: Socket) -> list[dict[str, Any]]:
    """All messages to the end."""
    return [json.loads(message.data) async for message in socket]


def output(messages: list[dict[str, Any]]) -> str:
    return "".join(message["data"] for message in messages if message.get("event") == "stdout")


async def send(client: Client, run: Run, body: Any, query: str = "", what: str = "stdin") -> tuple[int, str]:
    """Status and code of the answer."""
    async with client.post(f"{URL}/runs/{run.id}/{what}{query}", data=body) as answer:
        return answer.status, "" if answer.status == 204 else (await answer.json())["error"]["code"]


async def starts(run: Run) -> None:
    """Wait for the program's first output."""
    while not run.record.output(1)[0]:
        await run.record.changed()


async def ends(service: Service, run: Run) -> dict[str, Any]:
    await run.done.wait()
    await service.settled(run)
    return run.to_json()


def test_a_program_asks_and_is_answered_by_requests(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> dict[str, Any]:
        _, started, _ = await post(client, "/start", {"language": "toy", "source": ASKS.decode(), "interactive": True})
        run = service.get(started["id"])
        await starts(run)
        assert await send(client, run, b"Ada\n") == (204, "")
        while b"hello" not in run.record.output(1)[0]:
            await run.record.changed()
        assert await send(client, run, b"you\n", "?eof=true") == (204, "")
        return await ends(service, run)

    assert serve(scenario)["steps"][1]["stdout"] == "name?\nhello Ada\nand you\n"


def test_stdin_of_the_request_comes_first(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> dict[str, Any]:
        run = start(service, b"cat", stdin=b"first ")
        assert await send(client, run, b"second") == (204, "")
        assert await send(client, run, b"", "?eof=true") == (204, "")
        assert await send(client, run, b"third") in ((409, "stdin_ended"), (410, "run_ended"))
        return await ends(service, run)

    assert serve(scenario)["steps"][1]["stdout"] == "first second"


def test_a_large_body_waits_for_the_program(serve: Serve) -> None:
    """It is sent in pieces, as `curl -T -` does, and no more of it is held than there is room
    for.
    """
    count = 20

    async def scenario(client: Client, service: Service) -> dict[str, Any]:
        run = start(service, b"echo ready; read go; cksum")
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(count):
                sent += 1
                yield bytes(ROOM)

        sending = asyncio.create_task(send(client, run, body(), "?eof=true"))
        await starts(run)
        while len(run.stdin._waiting) < ROOM:
            await run.stdin._changed.wait()
        for _ in range(100):  # whatever could still come in would
            await asyncio.sleep(0)
            assert len(run.stdin._waiting) <= ROOM
        assert not sending.done()
        assert sent < count
        await service.signal(run, 9)
        assert await sending == (410, "run_ended")
        return await ends(service, run)

    assert serve(scenario)["steps"][1]["signal"] == 9


def test_who_cannot_write_is_told(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> list[tuple[int, str]]:
        plain = start(service, b"echo ready; sleep 60", interactive=False)
        found = [await send(client, plain, b"x"), await send(client, plain, b"", "?eof=true")]
        await service.end(plain, "enough")
        over = start(service, b"true")
        await over.done.wait()
        return [
            *found,
            await send(client, over, b"x"),
            await send(client, over, b"", "?eof=perhaps"),
            await send(client, over, b'{"signal": 2}', what="signal"),
        ]

    assert serve(scenario) == [
        (409, "run_not_interactive"),
        (409, "run_not_interactive"),
        (410, "run_ended"),
        (422, "invalid_value"),
        (410, "run_ended"),
    ]


def test_a_second_writer_is_refused_while_a_body_comes(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> tuple[int, str]:
        run = start(service, b"cat")
        more = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            await more.wait()

        first = asyncio.create_task(send(client, run, body()))
        while not run.record.output(1)[0]:
            await run.record.changed()
        refused = await send(client, run, b"two")
        more.set()
        assert await first == (204, "")
        assert await send(client, run, b" three", "?eof=true") == (204, "")
        assert (await ends(service, run))["steps"][1]["stdout"] == "one three"
        return refused

    assert serve(scenario) == (409, "stdin_taken")


@pytest.mark.parametrize("name", ['"INT"', '"SIGINT"', "2"])
def test_a_signal_reaches_the_program(serve: Serve, name: str) -> None:
    async def scenario(client: Client, service: Service) -> dict[str, Any]:
        run = start(service, LOOPS, interactive=False)
        await starts(run)
        assert await send(client, run, b'{"signal": %s}' % name.encode(), what="signal") == (204, "")
        return await ends(service, run)

    result = serve(scenario)
    assert (result["exit_status"], result["steps"][1]["stdout"]) == (3, "ready\ncaught\n")


@pytest.mark.parametrize("body", [b'{"signal": 0}', b'{"signal": 65}', b'{"signal": "NONE"}', b'{"signal": null}', b"{}"])
def test_what_is_no_signal_is_refused(serve: Serve, body: bytes) -> None:
    async def scenario(client: Client, service: Service) -> tuple[int, str]:
        run = start(service)
        return await send(client, run, body, what="signal")

    assert serve(scenario) == (422, "invalid_value")


def test_a_signal_before_the_machine_is_there_is_refused(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> tuple[int, str]:
        return await send(client, start(service), b'{"signal": 2}', what="signal")

    assert serve(scenario, fault="mute") == (409, "not_running")


def test_a_size_is_for_terminals(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> list[tuple[int, str]]:
        plain = start(service, b"echo ready; cat")
        body = {"language": "toy", "source": "echo ready; cat", "tty": {"columns": 80, "rows": 24}}
        status, started, _ = await post(client, "/start", body)
        assert status == 201
        run = service.get(started["id"])
        assert run.has_terminal
        await starts(run)
        size = b'{"columns": 100, "rows": 30}'
        found = [await send(client, which, size, what="resize") for which in (plain, run)]
        async with attach(client, plain) as socket:
            await socket.send_str('{"type": "resize", "columns": 100, "rows": 30}')
            while "code" not in (answer := await socket.receive_json()) or answer.get("event"):
                pass
            assert answer["code"] == "run_not_interactive"
        found.append(await send(client, run, b'{"columns": 0, "rows": 30}', what="resize"))
        assert (await post(client, "/start", {**body, "tty": {"columns": 80}}))[0] == 422
        return found

    assert serve(scenario) == [(409, "run_not_interactive"), (204, ""), (422, "invalid_value")]


def test_a_run_that_nobody_could_write_to_is_refused(serve: Serve) -> None:
    """Its client learns its id at its end only, which would not come."""

    async def scenario(client: Client, service: Service) -> list[int]:
        body = {"language": "toy", "source": "cat", "stdin": "first", "tty": {"columns": 80, "rows": 24}}
        found = [(await post(client, "/run", body))[0], (await post(client, "/run?language=toy&interactive=true", b"cat"))[0]]
        assert not list(service.runs)
        status, result, _ = await post(client, "/run", {**body, "interactive": False})
        assert result["steps"][1]["stdout"] == "firstfirst"  # the terminal's echo, and the program
        return [*found, status]

    assert serve(scenario) == [422, 422, 200]


def test_a_conversation_over_a_websocket(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        run = start(service)
        async with attach(client, run) as socket:
            await until(socket, "name?")
            await socket.send_str('{"type": "stdin", "data": "Ad"}')
            await socket.send_bytes(b"a\n")
            await until(socket, "hello Ada")
            await socket.send_str('{"type": "stdin", "data": "you"}')
            await socket.send_str('{"type": "eof"}')
            found = await rest(socket)
            assert socket.close_code == 1000
        return found, await ends(service, run)

    messages, result = serve(scenario)
    assert output(messages) == "and you\n"
    assert messages[-1]["event"] == "done"
    assert messages[-1]["result"]["steps"] == result["steps"]
    assert "id" in messages[-1]


def test_a_signal_over_a_websocket(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> list[dict[str, Any]]:
        run = start(service, LOOPS, interactive=False)
        async with attach(client, run) as socket:
            await until(socket, "ready")
            await socket.send_str('{"type": "signal", "signal": "INT"}')
            return await rest(socket)

    messages = serve(scenario)
    assert (output(messages), messages[-1]["exit_status"]) == ("caught\n", 3)


def test_many_read_and_one_writes(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> None:
        run = start(service)
        async with attach(client, run) as first, attach(client, run) as second:
            await until(first, "name?")
            await first.send_bytes(b"Ada")
            await until(second, "name?")
            while run.stdin._writer is None:
                await asyncio.sleep(0.01)
            await second.send_bytes(b"Eve\n")
            refusal = await second.receive_json()
            assert (refusal["type"], refusal["code"]) == ("error", "stdin_taken")
            assert await send(client, run, b"x") == (409, "stdin_taken")
            await first.send_bytes(b"\n")
            assert await until(second, "hello") == "hello Ada\n"
            await first.close()
            while run.stdin._writer is not None:
                await asyncio.sleep(0.01)
            await second.send_bytes(b"Eve\n")
            assert output(await rest(second)) == "and Eve\n"
        await ends(service, run)
        async with attach(client, run) as late:
            everything = await rest(late)
            assert output(everything) == "name?\nhello Ada\nand Eve\n"
        async with attach(client, run, f"?after={everything[2]['id']}") as later:
            assert await rest(later) == everything[3:]

    serve(scenario)


def test_the_program_of_a_run_that_is_not_interactive_is_only_read(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> tuple[str, list[dict[str, Any]]]:
        run = start(service, LOOPS, interactive=False)
        async with attach(client, run) as socket:
            await until(socket, "ready")
            await socket.send_bytes(b"x")
            refusal = await socket.receive_json()
            await socket.send_str('{"type": "signal", "signal": "INT"}')
            return refusal["code"], await rest(socket)

    code, messages = serve(scenario)
    assert (code, output(messages)) == ("run_not_interactive", "caught\n")


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [("", {}, (400, "bad_request")), ("?after=9-9", {}, (422, "invalid_value")), ("?before=1", {}, (422, "invalid_value"))],
)
def test_what_cannot_be_attached_is_refused(serve: Serve, query: str, headers: Any, expected: tuple[int, str]) -> None:
    async def scenario(client: Client, service: Service) -> tuple[int, str]:
        run = start(service)
        status, body = await get(client, f"/runs/{run.id}/attach{query}")
        assert (await get(client, "/runs/none/attach"))[0] == 404
        return status, body["error"]["code"]

    assert serve(scenario) == expected


@pytest.mark.parametrize(
    ("protocols", "chosen"), [(["mayfly", "bearer.secret"], "mayfly"), (["bearer.secret"], "bearer.secret"), ([], "None")]
)
def test_a_key_among_the_protocols_is_not_logged(serve: Serve, caplog: pytest.LogCaptureFixture, protocols: list[str], chosen: str) -> None:
    async def scenario(client: Client, service: Service) -> str:
        async with attach(client, start(service), protocols=protocols) as socket:
            return str(socket.protocol)

    assert serve(scenario) == chosen
    assert "secret" not in caplog.text


def frame(data: bytes, opcode: int, *, masked: bool = True, first: int = 0x80) -> bytes:
    """A frame of a client (RFC 6455, 5.2), with a mask of zeros."""
    size = len(data)
    width = 0 if size < 126 else 2 if size < 1 << 16 else 8
    length = {0: size, 2: 126, 8: 127}[width] | 0x80 * masked
    return bytes([first | opcode, length]) + size.to_bytes(width or 1, "big")[: width or 0] + bytes(4 * masked) + data


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"{", 1), 1008),
        (frame(b"[]", 1), 1008),
        (frame(b'{"type": "none"}', 1), 1008),
        (frame(b'{"type": ["stdin"]}', 1), 1008),
        (frame(b'{"type": "stdin"}', 1), 1008),
        (frame(b'{"type": "stdin", "data": 7}', 1), 1008),
        (frame(b'{"type": "eof", "more": 1}', 1), 1008),
        (frame(b'{"type": "signal", "signal": 99}', 1), 1008),
        (frame(b"[" * 60_000, 1), 1008),
        (frame(b"\xff\xfe", 1), 1007),
        (frame(b"x", 1, first=0xF0), 1002),
        (frame(b"x", 3), 1002),
        (frame(b"x" * 200, 9), 1002),
        (frame(bytes(events.MAX_MESSAGE + 1), 2), 1009),
    ],
)
def test_what_is_no_message_closes_the_websocket_and_not_the_run(serve: Serve, sent: bytes, code: int) -> None:
    async def scenario(client: Client, service: Service) -> tuple[list[str], int]:
        run = start(service)
        async with attach(client, run) as socket:
            await until(socket, "name?")
            transport = socket._writer.transport
            transport.write(sent)
            found = [message.get("type", "") for message in await rest(socket)]
        assert await send(client, run, b"Ada\nyou\n") == (204, "")
        assert (await ends(service, run))["status"] == "ok"
        return found, socket.close_code or 0

    said, closed = serve(scenario)
    assert closed == code
    assert said == (["error"] if code == 1008 else [])


def test_a_client_that_answers_no_ping_is_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(events, "PATIENCE_S", 0.2)

    async def scenario(client: Client, service: Service) -> tuple[set[WSMsgType], int | None]:
        async with attach(client, start(service), autoping=False) as socket:
            kinds = {message.type async for message in socket}
            return kinds, socket.close_code

    kinds, code = serve(scenario)
    assert WSMsgType.PING in kinds
    assert code == 1006


def test_a_client_that_answers_pings_stays(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(events, "PATIENCE_S", 1.0)

    async def scenario(client: Client, service: Service) -> str:
        run = start(service, b"sleep 2; echo over", interactive=False)
        async with attach(client, run) as socket:
            return output(await rest(socket))

    assert serve(scenario) == "over\n"


def test_a_writer_who_waits_for_the_program_is_not_taken_for_dead(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(events, "PATIENCE_S", 1.0)
    pieces = 30

    async def scenario(client: Client, service: Service) -> str:
        run = start(service, b"echo ready; sleep 2; wc -c")
        async with attach(client, run) as socket:

            async def write() -> None:
                for _ in range(pieces):
                    await socket.send_bytes(bytes(ROOM // 2))
                await socket.send_str('{"type": "eof"}')

            writing = asyncio.create_task(write())
            found = output(await rest(socket))
            await writing
        return found

    assert serve(scenario).split() == ["ready", str(pieces * (ROOM // 2))]


def test_a_slow_reader_holds_up_nobody(serve: Serve) -> None:
    size = 2_000_000

    async def scenario(client: Client, service: Service) -> tuple[int, int]:
        run = start(service, b"head -c %d /dev/zero | tr '\\0' x" % size, interactive=False)
        async with attach(client, run) as slow, attach(client, run) as quick:
            slow._conn.transport.pause_reading()
            found = len(output(await rest(quick)))
            assert run.done.is_set()
            slow._conn.transport.resume_reading()
            return found, len(output(await rest(slow)))

    assert serve(scenario, run_output=2 * size) == (size, size)


def test_readers_have_a_second_when_the_run_is_dropped(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> list[dict[str, Any]]:
        run = start(service)
        async with attach(client, run) as socket:
            await until(socket, "name?")
            await service.forget(run.id)
            return await rest(socket)

    assert [message["event"] for message in serve(scenario)] == ["error", "done"]


def test_a_client_that_goes_away_without_a_word_frees_standard_input(serve: Serve) -> None:
    async def scenario(client: Client, service: Service) -> str:
        run = start(service)
        async with attach(client, run) as socket:
            await until(socket, "name?")
            await socket.send_bytes(b"Ada\n")
            await until(socket, "hello")
            socket._conn.transport.abort()
        while run.stdin._writer is not None or run.readers:
            await asyncio.sleep(0.01)
        assert await send(client, run, b"you\n") == (204, "")
        return str((await ends(service, run))["status"])

    assert serve(scenario) == "ok"


@pytest.mark.parametrize(("query", "source"), [("", b"echo ready; sleep 1"), ("&stream=sse&interactive=true", ASKS)])
@pytest.mark.parametrize(("detach", "status"), [(True, "ok"), (False, "error")])
def test_a_client_that_goes_away_ends_its_run_unless_it_said_detach(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, query: str, source: bytes, detach: bool, status: str
) -> None:
    monkeypatch.setattr(connections, "TICK_S", 0.05)

    async def scenario(client: Client, service: Service) -> str:
        address = f"/run?language=toy&detach={str(detach).lower()}{query}"
        going = asyncio.create_task(post(client, address, source))
        while not (runs := list(service.runs)):
            await asyncio.sleep(0.01)
        (run,) = runs
        await starts(run)
        going.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await going
        if detach and query:
            while len(run.readers):
                await asyncio.sleep(0.01)
            assert await send(client, run, b"Ada\nyou\n") == (204, "")
        return str((await ends(service, run))["status"])

    assert serve(scenario) == status


def test_the_python_client_talks_to_a_run(serve: Serve) -> None:
    async def scenario(_: Client, service: Service) -> str:
        async with (
            AsyncClient(service.config.socket) as client,
            client.start(ASKS.decode(), language="toy", interactive=True) as run,
            run.attach() as attached,
        ):
            found = ""
            async for event in attached:
                if isinstance(event, StdoutEvent):
                    found += event.text
                    if event.text.endswith("name?\n"):
                        await attached.send("Ada\n")
                    elif "hello" in event.text:
                        await attached.send(b"you")
                        await attached.send_eof()
            return found

    assert serve(scenario) == "name?\nhello Ada\nand you\n"


def test_the_python_client_sends_input_and_signals(serve: Serve) -> None:
    async def scenario(_: Client, service: Service) -> list[str]:
        async with AsyncClient(service.config.socket) as client:
            async with client.start(ASKS.decode(), language="toy", interactive=True) as run:
                await run.send("Ada\n")
                await run.send("you\n", end=True)
                found = [(await run.result()).stdout]
            async with client.start(LOOPS.decode(), language="toy") as run:
                async for event in run:
                    if isinstance(event, StdoutEvent) and "ready" in event.text:
                        await run.signal("INT")
                found.append((await run.state()).stdout)
            return found

    assert serve(scenario) == ["name?\nhello Ada\nand you\n", "ready\ncaught\n"]
