"""Join a net device and its back end, in the event loop."""

import contextlib
import socket
from ipaddress import ip_interface

from mayfly.vmm.config import CHANNEL_PORT, NetworkBackend, NetworkConfig
from mayfly.vmm.devices.virtio.net import Backend, Net
from mayfly.vmm.eventloop import READ, WRITE, EventLoop
from mayfly.vmm.network.filter import ARP, ARP_ETHERNET_IPV4, BROADCAST, ETHERNET, PacketFilter, destinations
from mayfly.vmm.network.metered import Metered
from mayfly.vmm.network.passt import LOOPBACK, Passt
from mayfly.vmm.network.tap import Tap

_RARP_TYPE, _RARP_REQUEST = 0x8035, 3
_MIN_FRAME = 60  # Bytes, without the check sequence (IEEE 802.3, 4.4.2)


class Link:
    """Reads a back end while the guest of `net` has buffers, and sends on when there is room.

    Made while the process is privileged; `channel`: the channel goes over it. Raises NetworkError:
    there is no back end.
    """

    def __init__(self, network: NetworkConfig, loop: EventLoop, *, channel: bool = False) -> None:
        self._network, self._loop = network, loop
        self._reading = self._full = False
        addresses = [ip_interface(text) for text in network.addresses]
        self._filter = PacketFilter(network.mac_bytes, addresses, network.gateways, network.allow, network.deny)
        self.backend: Backend
        if not network.connected:  # in a machine that is made to be saved; drivers negotiate what they will find later
            self.backend = Backend()
            self.backend.offloads = Tap.offloads if network.backend is NetworkBackend.TAP else Passt.offloads
        elif network.backend is NetworkBackend.TAP:
            self.backend = Tap(network.tap, destinations(network.mac_bytes, addresses))
        else:
            self.backend = Passt(network, loop, channel=channel)
        carrier = Metered(self.backend, network) if network.limited else self.backend
        self.net = Net(network.mac_bytes, network.mtu, carrier, self._filter.may_leave, on_room=self._resume, on_full=self._wait)
        if carrier.plain_fd >= 0:
            loop.wait_by(self.net.pump.wait)

    def connect(self, connection: socket.socket) -> None:
        """Begin to connect a non-blocking socket, past the filter. Raises OSError."""
        network, passt = self._network, self.backend if isinstance(self.backend, Passt) else None
        guest = str(ip_interface(network.addresses[0]).ip), CHANNEL_PORT
        with contextlib.suppress(BlockingIOError):
            connection.connect((LOOPBACK, passt.channel_port) if passt else guest)
        # To its guest passt shows the host as the gateway.
        host, port = connection.getsockname()
        self._filter.open_connection(CHANNEL_PORT, network.gateways[0] if passt else host, port)
        self.net.look_at_ports()

    def announce(self) -> None:
        """Have bridges learn that the guest's MAC is here now: a RARP request (RFC 903), which
        nobody answers, to all.
        """
        mac = self._network.mac_bytes
        if isinstance(self.backend, Tap):
            body = ARP.pack(*ARP_ETHERNET_IPV4, _RARP_REQUEST, mac, bytes(4), mac, bytes(4))
            frame = ETHERNET.pack(BROADCAST, mac, _RARP_TYPE) + body
            self.backend.announce(frame.ljust(_MIN_FRAME, b"\0"))

    def _watch(self) -> None:
        if isinstance(self.backend, Tap | Passt):
            self._loop.watch(self.backend, (READ if self._reading else 0) | (WRITE if self._full else 0), self._pump)

    def _resume(self) -> None:
        # At once: the packet that waited for buffers may be the last for a long time.
        self._reading = self.net.receive()
        self._watch()

    def _wait(self) -> None:
        self._full = True
        self._watch()

    def _pump(self) -> None:
        before = self._reading, self._full
        if self._full and self.backend.make_room():
            self._full = False
            self.net.resume()
        if self._reading:
            self._reading = self.net.receive()
        if (self._reading, self._full) != before:
            self._watch()
