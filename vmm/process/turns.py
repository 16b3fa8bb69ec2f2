"""Turns at being made: as many machines of a zygote at a time as there are processors.

Others wait for their turn. If all were made together, each would get its share of the processors,
so that the first would come up hardly before the last, and every change from one to another costs
caches. A turn is a lock of the process (fcntl(2), F_SETLKW), which ends with it at the latest.
"""

import fcntl
import os
from typing import NamedTuple


class Turn(NamedTuple):
    """One machine's. `descriptor`: of a file that is there for its locks only."""

    descriptor: int
    place: int

    def take(self) -> None:
        """Wait until it has come."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, self.place)

    def end(self) -> None:
        """Let the next one begin, and close the descriptor here."""
        os.close(self.descriptor)


class Turns:
    """A zygote's."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe()  # a file without a file system; nobody writes to it
        os.close(reader)
        self._places = len(os.sched_getaffinity(0))

    def of(self, machine: int) -> Turn:
        """The turn of the machine with this number."""
        return Turn(self._writer, machine % self._places)
