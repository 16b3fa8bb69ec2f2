"""vmm processes from a real zygote: reports, ends, and nothing left behind."""

import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.process.zygote import Forked, Reaped, Zygote
from tests.kit import tiny
from tests.kit.tiny import RESET
from tests.kvm.test_machine import ECHO, OUT2_RTS

pytestmark = pytest.mark.kvm

DEADLINE_S = 5.0
SPIN = "1: jmp 1b\n"


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote.start()
    yield zygote
    zygote.close()


class Spawned:
    """A machine, the ends of its channel and report that are ours."""

    def __init__(self, zygote: Zygote, kernel: Path, *, user: str | None = "nobody") -> None:
        self.channel, theirs = socket.socketpair()
        report, report_fd = os.pipe()
        self.report = os.fdopen(report, "rb")
        config = MachineConfig(kernel=str(kernel), memory=16 * MIB, channel=Channel.SERIAL, user=user)
        zygote.spawn(7, config, theirs.fileno(), report_fd)
        theirs.close()
        os.close(report_fd)
        forked = zygote.receive()
        assert isinstance(forked, Forked)
        self.pid = forked.pid

    def next_report(self) -> dict[str, object]:
        return dict(json.loads(self.report.readline()))

    def close(self) -> None:
        self.channel.close()
        self.report.close()


def gone(pid: int) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], DEADLINE_S)[0])
    finally:
        os.close(fd)


def test_a_machine_reports_its_phases_its_exits_and_its_end(zygote: Zygote, tmp_path: Path) -> None:
    spawned = Spawned(zygote, tiny.build(tmp_path, "mov dx, 0x3f8\nmov al, '!'\nout dx, al\n" + RESET))
    running, ended = spawned.next_report(), spawned.next_report()
    assert running["event"] == "running"
    assert set(running["phases"]) == {"process", "objects", "load"}  # type: ignore[call-overload]
    assert ended["reason"] == "reset"
    assert ended["console"] == "!"
    exits = dict(ended["exits"])  # type: ignore[call-overload]
    assert exits.pop("page-faults") > 0
    assert exits.pop("own-bytes") > 0
    assert exits == {"io 0x3f8": 1, "io 0x64": 1, "total": 2, "channel-data": 0, "kicks": 0}
    assert zygote.receive() == Reaped(machine=7, status=0)
    spawned.close()


def test_closing_the_channel_ends_the_machine(zygote: Zygote, tmp_path: Path) -> None:
    spawned = Spawned(zygote, tiny.build(tmp_path, SPIN))
    spawned.next_report()
    spawned.channel.close()
    assert spawned.next_report()["reason"] == "channel-closed"
    assert zygote.receive() == Reaped(machine=7, status=0)
    spawned.close()


def test_the_channel_carries_bytes(zygote: Zygote, tmp_path: Path) -> None:
    spawned = Spawned(zygote, tiny.build(tmp_path, ECHO))
    spawned.channel.sendall(b"hello")
    assert spawned.channel.recv(5, socket.MSG_WAITALL) == b"hello"
    zygote.signal(7, signal.SIGKILL)
    assert zygote.receive() == Reaped(machine=7, status=-signal.SIGKILL)
    spawned.close()


def test_killing_a_vmm_process_is_reported(zygote: Zygote, tmp_path: Path) -> None:
    spawned = Spawned(zygote, tiny.build(tmp_path, SPIN))
    spawned.next_report()
    os.kill(spawned.pid, signal.SIGKILL)
    assert zygote.receive() == Reaped(machine=7, status=-signal.SIGKILL)
    assert spawned.report.read() == b""
    spawned.close()


def test_machines_die_with_the_zygote(tmp_path: Path) -> None:
    zygote = Zygote.start()
    spawned = Spawned(zygote, tiny.build(tmp_path, SPIN))
    spawned.next_report()
    os.kill(zygote.pid, signal.SIGKILL)
    assert gone(spawned.pid)
    with pytest.raises(EOFError):
        zygote.receive()
    zygote.close()
    spawned.close()


def test_closing_the_client_ends_zygote_and_machines(tmp_path: Path) -> None:
    zygote = Zygote.start()
    spawned = Spawned(zygote, tiny.build(tmp_path, SPIN))
    spawned.next_report()
    zygote.close()
    assert gone(spawned.pid)
    spawned.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_a_vmm_process_of_root_drops_its_privileges(zygote: Zygote, tmp_path: Path) -> None:
    spawned = Spawned(zygote, tiny.build(tmp_path, SPIN))
    spawned.next_report()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{spawned.pid}/status").read_text().splitlines())
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Groups"].split() == []
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["CapEff"], 16) == 0
    spawned.close()


def test_an_unknown_service_user_is_a_typed_error(zygote: Zygote, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has privileges to drop")
    spawned = Spawned(zygote, tiny.build(tmp_path, OUT2_RTS + SPIN), user="no-such-user")
    ended = spawned.next_report()
    assert ended["error"]["type"] == "ConfigError"  # type: ignore[index]
    spawned.close()


def test_a_kernel_that_is_none_is_a_typed_error(zygote: Zygote, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"not a kernel" * 1000)
    spawned = Spawned(zygote, kernel)
    ended = spawned.next_report()
    assert ended["reason"] == "error"
    assert ended["error"]["type"] == "BootError"  # type: ignore[index]
    spawned.close()


def test_a_vmm_process_is_small(zygote: Zygote, tmp_path: Path) -> None:
    """At most 12 MiB of Private_Dirty without guest RAM (the tiny guest dirties some 30 KiB)."""
    spawned = Spawned(zygote, tiny.build(tmp_path, SPIN))
    spawned.next_report()
    rollup = Path(f"/proc/{spawned.pid}/smaps_rollup").read_text()
    dirty_kib = int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty")))
    print(f"Private_Dirty of a vmm process: {dirty_kib} KiB")
    assert dirty_kib < 12 * 1024
    spawned.close()


def test_no_descriptor_of_the_client_reaches_a_vmm_process(zygote: Zygote, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        spawned = Spawned(zygote, tiny.build(tmp_path, SPIN))
        spawned.next_report()
        links = [str(entry.readlink()) for entry in Path(f"/proc/{spawned.pid}/fd").iterdir()]
        assert secret.name not in links
        assert sum(link.startswith("socket:") for link in links) == 1
    spawned.close()
