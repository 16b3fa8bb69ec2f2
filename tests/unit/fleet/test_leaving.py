"""A host that is drained gives its long runs to another host, in whose midst they go on; readers at
the gateways see each byte once.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from mayfly.errors import ServerLostError
from mayfly.fleet import leaving, links
from mayfly.fleet.carrying import Active
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.follow import KEPT_INPUT
from mayfly.fleet.leaving import Leaving
from mayfly.fleet.links import HostLink, Links
from mayfly.fleet.operate import wait_until_idle, wish
from mayfly.runs.moves.followed import Followed
from mayfly.runs.moves.link import Machines
from mayfly.runs.moves.messages import Commit, Events, Input, Ready
from mayfly.runs.moves.relay import Relay
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from tests.kit import toy_moves
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until
from tests.kit.toy_moves import ToyMachines, World, counted, play_toys
from tests.unit.fleet.test_fleet import JSONL, output, start


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    monkeypatch.setattr(leaving, "LONG_S", 0.0)
    monkeypatch.setattr(leaving, "AGAIN_S", 0.05)
    monkeypatch.setattr(toy_moves, "PACE_S", 0.05)


async def add(fleet: Fleet, name: str, world: World, fails: str = "") -> Service:
    """A host whose guests are toys that count, and can move."""
    service = await fleet.add_host(name, machines=lambda service: ToyMachines(service, world, fails), run_wall_s=WALL_S)
    play_toys(service, world)
    return service


async def follow(client: aiohttp.ClientSession, run_id: str, seen: list[dict[str, Any]]) -> None:
    async with client.get(f"/runs/{run_id}/events", headers=JSONL) as answer:
        async for line in answer.content:
            seen.append(json.loads(line))


async def operate(fleet: Fleet, work: Callable[[Engine], Any]) -> None:
    async with Engine.connect((fleet.server.url,), "operator") as engine:
        await work(engine)


class TypedRun(NamedTuple):
    """A run at the host h1 to which a client of a gateway writes, beside the host h2."""

    way: Way
    h1: Service
    h2: Service
    run_id: str
    seen: list[dict[str, Any]]
    reader: "asyncio.Task[None]"


@contextlib.asynccontextmanager
async def typed_run(fleet: Fleet) -> AsyncIterator[TypedRun]:
    """Such a run, of which something was read."""
    world = World()
    h1 = await add(fleet, "h1", world)
    async with fleet.gateway("g1") as way:
        run_id = await start(way.client, "~", interactive=True)
        seen: list[dict[str, Any]] = []
        reader = asyncio.create_task(follow(way.client, run_id, seen))
        await until(lambda: "3\n" in output(seen), 120)
        h2 = await add(fleet, "h2", world)
        await fleet.until_hosts(way, 2)
        yield TypedRun(way, h1, h2, run_id, seen, reader)


WALL_S = 200.0
drain = partial(wish, name="h1", drain=True)


def test_a_drained_host_gives_its_runs_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        world = World()
        h1 = await add(fleet, "h1", world)
        async with fleet.two_gateways() as (one, two):
            ids = [await start(one.client, f"~{number}") for number in (120, 140)]
            seen: list[list[dict[str, Any]]] = [[], [], [], []]
            readers = [
                asyncio.create_task(follow(way.client, run_id, into))
                for (way, run_id), into in zip([(way, run_id) for way in (one, two) for run_id in ids], seen, strict=True)
            ]
            await until(lambda: all("5\n" in output(each) for each in seen), 120)
            h2 = await add(fleet, "h2", world)
            for way in (one, two):
                await fleet.until_hosts(way, 2)
            await operate(fleet, partial(drain, limit_bytes_s=50_000_000))
            await operate(fleet, lambda engine: wait_until_idle(engine, "h1", 200))
            assert len(world.limits) >= 2 and set(world.limits) == {50_000_000}
            assert h1.under_way == 0
            assert {run.id for run in h2.runs} == set(ids)
            async with two.client.post(f"/runs/{ids[1]}/signal", json={"signal": "SIGUSR1"}) as answer:
                assert answer.status == 204, await answer.text()
            await fleet.remove_host("h1")
            monkeypatch.setattr(toy_moves, "PACE_S", 0.002)  # they need not last any more
            await asyncio.gather(*readers)
            for each in seen:
                assert not [event for event in each if event["event"] == "attempt"]
                assert each[-1]["event"] == "done"
            for run_id, way in ((run_id, way) for run_id in ids for way in (one, two)):
                async with way.client.get(f"/runs/{run_id}") as answer:
                    found = await answer.json()
                assert found["status"] == "ok", found["error"]
                assert counted(found["steps"][1]["stdout"]) == {ids[0]: 120, ids[1]: 140}[run_id]
            assert [counted(output(each)) for each in seen] == [120, 140, 120, 140]
            assert "<10>" in found["steps"][1]["stderr"]

    in_fleet(scenario, limit_s=280)


async def type_at(client: aiohttp.ClientSession, run_id: str, data: bytes, end: bool = False) -> None:
    async with client.post(f"/runs/{run_id}/stdin", data=data, params={"eof": "true"} if end else {}) as answer:
        assert answer.status in (200, 204), await answer.text()


def test_what_is_typed_while_a_run_moves_comes_once() -> None:
    """From two gateways, before, while and after it moves to a host and on to a third."""

    async def scenario(fleet: Fleet) -> None:
        world = World()
        hosts = {"h1": await add(fleet, "h1", world)}
        async with fleet.two_gateways() as (one, two):
            run_id = await start(one.client, "~", interactive=True)
            seen: list[list[dict[str, Any]]] = [[], []]
            readers = [asyncio.create_task(follow(way.client, run_id, into)) for way, into in zip((one, two), seen, strict=True)]
            await until(lambda: all("3\n" in output(each) for each in seen), 120)
            typed: list[str] = []
            stop = asyncio.Event()

            async def type_on() -> None:
                while not stop.is_set():
                    typed.append(f"[{len(typed)}]")
                    await type_at((one, two)[(len(typed) - 1) // 10 % 2].client, run_id, typed[-1].encode())
                    if len(typed) % 10 == 0:  # the other gateway's come behind
                        await until(lambda: err(seen[0]) == "".join(typed), 60)

            typing = asyncio.create_task(type_on())
            for source, destination in (("h1", "h2"), ("h2", "h3")):
                hosts[destination] = await add(fleet, destination, world)
                for way in (one, two):
                    await fleet.until_hosts(way, len(fleet.hosts))
                await operate(fleet, partial(wish, name=source, drain=True))
                await operate(fleet, partial(wait_until_idle, name=source, within_s=100))
                assert hosts[source].under_way == 0
                assert [run.id for run in hosts[destination].runs] == [run_id]
                await fleet.remove_host(source)
                enough = len(typed) + 12
                while len(typed) < enough and not typing.done():
                    await asyncio.sleep(0.02)
            stop.set()
            await typing
            await until(lambda: err(seen[0]) == "".join(typed), 60)  # the other gateway's come behind
            await type_at(one.client, run_id, b"quit", end=True)
            await asyncio.gather(*readers)
            for each in seen:
                assert not [event for event in each if event["event"] == "attempt"]
                assert err(each) == "".join(typed) + "quit"
                assert counted(output(each)) > 0
                assert each[-1]["event"] == "done"

    in_fleet(scenario, limit_s=280)


def test_a_terminal_goes_on_at_another_host() -> None:
    """Its size and what is typed come to the program there, from either gateway."""

    async def scenario(fleet: Fleet) -> None:
        world = World()
        h1 = await add(fleet, "h1", world)
        async with fleet.two_gateways() as (one, two):
            run_id = await start(one.client, "~", tty={"columns": 80, "rows": 24})
            seen: list[dict[str, Any]] = []
            reader = asyncio.create_task(follow(two.client, run_id, seen))
            expected = ""
            for way, width in ((one, 81), (two, 82)):
                if way is two:
                    h2 = await add(fleet, "h2", world)
                    for each in (one, two):
                        await fleet.until_hosts(each, 2)
                    await operate(fleet, drain)
                    await operate(fleet, lambda engine: wait_until_idle(engine, "h1", 200))
                    assert (h1.under_way, [run.id for run in h2.runs]) == (0, [run_id])
                await until(lambda: "3\n" in output(seen), 120)
                async with way.client.post(f"/runs/{run_id}/resize", json={"columns": width, "rows": 24}) as answer:
                    assert answer.status == 204, await answer.text()
                await type_at(one.client, run_id, b"ls")
                expected += f"<{width}x24>ls"
                await until(lambda expected=expected: len(err(seen)) == len(expected), 60)  # type: ignore[misc]
            await type_at(one.client, run_id, b"quit", end=True)
            await reader
            assert err(seen) == expected + "quit"
            assert not [event for event in seen if event["event"] == "attempt"]

    in_fleet(scenario, limit_s=280)


def err(found: list[dict[str, Any]]) -> str:
    return "".join(event["data"] for event in found if event["event"] == "stderr")


def test_a_host_that_has_a_run_takes_no_input_it_cannot_pass_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the program reads nothing, its run stays where its input is."""
    monkeypatch.setattr(leaving, "INPUT_S", 0.3)

    async def scenario(fleet: Fleet) -> None:
        async with typed_run(fleet) as (way, h1, h2, run_id, seen, reader):
            taking = asyncio.Event()
            accept = Relay._accept

            def late(relay: Relay, offset: int, data: bytes) -> None:
                asyncio.get_running_loop().create_task(_later(taking, lambda: accept(relay, offset, data)))

            monkeypatch.setattr(Relay, "_accept", late)
            typed, hand_over = asyncio.Event(), Leaving._hand_over

            async def when_typed(self: Leaving, active: Active, run: Run, host: str) -> None:
                await typed.wait()
                await until(lambda: active.received == {KEPT_INPUT: 3})
                await hand_over(self, active, run, host)

            monkeypatch.setattr(Leaving, "_hand_over", when_typed)
            run = h1.get(run_id)
            await operate(fleet, drain)
            await until(lambda: run.elsewhere is not None, 60)
            await type_at(way.client, run_id, b"[1]")
            typed.set()
            await asyncio.sleep(1)
            assert h1.under_way == 1, "it is not given away while input lies here"
            taking.set()
            await operate(fleet, lambda engine: wait_until_idle(engine, "h1", 200))
            assert [run.id for run in h2.runs] == [run_id]
            await type_at(way.client, run_id, b"quit")
            await reader
            assert err(seen) == "[1]quit"

    in_fleet(scenario, limit_s=280)


