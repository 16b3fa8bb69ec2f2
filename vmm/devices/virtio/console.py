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
"""

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated

from mayfly.schema import Meta
from mayfly.vmm.devices.virtio.buffers import gather, scatter
from mayfly.vmm.devices.virtio.device import DeviceState, DeviceType, VirtioDevice
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.port import Port, PortState, Sink
from mayfly.vmm.devices.virtio.queue import Queue
from mayfly.vmm.snapshot.state import Saved

_CONFIG = struct.Struct("<HHII")  # cols, rows, max_nr_ports, emerg_wr (virtio 1.2, 5.3.4)
_CONTROL = struct.Struct("<IHH")  # id, event, value (virtio 1.2, 5.3.6)

PORT = 0
MAX_NAME_BYTES = 64
"""With its header it fits any reasonable buffer for control messages; Linux's have a page."""


MULTIPORT = 1 << 1  # A feature (virtio 1.2, 5.3.3)


class Control(IntEnum):
    """Events of control messages (virtio 1.2, 5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


_OURS = {Control.DEVICE_ADD, Control.PORT_OPEN, Control.PORT_NAME}  # Those that this device sends


class ConsoleQueue(IntEnum):
    """virtio 1.2, 5.3.2."""

    RECEIVE = 0
    TRANSMIT = 1
    CONTROL_RECEIVE = 2
    CONTROL_TRANSMIT = 3


class ConsoleState(DeviceState, tag=2, frozen=True, kw_only=True):
    """What a snapshot holds of one; `owed`: messages that the driver has not got."""

    port_ready: bool
    owed: Annotated[tuple[Control, ...], Meta(max_length=3)]
    port: PortState


class Console(VirtioDevice):
    """The device; `port` is its data path (see `Port`), `name` what the guest sees."""

    device_type = DeviceType.CONSOLE
    features = MULTIPORT
    # Linux fills its receive queues with pages: 64 of them for data, 16 for control.
    queue_sizes = (64, 64, 16, 16)

    def __init__(self, name: str, sink: Sink, on_room: Callable[[], None]) -> None:
        super().__init__()
        self._name = name.encode()
        if not 0 < len(self._name) <= MAX_NAME_BYTES:
            raise ValueError(f"the port's name has {len(self._name)} bytes; from 1 to {MAX_NAME_BYTES} are allowed")
        self.config = _CONFIG.pack(0, 0, PORT + 1, 0)
        self.port = Port(self, ConsoleQueue.RECEIVE, ConsoleQueue.TRANSMIT, sink, on_room)
        self._port_ready = False
        self._owed: list[Control] = []  # messages to the driver: each kind once at most, made up when there is a buffer

    def notify(self, index: int) -> None:
        """The driver kicked a queue."""
        if index == ConsoleQueue.TRANSMIT:
            self.port.kicked_transmit()
        elif index == ConsoleQueue.RECEIVE:
            self.port.kicked_receive()
        elif index == ConsoleQueue.CONTROL_TRANSMIT:
            self._listen(self.queues[index])
        else:
            self._answer()

    def reset(self) -> None:
        """Forget the driver; the host's side stays as it is."""
        super().reset()
        self.port.reset()
        self._port_ready = False
        self._owed.clear()

    def save(self) -> DeviceState:
        """The port's state, and the messages that the driver has not got yet."""
        return ConsoleState(port_ready=self._port_ready, owed=tuple(self._owed), port=self.port.save())

    def restore(self, saved: Saved) -> None:
        """Go on where `save` was called."""
        state = saved.decode(ConsoleState)
        self._port_ready = state.port_ready
        if not {*state.owed} <= _OURS:
            raise saved.damaged("owed has messages that this device does not send")
        self._owed = list(dict.fromkeys(state.owed))
        self.port.restore(state.port)

    def _listen(self, queue: Queue) -> None:
        """Take the driver's control messages, then answer them; one interrupt for both."""
        for _ in range(queue.size):
            chain = queue.pop()
            if chain is None:
                break
            self._handle(gather(chain.readable, _CONTROL.size))
            queue.push(chain.head, 0)
        interrupt = queue.publish()
        self._answer(interrupt=interrupt)
        if queue.enable_notify():
            self.host.kick(ConsoleQueue.CONTROL_TRANSMIT)

    def _handle(self, message: bytes) -> None:
        if len(message) < _CONTROL.size:
            self.host.report(Misuse.CONTROL)
            return
        port, event, value = _CONTROL.unpack(message)
        if event == Control.DEVICE_READY:
            if value:
                self._owe(Control.DEVICE_ADD)
        elif event == Control.PORT_READY and port == PORT:
            self._port_ready = bool(value)
            if value:
                self._owe(Control.PORT_OPEN)
                self._owe(Control.PORT_NAME)
        elif event == Control.PORT_OPEN and port == PORT:
            self.port.set_guest_open(bool(value))
        else:
            self.host.report(Misuse.CONTROL)

    def _owe(self, event: Control) -> None:
        if event not in self._owed:
            self._owed.append(event)

    def _message(self, event: Control) -> bytes:
        return _CONTROL.pack(PORT, event, 1) + (self._name if event == Control.PORT_NAME else b"")

    def _answer(self, *, interrupt: bool = False) -> None:
        """Send the messages that are owed, as far as the driver has buffers for them."""
        queue = self.queues.get(ConsoleQueue.CONTROL_RECEIVE)
        if queue is not None:
            for _ in range(queue.size):
                if not self._owed or (chain := queue.pop()) is None:
                    break
                message = self._message(self._owed[0])
                if sum(map(len, chain.writable)) < len(message):
                    self.host.report(Misuse.DIRECTION)
                    queue.push(chain.head, 0)
                    continue
                queue.push(chain.head, scatter(message, chain.writable))
                del self._owed[0]
            interrupt |= queue.publish()
            if not self._owed:
                queue.suppress_notify()
            elif queue.enable_notify():
                self.host.kick(ConsoleQueue.CONTROL_RECEIVE)
        if interrupt:
            self.host.interrupt_used()
