"""The monitors that scripts.bench.peers compares, each with the same ways to start a machine."""

import contextlib
import functools
import itertools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from mayfly.guests.spawner import snapshot_files
from mayfly.guests.zygote import Zygote
from mayfly.protocol.control import Snapshot
from mayfly.schema import replace
from mayfly.vmm.config import Channel, Layer, MachineConfig
from mayfly.vmm.snapshot import WORKING_SET
from scripts.bench import firecracker, microvm
from tests.kit import toy
from tests.kit.spawned import Spawned

DEADLINE_S = 120.0
SETTLED_S = 0.2
"""For a server to take a connection, before what is measured."""
SPOKEN, ANSWERED = b"\1", b"\2"
"""What the guest says (speaker.c)."""


class Alive(NamedTuple):
    """A machine under way: its guest's channel, and the process that runs it."""

    reader: int
    writer: int
    pid: Callable[[], int]

    def wait_for(self, byte: bytes) -> None:
        """Read until the guest says this.

        Raises:
            SystemExit: it ended, or took too long.
        """
        while True:
            if not select.select([self.reader], [], [], DEADLINE_S)[0]:
                raise SystemExit(f"bench: no byte from the guest within {DEADLINE_S:g} s")
            data = os.read(self.reader, 1 << 16)
            if byte in data:
                return
            if not data:
                raise SystemExit("bench: the machine ended before its guest said anything")


Start = contextlib.AbstractContextManager[Alive]


class Monitor(Protocol):
    """One of those that are compared. `boot` and `restore` may be called by several threads."""

    helper: int
    """A process of its besides each machine's, whose time counts too; 0: none."""
    clones: bool
    """Whether machines that go on share what is saved; else it is read whole for each."""

    def boot(self) -> Start: ...

    def save(self) -> None:
        """Save one that has booted, in the place of the one before."""

    def restore(self) -> Start: ...


class Ours:
    """Mayfly's: the zygote, and a process for each machine."""

    clones = True

    def __init__(self, zygote: Zygote, config: MachineConfig, work: Path, channel: Channel = Channel.VIRTIO) -> None:
        self.helper, self._channel = zygote.pid, channel
        self._zygote, self._config, self._folder = zygote, config, work / "mayfly"
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def _started(self, restored: tuple[Layer, ...] = (), *, page_by_page: bool = False) -> Iterator[tuple[Spawned, Alive]]:
        config = replace(self._config, restore=restored, cmdline="port=vport0p0", channel=self._channel, page_by_page=page_by_page)
        with Spawned(self._zygote, config, next(self._numbers)) as machine:
            yield machine, Alive(machine.channel.fileno(), machine.channel.fileno(), functools.partial(self._pid, machine))
        self._zygote.receive()

    @staticmethod
    def _pid(machine: Spawned) -> int:
        machine.wait_running()
        return machine.pid

    @contextlib.contextmanager
    def boot(self) -> Iterator[Alive]:
        """A machine that boots."""
        with self._started() as (_, alive):
            yield alive

    def save(self) -> None:
        """See `Monitor`. What a machine uses that goes on is noted, as a server does for a base."""
        shutil.rmtree(self._folder, ignore_errors=True)
        scratch = self._folder / "scratch"
        scratch.mkdir(parents=True)
        self._save(self._folder)
        self._save(scratch, (Layer(folder=str(self._folder)),))
        (scratch / WORKING_SET).replace(self._folder / WORKING_SET)
        shutil.rmtree(scratch)

    def _save(self, folder: Path, restored: tuple[Layer, ...] = ()) -> None:
        with self._started(restored, page_by_page=bool(restored)) as (machine, alive), snapshot_files(folder) as descriptors:
            alive.wait_for(SPOKEN)
            machine.control.ask(Snapshot(go_on=False), descriptors)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Alive]:
        """A machine that goes on."""
        with self._started((Layer(folder=str(self._folder), eager=True),)) as (_, alive):
            yield alive


