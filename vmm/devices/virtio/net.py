"""A network device (virtio 1.2, 5.1): a pair of queues, a packet filter, and a back end.

    0  receive: empty buffers, to which frames for the guest are written
    1  transmit: frames of the guest

A packet is a header (5.1.6) and an Ethernet frame. Only one packet is ever queued here: one for
which there are too few buffers. While the guest has no buffers, the back end is not read; while the
back end has no room, the guest's chains are not given back.

Each packet costs Python's time, so bytes go straight between the guest's buffers and the back end,
and one interrupt stands for all that a kick has led to. Where the back end is a descriptor
(`Backend.plain_fd`), C does a whole turn, as long as all is as usual: packets from the guest are
like those that were found to be allowed, and there is room for any packet to it. It does so while
the event loop waits (`Pump`), until a vCPU writes to a register. What is not usual comes here,
where all that is decided is.
"""

import struct
from collections.abc import Callable

from mayfly.vmm.devices.virtio.device import NETWORK, VirtioDevice
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.packet import HEADER, MAX_PACKET, MIN_PACKET, NEEDS_CSUM, NUM_BUFFERS, NetFeature, likeness, offload_allowed
from mayfly.vmm.devices.virtio.queue import Queue
from mayfly.vmm.kvm.chains import AGAIN, INTERRUPT, START, UNUSUAL, Batch, Passes, Pump

_NO_BUFFERS = b"\0\0"
_CONFIG = struct.Struct("<6sHHH")  # mac, status, max_virtqueue_pairs, mtu (virtio 1.2, 5.1.4)
_LINK_UP = 1  # In the configuration's status (virtio 1.2, 5.1.4)
FILTERED_BYTES = START - HEADER.size
"""So much of a frame at most the filter sees: more than all headers it looks at."""
RECEIVE, TRANSMIT = range(2)  # Queues (virtio 1.2, 5.1.2)


class Backend:
    """Moves packets (header and frame) between the device and a network: here to nowhere."""

    offloads = 0  # The features among checksum and segmentation offload that it can carry
    plain_fd = -1
    """The descriptor that takes and gives packets as they are, each by one writev(2) or readv(2),
    and has always room; -1: there is none such.
    """

    def make_room(self) -> bool:
        """Whether `send` may be called: what is left of an earlier packet has gone."""
        return True

    def set_offloads(self, negotiated: int) -> None:
        """What `receive` may give from now on: any combination of `offloads`. Any thread."""

    def send(self, packets: Batch, packet: int) -> None:
        """Send a guest's packet on, or lose it."""

    def receive(self, buffers: Batch) -> int:
        """Write the next packet to the room in `buffers`, MAX_PACKET at least; its size, 0 if none.

        The device sets num_buffers itself. Raises EOFError: the back end is gone for good.
        """
        return 0

    def close(self) -> None:
        """Give back what it holds."""


