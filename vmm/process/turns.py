"""Turns at being made: as many machines of a zygote at a time as there are processors.

Others wait for their turn. If all were made together, each would get its share of the processors,
so that the first would come up hardly before the last, and every change from one to another costs
caches. A turn is a lock of the process (fcntl(2), F_SETLKW), which ends with it at the latest; who
has waited for long goes without, as behind a machine that hangs.
"""

import contextlib
import fcntl
import os
import signal
from typing import Any, NamedTuple

from mayfly.vmm.signals import handle

PATIENCE_S = 3.0
"""Until a machine is made without its turn."""


class Turn(NamedTuple):
    """One machine's. `descriptor`: of a file that is there for its places' locks only."""

    descriptor: int
    machine: int
    places: int

    def take(self) -> None:
        """Wait until it has come, or for PATIENCE_S. Needs SIGALRM and ITIMER_REAL for itself."""
        if self.take_free():
            return
        with contextlib.suppress(TimeoutError):
            handle(signal.SIGALRM, _give_up)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, self.machine % self.places)
            signal.setitimer(signal.ITIMER_REAL, 0)

    def take_free(self) -> bool:
        """Take it if it has come; whether that was so."""
        for place in range(self.places):
            try:
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except BlockingIOError:
                continue
            return True
        return False

    def give_back(self) -> None:
        """Let the next one begin; it may be taken again."""
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def end(self) -> None:
        """Let the next one begin, and close the descriptor here."""
        os.close(self.descriptor)


def _give_up(*_: Any) -> None:
    raise TimeoutError


class Turns:
    """A zygote's."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe()  # a file without a file system; nobody writes to it
        os.close(reader)
        self._places = len(os.sched_getaffinity(0))

    def one_is_free(self) -> bool:
        """Whether a machine can be made at once. For the zygote, which has no turn itself."""
        turn = self.of(0)
        free = turn.take_free()
        turn.give_back()
        return free

    def of(self, machine: int) -> Turn:
        """The turn of the machine with this number."""
        return Turn(self._writer, machine, self._places)
