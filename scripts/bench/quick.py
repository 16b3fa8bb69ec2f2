"""Compare what Mayfly's own code costs with the last release's, by counts, never by times.

Usage: python -m scripts.bench.quick [--write]

A count that is more than a tenth above the one in docs/bench-quick.json fails; --write makes that
file anew, for a release. Counts of Python's instructions are compared where Python is of the same
minor version, those of the host's kernel where that is: with /dev/kvm, a tiny guest boots and is
restored; system calls are counted where strace is.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from pathlib import Path
from types import FrameType
from typing import Any

from mayfly.guests.spawner import snapshot_files
from mayfly.guests.zygote import Zygote
from mayfly.protocol import frames
from mayfly.protocol.control import Snapshot
from mayfly.schema import replace
from mayfly.units import MIB
from mayfly.vmm.build import build_machine
from mayfly.vmm.config import Channel, Layer, MachineConfig
from mayfly.vmm.devices.virtio.console import TRANSMIT, Console
from mayfly.vmm.devices.virtio.net import RECEIVE, Backend, Net
from mayfly.vmm.devices.virtio.net import TRANSMIT as SENT
from mayfly.vmm.devices.virtio.packet import MAX_PACKET
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.kvm.chains import Batch
from mayfly.vmm.network.filter import PacketFilter
from tests.kit import net_kit, tiny
from tests.kit.spawned import Spawned
from tests.kit.virtio_driver import Buffer, Driver

RELEASED = Path(__file__).resolve().parents[2] / "docs/bench-quick.json"
MORE = 1.1
"""A count may be so many times the last release's."""
CHAINS, FRAMES, BYTES = 500, 500, 100
ROUNDS = 3
SPEAK = f"mov ecx, {BYTES}\nmov dx, 0x2f8\n1: out dx, al\ndec ecx\njnz 1b\n2: hlt\njmp 2b\n"
"""A guest that writes so many bytes to the serial channel, and waits."""
NOT_COUNTED = re.compile(r"\+\+\+|---|(futex|sendto|recvfrom|write|epoll_wait|getpid|tgkill|rt_sigreturn)\(|ioctl\(\d+.*, KVM_RUN")
"""Lines of strace."""
COMMAND = "mayfly.cli.main, mayfly.cli.served"
ZYGOTE = "mayfly.vmm.process.zygote, mayfly.vmm.process.child"


