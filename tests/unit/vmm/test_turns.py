"""Turns of real processes: one at a time of each place, and the next when one ends, however."""

import os
import signal
from collections.abc import Callable

import pytest

from mayfly.vmm.process.turns import Turn, Turns


class Taker:
    """A process that takes a turn, says so, and ends it when told."""

    def __init__(self, turn: Turn, end: Callable[[Turn], None]) -> None:
        self.said, saying = os.pipe()
        told, self._tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                turn.take()
                os.write(saying, b"x")
                os.read(told, 1)
                end(turn)
                signal.pause()
            finally:
                os._exit(1)
        os.close(saying)
        os.close(told)

    def wait(self) -> None:
        """Until it has its turn."""
        assert os.read(self.said, 1) == b"x"

    def end(self) -> None:
        """Have it end its turn."""
        os.write(self._tell, b"x")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.said)
        os.close(self._tell)


@pytest.mark.parametrize("end", [Turn.end, lambda _: os._exit(0)], ids=["ended", "died"])
def test_the_next_has_its_turn_when_one_ends_it(end: Callable[[Turn], None]) -> None:
    turns = Turns()
    first = Taker(turns.of(0), end)
    first.wait()
    second = Taker(turns.of(len(os.sched_getaffinity(0))), end)  # of the same place
    os.set_blocking(second.said, False)
    with pytest.raises(BlockingIOError):
        os.read(second.said, 1)
    os.set_blocking(second.said, True)
    first.end()
    second.wait()
    for taker in (first, second):
        taker.close()
    os.close(turns.of(0).descriptor)
