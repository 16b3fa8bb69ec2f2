"""Functions through a fleet: created once, asked at any gateway, answered by one host."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mayfly.errors import FleetError, FunctionFailedError, UnknownFunctionError
from mayfly.fleet.engine import Delivery, Engine
from mayfly.fleet.functions import creating, gateway
from mayfly.fleet.functions.messages import Asked, Change, FleetFunction, make, queue_of
from mayfly.fleet.keys import KeyChange
from mayfly.fleet.keys import change as change_keys
from mayfly.fleet.message import Begin, Verdict, decode, encode
from mayfly.fleet.results import Results
from mayfly.functions.spec import FunctionSpec
from mayfly.functions.store import make_function
from mayfly.host import keys
from mayfly.schema import msgspec, replace
from mayfly.units import MIB
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until
from tests.kit.functions_kit import install_echo


@pytest.fixture(autouse=True)
def echo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_echo(monkeypatch, tmp_path)


async def change(fleet: Fleet, wanted: Change) -> list[FleetFunction]:
    async with Engine.connect((fleet.server.url,), "operator") as engine:
        return await creating.change(engine, wanted)


async def create(fleet: Fleet, name: str, source: bytes = b"true", **fields: Any) -> list[FleetFunction]:
    spec = FunctionSpec(name=name, language="toy", code="/code", **fields)
    return await change(fleet, Change(spec=msgspec.json.encode(spec), code={"": source}))


async def ask(client: aiohttp.ClientSession, name: str, payload: bytes, status: int = 200) -> bytes:
    async with client.post(f"/functions/{name}", data=payload) as answer:
        data = await answer.read()
        assert answer.status == status, data
        return data


def test_a_function_is_created_once_and_asked_anywhere(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            await ask(one.client, "echo", b"x", 404)
            with pytest.raises(FunctionFailedError):
                await create(fleet, "echo", b"if")
            made = await create(fleet, "echo", concurrency_limit=2)
            assert [each.function.name for each in made] == ["echo"]
            await until(lambda: bool(one.runner.functions.all()) and bool(two.runner.functions.all()))
            assert await ask(one.client, "echo", b"hello") == b"hello"
            answers = await asyncio.gather(*(ask(way.client, "echo", b"%d" % number) for number in range(8) for way in (one, two)))
            assert sorted(answers) == sorted(b"%d" % number for number in range(8) for _ in range(2))
            async with one.client.post("/functions/echo?async", data=b"later") as answer:
                assert answer.status == 202
                place = answer.headers["Location"]
            async with two.client.get(place, params={"wait": "true"}) as answer:
                assert (answer.status, await answer.read()) == (200, b"later")
            async with two.client.get("/functions/echo/requests/" + "0" * 32) as answer:
                assert answer.status == 404
            await ask(one.client, "echo", b"!raise", 500)
            await ask(one.client, "echo", b"!exit", 502)
            async with two.client.get("/functions") as answer:
                listed = await answer.json()
            figures = listed["functions"][0]["figures"]
            assert (listed["functions"][0]["name"], figures["ok"], figures["exceptions"]) == ("echo", 18, 1)
            before = made[0].key
            made = await create(fleet, "echo", b"true # another")
            assert made[0].key != before
            await until(lambda: one.runner.functions.find("echo").code_digest == made[0].function.code_digest)
            assert await ask(one.client, "echo", b"again") == b"again"
            assert await change(fleet, Change(remove="echo")) == []
            await until(lambda: not one.runner.functions.all())
            await ask(one.client, "echo", b"x", 404)
            with pytest.raises(UnknownFunctionError):
                await change(fleet, Change(remove="echo"))

    in_fleet(scenario)


def test_a_function_s_queue_goes_with_it(tmp_path: Path) -> None:
    """And comes with another of its name, at whichever gateway."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            for number in range(2):
                await create(fleet, "echo", b"true # %d" % number)
                for way in (one, two):
                    await until(lambda way=way: bool(way.runner.functions.all()))  # type: ignore[misc]
                    assert await ask(way.client, "echo", b"hello") == b"hello"
                made = one.runner._lists.functions.all[0]
                assert (await one.runner._engine.load(made.arch, queue_of("echo"))).waiting == 0
                await change(fleet, Change(remove="echo"))
                with pytest.raises(FleetError, match="consumer not found"):
                    await one.runner._engine.load(made.arch, queue_of("echo"))
                for way in (one, two):
                    await until(lambda way=way: not way.runner.functions.all())  # type: ignore[misc]

    in_fleet(scenario)


