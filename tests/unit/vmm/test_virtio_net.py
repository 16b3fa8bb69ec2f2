"""The net device with a network in memory, driven as Linux's virtio_net does it."""

import random
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.net import RECEIVE, TRANSMIT, Net
from mayfly.vmm.devices.virtio.packet import ETHERNET_BYTES, HEADER, MAX_PACKET, NEEDED, NetFeature, Segmentation
from mayfly.vmm.devices.virtio.queue import TURN_DESCRIPTORS, Queue
from mayfly.vmm.devices.virtio.registers import DeviceStatus, Interrupt, Register
from tests.kit.net_kit import (
    GUEST_MAC,
    HOST_MAC,
    PLAIN_HEADER,
    PUBLIC,
    PUBLIC6,
    MemoryBackend,
    SocketBackend,
    ethernet,
    ipv4,
    ipv6,
    tcp,
    udp,
)
from tests.kit.virtio_driver import ALL, DESCRIPTOR, PLAIN, Buffer, Driver

FRAME = ethernet(0x800, ipv4(PUBLIC, udp(b"to whom it may concern")))
INBOUND = ethernet(0x800, ipv4("10.87.0.5", udp(b"hello guest"), source=PUBLIC), source=HOST_MAC, destination=GUEST_MAC)
SEGMENTED = {
    Segmentation.NONE: FRAME,
    Segmentation.TCPV4: ethernet(0x800, ipv4(PUBLIC, tcp(bytes(4000)), protocol=6)),
    Segmentation.TCPV6: ethernet(0x86DD, ipv6(PUBLIC6, tcp(bytes(4000)), following=6)),
}
MTU = 1400


class Open:
    """A filter that lets all through but one frame."""

    refused = b"refused-frame!"

    def may_leave(self, frame: bytes | bytearray | memoryview) -> bool:
        return frame != self.refused


class Guest(Driver):
    """A driver for the net device, with `take` and `give` in place of Linux's network stack."""

    def __init__(self, features: int = ALL, *, mergeable: bool = True, backend: Any = None) -> None:
        self.backend: Any = backend or MemoryBackend()
        self.rooms = 0
        self.fulls = 0
        self.net = Net(GUEST_MAC, MTU, self.backend, Open().may_leave, on_room=self.on_room, on_full=self.on_full)
        super().__init__(self.net)
        self.start(features)
        if not mergeable:
            self.net.negotiated &= ~int(NetFeature.MRG_RXBUF)

    def on_room(self) -> None:
        self.rooms += 1

    def on_full(self) -> None:
        self.fulls += 1

    def give(self, *packets: bytes) -> None:
        """Send packets, with one kick for all."""
        for packet in packets:
            self.queues[TRANSMIT].offer([Buffer(packet)])
        self.kick(TRANSMIT)

    def post(self, *rooms: int) -> None:
        """A chain of one buffer for each."""
        for room in rooms:
            self.queues[RECEIVE].offer([Buffer(room=room)])
        self.kick(RECEIVE)

    def post_chains(self, count: int, rooms: Sequence[int]) -> None:
        """Chains of so many buffers each, in an indirect table."""
        for _ in range(count):
            self.queues[RECEIVE].offer([Buffer(room=room) for room in rooms], indirect=True)
        self.kick(RECEIVE)

    def take(self) -> list[bytes]:
        """The packets that came, put together where they took several chains; chains that came back
        empty are left out.
        """
        used = [data for _, _, data in self.queues[RECEIVE].used() if data]
        packets = []
        while used:
            count = used[0][HEADER.size - 2] if len(used[0]) >= HEADER.size else b"".join(used[: HEADER.size])[HEADER.size - 2]
            packets.append(b"".join(used[:count]))
            del used[:count]
        return packets

    def header(self, kind: int = 0, flags: int = 0) -> bytes:
        """A header for a frame of SEGMENTED."""
        return HEADER.pack(flags, kind, 54, 1300, 54 if kind == Segmentation.TCPV6 else 34, 16 if kind else 6, 77)


@pytest.fixture(params=[ALL, PLAIN], ids=["event-idx", "plain"])
def guest(request: pytest.FixtureRequest) -> Guest:
    return Guest(request.param)


@pytest.fixture(params=[(ALL, MemoryBackend), (PLAIN, MemoryBackend), (ALL, SocketBackend), (PLAIN, SocketBackend)], ids=str)
def any_guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """One whose packets Python or C moves."""
    features, kind = request.param
    backend = kind()
    yield Guest(features, backend=backend)
    backend.close()


