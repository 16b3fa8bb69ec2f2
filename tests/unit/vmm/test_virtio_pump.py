"""Packets of a net device that move while the event loop waits, without Python."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from mayfly.vmm.devices.virtio.net import RECEIVE, TRANSMIT, Net
from mayfly.vmm.devices.virtio.packet import MAX_PACKET
from mayfly.vmm.devices.virtio.registers import DeviceStatus, Interrupt, Register
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.kvm.chains import Pump
from tests.kit.net_kit import GUEST, GUEST_MAC, HOST_MAC, PLAIN_HEADER, PUBLIC, SocketBackend, Wired, ethernet, ipv4, udp
from tests.kit.scale import scaled
from tests.kit.virtio_driver import Buffer, Driver

FRAME = ethernet(0x800, ipv4(PUBLIC, udp(b"to whom it may concern")))
ANSWER = ethernet(0x800, ipv4(GUEST, udp(b"hello guest"), source=PUBLIC), source=HOST_MAC, destination=GUEST_MAC)


class Guest(Driver):
    """A guest whose packets have gone both ways once, so that C knows what is usual."""

    def __init__(self) -> None:
        self.backend = SocketBackend()
        self.seen: list[bytes] = []
        self.net = Net(GUEST_MAC, 1500, self.backend, self.may_leave, on_room=self.on_room, on_full=lambda: None)
        super().__init__(self.net)
        self.wired = Wired(self, self.net, self.backend)
        self.begin()

    def may_leave(self, frame: bytes | bytearray | memoryview) -> bool:
        self.seen.append(bytes(frame))
        return b"refused" not in bytes(frame)

    def on_room(self) -> None:
        self.net.receive()

    def restart(self) -> None:
        self.write(Register.STATUS, 0)
        self.ram.rewind(0)
        self.ram.bytes[: 1 << 20] = bytes(1 << 20)
        self.start()

    def begin(self) -> None:
        self.restart()
        for _ in range(4):
            self.offer(RECEIVE, Buffer(room=MAX_PACKET))
        self.offer(TRANSMIT, Buffer(PLAIN_HEADER + FRAME))
        self.wired.turn()
        self.backend.waiting.append(PLAIN_HEADER + ANSWER)
        self.wired.turn()
        self.exchanged()
        self.seen.clear()

    def offer(self, index: int, buffer: Buffer) -> None:
        """A chain, and a kick as it comes from an ioeventfd."""
        self.queues[index].offer([buffer])
        os.eventfd_write(self.wired.kicks[index], 1)

    def exchanged(self) -> tuple[list[bytes], list[bytes]]:
        """Frames that left, and that came, since the last call."""
        for queue in self.queues:
            queue.ask_interrupt()
        came = [data[len(PLAIN_HEADER) :] for _, _, data in self.queues[RECEIVE].used()]
        self.queues[TRANSMIT].used()
        left = [packet[len(PLAIN_HEADER) :] for packet in self.backend.sent]
        self.backend.sent.clear()
        return left, came

    def close(self) -> None:
        self.transport.close()
        self.wired.close()
        self.backend.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    with contextlib.closing(Guest()) as made:
        yield made


def test_usual_packets_take_no_way_through_python(guest: Guest) -> None:
    before = guest.transport.kicks - guest.net.pump.kicks, guest.interrupts
    guest.wired.interrupted()
    other_port = ethernet(0x800, ipv4(PUBLIC, udp(b"as before, to another port", source=40_001, destination=7)))
    guest.offer(TRANSMIT, Buffer(PLAIN_HEADER + other_port))
    guest.backend.waiting.append(PLAIN_HEADER + ANSWER)
    assert guest.wired.turn() == 0
    assert guest.exchanged() == ([other_port], [ANSWER])
    assert guest.wired.interrupted()
    guest.offer(RECEIVE, Buffer(room=MAX_PACKET))
    assert guest.wired.turn() == 0
    assert (guest.transport.kicks - guest.net.pump.kicks, guest.interrupts) == before
    assert guest.net.pump.kicks >= 2
    assert not guest.seen


def test_an_unusual_packet_is_looked_at_and_then_c_goes_on(guest: Guest) -> None:
    refused = ethernet(0x800, ipv4(PUBLIC, bytes(20) + b"refused", protocol=1))
    guest.offer(TRANSMIT, Buffer(PLAIN_HEADER + refused))
    assert guest.wired.turn() == 1
    assert guest.seen == [refused]
    guest.offer(TRANSMIT, Buffer(PLAIN_HEADER + FRAME))
    assert guest.wired.turn() == 0
    assert guest.exchanged()[0] == [FRAME]


@pytest.mark.parametrize(
    ("register", "value"),
    [(Register.STATUS, 0), (Register.STATUS, 15 | DeviceStatus.FAILED), (Register.INTERRUPT_ACK, Interrupt.USED_BUFFER)],
)
def test_a_write_to_a_register_leaves_the_next_turn_to_python(guest: Guest, register: int, value: int) -> None:
    guest.wired.interrupted()
    guest.write(register, value)
    guest.offer(TRANSMIT, Buffer(PLAIN_HEADER + FRAME))
    guest.backend.waiting.append(PLAIN_HEADER + ANSWER)
    assert guest.wired.turn() > 0
    live = register == Register.INTERRUPT_ACK
    assert guest.exchanged()[0] == ([FRAME] if live else [])
    assert guest.wired.interrupted() == 0
    assert guest.read(Register.INTERRUPT_STATUS) == (Interrupt.USED_BUFFER if value else 0)


def test_a_reset_forgets_what_was_allowed(guest: Guest) -> None:
    guest.restart()
    guest.offer(TRANSMIT, Buffer(PLAIN_HEADER + FRAME))
    assert guest.wired.turn() == 1
    assert guest.seen == [FRAME]


def test_a_filter_that_goes_by_ports_looks_at_each_port(guest: Guest) -> None:
    guest.net.look_at_ports()
    for port, seen in ((7, 1), (7, 1), (8, 2)):
        guest.offer(TRANSMIT, Buffer(PLAIN_HEADER + ethernet(0x800, ipv4(PUBLIC, udp(b"x" * 30, destination=port)))))
        guest.wired.turn()
        assert len(guest.seen) == seen
        guest.exchanged()


def test_resets_while_packets_move(guest: Guest) -> None:
    """A vCPU's thread resets the device at any moment of a turn; nothing breaks, and it works
    afterwards.
    """
    ended = threading.Event()

    def loop() -> None:
        while not ended.is_set():
            for fd in guest.wired.kicks:
                os.eventfd_write(fd, 1)
            with contextlib.suppress(BlockingIOError):
                guest.backend.waiting.append(PLAIN_HEADER + ANSWER)
            guest.wired.turn()

    turns = threading.Thread(target=loop)
    turns.start()
    try:
        for _ in range(scaled(200)):
            guest.restart()
            for index, buffer in ((RECEIVE, Buffer(room=MAX_PACKET)), (TRANSMIT, Buffer(PLAIN_HEADER + FRAME))) * 4:
                guest.offer(index, buffer)
    finally:
        ended.set()
        turns.join()
    with contextlib.suppress(BlockingIOError):
        while guest.backend.waiting.end.recv(MAX_PACKET):
            pass
    while guest.backend.waiting:
        guest.backend.receive(guest.net._packet)
    guest.backend.received.clear()
    guest.begin()
    guest.offer(TRANSMIT, Buffer(PLAIN_HEADER + FRAME))
    assert guest.wired.turn() == 0
    assert guest.exchanged()[0] == [FRAME]


def test_events_timers_and_signals_end_the_wait() -> None:
    order: list[str] = []
    with EventLoop() as loop:
        loop.wait_by(Pump().wait)
        trigger = loop.add_event(lambda: order.append("event"))
        loop.call_later(0.01, lambda: (order.append("timer"), signal.setitimer(signal.ITIMER_REAL, 0.01)))  # type: ignore[func-returns-value, arg-type]
        before = signal.signal(signal.SIGALRM, lambda *_: (order.append("signal"), loop.stop()))  # type: ignore[func-returns-value]
        try:
            trigger()
            loop.run()
        finally:
            signal.signal(signal.SIGALRM, before)
    assert order == ["event", "timer", "signal"]
