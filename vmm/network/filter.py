"""The packet filter of a machine's network: what its guest may send. Pure: bytes in, verdict out.

A guest may send, each with its own MAC and IP address as the source:
- ARP, and IPv6 neighbour solicitations and advertisements, so that it and its gateway find each
  other;
- TCP, UDP, ICMP to addresses that the rules allow: by default the public Internet only;
- the one TCP connection that the host has opened for its channel, if that goes over the network.

All else is dropped: other protocols, broadcasts and multicasts (so DHCP too: addresses are assigned
from outside), and what could carry a packet elsewhere, such as tunnels and source routes.
"""

import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from mayfly.internet import INTERNAL, INTERNET

IpNetwork: TypeAlias = IPv4Network | IPv6Network
Interface: TypeAlias = IPv4Interface | IPv6Interface

ETHERNET = struct.Struct("!6s6sH")  # destination, source, type
ARP_TYPE, IPV4_TYPE, IPV6_TYPE = 0x0806, 0x0800, 0x86DD
ARP = struct.Struct("!HHBBH6s4s6s4s")
"""hardware, protocol, their lengths, operation, sender's MAC and IP, target's (RFC 826)."""
ARP_ETHERNET_IPV4 = (1, IPV4_TYPE, 6, 4)
ARP_REQUEST, ARP_REPLY = 1, 2
_IPV4 = struct.Struct("!6s6sHB5xHxB2x4s4s")
"""Ethernet's header, then version, fragment, protocol, source, destination (RFC 791)."""
_FRAGMENTED = 0x3FFF  # More fragments follow, or this is not the first one
_PORTS = struct.Struct("!HH")  # source, destination (RFC 9293, 3.1)
_IPV4_WITHOUT_OPTIONS = 0x45
_IPV6 = struct.Struct("!B5xBx16s16s")
"""version and part of the traffic class, next header, source, destination (RFC 8200)."""
_TCP, _UDP, _ICMP, _ICMPV6, _FRAGMENT = 6, 17, 1, 58, 44
_IPV4_PROTOCOLS = (_TCP, _UDP, _ICMP)
_IPV6_PROTOCOLS = (_TCP, _UDP, _ICMPV6)
_SOLICITATION, _ADVERTISEMENT = 135, 136
_DISCOVERY = range(133, 138)  # Neighbour discovery, redirects among it (RFC 4861, 4)
_NEIGHBOUR = struct.Struct("!B7x16s")  # type, target; options follow (RFC 4861, 4.3 and 4.4)
_OWN_LINK_LAYER = {_SOLICITATION: 1, _ADVERTISEMENT: 2}
"""The option that such a message may have: its sender's MAC (RFC 4861, 4.6.1)."""

BROADCAST = b"\xff" * 6
_ALL_NODES, _SOLICITED = b"\x33\x33\0\0\0\1", b"\x33\x33\xff"
"""IPv6's groups in Ethernet (RFC 2464, 7); the second precedes an address's last 3 bytes."""
_VERDICTS = 1024  # Addresses whose verdict is remembered; more of them are only computed again


