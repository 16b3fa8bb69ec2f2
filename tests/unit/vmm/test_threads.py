"""Threads of a machine: started, awaited, and as alive as they are."""

import _thread
import threading

import pytest

from mayfly.vmm.threads import Thread


class Waiting(Thread):
    def __init__(self) -> None:
        super().__init__()
        self.go_on, self.ident_inside = threading.Event(), 0

    def run(self) -> None:
        self.ident_inside = threading.get_ident()
        self.go_on.wait()


def test_a_thread_is_alive_until_it_has_ended() -> None:
    thread = Waiting()
    thread.join()  # it was not started
    assert not thread.is_alive()
    thread.start()
    thread.join(0.01)
    assert thread.is_alive()
    thread.go_on.set()
    thread.join()
    assert not thread.is_alive()
    assert thread.ident == thread.ident_inside


def test_without_a_thread_it_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    thread = Waiting()
    with pytest.raises(RuntimeError, match="can't start"):
        thread.start()
    assert not thread.is_alive()
