"""Chains of virtqueues as pieces of guest memory, which system calls take without Python's help.

What the guest wrote is checked in C (cdef/chains.c), each field of it read once.
"""

import errno
import os
from collections.abc import Sequence
from typing import Any

from mayfly.vmm.kvm._kvm import ffi, lib

CHAINS: int = lib.CHAINS
"""So many are in a batch at most; a queue that is served by one has no more entries."""
PIECES: int = lib.PIECES  # As many take one vectored system call (IOV_MAX, readv(2))
START: int = lib.START  # Bytes of a chain from the driver that are copied before anybody looks
LIKE: int = lib.LIKE  # Bytes of a packet's start that `Passes` look at
INTERRUPT: int = lib.INTERRUPT
AGAIN: int = lib.AGAIN
UNUSUAL: int = lib.UNUSUAL
"""What `send` and `receive` lead to: an interrupt for the driver, another turn, one in Python."""
_NOTHING = (-errno.EAGAIN, -errno.EINTR)
_FIELDS = 5  # of struct taken: head, size, written, first, end


class Ring:
    """Where a queue and the memory of its buffers are, which has to stay as long as this."""

    def __init__(
        self,
        regions: Sequence[tuple[int, memoryview]],
        descriptors: memoryview,
        available: memoryview,
        used: memoryview,
        counts: memoryview,
        *,
        indirect: bool,
        event_idx: bool,
    ) -> None:
        self._regions = ffi.new("struct region[]", [(base, len(view), _address(view, "char *")) for base, view in regions])
        parts = _address(descriptors, "char *"), *(_address(view, "uint16_t *") for view in (available, used, counts))
        self.pointer = ffi.new("struct ring *", [self._regions, *parts, len(regions), len(descriptors) // 16, indirect, event_idx])


class Passes:
    """What packets that may leave look like: the last ones that `add` was told of."""

    def __init__(self) -> None:
        self.pointer: Any = ffi.new("struct passes *")

    def clear(self) -> None:
        """No packet may leave."""
        self.pointer.count = self.pointer.next = 0

    def add(self, start: memoryview, mask: bytes, least: int) -> None:
        """Of `least` bytes or more, whose first LIKE are as `start`, as far as `mask` says."""
        lib.passes_add(self.pointer, ffi.from_buffer(start), mask, least)


class Pump:
    """Does what is usual between a net device's queues and its tap while an event loop waits, as
    long as it is on. `stop` is for any thread, all else for the loop's.
    """

    def __init__(self) -> None:
        self._pump: Any = ffi.new("struct pump *")
        self._left: Any = ffi.new("struct ready[]", lib.READY)
        lib.pump_init(self._pump)
        self._wired = False

    @property
    def kicks(self) -> int:
        """How often a kick led to a turn here."""
        return int(self._pump.kicks)

    def wire(self, kicks: Sequence[int], interrupt: int) -> None:
        """Learn the eventfds of both queues' kicks and of the driver's interrupt."""
        self._pump.receive_kick, self._pump.transmit_kick = kicks
        self._pump.interrupt = interrupt
        self._wired = True

    def start(self, tap: int, passes: Passes, outgoing: "Batch", transmit: Ring, incoming: "Batch", receive: Ring | None) -> None:
        """Be on, with what stays as it is until `stop`; `outgoing` is empty. Without `receive`
        only packets from the guest move.
        """
        pump = self._pump
        pump.tap, pump.passes = tap, passes.pointer
        pump.outgoing, pump.incoming = outgoing.pointer, incoming.pointer
        pump.transmit, pump.receive = transmit.pointer, receive.pointer if receive else ffi.NULL
        pump.on = self._wired

    def stop(self) -> None:
        """Be off when this returns."""
        lib.pump_stop(self._pump)

    def wait(self, epoll: int, timeout_s: float | None) -> list[tuple[int, int]]:
        """Wait for events of descriptors; those that are left, as `select.epoll.poll` says them."""
        wait, pump, left = lib.pump_wait, self._pump, self._left
        if timeout_s is not None:
            count = wait(pump, epoll, -int(-1000 * timeout_s // 1), left)
        else:
            while not (count := wait(pump, epoll, -1, left)):  # signals are handled in between
                pass
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        return [(left[index].fd, left[index].events) for index in range(count)]


def _address(view: memoryview | bytearray, kind: str) -> Any:
    # No more: a `from_buffer` in a cycle of objects has crashed Python's collector (cffi 2.1).
    return ffi.cast(kind, ffi.from_buffer(view))


class Batch:
    """Chains of one queue that a device has taken and not given back yet, in their order.

    Those before `done` are finished. `room` is the bytes in the others.
    """

    def __init__(self, memory: bytearray | None = None) -> None:
        """With `memory` of our own: one chain, which that is."""
        batch: Any = ffi.new("struct batch *")
        self._batch = batch
        self._chains = memoryview(ffi.buffer(batch.chains)).cast("I")
        self._starts = memoryview(ffi.buffer(batch.starts))
        if memory is not None:
            self._memory = memory
            batch.pieces[0] = _address(memory, "void *"), len(memory)
            batch.chains[0] = 0, len(memory), 0, 0, 1
            batch.count, batch.room = 1, len(memory)

    @property
    def pointer(self) -> Any:
        """For C."""
        return self._batch

    @property
    def count(self) -> int:
        """How many chains are there, finished ones too."""
        return int(self._batch.count)

    @property
    def done(self) -> int:
        """How many of them are finished."""
        return int(self._batch.done)

    @done.setter
    def done(self, count: int) -> None:
        self._batch.done = count

    @property
    def unfinished(self) -> int:
        """How many are not."""
        return int(self._batch.count - self._batch.done)

    @property
    def room(self) -> int:
        """Bytes in the chains that are not finished."""
        return int(self._batch.room)

    def packet(self, chain: int) -> tuple[int, memoryview]:
        """Bytes in a chain to be read; the copy of its first START bytes, which is what is sent."""
        size, begin = self._chains[_FIELDS * chain + 1], START * chain
        return size, self._starts[begin : begin + (START if size > START else size)]

    def take(self, ring: Ring, most: int, kind: int) -> tuple[int, int]:
        """Take up to `most` chains of `kind` (WRITE or 0).

        Returns: the fault that ended it (0: none), which is a bad chain's that is not taken, unless
        it is FULL; and that one's head.
        """
        batch = self._batch
        return lib.batch_take(batch, ring.pointer, most, kind), batch.bad_head

    def send(self, ring: Ring, passes: Passes, fd: int) -> int:
        """Take the packets that there are, if nothing is here, and write them to `fd`, if they all
        may leave; what that leads to.
        """
        return int(lib.batch_send(self._batch, ring.pointer, passes.pointer, fd))

    def receive(self, ring: Ring, fd: int) -> int:
        """Read packets from `fd` into chains, as many as are needed; what that leads to."""
        return int(lib.batch_receive(self._batch, ring.pointer, fd))

    def complete(self, size: int) -> None:
        """Finish the chains that the first `size` bytes of the room take: a packet."""
        lib.batch_complete(self._batch, size)

    def give_up(self) -> None:
        """Finish all chains, with nothing written to them."""
        self._batch.done, self._batch.room = self._batch.count, 0

    def give_back(self, ring: Ring) -> None:
        """Put the finished chains into the used ring."""
        lib.batch_give_back(self._batch, ring.pointer)

    def clear(self) -> None:
        """Forget all chains."""
        batch = self._batch
        batch.given = batch.done = batch.count = batch.room = 0

    def read(self, fd: int) -> int:
        """Read a packet from `fd` into the room; its size, 0 if there is none. Raises OSError."""
        size: int = lib.batch_read(self._batch, fd)
        if size >= 0:
            return size
        if size in _NOTHING:
            return 0
        raise OSError(-size, os.strerror(-size))

    def write(self, chain: int, fd: int) -> None:
        """Write a chain to `fd` at once. What that refuses is lost."""
        lib.batch_write(self._batch, chain, fd)

    def places(self, chain: int) -> list[tuple[int, int]]:
        """Address in this process and length of each piece of a chain."""
        first, end = self._chains[_FIELDS * chain + 3 : _FIELDS * chain + 5]
        pieces = [self._batch.pieces[piece] for piece in range(first, end)]
        return [(int(ffi.cast("uintptr_t", piece.iov_base)), piece.iov_len) for piece in pieces]

    def join(self, chain: int) -> bytearray:
        """All bytes of a chain."""
        data = bytearray(self.packet(chain)[0])
        lib.batch_copy(self._batch, chain, chain + 1, ffi.from_buffer(data), len(data), 1)
        return data

    def fill(self, data: bytes | bytearray) -> int:
        """Copy a packet into the room, which is large enough; its size."""
        lib.batch_copy(self._batch, self.done, self.count, ffi.from_buffer(data), len(data), 0)
        return len(data)
