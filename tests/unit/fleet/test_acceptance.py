"""What happens around the moment at which a run is accepted, or ends: messages that come late or in
another order, and members that die between two steps.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import BodyTooLargeError, FleetError, HostError, RequestError
from mayfly.fleet import carrying, follows, lists, streams
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.follow import Follow
from mayfly.fleet.follows import Follows, about_of
from mayfly.fleet.message import Answer, Begin, Cancel, Registered, Settle, Take, ToHost, Verdict, Work, decode, encode
from mayfly.fleet.queues import Queues
from mayfly.fleet.verdicts import ATTEMPTS
from mayfly.fleet.wire import error_of, wire
from mayfly.host.snippet import Snippet
from mayfly.images.store import Images
from mayfly.runs.repeats import Repeat
from mayfly.runs.runner import Order
from mayfly.runs.service import Service
from mayfly.units import MIB
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, in_fleet, until
from tests.kit.played_host import PlayedHost
from tests.unit.fleet.test_fleet import body, events, get, output, run, start, until_output


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


@asynccontextmanager
async def played(fleet: Fleet, name: str) -> AsyncIterator[PlayedHost]:
    async with Engine.connect((fleet.server.url,), name) as engine:
        host = PlayedHost(engine, Images().find("py"))
        await host.join()
        yield host


PY = {"language": "py", "source": "print()"}
ENDLESS, LONG_S = "echo begun; sleep 600", 600.0


def test_work_that_waits_for_long_is_stored_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(streams, "DUPLICATES_S", 0.1)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two), Engine.connect((fleet.server.url,), "watcher") as watcher:
            arch = one.runner.installed()[0].manifest.arch
            await fleet.remove_host("h1")
            log = tmp_path / "log"
            asked = body(f"echo x >> {log}")
            ids = set()
            for way in (one, two, one):
                async with way.client.post("/start", json=asked, headers={"Idempotency-Key": "k"}) as answer:
                    assert answer.status == 201, await answer.text()
                    ids.add((await answer.json())["id"])
                await asyncio.sleep(0.3)  # longer than the servers remember ids
            assert len(ids) == 1
            assert (await watcher.load(arch, "toy-1_0")).waiting == 1
            await fleet.add_host("h2")
            await events(two.client, ids.pop())
            assert log.read_text() == "x\n"

    in_fleet(scenario)


def late(monkeypatch: pytest.MonkeyPatch, until_then: asyncio.Event) -> None:
    """Have registrations of new runs reach the servers late."""
    update = Bucket.update

    async def updated(bucket: Bucket, key: str, value: bytes, revision: int) -> int:
        if not revision:
            await until_then.wait()
        return await update(bucket, key, value, revision)

    monkeypatch.setattr(Bucket, "update", updated)


def test_a_host_is_given_a_run_before_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        go_on = asyncio.Event()
        late(monkeypatch, go_on)
        service = await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            asked = asyncio.create_task(start(way.client, "echo early"))
            await until(lambda: any(one.done.is_set() for one in service.runs))
            assert not asked.done(), "it may not be accepted yet"
            go_on.set()
            assert output(await events(way.client, await asked)) == "early\n"

    in_fleet(scenario)


def test_a_run_that_is_awaited_and_brief_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follows, "BRIEF_S", 600.0)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            found = await run(one.client, "echo brief; exit 2")
            assert await one.runner._registry.get(found["id"]) is None
            assert await get(two.client, f"/runs/{found['id']}") == found
            assert (found["exit_status"], found["steps"][1]["stdout"]) == (2, "brief\n")

    in_fleet(scenario)


@pytest.mark.parametrize("brief_s", [0.0, 2.0], ids=["told", "silent"])
def test_a_run_that_is_awaited_and_lasts_is_known_everywhere(monkeypatch: pytest.MonkeyPatch, brief_s: float) -> None:
    """Whether its host told of it, or only its gateway knows that it waits for one."""
    monkeypatch.setattr(carrying, "BRIEF_S", brief_s)

    async def scenario(fleet: Fleet) -> None:
        service = await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            asked = asyncio.create_task(run(one.client, "echo begun; sleep 600"))
            await until(lambda: bool(list(service.runs)))
            run_id = next(iter(service.runs)).id

            async def registered() -> None:
                while await one.runner._registry.get(run_id) is None:
                    await asyncio.sleep(0.02)

            await asyncio.wait_for(registered(), 30)
            if not brief_s:
                await until_output(two, run_id, "begun")
            async with two.client.delete(f"/runs/{run_id}") as answer:
                assert answer.status == 204
            assert (await asked)["error"]["code"] == "run_ended"

    in_fleet(scenario)


def test_an_awaited_run_that_others_have_seen_not_to_be_registered_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        go_on = asyncio.Event()
        late(monkeypatch, go_on)
        async with fleet.gateway("g1") as one, played(fleet, "h1") as host:
            await until(lambda: bool(one.runner.installed()))
            asked = asyncio.create_task(one.client.post("/run", json=PY))
            work, _ = await host.take()
            assert work.awaited
            assert await one.runner._registry.bar(work.id), "as another gateway does that is asked for it"
            go_on.set()
            async with await asked as answer:
                assert (await answer.json())["error"]["code"] == "host_failed"

    in_fleet(scenario)


def test_a_run_that_no_host_can_carry_out_is_tried_thrice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if each fails before it would have said that it has begun."""
    tries: list[int] = []

    async def fail(*_: Any) -> Any:
        tries.append(1)
        raise HostError("not here")

    async def scenario(fleet: Fleet) -> None:
        monkeypatch.setattr(carrying, "LATER_S", 0.05)
        monkeypatch.setattr(Service, "_machine", fail)
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            assert (await run(way.client, "true"))["error"]["code"] == "host_failed"
            assert len(tries) == ATTEMPTS

    in_fleet(scenario)