def instructions(act: Callable[[], object], folder: str) -> int:
    """Python's own instructions that `act` executes in modules beneath `folder` of the project."""
    count, inside = 0, str(RELEASED.parents[1] / folder) + os.sep

    def step(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "opcode"
        return step

    def enter(frame: FrameType, _event: str, _argument: object) -> Any:
        if not os.path.realpath(frame.f_code.co_filename).startswith(inside):
            return None
        frame.f_trace_opcodes = True
        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def has_kvm() -> bool:
    """Whether tiny guests run here."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def of_python() -> dict[str, int]:
    """Counts that depend on Python alone."""
    of_kvm = {"instructions: a machine restored": _restoring()} if has_kvm() else {}
    return of_kvm | {
        "instructions: output over the virtio console": _console(),
        "instructions: packets over a network device": _packets(_Network()),
        "instructions: packets over a tap": _over_tap(),
        "instructions: frames of output taken apart": instructions(_take_frames, "mayfly/protocol"),
        "modules of a run at the server": _modules(COMMAND),
        "modules of the zygote": _modules(ZYGOTE),
    }


def _console() -> int:
    driver = Driver(Console("count", lambda views: sum(map(len, views)), lambda: None))
    driver.start()

    def send() -> None:
        for _ in range(CHAINS):
            driver.send(TRANSMIT, b"x" * 1000)
            driver.queues[TRANSMIT].used()

    return instructions(send, "vmm")


class _Network(Backend):
    """Takes all packets, and gives as many as `arrive` says."""

    def arrive(self, count: int) -> None:
        """So many packets for the guest."""
        self.waiting = count

    def send(self, packets: Batch, packet: int) -> None:
        """See `Backend.send`."""

    def receive(self, buffers: Batch) -> int:
        """See `Backend.receive`."""
        self.waiting -= 1
        return BYTES if self.waiting >= 0 else 0


class _Tap(net_kit.SocketBackend):
    """A back end as a tap is one."""

    def arrive(self, count: int) -> None:
        """So many packets for the guest."""
        self.waiting += [bytes(BYTES)] * count


def _over_tap() -> int:
    with contextlib.closing(_Tap()) as network:
        return _packets(network)


def _packets(network: _Network | _Tap) -> int:
    """Of three turns: two to four packets from the guest, and one to three to it."""
    packet_filter = PacketFilter(net_kit.GUEST_MAC, [ip_interface(f"{net_kit.GUEST}/16")], [], [], [])
    net = Net(net_kit.GUEST_MAC, 1500, network, packet_filter.may_leave, on_room=lambda: None, on_full=lambda: None)
    driver = Driver(net)
    wired = net_kit.Wired(driver, net, network) if isinstance(network, _Tap) else None
    driver.start()
    frame = net_kit.ethernet(0x800, net_kit.ipv4(net_kit.PUBLIC, net_kit.udp(b"x" * BYTES)))

    def turn(count: int) -> None:
        for _ in range(count + 1):
            driver.queues[RECEIVE].offer([Buffer(room=MAX_PACKET)])
            driver.queues[SENT].offer([Buffer(net_kit.PLAIN_HEADER + frame)])
        network.arrive(count)
        if wired:  # C does in the event loop's place what is usual
            os.eventfd_write(wired.kicks[SENT], 1)
            wired.turn()
        else:
            driver.kick(SENT, always=True)
        for queue in driver.queues:
            queue.used()

    def turns() -> None:
        for count in (1, 2, 3):
            turn(count)

    turn(1)
    driver.device.notify(RECEIVE)
    if wired:
        turn(1)
    counted = instructions(turns, "vmm")
    if wired:
        wired.close()
    return counted


def _take_frames() -> None:
    reader = frames.FrameReader(frames.FROM_AGENT)
    for frame in [frames.encode_frame(frames.Stdout(b"x" * 1000), 1)] * FRAMES:
        reader.feed(frame)


def _restoring() -> int:
    """Of making a machine that goes on, by a process whose zygote has done that once."""
    with tempfile.TemporaryDirectory() as name:
        _, restored = saved_tiny(Path(name))
        _make(restored)
        return instructions(functools.partial(_make, restored), "vmm")


def _make(config: MachineConfig) -> None:
    """Make a machine in this process, and give it up."""
    ours, channel = socket.socketpair()
    with ours, channel, EventLoop() as loop:
        build_machine(config, loop=loop, channel=channel, console=lambda _: None).close()


def _modules(names: str) -> int:
    code = f"import sys, {names}; print(len(sys.modules))"
    return int(subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True).stdout)


def of_machines() -> dict[str, int]:
    """Counts of a vmm process that boots a tiny guest, and of one that restores it: the least of
    ROUNDS, as other work on the machine only adds to them.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        boot, restored = saved_tiny(work)
        found: dict[str, list[int]] = {}
        with contextlib.closing(Zygote.start()) as zygote:
            for number in range(ROUNDS):
                for kind, config, size in (("boot", boot, BYTES), ("restore", restored, 0)):
                    another = replace(config, cmdline=str(number))  # no spare stands by for it
                    for what, count in _one(zygote, another, size, work).items():
                        found.setdefault(f"{what} of a {kind}", []).append(count)
    return {name: min(counts) for name, counts in found.items()}


def saved_tiny(work: Path) -> tuple[MachineConfig, MachineConfig]:
    """A machine that boots, and one that is restored."""
    boot = MachineConfig(kernel=str(tiny.build(work, SPEAK)), memory=16 * MIB, channel=Channel.SERIAL, user=None)
    saved = work / "saved"
    saved.mkdir()
    _save(boot, saved)
    return boot, replace(boot, restore=(Layer(folder=str(saved)),))


def _save(config: MachineConfig, folder: Path) -> None:
    """Save such a machine. Its zygote may compile modules, and has what that leaves in memory; the
    next one finds them compiled.
    """
    with contextlib.closing(Zygote.start()) as zygote, Spawned(zygote, config) as machine, snapshot_files(folder) as descriptors:
        _wait_for(machine, BYTES)
        machine.control.ask(Snapshot(go_on=False), descriptors)


def _wait_for(machine: Spawned, size: int) -> None:
    while size:
        size -= len(machine.channel.recv(size))


def _one(zygote: Zygote, config: MachineConfig, size: int, work: Path) -> dict[str, int]:
    with _traced(zygote.pid, work) as calls_of:
        with Spawned(zygote, config) as machine:
            machine.wait_running()
            _wait_for(machine, size)
            machine.channel.close()
            ended = machine.wait_ended()
        zygote.receive()
        found = {"page faults": ended.exits["page-faults"], "bytes of its own": ended.exits["own-bytes"]}
        if size:
            found["exits"] = ended.exits["total"]
        return {**found, **calls_of(machine.pid)}


@contextlib.contextmanager
def _traced(pid: int, work: Path) -> Iterator[Callable[[int], dict[str, int]]]:
    """What counts the system calls of a child of `pid`, when it has ended."""
    if not shutil.which("strace"):
        yield lambda _: {}
        return
    with tempfile.TemporaryDirectory(dir=work) as folder:
        command = ["strace", "-f", "-ff", "-o", f"{folder}/of", "-p", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr  # noqa: S101 (a pipe)
            attached = "attached" in strace.stderr.readline()

            def calls(child: int) -> dict[str, int]:
                strace.send_signal(signal.SIGINT)
                strace.communicate()
                return {"system calls": _calls(Path(folder), child)} if attached else {}

            yield calls
            strace.kill()


def _calls(folder: Path, thread: int) -> int:
    """System calls of a thread and of those that it began, but for those of which there are more
    where threads wait for one another or for the guest.
    """
    lines = [line for line in (folder / f"of.{thread}").read_text().splitlines() if not NOT_COUNTED.match(line)]
    begun = [int(found[1]) for line in lines if (found := re.match(r"clone3?\(.* = (\d+)$", line))]
    return len(lines) + sum(_calls(folder, other) for other in begun)


def count() -> dict[str, Any]:
    """All counts that can be had here, and what they depend on."""
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    found: dict[str, Any] = {name: ".".join(version.split(".")[:2]) for name, version in versions.items()}
    found["of python"] = of_python()
    found["of machines"] = of_machines() if has_kvm() else {}
    return found


def compare(released: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Print all counts beside the released ones; those that are too high."""
    worse = []
    for kind, depends in (("of python", "python"), ("of machines", "kernel")):
        if released[depends] != found[depends]:
            print(f"not compared {kind}: released with {depends} {released[depends]}, here is {found[depends]}")
            continue
        for name, before in released[kind].items():
            if (now := found[kind].get(name)) is None:
                print(f"{name:48} {before:12}  cannot be counted here")
                continue
            is_worse = now > before * MORE
            print(f"{name:48} {before:12} {now:12}  {now / before:.3f}{'  TOO MANY' if is_worse else ''}")
            worse += [name] if is_worse else []
    return worse


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compare counts with the last release's.")
    parser.add_argument("--write", action="store_true", help="make the file anew")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # for the zygotes
    found = count()
    if arguments.write:
        RELEASED.write_text(json.dumps(found, indent=1) + "\n")
    if worse := compare(json.loads(RELEASED.read_text()), found):
        hint = "find out why, or, if it is worth that, take the counts as the next release's: python -m scripts.bench.quick --write"
        raise SystemExit(f"bench: more than the last release: {', '.join(worse)}\n  hint: {hint}")


if __name__ == "__main__":
    main()
