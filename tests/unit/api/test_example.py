"""The example backend, driven by a real HTTP client; machines are ordinary processes."""

import asyncio
import importlib.util
import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mayfly.api.app import functions_beside, serve_http
from mayfly.host.metrics import Metrics
from mayfly.host.sockets import claim
from mayfly.runs.service import Service
from tests.kit.api_fakes import ROOT, factory, install_toys, small_config

Scenario = Callable[[aiohttp.ClientSession, str, Service], Awaitable[Any]]


def load_backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("polycode_backend", ROOT / "examples/polycode-backend/backend.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Scenario], Any]]:
    install_toys(monkeypatch, tmp_path)
    module = load_backend()
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        config = small_config(tmp_path, socket=Path(folder) / "api.sock")

        async def whole(scenario: Scenario) -> Any:
            stop = asyncio.Event()
            with claim(config.socket) as (listener, runs):
                async with Service(config, factory(), sockets=runs) as service:
                    server = asyncio.create_task(serve_http(service, functions_beside(service), Metrics(), listener, stop))
                    runner = web.AppRunner(module.make_app(config.socket), handler_cancellation=True)
                    await runner.setup()
                    await web.TCPSite(runner, "127.0.0.1", 0).start()
                    url = f"http://127.0.0.1:{runner.addresses[0][1]}/run"
                    async with aiohttp.ClientSession() as client:
                        result = await asyncio.wait_for(scenario(client, url, service), 60)
                    await runner.cleanup()
                    stop.set()
                    await server
                    return result

        yield lambda scenario: asyncio.run(whole(scenario))


def test_output_comes_as_it_is_produced_and_the_exit_code_last(backend: Callable[[Scenario], Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, url: str, service: Service) -> None:
        source = "echo first; while [ ! -e go ]; do sleep 0.01; done; echo last >&2; exit 3"
        async with client.post(url, json={"language": "toy", "source": source}) as answer:
            assert (answer.status, answer.content_type) == (200, "application/x-ndjson")
            events = []
            async for line in answer.content:
                events.append(json.loads(line))
                if events[-1] == {"event": "stdout", "data": "first\n"}:
                    break
            (run,) = service.runs
            assert not run.done.is_set()
            await service.end(run, "seen enough")
            rest = [json.loads(line) async for line in answer.content]
        assert [event["event"] for event in rest] == ["error", "result"]
        async with client.post(url, json={"language": "toy", "source": "exit 3"}) as answer:
            last = json.loads((await answer.read()).splitlines()[-1])
        assert last == {"event": "result", "status": "failed", "exit_code": 3}

    backend(scenario)


def test_errors_are_passed_on(backend: Callable[[Scenario], Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, url: str, service: Service) -> None:
        async with client.post(url, json={"language": "cobol", "source": ""}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "unknown_language")
        async with client.post(url, data=b"{") as answer:
            assert answer.status == 400

    backend(scenario)


def test_a_user_who_goes_away_ends_the_run(backend: Callable[[Scenario], Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, url: str, service: Service) -> None:
        async with client.post(url, json={"language": "toy", "source": "echo first; sleep 60"}) as answer:
            async for line in answer.content:
                if b"first" in line:
                    break
            (run,) = service.runs
            answer.close()
        await asyncio.wait_for(run.done.wait(), 30)
        assert run.outcome.error is not None

    backend(scenario)


def test_an_exercise_is_built_once_and_run_with_each_case(backend: Callable[[Scenario], Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, url: str, service: Service) -> None:
        site = url.removesuffix("/run")
        async with client.get(f"{site}/exercises") as answer:
            assert "sum" in await answer.json()
        async with client.get(f"{site}/") as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
        async with client.get(f"{site}/languages") as answer:
            assert await answer.json() == ["py", "real", "toy"]
        source = "import sys; print(sum(int(word) for word in sys.stdin.read().split() if word != '3'))"
        async with client.post(f"{site}/exercises/sum", json={"language": "py", "source": source}) as answer:
            *cases, whole = [json.loads(line) for line in (await answer.read()).splitlines()]
        assert whole == {"status": "failed", "stderr": ""}
        found = {case["name"]: case for case in cases}
        assert {name: case["verdict"] for name, case in found.items()} == {
            "small": "passed",
            "negative": "wrong_answer",
            "two lines": "passed",
            "large": "passed",
        }
        assert found["negative"]["stdout"] == "-5\n"
        assert "stdout" not in found["large"]  # it is hidden

    backend(scenario)


def test_a_solution_that_cannot_be_built_says_why(backend: Callable[[Scenario], Any]) -> None:
    async def scenario(client: aiohttp.ClientSession, url: str, service: Service) -> None:
        site = url.removesuffix("/run")
        async with client.post(f"{site}/exercises/sum", json={"language": "toy", "source": "if"}) as answer:
            *_, whole = [json.loads(line) for line in (await answer.read()).splitlines()]
        assert whole["status"] == "build_failed"
        assert "syntax error" in whole["stderr"].lower()
        async with client.post(f"{site}/exercises/sum", json={"language": "cobol", "source": ""}) as answer:
            assert answer.status == 422
        async with client.post(f"{site}/exercises/none", json={"language": "toy", "source": ""}) as answer:
            assert answer.status == 404

    backend(scenario)