def test_what_others_have_seen_not_to_be_registered_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        go_on = asyncio.Event()
        late(monkeypatch, go_on)
        async with fleet.gateway("g1") as one, fleet.gateway("g2"), played(fleet, "h1") as host:
            await until(lambda: bool(one.runner.installed()))
            asked = asyncio.create_task(one.client.post("/start", json=PY))
            work, delivery = await host.take()
            assert await host.begin(work, delivery) == "done", "as far as any gateway can know, it is not"
            go_on.set()
            async with await asked as answer:
                assert answer.status == 503, await answer.text()
            await until(lambda: not one.runner.under_way)
            async with one.client.get(f"/runs/{work.id}") as answer:
                assert answer.status == 404

    in_fleet(scenario)


def test_a_run_is_ended_elsewhere_before_it_is_registered_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follows, "BRIEF_S", 600.0)

    async def scenario(fleet: Fleet) -> None:
        service = await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            run_id = await start(one.client, "echo begun; sleep 600")
            await until_output(one, run_id, "begun")
            async with two.client.delete(f"/runs/{run_id}") as answer:
                assert answer.status == 204
            await until(lambda: not service.under_way)
            await until(lambda: not one.runner.under_way and not two.runner.under_way)

    in_fleet(scenario)


def test_a_run_is_ended_elsewhere_while_it_is_registered_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway that ends it has just looked in vain, and the other one no longer has to register
    anything when it hears of the end.
    """
    monkeypatch.setattr(follows, "BRIEF_S", 600.0)
    host_of, look_for = Follows.host_of, Follows.look_for

    async def scenario(fleet: Fleet) -> None:
        looked = asyncio.Event()

        async def found_none(self: Follows, run_id: str) -> str:
            found = await host_of(self, run_id)
            looked.set()
            return found

        async def registered_meanwhile(self: Follows, follow: Follow) -> None:
            if self is one.runner._follows:
                await looked.wait()
                await self.register(follow)
            await look_for(self, follow)

        service = await fleet.add_host("h1", run_wall_s=LONG_S)
        async with fleet.two_gateways() as (one, two):
            run_id = await start(one.client, ENDLESS)
            await until_output(one, run_id, "begun")
            ended = await two.runner.find(run_id)
            monkeypatch.setattr(Follows, "host_of", found_none)
            monkeypatch.setattr(Follows, "look_for", registered_meanwhile)
            await two.runner.end(ended, "the run was deleted")
            await until(lambda: not service.under_way)

    in_fleet(scenario)


def test_a_run_is_ended_at_the_host_that_it_has_just_moved_to() -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.two_gateways() as (one, two), played(fleet, "h1") as first, played(fleet, "h2") as second:
            await until(lambda: bool(one.runner.installed() and two.runner.installed()))
            async with one.client.post("/start", json=PY) as answer:
                run_id = (await answer.json())["id"]
            work, delivery = await first.take()
            assert await first.begin(work, delivery) == "go"
            ended = await two.runner.find(run_id)
            moved = Begin(token=work.token, delivered=delivery.delivered, moved_from="h1")
            assert (await second.ask(f"begin.h2.{run_id}", moved))["verdict"] == "go"
            await two.runner.end(ended, "the run was deleted")
            said = decode((await asyncio.wait_for(second.heard.get(), 10)).data, type=ToHost)
            assert isinstance(said, Cancel)

    in_fleet(scenario)


def test_a_host_that_was_away_hears_that_its_run_was_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who ends a run tells its host once."""
    send = Engine.send

    async def scenario(fleet: Fleet) -> None:
        lost = asyncio.Event()

        async def send_no_cancel(engine: Engine, subject: str, data: bytes) -> None:
            if subject.startswith("host.") and isinstance(decode(data, type=ToHost), Cancel):
                lost.set()
            else:
                await send(engine, subject, data)

        service = await fleet.add_host("h1", run_wall_s=LONG_S)
        async with fleet.gateway("g1") as way:
            run_id = await start(way.client, ENDLESS)
            await until_output(way, run_id, "begun")
            monkeypatch.setattr(Engine, "send", send_no_cancel)
            async with way.client.delete(f"/runs/{run_id}") as answer:
                assert answer.status == 204
            assert lost.is_set()
            await asyncio.to_thread(fleet.server.stop)
            await asyncio.to_thread(fleet.server.start)
            await until(lambda: not service.under_way)

    in_fleet(scenario)


