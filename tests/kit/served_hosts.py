"""Servers of served_host.py as tests see them, in this host or each in a host of its own, and what
a client reads of a run there.
"""

import asyncio
import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from mayfly.client.asynchronous import AsyncClient, AsyncRun
from mayfly.client.results import AttemptEvent, StderrEvent, StdoutEvent
from tests.kit.machines import machines_of

ROOT = Path(__file__).resolve().parents[2]


class ServedHost:
    """A server that is told to move runs."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self._process, self.port = process, port

    @functools.cached_property
    def told(self) -> dict[str, str]:
        """The keys of a `client` and of another server, which `moves` runs; where the server's host
        has the `loopback` of this one. Waits until the server listens.
        """
        told: dict[str, str] = self._line()
        return told

    def client(self) -> AsyncClient:
        """A client of the server."""
        return AsyncClient(f"http://127.0.0.1:{self.port}", key=self.told["client"])

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server ended"
        return json.loads(line)

    def mayfly(self, *words: str, key: str = "") -> str:
        """Run a command in the server's host; what it printed. `key` is another server's."""
        assert self.told and self._process.stdin is not None  # what it says first is read
        self._process.stdin.write(json.dumps([words, key]) + "\n")
        self._process.stdin.flush()
        status, printed = self._line()
        assert status == 0, (words, printed)
        return str(printed)

    def move(self, run_id: str, there: "ServedHost", *options: str, port: int = 0) -> dict[str, Any]:
        """Have `mayfly move` move the run, by way of `port` if that is given; what it says in the
        end.
        """
        words = ("move", "--json", "--socket", "SOCKET", run_id, "--to", f"http://$LOOPBACK:{port or there.port}", *options)
        last: dict[str, Any] = json.loads(self.mayfly(*words, key=there.told["moves"]).splitlines()[-1])
        assert last["event"] == "moved", last
        return last

    @property
    def server(self) -> int:
        """The process of `mayfly serve`, in this host."""
        return next(_children(self._process.pid))

    def machines(self) -> list[int]:
        """Those of its machines whose guests run, in this host."""
        return [machine for zygote in _children(self.server) for machine in machines_of(zygote)]

    def made(self) -> list[int]:
        """Those that are being made, too, and spares of machines that were restored here. A zygote
        has another child at first, which makes namespaces before it gives its privileges up.
        """
        return [child for zygote in _children(self.server) for child in _children(zygote) if _is_confined(child)]

    def kill(self) -> None:
        """kill -9: of a host of its own, all of that host."""
        self._process.kill()
        self._process.wait()


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            yield from map(int, task.read_text().split())


def _is_confined(pid: int) -> bool:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        return "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    return False


@contextmanager
def serving(*flags: str, host: Sequence[str] = (), python: str = sys.executable) -> Iterator[ServedHost]:
    """A server with these flags. `host` are with-kvm and its options for a host of its own, whose
    `python` it takes.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if host:
        host = [*host, "--loopback", "--forward", str(port)]
    environment = {"LOOPBACK": "127.0.0.1", **os.environ}
    command = [*host, python, "-m", "tests.kit.served_host", str(port), *flags]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield ServedHost(process, port)
        assert process.stdin is not None
        process.stdin.close()


class Following:
    """A client that reads a run: what the program has put out so far, when each line of its
    standard output was there (Unix time), and which attempts began.
    """

    def __init__(self, run: AsyncRun) -> None:
        self.run = run
        self.out, self.err = b"", b""
        self.at: list[float] = []
        self.attempts: list[int] = []
        self._ended = False
        self._more = asyncio.Condition()

    @classmethod
    @asynccontextmanager
    async def begin(cls, run: AsyncRun) -> AsyncIterator[Self]:
        """Read while the context lasts, and at its end until the run's."""
        following = cls(run)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(following._read())
            yield following

    async def _read(self) -> None:
        async for event in self.run:
            async with self._more:
                if isinstance(event, StdoutEvent):
                    self.out += event.data
                    self.at += [time.time()] * event.data.count(b"\n")
                self.err += event.data if isinstance(event, StderrEvent) else b""
                self.attempts += [event.attempt] if isinstance(event, AttemptEvent) else []
                self._more.notify_all()
        self._ended = True
        async with self._more:
            self._more.notify_all()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for output. It is an error if the run ends before."""
        async with self._more:
            await self._more.wait_for(lambda: reached() or self._ended)
        assert reached(), await self.run.state()

    async def lines(self, count: int) -> None:
        """Wait for so many more lines of standard output."""
        wanted = self.out.count(b"\n") + count
        await self.until(lambda: self.out.count(b"\n") >= wanted)
