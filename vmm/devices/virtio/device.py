"""What a virtio device is to its transport: type, features, queues, configuration, kicks."""

import abc
import threading
from typing import TYPE_CHECKING, ClassVar

from mayfly.schema import Record
from mayfly.vmm.devices.virtio.queue import Queue
from mayfly.vmm.kvm.chains import Pump
from mayfly.vmm.snapshot.state import Saved

if TYPE_CHECKING:
    from mayfly.vmm.devices.virtio.mmio import MmioTransport

NETWORK, CONSOLE, ENTROPY = 1, 3, 4  # Device types (virtio 1.2, 5)
RING_INDIRECT_DESC, RING_EVENT_IDX, VERSION_1 = 1 << 28, 1 << 29, 1 << 32  # Features (virtio 1.2, 6)
OFFERED = RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1
"""What every device offers on top of its own features."""


def features_acceptable(offered: int, wanted: int) -> bool:
    """Whether `wanted` was all offered, and is no legacy driver's (virtio 1.2, 2.2 and 6.1)."""
    return not wanted & ~offered and bool(wanted & VERSION_1)


class DeviceState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of a device besides its queues: nothing of most."""


class VirtioDevice(abc.ABC):
    """A device. The transport calls it with `lock` held; calls of the event loop take it."""

    device_type: ClassVar[int]  # What the driver binds to
    features: int = 0  # Its own (those of queues and transport are the transport's)
    queue_sizes: ClassVar[tuple[int, ...]]  # The greatest size of each
    pump: Pump | None = None  # What works on the queues without the lock; who changes something stops it first

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.config = b""  # the configuration space; reads past its end give 0, writes are ignored
        self.queues: dict[int, Queue] = {}  # live ones by index, from DRIVER_OK to the reset, as far as the driver set them up
        self.negotiated = 0
        self.host: MmioTransport  # which sets this

    def activate(self, queues: dict[int, Queue], negotiated: int) -> None:
        """The driver is ready (DRIVER_OK)."""
        self.queues = queues
        self.negotiated = negotiated

    def reset(self) -> None:
        """Forget the driver and all that was under way with it (virtio 1.2, 2.4)."""
        self.queues = {}
        self.negotiated = 0

    def save(self) -> DeviceState:
        """What a snapshot needs besides queues and features; the vCPUs stand still."""
        return DeviceState()

    def restore(self, saved: Saved) -> None:
        """Go on where `save` was called; after `activate`, if there is a driver."""
        saved.decode(DeviceState)

    def end_turn(self, index: int, *, more: bool) -> None:
        """Show the driver what went back to queue `index`, and have kicks if `more` is wanted."""
        if self.queues[index].publish():
            self.host.interrupt_used()
        self.want_kicks(index, more=more)

    def want_kicks(self, index: int, *, more: bool) -> None:
        """Have kicks for queue `index` if `more` is wanted of it, at once if more is there."""
        if not more:
            self.queues[index].suppress_notify()
        elif self.queues[index].enable_notify():
            self.host.kick(index)

    @abc.abstractmethod
    def notify(self, index: int) -> None:
        """A kick for a live queue: one queue's size of chains; `host.kick` asks for more."""
