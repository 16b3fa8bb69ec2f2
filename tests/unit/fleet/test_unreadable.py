"""What cannot be read stops nobody, and leaves no run without an end."""

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from mayfly.errors import ConfigError, FleetError, HostError
from mayfly.fleet import accept, calls, catalog, roll, worker
from mayfly.fleet import engine as engines
from mayfly.fleet import follow as follow_module
from mayfly.fleet.catalog import ImageChange, Offer
from mayfly.fleet.engine import Delivery, Engine
from mayfly.fleet.failures import SilenceError
from mayfly.fleet.follow import Follow, Typing
from mayfly.fleet.message import Answer, Begun, Head, Held, Registered, Verdict, Work, decode, encode, token_of
from mayfly.fleet.mirror import make_run
from mayfly.fleet.wire import error_of
from mayfly.host.snippet import Mode
from mayfly.images.store import Images
from mayfly.runs.stdin import StdinWriter
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until
from tests.kit.played_host import PlayedHost
from tests.unit.fleet.test_acceptance import PY
from tests.unit.fleet.test_fleet import events, get, run, start


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


class Garbler(PlayedHost):
    """A host whose words on the end of its runs cannot be read."""

    async def settle(self, work: Work, delivery: Delivery, what: str, *, inline: bool) -> str:
        """Bring a run to its end; the verdict."""
        told, tail = (msgspec.to_builtins(said, builtin_types=(bytes,)) for said in self.whole(delivery.delivered, b"out"))
        settle: dict[str, Any] = {"token": work.token, "delivered": delivery.delivered}
        match what:
            case "end":
                tail["data"] = b"\xc1" * tail["size"]
            case "longer":
                tail["size"] -= 1
            case "step":
                told["events"][-1][3] = 99
            case "settle":
                settle["final"] = "maybe"
        if inline:
            settle["said"] = [told, tail]
        else:
            place = f"gw.{work.gateway}.{self.engine.name}.{work.id}"
            begun = Begun(token=work.token, delivered=delivery.delivered, ack=delivery.ack)
            assert decode(await self.engine.ask(place, encode(begun)), type=Verdict).verdict == "go"
            for said in (told, tail):
                await self.engine.send(place, encode(said))
        answer = await self.engine.ask(f"settle.{work.gateway}.{self.engine.name}.{work.id}", encode(settle), 30)
        return decode(answer, type=Verdict).verdict


@pytest.mark.parametrize("inline", [True, False], ids=["at once", "told"])
@pytest.mark.parametrize("what", ["end", "longer", "step", "settle"])
def test_a_run_whose_end_cannot_be_read_begins_anew(what: str, inline: bool) -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way, Engine.connect((fleet.server.url,), "h1") as engine:
            host = Garbler(engine, Images().find("py"))
            await host.join()
            await until(lambda: bool(way.runner.installed()))
            async with way.client.post("/start", json=PY) as answer:
                run_id = (await answer.json())["id"]
            for verdict in ("again", "again", "done"):
                work, delivery = await host.take()
                assert await host.settle(work, delivery, what, inline=inline) == verdict
                await engine.give_back(delivery.ack)
            await events(way.client, run_id)
            found = await get(way.client, f"/runs/{run_id}")
            assert (found["status"], found["error"]["code"]) == ("error", "host_failed")
            assert "cannot be read" in found["error"]["message"]

    in_fleet(scenario)


async def has_ended(way: Way, run_id: str) -> dict[str, Any]:
    """What is known of a run that is over."""
    await asyncio.wait_for(events(way.client, run_id), 20)
    return await get(way.client, f"/runs/{run_id}")


def test_a_run_whose_result_cannot_be_read_ends_for_who_follows_it() -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            run_id = await start(one.client, "sleep 600")
            await one.runner._results.create(run_id, b"\xc1")
            await one.runner._engine.send(f"over.{run_id}", b"")
            found = await has_ended(one, run_id)
            assert (found["status"], found["error"]["code"]) == ("error", "fleet_failed")
            async with two.client.get(f"/runs/{run_id}") as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (503, "fleet_failed")

    in_fleet(scenario)


