"""Unix sockets that listen at a path."""

import os
import socket
from pathlib import Path

from mayfly.errors import ConfigError

MAX_PATH = 107
"""Longest path of a Unix socket (unix(7): 108 bytes with the NUL)."""


def listen(path: Path) -> socket.socket:
    """A listening Unix stream socket at `path` that only its owner can connect to.

    Raises:
        ConfigError: the path is too long for a socket.
        OSError: something is there already, or the folder cannot be written.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(
            f"{path}: {len(os.fsencode(path))} bytes, a socket's path has at most {MAX_PATH}", hint="choose a shorter --socket"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # before listen(): until then nobody can connect
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener
