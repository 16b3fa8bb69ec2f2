"""Each carrier sees the end of its channel, even while its guest takes nothing."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from mayfly.vmm.channels.serial import SerialChannel
from mayfly.vmm.channels.tcp import TcpChannel
from mayfly.vmm.channels.virtio import VirtioChannel
from mayfly.vmm.eventloop import EventLoop
from tests.kit.scale import patience
from tests.kit.virtio_driver import Driver

DEADLINE_S = patience(10)
MORE_THAN_ANY_BUFFER = 1 << 20


def serial(channel: socket.socket, loop: EventLoop, closed: Callable[[], None]) -> object:
    return SerialChannel(channel, loop, threading.Lock(), interrupt=lambda: None, closed=closed)


def virtio(channel: socket.socket, loop: EventLoop, closed: Callable[[], None]) -> object:
    """A guest that has a driver, and no program that opens the port."""
    carrier = VirtioChannel(channel, loop, closed=closed)
    Driver(carrier.console).start()
    return carrier


def tcp(channel: socket.socket, loop: EventLoop, closed: Callable[[], None]) -> object:
    """An agent that accepts and does not read."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1)
    carrier = TcpChannel(channel, loop, "token", connect=lambda one: connect(one, listener), closed=closed, failed=lambda error: None)
    carrier.open()
    return carrier, listener


def connect(connection: socket.socket, listener: socket.socket) -> None:
    connection.setblocking(True)
    connection.connect(listener.getsockname())
    connection.setblocking(False)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("carrier", [serial, virtio, tcp])
@pytest.mark.parametrize("waiting", [0, 1, MORE_THAN_ANY_BUFFER])
@pytest.mark.parametrize("half", [False, True], ids=["closed", "shut-down"])
def test_the_end_is_seen_behind_bytes_that_the_guest_does_not_take(
    ends: tuple[socket.socket, socket.socket], carrier: Callable[..., object], waiting: int, half: bool
) -> None:
    ours, theirs = ends
    closed: list[None] = []
    with EventLoop() as loop:
        deadline: list[None] = []
        loop.call_later(DEADLINE_S, lambda: (deadline.append(None), loop.stop()))  # type: ignore[func-returns-value, arg-type]

        def on_closed() -> None:
            closed.append(None)
            loop.call_later(0, loop.stop)  # one more turn: it is said once

        channel = carrier(theirs, loop, on_closed)
        ours.setblocking(False)
        sent = 0
        while sent < waiting:
            try:
                sent += ours.send(bytes(min(waiting - sent, 4096)))
            except BlockingIOError:
                break
        ours.shutdown(socket.SHUT_WR) if half else ours.close()
        loop.run()
        assert not deadline
        assert closed == [None]
        close(channel)


def close(channel: object) -> None:
    if isinstance(channel, tuple):
        for one in channel:
            one.close()
