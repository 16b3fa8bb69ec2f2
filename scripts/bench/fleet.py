"""What a fleet adds to a run: the same requests to one host, through a plain proxy before it, and
through a gateway with a server and hosts behind it; how soon runs go on when a host, a gateway or
the server dies; and what hosts and readers cost in memory. Guests are played, as in requests.py.

Usage: python -m scripts.bench.fleet [--requests N] [--clients N] [--rounds N] [--sync TIME] RESULT
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mayfly.fleet.open import Place, join
from mayfly.fleet.server import LocalServer
from mayfly.host.config import Config
from scripts.bench.requests import CLIENTS, WAIT_S, WARM_UP, be_server, load
from tests.kit.api_fakes import install_toys

HOSTS = 2
LONG = 8
"""Runs that are under way when something dies."""
LASTS_S = 3
READERS = 200
COUNTED = 100
IDLE_S = 3.0
DOWN_S = 1.0
"""The server is started again after so long."""


def be_host(folder: Path, url: str, name: str) -> None:
    """A host of the fleet."""
    be_server(folder, functools.partial(join, place=Place(urls=(url,), name=name)))


def be_gateway(folder: Path, url: str, name: str) -> None:
    """A gateway."""
    from mayfly.api.app import serve
    from mayfly.fleet.open import gateway

    config = Config(socket=folder / "api.sock", kernel=folder / "vmlinux", queue=4 * CLIENTS, time_factor=1.0)
    with pytest.MonkeyPatch.context() as patch:
        install_toys(patch, folder)
        asyncio.run(serve(config, functools.partial(gateway, place=Place(urls=(url,), name=name))))


async def proxy(folder: Path, behind: Path) -> None:
    """Pass requests on, as simply as aiohttp can."""
    async with aiohttp.ClientSession("http://mayfly", connector=aiohttp.UnixConnector(path=str(behind), limit=0)) as client:

        async def handle(request: web.Request) -> web.StreamResponse:
            headers = {"Content-Type": request.headers["Content-Type"]}
            async with client.post(request.path_qs, data=await request.read(), headers=headers) as answer:
                found = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]})
                await found.prepare(request)
                async for piece in answer.content.iter_any():
                    await found.write(piece)
                await found.write_eof()
                return found

        app = web.Application()
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(folder / "api.sock")).start()
        await asyncio.Event().wait()


@contextlib.contextmanager
def process(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the measurement, once it serves."""
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench.fleet", *words, "--folder", str(folder)], stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + WAIT_S
        while not (folder / "api.sock").exists():
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words[0]} did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait(WAIT_S)


def to(folder: Path) -> aiohttp.ClientSession:
    """A client of the server in that folder."""
    return aiohttp.ClientSession("http://mayfly", connector=aiohttp.UnixConnector(path=str(folder / "api.sock"), limit=0))


async def until_known(folder: Path) -> None:
    """Wait until a gateway knows a language."""
    async with to(folder) as client:
        while True:
            async with client.get("/languages") as answer:
                if (await answer.json())["languages"]:
                    return
            await asyncio.sleep(0.1)


