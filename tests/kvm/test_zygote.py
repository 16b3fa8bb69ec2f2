"""vmm processes from a real zygote: reports, ends, and nothing left behind."""

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.errors import BootError, ConfigError, HostError, SchemaError
from mayfly.guests import zygote as zygote_module
from mayfly.guests.zygote import START, Zygote
from mayfly.protocol.report import End, Ended, decode
from mayfly.protocol.spawning import NOBODY, NOT_FORKED, Reaped
from mayfly.units import MIB
from mayfly.vmm.config import UID_RANGE, Channel, MachineConfig, Sandbox
from mayfly.vmm.kvm.prctl import prctl
from mayfly.vmm.kvm.system import call
from mayfly.vmm.process import zygote as vmm_zygote
from mayfly.vmm.process.zygote import OOM_SCORE
from mayfly.vmm.sandbox import landlock, namespaces
from mayfly.vmm.sandbox.privileges import drop_privileges, identity
from tests.kit import tiny
from tests.kit.forked import answer_of_child
from tests.kit.spawned import Spawned
from tests.kit.tiny import RESET
from tests.kvm.test_machine import ECHO, OUT2_RTS

pytestmark = pytest.mark.kvm

DEADLINE_S = 30.0
NOBODY_UID = 65534
SPIN = "1: jmp 1b\n"


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote.start()
    yield zygote
    zygote.close()


def spawned(zygote: Zygote, kernel: Path, *, user: str | None = "nobody", channel: Channel = Channel.SERIAL) -> Spawned:
    return Spawned(zygote, MachineConfig(kernel=str(kernel), memory=16 * MIB, channel=channel, user=user))


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
    machine = spawned(zygote, tiny.build(tmp_path, "mov dx, 0x3f8\nmov al, '!'\nout dx, al\n" + RESET))
    running, ended = machine.wait_running(), machine.wait_ended()
    assert set(running.phases) == {"process", "turn", "objects", "load", "sandbox"}
    assert ended.reason is End.RESET
    assert ended.console == "!"
    exits = dict(ended.exits)
    assert exits.pop("page-faults") > 0
    assert exits.pop("own-bytes") > 0
    assert exits == {"io 0x3f8": 1, "io 0x64": 1, "total": 2, "channel-data": 0, "kicks": 0}
    assert zygote.receive() == Reaped(machine=7, status=0)
    machine.close()


def test_machines_end_before_their_server_where_memory_runs_out(zygote: Zygote, tmp_path: Path) -> None:
    machine = spawned(zygote, tiny.build(tmp_path, SPIN))
    machine.wait_running()
    ours, theirs, its = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in ("self", zygote.pid, machine.pid))
    assert (theirs, its) == (OOM_SCORE, OOM_SCORE)
    assert ours < OOM_SCORE
    machine.channel.close()
    machine.wait_ended()
    machine.close()


def test_closing_the_channel_ends_the_machine(zygote: Zygote, tmp_path: Path) -> None:
    machine = spawned(zygote, tiny.build(tmp_path, SPIN))
    machine.wait_running()
    machine.channel.close()
    assert machine.wait_ended().reason is End.CHANNEL_CLOSED
    assert zygote.receive() == Reaped(machine=7, status=0)
    machine.close()


def test_the_channel_carries_bytes(zygote: Zygote, tmp_path: Path) -> None:
    machine = spawned(zygote, tiny.build(tmp_path, ECHO))
    machine.channel.sendall(b"hello")
    assert machine.channel.recv(5, socket.MSG_WAITALL) == b"hello"
    zygote.signal(7, signal.SIGKILL)
    assert zygote.receive() == Reaped(machine=7, status=-signal.SIGKILL)
    machine.close()


def test_killing_a_vmm_process_is_reported(zygote: Zygote, tmp_path: Path) -> None:
    machine = spawned(zygote, tiny.build(tmp_path, SPIN))
    machine.wait_running()
    os.kill(machine.pid, signal.SIGKILL)
    assert zygote.receive() == Reaped(machine=7, status=-signal.SIGKILL)
    assert machine.lines.read() == b""
    machine.close()


