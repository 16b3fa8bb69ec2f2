"""Turns of real processes: as many at a time as there are places, and the next when one ends."""

import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mayfly.units import MIB
from mayfly.vmm.config import Layer, MachineConfig
from mayfly.vmm.process import child, turns
from mayfly.vmm.process.turns import Turn, Turns

End = Callable[[Turn], None]
Start = Callable[..., "Taker"]


class Taker:
    """A process that takes a turn, says so, and ends it when told."""

    def __init__(self, turn: Turn, end: End = Turn.end) -> None:
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

    def waits(self) -> bool:
        """Whether it waits for its turn, once that or the turn is there (proc(5), locks)."""
        while not select.select([self.said], [], [], 0)[0]:
            if any("->" in line and str(self.pid) in line.split() for line in Path("/proc/locks").read_text().splitlines()):
                return True
        return False

    def end(self) -> None:
        """Have it end its turn."""
        os.write(self._tell, b"x")

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.said)
        os.close(self._tell)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts takers, on a machine of two processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    takers: list[Taker] = []

    def started(turn: Turn, end: End = Turn.end) -> Taker:
        takers.append(Taker(turn, end))
        return takers[-1]

    yield started
    for taker in takers:
        taker.close()


@pytest.mark.parametrize("end", [Turn.end, Turn.give_back, lambda _: os._exit(0)], ids=["ended", "given back", "died"])
def test_the_next_has_its_turn_when_one_ends_it(start: Start, end: End) -> None:
    of = Turns().of
    first = start(of(0), end)
    first.wait()
    second = start(of(2))  # beside it, though its own place is the same
    assert not second.waits()
    third = start(of(4))
    assert third.waits()
    first.end()
    third.wait()


def test_one_is_free_until_as_many_are_taken_as_there_are_processors(start: Start) -> None:
    turns = Turns()
    taken = []
    for machine in range(2):
        assert turns.one_is_free()
        taken.append(start(turns.of(machine), lambda _: os._exit(0)))
        taken[-1].wait()
    assert not turns.one_is_free()
    taken[0].end()
    os.waitid(os.P_PID, taken[0].pid, os.WEXITED | os.WNOWAIT)
    assert turns.one_is_free()


def test_who_has_waited_for_long_goes_without(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 0.2)
    of = Turns().of
    for machine in range(2):
        start(of(machine)).wait()
    third = start(of(2))
    assert third.waits()
    third.wait()


@pytest.mark.parametrize(("layers", "ends"), [(0, "at once"), (1, "first word"), (1, "time"), (2, "at once")])
def test_only_what_goes_on_from_a_base_keeps_its_turn_for_a_moment(layers: int, ends: str) -> None:
    """Other guests may have been taken over."""
    config = MachineConfig(kernel="kernel", memory=16 * MIB, restore=(Layer(folder="base"),) * layers)
    ended, later = [], []
    machine: Any = SimpleNamespace(
        config=config, carrier=SimpleNamespace(on_first_word=None), loop=SimpleNamespace(call_later=lambda *call: later.append(call))
    )
    turn: Any = SimpleNamespace(end=lambda: ended.append(1))
    child._end_turn(turn, machine)
    if ends == "at once":
        assert (ended, machine.carrier.on_first_word, later) == ([1], None, [])
        return
    assert ended == []
    ((delay, end),) = later
    assert delay == child.FIRST_WORD_S
    for call in (machine.carrier.on_first_word, end) if ends == "first word" else (end, machine.carrier.on_first_word):
        call()
        assert ended == [1]