def measure(requests: int, clients: int, rounds: int, sync: str) -> dict[str, Any]:
    """All three, round after round, so that what else the machine does concerns all of them."""
    found: dict[str, list[Any]] = {"host": [], "proxy": [], "fleet": []}
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        monitor = _free_port()
        server = running.enter_context(LocalServer(folder / "nats", sync=sync, more=f"http: 127.0.0.1:{monitor}"))
        doors = {"host": running.enter_context(process(folder / "one", "host"))}
        doors["proxy"] = running.enter_context(process(folder / "proxy", "proxy", "--behind", str(folder / "one" / "api.sock")))
        hosts = {
            name: running.enter_context(process(folder / name, "joined", "--url", server.url, "--name", name))
            for name in (f"h{number}" for number in range(HOSTS))
        }
        doors["fleet"] = running.enter_context(process(folder / "gateway", "gateway", "--url", server.url, "--name", "gateway"))
        paths = {"host": folder / "one", "proxy": folder / "proxy", "fleet": folder / "gateway"}
        asyncio.run(until_known(folder / "gateway"))
        for _ in range(rounds):
            for kind, door in doors.items():
                for count in (1, clients):
                    one = asyncio.run(load(paths[kind] / "api.sock", door.pid, count, requests))
                    del one["ms"]
                    found[kind].append(one)
                    print(kind, one, file=sys.stderr)
        counts: dict[str, float] = {}
        with counted(server, monitor, COUNTED + WARM_UP, counts):
            asyncio.run(load(folder / "gateway" / "api.sock", doors["fleet"].pid, 1, COUNTED))
        memory = {kind: _resident(door.pid) for kind, door in doors.items()} | {"host of the fleet": _resident(hosts["h0"].pid)}
        reader = asyncio.run(readers_cost(folder / "gateway", doors["fleet"].pid))
        running.enter_context(process(folder / "second", "gateway", "--url", server.url, "--name", "second"))
        asyncio.run(until_known(folder / "second"))
        recovery = asyncio.run(recover(folder, server, hosts, doors["fleet"]))
    return {
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
        "hosts": HOSTS,
        "sync": sync,
        "loads": found,
        "p50_ratio": ratio(found),
        "counts": counts,
        "resident_mib": memory,
        "reader_kib": reader,
        "recovery": recovery,
    }


@contextlib.contextmanager
def counted(server: LocalServer, monitor: int, runs: int, found: dict[str, float]) -> Iterator[None]:
    """Count what a run costs the server: messages, and writes to its disk that are waited for."""

    def messages() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{monitor}/varz", timeout=WAIT_S) as answer:
            return int(json.load(answer)["in_msgs"])

    strace = shutil.which("strace")
    with tempfile.NamedTemporaryFile() as log:
        command = [str(strace), "-f", "-e", "trace=fsync,fdatasync", "-o", log.name, "-p", str(server.pid)]
        tracing = subprocess.Popen(command, stderr=subprocess.PIPE, text=True) if strace else None
        if tracing and tracing.stderr:
            tracing.stderr.readline()  # it is attached
        before, began = messages(), time.monotonic()
        yield
        found["messages"], seconds = (messages() - before) / runs, time.monotonic() - began
        before = messages()
        time.sleep(IDLE_S)  # what comes without runs
        found["messages"] = round(found["messages"] - (messages() - before) / IDLE_S * seconds / runs, 1)
        if tracing:
            tracing.terminate()
            tracing.communicate()
            found["fsyncs"] = round(sum("(" in line for line in Path(log.name).read_text().splitlines()) / runs, 1)


def ratio(found: dict[str, list[Any]]) -> dict[str, float]:
    """The fleet's p50 for one of the proxy's, by the number of clients."""
    by_clients = {
        kind: {
            count: statistics.median(one["p50_ms"] for one in ones if one["clients"] == count) for count in {one["clients"] for one in ones}
        }
        for kind, ones in found.items()
    }
    return {str(count): round(by_clients["fleet"][count] / proxy, 2) for count, proxy in sorted(by_clients["proxy"].items())}


async def start(client: aiohttp.ClientSession, seconds: int = LASTS_S) -> str:
    """Begin a run that lasts so long; its id."""
    async with client.post("/start", json={"language": "toy", "source": str(seconds)}) as answer:
        return str((await answer.json())["id"])


async def times_of(client: aiohttp.ClientSession, run_id: str) -> dict[str, float]:
    """When each kind of event of a run was seen first."""
    seen: dict[str, float] = {}
    async with client.get(
        f"/runs/{run_id}/events", headers={"Accept": "application/jsonl"}, timeout=aiohttp.ClientTimeout(WAIT_S)
    ) as answer:
        async for line in answer.content:
            seen.setdefault(json.loads(line)["event"], time.monotonic())
    return seen


