"""The modern virtio-mmio transport: registers, status, interrupts (virtio 1.2, 4.2)."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated

from mayfly.schema import Meta, Record, msgspec
from mayfly.vmm.devices.virtio.device import OFFERED, Feature, VirtioDevice, features_acceptable
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
    Interrupt,
    Register,
    Status,
)
from mayfly.vmm.memory import GuestAddressError, GuestMemory
from mayfly.vmm.snapshot.state import U32, Saved, exactly, pack_u64s, raw, unpack_u64s

MAGIC = 0x7472_6976  # `virt`
VERSION = 2
VENDOR = 0x594C_464D  # `MFLY`; drivers do not look at it
REGION_BYTES = 0x1000
_LOW = 0xFFFF_FFFF
_NO_SHARED_MEMORY = 0xFFFF_FFFF
"""Length and base of a region that does not exist read as all ones (virtio 1.2, 4.2.2)."""
_ANY_STATUS = int(LIVE | Status.DEVICE_NEEDS_RESET | Status.FAILED)
_ANY_INTERRUPT = int(Interrupt.USED_BUFFER | Interrupt.CONFIG_CHANGE)


class _QueueSetup:
    """What the driver has written about one queue so far."""

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self.size = max_size
        self.addresses = dict.fromkeys(ADDRESSES, 0)
        self.queue: Queue | None = None


class SetupState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of a queue's registers; `ring`: None if it is not ready."""

    size: Annotated[int, Meta(ge=1, le=MAX_SIZE)]
    addresses: Annotated[bytes, exactly(8 * len(ADDRESSES))]
    ring: QueueState | None


