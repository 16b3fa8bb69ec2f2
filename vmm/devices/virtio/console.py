"""A console device with one named port (virtio 1.2, 5.3): a byte stream between host and guest.

With MULTIPORT a port is a console only if the device says so, and ours does not. Linux then makes
/dev/vportNp0, named in /sys/class/virtio-ports, and no hvc. One port needs four queues (Linux sets
up 2 * (max_nr_ports + 1)):

    0  receive: buffers for the guest to read from     1  transmit: what the guest writes
    2  control, device to driver                       3  control, driver to device

    driver: DEVICE_READY            PORT_READY                      PORT_OPEN 1 (a program opens it)
    device:              DEVICE_ADD            PORT_OPEN 1, PORT_NAME

PORT_OPEN goes before PORT_NAME: a program that finds the port by name must not read the end of
file that Linux gives while the host's side is closed.

Nothing is buffered here: bytes stay where they are while the other side has no room.
"""

import struct
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated

from mayfly.schema import Meta
from mayfly.vmm.devices.virtio.buffers import advance, copy_start, scatter
from mayfly.vmm.devices.virtio.device import CONSOLE, DeviceState, VirtioDevice
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.queue import MAX_CHAIN_BYTES, Chain, Queue
from mayfly.vmm.snapshot.state import Saved

_CONFIG = struct.Struct("<HHII")  # cols, rows, max_nr_ports, emerg_wr (virtio 1.2, 5.3.4)
_CONTROL = struct.Struct("<IHH")  # id, event, value (virtio 1.2, 5.3.6)

PORT = 0
MULTIPORT = 1 << 1  # A feature (virtio 1.2, 5.3.3)
WINDOW = 16
"""Chains offered to a `Fill` or a `Sink` at once: 64 KiB of receive buffers with Linux, or 16
writes (drivers/char/virtio_console.c).

16 chains of at most 64 descriptors fit the 1,024 pieces of a vectored system call.
"""

Sink = Callable[[list[memoryview]], int]
"""As `socket.sendmsg`: says how many bytes it took; fewer than all: full until `Console.resume`.

The views are good during the call only, and the guest may change their content.
"""
Fill = Callable[[list[memoryview]], int]
"""As `socket.recvmsg_into`: fills the guest's buffers from the first on, and says how many."""


