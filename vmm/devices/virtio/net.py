"""A network device (virtio 1.2, 5.1): a pair of queues, a packet filter, and a back end.

    0  receive: empty buffers, to which frames for the guest are written
    1  transmit: frames of the guest

A packet is a header (5.1.6) and an Ethernet frame. Only one packet is ever queued here: one for
which there are too few buffers. While the guest has no buffers, the back end is not read; while the
back end has no room, the guest's chains are not given back.

Each packet costs Python's time, so bytes go straight between the guest's buffers and the back end,
and one interrupt stands for all that a kick has led to.
"""

import struct
from collections import deque
from collections.abc import Callable, Sequence

from mayfly.vmm.devices.virtio.buffers import copy_start, scatter
from mayfly.vmm.devices.virtio.device import NETWORK, VirtioDevice
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.packet import HEADER, MAX_PACKET, MIN_PACKET, NEEDS_CSUM, NUM_BUFFERS, NetFeature, offload_allowed
from mayfly.vmm.devices.virtio.queue import Chain, Queue
from mayfly.vmm.devices.virtio.receive import ReceiveBuffers

_NO_BUFFERS = b"\0\0"
_CONFIG = struct.Struct("<6sHHH")  # mac, status, max_virtqueue_pairs, mtu (virtio 1.2, 5.1.4)
_LINK_UP = 1  # In the configuration's status (virtio 1.2, 5.1.4)
FILTERED_BYTES = 128
"""So much of a frame at least the filter sees in one piece: more than all headers it looks at."""
_LOOKED_AT = HEADER.size + FILTERED_BYTES
PIECES = 1024  # As many buffers take one vectored system call (IOV_MAX, readv(2))
RECEIVE, TRANSMIT = range(2)  # Queues (virtio 1.2, 5.1.2)


class Backend:
    """Moves packets (header and frame) between the device and a network: here to nowhere."""

    offloads = 0  # The features among checksum and segmentation offload that it can carry

    def make_room(self) -> bool:
        """Whether `send` may be called: what is left of an earlier packet has gone."""
        return True

    def set_offloads(self, negotiated: int) -> None:
        """What `receive` may give from now on: any combination of `offloads`. Any thread."""

    def send(self, parts: Sequence[bytearray | memoryview]) -> None:
        """Send a guest's packet on, or lose it. The parts are good during the call only."""

    def receive(self, buffers: list[memoryview]) -> int:
        """Write the next packet to `buffers` (at least MAX_PACKET bytes); its size, 0 if none.

        The device sets num_buffers itself. Raises EOFError: the back end is gone for good.
        """
        return 0

    def close(self) -> None:
        """Give back what it holds."""


