"""A split virtqueue, the device's side (virtio 1.2, 2.7). It opens nothing; guest memory is handed
in.

    descriptor table   {address u64, length u32, flags u16, next u16} * size            written by
    the driver, 16-aligned available ring     flags u16, idx u16, head u16 * size, used_event u16
    written by the driver, 2-aligned used ring          flags u16, idx u16, {id u32, length u32} *
    size, avail_event u16 written by the device, 4-aligned

The driver is hostile and may rewrite all of it at any moment: each field that counts is read once,
indices have mirrors here, and a chain never has more descriptors than the queue. A chain that
breaks a rule comes out of `pop` without buffers, so that the device gives it back with a used
length of 0. A ring whose index or head makes no sense stops the queue: the transport then sets
DEVICE_NEEDS_RESET.

Memory order. A number that the driver may be looking at is stored through a memoryview cast to its
type, which is one store of that size; `struct.pack_into` would not do, as it clears the bytes
first. Fences (vmm/kvm/order.py) stand where the specification asks for order: acquire between the
available index and what it stands for (2.7.13.3), release between used elements and the used index
(2.7.8.2), a full one before the driver's word on notifications is read (2.7.7, 2.7.10).
"""

import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from mayfly.schema import Record
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.kvm import order
from mayfly.vmm.memory import GuestAddressError, GuestMemory
from mayfly.vmm.snapshot.state import U16

MAX_SIZE = 32768
"""virtio 1.2, 2.7."""
MAX_CHAIN_BYTES = 1 << 32
"""virtio 1.2, 2.7.5: no chain is longer than that in total."""

TURN_DESCRIPTORS = 2048
"""So many are read between two `publish`: some 2 ms. The rest is for the event loop's next turn."""

_DESCRIPTOR = struct.Struct("<QIHH")
"""address, length, flags, next (virtio 1.2, 2.7.5)."""
_DESCRIPTOR_BYTES = _DESCRIPTOR.size
_PLACE_AND_KIND = struct.Struct("<Q6s2x")
"""The same for comparing: address; length and flags."""
_KIND = struct.Struct("<IH")
"""length, flags."""


class DescriptorFlag(IntFlag):
    """virtio 1.2, 2.7.5."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


class RingFlag(IntFlag):
    """The flags word of a ring, of use only without EVENT_IDX (virtio 1.2, 2.7.6 and 2.7.8)."""

    NO_INTERRUPT = 1
    NO_NOTIFY = 1


# An operation on an IntFlag costs a microsecond, on an int a fiftieth of it; these are used once or
# more a descriptor.
_NEXT = int(DescriptorFlag.NEXT)
_WRITE = int(DescriptorFlag.WRITE)
_INDIRECT = int(DescriptorFlag.INDIRECT)
_NO_INTERRUPT = int(RingFlag.NO_INTERRUPT)
_NO_NOTIFY = int(RingFlag.NO_NOTIFY)


class _BadChainError(Exception):
    """A chain breaks a rule; never leaves this module."""

    def __init__(self, misuse: Misuse) -> None:
        self.misuse = misuse


@dataclass(slots=True)
class Chain:
    """One chain that the driver made available: its buffers, as views of guest memory which the
    guest may change at any time.

    `head` goes back to `Queue.push`; `size` is the bytes of all the buffers. A chain that broke a
    rule (already counted) has no buffers.
    """

    head: int
    readable: list[memoryview]
    writable: list[memoryview]
    size: int


class QueueLayout(NamedTuple):
    """Where the driver put the three parts of a queue, and how many entries they have (a power of
    2).
    """

    size: int
    descriptors: int
    available: int
    used: int


class QueueState(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What a snapshot holds of a live queue, besides guest memory."""

    returned: U16
    stopped: bool