def test_a_function_of_another_version_is_in_nobody_s_way() -> None:
    """It stays while others are created and removed, and can be replaced and removed itself."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            theirs = [
                FleetFunction(about=b'{"spec": {"name": "%s", "newer": 1}}' % name, arch="x86_64", memory=1, key=name.decode())
                for name in (b"theirs", b"replaced")
            ]
            shared = way.runner._lists.functions
            await shared._bucket.put("functions", encode(theirs))
            made = await create(fleet, "ours")
            assert [each.name for each in made] == ["theirs", "replaced", "ours"]
            assert [each.name for each in await create(fleet, "replaced")] == ["theirs", "ours", "replaced"]
            assert [each.name for each in await change(fleet, Change(remove="ours"))] == ["theirs", "replaced"]
            assert [each.name for each in await change(fleet, Change(remove="theirs"))] == ["replaced"]
            with pytest.raises(UnknownFunctionError):
                await change(fleet, Change(remove="theirs"))

    in_fleet(scenario)


def test_a_build_that_knows_no_saves_reads_what_is_created() -> None:
    """Unless they are asked for: such a build could not keep to that."""
    known = {"name", "language", "code", "entry", "memory", "vcpus", "concurrency_limit", "timeout_s", "env", "network"}
    known |= {"keep_alive_s", "min_guests", "queue", "queue_s", "snapshot"}
    spec = FunctionSpec(name="hello", language="toy", code="/code")
    for wanted, more in ((spec, set[str]()), (replace(spec, checkpoint_every_s=5), {"checkpoint_every_s"})):
        made = make(make_function(wanted, {"a": b"b"}), "x86_64", 1)
        assert set(msgspec.json.decode(made.about)["spec"]) == known | more
        assert (made.function.spec, made.name) == (wanted, "hello")
    assert FleetFunction(about=b"\xc1", arch="x86_64", memory=1, key="k").name == ""


def test_a_request_that_outlasts_its_machine_has_the_time_for_that() -> None:
    spec = FunctionSpec(name="hello", language="toy", code="/code", timeout_s=600)
    assert gateway.longest_s(spec) == 600
    assert gateway.longest_s(replace(spec, checkpoint_every_s=5)) == 2400


def test_what_a_host_has_begun_no_other_does() -> None:
    """A request whose host is given it once more, or another host, fails."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way, Engine.connect((fleet.server.url,), "h9") as engine:
            (made,) = await create(fleet, "echo", timeout_s=60, queue_s=60)
            await until(lambda: bool(way.runner.functions.all()))
            await fleet.remove_host("h1")
            asked = asyncio.create_task(ask(way.client, "echo", b"x", 502))
            given: asyncio.Queue[Delivery] = asyncio.Queue()
            await engine.listen_for_work(lambda _, delivery: given.put_nowait(delivery) if delivery else None)
            verdicts = []
            for _ in range(2):
                while given.empty():
                    await engine.pull(made.arch, queue_of("echo"), priority=0, expires_s=1)
                    await asyncio.sleep(0.2)
                delivery = given.get_nowait()
                request = decode(delivery.data, type=Asked)
                question = encode(Begin(token=request.token, delivered=delivery.delivered))
                verdicts.append(decode(await engine.ask(f"fn.begin.h9.{request.id}", question), type=Verdict).verdict)
                await engine.give_back(delivery.ack)  # as for a host that died
            assert verdicts == ["go", "done"]
            problem = json.loads(await asked)["error"]
            assert (problem["code"], "began" in problem["message"]) == ("function_crashed", True)

    in_fleet(scenario)


