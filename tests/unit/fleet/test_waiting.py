"""Runs that wait for long, whose gateway is gone, and which nobody asks for."""

import asyncio
from pathlib import Path

import pytest

from mayfly.errors import SnapshotError
from mayfly.fleet import buckets, queues, roll, waiting, watch
from mayfly.fleet.message import name_of, queue_of
from mayfly.fleet.mirror import restore
from mayfly.guests.start import Guest
from mayfly.images.store import Images
from mayfly.units import MIB
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until
from tests.kit.named_snapshots import make_snapshot
from tests.unit.fleet.test_fleet import events, output, start, until_output

ANOTHER = 160 * MIB
"""Memory of machines that cannot go on from the snapshot."""
AGE_S = 3


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    monkeypatch.setattr(queues, "SWEEP_S", 0.2)


@pytest.mark.parametrize("gone", [False, True], ids=["its host failed", "its host is gone"])
def test_a_run_from_whose_snapshot_no_host_can_go_on_ends(gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits as its snapshot's host has failed with it, or has gone."""
    monkeypatch.setattr(watch, "GONE_S", 1000)
    monkeypatch.setattr(roll, "KNOWN_S", 1.0)

    async def fail(*_: object) -> Guest:
        raise SnapshotError("its processor is another one")

    async def scenario(fleet: Fleet) -> None:
        host = await fleet.add_host("h1")
        await make_snapshot(host, "ours")
        async with fleet.gateway("g2") as two:
            async with fleet.gateway("g1") as one:
                await until(lambda: all("ours" in way.runner.roll.snapshots() for way in (one, two)))
                if gone:
                    run_id = await start(one.client, "echo begun; sleep 600", snapshot="ours")
                    await until_output(one, run_id, "begun")
                    await fleet.add_host("h2", memory=ANOTHER)
                    await fleet.remove_host("h1")
                else:
                    monkeypatch.setattr(host, "_machine", fail)
                    run_id = await start(one.client, "true", snapshot="ours")
                    await until(lambda: bool(one.runner.roll.unfit(*next(iter(one.runner._follows)).lang)))
            assert two.runner._follows.get(run_id) is None, "nobody asks it"
            monkeypatch.setattr(watch, "GONE_S", 0.5)
            async with asyncio.timeout(30):
                while (stored := await two.runner._results.get(run_id)) is None:
                    await asyncio.sleep(0.05)
            error = restore(stored).outcome.error
            assert error is not None and error.code == ("snapshot_not_found" if gone else "snapshot_failed")

    in_fleet(scenario)


def test_what_is_known_of_a_run_is_kept_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MAX_AGE_S", AGE_S)
    monkeypatch.setattr(waiting, "RENEW_S", AGE_S / 6)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g2") as two:
            async with fleet.gateway("g1") as one:
                await fleet.remove_host("h1")
                place = await poison(one)
                run_id = await start(one.client, "echo ended")
            await asyncio.sleep(1.5 * AGE_S)
            async with two.client.get(f"/runs/{run_id}") as answer:
                assert answer.status == 200, await answer.text()
            assert await two.runner._engine.holds(*place, "poison")
            await fleet.add_host("h2")
            assert output(await events(two.client, run_id)) == "ended\n"

    async def poison(way: Way) -> tuple[str, str]:
        """Work before the run's that nobody can read."""
        image = Images().find("toy")
        place = image.manifest.arch, queue_of(name_of(image))
        await way.runner._queues.ensure(*place)
        await way.runner._engine.put(*place, b"\xc1", "poison")
        return place

    in_fleet(scenario)