class Queue:
    """One live split virtqueue.

    Args:
        memory: guest RAM.
        layout: as the driver wrote it to the registers.
        event_idx: VIRTIO_F_EVENT_IDX was negotiated.
        indirect: VIRTIO_F_INDIRECT_DESC was negotiated.
        report: told of each thing that the driver does wrong.

    Raises:
        GuestAddressError: a part is not aligned, or not inside RAM.
    """

    def __init__(
        self, memory: GuestMemory, layout: QueueLayout, *, event_idx: bool, indirect: bool, report: Callable[[Misuse], None]
    ) -> None:
        for address, alignment in ((layout.descriptors, 16), (layout.available, 2), (layout.used, 4)):
            if address % alignment:
                raise GuestAddressError(f"{address:#x} is not a multiple of {alignment}")
        size = layout.size
        self.size = size
        self.stopped = False
        self._memory = memory
        self._event_idx = event_idx
        self._indirect = indirect
        self._report = report
        self._descriptors = memory.slice(layout.descriptors, _DESCRIPTOR_BYTES * size)
        self._available = memory.slice(layout.available, 6 + 2 * size).cast("H")
        used = memory.slice(layout.used, 6 + 8 * size)
        self._used_header = used[:4].cast("H")
        self._used_ring = used[4:-2].cast("I")
        self._avail_event = used[-2:].cast("H")
        # Free-running 16-bit counts, as the rings' own: chains taken, chains the driver is known to
        # have made available, chains given back, and how many of those the driver has been shown.
        self._taken = 0
        self._offered = 0
        self._returned = 0
        self._published = 0
        self._left = TURN_DESCRIPTORS

    def pop(self) -> Chain | None:
        """Take the next chain. None: there is none, the queue has stopped, or this turn's
        descriptors are used up; in the last case `enable_notify` says that there are more.
        """
        if self._left <= 0 or (self._taken == self._offered and not self._look()):
            return None
        self._left -= 1
        head = self._available[2 + self._taken % self.size]
        if head >= self.size:
            self._stop(Misuse.HEAD)
            return None
        self._taken = (self._taken + 1) & 0xFFFF
        try:
            address, length, flags, _ = _DESCRIPTOR.unpack_from(self._descriptors, head * _DESCRIPTOR_BYTES)
            if not flags & ~_WRITE and length:  # one buffer, as most chains are
                buffer = [self._memory.slice(address, length)]
                return Chain(head, [], buffer, length) if flags else Chain(head, buffer, [], length)
            return self._walk(head)
        except _BadChainError as error:
            self._report(error.misuse)
        except GuestAddressError:
            self._report(Misuse.OUTSIDE_RAM)
        return Chain(head, [], [], 0)

    def pop_buffers(self) -> tuple[list[int], int, list[memoryview]]:
        """Take the chains that the driver has made available, as long as each is a single buffer to
        write to, as long as the first one.

        Quicker than `pop` by far, as a large packet takes many. None is taken where one is wrong:
        that is for `pop`.

        Returns: Their heads, the length of each, and their bytes; buffers that lie side by side in
            memory are one view.
        """
        heads = self._offered_heads() if self._left > 0 else []
        self._left -= len(heads)
        if not heads or max(heads) >= self.size:
            return [], 0, []
        descriptors, read = self._descriptors, _PLACE_AND_KIND.unpack_from
        buffers = [read(descriptors, head * _DESCRIPTOR_BYTES) for head in heads]
        _, wanted = buffers[0]
        length, flags = _KIND.unpack(wanted)
        if flags != _WRITE or not length:
            return [], 0, []
        starts: list[int] = []
        ends: list[int] = []
        end = -1
        for address, kind in buffers:
            if kind != wanted:
                break
            if address != end:
                starts.append(address)
                ends.append(end)
            end = address + length
        sizes = [after - start for start, after in zip(starts, [*ends[1:], end], strict=True)]
        try:
            views = [*map(self._memory.slice, starts, sizes)]
        except GuestAddressError:
            return [], 0, []
        count = sum(sizes) // length
        self._taken = (self._taken + count) & 0xFFFF
        return heads[:count], length, views

    def _offered_heads(self) -> list[int]:
        """The heads of all chains that are available."""
        self._look()
        begin, count = self._taken % self.size, (self._offered - self._taken) & 0xFFFF
        ring = self._available[2:-1]
        return ring[begin : begin + count].tolist() + ring[: max(0, begin + count - self.size)].tolist()

    def push(self, head: int, length: int) -> None:
        """Give a chain back, `length` bytes of its writable buffers filled. The driver sees it at
        the next `publish`.
        """
        slot = 2 * (self._returned % self.size)
        self._used_ring[slot] = head
        self._used_ring[slot + 1] = length
        self._returned = (self._returned + 1) & 0xFFFF

    def push_all(self, heads: list[int], lengths: list[int]) -> None:
        """As `push`, for several, which are not more than the queue's size."""
        elements = heads + lengths
        elements[::2], elements[1::2] = heads, lengths
        begin = 2 * (self._returned % self.size)
        fits = 2 * self.size - begin
        self._used_ring[begin : begin + len(elements)] = array("I", elements[:fits])
        if len(elements) > fits:
            self._used_ring[: len(elements) - fits] = array("I", elements[fits:])
        self._returned = (self._returned + len(heads)) & 0xFFFF

    def publish(self) -> bool:
        """Show the driver all that was pushed since the last time; true if it asks for an interrupt
        (virtio 1.2, 2.7.7). A turn of the device's work ends here.
        """
        self._left = TURN_DESCRIPTORS
        old, new = self._published, self._returned
        if old == new:
            return False
        order.release()
        self._used_header[1] = new
        self._published = new
        order.full()
        if not self._event_idx:
            return not self._available[0] & _NO_INTERRUPT
        event = self._available[2 + self.size]
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def enable_notify(self) -> bool:
        """Ask the driver for a kick at its next chain. True if one is there already, for which no
        kick may come.
        """
        if self._event_idx:
            self._avail_event[0] = self._taken
        else:
            self._used_header[0] = 0
        order.full()
        return not self.stopped and self.has_chains()

    def suppress_notify(self) -> None:
        """Ask for no kicks. With EVENT_IDX an event index that stays behind does that by itself
        (virtio 1.2, 2.7.10).
        """
        if not self._event_idx:
            self._used_header[0] = _NO_NOTIFY

    def save(self) -> QueueState:
        """What a snapshot needs. Chains that the device has taken and not given back are as if it
        had not taken them.
        """
        return QueueState(returned=self._returned, stopped=self.stopped)

    def restore(self, state: QueueState) -> None:
        """Go on where `save` was called; the driver has seen all that was returned by then."""
        self._taken = self._offered = self._returned = self._published = state.returned
        self.stopped = state.stopped

    def has_chains(self) -> bool:
        """Whether the driver has made a chain available that was not taken."""
        return self._available[1] != self._taken

    def stop(self) -> None:
        """Take no more chains, whatever the driver does; those already taken may still be given
        back.
        """
        self.stopped = True
        self._offered = self._taken

    def _stop(self, misuse: Misuse) -> None:
        self.stop()
        self._report(misuse)

    def _look(self) -> bool:
        """Read the driver's index. It may not go back behind chains already taken; those still out
        count against the queue's size too.
        """
        if self.stopped:
            return False
        offered = self._available[1]
        order.acquire()
        out = (self._taken - self._returned) & 0xFFFF
        if (offered - self._taken) & 0xFFFF > self.size - out:
            self._stop(Misuse.AVAILABLE_INDEX)
            return False
        self._offered = offered
        return offered != self._taken

    def _walk(self, head: int) -> Chain:
        """Follow a chain, each descriptor read once. The room of one queue's size ends a loop
        (virtio 1.2, 2.7.5.3).
        """
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        read, view = _DESCRIPTOR.unpack_from, self._memory.slice
        table, entries, index, total, left = self._descriptors, self.size, head, 0, self.size
        while left:
            if index >= entries:
                raise _BadChainError(Misuse.NEXT_INDEX)
            address, length, flags, index = read(table, index * _DESCRIPTOR_BYTES)
            if flags & _INDIRECT:
                if table is not self._descriptors or not self._indirect or flags & _NEXT or not length or length % _DESCRIPTOR_BYTES:
                    raise _BadChainError(Misuse.INDIRECT)
                table, entries, index = view(address, length), length // _DESCRIPTOR_BYTES, 0
                continue
            left -= 1
            self._left -= 1
            total += length
            if not length:
                raise _BadChainError(Misuse.BUFFER_LENGTH)
            if flags & _WRITE:
                writable.append(view(address, length))
            elif writable:
                raise _BadChainError(Misuse.BUFFER_ORDER)
            else:
                readable.append(view(address, length))
            if not flags & _NEXT:
                if total > MAX_CHAIN_BYTES:
                    raise _BadChainError(Misuse.BUFFER_LENGTH)
                return Chain(head, readable, writable, total)
        raise _BadChainError(Misuse.CHAIN_LENGTH)
