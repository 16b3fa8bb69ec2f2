"""A split virtqueue, the device's side (virtio 1.2, 2.7). It opens nothing.

    descriptors   {address u64, length u32, flags u16, next u16} * size               by the driver
    available     flags u16, idx u16, head u16 * size, used_event u16                 by the driver
    used          flags u16, idx u16, {id u32, length u32} * size, avail_event u16    by the device

The driver is hostile and may rewrite all of it at any moment: each field that counts is read once,
indices have mirrors here, and a chain never has more descriptors than the queue. `pop` gives a
chain that breaks a rule without buffers, so that the device returns it with length 0. A ring whose
index or head makes no sense stops the queue: the transport then sets DEVICE_NEEDS_RESET.

Memory order. Numbers that the driver may be looking at are stored through memoryviews cast to their
type, one store of that size each; `struct.pack_into` would clear the bytes first. Fences (order.py)
stand where the specification asks for them: acquire between the available index and what it stands
for (2.7.13.3), release between used elements and their index (2.7.8.2), a full one before the
driver's word on notifications is read (2.7.7, 2.7.10).
"""

import functools
import struct
from collections.abc import Callable
from typing import NamedTuple

from mayfly.schema import Record, msgspec
from mayfly.vmm.devices.virtio.misuse import FATAL, Misuse
from mayfly.vmm.kvm import order
from mayfly.vmm.kvm.chains import Batch, Ring
from mayfly.vmm.memory import GuestAddressError, GuestMemory
from mayfly.vmm.snapshot.state import U16

MAX_SIZE = 32768  # virtio 1.2, 2.7
MAX_CHAIN_BYTES = 1 << 32  # virtio 1.2, 2.7.5: no chain is longer than that in total
TURN_DESCRIPTORS = 2048
"""So many are read between two `publish`: some 2 ms. The rest is for the event loop's next turn."""

_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next (virtio 1.2, 2.7.5)
_DESCRIPTOR_BYTES = _DESCRIPTOR.size
NEXT, WRITE, INDIRECT = 1, 2, 4  # Flags (virtio 1.2, 2.7.5)
FULL = 1  # See `Batch.take`
FAULTS = (
    Misuse.AVAILABLE_INDEX,
    Misuse.HEAD,
    Misuse.NEXT_INDEX,
    Misuse.INDIRECT,
    Misuse.BUFFER_LENGTH,
    Misuse.DIRECTION,
    Misuse.OUTSIDE_RAM,
    Misuse.CHAIN_LENGTH,
)
"""What it says of a chain, from FULL + 1 on."""
_TAKEN, _RETURNED, _PUBLISHED = range(3)  # Counts of chains
_NO_INTERRUPT = _NO_NOTIFY = 1
"""The flags word of a ring, of use only without EVENT_IDX (virtio 1.2, 2.7.6 and 2.7.8)."""


class _BadChainError(Exception):
    """A chain breaks a rule, its argument; never leaves this module."""


class Chain(msgspec.Struct):
    """A chain's buffers, as views of memory that the guest may change at any time.

    `head` is for `Queue.push`; `size` is the bytes of all buffers. A bad chain has no buffers.
    """

    head: int
    readable: list[memoryview]
    writable: list[memoryview]
    size: int


class QueueLayout(NamedTuple):
    """Where the driver put a queue's three parts; `size` is a power of 2."""

    size: int
    descriptors: int
    available: int
    used: int


