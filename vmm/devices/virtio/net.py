"""A network device (virtio 1.2, 5.1): one pair of queues between the guest and a back end that moves frames, a packet filter in between.

    0  receive: empty buffers of the guest's, which frames for it are written to     1  transmit: frames of the guest's

A packet is a header (5.1.6) and an Ethernet frame. Nothing is queued here but one packet that waits for buffers: while the guest has none,
the back end is not read; while the back end has no room, the guest's chains stay in its ring.

Each packet costs Python's time, so a packet's bytes are touched by as few statements as can be, and one interrupt stands for all that a
kick has led to.
"""

import struct
from collections import Counter, deque
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from typing import Protocol

from vmm.devices.virtio.buffers import advance, gather
from vmm.devices.virtio.device import DeviceType, VirtioDevice
from vmm.devices.virtio.misuse import Misuse
from vmm.devices.virtio.queue import Chain, Queue

HEADER = struct.Struct("<BBHHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers (virtio 1.2, 5.1.6; with VERSION_1 always all of it)."""
_BUFFERS = struct.Struct("<H")
_BUFFERS_AT = HEADER.size - _BUFFERS.size
_CONFIG = struct.Struct("<6sHHH")
"""mac, status, max_virtqueue_pairs, mtu (virtio 1.2, 5.1.4)."""
_LINK_UP = 1
"""In the configuration's status (virtio 1.2, 5.1.4)."""

ETHERNET_BYTES = 14
MAX_PACKET = HEADER.size + ETHERNET_BYTES + 0xFFFF
"""With segmentation offload a frame holds a whole IP packet of 64 KiB."""
FILTERED_BYTES = 128
"""So much of a frame at least is shown to the filter, in one piece: more than all the headers that it looks at."""
DROPS = 256
"""Packets that are not for the guest are dropped in one go up to this number."""


class NetFeature(IntFlag):
    """virtio 1.2, 5.1.3."""

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


class HeaderFlag(IntFlag):
    """virtio 1.2, 5.1.6."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4


class Segmentation(IntEnum):
    """Kinds of segmentation offload, `gso_type` of a header (virtio 1.2, 5.1.6)."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


NEEDED: dict[int, int] = {
    Segmentation.NONE: 0,
    Segmentation.TCPV4: int(NetFeature.HOST_TSO4),
    Segmentation.TCPV6: int(NetFeature.HOST_TSO6),
}
"""The features that a driver must have negotiated to send packets of that kind (virtio 1.2, 5.1.6.2.1). It sends no others."""
# An operation on an IntFlag costs a microsecond, on an int a fiftieth of it; these are used once or more a packet.
_NEEDS_CSUM = int(HeaderFlag.NEEDS_CSUM)
_CSUM = int(NetFeature.CSUM)
_MRG_RXBUF = int(NetFeature.MRG_RXBUF)
_NO_BUFFERS = bytes(_BUFFERS.size)


class NetQueue(IntEnum):
    """virtio 1.2, 5.1.2."""

    RECEIVE = 0
    TRANSMIT = 1


class Drop(IntEnum):
    """Why packets were dropped."""

    FILTERED = 0
    """The guest sent what it may not, or a frame came that is not for it."""
    LINK_DOWN = 1
    NO_BUFFERS = 2
    """All the buffers of the guest's ring together could not hold the packet."""


class Backend(Protocol):
    """What moves frames between this device and a network. Packets begin with a header, as the guest's do."""

    offloads: int
    """The features among checksum and segmentation offload that it can carry."""

    def make_room(self) -> bool:
        """Whether `send` may be called: what is left of an earlier packet has gone."""
        ...

    def set_offloads(self, negotiated: int) -> None:
        """What `receive` may give from now on. Any thread; must take any combination of `offloads`."""
        ...

    def send(self, parts: Sequence[bytearray | memoryview]) -> None:
        """Send a packet on, or lose it. The parts are good during the call only."""
        ...

    def receive(self, packet: bytearray) -> int:
        """Write the next packet to the beginning of `packet`, which has room for MAX_PACKET bytes; its size, or 0 if there is none now.

        Raises:
            EOFError: there will never be one again: the back end is gone.
        """
        ...


class Filter(Protocol):
    """Decides by frames alone; see vmm.network.filter."""

    def may_leave(self, frame: bytes | memoryview) -> bool:
        """Whether the guest may send it."""
        ...

    def may_enter(self, frame: bytes | memoryview) -> bool:
        """Whether it is for the guest."""
        ...


class Net(VirtioDevice):
    """The device. `receive` and `resume` are for the event loop.

    Args:
        mac: the guest's address, 6 bytes.
        mtu: largest IP packet without segmentation offload.
        on_room: called, from the event loop, when `receive` answered False and may be tried again.
        on_full: called when the back end has no room: `resume` is to be called when it may have.

    Attributes:
        dropped: packets that went nowhere.
        on_first_packet: called once, from the event loop, before the first packet of the guest's leaves.
    """

    device_type = DeviceType.NETWORK
    queue_sizes = (256, 256)

    def __init__(
        self,
        mac: bytes,
        mtu: int,
        backend: Backend,
        packet_filter: Filter,
        *,
        on_room: Callable[[], None],
        on_full: Callable[[], None],
    ) -> None:
        super().__init__()
        self.features = int(NetFeature.MAC | NetFeature.MTU | NetFeature.STATUS | NetFeature.MRG_RXBUF) | backend.offloads
        self.dropped: Counter[Drop] = Counter()
        self._mac, self._mtu = mac, mtu
        self._backend, self._filter, self._on_room, self._on_full = backend, packet_filter, on_room, on_full
        self.on_first_packet: Callable[[], None] | None = None
        self._starved = True
        self._packet = bytearray(MAX_PACKET)
        self._held = 0  # bytes of a packet that waits for buffers
        self._ready: deque[tuple[Chain, int]] = deque()  # each with its room in bytes
        self._room = 0  # bytes in _ready
        self._configure(link_up=True)

    @property
    def link_up(self) -> bool:
        """Whether the back end is there."""
        return self._link_up

    def _configure(self, *, link_up: bool) -> None:
        self._link_up = link_up
        self.config = _CONFIG.pack(self._mac, _LINK_UP if link_up else 0, 1, self._mtu)

    def activate(self, queues: dict[int, Queue], negotiated: int) -> None:
        """The driver is ready: the back end learns what it may send."""
        super().activate(queues, negotiated)
        self._backend.set_offloads(negotiated)

    def reset(self) -> None:
        """Forget the driver."""
        super().reset()
        self._starved = True
        self._held = 0
        self._ready.clear()
        self._room = 0

    def notify(self, index: int) -> None:
        """The driver kicked a queue."""
        if index == NetQueue.TRANSMIT:
            interrupt = self._transmit()
            # The host's own network has often answered by then.
            self._interrupt(interrupt, not self._starved and self._receive())
        elif self._starved:
            self._starved = False
            self._on_room()

    def resume(self) -> None:
        """The back end has room again."""
        with self.lock:
            self._interrupt(self._transmit())

    def receive(self) -> bool:
        """Move packets from the back end to the guest, one queue's size of them at most.

        False if that has stopped: the guest has no buffers (`on_room` follows), or the link is down for good.
        """
        with self.lock:
            self._interrupt(self._receive())
            return self._link_up and not self._starved

    def _interrupt(self, *asked: bool) -> None:
        if any(asked):
            self.host.interrupt_used()

    def _receive(self) -> bool:
        """What `receive` says; whether the driver asks for an interrupt."""
        queue = self.queues.get(NetQueue.RECEIVE)
        if queue is None:
            self._starved = True
            return False
        chains = 0
        while chains < queue.size and (self._held or self._take_packet()):
            if not self._collect(queue):
                self._starved = True
                break
            chains += self._deliver(queue)
        interrupt = queue.publish()
        if not self._starved:
            queue.suppress_notify()
        elif queue.enable_notify():
            self.host.kick(NetQueue.RECEIVE)
        return interrupt

    def _take_packet(self) -> bool:
        """Have the back end's next packet for the guest wait for buffers; False if there is none. What is not for it is dropped."""
        for _ in range(DROPS):
            try:
                size = self._backend.receive(self._packet) if self._link_up else 0
            except EOFError:
                self._lose_link()
                return False
            if not size:
                return False
            if self._filter.may_enter(memoryview(self._packet)[HEADER.size : size]):
                self._held = size
                return True
            self.dropped[Drop.FILTERED] += 1
        return False

    def _collect(self, queue: Queue) -> bool:
        """Have chains ready for the packet that is held: as many as it needs, or as there can be. False if the guest has no more."""
        most = queue.size if self.negotiated & _MRG_RXBUF else 1
        for _ in range(queue.size + 1):
            if self._ready and (self._room >= self._held or len(self._ready) >= most):
                return True
            chain = queue.pop()
            if chain is None:
                break
            if not chain.writable:
                self.host.report(Misuse.DIRECTION)
                queue.push(chain.head, 0)
                continue
            room = len(chain.writable[0]) if len(chain.writable) == 1 else sum(map(len, chain.writable))
            self._ready.append((chain, room))
            self._room += room
        return False

    def _deliver(self, queue: Queue) -> int:
        """Write the packet that is held into the chains that are ready; how many it took.

        With MRG_RXBUF it may take several, and the header says how many (virtio 1.2, 5.1.6.4). Without, exactly one.
        """
        size, self._held = self._held, 0
        if self._room < size:
            self.host.report(Misuse.DIRECTION)
            self.dropped[Drop.NO_BUFFERS] += 1
            size, used = 0, len(self._ready)
        else:
            used, room = 0, 0
            while room < size:
                room += self._ready[used][1]
                used += 1
            _BUFFERS.pack_into(self._packet, _BUFFERS_AT, used)
        source, done = memoryview(self._packet)[:size], 0
        for _ in range(used):
            chain, room = self._ready.popleft()
            self._room -= room
            began = done
            for view in chain.writable:
                part = source[done : done + len(view)]
                if len(part) < len(view):
                    view = view[: len(part)]
                view[:] = part
                done += len(part)
            queue.push(chain.head, done - began)
        return used

    def _transmit(self) -> bool:
        """Send what the guest made available; whether the driver asks for an interrupt."""
        queue = self.queues.get(NetQueue.TRANSMIT)
        if queue is None:
            return False
        for _ in range(queue.size):
            if not self._backend.make_room() or (chain := queue.pop()) is None:
                break
            self._send(chain.readable)
            queue.push(chain.head, 0)
        interrupt = queue.publish()
        if not self._backend.make_room():
            queue.suppress_notify()
            self._on_full()
        elif queue.enable_notify():
            self.host.kick(NetQueue.TRANSMIT)
        return interrupt

    def _send(self, packet: list[memoryview]) -> None:
        if not HEADER.size + ETHERNET_BYTES <= sum(map(len, packet)) <= MAX_PACKET:
            self.host.report(Misuse.PACKET)
            return
        # A copy: what the checks and the filter have seen is what is sent, whatever the guest does to its memory meanwhile. What lies
        # behind it nobody looks at.
        start = bytearray(gather(packet, HEADER.size + FILTERED_BYTES))
        rest = advance(packet, len(start))
        # The one flag that means something in this direction, and no count of buffers (virtio 1.2, 5.1.6.2).
        start[0] &= _NEEDS_CSUM
        start[_BUFFERS_AT : HEADER.size] = _NO_BUFFERS
        needed = NEEDED.get(start[1])
        if needed is None or needed & ~self.negotiated or (start[0] and not self.negotiated & _CSUM):
            self.host.report(Misuse.PACKET)
        elif not self._link_up:
            self.dropped[Drop.LINK_DOWN] += 1
        elif not self._filter.may_leave(memoryview(start)[HEADER.size :]):
            self.dropped[Drop.FILTERED] += 1
        else:
            if self.on_first_packet is not None:
                tell, self.on_first_packet = self.on_first_packet, None
                tell()
            self._backend.send([start, *rest])

    def _lose_link(self) -> None:
        """The back end is gone: the guest is told, and lives on without a network."""
        self._configure(link_up=False)
        self.host.config_changed()
