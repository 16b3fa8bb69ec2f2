"""Drive a real server through what may befall it, and look at what is left.

    python -m scripts.chaos [--events N] [--seed N] [--clients N] [--hours N]

A `mayfly serve` whose machines are ordinary processes (tests/kit/fake_mayfly.py) gets runs from
several clients at a time, who cancel, half-close, vanish and send nonsense. Meanwhile guests,
zygote and server are killed and stopped, lack descriptors, disk, forks and memory, the disk is
full, the clock jumps and snapshots are damaged (disturb.py). All follows from the seed but the
kernel's scheduling.

The oracle: a run that was answered was answered right; a run that was not had an error with a code,
or lost its connection in a disturbance; the server answers afterwards, its counts and metrics add
up, it holds no more descriptors and hardly more memory than at its start, all its processes are in
this one's namespaces; and when it has ended no process, socket, file or network interface is left.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import secrets
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from scripts.disturb import DISTURBANCES, Disturber, small_disk
from tests.kit.api_fakes import ROOT, install_toys

MARK = "MAYFLY_CHAOS"
PATIENCE_S = 120.0
MOST_GROWTH = 64 << 20
"""Bytes of memory that a server may have more than at its start; it may keep as much output."""
LOG_SHOWN = 4096
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
HALF = b"POST /run?language=toy HTTP/1.1\r\nContent-Length: 99\r\n\r\nhalf"
NONSENSE = (b"", b"GET", b"GET / HTTP/1.1\r\n", HALF, b"\x16\x03\x01\x02\x00", b"\0" * 99)
PAGES = ("/metrics", "/healthz", "/languages", "/openapi.json")
BESIDES = ("runs", "api.sock.lock")  # A folder and a lock that the next server takes over
OF_KILLED = re.compile(r"fake-agent-.*|[a-z0-9_]{8}")
"""What stands for a killed guest's file system, and what Python's tempfile tries a folder with."""


class WrongError(Exception):
    """The oracle says no."""


class Server:
    """The server process, started again after it was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "mayfly" / "api.sock"
        self.temporary = folder / "tmp"
        self.clock = folder / "clock"
        self.kernel = folder / "vmlinux"
        self.kernel.write_bytes(b"what snapshots are made with")
        self.temporary.mkdir()
        self.mark = secrets.token_hex(8)
        self.log_file = folder / "log"
        self.log = self.log_file.open("wb")
        self.up = True
        self.disturbances = 0  # Begins and ends of them so far
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        words = ["serve", "--socket", str(self.socket), "--kernel", str(self.kernel)]
        words += ["--time-factor", "1", "--memory-budget", "512M", "--drain-s", "5"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: self.mark, "TMPDIR": str(self.temporary), "FAKE_CLOCK": str(self.clock)}
        words = [sys.executable, "-P", "-m", "tests.kit.fake_mayfly", "-", *words]
        self.process = await asyncio.create_subprocess_exec(*words, cwd=ROOT, env=environment, stderr=self.log, start_new_session=True)
        await self.answers()
        self.descriptors_before, self.memory_before = self.descriptors(), self.memory()

    @property
    def pid(self) -> int:
        return self.process.pid

    async def restart(self) -> None:
        """Kill it, and start it again."""
        self.up = False
        self.process.kill()
        await self.process.wait()
        await self.start()
        self.up = True

    async def answers(self) -> None:
        """Wait until it does."""
        until = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self.client() as client, client.get("/healthz") as answer:
                    if answer.status == 200:
                        return
            if time.monotonic() > until or self.process.returncode is not None:
                raise WrongError(f"the server does not answer (status {self.process.returncode}); see {self.folder / 'log'}")
            await asyncio.sleep(0.02)  # between two looks at what has no event to wait for

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[aiohttp.ClientSession]:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        connector = aiohttp.UnixConnector(str(self.socket))
        async with aiohttp.ClientSession("http://localhost", connector=connector, timeout=timeout) as session:
            yield session

    def processes(self) -> Iterator[int]:
        """All that it has started, and itself."""
        mark = f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)

    def descriptors(self) -> int:
        """How many it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def memory(self) -> int:
        """Bytes of memory that it has (VmRSS, proc_pid_status(5))."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024

    def zygote(self) -> int | None:
        """What stands for it, if it is there."""
        return next((pid for pid in self.processes() if self._is_zygote(pid)), None)

    def guests(self) -> list[int]:
        """Machines, and the programs in them."""
        found = [(pid, command(pid)) for pid in self.processes()]
        return sorted(pid for pid, words in found if words and b"fake_mayfly" not in words and not self._is_zygote(pid))

    def _is_zygote(self, pid: int) -> bool:
        return b"fake_nursery" in command(pid) and parent(pid) == self.pid


def parent(pid: int) -> int:
    """Its parent's id; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def namespace(pid: int, kind: str) -> str:
    """The namespace that it is in; this process's own if it is gone."""
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    return str(Path(f"/proc/self/ns/{kind}").readlink())


