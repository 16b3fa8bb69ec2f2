"""What a test must not leave behind: open descriptors, child processes, listening Unix sockets."""

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from tests.kit.scale import patience

MARK = "MAYFLY_TEST_PROCESS"
"""In the environment of all processes that this one starts, and they in turn."""
os.environ[MARK] = str(os.getpid())
GRACE_S = 5.0
"""A process that has been told to end may take this long."""


@dataclasses.dataclass(frozen=True)
class Holdings:
    """What this process holds.

    Attributes:
        descriptors: numbers, and what they are open on.
        children: process ids and command lines.
        sockets: paths and inodes, those of other processes too.
    """

    descriptors: frozenset[tuple[str, str]]
    children: frozenset[tuple[str, str]]
    sockets: frozenset[tuple[str, str]]

    @classmethod
    def now(cls) -> Self:
        """The holdings of this moment."""
        return cls(frozenset(_descriptors()), frozenset(_children()), frozenset(_sockets()))

    def beyond(self, before: "Holdings") -> list[str]:
        """What is here that was not there `before`, in words."""
        words = [f"descriptor {number} on {target}" for number, target in sorted(self.descriptors - before.descriptors)]
        words += [f"child process {pid}: {command}" for pid, command in sorted(self.children - before.children)]
        return words + [f"Unix socket {path}" for path, inode in sorted(self.sockets - before.sockets) if _is_ours(inode)]


@contextmanager
def none_left() -> Iterator[None]:
    """Raise AssertionError if, patience(GRACE_S) after the block, more is held than before it."""
    before = Holdings.now()
    yield
    until = time.monotonic() + patience(GRACE_S)
    while left := Holdings.now().beyond(before):
        assert time.monotonic() < until, "left behind: " + "; ".join(left)
        time.sleep(0.02)  # between two looks at what has no event to wait for


def _descriptors() -> Iterator[tuple[str, str]]:
    for link in list(Path("/proc/self/fd").iterdir()):
        try:
            yield link.name, str(link.readlink())
        except FileNotFoundError:
            continue  # the descriptor of the listing itself


def _children() -> Iterator[tuple[str, str]]:
    """Children of any thread, zombies too."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            pids = (thread / "children").read_text().split()
        except FileNotFoundError:
            continue  # the thread has ended: its children are another's now
        for pid in pids:
            try:
                yield pid, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue


def _is_ours(inode: str) -> bool:
    """Whether this process holds a socket, or one that it started, however long ago."""
    marked = f"{MARK}={os.getpid()}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.name != str(os.getpid()) and marked not in (process / "environ").read_bytes().split(b"\0"):
                continue
            links = list((process / "fd").iterdir())
        except OSError:  # it has ended
            continue
        for link in links:
            with suppress(OSError):  # it was closed
                if str(link.readlink()) == f"socket:[{inode}]":
                    return True
    return False


def _sockets() -> Iterator[tuple[str, str]]:
    """Paths below the temporary and run-time folders that a Unix socket is bound to."""
    roots = tuple(folder for folder in (os.environ.get("TMPDIR", "/tmp"), os.environ.get("XDG_RUNTIME_DIR", "")) if folder)
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[7].startswith(roots):
            yield words[7], words[6]