def test_says_who_it_is(guest: Guest) -> None:
    assert guest.read(Register.DEVICE_ID) == 1
    config = bytes(guest.transport.read(Register.CONFIG + at, 1) for at in range(12))
    assert config == GUEST_MAC + struct.pack("<HHH", 1, 1, MTU)
    own = NetFeature.MAC | NetFeature.MTU | NetFeature.STATUS | NetFeature.MRG_RXBUF
    assert guest.net.features == own | MemoryBackend.offloads
    assert guest.backend.negotiated & guest.net.features == guest.net.features


def test_frames_leave_in_order_for_one_interrupt(any_guest: Guest) -> None:
    packets = [PLAIN_HEADER + FRAME + bytes([number]) for number in range(20)]
    any_guest.give(*packets)
    assert any_guest.backend.sent == packets
    assert any_guest.interrupts == 1
    assert [length for _, length, _ in any_guest.queues[TRANSMIT].used()] == [0] * 20


def test_a_packet_may_lie_in_many_buffers(any_guest: Guest) -> None:
    packet = PLAIN_HEADER + FRAME
    any_guest.queues[TRANSMIT].offer([Buffer(packet[at : at + 9]) for at in range(0, len(packet), 9)])
    any_guest.kick(TRANSMIT)
    assert any_guest.backend.sent == [packet]


def test_the_header_is_passed_on_as_far_as_it_means_something(any_guest: Guest) -> None:
    frame = SEGMENTED[Segmentation.TCPV4]
    any_guest.give(any_guest.header(Segmentation.TCPV4, flags=0xFF) + frame)
    assert any_guest.backend.sent == [HEADER.pack(1, Segmentation.TCPV4, 54, 1300, 34, 16, 0) + frame]


@pytest.mark.parametrize(("kind", "needed"), sorted(NEEDED.items()))
def test_an_offload_needs_its_feature(kind: int, needed: int) -> None:
    guest = Guest()
    guest.net.negotiated = needed
    packet = guest.header(kind, flags=int(bool(kind))) + SEGMENTED[Segmentation(kind)]
    guest.give(packet)
    assert len(guest.backend.sent) == 1
    for bit in (1 << number for number in range(32) if needed >> number & 1):
        guest.net.negotiated = 0xFFFF_FFFF & ~bit
        guest.give(packet)
    assert len(guest.backend.sent) == 1
    assert guest.transport.misuse == ({Misuse.PACKET: 2} if needed else {})


@pytest.mark.parametrize("kind", [3, 5, 2, 0x80 | Segmentation.TCPV4, 0xFF])
def test_an_offload_that_is_not_offered_is_misuse(kind: int) -> None:
    guest = Guest()
    guest.net.negotiated = 0xFFFF_FFFF
    guest.give(guest.header(kind, flags=1) + SEGMENTED[Segmentation.TCPV4])
    assert not guest.backend.sent
    assert guest.transport.misuse == {Misuse.PACKET: 1}


def test_a_checksum_is_left_out_only_where_that_was_negotiated() -> None:
    guest = Guest()
    guest.net.negotiated &= ~NetFeature.CSUM
    guest.give(guest.header(flags=1) + FRAME)
    assert not guest.backend.sent
    assert guest.transport.misuse == {Misuse.PACKET: 1}


@pytest.mark.parametrize("size", [0, 1, HEADER.size, HEADER.size + ETHERNET_BYTES - 1, MAX_PACKET + 1, 200_000])
def test_a_packet_of_an_impossible_size_is_misuse(size: int) -> None:
    guest = Guest()
    guest.queues[TRANSMIT].offer([Buffer(bytes(size)) if size else Buffer(room=8)])
    guest.kick(TRANSMIT)
    assert not guest.backend.sent
    assert guest.transport.misuse == {Misuse.PACKET if size else Misuse.DIRECTION: 1}
    assert len(guest.queues[TRANSMIT].used()) == 1


def test_the_largest_packet_leaves(any_guest: Guest) -> None:
    any_guest.give(bytes(MAX_PACKET))
    assert any_guest.backend.sent == [bytes(MAX_PACKET)]


def test_what_the_filter_refuses_goes_nowhere(any_guest: Guest) -> None:
    any_guest.give(PLAIN_HEADER + Open.refused, PLAIN_HEADER + FRAME)
    assert any_guest.backend.sent == [PLAIN_HEADER + FRAME]
    assert any_guest.transport.misuse == {Misuse.FILTERED: 1}