class PacketFilter:
    """The filter of one machine. The most specific network decides, an allowed one before a denied.

    `addresses` are the guest's own, with their networks, whose hosts (its siblings) are denied, as
    are `denied` besides the internal ones. It may ask the MACs of `gateways`.
    """

    def __init__(
        self, mac: bytes, addresses: Sequence[Interface], gateways: Iterable[str], allowed: Iterable[str], denied: Iterable[str]
    ) -> None:
        self._mac = mac
        self._own = frozenset(address.ip.packed for address in addresses)
        self._discoverable = self._own | {_link_local(mac)}
        self._neighbours = frozenset(ip_network(text).network_address.packed for text in gateways)
        open_networks = [*INTERNET, *map(ip_network, allowed)]
        closed_networks = [*INTERNAL, *(address.network for address in addresses), *map(ip_network, denied)]
        rules: list[tuple[IpNetwork, bool]] = [(network, True) for network in open_networks]
        rules += [(network, False) for network in closed_networks]
        rules.sort(key=lambda rule: (rule[0].prefixlen, rule[1]), reverse=True)
        self._rules = [(len(n.network_address.packed), int(n.network_address), int(n.netmask), verdict) for n, verdict in rules]
        self._verdicts: dict[bytes, bool] = {}
        self._connection: tuple[bytes, int, int] | None = None

    def open_connection(self, port: int, host: str, host_port: int) -> None:
        """Let the guest's `port` talk TCP with `host_port` of the IPv4 address `host`."""
        self._connection = ip_address(host).packed, port, host_port
        self._neighbours |= {ip_address(host).packed}

    def may_leave(self, frame: bytes | bytearray | memoryview) -> bool:
        """Whether the guest may send it."""
        if len(frame) < _IPV4.size:  # no frame of the other kinds is that short either
            return False
        destination, source, kind, version, fragment, protocol, sender, target = _IPV4.unpack_from(frame)
        if source != self._mac:
            return False
        if kind == IPV4_TYPE:
            if version != _IPV4_WITHOUT_OPTIONS or protocol not in _IPV4_PROTOCOLS or sender not in self._own or destination[0] & 1:
                return False
            return self.allows(target) or self._of_connection(frame, protocol, fragment, target)
        if kind == IPV6_TYPE:
            return self._ipv6(frame[ETHERNET.size :], to_group=bool(destination[0] & 1))
        return kind == ARP_TYPE and self._arp(frame[ETHERNET.size :])

    def allows(self, address: bytes) -> bool:
        """Whether the guest may send to this IP address, of 4 or 16 bytes."""
        verdict = self._verdicts.get(address)
        if verdict is None:
            size, number = len(address), int.from_bytes(address, "big")
            verdict = next((v for length, network, mask, v in self._rules if length == size and number & mask == network), False)
            if len(self._verdicts) >= _VERDICTS:
                self._verdicts.clear()
            self._verdicts[address] = verdict
        return verdict

    def _arp(self, packet: bytes | bytearray | memoryview) -> bool:
        if len(packet) < ARP.size:
            return False
        hardware, protocol, hardware_size, protocol_size, operation, mac, sender, _, target = ARP.unpack_from(packet)
        if (hardware, protocol, hardware_size, protocol_size) != ARP_ETHERNET_IPV4 or operation not in (ARP_REQUEST, ARP_REPLY):
            return False
        return mac == self._mac and sender in self._own and (operation == ARP_REPLY or target in self._neighbours or self.allows(target))

    def _of_connection(self, frame: bytes | bytearray | memoryview, protocol: int, fragment: int, target: bytes) -> bool:
        if self._connection is None or protocol != _TCP or fragment & _FRAGMENTED or len(frame) < _IPV4.size + _PORTS.size:
            return False
        return self._connection == (target, *_PORTS.unpack_from(frame, _IPV4.size))

    def _ipv6(self, packet: bytes | bytearray | memoryview, *, to_group: bool) -> bool:
        if len(packet) < _IPV6.size:
            return False
        version, following, source, destination = _IPV6.unpack_from(packet)
        body = packet[_IPV6.size :]
        if version >> 4 != 6 or not body:
            return False
        if following == _ICMPV6 and body[0] in _DISCOVERY:
            return source in self._discoverable and self._discovery(body)
        if following == _FRAGMENT:
            following = body[0]
            # Fragments would hide discovery; its messages are never that long (RFC 6980).
            if following == _ICMPV6:
                return False
        return source in self._own and following in _IPV6_PROTOCOLS and not to_group and self.allows(destination)

    def _discovery(self, message: bytes | bytearray | memoryview) -> bool:
        """A question for a gateway's MAC, or the answer to one for the guest's."""
        if len(message) < _NEIGHBOUR.size:
            return False
        kind, target = _NEIGHBOUR.unpack_from(message)
        if kind not in _OWN_LINK_LAYER:
            return False
        option = bytes(message[_NEIGHBOUR.size :])
        if option and option != bytes((_OWN_LINK_LAYER[kind], 1)) + self._mac:
            return False
        return target in self._discoverable if kind == _ADVERTISEMENT else target in self._neighbours or self.allows(target)


def destinations(mac: bytes, addresses: Iterable[Interface]) -> list[bytes]:
    """MACs of frames for a guest: its own, broadcast, IPv6's groups for it (RFC 4291, 2.8)."""
    discoverable = [_link_local(mac), *(address.ip.packed for address in addresses if address.version == 6)]
    return [mac, BROADCAST, _ALL_NODES, *sorted({_SOLICITED + address[-3:] for address in discoverable})]


def _link_local(mac: bytes) -> bytes:
    """The link-local address that Linux makes of it (RFC 4291, appendix A) and asks from."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
