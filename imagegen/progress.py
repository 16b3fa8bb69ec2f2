"""How a build tells of itself. The work calls these; the command line decides what is shown."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Takes what is worth telling."""

    def say(self, message: str) -> None:
        """One line about what happens now."""
        ...

    def task(self, title: str, total: int | None) -> AbstractContextManager[Advance]:
        """A longer piece of work of `total` bytes (None: unknown). Call the result with the bytes
        done since the last call.
        """
        ...


class Silent:
    """Shows nothing."""

    def say(self, message: str) -> None:
        """Drop the line."""

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Drop the steps."""
        yield lambda _: None
