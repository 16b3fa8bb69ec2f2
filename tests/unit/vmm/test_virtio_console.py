"""The console device, driven as Linux's virtio_console does it."""

import struct

import pytest

from mayfly.vmm.devices.virtio.console import CONTROL_RECEIVE, CONTROL_TRANSMIT, MULTIPORT, RECEIVE, TRANSMIT, WINDOW, Console, Control
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.registers import DeviceStatus, Interrupt, Register
from tests.kit.virtio_driver import ALL, PLAIN, Buffer, Driver, give

CONTROL = struct.Struct("<IHH")
BAD_ID = 0xFFFF_FFFF
NAME = "mayfly.channel"


class Channel:
    """The host's end: a sink that can be full, and a count of the times that there was room
    again.
    """

    def __init__(self) -> None:
        self.got = bytearray()
        self.room = 1 << 30
        self.calls = 0
        self.rooms = 0

    def sink(self, views: list[memoryview]) -> int:
        self.calls += 1
        taken = b"".join(views)[: self.room]
        self.room -= len(taken)
        self.got += taken
        return len(taken)

    def on_room(self) -> None:
        self.rooms += 1


class Guest(Driver):
    """A driver for the console as far as an open port."""

    def __init__(self, features: int = ALL) -> None:
        self.channel = Channel()
        self.console = Console(NAME, self.channel.sink, self.channel.on_room)
        super().__init__(self.console)
        self.start(features)
        for _ in range(16):
            self.queues[CONTROL_RECEIVE].offer([Buffer(room=4096)])
            self.kick(CONTROL_RECEIVE)

    def say(self, event: Control, value: int, port: int = 0) -> None:
        self.send(CONTROL_TRANSMIT, CONTROL.pack(port, event, value))
        self.queues[CONTROL_TRANSMIT].used()

    def heard(self) -> list[tuple[int, int, int, bytes]]:
        messages = [data for _, _, data in self.queues[CONTROL_RECEIVE].used()]
        return [(*CONTROL.unpack(data[:8]), data[8:]) for data in messages]

    def post(self, count: int, room: int = 4096) -> None:
        for _ in range(count):
            self.queues[RECEIVE].offer([Buffer(room=room)])
            self.kick(RECEIVE)

    def received(self) -> bytes:
        return b"".join(data for _, _, data in self.queues[RECEIVE].used())

    def open(self) -> None:
        self.say(Control.DEVICE_READY, 1, BAD_ID)
        self.post(8)
        self.say(Control.PORT_READY, 1)
        self.say(Control.PORT_OPEN, 1)
        self.heard()
        self.acknowledge()
        self.interrupts = self.kicks = 0


@pytest.fixture(params=[ALL, PLAIN], ids=["event-idx", "plain"])
def guest(request: pytest.FixtureRequest) -> Guest:
    return Guest(request.param)


def test_offers_multiport_with_one_port_and_four_queues(guest: Guest) -> None:
    assert guest.console.features == MULTIPORT
    assert guest.read(Register.DEVICE_ID) == 3
    assert guest.read(Register.CONFIG + 4) == 1
    assert len(guest.transport.device.queue_sizes) == 4
    assert guest.read(Register.STATUS) & DeviceStatus.DRIVER_OK


def test_announces_the_port_its_state_and_its_name(guest: Guest) -> None:
    guest.say(Control.DEVICE_READY, 1, BAD_ID)
    assert guest.heard() == [(0, Control.DEVICE_ADD, 1, b"")]
    guest.say(Control.PORT_READY, 1)
    assert guest.heard() == [(0, Control.PORT_OPEN, 1, b""), (0, Control.PORT_NAME, 1, NAME.encode())]
    assert not guest.transport.misuse


def test_a_whole_boot_costs_few_interrupts() -> None:
    guest = Guest()
    guest.say(Control.DEVICE_READY, 1, BAD_ID)
    guest.heard()
    guest.post(8)
    guest.say(Control.PORT_READY, 1)
    guest.heard()
    guest.say(Control.PORT_OPEN, 1)
    assert guest.interrupts <= 3
    assert guest.kicks <= 5  # the first buffer of each receive queue, three messages


