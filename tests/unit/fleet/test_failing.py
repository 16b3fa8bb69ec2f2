"""A host that can carry nothing out is always free, and takes no more than a few runs."""

import asyncio
import collections
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import HostError, NetworkError
from mayfly.fleet import failing
from mayfly.fleet.failing import IN_A_ROW, MANY, Failing
from mayfly.functions.service import Functions
from mayfly.units import MIB
from tests.kit.fleet_kit import Fleet, in_fleet, until
from tests.kit.functions_kit import install_echo
from tests.unit.fleet.test_fleet import events, get, run, start
from tests.unit.fleet.test_functions import ask, create


@pytest.fixture(autouse=True)
def echo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_echo(monkeypatch, tmp_path)


def test_a_host_whose_runs_fail_leaves_them_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: collections.Counter[str] = collections.Counter()

    async def fail(_: Any, run: Any, *__: Any) -> Any:
        tried[run.id] += 1
        raise HostError("its disk is full")

    async def scenario(fleet: Fleet) -> None:
        monkeypatch.setattr(failing, "FIRST_S", 60.0)
        monkeypatch.setattr(await fleet.add_host("h1"), "_machine", fail)
        await fleet.add_host("h2", memory_budget=512 * MIB)
        async with fleet.gateway("g1", queue=100) as way:

            async def one(number: int) -> str:
                if number % 2:
                    return str((await run(way.client, "sleep 0.1"))["status"])
                run_id = await start(way.client, "sleep 0.1")
                await events(way.client, run_id)
                return str((await get(way.client, f"/runs/{run_id}"))["status"])

            assert await asyncio.gather(*map(one, range(24))) == ["ok"] * 24
            assert IN_A_ROW <= len(tried) <= 16
            assert max(tried.values()) == 1, "what failed here is for others"

    in_fleet(scenario)


def test_a_host_whose_guests_do_not_come_up_leaves_requests_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, tried = Functions.attempt, collections.Counter[str]()

    async def scenario(fleet: Fleet) -> None:
        monkeypatch.setattr(failing, "FIRST_S", 60.0)
        one = await fleet.add_host("h1")

        async def attempting(functions: Functions, asked: Any, *more: Any) -> Any:
            if functions._admission is one.admission:
                tried[asked.request_id] += 1
                return HostError("its disk is full"), False
            return await attempt(functions, asked, *more)

        async with fleet.gateway("g1") as way:
            await create(fleet, "echo", queue_s=60, concurrency_limit=1)
            await until(lambda: bool(way.runner.functions.all()))
            monkeypatch.setattr(Functions, "attempt", attempting)
            await fleet.add_host("h2")
            assert await asyncio.gather(*(ask(way.client, "echo", b"!sleep 0.1") for _ in range(12))) == [b"!sleep 0.1"] * 12
            assert len(tried) == IN_A_ROW and max(tried.values()) == 1

    in_fleet(scenario)


def test_a_host_tries_again_after_a_while_each_time_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing, "FIRST_S", 10.0)
    monkeypatch.setattr(failing, "LONGEST_S", 15.0)
    error = HostError("its disk is full")

    async def scenario() -> None:
        now = 100.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        known = Failing()
        for number in range(10):
            known.failed("py", f"network {number}", NetworkError("it has none"), counts=False)
        assert known.leaves("network 9") and known.is_well("py")
        known.failed("py", "1", error)
        known.failed("py", "2", error)
        known.done("py")
        for number in range(IN_A_ROW):
            assert known.most("py") == MANY
            known.failed("py", f"{number}", error)
        known.failed("py", "was under way", error)
        assert (known.most("py"), known.most("c"), known.leaves("0"), known.leaves("new")) == (0, MANY, True, False)
        now += 11
        assert (known.most("py"), known.is_well("py"), known.leaves("0")) == (1, False, False)
        for _ in range(2):
            known.failed("py", "probe", error)
            now += 14
            assert known.most("py") == 0
            now += 2
            assert known.most("py") == 1
        known.done("py")
        assert known.most("py") == MANY and known.is_well("py")

    asyncio.run(scenario())
