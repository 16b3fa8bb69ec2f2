"""Hosts and gateways of neighbouring versions understand each other, and a run that no host ends is
given up after three.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from mayfly.fleet.calls import Call
from mayfly.fleet.catalog import Offers
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import UnreadableError
from mayfly.fleet.functions.messages import Answered, Asked, FleetFunction, Pending, Question, Result, Sent, Stored
from mayfly.fleet.message import Attach, Cancel, Grant, Input, Registered, Signal, Size, ToGateway, ToHost, Verdict, Wish, Work, decode
from mayfly.guests.start import StartKind
from mayfly.images.store import Images
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, in_fleet, until
from tests.kit.played_host import NEWER, PlayedHost, newer
from tests.unit.fleet.test_fleet import events, get, output, run, start, until_output


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


@asynccontextmanager
async def played(fleet: Fleet, name: str) -> AsyncIterator[PlayedHost]:
    async with Engine.connect((fleet.server.url,), name) as engine:
        host = PlayedHost(engine, Images().find("py"))
        await host.join()
        yield host


def py(source: str) -> dict[str, str]:
    return {"language": "py", "source": source}


def test_a_host_of_the_next_version_is_understood() -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as way, played(fleet, "h1") as host:
            await until(lambda: bool(way.runner.installed()))
            asked = asyncio.create_task(way.client.post("/run", json=py("print('said')")))
            work, delivery = await host.take()
            assert work.snippet.source == b"print('said')"
            assert await host.begin(work, delivery) == "go"
            await host.carry_out(work, delivery, b"said\n")
            async with await asked as answer:
                found = await answer.json()
            assert (found["status"], found["steps"][0]["stdout"]) == ("ok", "said\n")

    in_fleet(scenario)


def test_a_gateway_of_the_next_version_is_understood(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way, Engine.connect((fleet.server.url,), "g2") as other:
            run_id = await start(way.client, "read line; echo got $line; sleep 600", interactive=True)
            await until(lambda: way.runner.health().memory_used > 0)
            typed = newer(Input(gateway="g2", offset=0, data=b"typed\n"))
            answer = msgspec.msgpack.decode(await other.ask(f"host.h1.{run_id}", typed))
            assert answer["error"] is None
            await until_output(way, run_id, "got typed\n")
            await other.ask("wish.h1", newer(Wish(drain=True)))
            async with way.client.post(f"/runs/{run_id}/signal", json={"signal": "KILL"}) as ended:
                assert ended.status == 204
            assert output(await events(way.client, run_id)) == "got typed\n"
            await other.ask("wish.h1", newer(Wish(drain=False)))
            assert (await run(way.client, "echo on"))["status"] == "ok"

    in_fleet(scenario)


def test_every_message_may_have_fields_that_are_not_known() -> None:
    for message in (Attach(gateway="g", after=(0, 0)), Grant(gateway="g", count=1), Signal(number=9), Size(columns=1, rows=1), Cancel()):
        assert decode(newer(message), type=ToHost) == message
    with pytest.raises(UnreadableError):
        decode(newer(Verdict(verdict="go")), type=ToGateway)  # one of another kind is not taken for one that is known
    work = Work(id="1", token="2", gateway="3", snippet=msgspec.convert({"language": "toy"}, type=Work.__annotations__["snippet"]))
    fields = msgspec.to_builtins(work, builtin_types=(bytes,))
    fields["snippet"] |= NEWER
    assert decode(newer(fields), type=Work) == work
    assert "attempts" in Registered.__struct_fields__
    times = {"received": 1.0, "queued_s": 0, "started_s": 0, "sent_s": 0, "answered_s": 0.5, "guest_us": 7, **NEWER}
    sent = Sent(status="ok", content_type="", payload=b"x", start=StartKind.WARM, times={"received": 1.0})
    function = FleetFunction(about=b"{}", arch="x86_64", memory=1, key="k")
    for told in (
        sent,
        function,
        Asked(id="1", token="2", gateway="3", key="4", payload=b"x"),
        Answered(token="1", delivered=1, answer=sent),
        Pending(token="1", function="f"),
        Result(function="f", answer=sent),
        Stored(function=function, code={"a": b"b"}),
        Question(local="f", last=1),
        Offers(known="1", functions=[function]),
        Call(run="1", about=b"{}"),
    ):
        assert decode(newer(told), type=type(told)) == told
    sent.times = times  # type: ignore[assignment]
    assert Result(function="f", answer=sent).get("1").times.guest_us == 7


def test_a_host_that_has_said_nothing_yet_is_told_that_its_run_is_ended() -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as one, fleet.gateway("g2") as two, played(fleet, "h1") as host:
            await until(lambda: bool(one.runner.installed()))
            for way in (one, two):
                async with one.client.post("/start", json=py("print()")) as answer:
                    run_id = (await answer.json())["id"]
                work, delivery = await host.take()
                assert await host.begin(work, delivery) == "go"
                async with way.client.delete(f"/runs/{run_id}") as answer:
                    assert answer.status == 204
                while not isinstance(decode((await asyncio.wait_for(host.heard.get(), 30)).data, type=ToHost), Cancel):
                    pass  # whoever follows the run may ask for its record
                await host.engine.done(delivery.ack)

    in_fleet(scenario)


def test_a_run_that_no_host_ends_is_given_up_after_three() -> None:
    async def scenario(fleet: Fleet) -> None:
        async with fleet.gateway("g1") as one, fleet.gateway("g2") as two, played(fleet, "h1") as host:
            await until(lambda: bool(one.runner.installed()))
            async with one.client.post("/start", json=py("print()")) as answer:
                run_id = (await answer.json())["id"]
            verdicts = []
            for _ in range(4):
                work, delivery = await host.take()
                assert work.id == run_id
                verdicts.append(await host.begin(work, delivery))
                await host.engine.give_back(delivery.ack)  # as for a host that died
            assert verdicts == ["go", "go", "go", "done"]
            for client in (one.client, two.client):
                await events(client, run_id)
                found = await get(client, f"/runs/{run_id}")
                assert (found["status"], found["error"]["code"]) == ("error", "host_failed")
                assert "3 hosts" in found["error"]["message"]

    in_fleet(scenario)
