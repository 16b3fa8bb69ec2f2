"""What a virtio device is to its transport: type, features, queues, configuration, kicks."""

import abc
import threading
from enum import IntEnum, IntFlag
from typing import ClassVar, Protocol

from mayfly.schema import Record
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.queue import Queue
from mayfly.vmm.snapshot.state import Saved


class DeviceType(IntEnum):
    """virtio 1.2, 5."""

    NETWORK = 1
    CONSOLE = 3
    ENTROPY = 4


class Feature(IntFlag):
    """Features of queues and transport (virtio 1.2, 6)."""

    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32


OFFERED = Feature.RING_INDIRECT_DESC | Feature.RING_EVENT_IDX | Feature.VERSION_1
"""What every device offers on top of its own features."""


def features_acceptable(offered: int, wanted: int) -> bool:
    """Whether `wanted` was all offered, and is no legacy driver's (virtio 1.2, 2.2 and 6.1)."""
    return not wanted & ~offered and bool(wanted & Feature.VERSION_1)


class Host(Protocol):
    """What the transport does for its device."""

    def interrupt_used(self) -> None:
        """Tell the driver of used buffers: after `Queue.publish` said so."""

    def kick(self, index: int) -> None:
        """Have `notify(index)` called again soon, from the event loop. It returns at once."""

    def report(self, misuse: Misuse) -> None:
        """Count what the driver did wrong."""

    def config_changed(self) -> None:
        """Tell the driver that `VirtioDevice.config` has changed."""


class DeviceState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of a device besides its queues: nothing of most."""


class VirtioDevice(abc.ABC):
    """A device. The transport calls it with `lock` held; the event loop's calls take it themselves.

    Attributes:
        device_type: what the driver binds to.
        features: its own feature bits (those of queues and transport are the transport's).
        queue_sizes: the greatest size of each queue.
        config: the configuration space; reads past its end give 0. Writes are ignored.
        queues: live queues by index, from DRIVER_OK to the reset, as far as the driver set them up.
    """

    device_type: ClassVar[DeviceType]
    features: int = 0
    queue_sizes: ClassVar[tuple[int, ...]]

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.config = b""
        self.queues: dict[int, Queue] = {}
        self.negotiated = 0
        self.host: Host

    def attach(self, host: Host) -> None:
        """Meet the transport; once, before anything else."""
        self.host = host

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

    @abc.abstractmethod
    def notify(self, index: int) -> None:
        """A kick for a live queue: one queue's size of chains; `Host.kick` asks for more."""