class Net(VirtioDevice):
    """The device. `receive` and `resume` are for the event loop, which makes all callbacks.

    `mac` has 6 bytes; `mtu` is the largest IP packet without segmentation offload. `may_leave` is
    asked about each frame of the guest's; it goes by no port of TCP's or UDP's before
    `look_at_ports`. `on_room`: `receive` answered False and may be tried again. `on_full`: the back
    end has no room; call `resume` when it may have. `on_first_packet` is called once, before the
    guest's first packet leaves.
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
        self._outgoing, self._incoming = Batch(), Batch()
        self._memory = bytearray(MAX_PACKET)  # for a packet that waits for more buffers
        self._packet = Batch(self._memory)
        self._passes = Passes()
        self._by_ports = False
        self.pump: Pump = Pump()
        self._forget()
        self._configure(link_up=True)

    def _forget(self) -> None:
        self._starved = True
        self._outgoing.clear()
        self._incoming.clear()
        self._refused: set[int] = set()  # of what is outgoing
        self._passes.clear()
        self._in_c = False  # whether packets that are as usual may move without Python
        self._held = 0  # bytes of the packet that waits; 0: there is none

    def _configure(self, *, link_up: bool) -> None:
        self.link_up = link_up  # whether the back end is there
        self.config = _CONFIG.pack(self._mac, _LINK_UP if link_up else 0, 1, self._mtu)

    def activate(self, queues: dict[int, Queue], negotiated: int) -> None:
        """The driver is ready: the back end learns what it may send."""
        super().activate(queues, negotiated)
        self._backend.set_offloads(negotiated)
        self._in_c = self._backend.plain_fd >= 0 and bool(negotiated & NetFeature.MRG_RXBUF)

    def _end_turn(self) -> None:
        """Let C do the next turns if all is as usual."""
        if not self._in_c:
            return
        receive, transmit = self.queues.get(RECEIVE), self.queues.get(TRANSMIT)
        if transmit and self.link_up and not self._outgoing.count and self.host.used_stands:
            into = None if receive is None or self._starved or self._held else receive.ring
            self.pump.start(self._backend.plain_fd, self._passes, self._outgoing, transmit.ring, self._incoming, into)
        else:
            self.pump.stop()

    def look_at_ports(self) -> None:
        """From now on `may_leave` goes by ports too: look at each packet anew."""
        self._by_ports = True
        self._passes.clear()

    def reset(self) -> None:
        """Forget the driver."""
        self.pump.stop()  # before its rings go
        super().reset()
        self._forget()

    def notify(self, index: int) -> None:
        """The driver kicked a queue."""
        if index == TRANSMIT:
            interrupt = self._transmit()
            # The host's own network has often answered by then.
            answered = not self._starved and self._receive()
            if interrupt or answered:
                self.host.interrupt_used()
        elif self._starved:
            self._starved = False
            self._on_room()
        self._end_turn()

    def resume(self) -> None:
        """The back end has room again."""
        with self.lock:
            if self._transmit():
                self.host.interrupt_used()

    def receive(self) -> bool:
        """Move packets to the guest, a queue's size at most; false: not again before `on_room`."""
        with self.lock:
            if self._receive():
                self.host.interrupt_used()
            self._end_turn()
            return self.link_up and not self._starved

    def _receive(self) -> bool:
        """What `receive` says; whether the driver asks for an interrupt."""
        queue = self.queues.get(RECEIVE)
        if queue is None or not self.link_up:
            self._starved = True
            return False
        self._starved = False
        led = 0
        if self._in_c and not self._held and not queue.stopped:
            led = self._incoming.receive(queue.ring, self._backend.plain_fd)
            if not led & UNUSUAL:
                return bool(led & INTERRUPT)
        try:
            self._fill(queue)
        except EOFError:  # the back end is gone: the guest is told, and lives on without a network
            self._configure(link_up=False)
            self.host.config_changed()
        queue.give_back(self._incoming)
        interrupt = queue.publish() or bool(led & INTERRUPT)
        self.want_kicks(RECEIVE, more=self._starved)
        return interrupt

    def _fill(self, queue: Queue) -> None:
        """Have the back end write packets to the guest's buffers, up to a queue's size of them."""
        buffers, receive = self._incoming, self._backend.receive
        for _ in range(queue.size):
            size = receive(buffers) if buffers.room >= MAX_PACKET and not self._held else self._receive_short(queue)
            if not size:
                return
            buffers.complete(size)

    def _receive_short(self, queue: Queue) -> int:
        """As `Backend.receive`, where there may be too little room for a packet.

        If the driver can add buffers, the packet is held and the guest starved; else it is lost.
        """
        buffers = self._incoming
        final = self._collect(queue)
        if not self._held:
            if buffers.room >= MAX_PACKET:
                return self._backend.receive(buffers)
            if not buffers.room:
                self._starved = True
                return 0
            self._held = self._backend.receive(self._packet)
        size = self._held
        if size > buffers.room and not final:
            self._starved = True
            return 0
        self._held = 0
        if size <= buffers.room:
            return buffers.fill(self._memory[:size]) if size else 0
        self.host.report(Misuse.DIRECTION)
        buffers.give_up()
        return 0

    def _collect(self, queue: Queue) -> bool:
        """Have buffers ready for any packet; false if the driver has to make more available.

        With MRG_RXBUF that is as many chains as it takes, without it one (virtio 1.2, 5.1.6.3.1 and
        5.1.6.4). Slivers end that early, as a batch has so many pieces only.
        """
        buffers = self._incoming
        queue.give_back(buffers)
        most = queue.size if self.negotiated & NetFeature.MRG_RXBUF else 1
        fits = queue.take(buffers, writable=True, most=most - buffers.unfinished)
        return not fits or buffers.room >= MAX_PACKET or buffers.unfinished >= most

    def _transmit(self) -> bool:
        """Send what the guest made available; whether the driver asks for an interrupt."""
        queue = self.queues.get(TRANSMIT)
        if queue is None:
            return False
        backend, packets, refused = self._backend, self._outgoing, self._refused
        led = 0
        if self._in_c and self.link_up and not packets.count and not queue.stopped:
            led = packets.send(queue.ring, self._passes, backend.plain_fd)
            if led & AGAIN:
                self.host.kick(TRANSMIT)
            if not led & UNUSUAL:
                return bool(led & INTERRUPT)
        sent, new = packets.done, packets.count
        queue.take(packets, writable=False)
        count = packets.count
        # Check all before sending one: sending wakes the receiver, which may take this processor.
        for packet in range(new, count):
            if not self._may_pass(*packets.packet(packet)):
                refused.add(packet)
        while sent < count and backend.make_room():
            if sent not in refused:
                backend.send(packets, sent)
            sent += 1
        packets.done = sent
        queue.give_back(packets)
        interrupt = queue.publish() or bool(led & INTERRUPT)
        self.want_kicks(TRANSMIT, more=sent == count)
        if sent < count:
            self._on_full()
        else:
            refused.clear()
        return interrupt

    def _may_pass(self, size: int, start: memoryview) -> bool:
        """Whether a packet of `size` bytes may leave, whose start is made as it will be sent.

        What is looked at is a copy, which the guest cannot change. Nobody checks what lies behind.
        """
        if not MIN_PACKET <= size <= MAX_PACKET:
            self.host.report(Misuse.PACKET)
            return False
        # The one flag with a meaning in this direction, and no buffer count (virtio 1.2, 5.1.6.2).
        start[0] &= NEEDS_CSUM
        start[NUM_BUFFERS] = _NO_BUFFERS
        if not offload_allowed(start, size, self._mtu, self.negotiated):
            self.host.report(Misuse.PACKET)
        elif not self._may_leave(start[HEADER.size :]):
            self.host.report(Misuse.FILTERED)
        elif self.link_up:
            if self.on_first_packet is not None:
                tell, self.on_first_packet = self.on_first_packet, None
                tell()
            if self._in_c and (like := likeness(start, ports=self._by_ports)):
                self._passes.add(start, *like)
            return True
        return False
