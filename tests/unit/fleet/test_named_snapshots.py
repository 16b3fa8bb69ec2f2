"""Runs that name a snapshot go to hosts that have it."""

import asyncio
from pathlib import Path

import pytest

from mayfly.fleet import worker
from mayfly.fleet.message import queue_of
from mayfly.guests.start import StartKind
from mayfly.units import MIB
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, in_fleet, until
from tests.kit.named_snapshots import make_snapshot
from tests.unit.fleet.test_fleet import body, events, output, run, start

ANOTHER = 160 * MIB
"""Memory of machines that cannot go on from the snapshot."""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    monkeypatch.setattr(worker, "LOOK_S", 0.2)


def test_runs_that_name_a_snapshot_go_where_it_is() -> None:
    async def scenario(fleet: Fleet) -> None:
        h1 = await fleet.add_host("h1")
        h2 = await fleet.add_host("h2", memory=ANOTHER)
        await make_snapshot(h1, "ours")
        async with fleet.two_gateways() as (one, two):
            await until(lambda: all("ours" in way.runner.roll.snapshots() for way in (one, two)))
            found = await asyncio.gather(*(run((one, two)[n % 2].client, f"echo {n}", snapshot="ours") for n in range(6)))
            assert [each["steps"][1]["stdout"] for each in found] == [f"{n}\n" for n in range(6)]
            assert {each["start"] for each in found} == {StartKind.RESTORED}
            assert not list(h2.runs)
            assert (await run(two.client, "echo any"))["start"] == StartKind.COLD

    in_fleet(scenario)


def test_a_run_waits_for_a_host_with_its_snapshot() -> None:
    async def scenario(fleet: Fleet) -> None:
        await make_snapshot(await fleet.add_host("h1"), "ours")
        async with fleet.gateway("g1") as way:
            await until(lambda: "ours" in way.runner.roll.snapshots())
            await fleet.remove_host("h1")
            await fleet.add_host("h2", memory=ANOTHER)
            run_id = await start(way.client, "echo end", snapshot="ours")
            assert (await run(way.client, "echo other"))["status"] == "ok"
            assert not (await way.runner.find(run_id)).done.is_set()
            await fleet.add_host("h3")
            assert output(await events(way.client, run_id)) == "end\n"

    in_fleet(scenario)


@pytest.mark.parametrize(("name", "language"), [("theirs", "toy"), ("ours", "py")])
def test_a_snapshot_that_no_host_has(name: str, language: str) -> None:
    async def scenario(fleet: Fleet) -> None:
        await make_snapshot(await fleet.add_host("h1"), "ours")
        async with fleet.gateway("g1") as way:
            await until(lambda: "ours" in way.runner.roll.snapshots())
            asked = {**body("", snapshot=name), "language": language}
            for path in ("/run", "/start"):
                async with way.client.post(path, json=asked) as answer:
                    error = (await answer.json())["error"]
                    assert (answer.status, error["code"]) == (404, "snapshot_not_found")
                    assert ("ours" in error["hint"]) == (language == "toy")

    in_fleet(scenario)


def test_names_that_would_be_one_word_are_told_apart() -> None:
    queues = {queue_of("rust@1.85", name) for name in ("a.b", "a@b", "a_b", "")} | {queue_of("rust@1.86", "a.b")}
    assert len(queues) == 5
    assert queue_of("rust@1.85") == "rust-1_85"
    assert all(len(queue.split(".")) == 1 for queue in queues)
