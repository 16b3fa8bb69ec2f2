"""A host that is drained gives a request to a function to another host with its guest's machine,
which is a real one: a tiny guest plays the function. It is answered once, each line once.
"""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mayfly.api.functions import MAX_LINES
from mayfly.fleet import worker
from mayfly.fleet.functions import leaving
from mayfly.fleet.operate import wait_until_idle, wish
from mayfly.functions.making import FunctionMachines, Revision
from mayfly.guests.start import Guest, StartKind, start
from mayfly.guests.zygote import Zygote
from mayfly.images.store import Images
from mayfly.protocol import frames as p
from mayfly.schema import replace
from mayfly.vmm.config import Channel
from tests.kit import tiny
from tests.kit.api_fakes import MARKER
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until
from tests.kit.functions_kit import install_echo
from tests.kit.scale import patience
from tests.kvm.test_lost_function import ANSWER, MOVED
from tests.kvm.test_moved_run import CYCLE, playing
from tests.unit.fleet.test_functions import ask, create
from tests.unit.fleet.test_leaving import operate

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]


def test_a_request_moves_with_its_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_echo(monkeypatch, tmp_path)
    hello = p.Hello(p.PROTOCOL_VERSION, "toy", Images().arch, 1, MARKER)
    guest = playing(tmp_path, hello, opening=[p.Stdout(b"begun\n")], ending=[ANSWER], until=MOVED)
    machine: dict[str, Any] = {"kernel": tiny.build(tmp_path, guest), "channel": Channel.SERIAL}

    async def boot(self: FunctionMachines, revision: Revision) -> tuple[Guest, StartKind]:
        return await start(self._spawner, replace(revision.wanted, loaded=revision.loaded)), StartKind.COLD

    async def try_out(self: FunctionMachines, *given: Any, **named: Any) -> None:
        """The guest loads nothing."""

    monkeypatch.setattr(FunctionMachines, "start", boot)
    monkeypatch.setattr(FunctionMachines, "try_out", try_out)
    monkeypatch.setattr(worker, "LOOK_S", 0.2)
    monkeypatch.setattr(leaving, "LONG_S", 0.0)

    async def printed(way: Way) -> list[str]:
        async with way.client.get("/functions/count/logs", params={"last": MAX_LINES}) as answer:
            return [line["text"] for line in (await answer.json())["lines"]]

    async def scenario(fleet: Fleet) -> None:
        h1 = await fleet.add_host("h1", begin=Zygote.start, **machine)
        async with fleet.gateway("g1") as way:
            await create(fleet, "count", timeout_s=600)
            await until(lambda: bool(way.runner.functions.all()))
            asked = asyncio.create_task(ask(way.client, "count", b"go!!"))
            await until(lambda: h1.admission.used > 0 and any(one.begun for one in way.runner.functions._waiting.values()))
            await asyncio.sleep(0.5)  # it prints
            h2 = await fleet.add_host("h2", begin=Zygote.start, **machine)
            await fleet.until_hosts(way, 2)
            await operate(fleet, partial(wish, name="h1", drain=True))
            assert await asked == b"done"
            await operate(fleet, partial(wait_until_idle, name="h1", within_s=60))
            await fleet.remove_host("h1")
            lines = [line for line in await printed(way) if line != "begun"]
            first = int(lines[0])
            assert len(lines) > 20
            assert lines == [str((first + number) % CYCLE) for number in range(len(lines))]
            assert h2.admission.used > 0

    in_fleet(scenario, limit_s=patience(90))
