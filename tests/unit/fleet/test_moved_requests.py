"""A host that is drained gives requests to functions away: those that no guest has at once, and
those that last with their guest's machine, which is a toy that counts. Each is answered once, with
each line that it printed once, and no two of its machines run at a time.
"""

import asyncio
import platform
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import MoveError, ServerLostError
from mayfly.fleet import tokens
from mayfly.fleet.engine import Credentials, Engine
from mayfly.fleet.failures import SilenceError
from mayfly.fleet.functions import creating, leaving
from mayfly.fleet.functions.messages import Change, Given
from mayfly.fleet.functions.verdicts import FunctionVerdicts
from mayfly.fleet.links import HostLink
from mayfly.fleet.operate import wait_until_idle, wish
from mayfly.functions.making import FunctionMachines, Revision
from mayfly.functions.spec import FunctionSpec
from mayfly.guests.start import Guest, StartKind
from mayfly.runs.moves.messages import Commit, Message, Ready
from mayfly.schema import msgspec, replace
from mayfly.snapshots import moving
from tests.kit import fleet_kit, toy_moves
from tests.kit.api_server import make_certificate
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until
from tests.kit.functions_kit import install_echo
from tests.kit.toy_moves import ToyProcess, World, make_guest, move_toys
from tests.unit.fleet.test_functions import ask, create
from tests.unit.fleet.test_leaving import operate
from tests.unit.fleet.test_security import secured


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    install_echo(monkeypatch, tmp_path)
    world = World()
    move_toys(monkeypatch, world)

    async def begin(self: FunctionMachines, revision: Revision) -> tuple[Guest, StartKind]:
        process = ToyProcess(world)
        await process.resume()
        return make_guest(process, replace(revision.wanted, loaded=revision.loaded)), StartKind.COLD

    monkeypatch.setattr(FunctionMachines, "start", begin)
    monkeypatch.setattr(leaving, "LONG_S", 0.0)
    monkeypatch.setattr(leaving, "AGAIN_S", 0.05)
    monkeypatch.setattr(toy_moves, "PACE_S", 0.05)
    return world


def printed(world: World) -> int:
    """How far the request has counted."""
    return max((process.state["n"] for process in world.made if process.alive), default=0)


