"""Spares: processes that a zygote forks ahead. In each the machine of a snapshot that was restored
lately stands by, confined but for the filters of system calls. Its guest has not run. What comes
with a start is what no two machines have alike: descriptors, control group; and the guest's time.

The machine of a start that finds no spare is made then, as that of one whose snapshot is another by
now. Spares end with their zygote at the latest.
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
from mayfly.protocol.spawning import DESCRIPTORS
from mayfly.schema import decode
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.snapshot import FILES

QUIET_MS = 200
"""Without a request, until one is made: on few processors it would hold up those that start."""
LOOK_MS = 1000
"""Between two looks whether those that wait are still wanted."""
MOST_S = 300.0
"""How long one waits to be taken."""
LEAST_AVAILABLE = 16
"""Where less than this part of the host's memory is available there are none; each takes MiBs."""

_ASKED_AT = struct.Struct("=d")
_READY = b"\1"
_MEMORY = "/proc/meminfo"


class Ends(NamedTuple):
    """Descriptors of a machine, whose other ends are its server's, and that of its control group,
    if it has one.
    """

    channel: int
    report: int
    control: int
    group: int | None = None


class _Kind(NamedTuple):
    """Machines that are alike: their encoded configuration, and what its files are."""

    config: bytes
    paths: Sequence[str]
    files: Sequence[tuple[int, ...]]


class _Spare(NamedTuple):
    pid: int
    link: socket.socket
    kind: _Kind
    until: float


class Spares:
    """A zygote's: one of each kind, and `most` in all."""

    def __init__(self, most: int) -> None:
        self._waiting: list[_Spare] = []
        self._wanted: bytes | None = None  # The configuration of the start before
        self._looked_at = 0.0
        self._most = most

    @property
    def wait_ms(self) -> int | None:
        """After how long without a request `make` or `look` is due."""
        if self._wanted is not None:
            return QUIET_MS
        return LOOK_MS if self._waiting else None

    def hand_over(self, config: bytes, ends: Ends, asked_at: float) -> int | None:
        """Have a spare run as the machine that was asked for then; its process, none if no spare is
        ready for that.
        """
        spare = next((spare for spare in self._waiting if spare.kind.config == config), None)
        self._wanted = config if self._most else None
        if spare is None:
            return None
        try:
            said = spare.link.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:  # it is being made
            self._wanted = None
            return None
        except OSError:
            said = b""
        try:
            if said != _READY or _look(spare.kind.paths) != spare.kind.files:
                raise OSError
            if ends.group is not None:
                os.write(ends.group, str(spare.pid).encode())
            send(spare.link, ends, asked_at)
        except OSError:  # it has ended, or is of another snapshot
            self._drop(spare)
            return None
        self.forget(spare.pid)
        return spare.pid

    def look(self) -> None:
        """End those that are not wanted any more, once in LOOK_MS."""
        now = time.monotonic()
        if not self._waiting or now < self._looked_at + LOOK_MS / 1000:
            return
        self._looked_at = now
        scarce = _memory_is_scarce()
        for spare in list(self._waiting):
            with contextlib.suppress(OSError):
                if not scarce and now < spare.until and _look(spare.kind.paths) == spare.kind.files:
                    continue
            self._drop(spare)

    def make(self, fork: Callable[[bytes, socket.socket], int]) -> None:
        """Have one made of the kind that was asked for last, if there may be one: `fork` gives its
        process, from a configuration and its end of a link.
        """
        kind = None if self._wanted is None else _kind(self._wanted)
        self._wanted = None
        if kind is None or _memory_is_scarce():
            return
        if len(self._waiting) >= self._most:
            self._drop(self._waiting[0])
        with contextlib.suppress(OSError, MemoryError), contextlib.ExitStack() as failed:
            link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            failed.callback(link.close)
            with theirs:
                pid = fork(kind.config, theirs)
            failed.pop_all()
            self._waiting.append(_Spare(pid, link, kind, time.monotonic() + MOST_S))

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


def wait(link: socket.socket) -> tuple[float, Ends] | None:
    """In a spare that is ready: when its machine was asked for, and its ends, once they are there;
    none if they will not be. Closes `link`.
    """
    with link:
        link.send(_READY)
        data, descriptors, _, _ = socket.recv_fds(link, _ASKED_AT.size, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    return (*_ASKED_AT.unpack(data), Ends(*descriptors)) if data else None


def _kind(config: bytes) -> _Kind | None:
    """None where a spare cannot be: the machine is none of a snapshot, has a network of its own, or
    would have all pages of a snapshot of its own before its guest runs.
    """
    try:
        wanted = decode(MachineConfig, config)
        if not wanted.restore or wanted.channel not in (Channel.VIRTIO, Channel.SERIAL) or wanted.arriving or wanted.page_by_page:
            return None
        if (wanted.network and wanted.network.connected) or any(layer.copied for layer in wanted.restore):
            return None
        paths = [f"{layer.folder}/{name}" for layer in wanted.restore for name in FILES]
        paths += [wanted.initrd] if wanted.initrd else []
        return _Kind(config, paths, _look(paths))
    except (MayflyError, OSError):
        return None


def _look(paths: Sequence[str]) -> list[tuple[int, ...]]:
    """What these files are: another file or content has other numbers. Raises OSError."""
    return [(each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in map(os.stat, paths)]


def _memory_is_scarce() -> bool:
    try:
        file = os.open(_MEMORY, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        found = re.match(rb"MemTotal: +(\d+) kB\nMemFree: .*\nMemAvailable: +(\d+) kB\n", os.read(file, 1 << 12))
    finally:
        os.close(file)
    return found is None or int(found[2]) * LEAST_AVAILABLE < int(found[1])
