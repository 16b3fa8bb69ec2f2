"""The packet filter: what a guest may send, rule by rule, and what it may not, attack by attack."""

import struct
from ipaddress import ip_interface

import pytest

from mayfly.vmm.network.filter import PacketFilter, destinations
from tests.kit.net_kit import (
    BROADCAST,
    GATEWAY,
    GATEWAY6,
    GUEST,
    GUEST6,
    GUEST_MAC,
    HOST_MAC,
    PUBLIC,
    PUBLIC6,
    SIBLING,
    SIBLING6,
    arp,
    discovery,
    ethernet,
    ipv4,
    ipv6,
    packed,
)

HOST_PUBLIC = "95.216.1.1"
OWN = [ip_interface(f"{GUEST}/16"), ip_interface(f"{GUEST6}/64")]
SOURCE_MAC, TARGET_MAC = b"\x01\x01" + GUEST_MAC, b"\x02\x01" + GUEST_MAC
LINK_LOCAL = "fe80::ff:fe00:5"
SOLICITED_NODE = "ff02::1:ff00:1"


def make_filter(*allowed: str) -> PacketFilter:
    return PacketFilter(GUEST_MAC, OWN, [GATEWAY, GATEWAY6], allowed, [HOST_PUBLIC, "10.1.2.3", "2a01::1"])


def v4(destination: str, **fields: object) -> bytes:
    return ethernet(0x800, ipv4(destination, **fields))  # type: ignore[arg-type]


def v6(destination: str, **fields: object) -> bytes:
    return ethernet(0x86DD, ipv6(destination, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frame",
    [
        v4(PUBLIC),
        v4(PUBLIC, protocol=6),
        v4(PUBLIC, protocol=1),
        v6(PUBLIC6),
        v6(PUBLIC6, following=58, payload=b"\x80" + bytes(7)),
        v6(PUBLIC6, following=44, payload=b"\x06" + bytes(7)),
        arp(GATEWAY),
        arp(GATEWAY, destination=HOST_MAC),
        arp(SIBLING, operation=2, destination=HOST_MAC),
        discovery(135, GATEWAY6, option=SOURCE_MAC, destination=SOLICITED_NODE),
        discovery(135, GATEWAY6, option=SOURCE_MAC, source=LINK_LOCAL),
        discovery(136, GUEST6, option=TARGET_MAC, destination="fe80::1"),
        discovery(136, LINK_LOCAL, option=b""),
    ],
    ids=lambda frame: frame[12:].hex()[:60],
)
def test_what_a_guest_needs_leaves(frame: bytes) -> None:
    assert make_filter().may_leave(frame)


INTERNAL = [
    "0.0.0.0",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
INTERNAL += [GATEWAY, SIBLING, "10.87.255.255", HOST_PUBLIC]
INTERNAL6 = [
    "::",
    "::1",
    "::ffff:10.0.0.1",
    "::ffff:93.184.215.14",
    "64:ff9b::a00:1",
    "100::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "2001::1",
    "2001:db8::1",
    "2002:a00:1::1",
    "3fff::1",
    "2a01::1",
]
INTERNAL6 += [GATEWAY6, SIBLING6]


@pytest.mark.parametrize("address", INTERNAL)
def test_no_internal_address_is_reached(address: str) -> None:
    assert not make_filter().may_leave(v4(address))


@pytest.mark.parametrize("address", INTERNAL6)
def test_no_internal_address_is_reached_by_ipv6(address: str) -> None:
    assert not make_filter().may_leave(v6(address))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        bytes(13),
        ethernet(0x800, b""),
        ethernet(0x800, ipv4(PUBLIC)[:19]),
        ethernet(0x86DD, ipv6(PUBLIC6)[:39]),
        ethernet(0x86DD, ipv6(PUBLIC6, b"")),
        ethernet(0x806, bytes(27)),
    ],
)
def test_a_frame_that_is_cut_short_is_dropped(frame: bytes) -> None:
    assert not make_filter().may_leave(frame)


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(0x800, ipv4(PUBLIC), source=HOST_MAC),
        v4(PUBLIC, source=SIBLING),
        v4(PUBLIC, source="0.0.0.0"),
        v6(PUBLIC6, source=SIBLING6),
        v6(PUBLIC6, source="::"),
        v6(PUBLIC6, source=LINK_LOCAL),
        arp(GATEWAY, mac=HOST_MAC),
        arp(GATEWAY, sender=GATEWAY),
        arp(GATEWAY, operation=2, sender=GATEWAY),
        arp(GATEWAY, sender="0.0.0.0"),
        discovery(135, GATEWAY6, option=b"\x01\x01" + HOST_MAC),
        discovery(135, GATEWAY6, option=SOURCE_MAC, source=SIBLING6),
        discovery(136, GATEWAY6, option=TARGET_MAC),
        discovery(136, GUEST6, option=b"\x02\x01" + HOST_MAC),
    ],
    ids=lambda frame: frame[6:].hex()[:60],
)
def test_a_false_sender_is_dropped(frame: bytes) -> None:
    assert not make_filter().may_leave(frame)


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(0x800, ipv4("255.255.255.255", source="0.0.0.0"), destination=BROADCAST),  # DHCP
        ethernet(0x800, ipv4(PUBLIC), destination=BROADCAST),
        ethernet(0x800, ipv4(PUBLIC), destination=b"\x01\x00\x5e\0\0\1"),
        ethernet(0x86DD, ipv6(PUBLIC6), destination=b"\x33\x33\0\0\0\1"),
        arp(SIBLING),
        arp(GATEWAY, operation=3),
        discovery(133, GATEWAY6, option=SOURCE_MAC),  # router solicitation
        discovery(134, GUEST6, option=SOURCE_MAC),  # "I am a router"
        discovery(137, PUBLIC6, option=b""),  # "go to another router"
        discovery(135, SIBLING6, option=SOURCE_MAC),
        discovery(135, GATEWAY6, option=SOURCE_MAC + b"and some text"),
        ethernet(0x8100, b"\0\1\x08\0" + ipv4(PUBLIC)),  # VLAN
        ethernet(0x88A8, b"\0\1\x81\0\0\1\x08\0" + ipv4(PUBLIC)),
        ethernet(0x0026, bytes(46)),  # a length: LLC, spanning tree
        ethernet(0x88CC, bytes(46)),
        ethernet(0x8864, bytes(46)),
        v4(PUBLIC, version=0x46),  # options: a source route
        v4(PUBLIC, version=0x65),
        v4(PUBLIC, protocol=4),  # IP in IP
        v4(PUBLIC, protocol=41),  # IPv6 in IP
        v4(PUBLIC, protocol=47),
        v4(PUBLIC, protocol=2),
        v6(PUBLIC6, following=43),  # a route
        v6(PUBLIC6, following=0),
        v6(PUBLIC6, following=60),
        v6(PUBLIC6, following=4),
        v6(PUBLIC6, following=44, payload=b"\x2b" + bytes(7)),
        v6(GATEWAY6, following=44, payload=b"\x3a" + bytes(7)),
    ],
    ids=lambda frame: frame.hex()[:70],
)
def test_what_leads_around_the_rules_is_dropped(frame: bytes) -> None:
    assert not make_filter().may_leave(frame)


