"""passt as a back end: a process that turns frames into its user's sockets (passt(1)).

Frames go over a stream socket, each behind its length (4 bytes, big endian). passt holds the other
end of our socket pair, and ends when ours is closed, however this process ends.
"""

import contextlib
import io
import os
import signal
import socket
import struct
from ipaddress import ip_interface
from typing import Any

from mayfly.errors import NetworkError
from mayfly.vmm.config import CHANNEL_PORT, PASST_UIDS, NetworkConfig
from mayfly.vmm.devices.virtio.net import Backend
from mayfly.vmm.devices.virtio.packet import ETHERNET_BYTES, HEADER
from mayfly.vmm.eventloop import READ, EventLoop
from mayfly.vmm.kvm.chains import Batch
from mayfly.vmm.network.filter import ARP, ARP_ETHERNET_IPV4, ARP_REQUEST, ARP_TYPE, BROADCAST, ETHERNET

PROGRAM = "passt"
LOOPBACK = "127.0.0.1"
START_S = 10.0  # It takes some 30 ms; much longer where processors are emulated
BUFFER = 4 << 20
"""Bytes under way to the guest. passt drops what does not fit, and resends it much later: with the
usual 208 KiB, throughput falls to some 3 MB/s.
"""
FIRST_UID, _ = PASST_UIDS
"""User and group ids of root's: this plus the id of the vmm process, so that no two machines' are
one user's.
"""
_SO_SNDBUFFORCE = 32
_HINTS = (
    ("sandbox", "passt isolates itself by namespaces and pivot_root: allow them, or set network_backend to tap"),
    ("namespace", "passt isolates itself by namespaces: allow user namespaces, or set network_backend to tap"),
    *((word, "it needs a default route on this host") for word in ("interface", "route")),
)
"""What to do about passt's last words, by a word among them."""
_LENGTH = struct.Struct("!I")
_MAX_FRAME = ETHERNET_BYTES + 0xFFFF
_NO_HEADER = bytes(HEADER.size)


def command(network: NetworkConfig, fd: int, way_in: str = "none") -> list[str]:
    """Passt's command line: no DHCP, no way to loopback, connections in at the ports `way_in`."""
    addresses = [ip_interface(text) for text in network.addresses]
    words = [PROGRAM, "--foreground", "--quiet", "--fd", str(fd), "--mtu", str(network.mtu), "--no-map-gw"]
    words += ["--no-dhcp", "--no-dhcpv6", "--no-ra", "--tcp-ports", way_in, "--udp-ports", "none"]
    for address in addresses:
        words += ["--address", str(address.ip)]
        if address.version == 4:
            words += ["--netmask", str(address.network.prefixlen)]
    for gateway in network.gateways:
        words += ["--gateway", gateway]
    if len({address.version for address in addresses}) == 1:
        words.append(f"--ipv{addresses[0].version}-only")
    own = FIRST_UID + os.getpid()
    if os.geteuid() == 0 and _is_mapped(own):
        words += ["--runas", f"{own}:{own}"]  # else nobody's
    return words


def _is_mapped(uid: int) -> bool:
    """Whether this process's user namespace has that id (user_namespaces(7))."""
    with io.FileIO("/proc/self/uid_map") as file:  # pathlib would take 120 KiB in each machine
        ranges = [[int(word) for word in line.split()] for line in file.readall().splitlines()]
    return any(first <= uid < first + count for first, _, count in ranges)


