"""The modern virtio-mmio transport: registers, status, interrupts (virtio 1.2, 4.2)."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any

from mayfly.schema import Meta, msgspec, replace
from mayfly.vmm.bus import BusDevice
from mayfly.vmm.devices.virtio.device import OFFERED, RING_EVENT_IDX, RING_INDIRECT_DESC, VirtioDevice, features_acceptable
from mayfly.vmm.devices.virtio.misuse import FATAL, Misuse
from mayfly.vmm.devices.virtio.queue import MAX_SIZE, Queue, QueueLayout, QueueState
from mayfly.vmm.devices.virtio.registers import (
    ADDRESSES,
    LIVE,
    NEGOTIATED,
    RESET,
    SELECTORS,
    SHARED_MEMORY,
    STEPS,
    WORD,
    WRITABLE_IN,
    DeviceStatus,
    Interrupt,
    Register,
)
from mayfly.vmm.memory import GuestAddressError, GuestMemory
from mayfly.vmm.snapshot.state import U32, Live, Saved, exactly, raw

MAGIC = 0x7472_6976  # `virt`
VERSION = 2
VENDOR = 0x594C_464D  # `MFLY`; drivers do not look at it
REGION_BYTES = 0x1000
_DEVICE_FEATURES, _DRIVER_FEATURES, _QUEUE = range(len(SELECTORS))  # Indices of what is selected
_LOW = 0xFFFF_FFFF
_NO_SHARED_MEMORY = 0xFFFF_FFFF
"""Length and base of a region that does not exist read as all ones (virtio 1.2, 4.2.2)."""
_INTERRUPT_STATUS = Register.INTERRUPT_STATUS // WORD
_USED_BUFFER = int(Interrupt.USED_BUFFER)
_ANY_STATUS = int(LIVE | DeviceStatus.DEVICE_NEEDS_RESET | DeviceStatus.FAILED)
_ANY_INTERRUPT = int(Interrupt.USED_BUFFER | Interrupt.CONFIG_CHANGE)


_CHANGING = (
    Register.DEVICE_FEATURES,
    Register.QUEUE_NUM_MAX,
    Register.QUEUE_READY,
    Register.INTERRUPT_STATUS,
    Register.STATUS,
    Register.CONFIG_GENERATION,
)
"""What the guest reads that is not always the same."""


class SetupState(Live, tag_field="version", tag=2, kw_only=True):
    """What the driver has written about one queue; `ring`: in a snapshot, if the queue is ready."""

    size: Annotated[int, Meta(ge=1, le=MAX_SIZE)]
    addresses: Annotated[list[U32], exactly(len(ADDRESSES))]
    ring: QueueState | None


class TransportState(Live, tag_field="version", tag=2, kw_only=True):
    """The registers; in a snapshot also what the device holds."""

    status: Annotated[int, Meta(ge=0, le=_ANY_STATUS)]
    interrupt_status: Annotated[int, Meta(ge=0, le=_ANY_INTERRUPT)]
    selected: Annotated[list[U32], exactly(len(SELECTORS))]
    driver_features: Annotated[list[U32], exactly(2)]
    generation: U32
    queues: list[SetupState]
    device: msgspec.Raw


class MmioTransport(BusDevice):
    """One device on the bus: 4 KiB of registers, an interrupt line and kicks.

    `read` and `write` come from vCPU threads; `notify` and the device's methods from the event
    loop; a lock keeps them apart. Only the event loop works on queues. Its thread may do so without
    the lock, in C, while a device's `pump` is on: who changes what that uses stops it first.

    Args:
        memory: guest RAM. Live queues keep views of it until the reset (`close` drops them).
        interrupt: raises the line (an edge). Any thread, with the lock held; must not block.
        kick: has the event loop call `notify(index)` soon, for the device too. Any thread, with the
            lock held; must not block, nor call `notify` itself.
        registers: REGION_BYTES for what the guest reads, which may be mapped for it without exits.
    """

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory, interrupt: Callable[[], None], kick: Callable[[int], None], registers: memoryview
    ) -> None:
        self.device = device
        self.misuse: defaultdict[Misuse, int] = defaultdict(int)  # how often the driver did what
        self._kicks = 0  # how often `notify` was called
        self._memory, self._interrupt, self.kick = memory, interrupt, kick
        self._bytes, self._words = registers, registers.cast("I")
        self._offered = OFFERED | device.features
        self._forget(generation=0)
        self._readers: dict[int, Callable[[], int]] = {
            Register.MAGIC_VALUE: lambda: MAGIC,
            Register.VERSION: lambda: VERSION,
            Register.DEVICE_ID: lambda: device.device_type,
            Register.VENDOR_ID: lambda: VENDOR,
            Register.DEVICE_FEATURES: self._read_features,
            Register.QUEUE_NUM_MAX: lambda: device.queue_sizes[self._state.selected[_QUEUE]] if self._selected() else 0,
            Register.QUEUE_READY: lambda: int(self._state.selected[_QUEUE] in self._ready),
            Register.INTERRUPT_STATUS: lambda: self._state.interrupt_status,
            Register.STATUS: lambda: self._state.status,
            **dict.fromkeys(SHARED_MEMORY, lambda: _NO_SHARED_MEMORY),
            Register.CONFIG_GENERATION: lambda: self._state.generation,
        }
        self._writers: dict[int, Callable[[int], None]] = {
            **{register: partial(self._select, index) for index, register in enumerate(SELECTORS)},
            Register.DRIVER_FEATURES: self._write_features,
            Register.QUEUE_NUM: self._write_queue_size,
            Register.QUEUE_READY: self._write_queue_ready,
            Register.QUEUE_NOTIFY: self._write_notify,
            Register.INTERRUPT_ACK: self._acknowledge,
            Register.STATUS: self._write_status,
            **{register: partial(self._write_address, index) for index, register in enumerate(ADDRESSES)},
            Register.SHM_SEL: lambda value: None,
        }
        device.host = self
        self._show(self._readers)

    def read(self, offset: int, size: int) -> int:
        """The guest reads a register or its device's configuration."""
        with self.device.lock:
            if offset < Register.CONFIG and (size != 4 or offset not in self._readers):
                self.report(Misuse.REGISTER)
                return 0
            return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes a register. Our devices have nothing to write in their configuration."""
        with self.device.lock:
            writer = self._writers.get(offset) if size == 4 else None
            needed = WRITABLE_IN.get(offset)
            if writer is None or (needed is not None and needed != self._state.status):
                self.report(Misuse.REGISTER)
                return
            if self.device.pump is not None and offset != Register.QUEUE_NOTIFY:  # a kick changes nothing
                self.device.pump.stop()
            writer(value)
            self._show()

    def notify(self, index: int) -> None:
        """Work on queue `index`: its eventfd has fired. From the event loop only."""
        with self.device.lock:
            self._kicks += 1
            if index not in self.device.queues or self._state.status != LIVE:
                self.report(Misuse.NOTIFY)
                return
            self.device.notify(index)

    @property
    def kicks(self) -> int:
        """How often the event loop was woken to work on a queue."""
        return self._kicks + (self.device.pump.kicks if self.device.pump is not None else 0)

    @property
    def used_stands(self) -> bool:
        """Whether the driver is ready, and finds used buffers in InterruptStatus as it is."""
        return self._state.status == LIVE and bool(self._state.interrupt_status & _USED_BUFFER)

    def config_changed(self) -> None:
        """The device changed `config`: new generation, interrupt (virtio 1.2, 2.5, 4.2.2)."""
        with self.device.lock:
            self._state.generation = (self._state.generation + 1) & _LOW
            self._show()
            if self._state.status & DeviceStatus.DRIVER_OK:
                self._raise(int(Interrupt.CONFIG_CHANGE))

    def save(self) -> TransportState:
        """Registers, queues and the device, for a snapshot; nothing else uses the device."""
        rings = {index: queue.save() for index, queue in self._ready.items()}
        queues = [replace(setup, ring=rings.get(index)) for index, setup in enumerate(self._state.queues)]
        return replace(self._state, queues=queues, device=raw(self.device.save()))

    def restore(self, saved: Saved) -> None:
        """Go on where `save` was called, with the guest's memory as it was then.

        Queues with chains are kicked, and unacknowledged interrupts raised again. Raises
        SnapshotError: `save` gives no such state, or a queue is outside RAM.
        """
        with self.device.lock:
            state = self._state = saved.decode(TransportState)
            if state.status & ~_ANY_STATUS or state.status & LIVE not in {*STEPS, LIVE}:
                raise saved.damaged(f"status {state.status} is not on the way to a driver's")
            if state.status & DeviceStatus.FEATURES_OK and not features_acceptable(self._offered, self._driver_features):
                raise saved.damaged(f"driver_features {self._driver_features:#x} are not those of this device")
            for index, (largest, setup) in enumerate(saved.pairs("queues", self.device.queue_sizes, state.queues)):
                if setup.size > largest or setup.size & setup.size - 1:
                    raise saved.damaged(f"queues[{index}] has the size {setup.size}; it must be a power of 2, at most {largest}")
                if setup.ring is not None:
                    self._restore_ring(index, setup, setup.ring, saved)
            if state.status & DeviceStatus.DRIVER_OK:
                self._activate()
            self.device.restore(Saved(f"{saved.part}.device", state.device))
            self._show()
            if state.interrupt_status:
                self._interrupt()

    def _restore_ring(self, index: int, setup: SetupState, ring: QueueState, saved: Saved) -> None:
        if not self._state.status & DeviceStatus.FEATURES_OK:
            raise saved.damaged(f"queues[{index}] has a ring before the features are negotiated")
        try:
            self._ready[index] = self._make_queue(setup)
        except GuestAddressError as error:
            raise saved.damaged(f"queues[{index}] has addresses that are not inside guest RAM: {error}") from error
        self._ready[index].restore(ring)

    def close(self) -> None:
        """Drop the views of guest memory and of the registers, so that their mappings can go."""
        with self.device.lock:
            self._reset()
            self._words.release()
            self._bytes.release()

    def interrupt_used(self) -> None:
        """Tell the driver of used buffers: after `Queue.publish` said so."""
        self._raise(_USED_BUFFER)

    def report(self, misuse: Misuse) -> None:
        """Count a driver's error; a senseless ring needs a reset (virtio 1.2, 2.1.2)."""
        self.misuse[misuse] += 1
        if misuse not in FATAL or self._state.status & DeviceStatus.DEVICE_NEEDS_RESET:
            return
        self._stop_queues()
        self._state.status |= DeviceStatus.DEVICE_NEEDS_RESET
        self._show()
        self._raise(int(Interrupt.CONFIG_CHANGE))

    def _stop_queues(self) -> None:
        for queue in self.device.queues.values():
            queue.stop()

    def _show(self, registers: Iterable[int] = _CHANGING) -> None:
        for register in registers:
            self._words[register // WORD] = self._readers[register]()
        config = self.device.config[: REGION_BYTES - Register.CONFIG]
        self._bytes[Register.CONFIG : Register.CONFIG + len(config)] = config

    def _raise(self, cause: int) -> None:
        self._state.interrupt_status |= cause
        self._words[_INTERRUPT_STATUS] = self._state.interrupt_status
        self._interrupt()

    def _acknowledge(self, value: int) -> None:
        self._state.interrupt_status &= ~value

    def _forget(self, generation: int) -> None:
        """Power-on registers; the counters and the configuration's generation stay."""
        self._ready: dict[int, Queue] = {}
        queues = [SetupState(size=size, addresses=[0] * len(ADDRESSES), ring=None) for size in self.device.queue_sizes]
        registers: dict[str, Any] = {"status": RESET, "interrupt_status": 0, "selected": [0] * len(SELECTORS), "driver_features": [0, 0]}
        self._state = TransportState(**registers, generation=generation, queues=queues, device=msgspec.Raw())

    def _reset(self) -> None:
        self.device.reset()
        self._forget(self._state.generation)

    def _select(self, selector: int, value: int) -> None:
        self._state.selected[selector] = value

    def _read_features(self) -> int:
        word = self._state.selected[_DEVICE_FEATURES]
        return self._offered >> 32 * word & _LOW if word < 2 else 0

    def _write_features(self, value: int) -> None:
        word = self._state.selected[_DRIVER_FEATURES]
        if word < 2:
            self._state.driver_features[word] = value
        elif value:  # a feature of a number beyond 63: we offer none
            self.report(Misuse.FEATURES)

    @property
    def _driver_features(self) -> int:
        low, high = self._state.driver_features
        return low | high << 32

    def _selected(self) -> SetupState | None:
        index = self._state.selected[_QUEUE]
        return self._state.queues[index] if index < len(self._state.queues) else None

    def _unready(self) -> SetupState | None:
        """The selected queue if its registers may still be changed."""
        setup = self._selected()
        if setup is None or self._state.selected[_QUEUE] in self._ready:
            self.report(Misuse.REGISTER)
            return None
        return setup

    def _write_queue_size(self, value: int) -> None:
        setup = self._unready()
        if setup is None:
            return
        if not 0 < value <= self.device.queue_sizes[self._state.selected[_QUEUE]] or value & value - 1:
            self.report(Misuse.QUEUE_SIZE)
            return
        setup.size = value

    def _write_address(self, half: int, value: int) -> None:
        setup = self._unready()
        if setup is not None:
            setup.addresses[half] = value

    def _write_queue_ready(self, value: int) -> None:
        """Make or unmake the queue; with bad addresses it reads back as not ready."""
        setup, index = self._selected(), self._state.selected[_QUEUE]
        if setup is None or value > 1:
            self.report(Misuse.REGISTER)
            return
        self._ready.pop(index, None)
        if not value:
            return
        try:
            self._ready[index] = self._make_queue(setup)
        except GuestAddressError:
            self.report(Misuse.QUEUE_ADDRESS)

    def _make_queue(self, setup: SetupState) -> Queue:
        halves = setup.addresses
        layout = QueueLayout(setup.size, *(low | high << 32 for low, high in zip(halves[::2], halves[1::2], strict=True)))
        event_idx = bool(self._driver_features & RING_EVENT_IDX)
        indirect = bool(self._driver_features & RING_INDIRECT_DESC)
        return Queue(self._memory, layout, event_idx=event_idx, indirect=indirect, report=self.report)

    def _write_notify(self, value: int) -> None:
        if self._state.status == LIVE and value in self.device.queues:
            self.kick(value)
        else:
            self.report(Misuse.NOTIFY)

    def _write_status(self, value: int) -> None:
        if value == RESET:
            self._reset()
            return
        current = self._state.status
        if value == current:
            return
        if value == current | DeviceStatus.FAILED:
            self._state.status = current | DeviceStatus.FAILED
            self._stop_queues()
            return
        if current not in STEPS or STEPS[DeviceStatus(current)] != value:
            self.report(Misuse.STATUS)
            return
        if value == NEGOTIATED and not features_acceptable(self._offered, self._driver_features):
            self.report(Misuse.FEATURES)  # FEATURES_OK stays clear, which the driver reads back (virtio 1.2, 2.2.2)
            return
        self._state.status = value
        if value == LIVE:
            self._activate()

    def _activate(self) -> None:
        self.device.activate(dict(self._ready), self._driver_features)
        for index, queue in self._ready.items():
            if queue.has_chains():  # made available before DRIVER_OK, when a kick would have been lost
                self.kick(index)
