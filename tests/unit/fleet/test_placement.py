"""A thousand hosts, played but for how they pull: runs go to those that are warm, and to others
when those are full.
"""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.api.app import functions_beside
from mayfly.fleet import engine as connections
from mayfly.fleet import roll, worker
from mayfly.fleet.engine import Engine
from mayfly.fleet.worker import Worker
from mayfly.guests.outcome import StepResult
from mayfly.host.config import Config
from mayfly.host.metrics import Metrics
from mayfly.host.plan import want_machine
from mayfly.host.snippet import Snippet
from mayfly.images.store import InstalledImage
from mayfly.protocol.frames import Exit, ExitHow, Limit, Stage
from mayfly.runs.run import Run
from mayfly.runs.runner import Order
from mayfly.runs.service import Service
from tests.kit import fleet_kit
from tests.kit.api_fakes import factory, install_toys, small_config
from tests.kit.fleet_kit import ACK_WAIT_S, Fleet, in_fleet, until
from tests.kit.scale import FULL

HOSTS, EACH = 1000, 10
"""Every tenth is warm."""
AT_ONCE = 20
FIT = 4
"""Machines that a host has the memory for."""
SPILLED = 200
"""Runs more than all warm hosts have the memory for."""


class Played(Service):
    """A host without machines: its runs last until `go_on`. Memory is taken and given back."""

    def __init__(self, config: Config, images: list[InstalledImage], go_on: asyncio.Event) -> None:
        super().__init__(config, factory(), sockets=None)
        self.begun = self.most = self._running = 0
        self._installed = images
        self._go_on = go_on
        self._playing: set[asyncio.Task[None]] = set()

    def installed(self) -> list[InstalledImage]:
        return self._installed

    def image_for(self, snippet: Snippet) -> InstalledImage:
        return self._installed[0]

    def start(self, snippet: Snippet, image: InstalledImage | None = None, *_: Any, run_id: str = "", **_more: Any) -> Run:
        image = image or self._installed[0]
        run = Run(language="py", version=image.manifest.version, mode=snippet.output, step_names=("run",), run_id=run_id)
        ticket = self.admission.enter(want_machine(image, self.config).machine.memory)

        async def play() -> None:
            run.replay(Stage(0, "run"))
            await self._go_on.wait()
            run.replay(StepResult("run", Exit(0, ExitHow.EXITED, 0, Limit.NONE, 1, 1, 1, (False, False))))
            run.finish()
            self._running -= 1
            self.admission.leave(ticket)

        self.begun += 1
        self._running += 1
        self.most = max(self.most, self._running)
        task = asyncio.create_task(play())
        self._playing.add(task)
        task.add_done_callback(self._playing.discard)
        return run


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    """A connection for each host, in this process and in the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * HOSTS)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def thousand(fleet: Fleet, go_on: asyncio.Event) -> AsyncIterator[list[Played]]:
    """The hosts, of which every tenth takes its language as warm."""
    sample = Service(small_config(fleet.folder), factory(), sockets=None)
    images = [image for image in sample.installed() if image.manifest.language == "py"]
    memory = want_machine(images[0], sample.config).machine.memory
    await sample.close()
    metrics = Metrics()
    hosts: list[Played] = []
    async with contextlib.AsyncExitStack() as opened:
        for number in range(HOSTS):
            config = small_config(fleet.folder, cold=number % EACH == 0, memory_budget=FIT * memory)
            engine = await opened.enter_async_context(Engine.connect((fleet.server.url,), f"h{number}"))
            host = Played(config, images, go_on)
            functions = await opened.enter_async_context(functions_beside(host))
            member = Worker(host, functions, metrics, engine, ack_wait_s=ACK_WAIT_S)
            await member.begin()
            opened.push_async_callback(member.close)
            hosts.append(host)
        yield hosts


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not FULL, reason="a thousand hosts take minutes: only with MAYFLY_FULL=1")
def test_runs_go_to_warm_hosts_and_then_beyond(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    monkeypatch.setattr(fleet_kit, "QUICK", {"worker.BEAT_S": 5.0, "worker.LOOK_S": 3600.0})  # they are all in one process
    monkeypatch.setattr(worker, "EXPIRES_S", 30.0)
    monkeypatch.setattr(roll, "SILENT_S", 120.0)
    monkeypatch.setattr(connections, "CONNECT_S", 300.0)

    async def scenario(fleet: Fleet) -> None:
        go_on = asyncio.Event()
        async with fleet.gateway("g1", queue=2 * HOSTS) as way, thousand(fleet, go_on) as hosts:
            warm = hosts[::EACH]
            await until(lambda: sum(bool(host.images) for host in way.runner.roll) == HOSTS, 300)
            snippet = Snippet(language="py", source=b"")
            image = way.runner.image_for(snippet)

            async def begin(count: int) -> list[Run]:
                runs = []
                for _ in range(count):
                    await until(lambda: bool(way.runner.health().quorum), 120)  # as far as is known in a process that answers for all
                    runs.append(await way.runner.begin(Order(snippet, image)))
                return runs

            go_on.set()
            for _ in range(10):
                for one in await begin(AT_ONCE):
                    await asyncio.wait_for(one.done.wait(), 120)
                    assert one.verdict().status == "ok"
            light = sum(host.begun for host in hosts)
            assert light == 10 * AT_ONCE
            on_warm = sum(host.begun for host in warm)
            assert on_warm > 0.9 * light

            go_on.clear()
            held = await begin(FIT * len(warm) + SPILLED)
            await until(lambda: sum(host.begun for host in hosts) - light >= len(held), 300)
            assert max(host.most for host in hosts) <= FIT
            beyond = sum(host.most for host in hosts) - sum(host.most for host in warm)
            assert beyond >= SPILLED
            assert sum(host.most for host in warm) > 0.9 * FIT * len(warm)
            go_on.set()
            for one in held:
                await asyncio.wait_for(one.done.wait(), 120)
            print(f"{on_warm} of {light} runs on warm hosts, then {beyond} of {len(held)} beyond them")
            assert sum(host.begun for host in hosts) == light + len(held)

    with many_descriptors():
        in_fleet(scenario, limit_s=800, more=lambda _: "ping_interval: 120")  # one process answers for all
