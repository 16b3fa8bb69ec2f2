"""The console device with Linux's driver: bytes both ways, many of them, on one and two vCPUs, and
what they cost.
"""

import contextlib
import hashlib
import json
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from mayfly.guests.zygote import Zygote
from mayfly.protocol.spawning import Reaped
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig
from tests.kit import toy
from tests.kit.scale import scaled
from tests.kit.spawned import Spawned

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

DEADLINE_S = 600
ECHO = """
port=/dev/vport0p0
until [ -c $port ]; do :; done
exec 3<>$port
/bin/busybox cat <&3 >&3
"""
BLOCK = 1 << 16


class Echo:
    """The host's end of a machine that sends back what it gets."""

    def __init__(self, name: str, channel: socket.socket) -> None:
        self.channel = channel
        channel.setblocking(False)
        self.left, self.due = scaled(100) * MIB, scaled(100) * MIB
        self.sent, self.received = hashlib.sha256(), hashlib.sha256()
        self._seed = hashlib.shake_256(name.encode()).digest(BLOCK)
        self._unsent = b""

    def write(self) -> None:
        """Send as much of a stream without end as finds room."""
        if not self._unsent:
            self._seed = self._seed[1:] + self._seed[:1]
            self._unsent = self._seed[: min(BLOCK, self.left)]
            self.left -= len(self._unsent)
            self.sent.update(self._unsent)
        self._unsent = self._unsent[self.channel.send(self._unsent) :]

    def read(self) -> None:
        data = self.channel.recv(BLOCK)
        assert data, "the machine ended too early"
        self.due -= len(data)
        self.received.update(data)

    @property
    def sending(self) -> bool:
        return bool(self.left or self._unsent)


def exchange(echoes: Sequence[Echo]) -> None:
    """Send and receive with all of them at once, to the end."""
    by_channel = {echo.channel: echo for echo in echoes}
    while waiting := [echo.channel for echo in echoes if echo.due]:
        full = [echo.channel for echo in echoes if echo.sending]
        readable, writable, _ = select.select(waiting, full, [], DEADLINE_S)
        assert readable or writable, "no byte moves any more"
        for channel in writable:
            with contextlib.suppress(BlockingIOError):
                by_channel[channel].write()
        for channel in readable:
            by_channel[channel].read()


def test_two_machines_send_back_what_they_get(tmp_path: Path) -> None:
    """One has one vCPU, the other two."""
    initrd = tmp_path / "initramfs"
    initrd.write_bytes(toy.shell_root(ECHO))
    kernel = paths.kernel_path(toy.MACHINE)
    zygote = Zygote.start()
    echoes = []
    with contextlib.ExitStack() as stack:
        stack.callback(zygote.close)
        for cpus in (1, 2):
            config = MachineConfig(kernel=str(kernel), initrd=str(initrd), memory=96 * MIB, cpus=cpus, channel=Channel.VIRTIO)
            process = stack.enter_context(Spawned(zygote, config, cpus))
            echoes.append(Echo(f"{cpus} vCPUs", process.channel))
        exchange(echoes)
        for echo in echoes:
            assert echo.sent.digest() == echo.received.digest()
            echo.channel.close()
        ended = 0
        while ended < len(echoes):
            ended += isinstance(zygote.receive(), Reaped)


def run(folder: Path, source: str, *options: str, stdin: bytes = b"") -> dict[str, Any]:
    """A run of the toy language; its result."""
    snippet = folder / "snippet.toy"
    snippet.write_text(source)
    command = [sys.executable, "-m", "mayfly.cli.main", "run", "--json", *options, str(snippet)]
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, timeout=DEADLINE_S, check=False)
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["status"] == "ok", result
    return result


@pytest.mark.aarch64
@pytest.mark.usefixtures("toy_language")
def test_a_whole_run_costs_few_exits(tmp_path: Path) -> None:
    assert run(tmp_path, "true", "--cold", "--channel", "virtio")["exits"]["total"] <= 200


@pytest.mark.aarch64
@pytest.mark.usefixtures("toy_language")
def test_a_restored_machine_has_all_its_processors_and_timers(tmp_path: Path) -> None:
    """The first run makes the language's snapshot, the second one only takes it."""
    for _ in range(2):
        result = run(tmp_path, "nproc; sleep 0.1; echo awake", "--cpus", "2")
        assert result["steps"][1]["stdout"] == "2\nawake\n"


@pytest.mark.usefixtures("toy_language")
def test_a_long_output_is_cut_and_costs_little(tmp_path: Path) -> None:
    """A MiB of output costs at most 600 exits and wake-ups; of 50 MB one MiB is kept, and it is
    said that it was cut.
    """
    quiet = run(tmp_path, "true")
    loud = run(tmp_path, f"yes 0123456 | head -c {MIB}")
    assert loud["steps"][1]["stdout"] == "0123456\n" * (MIB // 8)
    assert not loud["steps"][1]["stdout_truncated"]
    cost = sum(loud["exits"][name] - quiet["exits"][name] for name in ("total", "kicks"))
    assert cost <= 600, (quiet["exits"], loud["exits"])
    flood = run(tmp_path, f"yes 0123456 | head -c {scaled(50_000_000)}")
    assert flood["steps"][1]["stdout"] == "0123456\n" * (MIB // 8)
    assert flood["steps"][1]["stdout_truncated"]


@pytest.mark.usefixtures("toy_language")
def test_long_input_and_a_long_source(tmp_path: Path) -> None:
    stdin = hashlib.shake_256(b"stdin").digest(10_000_000)
    result = run(tmp_path, "sha256sum" + "\n# filler" * 125_000, stdin=stdin)
    assert result["steps"][1]["stdout"].split()[0] == hashlib.sha256(stdin).hexdigest()
