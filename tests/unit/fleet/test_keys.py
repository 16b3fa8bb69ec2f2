"""API keys of a fleet: made once, and their limits hold over all gateways and hosts."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from mayfly.cli.main import cli
from mayfly.errors import ConfigError, KeyLimitError
from mayfly.fleet import accounts
from mayfly.fleet.accounts import Accounts
from mayfly.fleet.engine import Engine
from mayfly.fleet.keys import KeyChange, change
from mayfly.fleet.message import Head, Registered, encode, id_of
from mayfly.fleet.results import Results
from mayfly.host import keys
from mayfly.host.admission import Tenant
from mayfly.host.snippet import Mode
from mayfly.schema import msgspec
from mayfly.units import MIB
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, in_fleet
from tests.unit.fleet.test_fleet import body, events, run, start, until_output


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


async def refused(client: aiohttp.ClientSession, source: str) -> dict[str, Any]:
    async with client.post("/start", json=body(source)) as answer:
        found: dict[str, Any] = await answer.json()
        assert answer.status == 429, found
        error: dict[str, Any] = found["error"]
        return error


async def make(fleet: Fleet, name: str, **limits: int) -> str:
    """A key of the fleet, and its token."""
    key, token = keys.make(name, moves=False, **limits)
    async with Engine.connect((fleet.server.url,), "operator") as engine:
        await change(engine, KeyChange(add=msgspec.json.encode(key)))
    return token


async def until_status(client: aiohttp.ClientSession, status: int) -> None:
    async with asyncio.timeout(30):
        while True:
            async with client.get("/languages") as answer:
                if answer.status == status:
                    return
            await asyncio.sleep(0.05)


def test_a_key_is_made_once_and_its_limits_hold_at_all_gateways(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        for name in ("h1", "h2"):
            await fleet.add_host(name)
        async with fleet.two_gateways() as (one, two):
            token = await make(fleet, "site", concurrency=2)
            with pytest.raises(ConfigError):
                await make(fleet, "site")
            async with one.client_of(token) as here, two.client_of(token) as there:
                for client in (here, there):
                    await until_status(client, 200)
                gate = tmp_path / "gate"
                source = f"while [ ! -e {gate} ]; do sleep 0.05; done; echo end"
                first, second = await start(here, source), await start(there, source)
                for client in (here, there):
                    assert (await refused(client, "true"))["code"] == "key_limit"
                async with one.client.post("/run", json=body("true")) as answer:
                    assert answer.status == 200, "the operator has no limit"
                gate.touch()
                for run_id, client in ((first, there), (second, here)):
                    assert (await events(client, run_id))[-1]["event"] == "done"
                found = await asyncio.gather(*(run(client, "echo both") for client in (here, there)))
                assert {each["steps"][1]["stdout"] for each in found} == {"both\n"}
                listed = await asyncio.to_thread(_cli, "list", "--json", "--fleet", fleet.server.url)
                assert [key["name"] for key in json.loads(listed)] == ["site"]
                await asyncio.to_thread(_cli, "revoke", "site", "--fleet", fleet.server.url)
                for client in (here, there):
                    await until_status(client, 401)
            other = (await asyncio.to_thread(_cli, "create", "rated", "--rate", "3", "--fleet", fleet.server.url)).splitlines()[0]
            async with one.client_of(other) as here, two.client_of(other) as there:
                for client in (here, there):
                    await until_status(client, 200)
                for client in (here, there, here):
                    await run(client, "true")
                assert "3 runs a minute" in (await refused(there, "true"))["message"]

    in_fleet(scenario)


def _cli(*words: str) -> str:
    done = CliRunner().invoke(cli, ["key", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_that_is_repeated_elsewhere_is_charged_once(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            token = await make(fleet, "site", concurrency=1)
            async with one.client_of(token) as here, two.client_of(token) as there:
                for client in (here, there):
                    await until_status(client, 200)
                asked = [run(client, "echo same", key="again") for client in (here, there, here, there)]
                assert len({found["id"] for found in await asyncio.gather(*asked)}) == 1
                run_id = await start(here, "echo begun; sleep 600")
                await until_output(two, run_id, "begun")
                await refused(there, "true")
                async with there.delete(f"/runs/{run_id}") as answer:
                    assert answer.status == 204
                assert (await run(there, "true"))["status"] == "ok"

    in_fleet(scenario)


def registered(run_id: str, owner: str, host: str = "h1", delivered: int = 1) -> bytes:
    head = Head(id=run_id, language="toy", version="1.0", mode=Mode.EVENTS, step_names=(), owner=owner)
    return encode(Registered(head=head, token="t", gateway="dead", arch="x", lang="toy", host=host, delivered=delivered, charged=True))


def test_what_a_dead_gateway_charged_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        async with Engine.connect((fleet.server.url,), "g1") as engine:
            buckets = await engine.prepare(1)
            results = Results(buckets.results)
            dead, alive = (Accounts(engine, buckets.accounts, buckets.runs, results) for _ in range(2))
            tenant = Tenant("k1", concurrency=3, memory=1024 * MIB)
            for name in ("unregistered", "ended", "running"):
                assert await dead.take(tenant, name, 128 * MIB)
                assert await dead.take(tenant, name, 128 * MIB), "the same run is charged once"
            for name in ("ended", "running"):
                await buckets.runs.create(name, registered(name, "k1"))
            with pytest.raises(KeyLimitError):  # any of them may still be on its way
                await alive.take(tenant, "new", 128 * MIB)
            await results.create("ended", b"")
            monkeypatch.setattr(accounts, "SWEEP_S", 0.0)
            assert await alive.take(tenant, "new", 128 * MIB), "one has its result"
            await buckets.runs.create("new", registered("new", "k1"))
            with pytest.raises(KeyLimitError):
                await alive.take(tenant, "another", 128 * MIB)
            monkeypatch.setattr(accounts, "GRACE_S", 0.0)
            assert await alive.take(tenant, "another", 128 * MIB), "one was never registered"
            await buckets.runs.create("another", registered("another", "k1"))
            with pytest.raises(KeyLimitError):
                await alive.take(tenant, "third", 128 * MIB)
            await alive.give_back("k1", "running")
            assert await alive.take(tenant, "third", 128 * MIB)
            await buckets.runs.create("third", registered("third", "k1", host=""))
            await engine.ensure_consumer("x", "toy", replicas=1, ack_wait_s=5)
            await engine.put("x", "toy", b"", id_of("third", "t"))
            with pytest.raises(KeyLimitError):
                await alive.take(tenant, "fourth", 128 * MIB)
            await alive.give_back("k1", "new")
            await buckets.runs.create("fourth", registered("fourth", "k1", host=""))
            assert await alive.take(tenant, "fourth", 128 * MIB)
            assert await alive.take(tenant, "fifth", 128 * MIB), "one was registered, and not queued"
            assert await buckets.runs.get("fourth") is None
            assert await buckets.runs.get("third") is not None
            await alive.give_back("k1", "fifth")
            answers: list[asyncio.Future[None]] = []
            await buckets.runs.create("direct", registered("direct", "k1", host="h1", delivered=0))
            assert await alive.take(tenant, "direct", 128 * MIB)
            assert await alive.take(tenant, "sixth", 128 * MIB), "who had it is gone"
            await alive.give_back("k1", "sixth")
            await alive.give_back("k1", "direct")
            await engine.listen("ping.h1", lambda message: answers.append(asyncio.ensure_future(engine.send(message.reply, b""))))
            assert await alive.take(tenant, "direct", 128 * MIB)
            with pytest.raises(KeyLimitError):
                await alive.take(tenant, "sixth", 128 * MIB)
            assert answers
            await alive.give_back("k1", "direct")
            await engine.listen("ping.h2", lambda _: None)
            await buckets.runs.create("silent", registered("silent", "k1", host="h2", delivered=0))
            assert await alive.take(tenant, "silent", 128 * MIB)
            with pytest.raises(KeyLimitError):  # who has it hangs
                await alive.take(tenant, "sixth", 128 * MIB)

    in_fleet(scenario)


def test_gateways_that_charge_at_once_keep_to_the_limit() -> None:
    async def scenario(fleet: Fleet) -> None:
        async with Engine.connect((fleet.server.url,), "g1") as one, Engine.connect((fleet.server.url,), "g2") as two:
            gateways = []
            for engine in (one, two):
                buckets = await engine.prepare(1)
                gateways.append(Accounts(engine, buckets.accounts, buckets.runs, Results(buckets.results)))
            tenant = Tenant("k1", concurrency=8)

            async def take(number: int) -> bool:
                try:
                    return await gateways[number % 2].take(tenant, f"run{number}", 1)
                except KeyLimitError:
                    return False

            taken = await asyncio.gather(*(take(number) for number in range(24)))
            assert sum(taken) == 8
            await asyncio.gather(*(gateways[number % 2].give_back("k1", f"run{number}") for number in range(24)))
            assert sum(await asyncio.gather(*(take(number) for number in range(24, 32)))) == 8

    in_fleet(scenario)