def test_a_host_that_gives_a_run_back_at_once_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though that it began was not registered yet."""
    monkeypatch.setattr(follows, "BRIEF_S", 600.0)

    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way, played(fleet, "h1") as host:
            await until(lambda: bool(way.runner.installed()))
            async with way.client.post("/start", json=PY) as answer:
                run_id = (await answer.json())["id"]
            failed = wire(FleetError("not here"))
            verdicts = []
            for _ in range(3):
                work, delivery = await host.take()
                assert await host.open(work, delivery) == "go"
                settle = Settle(token=work.token, delivered=delivery.delivered, error=failed, final=False)
                verdicts.append((await host.ask(f"settle.g1.h1.{work.id}", settle))["verdict"])
                await host.engine.give_back(delivery.ack)
            assert verdicts == ["again", "again", "done"]
            assert (await get(way.client, f"/runs/{run_id}"))["status"] == "error"

    in_fleet(scenario)


def test_an_error_of_an_earlier_host_is_not_the_result() -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way, played(fleet, "h1") as first, played(fleet, "h2") as second:
            await until(lambda: bool(way.runner.installed()))
            async with way.client.post("/start", json=PY) as answer:
                run_id = (await answer.json())["id"]
            work, earlier = await first.take()
            assert await first.open(work, earlier) == "go"
            await first.engine.give_back(earlier.ack)
            work, delivery = await second.take()
            assert await second.open(work, delivery) == "go"
            wrong = Settle(token=work.token, delivered=earlier.delivered, error=wire(RequestError("no")))
            assert (await first.ask(f"settle.g1.h1.{run_id}", wrong))["verdict"] == "done"
            await second.carry_out(work, delivery, b"said\n")
            found = await get(way.client, f"/runs/{run_id}")
            assert (found["status"], found["steps"][0]["stdout"]) == ("ok", "said\n")

    in_fleet(scenario)


def test_a_repeated_request_takes_no_run_from_who_follows_it(tmp_path: Path) -> None:
    """This gateway got to know the run when it had just looked for it in vain."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            asked = body(f"while [ ! -e {tmp_path / 'gate'} ]; do sleep 0.05; done; echo end")
            async with two.client.post("/start", json=asked, headers={"Idempotency-Key": "k"}) as answer:
                run_id = (await answer.json())["id"]
            followed = await one.runner.find(run_id)
            entry = await one.runner._registry.get(run_id)
            assert entry is not None
            repeat = Repeat("", "k", decode(entry.value, type=Registered).digest)
            snippet = Snippet(language="toy", source=b"")
            found = await one.runner._acceptance._begin(Order(snippet, one.runner.image_for(snippet), repeat=repeat))
            assert found is followed
            (tmp_path / "gate").touch()
            assert output(await events(one.client, run_id)) == "end\n"

    in_fleet(scenario)


