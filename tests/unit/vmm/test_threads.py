"""Threads of a machine: started, awaited, and as alive as they are."""

import _thread
import threading
from collections.abc import Callable

import pytest

from mayfly.vmm.threads import Thread


class Waiting(Thread):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on, self.ident_inside = threading.Event(), threading.Event(), 0

    def run(self) -> None:
        self.ident_inside = threading.get_ident()
        self.inside.set()
        self.go_on.wait()


def test_a_thread_is_alive_until_it_has_ended() -> None:
    thread = Waiting()
    thread.join()  # it was not started
    assert not thread.is_alive()
    thread.start()
    thread.join(0.01)
    assert thread.is_alive()
    thread.inside.wait()
    assert thread.ident == thread.ident_inside
    thread.go_on.set()
    thread.join()
    assert not thread.is_alive()
    assert thread.ident == 0


def test_it_can_be_interrupted_before_start_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a signal's handler, which may run when the thread does already."""
    thread, began, seen = Waiting(), _thread.start_new_thread, []

    def interrupted(body: Callable[..., object], arguments: tuple[object, ...]) -> int:
        number = began(body, arguments)
        thread.inside.wait()
        seen.append(thread.ident == number)
        return number

    monkeypatch.setattr(_thread, "start_new_thread", interrupted)
    thread.start()
    thread.go_on.set()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError("can't start")])
def test_without_a_thread_it_is_not_alive(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    thread = Waiting()
    with pytest.raises(type(error), match="can't start"):
        thread.start()
    assert not thread.is_alive()
