"""Namespaces without anything in them (namespaces(7)): no file, no network, no one to talk to.

Making them takes milliseconds, most of it for the root and the network, and giving them back costs
the kernel as much. So a zygote makes one set, a cell, which each of its machines joins by a few
system calls. What machines share by that they cannot use: there is no file and no interface, and
the filters of system calls forbid sockets and shared memory. There is no PID namespace: it would be
for children alone.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

from mayfly.vmm.kvm.system import call

KINDS = {
    "user": 0x1000_0000,  # first: whoever is not root may make and join the others within
    "net": 0x4000_0000,
    "ipc": 0x0800_0000,
    "uts": 0x0400_0000,
    "cgroup": 0x0200_0000,
    "mnt": 0x0002_0000,  # last: after it nothing has a path
}
"""CLONE_NEW* by the names beneath /proc/PID/ns, in the order of making and joining."""

_MADE = "made"
_MESSAGE_LIMIT = 1 << 16
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_MOVE, _MS_REC, _MS_SLAVE = 1, 2, 4, 8, 0x2000, 0x4000, 0x8_0000
_MNT_DETACH = 2
_MOUNT_POINT = "/proc"  # A folder that is there on each host, and not needed any more


class Cell(NamedTuple):
    """Namespaces to join: descriptors by kind. `lacking`: why this host refuses others."""

    descriptors: Mapping[str, int]
    lacking: Mapping[str, str]

    def join(self) -> None:
        """Enter those that there are, and close them here. For a process with one thread. Raises
        OSError: some are lacking.
        """
        try:
            for kind, fd in self.descriptors.items():
                call("setns", fd, KINDS[kind])
        finally:
            self.close()
        if self.lacking:
            raise OSError(errno.EPERM, ", ".join(f"{kind}: {why}" for kind, why in self.lacking.items()))

    def close(self) -> None:
        """Close the descriptors here."""
        for fd in self.descriptors.values():
            os.close(fd)


class Making:
    """A process that makes a cell, while its parent does something else."""

    def __init__(self) -> None:
        self._failed = ""
        try:
            self._begin()
        except OSError as error:
            self._failed = error.strerror or "refused"

    def _begin(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as failed:
            failed.callback(self._socket.close)
            self._pid = os.fork()
            if self._pid == 0:
                status = 1
                try:
                    _make(theirs)
                    status = 0
                finally:
                    os._exit(status)
            failed.pop_all()

    def finish(self) -> Cell:
        """Wait for it. The caller closes the descriptors. Where there was no process, descriptor or
        memory for it, all kinds are lacking.
        """
        if self._failed:
            return _none(self._failed)
        with self._socket:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, _MESSAGE_LIMIT, len(KINDS), socket.MSG_CMSG_CLOEXEC)
        os.waitpid(self._pid, 0)
        if not data:
            return _none("it could not be made")
        words = dict(line.split(maxsplit=1) for line in data.decode().splitlines())
        made = [kind for kind, word in words.items() if word == _MADE]
        if flags & socket.MSG_CTRUNC:  # there was no room in this process's table
            Cell(dict(zip(made, descriptors, strict=False)), {}).close()
            return _none(os.strerror(errno.EMFILE))
        return Cell(dict(zip(made, descriptors, strict=True)), {kind: word for kind, word in words.items() if word != _MADE})


def _none(why: str) -> Cell:
    return Cell({}, dict.fromkeys(_wanted(), why))


def _wanted() -> list[str]:
    return [kind for kind in KINDS if kind != "user" or os.geteuid() != 0]


def _make(to: socket.socket) -> None:
    words: dict[str, str] = {}
    descriptors = []
    for kind in _wanted():
        try:
            call("unshare", KINDS[kind])
            own = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
            if kind == "mnt":
                _empty_root()
            descriptors.append(own)
            words[kind] = _MADE
        except OSError as error:
            words[kind] = error.strerror or "refused"
    socket.send_fds(to, ["\n".join(f"{kind} {word}" for kind, word in words.items()).encode()], descriptors)


def _empty_root() -> None:
    """Make an empty file system, which cannot be written, the root of this mount namespace."""
    call("mount", None, b"/", None, _MS_REC | _MS_SLAVE, None)  # what the host unmounts goes here too
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    call("mount", b"none", _MOUNT_POINT.encode(), b"tmpfs", flags, b"size=4k,mode=0555")
    os.chdir(_MOUNT_POINT)
    try:
        call("pivot_root", b".", b".")
        call("umount2", b".", _MNT_DETACH)
    except OSError:  # an initramfs, which cannot be put elsewhere (pivot_root(2)), is covered
        call("mount", b".", b"/", None, _MS_MOVE, None)
