"""The terminal of `mayfly run --tty`: raw while the program has it, and then as it was before,
however that ends. Everything that is typed goes to the program, but for LEAVE.
"""

import asyncio
import contextlib
import os
import signal
import termios
import tty
from collections.abc import Awaitable, Callable
from typing import Any, Self

from mayfly.cli.descriptors import FdStdin
from mayfly.errors import RequestError
from mayfly.host.snippet import Terminal

LEAVE = b"\x1d"
"""Ctrl-], as in telnet."""
USUAL = Terminal(columns=80, rows=24)
"""The size where there is no terminal."""


def find_size() -> Terminal:
    """The size of the terminal that is standard output, input or error."""
    for fd in (1, 0, 2):
        with contextlib.suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            return Terminal(columns=columns or USUAL.columns, rows=rows or USUAL.rows)
    return USUAL


class LocalTerminal:
    """The terminal in front of the user, if there is one; `leave` is called when LEAVE is typed. As
    a context manager it leaves all as it was.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self.size = find_size()
        self.stdin = Keyboard(leave) if os.isatty(0) else FdStdin(0)
        self._before: list[Any] | None = None
        self._resize: Callable[[Terminal], Awaitable[None]]
        self._telling: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGWINCH)
        if self._before is not None:
            with contextlib.suppress(termios.error):  # it is gone
                termios.tcsetattr(0, termios.TCSANOW, self._before)

    def hand_over(self, resize: Callable[[Terminal], Awaitable[None]]) -> None:
        """Let the program have it; `resize` tells it of another size."""
        self._resize = resize
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, self._measure)
        if os.isatty(0):
            self._before = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSANOW)  # what was typed by now stays for the program
        self._measure()

    def _measure(self) -> None:
        size = find_size()
        if size != self.size:
            self.size = size
            self._telling = asyncio.create_task(self._tell(size))

    async def _tell(self, size: Terminal) -> None:
        with contextlib.suppress(RequestError):  # the program has just ended
            await self._resize(size)


class Keyboard(FdStdin):
    """What is typed, up to LEAVE; then `leave` is called, and nothing more comes."""

    def __init__(self, leave: Callable[[], None]) -> None:
        super().__init__(0)
        self._leave = leave

    async def read(self, most: int) -> bytes:
        """The next bytes."""
        data = await super().read(most)
        typed, left, _ = data.partition(LEAVE)
        if left:
            self._leave()
            if not typed:
                await asyncio.Event().wait()
        return typed
