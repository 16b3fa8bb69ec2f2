"""Runs whose clients wait for them are handed to a host that has much room, past the stream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mayfly.errors import HostError
from mayfly.fleet.engine import Delivery, Engine
from mayfly.fleet.failures import SilenceError
from mayfly.fleet.message import Begun, Settle, Taken, Work, decode, encode
from mayfly.fleet.results import Results
from mayfly.fleet.wire import wire
from mayfly.images.store import Images
from mayfly.units import MIB
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, in_fleet, until
from tests.kit.played_host import PlayedHost
from tests.unit.fleet.test_acceptance import PY
from tests.unit.fleet.test_fleet import get, run, start
from tests.unit.fleet.test_keys import make, until_status


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of work that comes into the stream."""
    put, seen = Engine.put, []

    async def putting(engine: Engine, arch: str, lang: str, data: bytes, message_id: str) -> int:
        seen.append(message_id)
        return await put(engine, arch, lang, data, message_id)

    monkeypatch.setattr(Engine, "put", putting)
    return seen


Answer = Callable[[Work], Taken]


class Handed:
    """A host to which work is handed over: it has it, and answers, or says nothing."""

    def __init__(self, host: PlayedHost, answer: Answer | None) -> None:
        self.engine, self.lang, self._arch = host.engine, host.lang, host.image.manifest.arch
        self.work: asyncio.Future[Work] = asyncio.get_running_loop().create_future()
        self.answer = answer

    async def listen(self) -> None:
        await self.engine.listen_for_handed(self._arch, self.lang, self._take)

    def _take(self, delivery: Delivery) -> None:
        self.work.set_result(decode(delivery.data, type=Work))
        if self.answer is not None:
            self._answering = asyncio.ensure_future(self.engine.send(delivery.reply, encode(self.answer(self.work.result()))))


@asynccontextmanager
async def played(fleet: Fleet, name: str, answer: Answer | None = None) -> AsyncIterator[tuple[PlayedHost, Handed]]:
    async with Engine.connect((fleet.server.url,), name) as engine:
        host = PlayedHost(engine, Images().find("py"))
        await host.join()
        handed = Handed(host, answer)
        if name == "h1":
            await handed.listen()
        yield host, handed


def test_a_run_is_carried_out_past_the_stream(queued: list[str]) -> None:
    async def scenario(fleet: Fleet) -> None:
        service = await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            for source in ("echo out; exit 3", "echo out; sleep 0.3; exit 3", "head -c 99999 /dev/zero; exit 3"):
                found = await run(one.client, source)
                assert found["exit_status"] == 3
                await until(lambda: not service.admission.used)  # else the next one may not find half of it free
                assert await get(two.client, f"/runs/{found['id']}") == found
            assert not queued
            await start(one.client, "true")
            assert len(queued) == 1, "who hears of a run before its end has it from the stream"

    in_fleet(scenario)


def test_a_host_that_would_be_half_full_takes_runs_from_the_stream(queued: list[str]) -> None:
    async def scenario(fleet: Fleet) -> None:
        service = await fleet.add_host("h1", memory_budget=512 * MIB)
        async with fleet.gateway("g1") as way:
            for _ in range(2):
                await start(way.client, "sleep 60")
            await until(lambda: service.admission.used > 200 * MIB)
            del queued[:]
            assert (await run(way.client, "echo out"))["status"] == "ok"
            assert len(queued) == 1

    in_fleet(scenario)


def test_a_host_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way, played(fleet, "h1") as (_, silent), played(fleet, "h2") as (host, _):
            monkeypatch.setattr(way.runner._queues, "ack_wait_s", 0.3)
            await until(lambda: bool(way.runner.installed()))
            asked = asyncio.create_task(way.client.post("/run", json=PY))
            assert (await silent.work).awaited
            work, delivery = await host.take()
            assert work.id == (await silent.work).id
            await host.carry_out(work, delivery, b"said\n")
            async with await asked as answer:
                assert (await answer.json())["steps"][0]["stdout"] == "said\n"

    in_fleet(scenario)


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "taken"])
@pytest.mark.parametrize("dies", [True, False], ids=["dies", "hangs"])
def test_a_run_begins_anew_whose_host_dies(dies: bool, begun: bool) -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way, played(fleet, "h2") as (host, _):
            async with played(fleet, "h1", lambda _: Taken(host="h1")) as (first, handed):
                await until(lambda: bool(way.runner.installed()))
                asked = asyncio.create_task(way.client.post("/run", json=PY))
                work = await handed.work
                if begun:
                    assert await first.open(work, Delivery(b"", "", 0)) == "go"
                await until(lambda: any(follow.host for follow in way.runner._follows))
                if not dies:
                    first.hangs = True
                    again, delivery = await host.take()
            if dies:
                again, delivery = await host.take()
            assert (again.id, delivery.delivered) == (work.id, 1)
            late = Begun(token=work.token, delivered=0, ack="")
            await host.carry_out(again, delivery, b"said\n")
            async with await asked as answer:
                found = await answer.json()
            assert (found["status"], found["steps"][0]["stdout"]) == ("ok", "said\n")
            assert (await host.ask(f"gw.g1.h2.{work.id}", late))["verdict"] == "done"

    in_fleet(scenario)


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "taken"])
def test_a_run_begins_anew_whose_host_dies_and_is_back_at_once(begun: bool) -> None:
    """Nobody has seen it gone, and the stream has no work that would be given out again."""

    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way:
            async with played(fleet, "h1", lambda _: Taken(host="h1")) as (first, handed):
                await until(lambda: bool(way.runner.installed()))
                asked = asyncio.create_task(run(way.client, "", language="py"))
                work = await handed.work
                if begun:
                    assert await first.open(work, Delivery(b"", "", 0)) == "go"
                await until(lambda: any(follow.host for follow in way.runner._follows))
            await fleet.add_host("h1")
            assert (await asked)["status"] == "ok"

    in_fleet(scenario)