def test_a_packet_with_a_buffer_to_write_to_is_misuse(any_guest: Guest) -> None:
    any_guest.queues[TRANSMIT].offer([Buffer(PLAIN_HEADER + FRAME), Buffer(room=8)])
    any_guest.kick(TRANSMIT)
    assert not any_guest.backend.sent
    assert any_guest.transport.misuse == {Misuse.DIRECTION: 1}


def test_what_was_filtered_is_what_is_sent() -> None:
    """A guest that rewrites its buffer behind the filter's back changes nothing."""
    guest = Guest()
    places: list[int] = []

    class Rewriting(Open):
        def may_leave(self, frame: bytes | bytearray | memoryview) -> bool:
            guest.ram.put(places[0], b"\xee" * 40)
            return True

    guest.net._may_leave = Rewriting().may_leave
    head = guest.queues[TRANSMIT].offer([Buffer(PLAIN_HEADER + FRAME)])
    places.append(guest.queues[TRANSMIT].chains[head][1][0][0])
    guest.kick(TRANSMIT)
    assert guest.backend.sent == [PLAIN_HEADER + FRAME]


def test_frames_arrive_in_order_for_one_interrupt(any_guest: Guest) -> None:
    any_guest.post(*[2000] * 11)
    assert any_guest.rooms == 1
    any_guest.backend.waiting += [PLAIN_HEADER + INBOUND + bytes([number]) for number in range(10)]
    assert any_guest.net.receive()
    assert any_guest.take() == [HEADER.pack(0, 0, 0, 0, 0, 0, 1) + INBOUND + bytes([number]) for number in range(10)]
    assert any_guest.interrupts == 1
    assert any_guest.acknowledge() == Interrupt.USED_BUFFER


LINUX_CHAIN = (HEADER.size, 4080, *[4096] * 17)
"""The header, what is left of its page, and 17 pages more (Linux drivers/net/virtio_net.c,
add_recvbuf_big).
"""


@pytest.mark.parametrize("rooms", [LINUX_CHAIN, (40000, 40000), (5, 6, 1, 9, 70000), (1,) * 30 + (66000,), (MAX_PACKET,)])
def test_packets_of_any_size_fill_chains_of_any_shape(rooms: Sequence[int]) -> None:
    """In any order: without mergeable buffers, only so much of a chain is looked at as the packet
    before would have needed.
    """
    guest = Guest(mergeable=False)
    guest.post_chains(9, rooms)
    sizes = (0, 0, 65000, 65000, 0, 2048, 2100, 65000, 4096 - len(INBOUND))
    packets = [guest.header(Segmentation.TCPV4) + INBOUND + random.Random(size).randbytes(size) for size in sizes]
    guest.backend.waiting += packets
    guest.net.receive()
    assert guest.take() == [packet[: HEADER.size - 2] + b"\1\0" + packet[HEADER.size :] for packet in packets]
    assert not guest.transport.misuse


@pytest.mark.parametrize("fits", [0, 1])
@pytest.mark.parametrize("rooms", [(12, 60, 10), (2048, 900, 100)])
def test_a_packet_that_does_not_fit_into_its_chain_is_lost_and_no_other(rooms: Sequence[int], fits: int) -> None:
    guest = Guest(mergeable=False)
    guest.post_chains(2, rooms)
    packet = (PLAIN_HEADER + INBOUND).ljust(sum(rooms) + 1 - fits, b".")
    guest.backend.waiting += [packet, PLAIN_HEADER + b"!" * 14]
    guest.net.receive()
    guest.net.receive()
    assert [len(got) for got in guest.take()] == [len(packet)] * fits + [HEADER.size + 14]
    assert guest.transport.misuse == ({} if fits else {Misuse.DIRECTION: 1})


def test_a_chain_that_breaks_a_rule_takes_no_packet(any_guest: Guest) -> None:
    queue = any_guest.queues[RECEIVE]
    outside = any_guest.ram.base + len(any_guest.ram.bytes)
    for places in ([(outside, 2000, True)], [(any_guest.ram.allocate(4096), 4096, True), (outside, 70000, True)]):
        queue.offer_places(places)
    any_guest.post(2000)
    any_guest.backend.waiting += [PLAIN_HEADER + INBOUND]
    any_guest.net.receive()
    assert [length for _, length, _ in queue.used()] == [0, 0, HEADER.size + len(INBOUND)]
    assert any_guest.transport.misuse == {Misuse.OUTSIDE_RAM: 2}


