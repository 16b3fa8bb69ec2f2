"""Servers that are up and store nothing, as their disks are full."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from mayfly.fleet import server
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import RefusedError, translated
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, in_fleet
from tests.unit.fleet.test_fleet import body, get, run
from tests.unit.fleet.test_keys import make, until_status


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    monkeypatch.setattr(server, "CONFIG", server.CONFIG.replace("max_file: 8G", "max_file: 4M"))


async def fill(engine: Engine) -> None:
    """Leave no room, as others of the same servers may."""
    await engine._api("STREAM.CREATE.OTHERS", {"name": "OTHERS", "subjects": ["others"], "storage": "file"})
    for size in (100_000, 1000, 1):
        with pytest.raises(RefusedError), translated():
            while True:
                await engine._stream.publish("others", bytes(size))


async def until_ready(client: aiohttp.ClientSession, status: int) -> None:
    async with asyncio.timeout(30):
        while (await client.get("/readyz")).status != status:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("size", [10, 600_000], ids=["told_at_once", "told_in_pieces"])
def test_nothing_is_taken_that_cannot_be_stored(size: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way, Engine.connect((fleet.server.url,), "other") as other:
            assert (await run(way.client, "echo before"))["status"] == "ok"
            await fill(other)
            found = await run(way.client, f"head -c {size} /dev/zero")
            assert found["error"]["code"] == "fleet_failed", "who waits is told"
            assert way.runner.under_way == 0
            await until_ready(way.client, 503)
            assert (await get(way.client, "/healthz"))["quorum"] is False
            async with way.client.post("/run", json=body("echo more")) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (503, "fleet_failed")
            await other._api("STREAM.DELETE.OTHERS", {})
            await until_ready(way.client, 200)
            assert (await run(way.client, "echo after"))["status"] == "ok"

    in_fleet(scenario)


def test_a_key_that_cannot_be_charged_is_free_when_there_is_room() -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with (
            fleet.gateway("g1") as way,
            Engine.connect((fleet.server.url,), "other") as other,
            way.client_of(await make(fleet, "site", concurrency=1)) as client,
        ):
            await until_status(client, 200)
            await fill(other)
            async with client.post("/run", json=body("echo refused")) as answer:
                assert answer.status == 503
            await other._api("STREAM.DELETE.OTHERS", {})
            await until_ready(way.client, 200)
            async with client.post("/run", json=body("echo after")) as answer:
                assert (await answer.json())["status"] == "ok"

    in_fleet(scenario)
