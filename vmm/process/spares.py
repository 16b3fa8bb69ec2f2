"""Spares: processes that a zygote forks ahead. In each the machine of a snapshot that was restored
lately stands by, or one like those that booted twice in a row, confined but for the filters of
system calls. Its guest has not run. What comes with a start is what no two machines have alike:
descriptors, control group; and a restored guest's time.

A start may take one that is still being made, which goes on as its machine then. The machine of a
start that finds none is made then, as that of one whose files are others by now. Spares end with
their zygote at the latest.
"""

import contextlib
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mayfly.errors import MayflyError
from mayfly.protocol.pages import unpack_working_set
from mayfly.protocol.spawning import DESCRIPTORS
from mayfly.schema import decode
from mayfly.units import MIB, PAGE
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.kvm.mapping import HUGE_PAGE
from mayfly.vmm.snapshot import FILES, WORKING_SET
from mayfly.vmm.snapshot.files import read_file

QUIET_MS = 200
"""Without a request, until one is made: on one processor it would hold up those that start."""
SOON_MS = 10
"""The same where there are more processors: one is made beside the machine that runs."""
PATIENCE_S = 10.0
"""How long it waits for a processor that is free."""
LOOK_MS = 1000
"""Between two looks whether those that wait are still wanted."""
MOST_S = 300.0
"""How long one waits to be taken."""
MOST_AHEAD = 32 * MIB
"""Bytes of guests' pages that those that wait have ahead; at most one a processor may have more."""
LEAST_AVAILABLE = 16
"""Where less than this part of the host's memory is available there are none; each takes MiBs."""

_ASKED_AT = struct.Struct("=d")
_MEMORY = "/proc/meminfo"
_LOAD = "/proc/loadavg"


class Ends(NamedTuple):
    """Descriptors of a machine, whose other ends are its server's, and that of its control group,
    if it has one.
    """

    channel: int
    report: int
    control: int
    group: int | None = None


class _Kind(NamedTuple):
    """Machines that are alike: their encoded configuration, whether they boot, what their files
    are, and how many bytes of pages each of their guests has of its own ahead, at most.
    """

    config: bytes
    boots: bool
    paths: Sequence[str]
    files: Sequence[tuple[int, ...]]
    ahead: int

    def is_as_it_was(self) -> bool:
        """Whether its files are still the same."""
        with contextlib.suppress(OSError):
            return _look(self.paths) == self.files
        return False


class _Spare(NamedTuple):
    pid: int
    link: socket.socket
    kind: _Kind
    until: float