async def ends(asked: "asyncio.Task[bytes]") -> bytes:
    """The answer to a request that needs to last no longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_moves, "PACE_S", 0.002)
        return await asked


async def lines(way: Way) -> list[str]:
    async with way.client.get("/functions/count/logs") as answer:
        return [line["text"] for line in (await answer.json())["lines"]]


async def begin(fleet: Fleet, way: Way, world: World, payload: bytes = b"~150") -> "asyncio.Task[bytes]":
    """A request that has printed something at the host h1."""
    await create(fleet, "count", timeout_s=500, queue_s=60)
    await until(lambda: bool(way.runner.functions.all()))
    asked = asyncio.create_task(ask(way.client, "count", payload))
    await until(lambda: printed(world) > 3)
    return asked


@asynccontextmanager
async def between_two(fleet: Fleet, world: World, payload: bytes = b"~150") -> AsyncIterator[tuple[Way, "asyncio.Task[bytes]"]]:
    """A request that has printed something at the host h1, and could go to h2; and the gateway."""
    await fleet.add_host("h1")
    async with fleet.gateway("g1") as way:
        asked = await begin(fleet, way, world, payload)
        await fleet.add_host("h2")
        await fleet.until_hosts(way, 2)
        yield way, asked


async def move_away(fleet: Fleet, source: str) -> None:
    await operate(fleet, partial(wish, name=source, drain=True))
    await operate(fleet, partial(wait_until_idle, name=source, within_s=60))


def test_a_drained_host_s_request_goes_on_elsewhere_and_back(world: World) -> None:
    async def scenario(fleet: Fleet) -> None:
        async with between_two(fleet, world) as (way, asked):
            await move_away(fleet, "h1")
            await operate(fleet, partial(wish, name="h1", drain=False))
            came = printed(world)
            await until(lambda: printed(world) > came + 3)
            await until(lambda: not any(host.beat and host.beat.draining for host in way.runner.roll if host.name == "h1"))
            await move_away(fleet, "h2")
            await fleet.remove_host("h2")
            assert not asked.done()
            assert await ends(asked) == b"150"
            assert await lines(way) == [str(number) for number in range(50, 150)]  # as many are shown
            assert len(world.identities) == 2

    in_fleet(scenario, limit_s=200)


@pytest.mark.parametrize("fault", ["machine", "room", "registry"])
def test_a_request_that_cannot_move_stays(world: World, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """As the other host has no room, its machine fails there, or no gateway registers the move."""
    tried = asyncio.Event()

    async def fail(*given: Any, **named: Any) -> Any:
        tried.set()
        if fault == "registry":
            return "go"
        raise MoveError("it fails")

    async def scenario(fleet: Fleet) -> None:
        async with between_two(fleet, world) as (way, asked):
            place, name = {
                "machine": (moving, "receive"),
                "room": (FunctionMachines, "start"),
                "registry": (FunctionVerdicts, "_move"),
            }[fault]
            monkeypatch.setattr(place, name, fail)
            await operate(fleet, partial(wish, name="h1", drain=True))
            await tried.wait()
            assert await ends(asked) == b"150"
            assert await lines(way) == [str(number) for number in range(50, 150)]
            assert not world.identities, "it went on where it was"
            await until(lambda: not any(process.alive for process in world.made if process.state["ticking"]))

    in_fleet(scenario, limit_s=100)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_request_is_where_the_gateway_says(world: World, monkeypatch: pytest.MonkeyPatch, arrives: bool) -> None:
    """Though the hosts lose their connection then."""
    send = HostLink.send

    async def lose(self: HostLink, message: Message) -> None:
        if isinstance(message, Commit):
            if arrives:
                await send(self, message)
            raise ServerLostError("the connection is lost")
        await send(self, message)

    monkeypatch.setattr(HostLink, "send", lose)

    async def scenario(fleet: Fleet) -> None:
        async with between_two(fleet, world) as (way, asked):
            await move_away(fleet, "h1")
            await fleet.remove_host("h1")
            assert await ends(asked) == b"150"
            assert await lines(way) == [str(number) for number in range(50, 150)]

    in_fleet(scenario, limit_s=100)


def test_a_host_that_hears_nothing_of_a_move_leaves_the_request_where_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loses its connection, and asks the gateway before that has registered the move."""
    send, move, asked_whose = HostLink.send, FunctionVerdicts._move, asyncio.Event()
    is_ours, verdicts = leaving.Requests._is_ours, list[str]()

    async def lose(self: HostLink, message: Message) -> None:
        await send(self, message)
        if isinstance(message, Ready):
            self._end()

    async def ask_whose(self: leaving.Requests, given: Given) -> bool:
        found = await is_ours(self, given)
        asked_whose.set()
        return found

    async def late(self: FunctionVerdicts, *given: Any) -> str:
        if not asked_whose.is_set():
            return "later"
        verdicts.append(await move(self, *given))
        return verdicts[-1]

    monkeypatch.setattr(HostLink, "send", lose)
    monkeypatch.setattr(leaving.Requests, "_is_ours", ask_whose)
    monkeypatch.setattr(FunctionVerdicts, "_move", late)

    async def scenario(fleet: Fleet) -> None:
        async with between_two(fleet, world) as (way, asked):
            await operate(fleet, partial(wish, name="h1", drain=True))
            await until(lambda: bool(verdicts))
            assert await ends(asked) == b"150"
            assert await lines(way) == [str(number) for number in range(50, 150)]
            assert verdicts[0] == "go"

    in_fleet(scenario, limit_s=100)


