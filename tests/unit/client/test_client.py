"""The Python client against a server whose machines are ordinary processes."""

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from mayfly.client import AsyncClient, CaseEvent, CaseInput, Client, DoneEvent, Result, RunFailedError, StageEvent, StderrEvent, StdoutEvent
from mayfly.client.results import decode_event, error_of
from mayfly.client.submission import body
from mayfly.errors import BusyError, ConfigError, MayflyError, ServerLostError, UnknownLanguageError, UnknownRunError, UnprocessableError
from mayfly.runs.service import Service
from tests.unit.api.test_server import folder, serve

__all__ = ["folder", "serve"]
Serve = Callable[..., Any]


def with_client(serve: Serve, work: Callable[[AsyncClient], Any], **changes: Any) -> Any:
    async def scenario(_: aiohttp.ClientSession, service: Service) -> Any:
        async with AsyncClient(service.config.socket) as client:
            return await work(client)

    return serve(scenario, **changes)


def in_thread(serve: Serve, work: Callable[[Client], Any], **changes: Any) -> Any:
    def blocking(path: Path) -> Any:
        with Client(path) as client:
            return work(client)

    async def scenario(_: aiohttp.ClientSession, service: Service) -> Any:
        return await asyncio.to_thread(blocking, service.config.socket)

    return serve(scenario, **changes)


def test_a_run_and_its_result(serve: Serve) -> None:
    def work(client: Client) -> Result:
        return client.run(
            "cat; cat data; echo $1 $NAME; printf '\\377' >&2; exit 3",
            language="toy",
            files={"data": b"\xfe\n"},
            stdin="in\n",
            args=("one",),
            env={"NAME": "two"},
        )

    result = in_thread(serve, work)
    assert (result.status, result.exit_status, result.ok, result.error) == ("failed", 3, False, None)
    assert result.steps[-1].stdout_bytes == b"in\n\xfe\none two\n"
    assert result.stdout == "in\n\ufffd\none two\n"
    assert result.steps[-1].stderr_bytes == b"\xff"
    assert [step.step for step in result.steps] == ["build", "run"]
    assert result.steps[-1].code == 3
    with pytest.raises(RunFailedError) as failed:
        result.check()
    assert failed.value.result is result


def test_large_files(serve: Serve) -> None:
    result = in_thread(serve, lambda client: client.run("sha256sum < data", language="toy", files={"data": bytes(2 << 20)}))
    assert result.stdout.split()[0] == hashlib.sha256(bytes(2 << 20)).hexdigest()


def test_a_failed_build_has_no_program(serve: Serve) -> None:
    result = in_thread(serve, lambda client: client.run("if", language="toy"))
    assert (result.status, result.stdout) == ("build_failed", "")
    assert "syntax error" in result.stderr.lower()


def test_events_come_while_the_run_is_under_way(serve: Serve) -> None:
    def work(client: Client) -> list[Any]:
        with client.start("echo out; sleep 0.3; echo err >&2", language="toy") as run:
            found: list[Any] = list(run)
            assert run.result().status == "ok"
            return found

    events = in_thread(serve, work)
    kinds = [type(event) for event in events]
    assert kinds[0] is StageEvent
    assert kinds[-1] is DoneEvent
    assert b"".join(event.data for event in events if isinstance(event, StdoutEvent)) == b"out\n"
    assert b"".join(event.data for event in events if isinstance(event, StderrEvent)) == b"err\n"


def test_leaving_ends_the_run(serve: Serve) -> None:
    async def work(client: AsyncClient) -> None:
        async with client.start("echo begun; sleep 60", language="toy") as run:
            async for event in run:
                if isinstance(event, StdoutEvent):
                    break
        with pytest.raises(UnknownRunError):
            await run.state()
        async with client.start("echo begun; sleep 60", language="toy", detach=True) as run:
            pass
        assert (await run.state()).state != "done"
        await run.cancel()

    with_client(serve, work)


def test_a_cancelled_wait_ends_the_run(serve: Serve) -> None:
    async def scenario(_: aiohttp.ClientSession, service: Service) -> None:
        async with AsyncClient(service.config.socket) as client:
            waiting = asyncio.create_task(client.run("sleep 60", language="toy"))
            while not list(service.runs):
                await asyncio.sleep(0.01)
            (run,) = service.runs
            waiting.cancel()
            await run.done.wait()
            assert run.outcome.error is not None

    serve(scenario)


