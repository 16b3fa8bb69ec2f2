"""The HTTP service over its Unix socket: what is answered, to whatever is sent. Machines are
ordinary processes.
"""

import asyncio
import base64
import gzip
import io
import json
import random
import re
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mayfly.api.app import functions_beside, make_app, serve_http
from mayfly.api.connections import Connections
from mayfly.api.requests import MAX_BODY, Body
from mayfly.api.routes import ROUTES
from mayfly.cli.snapshot import create_from_run
from mayfly.errors import HostError, RequestError
from mayfly.host.metrics import Metrics
from mayfly.host.snippet import Snippet
from mayfly.host.sockets import claim
from mayfly.images.manifest import LanguageStep
from mayfly.protocol.frames import MAX_FILES_SIZE
from mayfly.runs.service import Service
from mayfly.units import MIB
from tests.kit.answers import check_answer
from tests.kit.api_fakes import FakeZygote, factory, install, install_toys, open_descriptors, small_config

URL = "http://mayfly"
JSON = {"Content-Type": "application/json"}
Scenario = Callable[[aiohttp.ClientSession, Service], Awaitable[Any]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        yield Path(name)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Callable[..., Any]:
    """Run a scenario against a server, and check that it leaves no socket and no descriptor."""
    install_toys(monkeypatch, tmp_path)

    def call(scenario: Scenario, fault: str = "", made: list[FakeZygote] | None = None, **changes: Any) -> Any:
        config = small_config(tmp_path, socket=folder / "mayfly" / "api.sock", **changes)

        async def whole() -> Any:
            stop = asyncio.Event()
            with claim(config.socket) as (listener, runs):
                async with Service(config, factory(fault, made), sockets=runs) as service:
                    server = asyncio.create_task(serve_http(service, functions_beside(service), Metrics(), listener, stop))
                    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(config.socket))) as client:
                        try:
                            return await asyncio.wait_for(scenario(client, service), 60)
                        finally:
                            stop.set()
                            await server

        before = open_descriptors()
        result = asyncio.run(whole())
        assert open_descriptors() == before
        assert [path.name for path in config.socket.parent.rglob("*")] == []
        return result

    return call


async def post(client: aiohttp.ClientSession, path: str, body: Any = b"", headers: Any = None) -> tuple[int, Any, Any]:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    async with client.post(URL + path, data=io.BytesIO(data), headers=headers or (JSON if isinstance(body, dict) else {})) as answer:
        found = await answer.json()
        check_answer("POST", path, answer.status, found)
        return answer.status, found, answer.headers


async def get(client: aiohttp.ClientSession, path: str, method: str = "GET") -> tuple[int, Any]:
    async with client.request(method, URL + path) as answer:
        found = await answer.json() if answer.status != 204 else None
        check_answer(method, path, answer.status, found)
        return answer.status, found


