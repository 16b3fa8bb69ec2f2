"""A run that the servers give out once more goes on at the host that has it, for all who follow.
None comes to a host that stops.
"""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from mayfly.fleet.engine import Delivery, Engine
from mayfly.fleet.message import Registered, decode
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, Way, in_fleet
from tests.unit.fleet.test_fleet import events, output, start, until_output


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


async def registered(way: Way, run_id: str) -> Registered:
    entry = await way.runner._registry.get(run_id)
    assert entry is not None
    return decode(entry.value, type=Registered)


@pytest.mark.parametrize("is_there", [True, False], ids=["its gateway is there", "its gateway is gone"])
def test_a_run_that_is_given_out_again_goes_on_for_all(is_there: bool) -> None:
    """Those who followed it before, and one who does so now; it is the same attempt."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g2") as two:
            async with fleet.gateway("g1") as one:
                run_id = await start(one.client, "while read line; do echo got $line; done", interactive=True)
                await until_typed(one, two, run_id, "1")
                (ack,) = (follow.mirror.ack for follow in one.runner._follows)
                if is_there:
                    await give_back(fleet, ack)
                    await until_given(two, run_id)
                    await until_typed(one, one, run_id, "2")
            if not is_there:
                await give_back(fleet, ack)
                await until_given(two, run_id)
            await until_typed(two, two, run_id, "3")
            async with fleet.gateway("g3") as three:
                await until_typed(three, three, run_id, "4")
                async with three.client.post(f"/runs/{run_id}/stdin?eof=true", data=b"") as answer:
                    assert answer.status == 204
                for way in (two, three):
                    seen = await events(way.client, run_id)
                    assert output(seen) == "".join(f"got {word}\n" for word in ("1", *("2" * is_there), "3", "4"))
                    assert not [event for event in seen if event["event"] == "attempt"]
                assert (await registered(two, run_id)).attempts == 1

    async def until_typed(way: Way, sees: Way, run_id: str, word: str) -> None:
        async with way.client.post(f"/runs/{run_id}/stdin", data=f"{word}\n") as answer:
            assert answer.status == 204
        await until_output(sees, run_id, f"got {word}")

    async def give_back(fleet: Fleet, ack: str) -> None:
        async with Engine.connect((fleet.server.url,), "operator") as engine:
            await engine.give_back(ack)

    async def until_given(way: Way, run_id: str) -> None:
        while (await registered(way, run_id)).delivered < 2:
            await asyncio.sleep(0.02)

    in_fleet(scenario)


def test_what_a_host_gives_back_that_stops_comes_to_another() -> None:
    """Although the first one has asked for more before."""

    async def scenario(fleet: Fleet) -> None:
        async with Engine.connect((fleet.server.url,), "h1") as h1, Engine.connect((fleet.server.url,), "h2") as h2:
            given: dict[Engine, asyncio.Queue[Delivery]] = {engine: asyncio.Queue() for engine in (h1, h2)}

            def hear(engine: Engine, _: str, delivery: Delivery | None) -> None:
                if delivery is not None:
                    given[engine].put_nowait(delivery)

            for engine in given:
                await engine.listen_for_work(partial(hear, engine))
            await h1.ensure_consumer("x", "toy", replicas=1, ack_wait_s=600)
            for _ in range(2):
                await h1.pull("x", "toy", priority=0, expires_s=60)
            await h1.put("x", "toy", b"work", "once")
            first = await given[h1].get()
            await h1.hear_no_work()
            await h1.give_back(first.ack)
            await h2.pull("x", "toy", priority=0, expires_s=60)
            assert ((await given[h2].get()).delivered, given[h1].empty()) == (2, True)

    in_fleet(scenario)