def test_refusals_are_typed(serve: Serve) -> None:
    async def work(client: AsyncClient) -> None:
        with pytest.raises(UnknownLanguageError):
            await client.run("x", language="cobol")
        with pytest.raises(UnprocessableError, match="step 'swim'"):
            await client.run("x", language="toy", limits={"swim": {"wall_s": 1}})
        with pytest.raises(UnknownRunError):
            await client.get("0" * 32).result()
        assert {language.language for language in await client.languages()} == {"toy", "real", "py"}

    with_client(serve, work)


def test_no_server(tmp_path: Path) -> None:
    async def ask() -> None:
        async with AsyncClient(tmp_path / "none.sock") as client:
            await client.languages()

    with pytest.raises(ServerLostError, match=r"none\.sock"):
        asyncio.run(ask())


@pytest.mark.parametrize("address", ["ftp://x", "unix:", "https+x://y"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        AsyncClient(address)


def test_addresses_and_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def languages(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"languages": []})

    async def work(url: str) -> None:
        monkeypatch.setenv("MAYFLY_URL", url)
        monkeypatch.setenv("MAYFLY_KEY", "secret")
        async with AsyncClient() as client:
            await client.languages()
        async with AsyncClient(url, key="") as client:
            await client.languages()

    asyncio.run(over_tcp(languages, work))
    assert seen == ["Bearer secret", None]


async def over_tcp(handler: Callable[[web.Request], Any], work: Callable[[str], Any]) -> None:
    """Work against a server of one handler for all addresses."""
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        await work(f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


BUSY: Any = {"error": {"code": "busy", "message": "full", "hint": "", "retry_after_s": 0}}
RESULT = {"id": "1", "language": "toy", "version": "1", "state": "done", "status": "ok", "exit_status": 0, "newer": True}


def test_a_busy_server_is_asked_again() -> None:
    answers = [web.json_response(BUSY, status=429), web.json_response(BUSY, status=429), web.json_response(RESULT)]

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return answers.pop(0)

    async def work(url: str) -> None:
        async with AsyncClient(url) as client:
            assert (await client.run("x")).ok

    asyncio.run(over_tcp(handle, work))
    assert not answers


def test_patience_ends() -> None:
    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"error": {**BUSY["error"], "retry_after_s": 5}}, status=429)

    async def work(url: str) -> None:
        async with AsyncClient(url, patience_s=1) as client:
            with pytest.raises(BusyError):
                await client.run("x")

    asyncio.run(over_tcp(handle, work))


def test_events_go_on_after_a_lost_connection() -> None:
    lines: list[dict[str, Any]] = [
        {"id": "0-0", "event": "stage", "step": "run"},
        {"id": "1-2", "event": "stdout", "data": "ab"},
        {"id": "1-3", "event": "stdout", "data": "c"},
        {"id": "2-0", "event": "from-the-future"},
        {"id": "3-0", "event": "done", "status": "ok", "exit_status": 0},
    ]
    asked = []

    async def handle(request: web.Request) -> web.StreamResponse:
        after = request.headers.get("Last-Event-ID", "")
        asked.append(after)
        begin = next((index + 1 for index, line in enumerate(lines) if line["id"] == after), 0)
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        for line in lines[begin : begin + 2]:
            await answer.write(json.dumps(line).encode() + b"\n")
        if begin + 2 < len(lines):
            await answer.write(b'{"id": "1-3", "eve')  # cut in the middle
            assert request.transport is not None
            request.transport.close()
        return answer

    async def work(url: str) -> None:
        async with AsyncClient(url) as client:
            events = [event async for event in client.get("1")]
        assert b"".join(event.data for event in events if isinstance(event, StdoutEvent)) == b"abc"
        assert isinstance(events[-1], DoneEvent)

    asyncio.run(over_tcp(handle, work))
    assert asked == ["", "1-2", "2-0"]