class Spares:
    """A zygote's, at most so many: one for each start that was asked for, of its kind. Of those
    whose guests have pages ahead there are no more than processors, or as MOST_AHEAD has room for.
    """

    def __init__(self, most: int) -> None:
        self._waiting: list[_Spare] = []
        self._wanted = b""  # The configuration of the start before
        self._again = False  # The one before that was of the same
        self._number = 0  # of those that are to be made of it
        self._kind: _Kind | None = None  # of the one made last
        self._asked_at = 0.0  # when that start came
        self._wait_ms = QUIET_MS  # from now on
        self._looked_at = 0.0
        self._most = most

    @property
    def wait_ms(self) -> int | None:
        """After how long without a request `make` or `look` is due."""
        if self._number:
            return self._wait_ms
        return LOOK_MS if self._waiting else None

    def hand_over(self, config: bytes, ends: Ends, asked_at: float) -> int | None:
        """Have a spare run as the machine that was asked for then; its process, none if there is
        none for that.
        """
        self._again = config == self._wanted
        self._number = min(self._number + 1 if self._again else 1, self._most)
        self._wanted, self._asked_at = config, time.monotonic()
        self._wait_ms = SOON_MS if len(os.sched_getaffinity(0)) > 1 else QUIET_MS
        for spare in [spare for spare in self._waiting if spare.kind.config == config]:
            try:
                if not spare.kind.is_as_it_was():
                    raise OSError
                if ends.group is not None:
                    os.write(ends.group, str(spare.pid).encode())
                send(spare.link, ends, asked_at)
            except OSError:  # it is of another snapshot, or has ended
                self._drop(spare)
                continue
            self.forget(spare.pid)
            return spare.pid
        return None

    def look(self) -> None:
        """End those that are not wanted any more, once in LOOK_MS."""
        now = time.monotonic()
        if not self._waiting or now < self._looked_at + LOOK_MS / 1000:
            return
        self._looked_at = now
        scarce = _memory_is_scarce()
        for spare in list(self._waiting):
            if scarce or now >= spare.until or not spare.kind.is_as_it_was():
                self._drop(spare)

    def make(self, fork: Callable[[bytes, socket.socket], int], *, may_begin: bool) -> None:
        """Have one made of the kind that was asked for last, if there may be one: `fork` gives its
        process, from a configuration and its end of a link. `may_begin`: there is a turn for it.
        """
        if not self._number:
            return
        if time.monotonic() < self._asked_at + PATIENCE_S and (not may_begin or _processors_are_busy()):
            self._wait_ms = min(2 * self._wait_ms, QUIET_MS)
            return
        self._wait_ms = QUIET_MS
        kind = None if _memory_is_scarce() else self._kind_wanted()
        # What makes a base boots once: no spare would be taken.
        if kind is None or (kind.boots and not self._again) or not self._make_room(kind):
            self._number = 0
            return
        self._number -= 1
        with contextlib.suppress(OSError, MemoryError), contextlib.ExitStack() as failed:
            link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            failed.callback(link.close)
            with theirs:
                pid = fork(kind.config, theirs)
            failed.pop_all()
            self._waiting.append(_Spare(pid, link, kind, time.monotonic() + MOST_S))

    def _kind_wanted(self) -> _Kind | None:
        """Of the start before; only what has changed is read again."""
        if self._kind is None or self._kind.config != self._wanted or not self._kind.is_as_it_was():
            self._kind = _kind(self._wanted)
        return self._kind

    def _make_room(self, kind: _Kind) -> bool:
        """Whether there is room for one more of this kind, for which an older one may end."""
        limits = [(self._waiting, self._most)]
        if kind.ahead:
            most = max(len(os.sched_getaffinity(0)), MOST_AHEAD // kind.ahead)
            limits.insert(0, ([spare for spare in self._waiting if spare.kind.ahead], most))
        for waiting, most in limits:
            if len(waiting) >= most:
                other = next((spare for spare in waiting if spare.kind.config != kind.config), None)
                if other is None:
                    return False
                self._drop(other)
        return True

    def forget(self, pid: int) -> None:
        """This process is none that waits any more."""
        for spare in [spare for spare in self._waiting if spare.pid == pid]:
            self._waiting.remove(spare)
            spare.link.close()

    def drop_all(self) -> list[int]:
        """End all; their processes, which are to be reaped as those of machines are."""
        dropped = [spare.pid for spare in self._waiting]
        for spare in list(self._waiting):
            self._drop(spare)
        return dropped

    def _drop(self, spare: _Spare) -> None:
        os.kill(spare.pid, signal.SIGKILL)  # not reaped yet: `forget` would know
        self.forget(spare.pid)


def send(link: socket.socket, ends: Ends, asked_at: float) -> None:
    """Have the spare at the other end run as the machine that was asked for then. Raises OSError:
    it has ended.
    """
    socket.send_fds(link, [_ASKED_AT.pack(asked_at)], [ends.channel, ends.report, ends.control])


def wait(link: socket.socket, *, made: bool) -> tuple[float, Ends] | None:
    """In a spare: when its machine was asked for, and its ends, once they are there; none if they
    will not be. One that could not be `made` takes only what was sent by now. Closes `link`.
    """
    with link:
        if not made:
            link.shutdown(socket.SHUT_RD)  # to send would be an error now
        data, descriptors, _, _ = socket.recv_fds(link, _ASKED_AT.size, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    return (*_ASKED_AT.unpack(data), Ends(*descriptors)) if data else None


def _kind(config: bytes) -> _Kind | None:
    """None where a spare cannot be: the machine has a network of its own, or would have pages of
    its own before its guest runs, but its kernel and those that a base's warm-up writes: whoever
    runs code decides how many others are, and no budget counts them.
    """
    try:
        wanted = decode(MachineConfig, config)
        if wanted.channel not in (Channel.VIRTIO, Channel.SERIAL) or wanted.arriving or wanted.page_by_page:
            return None
        if wanted.network and wanted.network.connected:
            return None
        paths = [wanted.initrd] if wanted.initrd else []
        if not wanted.restore:
            paths.append(wanted.kernel)
            *_, (_, _, size, _) = files = _look(paths)
            return _Kind(config, True, paths, files, size + 2 * HUGE_PAGE)  # one for the tables, one that the kernel begins
        base, *diffs = wanted.restore
        if base.copied or any(diff.copied or diff.eager for diff in diffs):
            return None
        paths += [f"{layer.folder}/{name}" for layer in wanted.restore for name in FILES]
        written = unpack_working_set(read_file(f"{base.folder}/{WORKING_SET}"), wanted.memory).written if base.eager else []
        return _Kind(config, False, paths, _look(paths), PAGE * sum(count for _, count in written))
    except (MayflyError, OSError):
        return None


def _look(paths: Sequence[str]) -> list[tuple[int, ...]]:
    """What these files are: another file or content has other numbers. Raises OSError."""
    return [(each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in map(os.stat, paths)]


def _memory_is_scarce() -> bool:
    found = re.match(rb"MemTotal: +(\d+) kB\nMemFree: .*\nMemAvailable: +(\d+) kB\n", _read(_MEMORY))
    return found is None or int(found[2]) * LEAST_AVAILABLE < int(found[1])


def _processors_are_busy() -> bool:
    """Whether there is work for all of them, besides this thread (proc_loadavg(5))."""
    found = re.match(rb"\S+ \S+ \S+ (\d+)/", _read(_LOAD))
    return found is not None and int(found[1]) > len(os.sched_getaffinity(0))


def _read(path: str) -> bytes:
    """The beginning of such a file; nothing if it cannot be opened."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(file, 1 << 12)
    finally:
        os.close(file)
