"""A fleet in one process: a real nats-server, gateways with their HTTP servers, and hosts whose
machines are ordinary processes (api_fakes.py).
"""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from mayfly.api.app import functions_beside, serve_http
from mayfly.fleet import worker
from mayfly.fleet.engine import Credentials
from mayfly.fleet.gateway import Gateway
from mayfly.fleet.open import Place, join
from mayfly.fleet.open import gateway as open_gateway
from mayfly.fleet.server import LocalServer
from mayfly.guests.zygote import Zygote
from mayfly.host.listen import open_doors
from mayfly.host.metrics import Metrics
from mayfly.host.sockets import claim
from mayfly.runs.moves.link import Machines
from mayfly.runs.service import Service
from tests.kit.api_fakes import small_config
from tests.kit.fake_nursery import nursed

ACK_WAIT_S = 6.0
"""Longer than a loaded machine keeps a host from saying that its runs go on."""
QUICK = {
    "worker.BEAT_S": 0.1,
    "worker.LOOK_S": 0.2,
    "worker.CLOSE_S": 1.0,
    "watch.QUIET_S": 0.5,
    "failing.FIRST_S": 0.1,
    "follow.LOOK_S": 0.5,
}
"""How soon members of a fleet know of one another, and how long hosts without a gateway wait when
they stop: names in `mayfly.fleet`.
"""
MEMORY = Path("/dev/shm")
ROOM = 1 << 30


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    """A folder in memory, if that has the room: a server writes each run to its disk, and waits for
    that. Tests kill processes, not machines.
    """
    stat = os.statvfs(MEMORY) if MEMORY.is_dir() else None
    roomy = stat is not None and stat.f_bavail * stat.f_frsize >= ROOM
    with tempfile.TemporaryDirectory(prefix="mayfly-", dir=MEMORY if roomy else None) as name:
        yield Path(name)


class Way(NamedTuple):
    """A gateway, a client of its Unix socket, and where clients with keys come."""

    runner: Gateway
    client: aiohttp.ClientSession
    url: str

    def client_of(self, token: str) -> aiohttp.ClientSession:
        """A client with an API key."""
        return aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {token}"})


class Fleet:
    """What a scenario works with. `server` may be stopped and started."""

    def __init__(self, server: LocalServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.hosts: dict[str, Service] = {}
        self.leaving: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.credentials: Callable[[str], Credentials] = lambda _: Credentials()

    def place(self, name: str) -> Place:
        """For one who comes by that name."""
        return Place(urls=(self.server.url,), name=name, ack_wait_s=ACK_WAIT_S, credentials=self.credentials(name))

    async def add_host(
        self, name: str, machines: Callable[[Service], Machines] | None = None, begin: Callable[[], Zygote] | None = None, **changes: Any
    ) -> Service:
        """Have a host join, whose processes come from what `begin` begins."""
        joined: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
        self.leaving[name] = leave = asyncio.Event()

        async def serve() -> None:
            metrics = Metrics()
            config = small_config(self.folder, **changes)
            async with (
                Service(config, begin or nursed, sockets=None, observer=metrics) as service,
                functions_beside(service) as functions,
                join(service, functions, metrics, self.place(name), machines and machines(service)),
            ):
                joined.set_result(service)
                await leave.wait()
                await functions.close()
                await service.close()  # as the server of a host does, before it leaves the fleet

        self.tasks[name] = task = asyncio.create_task(serve())
        while not joined.done():
            await asyncio.sleep(0.02)
            if task.done():
                await task
        self.hosts[name] = joined.result()
        return self.hosts[name]

    async def remove_host(self, name: str) -> None:
        """Have a host stop, as SIGTERM does."""
        self.leaving[name].set()
        await self.tasks.pop(name)
        del self.hosts[name]

    @contextlib.asynccontextmanager
    async def gateway(self, name: str, **changes: Any) -> AsyncIterator[Way]:
        """A gateway with its server, which knows all hosts."""
        config = small_config(self.folder, **{"socket": self.folder / name / "api.sock", "listen": ("127.0.0.1:0",), **changes})
        stop = asyncio.Event()
        with claim(config.socket) as (listener, sockets), open_doors(config) as doors:
            async with open_gateway(config, sockets, self.place(name)) as (runner, functions, metrics, _):
                server = asyncio.create_task(serve_http(runner, functions, metrics, listener, stop, doors))
                connector = aiohttp.UnixConnector(path=str(config.socket), limit=0)
                async with aiohttp.ClientSession("http://mayfly", connector=connector) as client:
                    try:
                        await until(lambda: {host.name for host in runner.roll if host.about} >= self.hosts.keys())
                        yield Way(runner, client, doors[0].url)
                    finally:
                        stop.set()
                        await server

    @contextlib.asynccontextmanager
    async def two_gateways(self, **changes: Any) -> AsyncIterator[tuple[Way, Way]]:
        """Two gateways."""
        async with self.gateway("g1", **changes) as one, self.gateway("g2", **changes) as two:
            yield one, two

    async def until_hosts(self, way: Way, count: int) -> None:
        """Wait until a gateway knows so many hosts, and their images."""
        await until(lambda: sum(bool(host.images) for host in way.runner.roll) == count)


async def until(done: Callable[[], bool], limit_s: float = 30) -> None:
    """Wait for something that nothing tells of."""
    async with asyncio.timeout(limit_s):
        while not done():
            await asyncio.sleep(0.02)


def in_fleet(scenario: Callable[[Fleet], Awaitable[Any]], limit_s: float = 60, more: Callable[[Path], str] = lambda _: "") -> Any:
    """Run a scenario beside a server, whose configuration has `more`, which is told its folder.
    Hosts that have joined leave.
    """

    async def whole(fleet: Fleet) -> Any:
        try:
            return await asyncio.wait_for(scenario(fleet), limit_s)
        finally:
            patch.setattr(worker, "CLOSE_S", 0.0)  # no gateway is there any more
            for name in list(fleet.tasks):
                await fleet.remove_host(name)

    with server_folder() as folder, pytest.MonkeyPatch.context() as patch:
        for setting, seconds in QUICK.items():
            patch.setattr(f"mayfly.fleet.{setting}", seconds)
        server = LocalServer(folder / "nats", more=more(folder / "nats"))
        server.start()
        try:
            return asyncio.run(whole(Fleet(server, folder)))
        finally:
            server.stop(signal.SIGKILL)  # it would take its time
