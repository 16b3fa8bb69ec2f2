"""Callbacks of a fleet: made by whichever gateway is there when the run is over."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mayfly.fleet.follows import about_of
from mayfly.fleet.message import Registered, decode
from mayfly.images import manifest
from tests.kit.api_fakes import install, install_toys
from tests.kit.fleet_kit import Fleet, in_fleet
from tests.unit.fleet.test_fleet import body, get, start, until_output

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CALLED = {"callback_hosts": ("127.0.0.1",)}
CONTENTS = dict.fromkeys(("stdout", "stderr"))
"""Fields that callbacks have as base64."""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


class Receiver:
    """Takes callbacks; `url` is where."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.called: asyncio.Queue[dict[str, Any]] = asyncio.Queue()


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    async def hear(request: web.Request) -> web.Response:
        taker.called.put_nowait(json.loads(await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/", hear)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    taker = Receiver(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    try:
        yield taker
    finally:
        await runner.cleanup()


async def called(taker: Receiver) -> dict[str, Any]:
    return await asyncio.wait_for(taker.called.get(), 30)


def test_whoever_is_there_calls(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with receiver() as taker, fleet.gateway("g2", **CALLED):
            gate = tmp_path / "gate"
            async with fleet.gateway("g1", **CALLED) as one:
                quick = await start(one.client, "echo quick", callback_url=taker.url, callback_secret=SECRET)
                assert (await called(taker))["id"] == quick
                source = f"echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo end"
                run_id = await start(one.client, source, callback_url=taker.url, callback_secret=SECRET)
                await until_output(one, run_id, "begun")
            gate.touch()
            found = await called(taker)
            assert (found["id"], found["steps"][1]["stdout"]) == (run_id, "begun\nend\n")

    in_fleet(scenario)


def test_a_url_that_may_not_be_called_is_refused() -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        asked = body("true", callback_url="http://127.0.0.1:1/", callback_secret=SECRET)
        async with fleet.gateway("g1") as way, way.client.post("/start", json=asked) as answer:
            assert answer.status == 422

    in_fleet(scenario)


def test_a_submission_of_judge0_is_known_at_all_gateways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also how it ended, to the address that it named, if the gateway that took it is gone."""
    build = manifest.LanguageStep(name="build", argv=("sh", "-n", "main.rs"))
    install("rust", ".rs", (build, manifest.LanguageStep(name="run", argv=("sh", "main.rs"), stdin=True)))
    served = {"compat": ("judge0",), **CALLED}

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with receiver() as taker, fleet.gateway("g2", **served) as two:
            gate = tmp_path / "gate"
            source = f"while [ ! -e {gate} ]; do sleep 0.05; done; cat; echo err >&2"
            asked = {"source_code": source, "language_id": 73, "stdin": "in", "expected_output": "in", "callback_url": taker.url}
            async with fleet.gateway("g1", **served) as one:
                async with one.client.post("/judge0/submissions", json=asked) as answer:
                    assert answer.status == 201, await answer.text()
                    token = (await answer.json())["token"]
                place = f"/judge0/submissions/{token}"
                async with asyncio.timeout(30):
                    while (await get(two.client, place))["status"]["description"] != "Processing":
                        await asyncio.sleep(0.05)
            runs, run_id = two.runner._registry, token.replace("-", "")
            registered = await runs.get(run_id)
            assert registered is not None
            kept_at = about_of(decode(registered.value, type=Registered))
            about = await runs.get(kept_at)
            assert about is not None
            assert source.encode() in about.value
            assert source.encode() not in registered.value, "which is written again with each host"
            gate.touch()
            found = await called(taker)
            assert (found["token"], found["status"]["description"]) == (token, "Accepted")
            shown = await get(two.client, f"{place}?fields=*")
            assert (shown["stdout"], shown["stderr"], shown["stdin"]) == ("in", "err\n", "in")
            assert shown["created_at"] <= shown["finished_at"]
            assert {name: shown[name] for name in found} | CONTENTS == found | CONTENTS
            async with two.client.delete(f"/runs/{run_id}") as answer:
                assert answer.status == 204
            assert await runs.get(kept_at) is None
            async with two.client.get("/judge0/submissions/x") as answer:
                assert answer.status == 404

    in_fleet(scenario)
