"""Standard input and output for asyncio: whatever they are (terminal, pipe, file, nothing), and
without changing their flags.
"""

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
PIPE_BUF = 4096
"""A writable pipe takes so much without blocking (pipe(7))."""


class FdStdin:
    """Reads a descriptor as it has data."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self, most: int) -> bytes:
        """The next bytes, empty at the end; a descriptor that is closed or cannot be read is at its
        end.
        """
        loop = asyncio.get_running_loop()
        try:
            await _ready(self._fd, loop.add_reader, loop.remove_reader)
            return os.read(self._fd, most)
        except OSError:
            return b""


class FdWriter:
    """Writes to a descriptor without ever blocking the loop."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            OSError: it cannot be written; BrokenPipeError when nobody reads any more.
        """
        loop = asyncio.get_running_loop()
        while data:
            await _ready(self._fd, loop.add_writer, loop.remove_writer)
            data = data[os.write(self._fd, data[:PIPE_BUF]) :]


def settle(future: "asyncio.Future[_T]", value: _T) -> None:
    """Set a future's result unless it is done: callbacks may come twice."""
    if not future.done():
        future.set_result(value)


async def _ready(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    """Wait until `fd` is ready; regular files, which epoll refuses, always are."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    try:
        add(fd, settle, ready, None)
    except PermissionError:
        return
    try:
        await ready
    finally:
        remove(fd)
