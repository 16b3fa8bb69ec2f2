"""Spares of a real zygote: starts that take one are as others, and none is left behind."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import SnapshotError
from mayfly.guests.spawner import snapshot_files
from mayfly.guests.zygote import Zygote
from mayfly.protocol.control import Figures, Snapshot, Stats
from mayfly.protocol.report import End
from mayfly.schema import replace
from mayfly.units import MIB
from mayfly.vmm.arch.x86_64.cpu import MSR, set_msrs
from mayfly.vmm.arch.x86_64.state import MSR_TSC
from mayfly.vmm.build import build_machine
from mayfly.vmm.config import UID_RANGE, Channel, Layer, MachineConfig
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.kvm._kvm import ffi
from mayfly.vmm.kvm.kvm import Vcpu
from mayfly.vmm.snapshot import STATE
from tests.kit import tiny
from tests.kit.spawned import Spawned
from tests.kvm.test_machine import ECHO
from tests.kvm.test_zygote import gone

pytestmark = pytest.mark.kvm

DEADLINE_S = 30.0
TALK = """
    1:  mov dx, 0x2f8
        out dx, al
        mov ecx, 1500
    2:  dec ecx
        jnz 2b
        jmp 1b
"""
RECVMSG = 47  # x86-64's
SPARE_PHASES = {"process"}
AT_ONCE = 10


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    with contextlib.closing(Zygote.start()) as zygote:
        yield zygote


def children(zygote: Zygote) -> set[int]:
    return set(map(int, Path(f"/proc/{zygote.pid}/task/{zygote.pid}/children").read_text().split()))


def save(zygote: Zygote, folder: Path, name: str = "base", guest: str = TALK) -> MachineConfig:
    """A machine that goes on from a snapshot."""
    config = MachineConfig(kernel=str(tiny.build(folder, guest)), memory=16 * MIB, channel=Channel.SERIAL)
    with Spawned(zygote, config) as machine:
        machine.channel.sendall(b"a")
        machine.channel.recv(1)
        (folder / name).mkdir()
        with snapshot_files(folder / name) as descriptors:
            machine.control.ask(Snapshot(go_on=False), descriptors)
        assert machine.wait_ended().reason is End.SAVED
    zygote.receive()
    return replace(config, restore=(Layer(folder=str(folder / name)),))


def tsc(vcpu: Vcpu) -> int:
    """Its counter, as KVM tells it."""
    msrs: Any = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": [{"index": MSR_TSC}]})
    vcpu.ioctl("KVM_GET_MSRS", msrs)
    return int(msrs.entries[0].data)


def waiting(zygote: Zygote) -> int:
    """The one spare, once it waits for its start."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        for child in children(zygote):
            with contextlib.suppress(OSError):
                if len(os.listdir(f"/proc/{child}/task")) >= 3 and _receives(child):  # noqa: PTH208 (the threads' names do not matter)
                    return child
        time.sleep(0.01)
    raise AssertionError("no spare")


