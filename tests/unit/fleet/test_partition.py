"""Three servers, each on a network of its own, of which one is cut off: what was accepted goes on.

The networks are this test's alone: namespaces within one that no other process is in.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from mayfly.fleet.server import LocalServer, find_server
from tests.kit.api_fakes import ROOT, install_toys
from tests.kit.net_kit import add_bridge
from tests.kit.scale import FULL
from tests.unit.fleet.test_cluster import ClusterFleet
from tests.unit.fleet.test_fleet import events, get, output, run

SERVERS = 3
ROUTES = 6222
WRAPPER = """#!/bin/sh
name=${{2##*/}} # -c FOLDER/n1.conf
exec ip netns exec "${{name%.conf}}" {server} "$@"
"""


def possible() -> bool:
    """Whether namespaces can be made here."""
    programs = all(map(shutil.which, ("unshare", "ip", "mount")))
    return programs and subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False).returncode == 0


def address(number: int) -> str:
    return f"10.77.0.{number + 1}"


class Apart(LocalServer):
    """A server in the network namespace of its name, which can be cut off."""

    def __init__(self, folder: Path, number: int) -> None:
        routes = ", ".join(f'"nats://{address(other)}:{ROUTES}"' for other in range(SERVERS) if other != number)
        more = f'host: "{address(number)}"\ncluster {{ name: fleet, listen: "{address(number)}:{ROUTES}", routes: [{routes}] }}'
        super().__init__(folder / f"n{number}", name=f"n{number}", port=4222, more=more)
        self.number = number

    @property
    def url(self) -> str:
        return f"nats://{address(self.number)}:4222"

    def cut(self, *, off: bool) -> None:
        """Pull the cable, or put it in."""
        ip("link", "set", f"v{self.number}", "down" if off else "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def apart(folder: Path) -> Iterator[list[Apart]]:
    """The servers. This process is in a namespace of its own, beside theirs."""
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "netns", "/run/netns"], check=True)
    (folder / "nats-server").write_text(WRAPPER.format(server=find_server()))
    (folder / "nats-server").chmod(0o755)
    ip("link", "set", "lo", "up")
    add_bridge("hub")
    ip("link", "set", "hub", "up")
    ip("addr", "add", "10.77.0.100/24", "dev", "hub")
    for number in range(SERVERS):
        ip("netns", "add", f"n{number}")
        ip("link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", f"n{number}")
        ip("link", "set", f"v{number}", "up", "master", "hub")
        ip("-n", f"n{number}", "addr", "add", f"{address(number)}/24", "dev", "eth0")
        ip("-n", f"n{number}", "link", "set", "eth0", "up")
        ip("-n", f"n{number}", "link", "set", "lo", "up")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as running:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield [running.enter_context(Apart(folder, number)) for number in range(SERVERS)]


async def scenario(fleet: ClusterFleet, servers: list[Apart]) -> None:
    for name in ("h1", "h2"):
        await fleet.add_host(name, run_wall_s=100.0)
    async with fleet.two_gateways() as (one, two):
        assert (await run(one.client, "echo three"))["steps"][1]["stdout"] == "three\n"
        for server in servers:
            running = [await begin(one.client, f"begun-{server.number}-{number}", f"sleep 1; echo {number}") for number in range(4)]
            server.cut(off=True)
            cut = time.monotonic()
            asked = [asyncio.create_task(again(way.client, f"{server.number}-{number}")) for number in range(4) for way in (one, two)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            print(f"{time.monotonic() - cut:.1f} s after a server was cut off the first run was over")
            for number, run_id in enumerate(running):
                assert output(await events(one.client, run_id)).endswith(f"{number}\n")
            ids = [await each for each in asked]
            server.cut(off=False)
            assert len(set(ids)) == 4, "a key began one run, at whichever gateway"
            async with asyncio.timeout(60):
                while not all([(await get(way.client, "/healthz"))["quorum"] for way in (one, two)]):
                    await asyncio.sleep(0.2)
        assert not [one for one in fleet.hosts.values() if one.under_way]


async def begin(client: aiohttp.ClientSession, key: str, source: str, path: str = "/start") -> str:
    """Have a run begin, or done, asking with its key until it is accepted; its id."""
    async with asyncio.timeout(120):
        while True:
            body = {"language": "toy", "source": source}
            async with client.post(path, json=body, headers={"Idempotency-Key": key}) as answer:
                found = await answer.json()
                if answer.status in (200, 201):
                    if path == "/run":
                        assert found["status"] == "ok", found["error"]
                        assert found["steps"][1]["stdout"] == f"{key}\n"
                    return str(found["id"])
                assert answer.status == 503, found
            await asyncio.sleep(0.2)


async def again(client: aiohttp.ClientSession, key: str) -> str:
    """Have a run done that says its key."""
    return await begin(client, key, f"echo {key}", "/run")


def inside(name: str) -> None:
    """The scenario, in a process whose networks are its own."""
    folder = Path(name)

    async def whole(fleet: ClusterFleet, servers: list[Apart]) -> None:
        try:
            await asyncio.wait_for(scenario(fleet, servers), 400)
        finally:
            for host in list(fleet.tasks):
                await fleet.remove_host(host)

    with pytest.MonkeyPatch.context() as patch, apart(folder) as servers:
        install_toys(patch, folder)
        asyncio.run(whole(ClusterFleet(list(servers), folder), servers))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not FULL, reason="three servers need a quiet machine: only with MAYFLY_FULL=1")
@pytest.mark.skipif(not possible(), reason="network namespaces cannot be made here")
def test_a_server_that_is_cut_off_takes_no_run_along() -> None:
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        program = f"from tests.unit.fleet.test_partition import inside; inside({name!r})"
        command = ["unshare", "--net", "--mount", sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    print(done.stdout)
