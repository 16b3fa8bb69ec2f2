"""Limits of a machine's network: bytes in all, bytes and packets a second. What is beyond one is
lost, as on a line that is full.
"""

import time
from collections.abc import Callable

from mayfly.vmm.config import NetworkConfig
from mayfly.vmm.devices.virtio.net import Backend
from mayfly.vmm.devices.virtio.packet import HEADER, MAX_PACKET
from mayfly.vmm.kvm.chains import Batch

LEAST_BURST = 2 * MAX_PACKET
"""Bytes at once within any rate: two packets as segmentation offload makes them."""
DROPPED_AT_ONCE = 256
"""Packets for the guest that are lost before others of the event loop have their turn."""


class Bucket:
    """Tokens that come at a `rate` a second (0: any number at any time), of which so many are held
    as come in a tenth of a second, but `least` at least.
    """

    def __init__(self, rate: int, least: int, clock: Callable[[], float]) -> None:
        self._rate, self._clock = rate, clock
        self._most = self._left = max(least, rate / 10)
        self._at = clock()

    def holds(self, wanted: int) -> bool:
        """Whether there are so many now."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        return not self._rate or self._left >= wanted

    def take(self, wanted: int) -> None:
        """Take them."""
        self._left -= wanted


class Metered(Backend):
    """A back end within the limits of `network`; rates are of each direction, bytes of both."""

    def __init__(self, backend: Backend, network: NetworkConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._left = network.budget if network.budget else float("inf")
        self.offloads = backend.offloads
        self._out, self._in = (
            (Bucket(network.rate, LEAST_BURST, clock), Bucket(network.packets, 1, clock)) for _ in ("from the guest", "to the guest")
        )

    def make_room(self) -> bool:
        """See `Backend.make_room`."""
        return self._backend.make_room()

    def set_offloads(self, negotiated: int) -> None:
        """See `Backend.set_offloads`."""
        self._backend.set_offloads(negotiated)

    def _may(self, packet: int, buckets: tuple[Bucket, Bucket]) -> bool:
        size = packet - HEADER.size
        rate, packets = buckets
        if size > self._left or not rate.holds(size) or not packets.holds(1):
            return False
        rate.take(size)
        packets.take(1)
        self._left -= size
        return True

    def send(self, packets: Batch, packet: int) -> None:
        """See `Backend.send`."""
        if self._may(packets.packet(packet)[0], self._out):
            self._backend.send(packets, packet)

    def receive(self, buffers: Batch) -> int:
        """See `Backend.receive`."""
        for _ in range(DROPPED_AT_ONCE):
            size = self._backend.receive(buffers)
            if not size or self._may(size, self._in):
                return size
        return 0