def command(pid: int) -> bytes:
    """Its command line; empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Chaos:
    """Clients, disturbances and what became of them."""

    def __init__(self, server: Server, seed: int, events: int) -> None:
        self.server, self.rng, self.left = server, random.Random(seed), events  # noqa: S311
        self.disturber = Disturber(server, self.rng)
        self.outcomes: Counter[str] = Counter()
        self.quiet = asyncio.Lock()
        self.ended: list[tuple[str, float]] = []  # Disturbances, and when

    async def client(self) -> None:
        while self.left > 0:
            if not self.server.up:
                async with self.quiet:
                    pass  # all that is done now would come to the same
            self.left -= 1
            act = self.rng.choice(("run", "run", "run", "cancel", "half-close", "vanish", "nonsense", "look", "disturb"))
            await {
                "run": self.run,
                "cancel": self.cancel,
                "half-close": self.half_close,
                "vanish": self.vanish,
                "nonsense": self.nonsense,
                "look": self.look,
                "disturb": self.disturb,
            }[act]()

    def program(self) -> tuple[str, str, int]:
        """A program, what it prints, and its exit status."""
        word, status = f"{self.rng.getrandbits(64):x}", self.rng.choice((0, 0, 0, 7))
        times = self.rng.choice((1, 1, 500))
        return f"i=0; while [ $i -lt {times} ]; do echo {word}; i=$((i+1)); done; exit {status}", f"{word}\n" * times, status

    async def run(self) -> None:
        source, prints, status = self.program()
        before = self.server.disturbances
        try:
            async with self.server.client() as client, client.post("/run?language=toy", data=source) as answer:
                self.judge(answer.status, await answer.json(), prints, status, before)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.lost(error, before)

    def judge(self, code: int, found: dict[str, Any], prints: str, status: int, before: int) -> None:
        """Whether the answer is right, or an error that something explains."""
        if code == 429:
            self.outcomes["refused"] += 1
        elif code == 200 and found.get("status") == ("ok" if status == 0 else "failed"):
            said = found["steps"][-1].get("stdout")
            if said != prints:
                raise WrongError(f"a program that prints {len(prints)} characters was answered with {str(said)[:200]!r}")
            self.outcomes["right"] += 1
        elif self.disturbed(before):
            if code != 200 and "code" not in found.get("error", {}):
                raise WrongError(f"an error without a code: {found}")
            self.outcomes["disturbed"] += 1
        else:
            raise WrongError(f"a run that nothing disturbed was answered with {code} {str(found)[:400]}; {self.latest}")

    def lost(self, error: Exception, before: int) -> None:
        if not self.disturbed(before):
            raise WrongError(f"a connection was lost, and nothing disturbed it: {error!r}")
        self.outcomes["lost"] += 1

    async def cancel(self) -> None:
        before = self.server.disturbances
        try:
            async with self.server.client() as client:
                async with client.post("/start?language=toy", data="sleep 60") as answer:
                    found = await answer.json()
                if answer.status == 201:
                    await asyncio.sleep(self.rng.random() / 10)
                    async with client.delete(f"/runs/{found['id']}") as answer:
                        self.outcomes[f"cancelled {answer.status}"] += 1
                else:
                    self.outcomes[f"not started {answer.status}"] += 1
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.lost(error, before)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            return await asyncio.open_unix_connection(str(self.server.socket))
        except OSError:
            self.outcomes["no connection"] += 1
            return None

    def request(self, source: str) -> bytes:
        return f"POST /run?language=toy HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(source)}\r\n\r\n{source}".encode()

    async def half_close(self) -> None:
        """Its run goes on: only a connection that is closed on both sides cancels."""
        source, prints, status = self.program()
        before = self.server.disturbances
        if streams := await self.connect():
            reader, writer = streams
            try:
                writer.write(self.request(source))
                writer.write_eof()
                head, _, body = (await asyncio.wait_for(reader.read(), PATIENCE_S)).partition(b"\r\n\r\n")
                self.judge(int(head.split()[1]), json.loads(body), prints, status, before)
            except (OSError, ValueError, IndexError) as error:
                self.lost(error, before)
            finally:
                writer.close()

    async def vanish(self) -> None:
        if streams := await self.connect():
            with contextlib.suppress(OSError):
                streams[1].write(self.request("sleep 60"))
                await asyncio.sleep(self.rng.random() / 10)
            streams[1].close()
            self.outcomes["vanished"] += 1

    async def nonsense(self) -> None:
        if streams := await self.connect():
            with contextlib.suppress(OSError):
                streams[1].write(self.rng.choice(NONSENSE))
                await asyncio.sleep(self.rng.random() / 20)
            streams[1].close()
            self.outcomes["nonsense"] += 1

    async def look(self) -> None:
        before = self.server.disturbances
        try:
            async with (
                self.server.client() as client,
                client.get(self.rng.choice(PAGES)) as answer,
            ):
                await answer.read()
                if answer.status != 200 and not self.disturbed(before):
                    raise WrongError(f"{answer.url.path} answers {answer.status}")
        except (aiohttp.ClientError, OSError) as error:
            self.lost(error, before)
        self.outcomes["looked"] += 1

    async def disturb(self) -> None:
        """One at a time."""
        what = self.rng.choice(list(DISTURBANCES))
        async with self.quiet:
            self.server.disturbances += 1
            try:
                await DISTURBANCES[what](self.disturber)
            finally:
                self.server.disturbances += 1
                self.ended.append((what, time.monotonic()))
        self.outcomes[what] += 1

    @property
    def latest(self) -> str:
        """The disturbances that ended last."""
        return "before it: " + ", ".join(f"{what} ({time.monotonic() - ended:.2f} s ago)" for what, ended in self.ended[-3:])

    def disturbed(self, before: int) -> bool:
        """Whether there has been one since there were so many."""
        return bool(before % 2) or self.server.disturbances != before

    async def settle(self) -> None:
        """After the last event: all runs end, the counts add up, and the next run is right."""
        until = time.monotonic() + PATIENCE_S
        async with self.server.client() as client:
            while True:
                async with client.get("/healthz") as answer:
                    health = await answer.json()
                if not health["memory_used"] and not health["waiting"]:
                    break
                if time.monotonic() > until:
                    raise WrongError(f"runs do not end: {health}")
                await asyncio.sleep(0.05)
        if self.server.guests():
            await asyncio.sleep(1)
        if left := self.server.guests():
            raise WrongError(f"machines of no run: {left}")
        before, (runs, starts) = dict(self.outcomes), await self.counted()
        await self.run()
        if self.outcomes["right"] != before.get("right", 0) + 1:
            raise WrongError("the last run was not answered")
        while (now := await self.counted()) != (runs + 1, starts + 1) or self.server.descriptors() > self.server.descriptors_before:
            if time.monotonic() > until:
                held = f"{self.server.descriptors()} descriptors, {self.server.descriptors_before} at its start"
                raise WrongError(f"a run made {runs:g} runs and {starts:g} starts {now}; the server has {held}")
            await asyncio.sleep(0.05)
        if (grown := self.server.memory() - self.server.memory_before) > MOST_GROWTH:
            raise WrongError(f"the server has {grown >> 20} MiB more than at its start")
        for pid in self.server.processes():
            if others := [kind for kind in NAMESPACES if namespace(pid, kind) != namespace(os.getpid(), kind)]:
                raise WrongError(f"process {pid} is in other namespaces: {others}")

    async def counted(self) -> tuple[float, float]:
        """Runs that are over, and machines that runs got, as the server's metrics have them."""
        sums: defaultdict[str, float] = defaultdict(float)
        async with self.server.client() as client, client.get("/metrics") as answer:
            for line in (await answer.text()).splitlines():
                name, _, value = line.rpartition(" ")
                if not line.startswith("#"):
                    sums[name.partition("{")[0]] += float(value)
        return sums["mayfly_runs_total"], sums["mayfly_starts_total"]