def ask_ours(api: Path) -> float:
    """Seconds from a request, over a connection that is there, to the first byte of a program that
    a shell runs: its guest has an agent, and is restored, or waits in the pool.
    """
    content = json.dumps({"source": "echo x", "language": "toy"})
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(os.fspath(api))
        time.sleep(SETTLED_S)
        head = f"POST /run?stream=jsonl HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
        began = time.monotonic()
        connection.sendall(f"{head}\r\n\r\n{content}".encode())
        seen = b""
        while data := connection.recv(1 << 16):
            seen += data
            if b'"stdout"' in seen:
                seconds = time.monotonic() - began
                while b'"done"' not in seen and (data := connection.recv(1 << 16)):
                    seen += data
                return seconds
    raise SystemExit(f"bench: the program said nothing: {seen.decode(errors='replace')[-500:]}")


@contextlib.contextmanager
def serving(kernel: str, work: Path, *options: str) -> Iterator[Path]:
    """A server of ours with a toy language, whose base is made, with a warm-up as that of every
    language; its socket.
    """
    work.mkdir()
    environment = {**os.environ, "XDG_DATA_HOME": str(work / "data")}
    with unittest.mock.patch.dict(os.environ, environment):
        toy.build(warmup="echo warm > /work/warm.toy; sh -n /work/warm.toy; echo x")
    socket_path = work / "api.sock"
    command = [sys.executable, "-P", "-m", "mayfly.cli.main"]
    subprocess.run([*command, "snapshot", "create", "toy", "--kernel", kernel], env=environment, stdout=2, check=True)
    serve = [*command, "serve", "--kernel", kernel, "--socket", str(socket_path), *options]
    with subprocess.Popen(serve, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr  # noqa: S101 (a pipe)
        try:
            for line in server.stderr:
                if "listening" in line:
                    break
            yield socket_path
        finally:
            server.terminate()


class Firecracker:
    """Firecracker."""

    helper = 0
    clones = True

    def __init__(self, binary: Path, config: MachineConfig, work: Path) -> None:
        self._binary, self._folder = binary, work / "firecracker"
        self._config = replace(config, cmdline=f"port={firecracker.PORT}")

    @contextlib.contextmanager
    def boot(self) -> Iterator[Alive]:
        """A machine that boots."""
        with firecracker.booted(self._binary, self._config) as process:
            yield self._alive(process)

    def save(self) -> None:
        """See `Monitor`."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with firecracker.served(self._binary) as (process, api):
            firecracker.begin(api, self._config)
            self._alive(process).wait_for(SPOKEN)
            firecracker.save(api, self._folder)

    @contextlib.contextmanager
    def restore(self) -> Iterator[Alive]:
        """A machine that goes on, in a new process."""
        with firecracker.served(self._binary) as (process, api):
            firecracker.restore(api, self._folder)
            yield self._alive(process)

    def by_api(self) -> float:
        """Seconds from the request to a process that is there to the first byte."""
        with firecracker.served(self._binary) as (process, api):
            began = time.monotonic()
            firecracker.restore(api, self._folder)
            self._alive(process).wait_for(SPOKEN)
            return time.monotonic() - began

    @staticmethod
    def _alive(process: subprocess.Popen[bytes]) -> Alive:
        assert process.stdin and process.stdout  # noqa: S101 (pipes)
        return Alive(process.stdout.fileno(), process.stdin.fileno(), lambda: process.pid)


class Qemu:
    """QEMU's microvm."""

    helper = 0
    clones = False

    def __init__(self, config: MachineConfig, work: Path) -> None:
        self._file = work / "qemu"
        self._config = replace(config, cmdline="port=vport0p1", channel=Channel.VIRTIO)

    @contextlib.contextmanager
    def _started(self, *devices: str) -> Iterator[Alive]:
        with microvm.started(self._config, devices) as channel:
            yield Alive(channel.fileno(), channel.fileno(), lambda: _peer(channel))

    def boot(self) -> Start:
        """A machine that boots."""
        return self._started()

    def save(self) -> None:
        """See `Monitor`."""
        microvm.save(self._config, self._file, lambda channel: Alive(channel.fileno(), channel.fileno(), os.getpid).wait_for(SPOKEN))

    def restore(self) -> Start:
        """A machine that goes on."""
        return self._started(*microvm.restoring(self._file))


def _peer(connection: socket.socket) -> int:
    """The process at the other end of a connection (unix(7), SO_PEERCRED)."""
    return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
