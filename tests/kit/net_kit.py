"""Frames as a guest and its network send them, a network in memory, and a network namespace for
tests with real interfaces.
"""

import contextlib
import ctypes
import os
import select
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Self

import pytest

from mayfly.vmm.devices.virtio.net import Backend, Net
from mayfly.vmm.devices.virtio.packet import HEADER, NetFeature
from mayfly.vmm.eventloop import eventfd
from mayfly.vmm.kvm.chains import Batch
from tests.kit.scale import patience
from tests.kit.virtio_driver import Driver

UP_DEADLINE_S = patience(5)

GUEST_MAC = bytes.fromhex("020000000005")
HOST_MAC = bytes.fromhex("020000000001")
BROADCAST = b"\xff" * 6
GUEST, GATEWAY, SIBLING = "10.87.0.5", "10.87.0.1", "10.87.0.6"
GUEST6, GATEWAY6, SIBLING6 = "fd00:87::5", "fd00:87::1", "fd00:87::6"
PUBLIC, PUBLIC6 = "93.184.215.14", "2606:2800:220:1::5"
CLONE_NEWNET = 0x4000_0000
PLAIN_HEADER = bytes(HEADER.size)


def ethernet(kind: int, payload: bytes, *, source: bytes = GUEST_MAC, destination: bytes = HOST_MAC) -> bytes:
    return destination + source + struct.pack("!H", kind) + payload


def ipv4(destination: str, payload: bytes = b"", *, source: str = GUEST, protocol: int = 17, version: int = 0x45) -> bytes:
    """A packet with a checksum that is right."""
    head = struct.pack("!BBHHHBBH", version, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + packed(source) + packed(destination)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(destination: str, payload: bytes = b"\0" * 8, *, source: str = GUEST6, following: int = 17) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 64) + packed(source) + packed(destination) + payload


def udp(data: bytes, source: int = 40_000, destination: int = 2000) -> bytes:
    """Without a checksum, which IPv4 allows. The source is no privileged port: passt takes the same
    one on the host.
    """
    return struct.pack("!HHHH", source, destination, 8 + len(data), 0) + data


def tcp(data: bytes) -> bytes:
    """A segment with a header of 20 bytes, without a checksum."""
    return struct.pack("!HHIIHHHH", 40_000, 80, 1, 1, 5 << 12 | 0x10, 1000, 0, 0) + data


def arp(target: str, *, operation: int = 1, mac: bytes = GUEST_MAC, sender: str = GUEST, destination: bytes = BROADCAST) -> bytes:
    body = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, operation, mac, packed(sender), bytes(6), packed(target))
    return ethernet(0x806, body, destination=destination)


def discovery(kind: int, target: str, *, option: bytes, source: str = GUEST6, destination: str = GATEWAY6) -> bytes:
    message = struct.pack("!BBHI", kind, 0, 0, 0) + packed(target) + option
    return ethernet(0x86DD, ipv6(destination, message, source=source, following=58))


def packed(address: str) -> bytes:
    return ip_address(address).packed


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


class MemoryBackend(Backend):
    """A back end whose network is two lists. `room` packets may be sent until the test gives
    more.
    """

    offloads = int(NetFeature.CSUM | NetFeature.GUEST_CSUM | NetFeature.HOST_TSO4 | NetFeature.GUEST_TSO4)

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.waiting: deque[bytes] = deque()
        self.room = 1 << 30
        self.gone = False
        self.negotiated = 0

    def make_room(self) -> bool:
        return self.room > 0

    def set_offloads(self, negotiated: int) -> None:
        self.negotiated = negotiated

    def send(self, packets: Batch, packet: int) -> None:
        assert self.room
        self.room -= 1
        self.sent.append(bytes(packets.join(packet)))

    def receive(self, buffers: Batch) -> int:
        if self.waiting:
            return buffers.fill(self.waiting.popleft())
        if self.gone:
            raise EOFError
        return 0