async def read_all(path: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    whole = await reader.read()
    writer.close()
    return whole


def test_start_gives_a_socket_with_the_output(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        status, started, headers = await post(client, "/start?language=toy", b"echo out; echo err >&2")
        assert status == 201
        assert started["output"] == "raw"
        assert headers["Location"] == f"/runs/{started['id']}"
        assert sorted((await read_all(started["output_socket"])).splitlines()) == [b"err", b"out"]
        status, result = await get(client, f"/runs/{started['id']}")
        assert (status, result["status"], result["steps"][1]["stdout"]) == (200, "ok", "out\n")

    serve(scenario)


def test_events(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> list[dict[str, Any]]:
        _, started, _ = await post(client, "/start?language=toy&output=events", b"echo out; exit 3")
        return [json.loads(line) for line in (await read_all(started["output_socket"])).splitlines()]

    events = serve(scenario)
    assert [event["event"] for event in events] == ["stage", "exit", "stage", "stdout", "exit", "done"]
    assert events[0] == {"event": "stage", "step": "build"}
    assert events[3] == {"event": "stdout", "data": "out\n"}
    assert (events[4]["step"], events[4]["code"]) == ("run", 3)
    assert events[5] == {"event": "done", "status": "failed", "exit_status": 3}


def test_cases(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        body = {
            "language": "toy",
            "source": "cat; echo $1",
            "cases": [{"stdin": "a", "args": ["b"], "expected_stdout": "ab"}, {"stdin": "c"}],
        }
        async with client.post(URL + "/run?stream=jsonl", json=body) as answer:
            events = [json.loads(line) for line in (await answer.read()).splitlines()]
        assert [event["event"] for event in events] == ["stage", "exit", "case", "case", "done"]
        assert (events[2]["verdict"], events[2]["stdout"], events[3]["stdout"]) == ("passed", "ab\n", "c\n")
        found = events[4]["result"]["cases"]
        assert (found["parallel"], found["passed"], len(found["results"])) == (1, 2, 2)

    serve(scenario)


def test_files_as_a_tar(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        _, started, _ = await post(client, "/start", {"language": "toy", "source": "printf abc > a.txt", "collect": ["*.txt"]})
        async with client.get(f"{URL}/runs/{started['id']}/files") as answer:
            assert (answer.status, answer.content_type) == (200, "application/x-tar")
            with tarfile.open(fileobj=io.BytesIO(await answer.read())) as tar:
                assert [(entry.name, entry.size) for entry in tar] == [("a.txt", 3)]
        assert (await get(client, f"/runs/{started['id']}"))[1]["files"] == {"a.txt": {"base64": "YWJj"}}
        _, other, _ = await post(client, "/start?language=toy", b"true")
        status, error = await get(client, f"/runs/{other['id']}/files")
        assert (status, error["error"]["code"]) == (422, "invalid_value")
        assert (await get(client, "/runs/none/files"))[0] == 404

    serve(scenario)


def test_run_with_everything(serve: Callable[..., Any]) -> None:
    body = {
        "language": "toy@1.0",
        "source": 'cat; echo "$1 $X"; cat data',
        "files": {"data": {"base64": base64.b64encode(b"\xff").decode()}},
        "stdin": "in ",
        "args": ["a"],
        "env": {"X": "x"},
        "limits": {"run": {"wall_s": 5, "output": 4096}},
        "output": "events",
    }

    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        status, result, _ = await post(client, "/run", body)
        assert (status, result["exit_status"]) == (200, 0)
        assert base64.b64decode(result["steps"][1]["stdout_base64"]) == b"in a x\n\xff"

    serve(scenario)


def test_the_only_language_need_not_be_named(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> tuple[int, Any]:
        status, answer, _ = await post(client, "/run", b"true")
        return status, answer

    status, answer = serve(scenario, languages=("toy",))
    assert (status, answer["language"]) == (200, "toy")
    status, answer = serve(scenario)
    assert (status, answer["error"]["code"]) == (404, "unknown_language")


@pytest.mark.parametrize("fault", ["still-born", "vanish"])
def test_what_a_guest_does_is_no_5xx(serve: Callable[..., Any], fault: str) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        status, result, _ = await post(client, "/run?language=toy", b"true")
        assert (status, result["status"]) == (200, "error")
        assert result["error"]["hint"]
        assert result["error"]["console"] == ("last words\n" if fault == "still-born" else "")

    serve(scenario, fault=fault)


REFUSED: list[tuple[str, Any, dict[str, str], int, str]] = [
    ("/start?language=cobol", b"x", {}, 404, "unknown_language"),
    ("/start?language=../../etc", b"x", {}, 404, "unknown_language"),
    ("/start?language=toy@9", b"x", {}, 404, "unknown_language"),
    ("/start?language=toy&output=loud", b"x", {}, 422, "invalid_value"),
    ("/start?language=toy&langage=go", b"x", {}, 422, "invalid_value"),
    ("/start?language=toy", b"x", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
    ("/start?language=toy", b"x", {"Content-Type": "image/png"}, 415, "unsupported_media_type"),
    ("/start?language=toy", b"{", JSON, 400, "bad_request"),
    ("/start?language=toy", b"", JSON, 400, "bad_request"),
    ("/start?language=toy", b"[]", JSON, 400, "bad_request"),
    ("/start?language=toy", b"\xff", JSON, 400, "bad_request"),
    ("/start?language=toy", b"[" * 100_000, JSON, 400, "bad_request"),
    ("/start?language=toy", b'{"source": ' + b"9" * 5000 + b"}", JSON, 422, "invalid_value"),
    ("/start?language=toy", b"not gzip", {"Content-Encoding": "gzip"}, 400, "bad_request"),
    ("/start", {"language": "toy"}, {}, 422, "invalid_value"),
    ("/start?language=py", {"language": "toy", "source": ""}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "colour": "red"}, {}, 422, "invalid_value"),
    ("/start", {"language": 3, "source": ""}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": 3}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "\ud800"}, {}, 400, "bad_request"),
    ("/start", {"language": "toy", "source": {"base64": "?"}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "files": {"main.toy": ""}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "files": {"../x": ""}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "files": {"/etc/x": ""}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "files": {"a//b": ""}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "files": {"a\0b": ""}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "files": []}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "args": "x"}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "args": ["\0"]}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "args": ["x"] * 2000}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "args": ["x" * 30_000] * 3}, {}, 413, "too_large"),
    ("/start", {"language": "toy", "source": "", "env": {"A=B": "x"}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "env": {"A": None}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "limits": {"run": {"wall_s": 11}}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "limits": {"run": {"wall_s": 0}}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "limits": {"run": {"wall_s": float("nan")}}}, {}, 400, "bad_request"),
    ("/start", {"language": "toy", "source": "", "limits": {"run": {"wall_s": True}}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "limits": {"run": {"processes": 1.5}}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "limits": {"run": {"memory": 10**400}}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "limits": {"run": {"wall": 1}}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "limits": {"link": {"wall_s": 1}}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "limits": {"wall_s": 1}}, {}, 422, "invalid_value"),
    ("/start", {"language": "toy", "source": "", "output": 1}, {}, 422, "invalid_value"),
    ("/start?language=toy", b"x" * (MAX_FILES_SIZE + 1), {}, 413, "too_large"),
    ("/start?language=toy", b"x" * (MAX_BODY + 1), {}, 413, "too_large"),
    ("/start?language=toy", gzip.compress(b"x" * (MAX_BODY + 1)), {"Content-Encoding": "gzip"}, 413, "too_large"),
    ("/begin", b"x", {}, 404, "not_found"),
    ("/languages", b"x", {}, 405, "method_not_allowed"),
]


def test_what_is_refused(serve: Callable[..., Any]) -> None:
    made: list[FakeZygote] = []

    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        for path, body, headers, status, code in REFUSED:
            found, answer, answer_headers = await post(client, path, body, headers)
            what = f"{path} {str(body)[:80]} {answer}"
            assert (found, answer["error"]["code"]) == (status, code), what
            assert set(answer["error"]) == {"code", "message", "hint"}, what
            assert answer["error"]["message"], what
            if status == 405:
                assert "GET" in answer_headers["Allow"]
        assert service.admission.used == 0

    serve(scenario, made=made)
    assert made == []


def test_odd_bodies_never_give_a_5xx(serve: Callable[..., Any]) -> None:
    """Any 60 bodies put together from what JSON can say: answered with 2xx or 4xx."""
    choose = random.Random(7)
    scalars = [None, True, -1, 0, 1, 1.5, 1e308, 10**30, "", "x", "\0", "\ud83d", "é" * 50, [], {}, [None], {"base64": "AA=="}, {"": ""}]

    def value(depth: int) -> Any:
        if depth and choose.random() < 0.4:
            return {choose.choice(["run", "build", "wall_s", "memory", "a/b", "A", ""]): value(depth - 1) for _ in range(2)}
        return choose.choice(scalars)

    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        fields = Body.__struct_fields__
        seen = set()
        for _ in range(60):
            body = {"language": "toy", "source": "exit 0", choose.choice([*fields, "x"]): value(3)}
            status, _, _ = await post(client, "/run", body)
            seen.add(status)
        assert max(seen) < 500
        assert {200, 422} <= seen

    serve(scenario)


def test_an_unexpected_fault_is_a_500_of_the_same_form(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        monkeypatch.setattr(service.images, "installed", lambda: 1 / 0)
        status, answer = await get(client, "/languages")
        assert (status, answer["error"]["code"]) == (500, "internal")
        assert "Zero" not in json.dumps(answer)

    serve(scenario)


def test_too_many_runs_are_asked_to_come_back(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        answers = [await post(client, "/start?language=toy", b"sleep 30") for _ in range(6)]
        assert [status for status, _, _ in answers] == [201] * 5 + [429]
        _, answer, headers = answers[-1]
        assert int(headers["Retry-After"]) >= 1
        assert answer["error"]["code"] == "busy"
        _, result = await get(client, f"/runs/{answers[4][1]['id']}")
        assert (result["state"], result["status"]) == ("queued", None)

    serve(scenario, queue=1)


def test_a_machine_that_fits_no_budget_is_the_hosts_fault(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        status, answer, _ = await post(client, "/run?language=toy", b"true")
        assert (status, answer["error"]["code"]) == (503, "host_failed")

    serve(scenario, memory_budget=1)


def test_delete_ends_a_run_and_may_be_repeated(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        _, started, _ = await post(client, "/start?language=toy&output=events", b"echo here; sleep 60")
        reader, writer = await asyncio.open_unix_connection(started["output_socket"])
        while b"here" not in await reader.readline():
            pass
        for _ in range(2):
            status, _ = await get(client, f"/runs/{started['id']}", "DELETE")
            assert status == 204
        events = [json.loads(line) for line in (await reader.read()).splitlines()]
        writer.close()
        assert [event["event"] for event in events] == ["error", "done"]
        assert events[0]["error"]["code"] == "run_ended"
        status, answer = await get(client, f"/runs/{started['id']}")
        assert (status, answer["error"]["code"]) == (404, "unknown_run")
        assert not Path(started["output_socket"]).exists()

    serve(scenario)


@pytest.mark.parametrize("moment", ["queued", "booting", "building", "running", "ended"])
def test_delete_at_any_moment_ends_the_readers_too(serve: Callable[..., Any], moment: str) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        if moment == "queued":
            await post(client, "/start?language=toy", b"sleep 60")
        source = {"building": b"exec sleep 60", "running": b"echo here; exec sleep 60"}.get(moment, b"true")
        language = "slow" if moment == "building" else "toy"
        _, started, _ = await post(client, f"/start?language={language}&output=events", source)
        reader, writer = await asyncio.open_unix_connection(started["output_socket"])
        seen = {"building": b'"stage"', "running": b"here", "ended": b'"done"'}.get(moment, b"")
        while seen and seen not in await reader.readline():
            pass
        if moment == "booting":
            while (await get(client, f"/runs/{started['id']}"))[1]["state"] != "booting":
                pass
        status, _ = await get(client, f"/runs/{started['id']}", "DELETE")
        events = [json.loads(line) for line in (await reader.read()).splitlines()]
        writer.close()
        assert status == 204
        assert [event["event"] for event in events if event["event"] in ("error", "done")] == (
            [] if moment == "ended" else ["error", "done"]
        )
        assert (await get(client, f"/runs/{started['id']}"))[0] == 404
        assert service.admission.used == (128 * MIB if moment == "queued" else 0)

    install("slow", ".slow", (LanguageStep(name="build", argv=("sh", "main.slow")),))
    serve(scenario, fault="mute" if moment == "booting" else "", memory_budget=128 * MIB)


def test_a_client_that_goes_away_ends_its_run(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        asking = asyncio.create_task(post(client, "/run?language=toy", b"echo here; sleep 60"))
        while not any(len(run.record) for run in service.runs):
            await asyncio.sleep(0.01)
        (run,) = service.runs
        asking.cancel()
        await asyncio.wait_for(run.done.wait(), 10)
        assert run.outcome.error is not None
        assert run.outcome.error.message == "the client went away"
        await service.settled(run)
        assert service.admission.used == 0

    serve(scenario)


def test_what_the_server_says_of_itself(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        _, found = await get(client, "/languages")
        assert [item["language"] for item in found["languages"]] == ["py", "real", "toy"]
        assert found["languages"][2]["steps"] == ["build", "run"]
        assert (await get(client, "/healthz"))[1] == (await get(client, "/readyz"))[1]
        assert (await get(client, "/healthz"))[1]["status"] == "ok"
        assert (await get(client, "/version"))[1]["time_factor"] == 1
        service.stopping = True
        assert (await get(client, "/healthz"))[1]["status"] == "draining"
        assert (await get(client, "/readyz"))[0] == 503
        status, answer, headers = await post(client, "/run?language=toy", b"true")
        assert (status, answer["error"]["code"]) == (503, "stopping")
        assert int(headers["Retry-After"]) > 0

    serve(scenario)


def test_openapi_describes_the_routes_that_there_are(serve: Callable[..., Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        _, found = await get(client, "/openapi.json")
        described = {(method.upper(), path) for path, methods in found["paths"].items() for method in methods}
        app = make_app(service, functions_beside(service), Metrics(), Connections())
        served = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
        heads = {("HEAD", path) for method, path in described if method == "GET"}
        assert described == served - heads == {(route.method, route.path) for route in ROUTES}
        assert heads < served
        text = json.dumps(found)
        schemas = found["components"]["schemas"]
        assert {"Body", "SaveBody", "RunResult", "Event", "Error", "Languages"} <= set(schemas)
        for name in schemas:
            assert f'"#/components/schemas/{name}"' in text
        for name in re.findall('"#/components/schemas/([^"]+)"', text):
            assert name in schemas

    serve(scenario)


def test_a_live_server_is_not_replaced(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    path = folder / "mayfly" / "api.sock"
    with claim(path) as (_, runs):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert runs.stat().st_mode & 0o777 == 0o700
        with pytest.raises(HostError, match="is running there"), claim(path):
            pass
        (path.parent / "api.sock.lock").unlink()  # as if the other had no lock
        with pytest.raises(HostError, match="is listening there"), claim(path):
            pass
    with pytest.raises(FileNotFoundError):
        path.stat()


def test_folders_of_others_are_not_used(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    (folder / "elsewhere").mkdir()
    (folder / "mayfly").symlink_to(folder / "elsewhere")
    with pytest.raises(HostError, match="is not a folder of user"), claim(folder / "mayfly" / "api.sock"):
        pass
    (folder / "shared").mkdir()
    (folder / "shared" / "runs").symlink_to(folder / "elsewhere")
    with pytest.raises(HostError, match="is not a folder of user"), claim(folder / "shared" / "api.sock"):
        pass


def test_a_path_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="at most 107 bytes"), claim(tmp_path / ("x" * 60) / "api.sock"):
        pass


def test_a_running_machine_is_saved_over_http_and_by_the_command(
    serve: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vmlinux").write_bytes(b"kernel")

    async def scenario(client: aiohttp.ClientSession, service: Service) -> None:
        run = service.start(Snippet(language="toy", source=b"echo begun; sleep 60"))
        while not any(run.record.output(1)):
            await run.record.changed()
        path = f"/runs/{run.id}/snapshot"
        for body, status in ((b"{", 400), (b"[]", 400), (b"{}", 422), (b'{"name": 1}', 422), (b'{"name": "../x"}', 422)):
            assert (await post(client, path, body))[0] == status
        _, answer, _ = await post(client, path, b'{"name": "one", "nme": 1}')
        assert (answer["error"]["code"], "unknown field 'nme'" in answer["error"]["message"]) == ("invalid_value", True)
        status, answer, _ = await post(client, path, b'{"name": "one"}')
        assert (status, answer["name"], answer["run"], answer["parent"]) == (201, "one", run.id, None)
        assert (await post(client, "/runs/none/snapshot", b'{"name": "x"}'))[0] == 404
        await asyncio.to_thread(create_from_run, run.id, "two", service.config)
        with pytest.raises(RequestError, match="already"):
            await asyncio.to_thread(create_from_run, run.id, "two", service.config)
        assert capsys.readouterr().out.startswith("two ")
        assert not run.done.is_set()
        await service.forget(run.id)

    serve(scenario)
