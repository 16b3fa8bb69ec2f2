"""What a packet's header may ask of the host's kernel: work on the filtered header only."""

import contextlib
import random
import struct
from ipaddress import ip_address, ip_interface

import pytest

from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.net import FILTERED_BYTES, TRANSMIT, Net
from mayfly.vmm.devices.virtio.packet import (
    HEADER,
    MAX_PACKET,
    MIN_PACKET,
    MIN_SEGMENT,
    NEEDS_CSUM,
    NetFeature,
    Segmentation,
    likeness,
    offload_allowed,
)
from mayfly.vmm.network.filter import PacketFilter
from tests.kit.net_kit import (
    GATEWAY,
    GUEST,
    GUEST6,
    GUEST_MAC,
    PUBLIC,
    PUBLIC6,
    MemoryBackend,
    SocketBackend,
    arp,
    ethernet,
    ipv4,
    ipv6,
    tcp,
    udp,
)
from tests.kit.scale import scaled
from tests.kit.virtio_driver import Buffer, Driver

MTU = 1500
ALL_FEATURES = 0xFFFF_FFFF
TCP4 = ethernet(0x800, ipv4(PUBLIC, tcp(bytes(3000)), protocol=6))
TCP6 = ethernet(0x86DD, ipv6(PUBLIC6, tcp(bytes(3000)), following=6))
UDP4 = ethernet(0x800, ipv4(PUBLIC, udp(b"x")))
UDP6 = ethernet(0x86DD, ipv6(PUBLIC6, udp(b"x")))
ICMP6 = ethernet(0x86DD, ipv6(PUBLIC6, bytes(8), following=58))
FIELDS = {TCP4: (34, 16), TCP6: (54, 16), UDP4: (34, 6), UDP6: (54, 6), ICMP6: (54, 2)}
KINDS = {TCP4: Segmentation.TCPV4, TCP6: Segmentation.TCPV6}


def with_byte(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + bytes((value,)) + frame[at + 1 :]


def allowed(frame: bytes, start: int, offset: int, *, kind: int = 0, flags: int = 1, segment: int = 1400, headers: int = 34) -> bool:
    packet = HEADER.pack(flags, kind, headers, segment, start, offset, 0) + frame
    return offload_allowed(packet[: HEADER.size + FILTERED_BYTES], len(packet), MTU, ALL_FEATURES)


@pytest.mark.parametrize("frame", FIELDS, ids=["tcp4", "tcp6", "udp4", "udp6", "icmp6"])
def test_a_checksum_goes_into_its_own_field_and_nowhere_else(frame: bytes) -> None:
    passed = {(start, offset) for start in range(80) for offset in range(80) if allowed(frame, start, offset)}
    assert passed == {FIELDS[frame]}
    assert not allowed(frame, 0xFFFF, 0xFFFF)


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        (arp(GATEWAY), (34, 6)),
        (arp(GATEWAY), (30, 0)),
        (with_byte(UDP4, 20, 0x20), (34, 6)),  # more fragments
        (with_byte(UDP4, 21, 1), (34, 6)),  # not the first one
        (with_byte(UDP4, 14, 0x46), (34, 6)),  # options
        (with_byte(UDP4, 14, 0x46), (38, 6)),
        (with_byte(UDP4, 23, 1), (34, 2)),  # ICMP, whose checksum no driver leaves to the device
        (with_byte(UDP6, 20, 44), (54, 6)),  # a fragment
        (with_byte(UDP6, 20, 44), (62, 6)),
        (with_byte(UDP6, 20, 0), (54, 6)),  # hop-by-hop options
        (ethernet(0x8100, b"\0\0" + UDP4[12:]), (38, 6)),  # a VLAN tag
        (UDP4[:41], (34, 6)),
        (TCP4[:51], (34, 16)),
        (UDP4[:30], (34, 6)),
        (UDP6[:50], (54, 6)),
        (UDP4[:14], (34, 6)),
    ],
)
def test_what_has_no_such_field_gets_no_checksum(frame: bytes, field: tuple[int, int]) -> None:
    assert not allowed(frame, *field)