@pytest.mark.parametrize("rooms", [[40000, 40000], [1000] * 66, [4096] * 17, [5, 9, 1, 70000], [1] * 20 + [66000]])
def test_packets_of_any_size_take_as_many_mergeable_buffers_as_they_need(any_guest: Guest, rooms: list[int]) -> None:
    sizes = (65000, 0, 65000, 2048)
    packets = [any_guest.header(Segmentation.TCPV4) + INBOUND + random.Random(size).randbytes(size) for size in sizes]
    any_guest.backend.waiting += packets
    got = []
    for _ in sizes:
        any_guest.post(*rooms)
        while any_guest.net.receive() and any_guest.backend.waiting:
            pass
        got += any_guest.take()
    assert [packet[HEADER.size :] for packet in got] == [packet[HEADER.size :] for packet in packets]
    assert not any_guest.transport.misuse


def test_buffers_are_refilled_while_others_are_left(any_guest: Guest) -> None:
    """Turn after turn, of packets that leave any number of buffers over."""
    rng, queue = random.Random(1), any_guest.queues[RECEIVE]
    spots = [any_guest.ram.allocate(1536) for _ in queue.free]
    for _ in range(100):
        packets = [PLAIN_HEADER + INBOUND + rng.randbytes(rng.choice((0, 1400, 60_000))) for _ in range(rng.randint(1, 5))]
        any_guest.backend.waiting += packets
        got = []
        while any_guest.backend.waiting:
            while queue.free:
                queue.offer_places([(spots[queue.free[0]], 1536, True)])
            assert any_guest.net.receive()
            got += any_guest.take()
        assert [packet[HEADER.size :] for packet in got] == [packet[HEADER.size :] for packet in packets]
    assert not any_guest.transport.misuse


def test_a_packet_waits_for_mergeable_buffers_and_is_not_lost(any_guest: Guest) -> None:
    packet = PLAIN_HEADER + INBOUND + bytes(range(250)) * 12
    any_guest.backend.waiting += [packet, packet]
    for rooms, room in ((1, 1000), (2, 2000), (3, 3000)):
        any_guest.post(room)
        assert any_guest.rooms == rooms
        assert not any_guest.net.receive()
    any_guest.post(4000, 4000)
    assert any_guest.net.receive()
    assert [got[HEADER.size :] for got in any_guest.take()] == [packet[HEADER.size :]] * 2


def test_a_ring_that_can_never_hold_a_packet_is_given_back() -> None:
    guest = Guest()
    guest.start(ALL, [4, 4])
    guest.post(10, 10, 10, 10)
    guest.backend.waiting += [PLAIN_HEADER + INBOUND, PLAIN_HEADER + INBOUND]
    assert guest.net.receive()
    assert not guest.net.receive()
    assert [length for _, length, _ in guest.queues[RECEIVE].used()] == [0] * 4
    assert guest.transport.misuse == {Misuse.DIRECTION: 1}
    guest.post(2000)
    assert not guest.net.receive()
    assert len(guest.take()) == 1


def test_a_packet_waits_for_a_buffer_and_is_not_lost(guest: Guest) -> None:
    guest.backend.waiting += [PLAIN_HEADER + INBOUND + bytes([number]) for number in range(3)]
    assert not guest.net.receive()
    assert len(guest.backend.waiting) == 3
    for rooms in (1, 2):
        guest.post(2000)
        assert guest.rooms == rooms
        assert not guest.net.receive()
    guest.post(2000, 2000)
    assert guest.net.receive()
    assert [got[HEADER.size :] for got in guest.take()] == [INBOUND + bytes([number]) for number in range(3)]


@pytest.mark.parametrize("wrong", [[Buffer(b"not for writing")], [Buffer(b"read"), Buffer(room=2000)]])
def test_a_buffer_to_read_from_comes_back_empty(any_guest: Guest, wrong: list[Buffer]) -> None:
    any_guest.queues[RECEIVE].offer(wrong)
    any_guest.post(2000, 2000)
    any_guest.backend.waiting.append(PLAIN_HEADER + INBOUND)
    assert any_guest.net.receive()
    assert [length for _, length, _ in any_guest.queues[RECEIVE].used()] == [0, HEADER.size + len(INBOUND)]
    assert any_guest.transport.misuse == {Misuse.DIRECTION: 1}


def test_a_full_back_end_leaves_chains_with_the_guest_until_resume(guest: Guest) -> None:
    guest.backend.room = 2
    guest.give(*[PLAIN_HEADER + FRAME] * 5)
    assert len(guest.backend.sent) == 2
    assert guest.fulls == 1
    assert len(guest.queues[TRANSMIT].used()) == 2
    guest.backend.room = 100
    guest.net.resume()
    assert len(guest.backend.sent) == 5
    assert len(guest.queues[TRANSMIT].used()) == 3