def test_machines_die_with_the_zygote(tmp_path: Path) -> None:
    zygote = Zygote.start()
    machine = spawned(zygote, tiny.build(tmp_path, SPIN))
    machine.wait_running()
    os.kill(zygote.pid, signal.SIGKILL)
    assert gone(machine.pid)
    with pytest.raises(EOFError):
        zygote.receive()
    zygote.close()
    machine.close()


def test_namespaces_that_were_lacking_for_a_moment_are_made_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = tmp_path / "lacking"
    lacking.touch()

    def missing(name: str, *values: int | bytes | None) -> int:
        if name == "unshare" and lacking.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(name, *values)

    monkeypatch.setattr(namespaces, "call", missing)
    monkeypatch.setattr(vmm_zygote, "AGAIN_S", 0.0)
    zygote = Zygote.fork()
    kernel = str(tiny.build(tmp_path, SPIN))
    required = MachineConfig(kernel=kernel, memory=16 * MIB, channel=Channel.SERIAL, user="nobody", sandbox=Sandbox.REQUIRED)
    with Spawned(zygote, required) as machine:
        assert "sandbox is required, and this host lacks namespaces" in str(machine.wait_ended().error)
    assert zygote.receive() == Reaped(machine=7, status=0)
    lacking.unlink()
    with Spawned(zygote, required) as machine:
        machine.wait_running()
        assert Path(f"/proc/{machine.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    zygote.close()


def test_closing_the_client_ends_zygote_and_machines(tmp_path: Path) -> None:
    zygote = Zygote.start()
    machine = spawned(zygote, tiny.build(tmp_path, SPIN))
    machine.wait_running()
    zygote.close()
    assert gone(machine.pid)
    machine.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
def test_a_vmm_process_of_root_drops_its_privileges(zygote: Zygote, tmp_path: Path) -> None:
    machine = spawned(zygote, tiny.build(tmp_path, SPIN))
    machine.wait_running()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{machine.pid}/status").read_text().splitlines())
    assert {int(uid) for uid in status["Uid"].split()} == {UID_RANGE[0] + machine.pid}
    assert status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].split() == []
    assert status["NoNewPrivs"].strip() == "1"
    assert int(status["CapEff"], 16) == 0
    machine.close()


