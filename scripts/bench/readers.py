"""Measure what clients cost that read events over TCP of runs in which nothing happens.

Usage: python -m scripts.bench.readers FILE [--readers N] [--tls]

A server of its own process has runs that are under way and silent; each has as many readers as a
run may have. Its memory is what Linux counts as its own (smaps_rollup, Private) before the readers
come and when all have had a heartbeat.
"""

import argparse
import asyncio
import contextlib
import json
import re
import resource
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from mayfly.api import events
from mayfly.errors import RunEndedError
from mayfly.host.keys import Keyring, default_path
from mayfly.host.snippet import Mode
from mayfly.runs.run import Run
from tests.kit.api_fakes import install_toys
from tests.kit.api_server import Served, make_certificate, make_key, serving
from tests.kit.processor_time import processor_s

READERS = 10_000
LIMIT_S = 1800.0
AT_A_TIME = 64


def be_server(folder: Path, readers: int, *, tls: bool) -> None:
    """Serve in `folder` until standard input ends; the first line of output says where."""
    certificate, key = make_certificate(folder)

    async def scenario(served: Served) -> None:
        token = make_key("reader")
        known = Keyring(default_path()).find(token)
        assert known is not None  # noqa: S101 (it has just been made)
        ids = []
        for _ in range(-(-readers // events.MAX_READERS)):
            run = Run(language="toy", version="1.0", mode=Mode.RAW, step_names=("run",), owner=known.tenant.name)
            served.service.runs.add(run)
            ids.append(run.id)
        print(json.dumps({"port": served.doors[0].listener.getsockname()[1], "token": token, "runs": ids}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for run in served.service.runs:
            run.fail(RunEndedError("enough"))

    changes: dict[str, Any] = {"tls_certificate": str(certificate), "tls_key": str(key)} if tls else {}
    with pytest.MonkeyPatch.context() as patch:
        install_toys(patch, folder)
        serving(folder, scenario, limit_s=LIMIT_S, **changes)


def own_memory(pid: int) -> int:
    """Bytes of memory that a process shares with no other."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(found) << 10 for found in re.findall(r"^Private_\w+:\s+(\d+)", text, re.MULTILINE))


async def read(server: subprocess.Popen[str], where: dict[str, Any], readers: int, trust: ssl.SSLContext | None) -> dict[str, Any]:
    """Let all readers come, wait until each has had a heartbeat, and look at the server."""
    room = asyncio.Semaphore(AT_A_TIME)
    open_ones: list[asyncio.StreamReader] = []
    writers: list[asyncio.StreamWriter] = []

    async def come(number: int) -> None:
        path = f"/runs/{where['runs'][number // events.MAX_READERS]}/events"
        async with room:
            reader, writer = await asyncio.open_connection("127.0.0.1", where["port"], ssl=trust, limit=1024)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {where['token']}\r\n\r\n".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 OK" not in answer:
            raise RuntimeError(f"reader {number} was refused: {answer!r}")
        open_ones.append(reader)
        writers.append(writer)

    await come(0)  # what the first one has made once is none of the others' cost
    before, began = own_memory(server.pid), time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(1, readers):
            group.create_task(come(number))
    came_s = time.monotonic() - began
    at, spent = time.monotonic(), processor_s(server.pid)
    await asyncio.gather(*(reader.readuntil(b":\n\n") for reader in open_ones))
    await asyncio.sleep(events.HEARTBEAT_S)  # one round of heartbeats, whose cost is what is looked at
    idle = (processor_s(server.pid) - spent) / (time.monotonic() - at)
    used = own_memory(server.pid) - before
    for writer in writers:
        writer.close()
    return {
        "readers": readers,
        "tls": trust is not None,
        "kib_a_reader": round(used / 1024 / (readers - 1), 1),
        "came_in_s": round(came_s, 1),
        "processor_share_idle": round(idle, 3),
    }


def measure(readers: int, *, tls: bool) -> dict[str, Any]:
    """A server, and its readers in this process."""
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        command = [sys.executable, "-m", "scripts.bench.readers", name, "--readers", str(readers), "--serve", *(["--tls"] if tls else [])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin  # noqa: S101 (it is a pipe)
            assert server.stdout  # noqa: S101
            where = json.loads(server.stdout.readline())
            trust = ssl.create_default_context(cafile=f"{name}/localhost.crt") if tls else None
            try:
                return asyncio.run(read(server, where, readers, trust))
            finally:
                server.stdin.close()


def main(arguments: list[str]) -> int:
    """Measure."""
    parser = argparse.ArgumentParser(prog="bench.readers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--readers", type=int, default=READERS)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.serve:
        be_server(options.file, options.readers, tls=options.tls)
        return 0
    found = measure(options.readers, tls=options.tls)
    options.file.write_text(json.dumps(found, indent=1) + "\n")
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
