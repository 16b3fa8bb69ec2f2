"""An intruder: code of a test's in a vmm process, in its event loop or in a vCPU's thread.

The process is forked by the test itself, which puts the code there; nothing in the product does.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from mayfly.errors import MayflyError
from mayfly.schema import msgspec
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig, Sandbox
from mayfly.vmm.kvm import kvm
from mayfly.vmm.kvm.prctl import prctl
from mayfly.vmm.machine import Machine
from mayfly.vmm.process import child, spares
from mayfly.vmm.process.spares import Ends
from mayfly.vmm.process.turns import Turns
from mayfly.vmm.sandbox import namespaces

_libc = ctypes.CDLL(None, use_errno=True)
_COLUMN = ("x86_64", "aarch64").index(platform.machine())
_NULL = 0
SUCCEEDED = "it succeeded"


def call(name: str, *arguments: Any) -> int:
    """Call the C library's function, and raise what it fails with."""
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def raw(x86: int, arm: int, *arguments: Any) -> int:
    """The same for a system call by its number on x86-64 and on aarch64."""
    return call(
        "syscall", ctypes.c_long((x86, arm)[_COLUMN]), *(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    )


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)


def _thread() -> None:
    try:
        threading.Thread(target=print).start()
    except RuntimeError as error:
        raise OSError(errno.EPERM, str(error)) from error


def attempts(victim: int, folder: Path) -> dict[str, Callable[[], object]]:
    """What an intruder tries; `victim` is another process, `folder` anyone's."""
    return {
        "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "read its own memory": lambda: os.open("/proc/self/mem", os.O_RDWR),
        "make a file": lambda: os.open(folder / "made", os.O_CREAT | os.O_WRONLY),
        "remove a file": lambda: os.unlink(folder / "there"),  # noqa: PTH108 (the system call)
        "list a folder": lambda: os.listdir("/"),  # noqa: PTH208
        "make a folder": lambda: os.mkdir(folder / "made"),  # noqa: PTH102
        "look at a file": lambda: os.stat("/etc/passwd"),  # noqa: PTH116
        "change its root": lambda: os.chroot("/"),
        "change its folder": lambda: os.chdir("/"),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": lambda: os.fork() or os._exit(0),
        "vfork": lambda: raw(58, 220, signal.SIGCHLD, 0, 0, 0, 0),
        "make a thread": _thread,
        "open an Internet socket": lambda: socket.socket(socket.AF_INET),
        "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "connect to a Unix socket": lambda: _connect("/run/systemd/notify"),
        "connect a descriptor": lambda: call("connect", 0, b"\x01\x00" + bytes(14), 16),
        "make a socket pair": socket.socketpair,
        "make a pipe": os.pipe,
        "ask whether a sibling is there": lambda: os.kill(victim, 0),
        "kill a sibling": lambda: os.kill(victim, signal.SIGKILL),
        "kill all that it may": lambda: os.kill(-1, 0),
        "signal a sibling's thread": lambda: raw(234, 131, victim, victim, signal.SIGKILL),
        "queue a signal": lambda: raw(129, 138, victim, signal.SIGKILL, bytes(128)),
        "take a pidfd": lambda: os.pidfd_open(victim),
        "limit a sibling": lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (0, 0)),
        "raise its own limits": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
        "slow a sibling down": lambda: os.setpriority(os.PRIO_PROCESS, victim, 19),
        "trace a sibling": lambda: call("ptrace", 16, victim, _NULL, _NULL),
        "read a sibling's memory": lambda: call("process_vm_readv", victim, _NULL, 0, _NULL, 0, 0),
        "compare with a sibling": lambda: raw(312, 272, os.getpid(), victim, 0, 0, 0),
        "map memory to be run": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
        "have memory run": lambda: call("mprotect", ctypes.c_void_p(0x10000), 4096, 5),
        "have memory run by a key": lambda: raw(329, 288, 0x10000, 4096, 5, -1),
        "make a file in memory": lambda: os.memfd_create("x"),
        "share memory": lambda: call("shmget", 0, 4096, 0o1600),
        "make a semaphore": lambda: call("semget", 0, 1, 0o1600),
        "make a queue": lambda: call("msgget", 0, 0o1600),
        "use io_uring": lambda: raw(425, 425, 8, bytes(120)),
        "load a BPF program": lambda: raw(321, 280, 0, bytes(128), 128),
        "watch events": lambda: raw(298, 241, bytes(128), 0, -1, -1, 0),
        "catch page faults of the kernel": lambda: raw(323, 282, 0),
        "use a key": lambda: raw(250, 219, 0, -3, 0),
        "add a key": lambda: raw(248, 217, b"user", b"x", b"x", 1, -3),
        "mount": lambda: call("mount", b"none", b"/", b"tmpfs", 0, _NULL),
        "unmount": lambda: call("umount2", b"/", 2),
        "make a user namespace": lambda: call("unshare", 0x1000_0000),
        "enter a namespace": lambda: call("setns", 0, 0),
        "become root": lambda: os.setresuid(0, 0, 0),
        "take a capability": lambda: call("capset", b"\x22\x05\x08\x20" + bytes(4), b"\xff" * 24),
        "be traced and dumped again": lambda: prctl("PR_SET_DUMPABLE", 1),
        "outlive its parent": lambda: prctl("PR_SET_PDEATHSIG", 0),
        "load a module": lambda: raw(313, 273, 0, b"", 0),
        "load a kernel": lambda: raw(246, 104, 0, 0, 0, 0),
        "reboot": lambda: call("reboot", 0),
        "name the host": lambda: call("sethostname", b"x", 1),
        "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
        "use ports": lambda: raw(172, 92, 3) if _COLUMN == 0 else raw(0, 220, 0),
        "put keys into a terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
        "own signals of a descriptor": lambda: fcntl.ioctl(0, 0x8901, b"\0\0\0\0"),
        "have a descriptor signal": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, victim),
        "give the guest other memory": lambda: fcntl.ioctl(0, kvm.ioctl_number("KVM_SET_USER_MEMORY_REGION") or 0, bytes(32)),
        "make another virtual machine": lambda: fcntl.ioctl(0, kvm.ioctl_number("KVM_CREATE_VM") or 0),
        "make a device of KVM": lambda: fcntl.ioctl(0, kvm.ioctl_number("KVM_CREATE_DEVICE") or 0, bytes(12)),
        "loosen the filter": lambda: raw(317, 277, 1, 0, bytes(16)),
        "use another architecture's calls": lambda: raw(0x4000_0000 | 39, 0x4000_0000 | 172),
        "use a call of tomorrow": lambda: raw(1000, 1000),
    }