class SocketBackend(Backend):
    """A back end as a tap is one: its network is the other end of a socket pair."""

    offloads = MemoryBackend.offloads

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.plain_fd = self._ours.fileno()
        self.waiting = _Waiting(theirs, self._ours)
        self.received: list[bytes] = []
        for end in (self._ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)

    @property
    def sent(self) -> list[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.received.append(self.waiting.end.recv(1 << 17))
        return self.received

    def send(self, packets: Batch, packet: int) -> None:
        packets.write(packet, self.plain_fd)

    def receive(self, buffers: Batch) -> int:
        return buffers.read(self.plain_fd)

    def close(self) -> None:
        self._ours.close()
        self.waiting.end.close()


class Wired:
    """The descriptors of a device over a SocketBackend, and an event loop's turns over these."""

    def __init__(self, driver: Driver, net: Net, network: SocketBackend) -> None:
        self.driver, self.net, self._tap = driver, net, network.plain_fd
        self.kicks, self.interrupt = (eventfd(), eventfd()), eventfd()
        self._epoll = select.epoll()
        for fd in self.kicks:
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._epoll.register(network.plain_fd, 0)
        net.pump.wire(self.kicks, self.interrupt)

    def interrupted(self) -> int:
        """How often the driver was interrupted from C since the last call."""
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self.interrupt)
        return 0

    def turn(self) -> int:
        """Pass kicks on, and do what is left for Python; how many events these were."""
        for index in self.driver.pending:
            os.eventfd_write(self.kicks[index], 1)
        self.driver.pending.clear()
        left = self.net.pump.wait(self._epoll.fileno(), 0)
        for fd, _ in left:
            if fd in self.kicks:
                self.driver.transport.notify(self.kicks.index(fd))
            else:
                self.net.receive()
        self._epoll.modify(self._tap, 0 if self.net._starved else select.EPOLLIN)
        return len(left)

    def close(self) -> None:
        self._epoll.close()
        for fd in (*self.kicks, self.interrupt):
            os.close(fd)


class _Waiting:
    """Packets for the guest. True: there are some."""

    def __init__(self, end: socket.socket, other: socket.socket) -> None:
        self.end, self._other = end, other

    def append(self, packet: bytes) -> None:
        self.end.send(packet)

    def __iadd__(self, packets: Iterable[bytes]) -> Self:
        for packet in packets:
            self.append(packet)
        return self

    def __bool__(self) -> bool:
        return bool(select.select([self._other], [], [], 0)[0])


def ip(*words: str) -> str:
    """The command `ip`; what it prints."""
    return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def add_bridge(name: str) -> None:
    """A bridge; where the kernel has none, as in an emulated host, the test is skipped."""
    made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=False, stderr=subprocess.PIPE, text=True)
    if "Unknown device type" in made.stderr:
        pytest.skip("this kernel has no bridges: its module bridge is neither loaded nor to be found")
    assert not made.returncode, made.stderr


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """This thread, and what it starts, in a network namespace of its own, which has nothing but
    loopback. Needs root.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            ip("link", "set", "lo", "up")
            yield
        finally:
            assert libc.setns(before, CLONE_NEWNET) == 0
    finally:
        os.close(before)


def make_tap(name: str, address: str, *owner: str) -> None:
    """An interface that is up, with the host's address. Without IPv6, which would talk on its
    own.
    """
    ip("tuntap", "add", "dev", name, "mode", "tap", *owner)
    ip("link", "set", name, "addrgenmode", "none")
    ip("address", "add", address, "dev", name)
    ip("link", "set", name, "up")


def wait_until_up(name: str) -> None:
    """Wait until the kernel sends through the tap, which somebody has just opened: until then it
    drops what it is given, in silence.
    """
    until = time.monotonic() + UP_DEADLINE_S
    while "state UP" not in ip("-o", "link", "show", "dev", name):
        assert time.monotonic() < until, f"{name} does not come up"


def packet_socket(name: str) -> socket.socket:
    """Every frame that the interface shows to the host."""
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sniffer.bind((name, 0))
    sniffer.settimeout(5)
    return sniffer
