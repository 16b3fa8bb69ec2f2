"""The host's own IP addresses (rtnetlink(7))."""

import socket
import struct
from collections.abc import Iterator

from mayfly.errors import NetworkError

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port: nlmsghdr (netlink(7))
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface: ifaddrmsg
_ATTRIBUTE = struct.Struct("=HH")  # length, type: rtattr
_DONE, _ERROR, _GET_ADDRESS = 3, 2, 22
_REQUEST_DUMP = 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_BUFFER = 1 << 16


def addresses() -> set[str]:
    """All addresses in this network namespace.

    Raises:
        NetworkError: the kernel does not tell.
    """
    try:
        return _ask()
    except OSError as error:
        raise NetworkError(f"this host's addresses cannot be listed: {error}", hint="the packet filter needs them") from error


def _ask() -> set[str]:
    found: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + _ADDRESS.size, _GET_ADDRESS, _REQUEST_DUMP, 1, 0) + _ADDRESS.pack(0, 0, 0, 0, 0))
        while True:
            for kind, message in _items(netlink.recv(_BUFFER), _HEADER):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    raise OSError("RTM_GETADDR was refused")
                attributes = dict(_items(message[_ADDRESS.size :], _ATTRIBUTE))
                # The local address of a point-to-point interface, not its peer's.
                if packed := attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS)):
                    found.add(socket.inet_ntop(message[0], packed))


def _items(data: bytes, header: struct.Struct) -> Iterator[tuple[int, bytes]]:
    """Type and content of each message or attribute: a length, a type, and padding to 4 bytes."""
    while len(data) >= header.size:
        length, kind, *_ = header.unpack_from(data)
        yield kind, data[header.size : length]
        data = data[-(-length // 4) * 4 :]