def _receives(pid: int) -> bool:
    """Whether it waits for a message with descriptors (proc_pid_syscall(5))."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == str(RECVMSG)
    except PermissionError:  # of another user, or in a container
        time.sleep(0.5)
        return True


def run(zygote: Zygote, config: MachineConfig) -> tuple[int, bool]:
    """One machine, up to its guest's first word and its end: its process, and whether it was a
    spare.
    """
    with Spawned(zygote, config) as machine:
        phases = machine.wait_running().phases
        assert machine.channel.recv(1)
    zygote.receive()
    return machine.pid, phases.keys() == SPARE_PHASES


def test_the_second_start_from_a_snapshot_takes_the_spare(zygote: Zygote, tmp_path: Path) -> None:
    config = save(zygote, tmp_path)
    _, was_spare = run(zygote, config)
    assert not was_spare
    for _ in range(3):
        spare = waiting(zygote)
        assert run(zygote, config) == (spare, True)


def test_a_machine_that_boots_takes_a_spare_after_two_like_it(zygote: Zygote, tmp_path: Path) -> None:
    config = MachineConfig(kernel=str(tiny.build(tmp_path, TALK)), memory=16 * MIB, channel=Channel.SERIAL)
    for _ in range(2):
        _, was_spare = run(zygote, config)
        assert not was_spare
    spare = waiting(zygote)
    assert run(zygote, config) == (spare, True)
    waiting(zygote)
    other = tiny.build(tmp_path, ECHO)
    assert str(other) == config.kernel
    with Spawned(zygote, config) as machine:
        assert machine.wait_running().phases.keys() != SPARE_PHASES
        machine.channel.sendall(b"hello")
        assert machine.channel.recv(5, socket.MSG_WAITALL) == b"hello"


def test_a_spare_has_the_descriptors_of_any_machine(zygote: Zygote, tmp_path: Path) -> None:
    config, found = save(zygote, tmp_path), []
    for spare in (False, True):
        with Spawned(zygote, config) as machine:
            assert (machine.wait_running().phases.keys() == SPARE_PHASES) is spare
            assert machine.channel.recv(1)
            found.append(sorted(link.readlink().name.partition(":[")[0] for link in Path(f"/proc/{machine.pid}/fd").iterdir()))
        zygote.receive()
        waiting(zygote)
    assert found[0] == found[1]


def test_a_spare_hears_its_channel_and_its_end(zygote: Zygote, tmp_path: Path) -> None:
    config = save(zygote, tmp_path, guest=ECHO)
    with Spawned(zygote, config) as machine:
        machine.wait_running()
    zygote.receive()
    spare = waiting(zygote)
    with Spawned(zygote, config) as machine:
        assert machine.wait_running().phases.keys() == SPARE_PHASES
        assert machine.pid == spare
        machine.channel.sendall(b"hello")
        assert machine.channel.recv(5, socket.MSG_WAITALL) == b"hello"
        assert isinstance(machine.control.ask(Stats()), Figures)
        machine.channel.shutdown(socket.SHUT_RDWR)
        assert machine.wait_ended().reason is End.CHANNEL_CLOSED


def test_a_restored_guest_is_given_the_time_of_its_snapshot_anew(zygote: Zygote, tmp_path: Path) -> None:
    """Its clock, and where KVM gives guests a counter of their own (PVM does not), that too."""
    ours, theirs = socket.socketpair()
    with EventLoop() as loop, ours, theirs:
        machine = build_machine(save(zygote, tmp_path), loop=loop, channel=theirs, console=lambda _: None)
        with contextlib.closing(machine):
            assert machine.set_back is not None
            (vcpu,) = machine.processors.vcpus
            began = time.monotonic()
            counter = tsc(vcpu)
            time.sleep(0.9)
            ticks_a_second = (tsc(vcpu) - counter) / (time.monotonic() - began)
            set_msrs(vcpu, MSR.pack(MSR_TSC, 1 << 62))
            own_counter = tsc(vcpu) >= 1 << 62
            machine.set_back()
            clock = machine.vm.exchange("KVM_GET_CLOCK", "struct kvm_clock_data").clock
            back = tsc(vcpu)
    saved = json.loads((tmp_path / "base" / STATE).read_text())["kvm"]
    assert 0 <= clock - saved["clock_ns"] < 800_000_000
    if own_counter:
        (before,) = (value for index, value in MSR.iter_unpack(base64.b64decode(saved["vcpus"][0]["msrs"])) if index == MSR_TSC)
        assert 0 <= back - before < 0.8 * ticks_a_second


def test_a_spare_that_was_killed_is_missed_by_nobody(zygote: Zygote, tmp_path: Path) -> None:
    config = save(zygote, tmp_path)
    run(zygote, config)
    spare = waiting(zygote)
    os.kill(spare, signal.SIGKILL)
    assert gone(spare)
    pid, was_spare = run(zygote, config)
    assert (pid != spare, was_spare) == (True, False)
    assert waiting(zygote) != spare


def test_a_snapshot_that_was_removed_fails_a_start_and_ends_its_spare(zygote: Zygote, tmp_path: Path) -> None:
    config = save(zygote, tmp_path)
    run(zygote, config)
    spare = waiting(zygote)
    shutil.rmtree(config.restore[0].folder)
    with Spawned(zygote, config) as machine:
        assert isinstance(machine.wait_ended().error, SnapshotError)
    zygote.receive()
    assert gone(spare)


def test_a_spare_ends_soon_after_its_snapshot(zygote: Zygote, tmp_path: Path) -> None:
    config = save(zygote, tmp_path)
    run(zygote, config)
    spare = waiting(zygote)
    shutil.rmtree(config.restore[0].folder)
    assert gone(spare)


def test_a_snapshot_in_the_place_of_another_is_what_a_start_goes_on_from(zygote: Zygote, tmp_path: Path) -> None:
    config = save(zygote, tmp_path)
    run(zygote, config)
    waiting(zygote)
    other = Path(save(zygote, tmp_path, "other").restore[0].folder)
    shutil.rmtree(config.restore[0].folder)
    other.rename(config.restore[0].folder)
    _, was_spare = run(zygote, config)
    assert not was_spare
    waiting(zygote)
    _, was_spare = run(zygote, config)
    assert was_spare


def test_one_of_several_at_once_takes_the_spare(zygote: Zygote, tmp_path: Path) -> None:
    config = save(zygote, tmp_path)
    run(zygote, config)
    spare = waiting(zygote)
    with contextlib.ExitStack() as started:
        machines = [started.enter_context(Spawned(zygote, config, number)) for number in range(1, AT_ONCE + 1)]
        phases = [machine.wait_running().phases.keys() for machine in machines]
        assert all(machine.channel.recv(1) for machine in machines)
        assert [keys == SPARE_PHASES for keys in phases] == [True] + [False] * (AT_ONCE - 1)
        pids = {machine.pid for machine in machines}
        assert (len(pids), machines[0].pid) == (AT_ONCE, spare)
    assert {zygote.receive().machine for _ in machines} == set(range(1, AT_ONCE + 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_a_spare_has_dropped_its_privileges_before_it_is_taken(zygote: Zygote, tmp_path: Path) -> None:
    config = save(zygote, tmp_path)
    run(zygote, config)
    spare = waiting(zygote)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{spare}/status").read_text().splitlines())
    assert {int(uid) for uid in status["Uid"].split()} == {UID_RANGE[0] + spare}
    assert (int(status["CapEff"], 16), status["NoNewPrivs"].strip()) == (0, "1")
    assert Path(f"/proc/{spare}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    assert run(zygote, config) == (spare, True)


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_no_spare_outlives_its_zygote(ending: str, tmp_path: Path) -> None:
    zygote = Zygote.start()
    run(zygote, save(zygote, tmp_path))
    spare = waiting(zygote)
    if ending == "killed":
        os.kill(zygote.pid, signal.SIGKILL)
    zygote.close()
    assert gone(spare)