def failed(work: Work) -> Taken:
    return Taken(host="h1", ended=Settle(token=work.token, delivered=0, error=wire(HostError("not here")), final=False))


def alien(_: Work) -> Taken:
    return Taken(host="h1", ended=Settle(token="another run's", delivered=0))


@pytest.mark.parametrize("answer", [failed, alien])
def test_an_end_that_does_not_count_leaves_the_run_to_another_host(answer: Answer) -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way, played(fleet, "h1", answer), played(fleet, "h2") as (host, _):
            await until(lambda: bool(way.runner.installed()))
            asked = asyncio.create_task(way.client.post("/run", json=PY))
            work, delivery = await host.take()
            async with way.client.get("/healthz") as health:
                assert health.status == 200
            await host.carry_out(work, delivery, b"said\n")
            async with await asked as answered:
                assert (await answered.json())["steps"][0]["stdout"] == "said\n"

    in_fleet(scenario)


def test_an_end_that_cannot_be_stored_counts_no_more_when_another_host_has_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    create, stores, tries = Results.create, asyncio.Event(), 0

    async def storing(results: Results, run_id: str, data: bytes) -> bool:
        nonlocal tries
        tries += 1
        if not stores.is_set():
            raise SilenceError("played")
        return await create(results, run_id, data)

    monkeypatch.setattr(Results, "create", storing)

    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way, played(fleet, "h2") as (host, _):
            async with played(fleet, "h1") as (first, handed):
                handed.answer = lambda work: Taken(host="h1", ended=Settle(token=work.token, delivered=0, said=first.whole(0, b"lost\n")))
                await until(lambda: bool(way.runner.installed()))
                asked = asyncio.create_task(way.client.post("/run", json=PY))
                await until(lambda: tries > 0)
            work, delivery = await host.take()
            assert await host.open(work, delivery) == "go"
            async with way.client.get("/healthz") as health:
                assert health.status == 200
            await until(lambda: not named("store "))
            stores.set()
            await host.carry_out(work, delivery, b"said\n")
            async with await asked as answer:
                assert (await answer.json())["steps"][0]["stdout"] == "said\n"

    in_fleet(scenario)


def named(prefix: str) -> list[str]:
    """The tasks under way whose names begin so."""
    return [name for task in asyncio.all_tasks() if (name := task.get_name()).startswith(prefix)]


def test_a_host_that_stops_gives_back_what_was_handed_to_it(tmp_path: Path, queued: list[str]) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            log, gate = tmp_path / "log", tmp_path / "gate"
            asked = asyncio.create_task(run(way.client, f"echo begun >> {log}; while [ ! -e {gate} ]; do sleep 0.05; done; echo end"))
            await until(log.exists)
            assert not queued
            await fleet.add_host("h2")
            await fleet.remove_host("h1")
            gate.touch()
            assert (await asked)["steps"][1]["stdout"] == "end\n"
            assert log.read_text() == "begun\nbegun\n"

    in_fleet(scenario)


def test_a_client_that_goes_while_a_host_is_asked_is_charged_nothing() -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way, played(fleet, "h1") as (_, silent), played(fleet, "h2") as (host, _):
            await until(lambda: bool(way.runner.installed()))
            async with way.client_of(await make(fleet, "site", concurrency=1)) as client:
                await until_status(client, 200)
                asked = asyncio.create_task(client.post("/run", json=PY))
                work = await silent.work
                asked.cancel()
                await until(lambda: not way.runner.under_way)
                async with asyncio.timeout(10):
                    while (answer := await client.post("/start", json=PY)).status == 429:
                        await asyncio.sleep(0.05)
                assert answer.status == 201
                assert (await host.take())[0].id != work.id

    in_fleet(scenario)