def test_a_back_end_that_is_gone_takes_the_link_down_and_nothing_else(guest: Guest) -> None:
    guest.post(2000, 2000)
    guest.backend.waiting.append(PLAIN_HEADER + INBOUND)
    guest.backend.gone = True
    guest.acknowledge()
    assert not guest.net.receive()
    assert len(guest.take()) == 1
    assert not guest.net.link_up
    assert guest.transport.read(Register.CONFIG + 6, 2) == 0
    assert guest.read(Register.CONFIG_GENERATION) == 1
    assert guest.acknowledge() & Interrupt.CONFIG_CHANGE
    guest.give(PLAIN_HEADER + FRAME)
    assert not guest.backend.sent
    assert guest.read(Register.STATUS) & DeviceStatus.DRIVER_OK
    assert len(guest.queues[TRANSMIT].used()) == 1


def test_a_flood_is_worked_on_in_pieces(guest: Guest) -> None:
    size = guest.queues[RECEIVE].size
    guest.post(*[2000] * size)
    guest.backend.waiting += [PLAIN_HEADER + INBOUND] * 1000
    guest.net.receive()
    assert len(guest.backend.waiting) == 1000 - size


def test_reset_with_work_in_flight_forgets_it_and_starts_afresh(guest: Guest) -> None:
    guest.backend.room = 0
    guest.give(PLAIN_HEADER + FRAME)
    guest.post(2000)
    assert guest.net.receive()
    guest.backend.waiting.append(PLAIN_HEADER + INBOUND)
    guest.write(Register.STATUS, 0)
    guest.backend.room = 10
    guest.net.resume()
    assert not guest.net.receive()
    assert not guest.backend.sent
    guest.start()
    guest.post(2000, 2000)
    assert guest.net.receive()
    assert len(guest.take()) == 1
    guest.give(PLAIN_HEADER + FRAME)
    assert len(guest.backend.sent) == 1


def test_bad_chains_that_follow_each_other_without_end_do_not_hold_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's other vCPU makes a chain available for each that comes back."""
    guest = Guest()
    queue = guest.queues[RECEIVE]
    push = Queue.push

    def push_and_refill(self: Queue, head: int, length: int) -> None:
        push(self, head, length)
        queue.write_available(head)

    for head in range(queue.size):
        queue.write_descriptor(head, guest.ram.base, 16, 0)
        queue.write_available(head)
    monkeypatch.setattr(Queue, "push", push_and_refill)
    assert not guest.net.receive()
    assert 0 < guest.transport.misuse[Misuse.DIRECTION] <= TURN_DESCRIPTORS
    assert guest.pending == [RECEIVE]  # the rest is for the next turn
    guest.transport.notify(guest.pending.pop())
    assert guest.rooms == 1


@pytest.mark.parametrize("room", [1, 2, 3])
def test_buffers_of_slivers_take_small_packets_in_few_pieces(room: int) -> None:
    guest = Guest()
    queue = guest.queues[RECEIVE]
    spot = guest.ram.allocate(4096)
    for _ in range(queue.size):
        queue.offer_places([(spot + 4 * piece, room, True) for piece in range(256)], indirect=True)
    guest.kick(RECEIVE)
    guest.backend.waiting += [PLAIN_HEADER + b"!" * 14] * 3
    guest.net.receive()
    assert guest.net.link_up
    assert not guest.backend.waiting
    assert [length for _, length, _ in queue.used()] == [26] * 3


@pytest.mark.parametrize("loop", [False, True], ids=["long", "loop"])
def test_a_kick_reads_so_many_descriptors_and_comes_back_for_the_rest(loop: bool) -> None:
    guest = Guest()
    queue = guest.queues[TRANSMIT]
    packet = PLAIN_HEADER + FRAME + bytes(300)
    spot = guest.ram.allocate(len(packet))
    guest.ram.put(spot, packet)
    places = [(spot + at, 1, False) for at in range(255)] + [(spot + 255, len(packet) - 255, False)]
    for _ in range(queue.size):
        head = queue.offer_places(places, indirect=True)
        if loop:
            table, *_ = DESCRIPTOR.unpack(guest.ram.get(queue.descriptors + 16 * head, 16))
            queue.write_descriptor(255, spot, 1, 1, 0, table)
    guest.transport.notify(TRANSMIT)
    turns = 1
    while guest.pending:
        assert len(queue.used()) <= TURN_DESCRIPTORS // 256 + 1
        guest.transport.notify(guest.pending.pop())
        turns += 1
    assert turns >= queue.size * 256 // (TURN_DESCRIPTORS + 256)
    assert guest.backend.sent == ([] if loop else [packet] * queue.size)