class TransportState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of a device and its registers; `selected`: the three SEL registers."""

    status: Annotated[int, Meta(ge=0, le=_ANY_STATUS)]
    interrupt_status: Annotated[int, Meta(ge=0, le=_ANY_INTERRUPT)]
    selected: Annotated[tuple[U32, ...], exactly(len(SELECTORS))]
    driver_features: tuple[U32, U32]
    generation: U32
    queues: tuple[SetupState, ...]
    device: msgspec.Raw


class MmioTransport:
    """One device on the bus: 4 KiB of registers, an interrupt line and kicks.

    `registers` holds what the guest reads, so it can be mapped for reads without an exit. `read`
    and `write` come from vCPU threads; `notify` and the device's methods from the event loop; a
    lock keeps them apart. Only the event loop works on queues: kicks by register go through `kick`.

    Args:
        device: what is behind the registers.
        memory: guest RAM. Live queues keep views of it until the reset (`close` drops them).
        interrupt: raises the line (an edge). Any thread, with the lock held; must not block.
        kick: has the event loop call `notify(index)` soon. Any thread, with the lock held; must not
            block, nor call `notify` itself.
        registers: REGION_BYTES for what the guest reads.

    Attributes:
        misuse: how often the driver did what.
        kicks: how often the event loop was woken to work on a queue.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        interrupt: Callable[[], None],
        kick: Callable[[int], None],
        registers: memoryview,
    ) -> None:
        self.device = device
        self.misuse: Counter[Misuse] = Counter()
        self.kicks = 0
        self._memory = memory
        self._interrupt = interrupt
        self._kick = kick
        self._bytes, self._words = registers, registers.cast("I")
        self._offered = int(OFFERED) | device.features
        self._generation = 0
        self._forget()
        self._readers: dict[int, Callable[[], int]] = {
            Register.MAGIC_VALUE: lambda: MAGIC,
            Register.VERSION: lambda: VERSION,
            Register.DEVICE_ID: lambda: int(device.device_type),
            Register.VENDOR_ID: lambda: VENDOR,
            Register.DEVICE_FEATURES: self._read_features,
            Register.QUEUE_NUM_MAX: lambda: setup.max_size if (setup := self._selected()) else 0,
            Register.QUEUE_READY: lambda: int(bool((setup := self._selected()) and setup.queue)),
            Register.INTERRUPT_STATUS: lambda: self._interrupt_status,
            Register.STATUS: lambda: int(self._status),
            **dict.fromkeys(SHARED_MEMORY, lambda: _NO_SHARED_MEMORY),
            Register.CONFIG_GENERATION: lambda: self._generation,
        }
        self._writers: dict[int, Callable[[int], None]] = {
            **{register: partial(self._select, register) for register in SELECTORS},
            Register.DRIVER_FEATURES: self._write_features,
            Register.QUEUE_NUM: self._write_queue_size,
            Register.QUEUE_READY: self._write_queue_ready,
            Register.QUEUE_NOTIFY: self._write_notify,
            Register.INTERRUPT_ACK: self._acknowledge,
            Register.STATUS: self._write_status,
            **{low + shift // 8: partial(self._write_address, low, shift) for low in ADDRESSES for shift in (0, 32)},
            Register.SHM_SEL: lambda value: None,
        }
        device.attach(self)
        self._show()

    @property
    def status(self) -> Status:
        """The device status, as the driver sees it."""
        return self._status

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
            if writer is None or (needed is not None and needed != self._status):
                self.report(Misuse.REGISTER)
                return
            writer(value)
            self._show()

    def notify(self, index: int) -> None:
        """Work on queue `index`: its eventfd has fired. From the event loop only."""
        with self.device.lock:
            self.kicks += 1
            if index not in self.device.queues or self._status != LIVE:
                self.report(Misuse.NOTIFY)
                return
            self.device.notify(index)

    def config_changed(self) -> None:
        """The device changed `config`: new generation, interrupt (virtio 1.2, 2.5, 4.2.2)."""
        with self.device.lock:
            self._generation = (self._generation + 1) & _LOW
            self._show()
            if self._status & Status.DRIVER_OK:
                self._raise(Interrupt.CONFIG_CHANGE)

    def save(self) -> TransportState:
        """Registers, queues and the device, for a snapshot; nothing else uses the device."""
        return TransportState(
            status=int(self._status),
            interrupt_status=self._interrupt_status,
            selected=tuple(self._selectors[register] for register in SELECTORS),
            driver_features=(self._driver_features & _LOW, self._driver_features >> 32),
            generation=self._generation,
            queues=tuple(
                SetupState(
                    size=setup.size,
                    addresses=pack_u64s(setup.addresses[register] for register in ADDRESSES),
                    ring=setup.queue.save() if setup.queue else None,
                )
                for setup in self._setups
            ),
            device=raw(self.device.save()),
        )

    def restore(self, saved: Saved) -> None:
        """Go on where `save` was called, with the guest's memory as it was then.

        Queues with chains are kicked, and unacknowledged interrupts raised again. Raises
        SnapshotError: `save` gives no such state, or a queue is outside RAM.
        """
        state = saved.decode(TransportState)
        with self.device.lock:
            self._status = Status(state.status)
            if self._status & ~_ANY_STATUS or self._status & LIVE not in {*STEPS, LIVE}:
                raise saved.damaged(f"status {state.status} is not on the way to a driver's")
            self._interrupt_status, self._generation = state.interrupt_status, state.generation
            self._selectors = dict(zip(SELECTORS, state.selected, strict=True))
            self._driver_features = state.driver_features[0] | state.driver_features[1] << 32
            if self._status & Status.FEATURES_OK and not features_acceptable(self._offered, self._driver_features):
                raise saved.damaged(f"driver_features {self._driver_features:#x} are not those of this device")
            if len(state.queues) != len(self._setups):
                raise saved.damaged(f"queues has {len(state.queues)} items, not {len(self._setups)}")
            for index, (setup, queue) in enumerate(zip(self._setups, state.queues, strict=True)):
                if why := self._restore_queue(setup, queue):
                    raise saved.damaged(f"queues[{index}] {why}")
            if self._status & Status.DRIVER_OK:
                self._activate()
            self.device.restore(Saved(f"{saved.part}.device", state.device))
            self._show()
            if self._interrupt_status:
                self._interrupt()

    def _restore_queue(self, setup: _QueueSetup, state: SetupState) -> str:
        """What is wrong with it, if anything."""
        if state.size > setup.max_size or state.size & state.size - 1:
            return f"has the size {state.size}; it must be a power of 2, at most {setup.max_size}"
        setup.size, setup.addresses = state.size, dict(zip(ADDRESSES, unpack_u64s(state.addresses), strict=True))
        if state.ring is None:
            return ""
        if not self._status & Status.FEATURES_OK:
            return "has a ring before the features are negotiated"
        try:
            setup.queue = self._make_queue(setup)
        except GuestAddressError as error:
            return f"has addresses that are not inside guest RAM: {error}"
        setup.queue.restore(state.ring)
        return ""

    def close(self) -> None:
        """Drop the views of guest memory and of the registers, so that their mappings can go."""
        with self.device.lock:
            self._reset()
            self._words.release()
            self._bytes.release()

    def interrupt_used(self) -> None:
        """Tell the driver of used buffers (`Host`)."""
        self._raise(Interrupt.USED_BUFFER)

    def kick(self, index: int) -> None:
        """Have `notify(index)` called from the event loop (`Host`)."""
        self._kick(index)

    def report(self, misuse: Misuse) -> None:
        """Count a driver's error; a senseless ring needs a reset (virtio 1.2, 2.1.2)."""
        self.misuse[misuse] += 1
        if misuse not in FATAL or self._status & Status.DEVICE_NEEDS_RESET:
            return
        self._stop_queues()
        self._status |= Status.DEVICE_NEEDS_RESET
        self._show()
        self._raise(Interrupt.CONFIG_CHANGE)

    def _stop_queues(self) -> None:
        for queue in self.device.queues.values():
            queue.stop()

    def _show(self) -> None:
        for register, reader in self._readers.items():
            self._words[register // WORD] = reader()
        config = self.device.config[: REGION_BYTES - Register.CONFIG]
        self._bytes[Register.CONFIG : Register.CONFIG + len(config)] = config

    def _raise(self, cause: Interrupt) -> None:
        self._interrupt_status |= int(cause)
        self._words[Register.INTERRUPT_STATUS // WORD] = self._interrupt_status
        self._interrupt()

    def _acknowledge(self, value: int) -> None:
        self._interrupt_status &= ~value

    def _forget(self) -> None:
        """Power-on registers; the counters and the configuration's generation stay."""
        self._status = RESET
        self._interrupt_status = 0
        self._selectors = dict.fromkeys(SELECTORS, 0)
        self._driver_features = 0
        self._setups = [_QueueSetup(size) for size in self.device.queue_sizes]

    def _reset(self) -> None:
        self.device.reset()
        self._forget()

    def _select(self, register: Register, value: int) -> None:
        self._selectors[register] = value

    def _read_features(self) -> int:
        word = self._selectors[Register.DEVICE_FEATURES_SEL]
        return self._offered >> 32 * word & _LOW if word < 2 else 0

    def _write_features(self, value: int) -> None:
        word = self._selectors[Register.DRIVER_FEATURES_SEL]
        if word < 2:
            self._driver_features = self._driver_features & ~(_LOW << 32 * word) | value << 32 * word
        elif value:  # a feature of a number beyond 63: we offer none
            self.report(Misuse.FEATURES)

    def _selected(self) -> _QueueSetup | None:
        index = self._selectors[Register.QUEUE_SEL]
        return self._setups[index] if index < len(self._setups) else None

    def _unready(self) -> _QueueSetup | None:
        """The selected queue if its registers may still be changed."""
        setup = self._selected()
        if setup is None or setup.queue:
            self.report(Misuse.REGISTER)
            return None
        return setup

    def _write_queue_size(self, value: int) -> None:
        setup = self._unready()
        if setup is None:
            return
        if not 0 < value <= setup.max_size or value & value - 1:
            self.report(Misuse.QUEUE_SIZE)
            return
        setup.size = value

    def _write_address(self, low: Register, shift: int, value: int) -> None:
        setup = self._unready()
        if setup is not None:
            setup.addresses[low] = setup.addresses[low] & ~(_LOW << shift) | value << shift

    def _write_queue_ready(self, value: int) -> None:
        """Make or unmake the queue; with bad addresses it reads back as not ready."""
        setup = self._selected()
        if setup is None or value > 1:
            self.report(Misuse.REGISTER)
            return
        setup.queue = None
        if not value:
            return
        try:
            setup.queue = self._make_queue(setup)
        except GuestAddressError:
            self.report(Misuse.QUEUE_ADDRESS)

    def _make_queue(self, setup: _QueueSetup) -> Queue:
        layout = QueueLayout(setup.size, *(setup.addresses[register] for register in ADDRESSES))
        event_idx = bool(self._driver_features & Feature.RING_EVENT_IDX)
        indirect = bool(self._driver_features & Feature.RING_INDIRECT_DESC)
        return Queue(self._memory, layout, event_idx=event_idx, indirect=indirect, report=self.report)

    def _write_notify(self, value: int) -> None:
        if self._status == LIVE and value in self.device.queues:
            self._kick(value)
        else:
            self.report(Misuse.NOTIFY)

    def _write_status(self, value: int) -> None:
        if value == RESET:
            self._reset()
            return
        current = self._status
        if value == current:
            return
        if value == current | Status.FAILED:
            self._status = current | Status.FAILED
            self._stop_queues()
            return
        if STEPS.get(current) != value:
            self.report(Misuse.STATUS)
            return
        if value == NEGOTIATED and not features_acceptable(self._offered, self._driver_features):
            self.report(Misuse.FEATURES)  # FEATURES_OK stays clear, which the driver reads back (virtio 1.2, 2.2.2)
            return
        self._status = STEPS[current]
        if value == LIVE:
            self._activate()

    def _activate(self) -> None:
        queues = {index: setup.queue for index, setup in enumerate(self._setups) if setup.queue}
        self.device.activate(queues, self._driver_features)
        for index, queue in queues.items():
            if queue.has_chains():  # made available before DRIVER_OK, when a kick would have been lost
                self._kick(index)