def test_what_the_operator_allows_is_reached_and_nothing_beside_it() -> None:
    opened = make_filter("192.168.7.0/24", GATEWAY, "fd12::/16")
    assert opened.may_leave(v4("192.168.7.9"))
    assert opened.may_leave(v4(GATEWAY))
    assert opened.may_leave(v6("fd12::1"))
    assert not opened.may_leave(v4("192.168.8.9"))
    assert not opened.may_leave(v4(SIBLING))
    assert not opened.may_leave(v6("fd13::1"))


def test_the_most_special_network_decides() -> None:
    """Who allows 10.0.0.0/8 has not allowed the host's own address in it, nor the guest's siblings;
    who names them has.
    """
    opened = make_filter("10.0.0.0/8")
    assert opened.may_leave(v4("10.9.9.9"))
    assert not opened.may_leave(v4("10.1.2.3"))
    assert not opened.may_leave(v4(SIBLING))
    named = make_filter("10.0.0.0/8", "10.1.2.3", SIBLING)
    assert named.may_leave(v4("10.1.2.3"))
    assert named.may_leave(v4(SIBLING))
    assert named.may_leave(arp(SIBLING))


def test_the_hosts_own_connection_and_nothing_beside_it() -> None:
    packet_filter = make_filter()

    def tcp(port: int, host: str, host_port: int, fragment: int = 0, protocol: int = 6) -> bytes:
        segment = struct.pack("!HH", port, host_port) + bytes(16)
        packet = bytearray(ipv4(host, segment, protocol=protocol))
        packet[6:8] = struct.pack("!H", fragment)
        return ethernet(0x800, bytes(packet))

    ours = tcp(1023, GATEWAY, 40_000)
    assert not packet_filter.may_leave(ours)
    assert not packet_filter.may_leave(arp("10.87.3.3"))
    packet_filter.open_connection(1023, "10.87.3.3", 40_000)
    assert packet_filter.may_leave(arp("10.87.3.3"))
    packet_filter.open_connection(1023, GATEWAY, 40_000)
    assert packet_filter.may_leave(ours)
    assert packet_filter.may_leave(tcp(1023, GATEWAY, 40_000, fragment=0x4000))  # "do not fragment"
    for other in (
        tcp(1022, GATEWAY, 40_000),
        tcp(1023, GATEWAY, 22),
        tcp(1023, SIBLING, 40_000),
        tcp(1023, GATEWAY, 40_000, protocol=17),
        tcp(1023, GATEWAY, 40_000, fragment=0x2000),
        tcp(1023, GATEWAY, 40_000, fragment=1),
        ours[:37],
    ):
        assert not packet_filter.may_leave(other)


def test_a_guest_is_reached_by_its_mac_by_broadcasts_and_by_its_own_groups() -> None:
    asked = [b"\x33\x33\xff" + end for end in (b"\0\0\5", b"\x12\x12\x34")]
    addresses = [ip_interface(f"{GUEST}/16"), ip_interface("fd00:87::77:12:1234/64")]
    assert destinations(GUEST_MAC, addresses) == [GUEST_MAC, BROADCAST, b"\x33\x33\0\0\0\1", *asked]
    assert destinations(GUEST_MAC, []) == [GUEST_MAC, BROADCAST, b"\x33\x33\0\0\0\1", asked[0]]


def test_verdicts_are_remembered_and_bounded() -> None:
    packet_filter = make_filter()
    for number in range(5000):
        assert packet_filter.allows(packed(PUBLIC)[:2] + number.to_bytes(2, "big"))
    assert len(packet_filter._verdicts) <= 1024
