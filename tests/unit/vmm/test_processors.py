"""The vCPUs' threads: pausing, resuming and ending, with guests that do nothing but run."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mayfly.errors import GuestError, HostError
from mayfly.protocol.report import End
from mayfly.vmm.kvm.kvm import ExitReason
from mayfly.vmm.processors import KICK, Processors


class Endless:
    """A vCPU that runs until it is asked to come back."""

    def __init__(self, index: int) -> None:
        self.index, self.entries = index, 0
        self._asked = threading.Event()

    def run(self) -> int:
        self.entries += 1
        self._asked.wait()
        return ExitReason.INTR

    def request_exit(self) -> None:
        self._asked.set()

    def withdraw_exit(self) -> None:
        self._asked.clear()


@pytest.fixture
def processors() -> Iterator[Processors]:
    before, interval = signal.getsignal(KICK), sys.getswitchinterval()
    vcpus: list[Any] = [Endless(index) for index in range(2)]
    processors = Processors(vcpus, wake=lambda: None)
    processors.start()
    sys.setswitchinterval(1e-6)
    yield processors
    sys.setswitchinterval(interval)
    processors.finish(End.STOPPED)
    for thread in processors.threads:
        thread.join()
    signal.signal(KICK, before)


def test_pauses_that_follow_each_other_at_once_all_end(processors: Processors) -> None:
    """However the threads take turns: a thread that stood still must stand still again."""
    vcpus: list[Any] = [*processors.vcpus]
    for _ in range(2000):
        processors.pause()
        before = [vcpu.entries for vcpu in vcpus]
        processors.pause()
        assert [vcpu.entries for vcpu in vcpus] == before
        processors.resume()


def test_a_machine_that_ended_is_not_paused_however_often_it_is_resumed(processors: Processors) -> None:
    processors.pause()
    processors.finish(End.STOPPED)
    processors.resume()
    for _ in range(2):
        with pytest.raises(GuestError, match="has ended"):
            processors.pause()
        processors.resume()


def test_a_host_without_threads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    monkeypatch.setattr("mayfly.vmm.processors.handle", lambda *_: None)
    vcpus: list[Any] = [Endless(0)]
    with pytest.raises(HostError, match="no thread for a vCPU"):
        Processors(vcpus, wake=lambda: None).start()


def test_a_signal_may_end_a_machine_that_is_being_ended(processors: Processors) -> None:
    """Its handler runs in the thread that holds the locks."""
    with processors._end_lock, processors.threads[0]._turn:
        processors.finish(End.STOPPED)
    assert processors.end is End.STOPPED