def test_an_unknown_service_user_is_a_typed_error(zygote: Zygote, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has privileges to drop")
    machine = spawned(zygote, tiny.build(tmp_path, OUT2_RTS + SPIN), user="no-such-user")
    assert isinstance(machine.wait_ended().error, ConfigError)
    machine.close()


def test_a_kernel_that_is_none_is_a_typed_error(zygote: Zygote, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"not a kernel" * 1000)
    machine = spawned(zygote, kernel)
    ended = machine.wait_ended()
    assert ended.reason is End.ERROR
    assert isinstance(ended.error, BootError)
    machine.close()


def test_a_vmm_process_is_small(zygote: Zygote, tmp_path: Path) -> None:
    """At most 12 MiB of Private_Dirty without guest RAM (the tiny guest dirties some 30 KiB)."""
    machine = spawned(zygote, tiny.build(tmp_path, SPIN))
    machine.wait_running()
    rollup = Path(f"/proc/{machine.pid}/smaps_rollup").read_text()
    dirty_kib = int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Private_Dirty")))
    print(f"Private_Dirty of a vmm process: {dirty_kib} KiB")
    assert dirty_kib < 12 * 1024
    machine.close()


def test_no_descriptor_of_the_client_reaches_a_vmm_process(zygote: Zygote, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        machine = spawned(zygote, tiny.build(tmp_path, SPIN))
        machine.wait_running()
        links = [str(entry.readlink()) for entry in Path(f"/proc/{machine.pid}/fd").iterdir()]
        assert secret.name not in links
        assert sum(link.startswith("socket:") for link in links) == 2  # channel and control
    machine.close()


def test_nothing_that_the_client_inherited_reaches_a_vmm_process(tmp_path: Path) -> None:
    """Neither a descriptor that is not close-on-exec, nor a standard stream, nor a terminal."""
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        zygote = Zygote.start()
        machine = spawned(zygote, tiny.build(tmp_path, SPIN))
        machine.wait_running()
        links = {int(entry.name): str(entry.readlink()) for entry in Path(f"/proc/{machine.pid}/fd").iterdir()}
        assert secret.name not in links.values()
        assert [links[stream] for stream in range(3)] == [os.devnull] * 3
        assert os.getsid(machine.pid) == zygote.pid
        assert Path(f"/proc/{machine.pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"  # tty_nr (proc_pid_stat(5))
        machine.close()
        zygote.close()


def refusals(attempts: dict[str, Callable[[], object]], user: str | None, become: int | None) -> dict[str, str]:
    """What each attempt ends with in a process that is `become` and has dropped its privileges."""

    def results() -> dict[str, str]:
        if become is not None:
            os.setresuid(become, become, become)
        drop_privileges(identity(user, UID_RANGE))
        with contextlib.suppress(OSError):
            landlock.restrict(paths=False, network=False)
        found: dict[str, str] = {}
        for name, attempt in attempts.items():
            try:
                attempt()
                found[name] = "done"
            except OSError as error:
                found[name] = errno.errorcode[error.errno or 0]
        return found

    return dict(answer_of_child(results))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
@pytest.mark.parametrize("as_root", [True, False], ids=["of-root", "of-a-user"])
def test_a_vmm_process_has_no_hold_of_its_sibling(zygote: Zygote, tmp_path: Path, as_root: bool) -> None:
    if not as_root and not scopes_signals():
        pytest.skip("this kernel cannot scope signals (Landlock's ABI 6)")
    if as_root:
        machine = spawned(zygote, tiny.build(tmp_path, SPIN))
        machine.wait_running()
        victim = machine.pid
    else:
        victim = os.fork()
        if victim == 0:
            os.setresuid(NOBODY_UID, NOBODY_UID, NOBODY_UID)
            prctl("PR_SET_PDEATHSIG", signal.SIGKILL)
            prctl("PR_SET_DUMPABLE", 0)
            while True:
                signal.pause()
        wait_for_uid(victim, NOBODY_UID)
    attempts: dict[str, Callable[[], object]] = {
        "stop": lambda: os.kill(victim, signal.SIGSTOP),
        "kill": lambda: os.kill(victim, signal.SIGKILL),
        "memory": lambda: os.open(f"/proc/{victim}/mem", os.O_RDWR),
        "descriptors": lambda: list(Path(f"/proc/{victim}/fd").iterdir()),
        "itself": lambda: os.kill(os.getpid(), 0),
    }
    if as_root:
        attempts["limits"] = lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (0, 0))
    refused = refusals(attempts, "nobody" if as_root else None, None if as_root else NOBODY_UID)
    assert refused.pop("itself") == "done"
    assert set(refused.values()) <= {"EPERM", "EACCES"}, refused
    if as_root:
        machine.close()
    else:
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)


def scopes_signals() -> bool:
    """Whether this kernel can."""
    try:
        return landlock.abi() >= landlock.SCOPES_ABI
    except OSError:
        return False


def wait_for_uid(pid: int, uid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}").stat().st_uid != uid and f"\nUid:\t{uid}" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_a_fork_that_fails_concerns_its_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = tmp_path / "no-more"
    failing = (
        "import errno, os; from pathlib import Path; from mayfly.vmm.process import zygote; fork = zygote.fork\n"
        "def fail_sometimes():\n"
        f"    if Path({str(flag)!r}).exists(): raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    return fork()\n"
        "zygote.fork = fail_sometimes\n"
    )
    monkeypatch.setattr(zygote_module, "START", failing + START)
    zygote = Zygote.start()
    kernel = tiny.build(tmp_path, SPIN)
    machine = spawned(zygote, kernel)
    machine.wait_running()
    flag.touch()
    channel, theirs = socket.socketpair()
    report, report_end = os.pipe()
    config = MachineConfig(kernel=str(kernel), memory=16 * MIB, channel=Channel.SERIAL)
    zygote.spawn(8, config, theirs.fileno(), report_end, theirs.fileno())
    os.close(report_end)
    assert zygote.receive() == Reaped(machine=8, status=NOT_FORKED)
    with os.fdopen(report, "rb") as lines:
        ended = decode(lines.read())
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, HostError)
    assert os.strerror(errno.EAGAIN) in ended.error.message
    for end in (channel, theirs):
        end.close()
    flag.unlink()
    assert not select.select([machine.lines], [], [], 0)[0]  # the other one lives
    again = spawned(zygote, kernel)
    again.wait_running()
    for one in (machine, again):
        one.close()
    zygote.close()