def most_unread(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    for module in (engines, worker):
        monkeypatch.setattr(module, "MOST_UNREAD", most)
    monkeypatch.setattr(engines, "UNREAD_S", 0.1)


def test_a_run_that_no_host_can_read_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    most_unread(monkeypatch, 2)

    def of_tomorrow(registered: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return {"id": registered.head.id, "token": registered.token, "gateway": registered.gateway, "snippet": 7}

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            with monkeypatch.context() as patch:
                patch.setattr(accept, "_work_of", of_tomorrow)
                run_id = await start(way.client, "true")
                found = await has_ended(way, run_id)
                assert (found["status"], found["error"]["code"]) == ("error", "host_failed")
                assert (await run(way.client, "true"))["error"]["code"] == "host_failed"
            assert (await run(way.client, "true"))["status"] == "ok"

    in_fleet(scenario)


@pytest.mark.parametrize("queue", ["a language", "callbacks"])
def test_what_is_no_work_at_all_is_removed(queue: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    most_unread(monkeypatch, 2)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way, Engine.connect((fleet.server.url,), "stranger") as engine:
            manifest = Images().find("toy").manifest
            place = (manifest.arch, f"toy-{token_of(manifest.version)}") if queue == "a language" else (calls.KIND, calls.QUEUE)
            await way.runner._queues.ensure(*place)
            await engine.put(*place, b"\xc1", "poison")
            async with asyncio.timeout(20):
                while await engine.holds(*place, "poison"):
                    await asyncio.sleep(0.05)
            assert caplog.text.count("work is removed, as nobody can read it") == 1
            assert (await run(way.client, "true"))["status"] == "ok"

    in_fleet(scenario)


def test_input_is_not_sent_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a host whose answers to it cannot be read."""
    monkeypatch.setattr(follow_module, "RETRY_S", 0.01)

    class Babbler:
        """An engine by which a host answers what nobody can read."""

        name, asked = "g1", 0

        async def ask(self, subject: str, data: bytes, timeout_s: float) -> bytes:
            await asyncio.sleep(0)
            self.asked += 1
            return b"\xc1"

    class Willing:
        """A bucket that is empty, and keeps all."""

        async def get(self, key: str) -> None:
            pass

        async def update(self, key: str, value: bytes, revision: int) -> int:
            return revision + 1

    async def look() -> None:
        raise AssertionError("the run has not moved")

    async def scenario() -> None:
        head = Head(id="one", language="toy", version="1.0", mode=Mode.EVENTS, step_names=(), interactive=True)
        follow = Follow(make_run(head), Registered(head=head, token="t", gateway="g1", arch="x", lang="toy"))
        follow.mirror.host = "h1"
        follow.begun.set()
        engine = Babbler()
        typing = Typing(cast(Any, engine), cast(Any, Willing()), follow, look)
        began = asyncio.get_running_loop().time()
        with StdinWriter(follow.run.stdin) as writer:
            await writer.write(b"typed")
            typing.begin(lambda work, name: asyncio.create_task(work, name=name))
            with pytest.raises(HostError, match="the host's answer cannot be read"):
                async with asyncio.timeout(10):
                    while True:
                        await writer.write(b"")
                        await asyncio.sleep(0.01)
        waited = asyncio.get_running_loop().time() - began
        assert engine.asked == follow_module.UNREAD_TRIES
        assert waited >= (engine.asked - 1) * 0.01

    asyncio.run(scenario())


def test_lists_that_cannot_be_read_stop_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll, "SILENT_S", 1.0)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            bucket = way.runner._lists.images._bucket
            known = Images().find("toy").manifest.to_json().encode()
            offers = [Offer(reference="registry.example/x@sha256:0", manifest=text) for text in (b"{}", known)]
            await bucket.put("images", encode(offers))
            await bucket.put("functions", encode([{"about": b"{}", "arch": "x86_64", "memory": 1, "key": "k"}]))
            lists = way.runner._lists
            await until(lambda: bool(lists.images.revision and lists.functions.revision))
            await until(lambda: [image.manifest.language for image in way.runner.roll.offered] == ["toy"])
            await asyncio.sleep(1.5)  # longer than a silent host is counted
            await until(lambda: [host.name for host in way.runner.roll] == ["h1"])
            assert (await run(way.client, "true"))["status"] == "ok"

    in_fleet(scenario)


def test_a_snapshot_of_another_version_can_be_removed() -> None:
    """Nor does it keep others from being offered."""

    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way:
            held = [Held(name=name, image="toy", digest="sha256:0") for name in ("ours", "theirs")]
            one, two = (Offer(reference=f"registry.example/{each.name}", manifest=b"{}", snapshot=each, arch="x86_64") for each in held)
            await way.runner._lists.snapshots._bucket.put("snapshots", encode([one]))
            async with Engine.connect((fleet.server.url,), "operator") as engine:
                assert await catalog.change(engine, ImageChange(add=two)) == [one, two]
                assert await catalog.change(engine, ImageChange(remove="ours")) == [two]
                assert await catalog.change(engine, ImageChange()) == [two]
                with pytest.raises(ConfigError, match="not offered"):
                    await catalog.change(engine, ImageChange(remove="ours"))

    in_fleet(scenario)


def test_a_handing_over_that_cannot_be_read_is_answered() -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with Engine.connect((fleet.server.url,), "h2") as engine:
            answer = decode(await engine.ask("take.h1.h2.run", b"\xc1"), type=Answer)
            assert "the host cannot read this: Take cannot be read" in str(error_of(answer.error))

    in_fleet(scenario)


def test_servers_that_take_too_short_messages_are_refused() -> None:
    async def scenario(fleet: Fleet) -> None:
        with pytest.raises(FleetError, match="8388608 are needed"):
            async with Engine.connect((fleet.server.url,), "h1"):
                pass

    in_fleet(scenario, more=lambda _: "max_payload: 1MB")


def test_what_cannot_be_read_is_silence() -> None:
    for data in (b"", b"\xc1", encode({"verdict": 1}), b"\x81" * 5000):
        with pytest.raises(SilenceError, match="Verdict cannot be read"):
            decode(data, type=Verdict)
