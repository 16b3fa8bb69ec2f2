"""The event loop's timers: once each, in the order in which they are due, and alongside
descriptors.
"""

import time

import pytest

from mayfly.vmm.eventloop import EventLoop


def test_timers_fire_once_in_order_and_not_early(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began)  # all of them are asked for at once
    fired: list[tuple[str, float]] = []
    with EventLoop() as loop:
        for name, delay in (("late", 0.03), ("early", 0.01), ("now", 0.0)):
            loop.call_later(delay, lambda name=name, due=began + delay: fired.append((name, due)))  # type: ignore[misc]
        loop.call_later(0.04, loop.stop)
        monkeypatch.undo()
        loop.run()
    assert [name for name, _ in fired] == ["now", "early", "late"]
    assert time.monotonic() >= began + 0.04


def test_an_event_comes_before_a_timer_that_is_not_due() -> None:
    order: list[str] = []
    with EventLoop() as loop:
        trigger = loop.add_event(lambda: (order.append("event"), loop.stop()))  # type: ignore[func-returns-value, arg-type]
        loop.call_later(60, lambda: order.append("timer"))
        trigger()
        loop.run()
    assert order == ["event"]