class Control(IntEnum):
    """Events of control messages (virtio 1.2, 5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    PORT_READY = 3
    PORT_OPEN = 6
    PORT_NAME = 7


_OURS = {Control.DEVICE_ADD, Control.PORT_OPEN, Control.PORT_NAME}  # Those that this device sends
RECEIVE, TRANSMIT, CONTROL_RECEIVE, CONTROL_TRANSMIT = range(4)  # Queues (virtio 1.2, 5.3.2)


class ConsoleState(DeviceState, tag=3, frozen=True, kw_only=True):
    """What a snapshot holds of one: chains under way are taken anew, less what has gone.

    `owed`: messages that the driver has not got; `taken`: bytes of the first chain of output.
    """

    guest_open: bool
    taken: Annotated[int, Meta(ge=0, le=MAX_CHAIN_BYTES)]
    owed: Annotated[tuple[Control, ...], Meta(max_length=3)]


class Console(VirtioDevice):
    """The device. The event loop calls `receive` and `resume`. `name` is what the guest sees.

    `on_room` is called in the event loop: `receive` answered None and may be tried again.
    """

    device_type = CONSOLE
    features = MULTIPORT
    # Linux fills its receive queues with pages: 64 of them for data, 16 for control.
    queue_sizes = (64, 64, 16, 16)

    def __init__(self, name: str, sink: Sink, on_room: Callable[[], None]) -> None:
        super().__init__()
        self._name = name.encode()
        self.config = _CONFIG.pack(0, 0, PORT + 1, 0)
        self._sink, self._on_room = sink, on_room
        self._starved = False
        self._handlers = self._may_receive, self._transmit, self._answer, self._listen  # by queue
        self._forget()

    def _forget(self) -> None:
        self._guest_open = False
        self._ready: deque[Chain] = deque()  # chains for what `receive` brings
        self._leaving: deque[Chain] = deque()  # chains of output under way
        self._taken = 0  # bytes of the first one that the sink has taken
        self._owed: list[Control] = []  # messages to the driver: each kind once at most, made up when there is a buffer

    def notify(self, index: int) -> None:
        """The driver kicked a queue."""
        self._handlers[index]()

    def reset(self) -> None:
        """Forget the driver. A reader that was told None still waits for `on_room`."""
        super().reset()
        self._forget()

    def save(self) -> DeviceState:
        """See `ConsoleState`."""
        return ConsoleState(guest_open=self._guest_open, taken=self._taken, owed=tuple(self._owed))

    def restore(self, saved: Saved) -> None:
        """Go on where `save` was called."""
        state = saved.decode(ConsoleState)
        if not {*state.owed} <= _OURS:
            raise saved.damaged("owed has messages that this device does not send")
        self._guest_open, self._taken, self._owed = state.guest_open, state.taken, list(dict.fromkeys(state.owed))

    def receive(self, fill: Fill) -> int | None:
        """Offer the guest's buffers to `fill` and hand over what it put there; its answer.

        None: no buffer is ready, or the port is closed; `on_room` follows. Nothing has happened if
        `fill` raises.
        """
        with self.lock:
            queue = self.queues.get(RECEIVE)
            if queue is None or not self._guest_open or not self._gather(queue):
                self._starved = True
                return None
            left = count = fill([view for chain in self._ready for view in chain.writable])
            while left > 0:
                chain = self._ready.popleft()
                used = min(left, sum(map(len, chain.writable)))
                queue.push(chain.head, used)
                left -= used
            if queue.publish():
                self.host.interrupt_used()
            return count

    def _gather(self, queue: Queue) -> bool:
        """Have up to WINDOW chains ready; whether there is one. If not, ask for a kick."""
        for _ in range(queue.size):
            if len(self._ready) >= WINDOW or (chain := queue.pop()) is None:
                break
            if chain.writable:
                self._ready.append(chain)
                continue
            self.host.report(Misuse.DIRECTION)
            queue.push(chain.head, 0)
        self.end_turn(RECEIVE, more=not self._ready)
        return bool(self._ready)

    def _may_receive(self) -> None:
        """The guest has made buffers ready, or opened the port."""
        if self._starved and self._guest_open:
            self._starved = False
            self._on_room()
        elif not self._starved and (queue := self.queues.get(RECEIVE)):
            queue.suppress_notify()

    def resume(self) -> None:
        """The sink has room again."""
        with self.lock:
            self._transmit()

    def _transmit(self) -> None:
        """Give the sink what the guest wrote, many writes at once; those that it took go back."""
        queue = self.queues.get(TRANSMIT)
        if queue is None:
            return
        for _ in range(-(-queue.size // WINDOW)):
            while len(self._leaving) < WINDOW and (chain := queue.pop()) is not None:
                if not chain.readable:
                    self.host.report(Misuse.DIRECTION)
                self._leaving.append(chain)
            was_all = len(self._leaving) < WINDOW
            views = [view for chain in self._leaving for view in chain.readable]
            if self._taken:
                views = advance(views, self._taken)
            gone = self._taken + (self._sink(views) if views else 0)
            while self._leaving and (size := sum(map(len, self._leaving[0].readable))) <= gone:
                gone -= size
                queue.push(self._leaving.popleft().head, 0)
            self._taken = gone
            if self._leaving or was_all:
                break
        self.end_turn(TRANSMIT, more=not self._leaving)

    def _listen(self) -> None:
        """Take the driver's control messages, then answer them; one interrupt for both."""
        queue = self.queues[CONTROL_TRANSMIT]
        for _ in range(queue.size):
            chain = queue.pop()
            if chain is None:
                break
            self._handle(copy_start(chain.readable, _CONTROL.size)[0])
            queue.push(chain.head, 0)
        self._answer(interrupt=queue.publish())
        self.want_kicks(CONTROL_TRANSMIT, more=True)

    def _handle(self, message: bytearray | memoryview) -> None:
        if len(message) < _CONTROL.size:
            self.host.report(Misuse.CONTROL)
            return
        port, event, value = _CONTROL.unpack(message)
        if event == Control.DEVICE_READY:
            if value:
                self._owe(Control.DEVICE_ADD)
        elif event == Control.PORT_READY and port == PORT:
            if value:
                self._owe(Control.PORT_OPEN)
                self._owe(Control.PORT_NAME)
        elif event == Control.PORT_OPEN and port == PORT:
            self._guest_open = bool(value)
            self._may_receive()
        else:
            self.host.report(Misuse.CONTROL)

    def _owe(self, event: Control) -> None:
        if event not in self._owed:
            self._owed.append(event)

    def _answer(self, *, interrupt: bool = False) -> None:
        """Send the messages that are owed, as far as the driver has buffers for them."""
        queue = self.queues.get(CONTROL_RECEIVE)
        if queue is not None:
            for _ in range(queue.size):
                if not self._owed or (chain := queue.pop()) is None:
                    break
                message = _CONTROL.pack(PORT, self._owed[0], 1) + (self._name if self._owed[0] == Control.PORT_NAME else b"")
                if sum(map(len, chain.writable)) < len(message):
                    self.host.report(Misuse.DIRECTION)
                    queue.push(chain.head, 0)
                    continue
                queue.push(chain.head, scatter(message, chain.writable))
                del self._owed[0]
            interrupt |= queue.publish()
            self.want_kicks(CONTROL_RECEIVE, more=bool(self._owed))
        if interrupt:
            self.host.interrupt_used()