@contextlib.contextmanager
def cell_of(uid: int | None) -> Iterator[namespaces.Cell]:
    """A cell that a zygote of that user would have made; none: of this one."""
    own = os.geteuid()
    try:
        os.seteuid(own if uid is None else uid)
        making = namespaces.Making()
    finally:
        os.seteuid(own)
    cell = making.finish()
    yield cell
    cell.close()


def intrude(
    config: MachineConfig,
    attempt: Callable[[], object],
    cell: namespaces.Cell,
    *,
    in_vcpu: bool = False,
    uid: int | None = None,
    spare: bool = False,
) -> str:
    """What becomes of `attempt` in the process of such a machine, which may be a `spare`:
    SUCCEEDED, an error's name, or that of the signal that ended the process.
    """
    reading, writing = os.pipe()
    channel, theirs = socket.socketpair()
    control, its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link, its_link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends = Ends(theirs.fileno(), writing, its_control.fileno())
    if spare:
        spares.send(link, ends, time.monotonic())
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            _become(config, attempt, cell, in_vcpu, uid, its_link if spare else ends)
        os._exit(99)
    for end in (theirs, its_control, its_link):
        end.close()
    os.close(writing)
    with channel, control, link, open(reading, "rb") as report:  # noqa: PTH123 (a descriptor)
        lines = report.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        assert b'"running"' in lines[0], lines
        return signal.Signals(-status).name
    return str(json.loads(lines[-1]).get("attempt", lines))


def _become(
    config: MachineConfig,
    attempt: Callable[[], object],
    cell: namespaces.Cell,
    in_vcpu: bool,
    uid: int | None,
    given: Ends | socket.socket,
) -> NoReturn:
    reports = [given.report] if isinstance(given, Ends) else []
    kvm_fd = os.open(kvm.DEVICE, os.O_RDWR | os.O_CLOEXEC)  # an ordinary user here may not be in its group
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        prctl("PR_SET_DUMPABLE", 1)  # as of a program that this user has started
        opening = os.open
        os.open = lambda path, *rest, **more: os.dup(kvm_fd) if path == kvm.DEVICE else opening(path, *rest, **more)
        keep = vars(child)["keep_only"]
        vars(child)["keep_only"] = lambda kept: keep([*kept, kvm_fd])

    def work() -> None:
        try:
            attempt()
            found = SUCCEEDED
        except OSError as error:
            found = errno.errorcode[error.errno or 0]
        except MayflyError as error:
            found = next(name for number, name in errno.errorcode.items() if os.strerror(number) in error.message)
        os.write(reports[-1], json.dumps({"attempt": found}).encode() + b"\n")
        os._exit(0)

    def build(*arguments: Any, loop: Any, **options: Any) -> Machine:
        machine = building(*arguments, loop=loop, **options)
        thread = machine.processors.threads[0]
        loop.call_later(0, (lambda: thread.call(lambda _: work())) if in_vcpu else work)
        return machine

    def wait(link: socket.socket, *, made: bool) -> tuple[float, Ends] | None:
        taken = waiting(link, made=made)
        reports.extend([taken[1].report] if taken else [])
        return taken

    waiting: Callable[..., tuple[float, Ends] | None] = vars(spares)["wait"]
    vars(spares)["wait"] = wait
    building: Callable[..., Machine] = vars(child)["build_machine"]
    vars(child)["build_machine"] = build
    if isinstance(given, Ends):
        child.run_process(msgspec.json.encode(config), given, time.monotonic(), cell, Turns().of(1))
    else:
        child.run_spare(msgspec.json.encode(config), given, cell, Turns().of(1))
    sys.exit(0)


def spinning(folder: Path) -> MachineConfig:
    """A machine whose guest spins, on either architecture."""
    kernel = folder / "kernel"
    if platform.machine() == "x86_64":
        from tests.kit import tiny

        kernel = tiny.build(folder, "1: jmp 1b\n")
    else:  # Linux arch/arm64/booting.rst: code, offset, size, flags, the magic number; the code is a branch to itself
        kernel.write_bytes(
            (0x1400_0000).to_bytes(8, "little") + bytes(8) + (4096).to_bytes(8, "little") + bytes(32) + b"ARM\x64" + bytes(4036)
        )
    return MachineConfig(kernel=str(kernel), memory=16 * MIB, channel=Channel.SERIAL, sandbox=Sandbox.REQUIRED)
