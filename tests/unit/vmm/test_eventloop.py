"""The event loop's timers: once each, in the order in which they are due, and alongside
descriptors.
"""

import os
import socket
import time

import pytest

from mayfly.vmm.eventloop import READ, EventLoop


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


def test_nothing_but_what_is_kept_is_called_while_all_stands_still() -> None:
    """Edges and timers of that time come afterwards, those of the round in which it began too."""
    order: list[str] = []
    reading, writing = os.pipe()
    with EventLoop() as loop, os.fdopen(reading, "rb", buffering=0) as commands, os.fdopen(writing, "wb", buffering=0) as asks:

        def obey() -> None:
            command = commands.read(1)
            order.append(command.decode())
            if command == b"s":
                loop.stand_still()
                for trigger in triggers:
                    trigger()
                loop.call_later(0, lambda: order.append("timer"))
                asks.write(b"xg")
            elif command == b"g":
                loop.go_on()
                loop.call_later(0, lambda: order.append("later"))
                loop.call_later(0.01, loop.stop)

        triggers = [loop.add_event(lambda number=number: order.append(f"event {number}")) for number in range(3)]  # type: ignore[misc]
        loop.watch(commands, READ, obey)
        loop.keep(commands)
        for trigger in triggers[1:]:
            trigger()
        asks.write(b"s")
        loop.run()
        loop.watch(commands, 0, obey)
    begin, end = order.index("s"), order.index("g")
    assert order[begin : end + 1] == ["s", "x", "g"]
    assert {"event 0", "event 1", "event 2", "timer", "later"} <= {*order[end:]}


def test_a_loop_that_stands_still_can_be_stopped() -> None:
    with EventLoop() as loop:
        loop.stand_still()
        loop.stop()
        loop.run()


def test_a_socket_that_takes_the_place_of_another_is_watched_as_that_was() -> None:
    heard: list[bytes] = []
    placeholder, peer = socket.socketpair()
    ours, theirs = socket.socketpair()
    with EventLoop() as loop, placeholder, ours, peer:
        loop.watch(placeholder, READ, lambda: (heard.append(placeholder.recv(100)), loop.stop()))  # type: ignore[func-returns-value, arg-type]
        peer.close()
        loop.replace(placeholder, theirs.detach())
        loop.call_later(0, lambda: ours.sendall(b"hello"))
        loop.run()
    assert heard == [b"hello"]
