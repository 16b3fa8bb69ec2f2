"""What a fleet adds to a run: the same requests to one host, through a plain proxy before it, and
through a gateway with a server and hosts behind it. Guests are played, as in requests.py.

Usage: python -m scripts.bench.fleet [--requests N] [--clients N] [--rounds N] RESULT.json
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mayfly.fleet.open import Place, join
from mayfly.fleet.server import LocalServer
from mayfly.host.config import Config
from scripts.bench.requests import CLIENTS, WAIT_S, be_server, load
from tests.kit.api_fakes import install_toys

HOSTS = 2


def be_host(folder: Path, url: str, name: str) -> None:
    """A host of the fleet."""
    be_server(folder, functools.partial(join, place=Place(urls=(url,), name=name)))


def be_gateway(folder: Path, url: str) -> None:
    """A gateway."""
    from mayfly.api.app import serve
    from mayfly.fleet.open import gateway

    config = Config(socket=folder / "api.sock", kernel=folder / "vmlinux", queue=4 * CLIENTS, time_factor=1.0)
    with pytest.MonkeyPatch.context() as patch:
        install_toys(patch, folder)
        asyncio.run(serve(config, functools.partial(gateway, place=Place(urls=(url,), name="gateway"))))


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
        child = subprocess.Popen([sys.executable, "-m", "scripts.bench.fleet", *words, "--folder", str(folder)], stderr=log)
    try:
        deadline = time.monotonic() + WAIT_S
        while not (folder / "api.sock").exists():
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words[0]} did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)
        yield child
    finally:
        child.terminate()
        child.wait(WAIT_S)


async def until_known(path: Path) -> None:
    """Wait until a gateway knows a language."""
    async with aiohttp.ClientSession("http://mayfly", connector=aiohttp.UnixConnector(path=str(path))) as client:
        while True:
            async with client.get("/languages") as answer:
                if (await answer.json())["languages"]:
                    return
            await asyncio.sleep(0.1)


def measure(requests: int, clients: int, rounds: int) -> dict[str, Any]:
    """All three, round after round, so that what else the machine does concerns all of them."""
    found: dict[str, list[Any]] = {"host": [], "proxy": [], "fleet": []}
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name, contextlib.ExitStack() as running:
        folder = Path(name)
        server = running.enter_context(LocalServer(folder / "nats"))
        doors = {"host": running.enter_context(process(folder / "one", "host"))}
        doors["proxy"] = running.enter_context(process(folder / "proxy", "proxy", "--behind", str(folder / "one" / "api.sock")))
        for number in range(HOSTS):
            running.enter_context(process(folder / f"h{number}", "joined", "--url", server.url, "--name", f"h{number}"))
        doors["fleet"] = running.enter_context(process(folder / "gateway", "gateway", "--url", server.url))
        paths = {"host": folder / "one", "proxy": folder / "proxy", "fleet": folder / "gateway"}
        asyncio.run(until_known(folder / "gateway" / "api.sock"))
        for _ in range(rounds):
            for kind, door in doors.items():
                for count in (1, clients):
                    one = asyncio.run(load(paths[kind] / "api.sock", door.pid, count, requests))
                    del one["ms"]
                    found[kind].append(one)
                    print(kind, one, file=sys.stderr)
        memory = {kind: _resident(door.pid) for kind, door in doors.items()}
    return {"processors": os.cpu_count(), "hosts": HOSTS, "loads": found, "resident_mib": memory}


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
    asked = parser.parse_args()
    match asked.what:
        case "host":
            be_server(asked.folder)
        case "proxy":
            asyncio.run(proxy(asked.folder, asked.behind))
        case "joined":
            be_host(asked.folder, asked.url, asked.name)
        case "gateway":
            be_gateway(asked.folder, asked.url)
        case path:
            Path(path).write_text(json.dumps(measure(asked.requests, asked.clients, asked.rounds), indent=1) + "\n")


if __name__ == "__main__":
    main()
