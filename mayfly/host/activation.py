"""systemd's side of a service: sockets that it has opened (sd_listen_fds(3)), and to be told that
the service is ready (sd_notify(3)).
"""

import contextlib
import os
import socket
from typing import NamedTuple

from mayfly.errors import ConfigError

FIRST = 3


class Activated(NamedTuple):
    """Listening sockets that this process was started with."""

    unix: socket.socket | None = None
    tcp: tuple[socket.socket, ...] = ()


def inherited() -> Activated:
    """The sockets for this process, which owns them now; later calls give none.

    Raises:
        ConfigError: one is none that a server listens on, or there are two Unix sockets.
    """
    process, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count.isdecimal():
        return Activated()
    listeners = []
    with contextlib.ExitStack() as failed:
        for fd in range(FIRST, FIRST + int(count)):
            try:
                os.set_inheritable(fd, False)
                listeners.append(failed.enter_context(socket.socket(fileno=fd)))
            except OSError as error:
                raise ConfigError(f"descriptor {fd} is not a socket: {error.strerror}", hint="correct mayfly.socket") from error
            _check(listeners[-1])
        unix = [listener for listener in listeners if listener.family == socket.AF_UNIX]
        if len(unix) > 1:
            raise ConfigError(f"there are {len(unix)} Unix sockets", hint="give mayfly.socket one ListenStream= with a path")
        failed.pop_all()
    return Activated(unix[0] if unix else None, tuple(listener for listener in listeners if listener not in unix))


def _check(listener: socket.socket) -> None:
    stream = listener.type == socket.SOCK_STREAM and listener.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
    if not stream or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        hint = "use ListenStream= in mayfly.socket, without Accept="
        raise ConfigError(f"descriptor {listener.fileno()} is not a listening stream socket", hint=hint)
    listener.setblocking(False)


def notify(state: str) -> None:
    """Tell systemd, where it has started this process, such as "READY=1"."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    if where.startswith("@"):
        where = "\0" + where[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(state.encode(), where)