class QueueState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of a live queue, besides guest memory."""

    returned: U16
    stopped: bool


class Queue:
    """One live split virtqueue, with what was negotiated; `report` hears of the driver's errors.

    Raises GuestAddressError: a part is misaligned or outside RAM.
    """

    def __init__(
        self, memory: GuestMemory, layout: QueueLayout, *, event_idx: bool, indirect: bool, report: Callable[[Misuse], None]
    ) -> None:
        for address, alignment in ((layout.descriptors, 16), (layout.available, 2), (layout.used, 4)):
            if address % alignment:
                raise GuestAddressError(f"{address:#x} is not a multiple of {alignment}")
        self.size = size = layout.size
        self.stopped = False
        self._memory, self._event_idx, self._indirect, self._report = memory, event_idx, indirect, report
        self._descriptors = memory.slice(layout.descriptors, _DESCRIPTOR_BYTES * size)
        self._available = memory.slice(layout.available, 6 + 2 * size).cast("H")
        self._used = used = memory.slice(layout.used, 6 + 8 * size)
        self._used_header = used[:4].cast("H")
        self._used_ring = used[4:-2].cast("I")
        self._avail_event = used[-2:].cast("H")
        self._counts = memoryview(bytearray(6)).cast("H")  # free-running, which C has too for batches
        self._offered = 0  # chains seen available
        self._left = TURN_DESCRIPTORS

    def pop(self) -> Chain | None:
        """Take the next chain. None: none is there, the queue has stopped, or the turn is over."""
        taken = self._counts[_TAKEN]
        if self._left <= 0 or (taken == self._offered and not self._look()):
            return None
        self._left -= 1
        head = self._available[2 + taken % self.size]
        if head >= self.size:
            self._stop(Misuse.HEAD)
            return None
        self._counts[_TAKEN] = (taken + 1) & 0xFFFF
        try:
            address, length, flags, _ = _DESCRIPTOR.unpack_from(self._descriptors, head * _DESCRIPTOR_BYTES)
            if not flags & ~WRITE and length:  # one buffer, as most chains are
                buffer = [self._memory.slice(address, length)]
                return Chain(head, [], buffer, length) if flags else Chain(head, buffer, [], length)
            return self._walk(head)
        except _BadChainError as error:
            self._report(*error.args)
        except GuestAddressError:
            self._report(Misuse.OUTSIDE_RAM)
        return Chain(head, [], [], 0)

    def take(self, batch: Batch, *, writable: bool, most: int = MAX_SIZE) -> bool:
        """Take what is available, `most` chains at most, of buffers that are all to be written or
        all to be read. Bad chains go back at once. False: the batch has no room for the next one.
        """
        fits = True
        while self._left > 0 and not self.stopped:
            fault, head = batch.take(self.ring, most, WRITE if writable else 0)
            if fault <= FULL:
                fits = fault < FULL
                break
            if (misuse := FAULTS[fault - FULL - 1]) in FATAL:
                self._stop(misuse)
                break
            self._report(misuse)
            self._counts[_TAKEN] = (self._counts[_TAKEN] + 1) & 0xFFFF
            self.push(head, 0)
            self._left -= self.size  # so many descriptors may have been read
        self._offered = self._counts[_TAKEN]
        return fits

    def give_back(self, batch: Batch) -> None:
        """Give the batch's finished chains back. `publish` shows them to the driver."""
        batch.give_back(self.ring)

    @functools.cached_property
    def ring(self) -> Ring:
        """For batches."""
        parts = self._descriptors, self._available, self._used, self._counts
        return Ring(self._memory.regions, *parts, indirect=self._indirect, event_idx=self._event_idx)

    def push(self, head: int, length: int) -> None:
        """Give a chain back with `length` bytes written. `publish` shows it to the driver."""
        returned = self._counts[_RETURNED]
        slot = 2 * (returned % self.size)
        self._used_ring[slot] = head
        self._used_ring[slot + 1] = length
        self._counts[_RETURNED] = (returned + 1) & 0xFFFF

    def publish(self) -> bool:
        """End a turn, and show what was pushed; whether the driver wants an interrupt (2.7.7)."""
        self._left = TURN_DESCRIPTORS
        _, new, old = self._counts
        if old == new:
            return False
        order.release()
        self._used_header[1] = self._counts[_PUBLISHED] = new
        order.full()
        if not self._event_idx:
            return not self._available[0] & _NO_INTERRUPT
        event = self._available[2 + self.size]
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def enable_notify(self) -> bool:
        """Ask for a kick at the next chain. True: one is there already, and may bring no kick."""
        if self._event_idx:
            self._avail_event[0] = self._counts[_TAKEN]
        else:
            self._used_header[0] = 0
        order.full()
        return not self.stopped and self.has_chains()

    def suppress_notify(self) -> None:
        """Ask for no kicks. With EVENT_IDX the stale event index does that (virtio 1.2, 2.7.10)."""
        if not self._event_idx:
            self._used_header[0] = _NO_NOTIFY

    def save(self) -> QueueState:
        """For a snapshot: chains taken and not given back count as not taken."""
        return QueueState(returned=self._counts[_RETURNED], stopped=self.stopped)

    def restore(self, state: QueueState) -> None:
        """Go on where `save` was called; the driver has seen all that was returned by then."""
        self._offered = state.returned
        self._counts[:] = memoryview(struct.pack("3H", *[state.returned] * 3)).cast("H")
        self.stopped = state.stopped

    def has_chains(self) -> bool:
        """Whether the driver has made a chain available that was not taken."""
        return self._available[1] != self._counts[_TAKEN]

    def stop(self) -> None:
        """Take no more chains; those already taken may still be given back."""
        self.stopped = True
        self._offered = self._counts[_TAKEN]

    def _stop(self, misuse: Misuse) -> None:
        self.stop()
        self._report(misuse)

    def _look(self) -> bool:
        """Read the driver's index. Chains still out count against the queue's size too."""
        if self.stopped:
            return False
        offered = self._available[1]
        order.acquire()
        taken, returned, _ = self._counts
        if (offered - taken) & 0xFFFF > self.size - ((taken - returned) & 0xFFFF):
            self._stop(Misuse.AVAILABLE_INDEX)
            return False
        self._offered = offered
        return offered != taken

    def _walk(self, head: int) -> Chain:
        """Follow a chain of `size` descriptors at most, each read once (virtio 1.2, 2.7.5.3)."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        read, view = _DESCRIPTOR.unpack_from, self._memory.slice
        table, entries, index, total, left = self._descriptors, self.size, head, 0, self.size
        while left:
            if index >= entries:
                raise _BadChainError(Misuse.NEXT_INDEX)
            address, length, flags, index = read(table, index * _DESCRIPTOR_BYTES)
            if flags & INDIRECT:
                if table is not self._descriptors or not self._indirect or flags & NEXT or not length or length % _DESCRIPTOR_BYTES:
                    raise _BadChainError(Misuse.INDIRECT)
                table, entries, index = view(address, length), length // _DESCRIPTOR_BYTES, 0
                continue
            left -= 1
            self._left -= 1
            total += length
            if not length:
                raise _BadChainError(Misuse.BUFFER_LENGTH)
            if flags & WRITE:
                writable.append(view(address, length))
            elif writable:
                raise _BadChainError(Misuse.BUFFER_ORDER)
            else:
                readable.append(view(address, length))
            if not flags & NEXT:
                if total > MAX_CHAIN_BYTES:
                    raise _BadChainError(Misuse.BUFFER_LENGTH)
                return Chain(head, readable, writable, total)
        raise _BadChainError(Misuse.CHAIN_LENGTH)