def test_output_reaches_the_sink_without_a_copy_of_its_own(guest: Guest) -> None:
    guest.open()
    guest.send(TRANSMIT, b"x" * 32768)
    guest.send(TRANSMIT, b"y" * 10)
    assert guest.channel.got == b"x" * 32768 + b"y" * 10
    assert [length for _, length, _ in guest.queues[TRANSMIT].used()] == [0, 0]


def test_a_full_sink_leaves_chains_with_the_guest_until_resume(guest: Guest) -> None:
    guest.open()
    guest.channel.room = 150
    for letter in b"abc":
        guest.send(TRANSMIT, bytes([letter]) * 100)
    assert guest.channel.got == b"a" * 100 + b"b" * 50
    assert len(guest.queues[TRANSMIT].used()) == 1
    guest.channel.room = 1000
    guest.console.resume()
    assert guest.channel.got == b"a" * 100 + b"b" * 100 + b"c" * 100
    assert len(guest.queues[TRANSMIT].used()) == 2


def test_a_sink_that_is_full_amid_a_batch_gets_the_rest_once(guest: Guest) -> None:
    guest.open()
    guest.channel.room = 150
    for letter in b"abc":
        guest.queues[TRANSMIT].offer([Buffer(bytes([letter]) * 50), Buffer(bytes([letter]) * 50)])
    guest.kick(TRANSMIT)
    assert len(guest.queues[TRANSMIT].used()) == 1
    guest.channel.room = 1000
    guest.console.resume()
    assert guest.channel.got == b"a" * 100 + b"b" * 100 + b"c" * 100
    assert len(guest.queues[TRANSMIT].used()) == 2


