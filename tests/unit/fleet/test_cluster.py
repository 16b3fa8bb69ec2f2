"""Three servers: what was accepted survives the one that led."""

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.fleet import engine
from mayfly.fleet.engine import Delivery, Engine
from mayfly.fleet.open import Place
from mayfly.fleet.server import LocalServer
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import ACK_WAIT_S, Fleet, in_fleet
from tests.kit.scale import FULL
from tests.unit.fleet.test_fleet import events, output, run, start


class ClusterFleet(Fleet):
    """A fleet of three servers."""

    def __init__(self, servers: list[LocalServer], folder: Path) -> None:
        super().__init__(servers[0], folder)
        self.servers = servers

    def place(self, name: str) -> Place:
        urls = tuple(server.url for server in self.servers)
        return Place(urls=urls, name=name, ack_wait_s=ACK_WAIT_S, replicas=3)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[list[LocalServer]]:
    with contextlib.ExitStack() as opened:
        places = [opened.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(3)]
        opened.close()
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in places)
        with contextlib.ExitStack() as running:
            yield [
                running.enter_context(
                    LocalServer(
                        folder / f"n{number}",
                        name=f"n{number}",
                        more=f'cluster {{ name: fleet, listen: "127.0.0.1:{port}", routes: [{routes}] }}',
                    )
                )
                for number, port in enumerate(places)
            ]


def test_a_pull_that_is_lost_with_its_server_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a host would wait for its end for ever, and ask for no more runs."""
    monkeypatch.setattr(engine, "LOST_S", 0.0)

    async def scenario(fleet: Fleet) -> None:
        async with Engine.connect((fleet.server.url,), "h1") as h1:
            ended: asyncio.Queue[tuple[str, Delivery | None]] = asyncio.Queue()
            await h1.listen_for_work(lambda lang, delivery: ended.put_nowait((lang, delivery)))

            async def lose(*_: Any, **__: Any) -> None:
                """Drop the request."""

            monkeypatch.setattr(h1._client, "publish", lose)
            for _ in range(2):
                await h1.pull("x", "toy", priority=0, expires_s=0.1)
            assert [await ended.get() for _ in range(2)] == [("toy", None)] * 2
            await h1.pull("x", "toy", priority=0, expires_s=60)
            h1._forget_pulls()
            assert ended.empty()

    in_fleet(scenario)


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="three servers need a quiet machine: only with MAYFLY_FULL=1")
def test_a_leader_that_is_killed_takes_no_run_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)

    async def scenario(fleet: ClusterFleet) -> None:
        for name in ("h1", "h2"):
            await fleet.add_host(name)
        async with fleet.gateway("g1") as way:
            assert (await run(way.client, "echo three"))["steps"][1]["stdout"] == "three\n"
            for server in fleet.servers:
                running = [await start(way.client, f"sleep 1; echo {number}") for number in range(4)]
                await asyncio.to_thread(server.stop, 9)  # one of the three was the leader
                for number, run_id in enumerate(running):
                    assert output(await events(way.client, run_id)).endswith(f"{number}\n")
                async with asyncio.timeout(60):
                    while True:
                        async with way.client.post("/run", json={"language": "toy", "source": "echo again"}) as answer:
                            if answer.status == 200:
                                break
                            assert answer.status == 503, await answer.text()
                        await asyncio.sleep(0.2)
                await asyncio.to_thread(server.start)

    async def whole(fleet: ClusterFleet) -> None:
        try:
            await asyncio.wait_for(scenario(fleet), 240)
        finally:
            for name in list(fleet.tasks):
                await fleet.remove_host(name)

    with tempfile.TemporaryDirectory(prefix="mayfly-") as name, cluster(Path(name) / "nats") as servers:
        asyncio.run(whole(ClusterFleet(servers, Path(name))))
