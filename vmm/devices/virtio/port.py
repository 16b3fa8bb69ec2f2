"""The data path of one console port, between the driver's buffers and mostly a socket.

Nothing is buffered here: bytes stay where they are while the other side has no room.
"""

from collections import deque
from collections.abc import Callable
from typing import Annotated

from mayfly.schema import Meta, Record
from mayfly.vmm.devices.virtio.buffers import advance
from mayfly.vmm.devices.virtio.device import VirtioDevice
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.queue import MAX_CHAIN_BYTES, Chain, Queue

Sink = Callable[[list[memoryview]], int]
"""As `socket.sendmsg`: says how many bytes it took; fewer than all: full until `Port.resume`.

The views are good during the call only, and the guest may change their content.
"""

Fill = Callable[[list[memoryview]], int]
"""As `socket.recvmsg_into`: fills the guest's buffers from the first on, and says how many."""

WINDOW = 16
"""Receive buffers offered to a `Fill` at once: 64 KiB with Linux (drivers/char/virtio_console.c).

16 chains of at most 64 descriptors fit the 1,024 pieces of a vectored system call.
"""


class PortState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of one."""

    guest_open: bool
    taken: Annotated[int, Meta(ge=0, le=MAX_CHAIN_BYTES)]


class Port:
    """One port of `device`, whose queues, lock and host it uses.

    The event loop calls `receive` and `resume`; the console all else. `receive_index` is the queue
    of buffers for the guest to read from, `transmit_index` that of what it writes.
    `on_room` is called in the event loop: `receive` answered None and may be tried again.
    """

    def __init__(self, device: VirtioDevice, receive_index: int, transmit_index: int, sink: Sink, on_room: Callable[[], None]) -> None:
        self.guest_open = False
        self._device = device
        self._receive_index = receive_index
        self._transmit_index = transmit_index
        self._sink = sink
        self._on_room = on_room
        self._ready: deque[Chain] = deque()
        self._starved = False
        self._head: int | None = None
        self._views: list[memoryview] = []
        self._taken = 0  # bytes of the present chain of output that the sink has taken

    def receive(self, fill: Fill) -> int | None:
        """Offer the guest's buffers to `fill` and hand over what it put there; its answer.

        None: no buffer is ready, or the port is closed; `on_room` follows. Nothing has happened if
        `fill` raises.
        """
        with self._device.lock:
            queue = self._device.queues.get(self._receive_index)
            if queue is None or not self.guest_open or not self._gather(queue):
                self._starved = True
                return None
            count = fill([view for chain in self._ready for view in chain.writable])
            self._hand_over(queue, count)
            return count

    def resume(self) -> None:
        """The sink has room again."""
        with self._device.lock:
            self.kicked_transmit()

    def kicked_transmit(self) -> None:
        """Give the sink what the guest wrote; chains that it took whole go back together."""
        queue = self._device.queues.get(self._transmit_index)
        if queue is None:
            return
        for _ in range(queue.size):
            if self._head is None and not self._next(queue):
                break
            if not self._drain():
                break
            self._return(queue)
        if queue.publish():
            self._device.host.interrupt_used()
        if self._head is not None:
            queue.suppress_notify()
        elif queue.enable_notify():
            self._device.host.kick(self._transmit_index)

    def kicked_receive(self) -> None:
        """The guest has made buffers ready."""
        if self._starved and self.guest_open:
            self._starved = False
            self._on_room()
        elif not self._starved and (queue := self._device.queues.get(self._receive_index)):
            queue.suppress_notify()

    def set_guest_open(self, is_open: bool) -> None:
        """The guest has opened or closed the port."""
        self.guest_open = is_open
        self.kicked_receive()

    def reset(self) -> None:
        """Drop the chains under way. A reader that was told None still waits for `on_room`."""
        self.guest_open = False
        self._ready.clear()
        self._head = None
        self._views = []
        self._taken = 0

    def save(self) -> PortState:
        """For a snapshot: chains under way are taken anew, less what of the first has gone."""
        return PortState(guest_open=self.guest_open, taken=self._taken)

    def restore(self, state: PortState) -> None:
        """Go on where `save` was called."""
        self.guest_open, self._taken = state.guest_open, state.taken

    def _gather(self, queue: Queue) -> bool:
        """Have up to WINDOW chains ready; whether there is one. If not, ask for a kick."""
        for _ in range(queue.size):
            if len(self._ready) >= WINDOW or (chain := queue.pop()) is None:
                break
            if chain.writable:
                self._ready.append(chain)
                continue
            self._device.host.report(Misuse.DIRECTION)
            queue.push(chain.head, 0)
        if queue.publish():
            self._device.host.interrupt_used()
        if self._ready:
            queue.suppress_notify()
        elif queue.enable_notify():
            self._device.host.kick(self._receive_index)
        return bool(self._ready)

    def _hand_over(self, queue: Queue, count: int) -> None:
        while count > 0:
            chain = self._ready.popleft()
            used = min(count, sum(map(len, chain.writable)))
            queue.push(chain.head, used)
            count -= used
        if queue.publish():
            self._device.host.interrupt_used()

    def _next(self, queue: Queue) -> bool:
        chain = queue.pop()
        if chain is None:
            return False
        if not chain.readable:
            self._device.host.report(Misuse.DIRECTION)
        self._head, self._views = chain.head, advance(chain.readable, self._taken) if self._taken else chain.readable
        return True

    def _drain(self) -> bool:
        """Offer what is left of the present chain to the sink; whether it took all."""
        if self._views:
            count = self._sink(self._views)
            self._taken += count
            self._views = advance(self._views, count)
        return not self._views

    def _return(self, queue: Queue) -> None:
        if self._head is not None:
            queue.push(self._head, 0)
        self._head = None
        self._taken = 0
