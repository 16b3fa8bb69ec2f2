"""A fleet of processes, as it is run: hosts and gateways that are killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mayfly.fleet.local import Member
from mayfly.fleet.server import LocalServer
from tests.kit.api_fakes import ROOT, install_toys
from tests.unit.fleet.test_fleet import events, output, run, start

PROGRAM = (sys.executable, "-m", "tests.kit.fake_mayfly", "-")


class Processes:
    """The processes of a fleet, and clients of its gateways."""

    def __init__(self, folder: Path, server: LocalServer) -> None:
        self.folder = folder
        self.server = server
        self.members: dict[str, Member] = {}

    def begin(self, name: str, *command: str) -> None:
        socket = self.folder / name / "api.sock"
        common = [
            "--socket",
            str(socket),
            "--name",
            name,
            "--time-factor",
            "1",
            "--ack-wait",
            "2",
            "--memory-budget",
            "512M",
            "--wall",
            "200",
        ]
        self.members[name] = Member([*PROGRAM, *command, *common], self.folder / f"{name}.log")

    def host(self, name: str, *more: str) -> None:
        self.begin(name, "serve", "--join", self.server.url, "--cold", *more)

    def gateway(self, name: str, *more: str) -> None:
        self.begin(name, "gateway", self.server.url, *more)

    def client(self, name: str) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(path=str(self.folder / name / "api.sock"), limit=0)
        return aiohttp.ClientSession("http://mayfly", connector=connector)

    def kill(self, name: str) -> None:
        """kill -9, with all that the process has started."""
        os.killpg(self.members[name].process.pid, signal.SIGKILL)
        self.members.pop(name).process.wait()

    def command(self, *words: str) -> str:
        done = subprocess.run([*PROGRAM, "fleet", *words, "--fleet", self.server.url], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Processes]:
    install_toys(monkeypatch, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name, LocalServer(Path(name) / "nats") as server:
        processes = Processes(Path(name), server)
        yield processes
        for member in processes.members.values():
            member.stop()


async def until_languages(client: aiohttp.ClientSession, count: int = 3) -> None:
    async with asyncio.timeout(30):
        while True:
            async with client.get("/languages") as answer:
                if len((await answer.json())["languages"]) == count:
                    return
            await asyncio.sleep(0.05)


def test_who_is_killed_takes_no_run_along(fleet: Processes, tmp_path: Path) -> None:
    fleet.gateway("g1")
    fleet.gateway("g2")
    fleet.host("h1")
    for member in fleet.members.values():
        member.wait_until_ready()
    log, gate = tmp_path / "log", tmp_path / "gate"
    source = f"echo begun >> {log}; echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo end"

    async def scenario() -> None:
        async with fleet.client("g1") as one, fleet.client("g2") as two:
            await until_languages(one)
            await until_languages(two)
            run_id = await start(one, source)
            while not log.exists():
                await asyncio.sleep(0.02)
            fleet.host("h2")
            await asyncio.to_thread(fleet.members["h2"].wait_until_ready)
            following = asyncio.create_task(events(two, run_id))
            fleet.kill("h1")
            while len(log.read_text().split()) < 2:
                await asyncio.sleep(0.02)
            fleet.kill("g1")
            gate.touch()
            seen = await following
            assert output(seen).endswith("begun\nend\n")
            assert seen[-1]["event"] == "done"
            async with two.get(f"/runs/{run_id}") as answer:
                found: dict[str, Any] = await answer.json()
            assert (found["status"], found["steps"][1]["stdout"]) == ("ok", "begun\nend\n")
            assert len(log.read_text().split()) == 2

    asyncio.run(asyncio.wait_for(scenario(), 240))


UP = """
import sys
from pathlib import Path
from mayfly.fleet.local import serve_locally

place = Path(sys.argv[1])
say = lambda text: print(text, flush=True)
options = dict(port=-1, socket=place / "up" / "api.sock", of_gateway=(), of_hosts=("--time-factor", "1"), say=say)
serve_locally(2, place / "fleet", program=(sys.executable, "-m", "tests.kit.fake_mayfly", "-"), **options)
"""


def test_a_whole_fleet_comes_up_on_one_machine_and_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        socket = Path(name) / "up" / "api.sock"
        with subprocess.Popen([sys.executable, "-c", UP, name], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert any("2 hosts" in line for line in iter(process.stdout.readline, ""))

            async def scenario() -> None:
                connector = aiohttp.UnixConnector(path=str(socket))
                async with aiohttp.ClientSession("http://mayfly", connector=connector) as client:
                    await until_languages(client)
                    assert (await run(client, "echo up"))["steps"][1]["stdout"] == "up\n"

            asyncio.run(asyncio.wait_for(scenario(), 60))
            process.terminate()
            assert process.stdout.read() == "stopping\n"
            assert process.wait(60) == 0
        assert not socket.exists()


def test_a_fleet_under_load_is_drained(fleet: Processes) -> None:
    fleet.gateway("g1")
    for name in ("h1", "h2", "h3"):
        fleet.host(name)
    for member in fleet.members.values():
        member.wait_until_ready()

    async def scenario() -> None:
        async with fleet.client("g1") as client:
            await until_languages(client)
            runs = [asyncio.create_task(run(client, f"echo {number}")) for number in range(24)]
            drained = await asyncio.to_thread(fleet.command, "drain", "h1", "--wait", "60")
            assert drained == ""
            found = await asyncio.gather(*runs)
            assert [each["steps"][1]["stdout"] for each in found] == [f"{number}\n" for number in range(24)]
            listed = {host["name"]: host for host in json.loads(await asyncio.to_thread(fleet.command, "list", "--json"))}
            assert {name: host["draining"] for name, host in listed.items()} == {"h1": True, "h2": False, "h3": False}
            await asyncio.to_thread(fleet.command, "undrain", "h1")
            async with client.get("/metrics") as answer:
                lines = (await answer.text()).splitlines()
            ended = sum(float(line.split()[1]) for line in lines if line.startswith("mayfly_runs_total{"))
            assert ended == 24
            assert 'mayfly_fleet_up{host="h2"} 1' in lines
            assert 'mayfly_fleet_accepted{host="g1"} 24' in lines

    asyncio.run(asyncio.wait_for(scenario(), 240))