def test_a_batch_of_output_costs_two_calls_and_one_interrupt(guest: Guest) -> None:
    guest.open()
    for _ in range(20):
        guest.queues[TRANSMIT].offer([Buffer(b"0123")])
    guest.kick(TRANSMIT)
    assert len(guest.channel.got) == 80
    assert guest.channel.calls == -(-20 // WINDOW)
    assert (guest.kicks, guest.interrupts) == (1, 1)
    assert guest.acknowledge() == Interrupt.USED_BUFFER


def test_input_fills_buffers_in_order_and_says_when_there_is_room_again(guest: Guest) -> None:
    guest.open()
    data = bytes(range(256)) * 160  # 40 KiB: 8 buffers of 4 KiB and 8 KiB more
    assert give(guest.console, data) == 32768
    assert guest.channel.rooms == 0
    assert guest.received() == data[:32768]
    guest.post(1)
    assert guest.channel.rooms == 1
    guest.post(1)
    assert guest.channel.rooms == 1
    assert give(guest.console, data[32768:]) == 8192
    assert guest.received() == data[32768:]


def test_receive_hands_out_the_guests_own_memory(guest: Guest) -> None:
    guest.open()

    def fill(views: list[memoryview]) -> int:
        assert sum(map(len, views)) == 8 * 4096
        views[0][:3] = b"abc"
        return 3

    assert guest.console.receive(fill) == 3
    assert guest.received() == b"abc"


def test_a_fill_that_raises_changes_nothing(guest: Guest) -> None:
    guest.open()

    def fill(views: list[memoryview]) -> int:
        raise BlockingIOError

    with pytest.raises(BlockingIOError):
        guest.console.receive(fill)
    assert guest.received() == b""
    assert give(guest.console, b"later") == 5
    assert guest.received() == b"later"


def test_a_closed_port_has_no_room_until_it_is_opened_again(guest: Guest) -> None:
    guest.open()
    guest.say(Control.PORT_OPEN, 0)
    assert give(guest.console, b"lost?") == 0
    guest.post(1)
    assert guest.channel.rooms == 0
    guest.say(Control.PORT_OPEN, 1)
    assert guest.channel.rooms == 1
    assert give(guest.console, b"not lost") == 8
    assert guest.received() == b"not lost"


def test_output_written_before_a_close_still_arrives(guest: Guest) -> None:
    guest.open()
    guest.queues[TRANSMIT].offer([Buffer(b"last words")])
    guest.say(Control.PORT_OPEN, 0)
    guest.kick(TRANSMIT)
    assert guest.channel.got == b"last words"


def test_control_messages_wait_for_buffers_and_are_owed_once() -> None:
    channel = Channel()
    console = Console(NAME, channel.sink, channel.on_room)
    driver = Driver(console)
    driver.start()
    for _ in range(200):
        driver.send(CONTROL_TRANSMIT, CONTROL.pack(0, Control.PORT_READY, 1))
        driver.queues[CONTROL_TRANSMIT].used()
    queue = driver.queues[CONTROL_RECEIVE]
    for _ in range(4):
        queue.offer([Buffer(room=64)])
        driver.kick(CONTROL_RECEIVE)
    assert [data[8:] for _, _, data in queue.used()] == [b"", NAME.encode()]


@pytest.mark.parametrize("message", [b"", b"\0" * 7, CONTROL.pack(1, Control.PORT_OPEN, 1), CONTROL.pack(0, 77, 1), CONTROL.pack(0, 5, 1)])
def test_nonsense_on_the_control_queue_is_counted(message: bytes) -> None:
    guest = Guest()
    guest.open()
    guest.queues[CONTROL_TRANSMIT].offer([Buffer(message) if message else Buffer(room=8)])
    guest.kick(CONTROL_TRANSMIT)
    assert guest.transport.misuse == {Misuse.CONTROL: 1}
    assert len(guest.queues[CONTROL_TRANSMIT].used()) == 1


def test_buffers_of_the_wrong_kind_come_back_empty(guest: Guest) -> None:
    guest.open()
    guest.queues[TRANSMIT].offer([Buffer(room=100)])
    guest.kick(TRANSMIT)
    assert [length for _, length, _ in guest.queues[TRANSMIT].used()] == [0]
    give(guest.console, b"." * 32768)
    guest.received()
    guest.queues[RECEIVE].offer([Buffer(b"readable")])
    guest.post(1)
    assert give(guest.console, b"ok") == 2
    assert guest.received() == b"ok"
    assert guest.transport.misuse == {Misuse.DIRECTION: 2}


def test_a_control_buffer_that_is_too_small_comes_back_empty() -> None:
    channel = Channel()
    driver = Driver(Console(NAME, channel.sink, channel.on_room))
    driver.start()
    queue = driver.queues[CONTROL_RECEIVE]
    queue.offer([Buffer(room=4)])
    queue.offer([Buffer(room=4), Buffer(room=4)])
    driver.send(CONTROL_TRANSMIT, CONTROL.pack(BAD_ID, Control.DEVICE_READY, 1))
    assert [length for _, length, _ in queue.used()] == [0, 8]
    assert driver.transport.misuse == {Misuse.DIRECTION: 1}


def test_reset_with_work_in_flight_forgets_it_and_starts_afresh(guest: Guest) -> None:
    guest.open()
    guest.channel.room = 5
    guest.send(TRANSMIT, b"0123456789")
    assert give(guest.console, b"x" * 40000) == 32768
    guest.write(Register.STATUS, 0)
    guest.channel.room = 1000
    guest.console.resume()
    assert give(guest.console, b"nobody") == 0
    assert guest.channel.got == b"01234"
    guest.start()
    guest.queues[CONTROL_RECEIVE].offer([Buffer(room=64)])
    guest.open()
    assert guest.channel.rooms == 1
    assert give(guest.console, b"again") == 5
    assert guest.received() == b"again"
    guest.send(TRANSMIT, b"!")
    assert guest.channel.got == b"01234!"


def test_chains_that_arrive_during_the_interrupt_need_no_kick() -> None:
    class Refilling(Guest):
        """A guest that refills its ring in the interrupt, before the device has asked for kicks
        again.
        """

        left = 0

        def _interrupted(self) -> None:
            super()._interrupted()
            for _ in self.queues[TRANSMIT].used() if self.queues else []:
                if self.left:
                    self.left -= 1
                    self.queues[TRANSMIT].offer([Buffer(b"z")])

    guest = Refilling()
    guest.open()
    guest.left = 200
    for _ in range(64):
        guest.queues[TRANSMIT].offer([Buffer(b"z")])
    guest.kick(TRANSMIT)
    assert guest.kicks == 1
    assert guest.channel.got == b"z" * 264
