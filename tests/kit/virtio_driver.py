"""A virtio driver in plain memory: it writes registers and rings as a guest would, well-behaved
unless a test makes it do otherwise.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mayfly.vmm.devices.virtio.buffers import scatter
from mayfly.vmm.devices.virtio.console import Console
from mayfly.vmm.devices.virtio.device import RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1, VirtioDevice
from mayfly.vmm.devices.virtio.mmio import REGION_BYTES, MmioTransport
from mayfly.vmm.devices.virtio.queue import INDIRECT, NEXT, WRITE
from mayfly.vmm.devices.virtio.registers import DeviceStatus, Register
from mayfly.vmm.memory import GuestMemory

RAM_BASE = 0x10_0000
RAM_BYTES = 8 << 20
DESCRIPTOR = struct.Struct("<QIHH")
ALL = int(VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC)
PLAIN = int(VERSION_1)


@dataclass
class Buffer:
    """One buffer of a chain: `data` for the device to read, or `room` bytes for it to write."""

    data: bytes = b""
    room: int = 0


class Ram:
    """Memory of one region, and an allocator that only goes forward; `rewind` gives back all since
    `mark`.
    """

    def __init__(self, size: int = RAM_BYTES, base: int = RAM_BASE, memory_type: type[GuestMemory] = GuestMemory) -> None:
        self.base = base
        self.bytes = bytearray(size)
        self.memory = memory_type([(base, memoryview(self.bytes))])
        self._next = 0

    def allocate(self, size: int, alignment: int = 16) -> int:
        at = -(-self._next // alignment) * alignment
        if at + size > len(self.bytes):
            raise MemoryError("the test's RAM is used up")
        self._next = at + size
        return self.base + at

    def mark(self) -> int:
        return self._next

    def rewind(self, mark: int) -> None:
        self._next = mark

    def get(self, address: int, size: int) -> bytes:
        at = address - self.base
        return bytes(self.bytes[at : at + size])

    def put(self, address: int, data: bytes) -> None:
        at = address - self.base
        self.bytes[at : at + len(data)] = data

    def get16(self, address: int) -> int:
        return int.from_bytes(self.get(address, 2), "little")

    def put16(self, address: int, value: int) -> None:
        self.put(address, (value & 0xFFFF).to_bytes(2, "little"))


class DriverQueue:
    """The driver's side of one split virtqueue. `offer` makes a chain available, `used` takes back
    what the device returned.
    """

    def __init__(self, ram: Ram, size: int, *, event_idx: bool) -> None:
        self.ram = ram
        self.size = size
        self.event_idx = event_idx
        self.descriptors = ram.allocate(16 * size, 16)
        self.available = ram.allocate(6 + 2 * size, 2)
        self.used_ring = ram.allocate(6 + 8 * size, 4)
        self.free = list(range(size))
        self.chains: dict[int, tuple[list[int], list[tuple[int, int, bool]]]] = {}
        self.offered = 0
        self.kicked = 0
        self.seen = 0

    def write_descriptor(self, index: int, address: int, length: int, flags: int, following: int = 0, table: int | None = None) -> None:
        self.ram.put((table or self.descriptors) + 16 * index, DESCRIPTOR.pack(address, length, flags, following))

    def write_available(self, head: int) -> None:
        """Put `head` into the ring and move the index on."""
        self.ram.put16(self.available + 4 + 2 * (self.offered % self.size), head)
        self.offered = (self.offered + 1) & 0xFFFF
        self.ram.put16(self.available + 2, self.offered)

    def offer(self, buffers: Sequence[Buffer], *, indirect: bool = False) -> int:
        """Make a chain of `buffers` available; its head."""
        places = [(self.ram.allocate(max(len(b.data), b.room), 1), len(b.data) or b.room, not b.data) for b in buffers]
        for (address, _, _), buffer in zip(places, buffers, strict=True):
            self.ram.put(address, buffer.data)
        return self.offer_places(places, indirect=indirect)

    def offer_places(self, places: list[tuple[int, int, bool]], *, indirect: bool = False, direct: int = 0) -> int:
        """As `offer`, of (address, length, writable). With `indirect` the first `direct` places
        stay out of the table.
        """
        direct = min(direct, len(places) - 1) if indirect else len(places)
        indices = [self.free.pop(0) for _ in range(direct + indirect)]
        self._link(places[:direct], indices, self.descriptors, more=indirect)
        if indirect:
            rest = places[direct:]
            table = self.ram.allocate(16 * len(rest), 16)
            self._link(rest, list(range(len(rest))), table, more=False)
            self.write_descriptor(indices[direct], table, 16 * len(rest), int(INDIRECT))
        self.chains[indices[0]] = (indices, places)
        self.write_available(indices[0])
        return indices[0]

    def _link(self, places: list[tuple[int, int, bool]], slots: list[int], table: int, *, more: bool) -> None:
        for position, (address, length, writable) in enumerate(places):
            linked = more or position < len(places) - 1
            flags = (WRITE if writable else 0) | (NEXT if linked else 0)
            self.write_descriptor(slots[position], address, length, int(flags), slots[position + 1] if linked else 0, table)

    def must_kick(self) -> bool:
        """Whether the device asks to be told of what was offered since the last time (virtio 1.2,
        2.7.10).
        """
        old, new = self.kicked, self.offered
        self.kicked = new
        if not self.event_idx:
            return old != new and not self.ram.get16(self.used_ring) & 1
        event = self.ram.get16(self.used_ring + 4 + 8 * self.size)
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def used(self) -> list[tuple[int, int, bytes]]:
        """(head, length, the bytes written) of each chain that came back."""
        result = []
        while self.seen != self.ram.get16(self.used_ring + 2):
            head, length = struct.unpack("<II", self.ram.get(self.used_ring + 4 + 8 * (self.seen % self.size), 8))
            self.seen = (self.seen + 1) & 0xFFFF
            indices, places = self.chains.pop(head)
            self.free.extend(indices)
            written = b"".join(self.ram.get(address, size) for address, size, writable in places if writable)
            result.append((head, length, written[:length]))
        self.ask_interrupt()
        return result

    def ask_interrupt(self) -> None:
        """With EVENT_IDX: for the next chain that comes back."""
        if self.event_idx:
            self.ram.put16(self.available + 4 + 2 * self.size, self.seen)


class Driver:
    """Brings a device up through its registers, and counts kicks and interrupts. What waits for the
    event loop is in `pending`.
    """

    def __init__(self, device: VirtioDevice, ram: Ram | None = None) -> None:
        self.ram = ram or Ram()
        self.device = device
        self.interrupts = 0
        self.kicks = 0
        self.pending: list[int] = []
        self.queues: list[DriverQueue] = []
        self.registers = bytearray(REGION_BYTES)
        self.transport = MmioTransport(device, self.ram.memory, self._interrupted, self.pending.append, memoryview(self.registers))

    def _interrupted(self) -> None:
        self.interrupts += 1

    def read(self, register: int) -> int:
        return self.transport.read(register, 4)

    def write(self, register: int, value: int) -> None:
        self.transport.write(register, 4, value)

    def step(self, *statuses: DeviceStatus) -> None:
        for status in statuses:
            self.write(Register.STATUS, self.read(Register.STATUS) | status)

    def negotiate(self, features: int) -> None:
        """Reset, then up to FEATURES_OK."""
        self.write(Register.STATUS, 0)
        self.step(DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER)
        for half in (0, 1):
            self.write(Register.DRIVER_FEATURES_SEL, half)
            self.write(Register.DRIVER_FEATURES, features >> 32 * half & 0xFFFF_FFFF)
        self.step(DeviceStatus.FEATURES_OK)

    def set_up_queue(self, index: int, queue: DriverQueue) -> None:
        self.write(Register.QUEUE_SEL, index)
        self.write(Register.QUEUE_NUM, queue.size)
        for register, address in (
            (Register.QUEUE_DESC_LOW, queue.descriptors),
            (Register.QUEUE_DRIVER_LOW, queue.available),
            (Register.QUEUE_DEVICE_LOW, queue.used_ring),
        ):
            self.write(register, address & 0xFFFF_FFFF)
            self.write(register + 4, address >> 32)
        self.write(Register.QUEUE_READY, 1)

    def start(self, features: int = ALL, sizes: Sequence[int] = ()) -> None:
        """All the way to DRIVER_OK, with every queue at its greatest size, or `sizes`."""
        features |= self.device.features
        self.negotiate(features)
        self.queues = []
        for index, greatest in enumerate(self.device.queue_sizes):
            queue = DriverQueue(self.ram, sizes[index] if sizes else greatest, event_idx=bool(features & RING_EVENT_IDX))
            self.set_up_queue(index, queue)
            self.queues.append(queue)
        self.step(DeviceStatus.DRIVER_OK)

    def kick(self, index: int, *, always: bool = False) -> None:
        """Kick as the ring asks (or `always`), as a write to the register, and let the event loop
        run.
        """
        if self.queues[index].must_kick() or always:
            self.kicks += 1
            self.write(Register.QUEUE_NOTIFY, index)
        self.run()

    def run(self, limit: int = 1000) -> None:
        """The event loop: carry out the kicks that wait."""
        for _ in range(limit):
            if not self.pending:
                return
            self.transport.notify(self.pending.pop(0))
        raise AssertionError("the device kicks itself without end")

    def acknowledge(self) -> int:
        """As Linux's interrupt handler: read the status, write it back."""
        status = self.read(Register.INTERRUPT_STATUS)
        self.write(Register.INTERRUPT_ACK, status)
        return status

    def send(self, index: int, data: bytes, *, indirect: bool = False) -> None:
        """One chain of one buffer for the device to read, and a kick."""
        self.queues[index].offer([Buffer(data)], indirect=indirect)
        self.kick(index)


def give(console: Console, data: bytes) -> int:
    """Write `data` to a console's port as its host would; how many bytes of it found room."""
    done = 0
    while done < len(data) and (count := console.receive(partial(scatter, data[done:]))) is not None:
        done += count
    return done