def test_a_key_s_limits_hold_for_functions_too() -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            await create(fleet, "echo", timeout_s=60, concurrency_limit=2)
            await until(lambda: bool(one.runner.functions.all()) and bool(two.runner.functions.all()))
            key, token = keys.make("site", concurrency=1)
            async with Engine.connect((fleet.server.url,), "operator") as engine:
                await change_keys(engine, KeyChange(add=msgspec.json.encode(key)))
            await until(lambda: bool(one.runner.shared_keys) and bool(two.runner.shared_keys))
            async with one.client_of(token) as here, two.client_of(token) as there:
                first = asyncio.create_task(ask(here, "echo", b"!sleep 2"))
                await until(lambda: any(waiting.number for waiting in one.runner.functions._waiting.values()))
                assert json.loads(await ask(there, "echo", b"x", 429))["error"]["code"] == "key_limit"
                await first
                assert await ask(there, "echo", b"x") == b"x"

    in_fleet(scenario)


def test_a_host_that_stops_gives_back_what_no_guest_has() -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1", memory_budget=400 * MIB)  # has room for one guest
        async with fleet.gateway("g1") as way:
            await create(fleet, "echo", timeout_s=60, queue_s=60, concurrency_limit=2, memory=256 * MIB)
            await until(lambda: bool(way.runner.functions.all()))
            begun = asyncio.create_task(ask(way.client, "echo", b"!sleep 60", 503))
            await until(lambda: fleet.hosts["h1"].health().memory_used > 0 and any(_begun(way)))
            waiting = asyncio.create_task(ask(way.client, "echo", b"waits"))
            await until(lambda: way.runner.functions.under_way == 2)
            await fleet.add_host("h2")
            assert await waiting == b"waits"
            await fleet.remove_host("h1")
            assert json.loads(await begun)["error"]["code"] == "stopping", "it had begun: nobody does it again"

    in_fleet(scenario)


def _begun(way: Way) -> list[bool]:
    return [one.begun for one in way.runner.functions._waiting.values()]


def test_a_request_waits_for_a_host_and_no_longer_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "LOOK_S", 0.2)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            await create(fleet, "short", queue_s=0.5)
            await create(fleet, "long", b"true # long", queue_s=60)
            await until(lambda: len(way.runner.functions.all()) == 2)
            await fleet.remove_host("h1")
            data = json.loads(await ask(way.client, "short", b"x", 503))
            assert data["error"]["code"] == "resource_exhausted"
            waiting = asyncio.create_task(ask(way.client, "long", b"there"))
            await until(lambda: way.runner.functions.under_way == 1)
            await fleet.add_host("h2")
            assert await waiting == b"there"

    in_fleet(scenario)


def test_what_has_failed_for_want_of_a_host_no_host_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host asks while the gateway stores that no host had begun."""
    verdicts: list[str] = []
    store = Results.create

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way, Engine.connect((fleet.server.url,), "h9") as engine:
            (made,) = await create(fleet, "echo", queue_s=2)
            await until(lambda: bool(way.runner.functions.all()))
            await fleet.remove_host("h1")

            async def ask_and_store(results: Results, place: str, data: bytes) -> bool:
                monkeypatch.setattr(Results, "create", store)
                request = decode(given.get_nowait().data, type=Asked)
                question = encode(Begin(token=request.token, delivered=1))
                verdicts.append(decode(await engine.ask(f"fn.begin.h9.{request.id}", question), type=Verdict).verdict)
                return await store(results, place, data)

            given: asyncio.Queue[Delivery] = asyncio.Queue()
            await engine.listen_for_work(lambda _, delivery: given.put_nowait(delivery) if delivery else None)
            asked = asyncio.create_task(ask(way.client, "echo", b"x", 503))
            while given.empty():
                await engine.pull(made.arch, queue_of("echo"), priority=0, expires_s=1)
                await asyncio.sleep(0.2)
            monkeypatch.setattr(Results, "create", ask_and_store)
            assert json.loads(await asked)["error"]["code"] == "resource_exhausted"
            assert verdicts == ["done"]

    in_fleet(scenario)
