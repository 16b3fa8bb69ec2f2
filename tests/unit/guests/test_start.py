"""A restored machine is made another than its siblings."""

import asyncio
import os
import time
from typing import cast

import pytest

from mayfly.guests import start
from mayfly.guests.spawner import VmmProcess
from mayfly.protocol import frames as p
from mayfly.protocol.conversation import Conversation


class Played:
    """A vmm process whose agent says HELLO once."""

    def __init__(self) -> None:
        self.written: list[p.Message] = []
        self.pre_faulted_after = 0

    async def write(self, data: bytes) -> bool:
        self.written += [frame.message for frame in p.FrameReader(p.FROM_HOST).feed(data)]
        return True

    async def read(self) -> bytes:
        return p.encode_frame(p.Hello(p.PROTOCOL_VERSION, "played", os.uname().machine, 1000, ""), 0)

    def pre_fault(self) -> None:
        self.pre_faulted_after = len(self.written)


def resumed(played: Played) -> None:
    conversation = Conversation(arch=os.uname().machine, end_marker="")
    hello = asyncio.run(start.resume(cast(VmmProcess, played), conversation))
    assert hello.version == p.PROTOCOL_VERSION


def test_a_machine_that_answers_at_once_is_told_the_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "CLOCK_ERROR_S", 1000.0)
    played = Played()
    resumed(played)
    assert [type(message) for message in played.written] == [p.Resumed]
    assert played.pre_faulted_after == 1


def test_one_that_was_late_is_told_the_time_again_and_nobody_waits_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "CLOCK_ERROR_S", -1.0)
    before, played = time.time_ns(), Played()
    resumed(played)
    first, again = played.written
    assert isinstance(first, p.Resumed) and isinstance(again, p.Moved)
    assert before <= first.time_ns <= again.time_ns <= time.time_ns()
    # It stays itself, and draws other random numbers.
    assert (again.hostname, again.boot_id, again.network) == ("", bytes(16), "")
    assert again.entropy != first.entropy