async def end(server: Server) -> None:
    """Stop the server, and see that nothing is left."""
    server.process.terminate()
    status = await asyncio.wait_for(server.process.wait(), PATIENCE_S)
    if status:
        raise WrongError(f"the server ended with status {status}")
    until = time.monotonic() + PATIENCE_S
    while left := [pid for pid in server.processes() if pid != os.getpid()]:
        if time.monotonic() > until:
            raise WrongError(f"processes are left: {left}")
        await asyncio.sleep(0.05)
    files = [str(path) for path in server.socket.parent.rglob("*") if path.name not in BESIDES]
    files += [str(path) for path in server.temporary.iterdir() if not OF_KILLED.fullmatch(path.name)]
    if files:
        raise WrongError(f"files are left: {files[:10]}")


async def play(folder: Path, seed: int, events: int, clients: int) -> Counter[str]:
    """All of it; what became of the events."""
    interfaces = {name for _, name in socket.if_nameindex()}
    server = Server(folder)
    await server.start()
    chaos = Chaos(server, seed, events)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(chaos.client())
        await chaos.settle()
        await end(server)
    except BaseException:
        print(server.log_file.read_text(errors="replace")[-LOG_SHOWN:], flush=True)
        raise
    finally:
        if server.process.returncode is None:
            server.process.kill()
            await server.process.wait()
        server.log.close()
    if left := [name for _, name in socket.if_nameindex() if name.startswith("mayfly") and name not in interfaces]:
        raise WrongError(f"network interfaces are left: {left}")
    return chaos.outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--hours", type=float, default=0.0, help="go on with the next seed until then")
    options = parser.parse_args()
    until = time.monotonic() + 3600 * options.hours
    for seed in itertools.count(options.seed):
        one(seed, options.events, options.clients)
        if time.monotonic() >= until:
            return


def one(seed: int, events: int, clients: int) -> None:
    """A server's life; what became of the events is printed."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, pytest.MonkeyPatch.context() as monkeypatch, small_disk(Path(folder)):
        install_toys(monkeypatch, Path(folder))
        outcomes = asyncio.run(play(Path(folder), seed, events, clients))
    print(f"seed {seed}, {events} events: {dict(sorted(outcomes.items()))}", flush=True)


if __name__ == "__main__":
    main()