@pytest.mark.parametrize(
    ("message", "concerns"),
    [
        (b"not JSON", NOBODY),
        (b"\xff\xfe", NOBODY),
        (b"[]", NOBODY),
        (b"{}", NOBODY),
        (b'{"type":"spawn","machine":"x","config":{}}', NOBODY),
        (b'{"type":"signal","number":9}', NOBODY),
        (b'{"type":"signal","number":"x","machine":7}', NOBODY),
        (b'{"type":"spawn","machine":8}', NOBODY),
        (b'{"type":"spawn","machine":8,"config":{}}', 8),  # without descriptors
    ],
)
def test_a_message_that_makes_no_sense_is_answered(zygote: Zygote, tmp_path: Path, message: bytes, concerns: int) -> None:
    machine = spawned(zygote, tiny.build(tmp_path, SPIN))
    machine.wait_running()
    zygote._control.send(message)
    assert zygote.receive() == Reaped(machine=concerns, status=NOT_FORKED)
    machine.channel.close()
    assert machine.wait_ended().reason is End.CHANNEL_CLOSED
    machine.close()


def test_a_configuration_that_makes_no_sense_is_a_typed_error(zygote: Zygote) -> None:
    report, report_end = os.pipe()
    socket.send_fds(zygote._control, [b'{"type":"spawn","machine":8,"config":{}}'], [report_end] * 3)
    os.close(report_end)
    with os.fdopen(report, "rb") as lines:
        ended = decode(lines.read())
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, SchemaError)


def test_a_configuration_that_is_too_large_is_refused_before_it_is_sent(zygote: Zygote) -> None:
    with pytest.raises(ConfigError, match="65536 is the most"):
        zygote.spawn(8, MachineConfig(kernel="k" * 70_000, memory=16 * MIB), 0, 0, 0)


@pytest.mark.parametrize("carrier", [Channel.SERIAL, Channel.VIRTIO])
def test_the_end_of_the_channel_ends_a_guest_that_hangs_and_its_console_is_kept(zygote: Zygote, tmp_path: Path, carrier: Channel) -> None:
    """It takes nothing: over serial its UART is full, over virtio nobody has opened the port."""
    says_oops = "".join(f"mov dx, 0x3f8\nmov al, '{letter}'\nout dx, al\n" for letter in "Oops")
    machine = spawned(zygote, tiny.build(tmp_path, says_oops + SPIN), channel=carrier)
    machine.wait_running()
    machine.channel.sendall(bytes(8192))
    machine.channel.close()
    ended = machine.wait_ended()
    assert ended.reason is End.CHANNEL_CLOSED
    assert "Oops".startswith(ended.console)
    machine.close()


def test_addresses_that_a_guest_makes_up_are_counted_under_one_name(zygote: Zygote, tmp_path: Path) -> None:
    """Writes to 1,000 pages of addresses that no device has, and reads of 1,000 ports."""
    source = """
        mov rbx, 0x400000
        mov rcx, 512
        mov rdx, 0x100000083
    1:  mov [rbx], rdx
        add rbx, 8
        add rdx, 0x200000
        loop 1b
        mov qword ptr [0xA020], 0x400003
        mov rdi, 0x100000000
        mov rcx, 1000
    2:  mov dword ptr [rdi], eax
        add rdi, 4096
        loop 2b
        mov rcx, 1000
        mov dx, 0x1000
    3:  in al, dx
        inc dx
        loop 3b
    """
    machine = spawned(zygote, tiny.build(tmp_path, source + RESET))
    exits = machine.wait_ended().exits
    assert exits["mmio unmapped"] == 1000
    assert exits["io unmapped"] == 1000
    assert len(exits) < 12
    machine.close()