def test_a_reader_goes_on_to_the_end_though_another_one_has_seen_it() -> None:
    stage: dict[str, Any] = {"id": "0-0", "event": "stage", "step": "run"}
    done: dict[str, Any] = {"id": "1-0", "event": "done", "status": "ok", "exit_status": 0}
    cut = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        if "Last-Event-ID" not in request.headers:
            await answer.write(json.dumps(stage).encode() + b"\n")
        if "Last-Event-ID" in request.headers:
            await answer.write(json.dumps(done).encode() + b"\n")
            return answer
        await cut.wait()
        assert request.transport is not None
        request.transport.close()
        return answer

    async def work(url: str) -> None:
        async with AsyncClient(url) as client:
            run = client.get("1")
            slow = aiter(run)
            found = [await anext(slow)]
            run.over = True  # as a second reader leaves it
            cut.set()
            found += [event async for event in slow]
        assert [type(event) for event in found] == [StageEvent, DoneEvent]

    asyncio.run(over_tcp(handle, work))


def test_a_reader_of_a_silent_run_has_patience_when_its_connection_is_lost() -> None:
    """Patience begins with the loss, not with the last event."""
    asked = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        answer = web.StreamResponse()
        await answer.prepare(request)
        if len(asked) == 1:
            await asyncio.sleep(1.2)
            assert request.transport is not None
            request.transport.close()
        else:
            await answer.write(b'{"id": "0-0", "event": "done", "status": "ok", "exit_status": 0}\n')
        return answer

    async def work(url: str) -> None:
        async with AsyncClient(url, patience_s=1) as client:
            assert [type(event) async for event in client.get("1")] == [DoneEvent]

    asyncio.run(over_tcp(handle, work))


def test_events_that_are_none_of_ours_end_patience() -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(text="<html>\n")

    async def work(url: str) -> None:
        async with AsyncClient(url, patience_s=0.3) as client:
            with pytest.raises(ServerLostError, match="not Mayfly's answer"):
                await client.get("1").result()

    asyncio.run(over_tcp(handle, work))


def test_start_is_sent_again_with_its_key() -> None:
    keys = []

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.method == "POST":
            keys.append(request.headers["Idempotency-Key"])
            if len(keys) == 1:
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            return web.json_response({"id": "1"}, status=201)
        return web.Response(status=204)

    async def work(url: str) -> None:
        async with AsyncClient(url) as client, client.start("x") as run:
            assert run.id == "1"

    asyncio.run(over_tcp(handle, work))
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_cases_and_files_are_typed() -> None:
    sent = body("x", {"cases": [{"stdin": b"\xff", "expected_stdout": "1", "args": ("a",)}], "collect": ("*.txt",)})
    assert sent["cases"] == [{"stdin": {"base64": "/w=="}, "expected_stdout": "1", "args": ["a"]}]
    text = {
        **RESULT,
        "cases": {"parallel": 2, "passed": 1, "results": [{"index": 0, "name": "a", "verdict": "passed", "stdout": "1\n", "stderr": ""}]},
        "files": {"out.bin": {"base64": "/w=="}},
    }
    result = msgspec.convert(text, Result)
    assert result.cases is not None
    assert (result.cases.parallel, result.cases.results[0].passed, result.cases.results[0].stdout) == (2, True, "1\n")
    assert result.files == {"out.bin": b"\xff"}


def test_cases_come_one_by_one(serve: Serve) -> None:
    def work(client: Client) -> None:
        cases: list[CaseInput] = [{"name": "a", "stdin": "1", "expected_stdout": "1"}, {"stdin": "2", "expected_stdout": b"3"}]
        with client.start("cat", language="toy", cases=cases) as run:
            found = [event for event in run if isinstance(event, CaseEvent)]
            result = run.result()
        assert sorted((case.index, case.verdict, case.stdout) for case in found) == [(0, "passed", "1"), (1, "wrong_answer", "2")]
        assert result.cases is not None
        assert (result.cases.passed, result.cases.results[0].name) == (1, "a")
        assert client.run("cat", language="toy", cases=cases[:1]).ok

    in_thread(serve, work)


def test_kinds_of_errors_that_are_not_known_keep_their_code() -> None:
    error = error_of({"code": "from_the_future", "message": "no", "hint": "wait"})
    assert (error.code, error.message, error.hint) == ("from_the_future", "no", "wait")
    assert MayflyError.code == "internal"


def test_a_line_that_is_no_event() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_event(b'{"event": "exit"}')


def test_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(mayfly): mayfly.languages()")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--mayfly", "/nowhere.sock", "test_it.py"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ServerLostError: /nowhere.sock" in found.stdout


def test_importing_the_client_loads_nothing_of_the_server() -> None:
    code = "import sys, mayfly.client; print([n for n in sys.modules if n.split('.')[0] in ('cffi', 'yaml', 'prometheus_client', 'click')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
