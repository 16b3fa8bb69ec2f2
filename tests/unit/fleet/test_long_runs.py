"""Runs that last longer than what is known of a run is kept."""

import asyncio
from pathlib import Path

import pytest

from mayfly.fleet import buckets, streams, worker
from mayfly.fleet.engine import Delivery, Engine
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, in_fleet, until
from tests.kit.functions_kit import let_toys_load_functions
from tests.unit.fleet.test_fleet import events, get, output, start
from tests.unit.fleet.test_functions import create

AGE_S = 3


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


def test_what_is_known_of_what_lasts_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A gateway that has never heard of a run, or a request, finds it, and its result when it is
    over.
    """
    let_toys_load_functions(tmp_path)
    monkeypatch.setattr(buckets, "MAX_AGE_S", AGE_S)
    monkeypatch.setattr(worker, "RENEW_S", AGE_S / 6)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1", run_wall_s=60)
        async with fleet.gateway("g1") as one:
            await create(fleet, "echo", timeout_s=60)
            await until(lambda: bool(one.runner.functions.all()))
            run_id = await start(one.client, f"while [ ! -e {tmp_path / 'gate'} ]; do sleep 0.05; done; echo ended")
            async with one.client.post("/functions/echo?async", data=b"!sleep %d" % (1.7 * AGE_S)) as answer:
                place = answer.headers["Location"]
            await until(lambda: fleet.hosts["h1"].under_way == 1)
            await asyncio.sleep(1.5 * AGE_S)
            async with fleet.gateway("g2") as two:
                async with two.client.get(f"/runs/{run_id}") as answer:
                    found = await answer.json()
                    assert (answer.status, found.get("status")) == (200, None), found
                async with two.client.get(place) as answer:
                    assert answer.status == 202, await answer.text()
                (tmp_path / "gate").touch()
                assert output(await events(two.client, run_id)) == "ended\n"
                assert (await get(two.client, f"/runs/{run_id}"))["status"] == "ok"
                async with two.client.get(place, params={"wait": "true"}) as answer:
                    assert answer.status == 200, await answer.text()

    in_fleet(scenario)


def test_a_stream_that_keeps_work_for_less_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in it stays."""

    async def scenario(fleet: Fleet) -> None:
        async def ages() -> list[float]:
            info = await one._api("STREAM.INFO.RUNS_mips", {})
            return [info["config"]["max_age"] / streams.NS, info["state"]["messages"]]

        async with Engine.connect((fleet.server.url,), "g1") as one:
            for age_s, expected in ((3600, 3600), (streams.WORK_AGE_S, streams.WORK_AGE_S), (3600, streams.WORK_AGE_S)):
                monkeypatch.setattr(streams, "WORK_AGE_S", age_s)
                await one.ensure_consumer("mips", "toy", replicas=1, ack_wait_s=5)
                await one.put("mips", "toy", b"work", "the only one")
                assert await ages() == [expected, 1]
            came: asyncio.Queue[Delivery | None] = asyncio.Queue()
            await one.listen_for_work(lambda _, delivery: came.put_nowait(delivery))
            await one.pull("mips", "toy", priority=0, expires_s=5)
            delivery = await came.get()
            assert delivery is not None and delivery.data == b"work"

    in_fleet(scenario)