def _free_port() -> int:
    """A port that is free now. If somebody takes it before passt does, passt does not start."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


def question(network: NetworkConfig) -> bytes:
    """An ARP request of the guest's for its gateway's MAC."""
    mac = network.mac_bytes
    guest, gateway = (ip_interface(text).ip.packed for text in (network.addresses[0], network.gateways[0]))
    return ETHERNET.pack(BROADCAST, mac, ARP_TYPE) + ARP.pack(*ARP_ETHERNET_IPV4, ARP_REQUEST, mac, guest, bytes(6), gateway)


class Passt(Backend):
    """A passt process of this machine's own. Raises NetworkError if it does not come up.

    `channel`: take connections to CHANNEL_PORT, at `channel_port` of this host's loopback.
    """

    def __init__(self, network: NetworkConfig, loop: EventLoop, *, channel: bool = False) -> None:
        self.channel_port = _free_port() if channel else 0
        way_in = f"{LOOPBACK}/{self.channel_port}:{CHANNEL_PORT}" if channel else "none"
        self._socket, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)  # up to net.core.wmem_max
        with contextlib.suppress(PermissionError):
            theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER)  # root may have any size
        fd, (log, said) = theirs.fileno(), os.pipe()
        self._log = os.fdopen(log, "rb")
        files: Any = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, 0, 1)]
        files += [(os.POSIX_SPAWN_DUP2, said, 2), (os.POSIX_SPAWN_DUP2, fd, fd)]
        with theirs, os.fdopen(said, "wb"):
            try:  # not by `subprocess`, whose modules take 600 KiB in each machine
                words = command(network, fd, way_in)
                self._pid = os.posix_spawnp(PROGRAM, words, {}, file_actions=files, setsid=True, setsigdef=[signal.SIGPIPE])
            except OSError as error:
                self._socket.close()
                self._log.close()
                absent = isinstance(error, FileNotFoundError)
                hint = "apt-get install passt" if absent else f"look at the {PROGRAM} that is first on PATH"
                raise NetworkError(f"{PROGRAM} cannot be started: {error.strerror}", hint=hint) from error
        self._unsent, self._part, self._loop = b"", bytearray(), loop
        try:
            self._greet(network)
        except BaseException:
            self.close()
            raise
        self._socket.setblocking(False)
        loop.watch(self._log, READ, self._forget_log)

    def _greet(self, network: NetworkConfig) -> None:
        self._socket.settimeout(START_S)
        self._send(question(network))
        try:
            self._receive()
        except TimeoutError as error:
            raise NetworkError(f"{PROGRAM} does not answer within {START_S:g} s") from error
        except EOFError as error:
            lines = self._log.read().decode(errors="replace").split("\n")
            said = [line for line in lines if line.strip() and "syslog" not in line][-1:] or ["it said nothing"]
            hint = next((hint for word, hint in _HINTS if word in said[0].lower()), "start it by hand: `passt --foreground`")
            raise NetworkError(f"{PROGRAM} did not come up: {said[0]}", hint=hint) from error

    def _forget_log(self) -> None:
        """Take what it says, so that it never waits for a reader."""
        if not os.read(self._log.fileno(), 1 << 16):
            self._loop.watch(self._log, 0, self._forget_log)

    def fileno(self) -> int:
        """Readable when there are packets for the guest, writable when there is room."""
        return self._socket.fileno()

    def make_room(self) -> bool:
        """See `Backend.make_room`."""
        if self._unsent:
            with contextlib.suppress(BlockingIOError):
                try:
                    self._unsent = self._unsent[self._socket.send(self._unsent) :]
                except ConnectionError:
                    self._unsent = b""  # it has ended, which `receive` finds out
        return not self._unsent

    def send(self, packets: Batch, packet: int) -> None:
        """Send a frame; what does not fit into the socket waits for `make_room`."""
        self._send(packets.join(packet)[HEADER.size :])

    def _send(self, frame: bytes | bytearray) -> None:
        self._unsent = _LENGTH.pack(len(frame)) + frame
        self.make_room()

    def receive(self, buffers: Batch) -> int:
        """See `Backend.receive`."""
        frame = self._receive()
        return buffers.fill(_NO_HEADER + frame) if frame else 0

    def _receive(self) -> bytearray:
        """The next frame; nothing if there is none. Raises EOFError: passt has ended."""
        try:
            while missing := self._missing():
                data = self._socket.recv(missing)
                if not data:
                    raise EOFError(f"{PROGRAM} has ended")
                self._part += data
        except BlockingIOError:
            return bytearray()
        except ConnectionError as error:
            raise EOFError(f"{PROGRAM} has ended") from error
        frame = self._part[_LENGTH.size :]
        self._part.clear()
        return frame

    def _missing(self) -> int:
        """Bytes that the present frame, or its length, still lacks."""
        if len(self._part) < _LENGTH.size:
            return _LENGTH.size - len(self._part)
        (length,) = _LENGTH.unpack_from(self._part)
        if not ETHERNET_BYTES <= length <= _MAX_FRAME:
            raise EOFError(f"{PROGRAM} sent a frame of {length} bytes")
        return int(_LENGTH.size + length - len(self._part))

    def close(self) -> None:
        """End the process, by closing its socket where it is another user's by now."""
        self._socket.close()
        with contextlib.suppress(PermissionError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._log.close()