@pytest.mark.parametrize("taken", [True, False])
def test_a_host_that_never_says_that_it_takes_a_run(taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed comes to the program, by the host that has the run or by the other one."""
    monkeypatch.setattr(leaving, "TAKE_TRIES", 1)
    ask = Engine.ask

    async def ask_briefly(self: Engine, subject: str, data: bytes, timeout_s: float = 5.0) -> bytes:
        return await ask(self, subject, data, 1.0 if subject.startswith("take.") else timeout_s)

    monkeypatch.setattr(Engine, "ask", ask_briefly)

    async def scenario(fleet: Fleet) -> None:
        take = Leaving._take
        asked = asyncio.Event()

        async def silent(self: Leaving, message: Message) -> None:
            asked.set()
            if taken:
                await take(self, message._replace(reply=""))

        monkeypatch.setattr(Leaving, "_take", silent)
        async with typed_run(fleet) as (way, h1, h2, run_id, seen, reader):
            await operate(fleet, drain)
            await asked.wait()
            await type_at(way.client, run_id, b"[1]")
            await type_at(way.client, run_id, b"quit", end=True)
            await asyncio.wait_for(reader, 60)
            assert err(seen) == "[1]quit"
            assert counted(output(seen)) > 0
            assert [run.id for run in h2.runs] == [run_id]
            await until(lambda: [run.id for run in h1.runs] == ([] if taken else [run_id]))

    in_fleet(scenario, limit_s=280)


def test_the_end_of_input_goes_with_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that came while what was typed before it was on its way."""

    async def scenario(fleet: Fleet) -> None:
        async with typed_run(fleet) as (way, h1, h2, run_id, seen, reader):
            typed, hand_over, send = asyncio.Event(), Leaving._hand_over, Followed._send

            async def when_typed(self: Leaving, active: Active, run: Run, host: str) -> None:
                await typed.wait()
                await hand_over(self, active, run, host)

            async def for_ever(self: Followed, message: Any) -> bool:
                sent = await send(self, message)
                if isinstance(message, Input):
                    await asyncio.Event().wait()
                return sent

            monkeypatch.setattr(Leaving, "_hand_over", when_typed)
            monkeypatch.setattr(Followed, "_send", for_ever)
            run = h1.get(run_id)
            await operate(fleet, drain)
            await until(lambda: run.elsewhere is not None, 60)
            await type_at(way.client, run_id, b"[1]")
            await type_at(way.client, run_id, b"", end=True)
            await until(lambda: run.stdin.ended)
            typed.set()
            await operate(fleet, lambda engine: wait_until_idle(engine, "h1", 200))
            assert h2.get(run_id).stdin.ended
            await until(lambda: err(seen) == "[1]")
            async with way.client.delete(f"/runs/{run_id}") as answer:
                assert answer.status == 204
            await reader
            assert err(seen) == "[1]"

    in_fleet(scenario, limit_s=280)


async def _later(event: asyncio.Event, work: Callable[[], None]) -> None:
    await event.wait()
    work()


@pytest.mark.parametrize("fails", ["receive", "nobody"])
def test_a_run_that_nobody_takes_goes_on(fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(leaving, "AGAIN_S", 0.5)  # it stands still during each try, which takes long on a loaded machine
    caplog.set_level(logging.INFO, "mayfly.fleet")

    async def scenario(fleet: Fleet) -> None:
        world = World()
        h1 = await add(fleet, "h1", world)
        if fails != "nobody":
            await add(fleet, "h2", world, fails)
        async with fleet.gateway("g1") as way:
            ids: list[str] = []
            while not (here := [run.id for run in h1.runs]):  # either host may get it
                ids.append(await start(way.client, "~60"))
                await until(lambda: {run.id for host in fleet.hosts.values() for run in host.runs} == set(ids))
            run_id = here[0]
            seen: list[dict[str, Any]] = []
            reader = asyncio.create_task(follow(way.client, run_id, seen))
            await until(lambda: "5\n" in output(seen), 120)
            await operate(fleet, drain)
            if fails == "nobody":
                await asyncio.sleep(2 * leaving.AGAIN_S)
            else:
                await until(lambda: "does not take it" in caplog.text)
            monkeypatch.setattr(toy_moves, "PACE_S", 0.002)
            await reader
            assert seen[-1]["event"] == "done"
            assert counted(output(seen)) == 60
            assert ("does not take it" in caplog.text) == (fails != "nobody")
            assert h1.get(run_id).done.is_set()

    in_fleet(scenario, limit_s=280)


def test_a_host_that_is_undrained_keeps_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_moves, "PACE_S", 1.0)  # it is there for as long as the other host needs to come

    async def scenario(fleet: Fleet) -> None:
        world = World()
        machines: list[ToyMachines] = []

        def endless(service: Service) -> Machines:
            machines.append(ToyMachines(service, world))
            machines[-1].endless = True
            return machines[-1]

        h1 = await fleet.add_host("h1", machines=endless, run_wall_s=WALL_S)
        play_toys(h1, world)
        async with fleet.gateway("g1") as way:
            run_id = await start(way.client, "~80")
            await until(lambda: any(run.exchange is not None for run in h1.runs))
            await add(fleet, "h2", world)
            await fleet.until_hosts(way, 2)
            await operate(fleet, drain)
            run = h1.get(run_id)
            await until(lambda: run.moving is not None)
            await operate(fleet, lambda engine: wish(engine, "h1", drain=False))
            await until(lambda: run.moving is None)
            monkeypatch.setattr(toy_moves, "PACE_S", 0.01)
            seen: list[dict[str, Any]] = []
            await follow(way.client, run_id, seen)
            assert counted(output(seen)) == 80
            assert run.elsewhere is None

    in_fleet(scenario, limit_s=280)


def test_a_connection_between_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages come in order and once, each is waited for, and both ends see when it is over."""

    async def scenario(fleet: Fleet) -> None:
        async with (
            Engine.connect((fleet.server.url,), "h1") as h1,
            Engine.connect((fleet.server.url,), "h2") as h2,
            Engine.connect((fleet.server.url,), "h4") as watcher,
        ):
            monkeypatch.setattr(links, "ANSWER_S", 0.1)
            monkeypatch.setattr(links, "TRIES", 1000)
            tasks: set[asyncio.Task[None]] = set()
            come: asyncio.Queue[HostLink] = asyncio.Queue()

            def spawn(work: Any, name: str) -> "asyncio.Task[None]":
                task = asyncio.create_task(work, name=name)
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                return task

            one, two = Links(h1, come.put, spawn), Links(h2, come.put, spawn)
            await h1.listen("move.h1.*.*", one.heard)
            await h2.listen("move.h2.*.*", two.heard)
            await h2._client.flush()  # or else the first piece may find nobody
            here = one.connect("h2")
            sending = asyncio.create_task(here.send(Commit()))
            there = await come.get()
            assert not sending.done()  # not before it was taken
            assert isinstance(await there.receive(), Commit)
            await sending
            answered = asyncio.create_task(there.send(Ready()))
            assert isinstance(await here.receive(), Ready)
            await answered
            for number in range(20):
                sending = asyncio.create_task(here.send(Events(events=())))
                assert isinstance(await there.receive(), Events), number
                await sending
            await there.close()
            with pytest.raises(ServerLostError):
                await here.receive()
            with pytest.raises(ServerLostError):
                await here.send(Commit())
            slow = one.connect("h2")
            sending = asyncio.create_task(slow.send(Commit()))
            reader = await come.get()
            asked: list[str] = []
            await watcher.listen(f"move.h2.h1.{slow.name}", lambda message: asked.append(message.reply))
            await asyncio.sleep(0.5)
            assert not sending.done()
            assert len(asked) < 50, "what the other end has is not sent again and again"
            with pytest.raises(ServerLostError):  # no more than one is on its way
                flood = HostLink(h1, "h2", slow.name, lambda _: None)
                flood._sent = 1
                await flood.send(Commit())
            assert isinstance(await reader.receive(), Commit)
            await sending
            nobody = one.connect("h3")
            with pytest.raises(ServerLostError):
                await nobody.send(Commit())
            late = one.connect("h2")
            sending = asyncio.create_task(late.send(Commit()))
            forgotten = await come.get()
            await forgotten.close()
            with pytest.raises(ServerLostError):
                await sending
            await asyncio.gather(*tasks)

    in_fleet(scenario)
