"""The header of a net device's packets (virtio 1.2, 5.1.6), and the check of what it asks for.

A guest's header has the host's kernel write a checksum into the frame, or cut it into segments,
after the packet filter has passed it. So it must name exactly the checksum field of the transport
header that the filter saw, and segments that the kernel cuts along that header.
"""

import struct
from enum import IntEnum

from mayfly.vmm.kvm.chains import LIKE

HEADER = struct.Struct("<BBHHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers (VERSION_1: always)."""
NEEDS_CSUM = 1  # A flag (virtio 1.2, 5.1.6)
NUM_BUFFERS = slice(10, 12)  # In the header: how many chains a packet takes
ETHERNET_BYTES = 14
MIN_PACKET = HEADER.size + ETHERNET_BYTES
MAX_PACKET = MIN_PACKET + 0xFFFF
"""With segmentation offload a frame holds a whole IP packet of 64 KiB."""
MIN_SEGMENT = 48
"""Bytes of TCP payload. Linux uses no less (tcp_min_snd_mss), and tiny ones flood the host."""


class NetFeature:
    """virtio 1.2, 5.1.3. Plain numbers: an operation on an IntFlag takes fifty times as long."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16


class Segmentation(IntEnum):
    """Kinds of segmentation offload, `gso_type` of a header (virtio 1.2, 5.1.6)."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4


NEEDED: dict[int, int] = {
    Segmentation.NONE: 0,
    Segmentation.TCPV4: NetFeature.HOST_TSO4 | NetFeature.CSUM,
    Segmentation.TCPV6: NetFeature.HOST_TSO6 | NetFeature.CSUM,
}
"""Features that a driver must have negotiated to send such packets (virtio 1.2, 5.1.6.2.1)."""

_IP = struct.Struct("!12xHB5xHxB")
"""Behind the Ethernet addresses: type, then IPv4's version, fragment and protocol (RFC 791)."""
_IPV4, _IPV6 = 0x0800, 0x86DD
_IPV4_WITHOUT_OPTIONS = 0x45
_FRAGMENTED = 0x3FFF  # More fragments follow, or this is not the first one (RFC 791)
_TCP, _UDP = 6, 17
_CHECKSUM = {_TCP: 16, _UDP: 6, 58: 2}
"""Where the checksum is in headers of TCP (RFC 9293, 3.1), UDP (RFC 768), ICMPv6 (RFC 4443)."""
_TCP_BYTES = 20
_IPV4_END, _IPV6_END = 34, 54  # Where the transport header is
_SEGMENTED: dict[int, int] = {Segmentation.TCPV4: _IPV4_END, Segmentation.TCPV6: _IPV6_END}


def offload_allowed(start: bytes | bytearray | memoryview, size: int, mtu: int, negotiated: int) -> bool:
    """Whether the host's kernel may do what a packet of `size` bytes with such headers asks for."""
    flags, kind, header_bytes, segment, checksum_start, checksum_offset, _ = HEADER.unpack_from(start)
    if not flags and not kind:
        return True
    needed = NEEDED.get(kind)
    if not flags & NEEDS_CSUM or not negotiated & NetFeature.CSUM or needed is None or needed & ~negotiated:
        return False
    transport, protocol = _transport(start)
    frame_bytes, seen = size - HEADER.size, len(start) - HEADER.size
    if checksum_start != transport or checksum_offset != _CHECKSUM.get(protocol) or header_bytes > frame_bytes:
        return False
    if not kind:
        return bool(transport + checksum_offset + 2 <= seen)
    if protocol != _TCP or transport != _SEGMENTED[kind] or transport + _TCP_BYTES > seen:
        return False
    tcp_bytes = 4 * (start[HEADER.size + transport + 12] >> 4)
    largest = mtu - (transport - ETHERNET_BYTES) - _TCP_BYTES
    return transport + tcp_bytes <= frame_bytes and tcp_bytes >= _TCP_BYTES and bool(MIN_SEGMENT <= segment <= largest)


def _transport(start: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Offset and protocol of the transport header as the filter sees it; (0, -1) for none.

    The filter drops options, extension headers and VLAN tags, and fragments are left alone.
    """
    seen = len(start) - HEADER.size
    if seen < _IPV4_END:
        return 0, -1
    kind, version, fragment, protocol = _IP.unpack_from(start, HEADER.size)
    if kind == _IPV4 and version == _IPV4_WITHOUT_OPTIONS:
        return (0, -1) if fragment & _FRAGMENTED else (_IPV4_END, protocol)
    return (_IPV6_END, fragment >> 8) if kind == _IPV6 and seen >= _IPV6_END else (0, -1)  # at IPv4's fragment: the next header


def likeness(start: memoryview, *, ports: bool) -> tuple[bytes, int] | None:
    """What makes another packet as allowed as this one is, by offloads and filter, if that can be
    told: the same bits, of those that a mask has, and at least so many bytes. With `ports` the
    filter looks at these too.
    """
    mask = (_LIKENESS_WITH_PORTS if ports else _LIKENESS).get(_transport(start))
    if mask is None or len(start) < len(mask):
        return None
    _, _, header_bytes, *_ = HEADER.unpack_from(start)
    return mask.ljust(LIKE, b"\0"), max(len(start), HEADER.size + header_bytes)


def _mask(*varying: slice, known: int) -> bytes:
    """All bits of the first `known` bytes of a frame and of the header before it, but `varying`."""
    mask = bytearray(b"\xff" * known)
    for part in varying:
        mask[part] = bytes(len(mask[part]))
    return b"\xff" * HEADER.size + bytes(mask)


_IPV4_VARIES = slice(16, 20), slice(24, 26)  # length and identification, checksum (RFC 791)
_IPV6_VARIES = slice(15, 20)  # half of the traffic class, flow label, length (RFC 8200)


def _likeness(ports: int) -> dict[tuple[int, int], bytes]:
    """Of packets whose first `ports` bytes of the transport header count, by `_transport`.

    Up to TCP's data offset, without its numbers, or up to UDP's ports. No check looks at what is
    behind these, nor at the fields that vary from packet to packet.
    """
    return {
        (_IPV4_END, _TCP): _mask(*_IPV4_VARIES, slice(_IPV4_END + ports, _IPV4_END + 12), known=_IPV4_END + 13),
        (_IPV4_END, _UDP): _mask(*_IPV4_VARIES, known=_IPV4_END + ports),
        (_IPV6_END, _TCP): _mask(_IPV6_VARIES, slice(_IPV6_END + ports, _IPV6_END + 12), known=_IPV6_END + 13),
        (_IPV6_END, _UDP): _mask(_IPV6_VARIES, known=_IPV6_END + ports),
    }


_LIKENESS, _LIKENESS_WITH_PORTS = _likeness(0), _likeness(4)