@pytest.mark.parametrize("frame", KINDS, ids=["tcp4", "tcp6"])
def test_segments_are_cut_along_the_header_that_was_filtered(frame: bytes) -> None:
    field, kind, largest = FIELDS[frame], KINDS[frame], MTU - FIELDS[frame][0] + 14 - 20
    assert allowed(frame, *field, kind=kind)
    for segment in (MIN_SEGMENT, largest):
        assert allowed(frame, *field, kind=kind, segment=segment)
    for segment in (0, 1, MIN_SEGMENT - 1, largest + 1, 0xFFFF):
        assert not allowed(frame, *field, kind=kind, segment=segment)
    assert not allowed(frame, *field, kind=kind, flags=0)
    assert not allowed(frame, *field, kind=kind, headers=len(frame) + 1)
    assert not allowed(frame, *field, kind=Segmentation.TCPV4 + Segmentation.TCPV6 - kind)
    assert not allowed(frame[: field[0] + 19], *field, kind=kind, headers=0)
    for header_words in (0, 4):
        assert not allowed(with_byte(frame, field[0] + 12, header_words << 4), *field, kind=kind)
    assert not allowed(with_byte(frame[: field[0] + 30], field[0] + 12, 0xF0), *field, kind=kind, headers=0)


@pytest.mark.parametrize("frame", [UDP4, UDP6, ICMP6], ids=["udp4", "udp6", "icmp6"])
@pytest.mark.parametrize("kind", [*Segmentation, 0x81, 0x84, 0x20, 0x40])
def test_only_tcp_is_cut(frame: bytes, kind: int) -> None:
    assert allowed(frame, *FIELDS[frame], kind=kind, headers=0) == (kind == Segmentation.NONE)


def test_a_plain_packet_asks_for_nothing_whatever_else_its_header_says() -> None:
    for frame in (UDP4, arp(GATEWAY), b""):
        assert allowed(frame, 3, 4, flags=0, headers=0xFFFF)


def test_the_largest_packet_may_be_cut() -> None:
    start = HEADER.pack(NEEDS_CSUM, Segmentation.TCPV4, 54, 1400, 34, 16, 0) + TCP4[:FILTERED_BYTES]
    assert offload_allowed(start, MAX_PACKET, MTU, ALL_FEATURES)
    assert not offload_allowed(start, MAX_PACKET, MTU, int(NetFeature.CSUM))


def test_no_checksum_rewrites_what_the_filter_has_passed() -> None:
    """The kernel would write the sum over the rest of the frame to the IPv6 destination."""
    net = Net(
        GUEST_MAC,
        MTU,
        MemoryBackend(),
        PacketFilter(GUEST_MAC, [ip_interface(f"{GUEST}/16"), ip_interface(f"{GUEST6}/64")], [GATEWAY], [], []).may_leave,
        on_room=lambda: None,
        on_full=lambda: None,
    )
    driver = Driver(net)
    driver.start()
    for frame, start, offset in ((UDP6, 38, 0), (UDP4, 30, 0), (arp(GATEWAY), 28, 2)):
        driver.send(1, struct.pack("<BBHHHHH", 1, 0, 0, 0, start, offset, 0) + frame)
    assert isinstance(net._backend, MemoryBackend)
    assert not net._backend.sent
    assert driver.transport.misuse == {Misuse.PACKET: 3}
    driver.send(1, struct.pack("<BBHHHHH", 1, 0, 0, 0, 54, 6, 0) + UDP6)
    assert len(net._backend.sent) == 1