class Net(VirtioDevice):
    """The device. `receive` and `resume` are for the event loop, which makes all callbacks.

    `mac` has 6 bytes; `mtu` is the largest IP packet without segmentation offload. `may_leave` is
    asked about each frame of the guest's. `on_room`: `receive` answered False and may be tried
    again. `on_full`: the back end has no room; call `resume` when it may have. `on_first_packet` is
    called once, before the guest's first packet leaves.
    """

    device_type = NETWORK
    queue_sizes = (256, 256)

    def __init__(
        self,
        mac: bytes,
        mtu: int,
        backend: Backend,
        may_leave: Callable[[bytes | bytearray | memoryview], bool],
        *,
        on_room: Callable[[], None],
        on_full: Callable[[], None],
    ) -> None:
        super().__init__()
        self.features = NetFeature.MAC | NetFeature.MTU | NetFeature.STATUS | NetFeature.MRG_RXBUF | backend.offloads
        self._mac, self._mtu = mac, mtu
        self._backend, self._may_leave, self._on_room, self._on_full = backend, may_leave, on_room, on_full
        self.on_first_packet: Callable[[], None] | None = None
        self._packet = memoryview(bytearray(MAX_PACKET))  # one that waits for more buffers
        self._forget()
        self._configure(link_up=True)

    def _forget(self) -> None:
        self._starved = True
        self._outgoing: deque[tuple[int, list[bytearray | memoryview]]] = deque()  # heads of chains, and what of them is to be sent
        self._buffers = ReceiveBuffers()
        self._held = 0  # bytes of the packet that waits; 0: there is none

    def _configure(self, *, link_up: bool) -> None:
        self.link_up = link_up  # whether the back end is there
        self.config = _CONFIG.pack(self._mac, _LINK_UP if link_up else 0, 1, self._mtu)

    def activate(self, queues: dict[int, Queue], negotiated: int) -> None:
        """The driver is ready: the back end learns what it may send."""
        super().activate(queues, negotiated)
        self._backend.set_offloads(negotiated)

    def reset(self) -> None:
        """Forget the driver."""
        super().reset()
        self._forget()

    def notify(self, index: int) -> None:
        """The driver kicked a queue."""
        if index == TRANSMIT:
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
        """Move packets to the guest, a queue's size at most; false: not again before `on_room`."""
        with self.lock:
            self._interrupt(self._receive())
            return self.link_up and not self._starved

    def _interrupt(self, *asked: bool) -> None:
        if any(asked):
            self.host.interrupt_used()

    def _receive(self) -> bool:
        """What `receive` says; whether the driver asks for an interrupt."""
        queue = self.queues.get(RECEIVE)
        if queue is None or not self.link_up:
            self._starved = True
            return False
        self._starved = False
        try:
            self._fill(queue)
        except EOFError:  # the back end is gone: the guest is told, and lives on without a network
            self._configure(link_up=False)
            self.host.config_changed()
        self._buffers.give_back(queue)
        interrupt = queue.publish()
        self.want_kicks(RECEIVE, more=self._starved)
        return interrupt

    def _fill(self, queue: Queue) -> None:
        """Have the back end write packets to the guest's buffers, up to a queue's size of them."""
        buffers, receive = self._buffers, self._backend.receive
        for _ in range(queue.size):
            size = receive(buffers.views) if buffers.room >= MAX_PACKET and not self._held else self._receive_short(queue)
            if not size:
                return
            buffers.complete(size)

    def _receive_short(self, queue: Queue) -> int:
        """As `Backend.receive`, where there may be too little room for a packet.

        If the driver can add buffers, the packet is held and the guest starved; else it is lost.
        """
        buffers = self._buffers
        final = self._collect(queue)
        if not self._held:
            if buffers.room >= MAX_PACKET:
                return self._backend.receive(buffers.views)
            if not buffers.room:
                self._starved = True
                return 0
            self._held = self._backend.receive([self._packet])
        size = self._held
        if size > buffers.room and not final:
            self._starved = True
            return 0
        self._held = 0
        if size <= buffers.room:
            return scatter(self._packet[:size], buffers.views)
        self.host.report(Misuse.DIRECTION)
        buffers.give_up()
        return 0

    def _collect(self, queue: Queue) -> bool:
        """Have buffers ready for any packet; false if the driver has to make more available.

        With MRG_RXBUF that is as many chains as it takes, without it one (virtio 1.2, 5.1.6.3.1 and
        5.1.6.4). Slivers end that early, as a packet must fit into PIECES.
        """
        buffers, mergeable = self._buffers, self.negotiated & NetFeature.MRG_RXBUF
        most = PIECES - queue.size  # the next chain, or all that are alike, bring a queue's size more
        while buffers.room < MAX_PACKET and buffers.chains < (queue.size if mergeable else 1) and len(buffers.views) <= most:
            if mergeable and buffers.take_alike(queue):
                continue
            chain = queue.pop()
            if chain is None:
                return False
            if chain.readable or not chain.writable:
                self.host.report(Misuse.DIRECTION)
                queue.push(chain.head, 0)
            else:
                buffers.add(chain)
        return True

    def _transmit(self) -> bool:
        """Send what the guest made available; whether the driver asks for an interrupt."""
        queue = self.queues.get(TRANSMIT)
        if queue is None:
            return False
        backend, outgoing = self._backend, self._outgoing
        # Check all before sending one: sending wakes the receiver, which may take this processor.
        while len(outgoing) < queue.size and (chain := queue.pop()) is not None:
            outgoing.append((chain.head, self._checked(chain)))
        sent: list[int] = []
        while outgoing and backend.make_room():
            head, packet = outgoing.popleft()
            if packet:
                backend.send(packet)
            sent.append(head)
        queue.push_all(sent, [0] * len(sent))
        interrupt = queue.publish()
        self.want_kicks(TRANSMIT, more=not outgoing)
        if outgoing:
            self._on_full()
        return interrupt

    def _checked(self, chain: Chain) -> list[bytearray | memoryview]:
        """The packet in `chain` in parts for the back end, or nothing if it may not leave."""
        if chain.writable or not MIN_PACKET <= chain.size <= MAX_PACKET:
            self.host.report(Misuse.PACKET)
            return []
        # A copy, so that the guest cannot change what was checked. Nobody checks what lies behind.
        packet = copy_start(chain.readable, _LOOKED_AT)
        start = packet[0]
        # The one flag with a meaning in this direction, and no buffer count (virtio 1.2, 5.1.6.2).
        start[0] &= NEEDS_CSUM
        start[NUM_BUFFERS] = _NO_BUFFERS
        if not offload_allowed(start, chain.size, self._mtu, self.negotiated):
            self.host.report(Misuse.PACKET)
        elif not self._may_leave(start[HEADER.size :]):
            self.host.report(Misuse.FILTERED)
        elif self.link_up:
            if self.on_first_packet is not None:
                tell, self.on_first_packet = self.on_first_packet, None
                tell()
            return packet
        return []
