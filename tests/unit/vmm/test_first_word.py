"""A carrier tells once that its guest speaks, before the bytes are out."""

import socket
import threading
from collections.abc import Callable

import pytest

from mayfly.vmm.channels.carrier import Carrier
from mayfly.vmm.channels.serial import SerialChannel
from mayfly.vmm.channels.virtio import VirtioChannel
from mayfly.vmm.devices.virtio.console import TRANSMIT
from mayfly.vmm.eventloop import EventLoop
from tests.kit.virtio_driver import Driver

Say = Callable[[bytes], None]


def serial(channel: socket.socket, loop: EventLoop) -> tuple[Carrier, Say]:
    carrier = SerialChannel(channel, loop, threading.Lock(), interrupt=lambda: None, closed=lambda: None)
    return carrier, lambda data: carrier.serial.write(0, 1, data[0])


def virtio(channel: socket.socket, loop: EventLoop) -> tuple[Carrier, Say]:
    carrier = VirtioChannel(channel, loop, closed=lambda: None)
    guest = Driver(carrier.console)
    guest.start()
    return carrier, lambda data: guest.send(TRANSMIT, data)


@pytest.mark.parametrize("make", [serial, virtio])
def test_the_first_word_is_told_once_before_it_goes_out(make: Callable[[socket.socket, EventLoop], tuple[Carrier, Say]]) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    told: list[str] = []

    def tell() -> None:
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        told.append("now")

    with ours, theirs, EventLoop() as loop:
        carrier, say = make(theirs, loop)
        carrier.on_first_word = tell
        for word in (b"a", b"b"):
            say(word)
            loop.call_later(0, loop.stop)
            loop.run()
            loop._running = True
            assert ours.recv(2) == word
            assert told == ["now"]