@pytest.mark.parametrize("frame", [TCP4, TCP6, UDP4, UDP6, with_byte(TCP4, 46, 0x80)], ids=["tcp4", "tcp6", "udp4", "udp6", "tcp options"])
@pytest.mark.parametrize("ports", [False, True])
def test_what_is_like_an_allowed_packet_is_allowed(frame: bytes, ports: bool) -> None:
    """Headers with something wrong here and there; from each that may leave, packets that differ as
    much as they may.
    """
    rng, kinds = random.Random(1), 0
    guard = PacketFilter(GUEST_MAC, [ip_interface(f"{GUEST}/16"), ip_interface(f"{GUEST6}/64")], [], [], [])
    if ports:
        guard.open_connection(40_000, GATEWAY, 80)
    own = frame[:30] + ip_address(GATEWAY).packed + frame[34:]  # the channel's connection

    def passes(packet: bytes | bytearray) -> bool:
        start = packet[: HEADER.size + FILTERED_BYTES]
        return offload_allowed(start, len(packet), MTU, ALL_FEATURES) and guard.may_leave(start[HEADER.size :])

    for _ in range(scaled(1500)):
        asks = rng.choice((0, 1)), rng.choice((0, KINDS.get(frame, 0))), rng.choice((0, 54, 200)), rng.choice((48, 1400))
        header = HEADER.pack(*asks, *FIELDS.get(frame, FIELDS[TCP4]), 0)
        packet = bytearray(header + rng.choice((frame, frame, own)))
        for _ in range(rng.choice((0, 1, 2))):
            packet[rng.randrange(min(80, len(packet)))] = rng.randrange(256)
        packet = packet[: rng.choice((len(packet), len(packet), rng.randint(MIN_PACKET, 150)))]
        like = likeness(memoryview(packet)[: HEADER.size + FILTERED_BYTES], ports=ports)
        if like is None or not passes(packet):
            continue
        mask, least = like
        kinds += 1
        for _ in range(10):
            other = rng.randbytes(rng.choice((least, least + 1, least + 2000, MAX_PACKET)))
            kept = bytes((new & ~bits) | (old & bits) for new, old, bits in zip(other, packet, mask, strict=False))
            assert passes(kept + other[len(kept) :])
    assert kinds > scaled(1500) / 10


def test_packets_as_one_before_are_not_looked_at_again_until_driver_or_filter_is_another() -> None:
    seen: list[bytes] = []
    backend = SocketBackend()

    def may_leave(frame: bytes | bytearray | memoryview) -> bool:
        seen.append(bytes(frame))
        return True

    net = Net(GUEST_MAC, MTU, backend, may_leave, on_room=lambda: None, on_full=lambda: None)
    with contextlib.closing(backend):
        driver = Driver(net)
        driver.start()
        for number, frames in enumerate([[TCP4], [TCP4, with_byte(TCP4, 40, 7)], [TCP4, TCP6], [TCP6, TCP4]]):
            for frame in frames:
                driver.queues[TRANSMIT].offer([Buffer(bytes(HEADER.size) + frame)])
            driver.kick(TRANSMIT)
            assert len(seen) == (1, 1, 3, 3)[number]
            driver.queues[TRANSMIT].used()
        assert [packet[HEADER.size :] for packet in backend.sent] == [TCP4, TCP4, with_byte(TCP4, 40, 7), TCP4, TCP6, TCP6, TCP4]
        for change in (driver.start, net.look_at_ports):
            change()
            seen.clear()
            for count, frame in enumerate((TCP6, TCP4), 1):  # another order: those from before are in no place
                driver.queues[TRANSMIT].offer([Buffer(bytes(HEADER.size) + frame)])
                driver.kick(TRANSMIT)
                driver.queues[TRANSMIT].used()
                assert len(seen) == count


def test_packets_that_are_looked_at_again_put_no_others_out_of_mind() -> None:
    """As those are that come beside one which is not known."""
    seen: list[bytes] = []
    backend = SocketBackend()

    def may_leave(frame: bytes | bytearray | memoryview) -> bool:
        seen.append(bytes(frame[:60]))
        return True

    net = Net(GUEST_MAC, MTU, backend, may_leave, on_room=lambda: None, on_full=lambda: None)
    with contextlib.closing(backend):
        driver = Driver(net)
        driver.start()
        for frames in ([TCP6], *[[TCP4, arp(GATEWAY)]] * 100, [TCP6]):
            for frame in frames:
                driver.queues[TRANSMIT].offer([Buffer(bytes(HEADER.size) + frame)])
            driver.kick(TRANSMIT)
            driver.queues[TRANSMIT].used()
        assert (seen.count(TCP6[:60]), seen.count(TCP4[:60])) == (1, 100)