def kill(child: subprocess.Popen[bytes]) -> float:
    """kill -9, with what the process has started; when that was."""
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return time.monotonic()


async def recover(folder: Path, server: LocalServer, hosts: dict[str, subprocess.Popen[bytes]], gateway: subprocess.Popen[bytes]) -> Any:
    """Kill a host, the server and a gateway, one after another: seconds until runs go on."""
    found: dict[str, Any] = {}
    async with to(folder / "gateway") as one, to(folder / "second") as two:
        runs = [await start(one) for _ in range(LONG)]
        following = [asyncio.create_task(times_of(one, run)) for run in runs]
        await asyncio.sleep(1)  # they have begun, on both hosts
        child = next(iter(hosts.values()))
        killed = kill(child)
        seen = await asyncio.gather(*following)
        found["host killed: begun by another after s"] = sorted(round(each["attempt"] - killed, 3) for each in seen if "attempt" in each)
        found["host killed: runs that ended"] = sum("done" in each for each in seen)

        runs = [await start(one) for _ in range(LONG)]
        following = [asyncio.create_task(times_of(one, run)) for run in runs]
        await asyncio.sleep(1)
        server.stop(signal.SIGKILL)
        await asyncio.sleep(DOWN_S)
        server.start()
        up, refused = time.monotonic(), 0
        while True:
            async with one.post("/run", json={"language": "toy", "source": "x"}) as answer:
                if answer.status == 200:
                    break
                refused += 1
            await asyncio.sleep(0.02)
        found["server killed, back after 1 s: first result after s"] = round(time.monotonic() - up, 3)
        found["server killed: refused with 503 meanwhile"] = refused
        seen = await asyncio.gather(*following)
        found["server killed: runs that ended"] = sum("done" in each for each in seen)
        found["server killed: begun anew"] = sum("attempt" in each for each in seen)

        run = await start(one)
        await asyncio.sleep(1)
        killed = kill(gateway)
        following = [asyncio.create_task(times_of(two, run))]
        async with two.get(f"/runs/{run}") as answer:
            await answer.read()
        found["gateway killed: another one answers after s"] = round(time.monotonic() - killed, 3)
        seen = await asyncio.gather(*following)
        found["gateway killed: begun anew"] = sum("attempt" in each for each in seen)
        found["gateway killed: runs that ended"] = sum("done" in each for each in seen)
    return found


async def readers_cost(folder: Path, gateway: int) -> float:
    """KiB of a gateway's memory for each reader of silent runs."""
    async with to(folder) as client, asyncio.TaskGroup() as group:
        runs = [await start(client, 8) for _ in range(LONG)]
        await asyncio.sleep(1)
        before = _resident(gateway)
        for number in range(READERS):
            group.create_task(times_of(client, runs[number % LONG]))
        await asyncio.sleep(3)
        return round(1024 * (_resident(gateway) - before) / READERS, 1)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)


def main() -> None:
    """Measure, or be a process of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", help="where the result is written; or host, proxy, joined, gateway")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--behind", type=Path)
    parser.add_argument("--url", default="")
    parser.add_argument("--name", default="")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sync", default="always", help="when the server writes to its disk; NATS's own is 2m")
    asked = parser.parse_args()
    match asked.what:
        case "host":
            be_server(asked.folder)
        case "proxy":
            asyncio.run(proxy(asked.folder, asked.behind))
        case "joined":
            be_host(asked.folder, asked.url, asked.name)
        case "gateway":
            be_gateway(asked.folder, asked.url, asked.name)
        case path:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers and hosts end with it
            Path(path).write_text(json.dumps(measure(asked.requests, asked.clients, asked.rounds, asked.sync), indent=1) + "\n")


if __name__ == "__main__":
    main()
