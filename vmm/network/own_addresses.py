"""The host's own IP addresses (rtnetlink(7))."""

import socket
import struct

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port: nlmsghdr (netlink(7))
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface: ifaddrmsg
_ATTRIBUTE = struct.Struct("=HH")  # length, type: rtattr
_DONE, _ERROR, _GET_ADDRESS = 3, 2, 22
_REQUEST_DUMP = 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_BUFFER = 1 << 16


def addresses() -> set[str]:
    """All addresses in this network namespace. Raises OSError: the kernel does not tell."""
    found: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + _ADDRESS.size, _GET_ADDRESS, _REQUEST_DUMP, 1, 0) + _ADDRESS.pack(0, 0, 0, 0, 0))
        while True:
            data = netlink.recv(_BUFFER)
            while data:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    raise OSError("RTM_GETADDR was refused")
                found |= _addresses_of(data[_HEADER.size : length])
                data = data[-(-length // 4) * 4 :]


def _addresses_of(message: bytes) -> set[str]:
    """The address in one answer: the local one of a point-to-point interface, not its peer's."""
    family = message[0]
    attributes = message[_ADDRESS.size :]
    by_kind: dict[int, bytes] = {}
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        by_kind[kind] = attributes[_ATTRIBUTE.size : length]
        attributes = attributes[-(-length // 4) * 4 :]
    packed = by_kind.get(_IFA_LOCAL, by_kind.get(_IFA_ADDRESS))
    return {socket.inet_ntop(family, packed)} if packed else set()