def test_a_host_that_hears_late_of_a_move_does_not_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's answer to it is lost, and the connection; the request is over when it asks
    again.
    """
    send, ask_engine = HostLink.send, Engine.ask
    over, lost = asyncio.Event(), asyncio.Event()

    async def lose(self: HostLink, message: Message) -> None:
        await send(self, message)
        if isinstance(message, Ready):
            asyncio.get_running_loop().call_later(0.5, self._end)

    async def ask_late(self: Engine, subject: str, data: bytes, timeout_s: float = 5.0) -> bytes:
        answer = await ask_engine(self, subject, data, timeout_s)
        if subject.startswith("fn.begin.h1.") and b"h2" in data and not lost.is_set():
            lost.set()
            await over.wait()
            raise SilenceError("the answer is lost")
        return answer

    monkeypatch.setattr(HostLink, "send", lose)
    monkeypatch.setattr(Engine, "ask", ask_late)

    async def scenario(fleet: Fleet) -> None:
        async with between_two(fleet, world, b"~40") as (way, asked):
            await operate(fleet, partial(wish, name="h1", drain=True))
            await lost.wait()
            assert await ends(asked) == b"40"
            over.set()
            await operate(fleet, partial(wait_until_idle, name="h1", within_s=60))
            assert await lines(way) == [str(number) for number in range(40)]
            assert len(world.identities) == 1

    in_fleet(scenario, limit_s=100)


def test_a_request_that_waits_for_the_gateway_is_given_to_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the host that it comes from says no more that it is busy with it."""
    move, busy, began, ack_wait_s = FunctionVerdicts._move, Engine.still_busy, list[float](), 3.0

    async def slow(self: FunctionVerdicts, *given: Any) -> str:
        began.append(time.monotonic())
        return await move(self, *given) if began[-1] - began[0] > 2 * ack_wait_s else "later"

    async def be_busy(self: Engine, ack: str) -> None:
        if self.name == "h2" or not began:
            await busy(self, ack)

    monkeypatch.setattr(fleet_kit, "ACK_WAIT_S", ack_wait_s)
    monkeypatch.setattr(FunctionVerdicts, "_move", slow)
    monkeypatch.setattr(Engine, "still_busy", be_busy)

    async def scenario(fleet: Fleet) -> None:
        async with between_two(fleet, world) as (_, asked):
            await move_away(fleet, "h1")
            assert await ends(asked) == b"150"
            assert len(world.identities) == 1

    in_fleet(scenario, limit_s=100)


def test_a_request_that_no_guest_has_is_given_back_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            await create(fleet, "count", timeout_s=500, queue_s=60)
            await until(lambda: bool(way.runner.functions.all()))
            start, starting = FunctionMachines.start, asyncio.Event()

            async def hang(self: FunctionMachines, revision: Revision) -> Any:
                starting.set()
                await asyncio.Event().wait()

            monkeypatch.setattr(FunctionMachines, "start", hang)
            asked = asyncio.create_task(ask(way.client, "count", b"3"))
            await starting.wait()
            monkeypatch.setattr(FunctionMachines, "start", start)
            await fleet.add_host("h2")
            await operate(fleet, partial(wish, name="h1", drain=True))
            assert await asked == b"3"

    in_fleet(scenario)


def test_tokens_let_hosts_move_requests(world: World, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    users, arch = tmp_path / "users.conf", platform.machine()
    for name, kind in (("g1", "gateway"), ("h1", "host"), ("h2", "host"), ("operator", "operator")):
        (tmp_path / f"{name}.seed").write_bytes(tokens.create(users, name, kind, arch if kind == "host" else ""))

    def credentials(name: str) -> Credentials:
        return Credentials(ca=str(certificate), seed=str(tmp_path / f"{name}.seed"))

    async def scenario(fleet: Fleet) -> None:
        fleet.credentials = credentials
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way, Engine.connect((fleet.server.url,), "operator", credentials("operator")) as operator:
            spec = FunctionSpec(name="count", language="toy", code="/code", timeout_s=500)
            await creating.change(operator, Change(spec=msgspec.json.encode(spec), code={"": b"true"}))
            await until(lambda: bool(way.runner.functions.all()))
            asked = asyncio.create_task(ask(way.client, "count", b"~150"))
            await until(lambda: printed(world) > 3)
            await fleet.add_host("h2")
            await fleet.until_hosts(way, 2)
            await wish(operator, "h1", drain=True)
            await wait_until_idle(operator, "h1", 60)
            assert not asked.done()
            assert await ends(asked) == b"150"
            assert len(world.identities) == 1

    in_fleet(scenario, limit_s=100, more=secured(certificate, key, users))