def test_what_a_run_is_about_stays(tmp_path: Path) -> None:
    """Whoever repeats its request, and for as long as its registration."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            snippet = Snippet(language="toy", source=f"while [ ! -e {tmp_path / 'gate'} ]; do sleep 0.05; done".encode())
            repeat = Repeat("", "k", b"digest")
            image = one.runner.image_for(snippet)
            run = await one.runner.begin(Order(snippet, image, repeat=repeat, about=b"first"))
            registry = one.runner._registry
            entry = await registry.get(run.id)
            assert entry is not None
            registered = decode(entry.value, type=Registered)
            kept = await registry.get(about_of(registered))
            assert kept is not None
            repeated = await two.runner._acceptance._begin(Order(snippet, image, repeat=repeat, about=b"second"))
            assert (repeated.id, repeated.about) == (run.id, b"first")
            asked = Begin(token=registered.token, delivered=registered.delivered + 1)
            async with Engine.connect((fleet.server.url,), "h2") as h2:
                assert decode(await h2.ask(f"begin.h2.{run.id}", encode(asked)), type=Verdict).verdict == "go"
            renewed = await registry.get(about_of(registered))
            assert renewed is not None
            assert renewed.value == b"first"
            assert renewed.revision > kept.revision, "it goes an hour after it was written"
            await registry.put(f"about.{run.id}", renewed.value)  # where gateways of the version before keep it
            await registry.delete(about_of(registered))
            assert await one.runner._follows.about(registered) == b"first"
            assert await one.runner._follows.unregister(registered)
            assert await registry.get(about_of(registered)) is None
            (tmp_path / "gate").touch()

    in_fleet(scenario)


@pytest.mark.parametrize("awaited", [True, False])
def test_a_run_that_cannot_be_registered_is_too_large(awaited: bool) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            snippet = Snippet(language="toy", source=b"true")
            order = Order(snippet, way.runner.image_for(snippet), awaited=awaited, about=bytes(32 * MIB))
            with pytest.raises(BodyTooLargeError, match="the fleet's servers take"):
                await way.runner.begin(order)
            assert not way.runner.under_way

    in_fleet(scenario)


def test_a_run_is_not_handed_over_that_did_not_move() -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way, Engine.connect((fleet.server.url,), "h9") as other:
            run_id = await start(way.client, "echo begun; read line; echo $line", interactive=True)
            await until_output(way, run_id, "begun")
            work = Work(id=run_id, token="guessed", gateway="g1", snippet=Snippet(language="toy"))
            take = Take(work=work, delivered=1, ack="", gateways=["g1"])
            problem = error_of(decode(await other.ask(f"take.h1.h9.{run_id}", encode(take)), type=Answer).error)
            assert problem is not None
            assert problem.code == "unknown_run"
            async with way.client.post(f"/runs/{run_id}/stdin?eof=true", data=b"on\n") as answer:
                assert answer.status == 204
            assert output(await events(way.client, run_id)) == "begun\non\n"

    in_fleet(scenario)


def test_a_gateway_without_answers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "AGAIN_S", 0.0)

    async def get_nothing(*_: Any) -> Any:
        raise NobodyError

    async def scenario(fleet: Fleet) -> None:
        monkeypatch.setattr(Bucket, "get", get_nothing)
        with pytest.raises(FleetError, match="do not say"):
            async with fleet.gateway("g1"):
                pass

    in_fleet(scenario)


def test_a_queue_that_could_not_be_made_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []

    async def ensure(_: Queues, arch: str, lang: str) -> None:
        made.append((arch, lang))
        if made.count((arch, lang)) == 1 and lang == "FN":
            raise SilenceError("not now")

    async def scenario(fleet: Fleet) -> None:
        monkeypatch.setattr(Queues, "ensure", ensure)
        async with fleet.gateway("g1") as way, played(fleet, "h1"):
            await until(lambda: sum(lang == "FN" for _, lang in made) == 2)
            assert way.runner.health().quorum

    in_fleet(scenario)
