"""What may befall a server and its zygote, one thing at a time, and each for a moment."""

import asyncio
import contextlib
import ctypes
import os
import random
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from mayfly import paths
from mayfly.units import MIB

CGROUPS = Path("/sys/fs/cgroup")
HOUR_S = 3600.0
DISK = 64 * MIB
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x2_0000, 0x4000, 1 << 18


class Victim(Protocol):
    """The server process that is driven."""

    clock: Path
    """A file with the seconds that its wall clock is ahead."""
    folder: Path
    """All that it writes is below it."""

    @property
    def pid(self) -> int: ...
    def guests(self) -> list[int]: ...
    def zygote(self) -> int | None: ...
    async def restart(self) -> None: ...


class Disturber:
    """Chooses by `rng` and disturbs `victim`."""

    def __init__(self, victim: Victim, rng: random.Random) -> None:
        self.victim, self.rng = victim, rng

    @property
    def _moment_s(self) -> float:
        return self.rng.random() / 10

    async def kill_guest(self) -> None:
        send(self._guest(), signal.SIGKILL)

    async def stop_guest(self) -> None:
        await self._stop(self._guest())

    async def kill_zygote(self) -> None:
        send(self.victim.zygote(), signal.SIGKILL)

    async def stop_zygote(self) -> None:
        await self._stop(self.victim.zygote())

    async def stop_server(self) -> None:
        await self._stop(self.victim.pid)

    async def kill_server(self) -> None:
        await self.victim.restart()

    def _guest(self) -> int | None:
        guests = self.victim.guests()
        return self.rng.choice(guests) if guests else None

    async def _stop(self, pid: int | None) -> None:
        send(pid, signal.SIGSTOP)
        await asyncio.sleep(self._moment_s)
        send(pid, signal.SIGCONT)

    async def descriptors(self) -> None:
        opened = len(list(Path(f"/proc/{self.victim.pid}/fd").iterdir()))
        with limited(self.victim.pid, resource.RLIMIT_NOFILE, opened + self.rng.randrange(8)):
            await asyncio.sleep(self._moment_s)

    async def disk(self) -> None:
        """No file grows: RLIMIT_FSIZE is EFBIG where a full disk is ENOSPC."""
        with limited(self.victim.pid, resource.RLIMIT_FSIZE, self.rng.choice((0, 4096))):
            await asyncio.sleep(self._moment_s)

    async def full_disk(self) -> None:
        """But for some pages, or none; only on a disk of the server's own (`small_disk`)."""
        if os.path.ismount(self.victim.folder):
            with filled(self.victim.folder, self.rng.choice((0, 1, 16)) * 4096):
                await asyncio.sleep(self._moment_s)

    async def forks(self) -> None:
        with without_forks(self.victim.zygote()):
            await asyncio.sleep(self._moment_s)

    async def memory(self) -> None:
        """Of the server, or of the zygote, and of whoever they start meanwhile."""
        if pid := self.rng.choice((self.victim.pid, self.victim.zygote())):
            with contextlib.suppress(OSError), limited(pid, resource.RLIMIT_AS, address_space(pid) + self.rng.randrange(1, 24) * MIB):
                await asyncio.sleep(self._moment_s)

    async def clock(self) -> None:
        """The wall clock jumps, and stays there."""
        self.victim.clock.write_text(str(self.rng.choice((-24, -1, 1, 24 * 365)) * HOUR_S))

    async def corrupt(self) -> None:
        """A file of a snapshot is not what it was."""
        files = sorted(path for path in (paths.data_dir() / "snapshots").glob("*/*") if path.is_file())
        if files:
            path = self.rng.choice(files)
            with contextlib.suppress(FileNotFoundError):
                damage = self.rng.choice(("cut", "byte", "gone"))
                if damage == "gone":
                    path.unlink()
                elif damage == "cut":
                    os.truncate(path, path.stat().st_size // 2)
                else:
                    with path.open("r+b") as file:
                        file.write(b"\xff")


DISTURBANCES: Mapping[str, Callable[[Disturber], Awaitable[None]]] = {
    "kill a guest": Disturber.kill_guest,
    "stop a guest": Disturber.stop_guest,
    "kill the zygote": Disturber.kill_zygote,
    "stop the zygote": Disturber.stop_zygote,
    "stop the server": Disturber.stop_server,
    "kill the server": Disturber.kill_server,
    "descriptors": Disturber.descriptors,
    "disk": Disturber.disk,
    "full disk": Disturber.full_disk,
    "forks": Disturber.forks,
    "memory": Disturber.memory,
    "clock": Disturber.clock,
    "corrupt a snapshot": Disturber.corrupt,
}


def send(pid: int | None, number: int) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def limited(pid: int, which: int, most: int) -> Iterator[None]:
    """The process has this limit, and so have those that it starts: the zygote may be one, which
    would keep it for all later runs if it were not lifted there too.
    """
    usual = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (most, usual[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            resource.prlimit(pid, which, usual)
            for child in children(pid):
                with contextlib.suppress(ProcessLookupError):
                    if resource.prlimit(child, which)[0] == most:
                        resource.prlimit(child, which, usual)


def children(pid: int) -> list[int]:
    """Those that its threads have started (proc_tid_children(5))."""
    return [int(child) for thread in Path(f"/proc/{pid}/task").iterdir() for child in (thread / "children").read_text().split()]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of DISK bytes at `folder`, for this thread and what it starts: in a mount namespace of
    their own, where this user may make one, else there is none.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNS):
            yield
            return
        working = Path.cwd()
        try:
            flags = ctypes.c_ulong(MS_REC | MS_PRIVATE)
            done = libc.mount(None, b"/", None, flags, None) or libc.mount(
                b"chaos", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(0), f"size={DISK}".encode()
            )
            if done:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
            yield
        finally:
            if libc.setns(before, CLONE_NEWNS):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            os.chdir(working)
    finally:
        os.close(before)


@contextlib.contextmanager
def filled(folder: Path, left: int) -> Iterator[None]:
    """The disk at `folder` has no more than `left` bytes."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            while free := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize:  # others write too
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)
        with ballast.open("r+b") as file:
            file.truncate(max(0, ballast.stat().st_size - left))
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def without_forks(pid: int | None) -> Iterator[None]:
    """The process forks nobody: by a control group where this is root's and there is one, else by
    RLIMIT_NPROC, which does not hold root.
    """
    if pid is None:
        yield
    elif made := group_without_forks(pid):
        group, usual = made
        try:
            (group / "cgroup.procs").write_text(str(pid))
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                (usual / "cgroup.procs").write_text(str(pid))
            group.rmdir()
    else:
        with limited(pid, resource.RLIMIT_NPROC, 0):
            yield


def group_without_forks(pid: int) -> tuple[Path, Path] | None:
    """A new control group in which nobody forks, and the process's own; None where this user, or
    this host, makes none.
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("pids", ""):
            continue
        own = CGROUPS / controllers / path.strip("/")
        group = (own if controllers else own.parent) / f"chaos-{pid}"  # in version 2 a group has processes, or groups with limits
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / "pids.max").write_text("0")
        except OSError:
            group.rmdir()
        else:
            return group, own
    return None


def address_space(pid: int) -> int:
    """Bytes (VmSize, proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmSize")) * 1024
