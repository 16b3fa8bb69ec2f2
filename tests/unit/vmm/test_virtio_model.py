"""The queue and a slow model of the specification do the same to guest memory, chain by chain, for
100,000 valid chains.
"""

import random

import pytest

from mayfly.vmm.devices.virtio.buffers import copy_start, scatter
from mayfly.vmm.devices.virtio.packet import HEADER, NUM_BUFFERS
from mayfly.vmm.devices.virtio.queue import Chain, Queue, QueueLayout, QueueState
from mayfly.vmm.kvm.chains import START, Batch
from tests.kit.scale import scaled
from tests.kit.virtio_driver import DriverQueue, Ram
from tests.kit.virtio_model import ModelQueue

CHAINS = 100_000
SIZES = (1, 2, 8, 64, 256)
ARENA = 8192


class Twins:
    """A driver over one RAM, the real queue on it, and the model on a copy of it."""

    def __init__(self, rng: random.Random, size: int, *, event_idx: bool) -> None:
        self.rng = rng
        self.ram = Ram(1 << 16)
        self.driver = DriverQueue(self.ram, size, event_idx=event_idx)
        driver = self.driver
        layout = QueueLayout(size=size, descriptors=driver.descriptors, available=driver.available, used=driver.used_ring)
        self.misuse: list[str] = []
        self.queue = Queue(self.ram.memory, layout, event_idx=event_idx, indirect=True, report=self.misuse.append)
        self.copy = bytearray(len(self.ram.bytes))
        self.model = ModelQueue(self.copy, self.ram.base, size, driver.descriptors, driver.available, driver.used_ring, event_idx=event_idx)
        self.arena = self.ram.allocate(ARENA, 4096)
        self.next_place = self.arena
        self.tables = self.ram.mark()
        self.done = 0
        self.start_at(0xFFF0)

    def start_at(self, index: int) -> None:
        """As if so many chains had gone by already: the 16-bit indices wrap soon."""
        driver, queue = self.driver, self.queue
        driver.offered = driver.kicked = driver.seen = self.model.last_avail = index
        queue.restore(QueueState(returned=index & 0xFFFF, stopped=False))
        self.ram.put16(driver.available + 2, index)
        self.ram.put16(driver.used_ring + 2, index)

    def offer(self) -> None:
        """A random valid chain, if there are descriptors for it: short mostly, as long as the queue
        now and then. Half of the buffers lie behind the one before, as Linux's often do."""
        rng, free = self.rng, len(self.driver.free)
        indirect = rng.random() < 0.4
        most = min(self.driver.size, 20) if indirect else free
        if not free or not most:
            return
        count = most if rng.random() < 0.02 else rng.randint(1, min(most, 6))
        readable = self.split(count)
        places = []
        for position in range(count):
            length = rng.choice((1, 2, rng.randint(1, 64), rng.randint(1, 1024)))
            if rng.random() < 0.5 or self.next_place + length > self.arena + ARENA:
                self.next_place = self.arena + rng.randint(0, ARENA - length)
            places.append((self.next_place, length, position >= readable))
            self.next_place += length
        rng.shuffle(self.driver.free)
        direct = rng.randint(0, min(count - 1, free - 1)) if indirect else 0
        self.driver.offer_places(places, indirect=indirect, direct=direct)

    def split(self, count: int) -> int:
        """How many of a chain's buffers are to be read."""
        return self.rng.randint(0, count)

    def round(self) -> None:
        """The driver offers some chains and sets its wishes; both devices serve some, in the same
        order; all memory is compared.
        """
        rng = self.rng
        self.driver.used()
        if not self.driver.chains:
            self.ram.rewind(self.tables)
        for _ in range(rng.randint(0, 12)):
            if self.ram.mark() < len(self.ram.bytes) - 1024:
                self.offer()
        self.ram.put(self.arena, rng.randbytes(64))
        if self.driver.event_idx:
            self.ram.put16(self.driver.available + 4 + 2 * self.driver.size, self.driver.seen + rng.randint(-2, 6))
        else:
            self.ram.put16(self.driver.available, rng.randint(0, 1))
        self.copy[:] = self.ram.bytes
        self.serve(rng.randint(0, 14))
        if rng.random() < 0.7:
            more = self.queue.enable_notify()
            self.model.want_kicks()
            assert more == (self.model.le16(self.model.available + 2) != self.model.last_avail % 65536)
        else:
            self.queue.suppress_notify()
            self.model.want_no_kicks()
        assert self.ram.bytes == self.copy
        assert not self.misuse

    def serve(self, limit: int) -> None:
        taken: list[tuple[Chain, list[tuple[int, int]]]] = []
        while len(taken) < limit:
            chain, expected = self.queue.pop(), self.model.take()
            if chain is None:
                assert expected is None
                break
            assert expected is not None
            head, readable, writable = expected
            assert chain.head == head
            assert [bytes(view) for view in chain.readable] == [self.model.read(*place) for place in readable]
            assert [len(view) for view in chain.writable] == [length for _, length in writable]
            taken.append((chain, writable))
        self.rng.shuffle(taken)
        for chain, writable in taken:
            answer = bytes(copy_start(chain.readable, 4096)[0])[::-1] + self.rng.randbytes(self.rng.randint(0, 300))
            written = scatter(answer, chain.writable)
            rest = answer[:written]
            for address, length in writable:
                self.model.write(address, rest[:length])
                rest = rest[length:]
            self.queue.push(chain.head, written)
            self.model.give(chain.head, written)
        self.done += len(taken)
        assert self.queue.publish() == self.model.expose()


class BatchTwins(Twins):
    """The same with batches, of chains that are all to be read, or all to be written."""

    def __init__(self, rng: random.Random, size: int, *, event_idx: bool, writable: bool) -> None:
        self.writable, self.batch = writable, Batch()
        self.taken: list[tuple[int, list[tuple[int, int]]]] = []
        self.starts: list[bytes] = []
        super().__init__(rng, size, event_idx=event_idx)

    def split(self, count: int) -> int:
        return 0 if self.writable else count

    def serve(self, limit: int) -> None:
        before = self.batch.unfinished
        self.queue.take(self.batch, writable=self.writable, most=limit)
        for _ in range(self.batch.unfinished - before):
            chain = self.model.take()
            assert chain is not None
            self.taken.append((chain[0], chain[1] + chain[2]))
            self.starts.append(self.join(chain[1])[:START])
        for _ in range(self.rng.randint(0, 3)):
            (self.write if self.writable else self.read)()
        self.queue.give_back(self.batch)
        assert self.queue.publish() == self.model.expose()

    def join(self, places: list[tuple[int, int]]) -> bytes:
        return b"".join(self.model.read(*place) for place in places)

    def read(self) -> None:
        """The next packet. Its start is as it was when it was taken, the rest as it is now."""
        if self.taken:
            number = self.batch.done
            head, places = self.taken.pop(0)
            packet, start = self.join(places), self.starts.pop(0)
            assert self.batch.join(number) == start + packet[START:]
            size, copied = self.batch.packet(number)
            assert (size, bytes(copied)) == (len(packet), start)
            self.batch.done += 1
            self.model.give(head, 0)
            self.done += 1

    def write(self) -> None:
        """A packet to as many chains as it takes, whose header says how many."""
        assert self.batch.room == sum(length for _, places in self.taken for _, length in places)
        if self.batch.room < HEADER.size:
            self.batch.give_up()
            for head, _ in self.taken:
                self.model.give(head, 0)
            self.done += len(self.taken)
            self.taken.clear()
            return
        packet = self.rng.randbytes(self.rng.randint(HEADER.size, min(self.batch.room, 600)))
        assert self.batch.fill(packet) == len(packet)
        self.batch.complete(len(packet))
        counted: list[int] = []  # where its header's count is
        left, chains = packet, 0
        while left:
            head, places = self.taken.pop(0)
            before = len(left)
            for address, length in places:
                self.model.write(address, left[:length])
                counted += range(address, address + min(length, len(left)))
                left = left[length:]
            self.model.give(head, before - len(left))
            chains += 1
        for address, byte in zip(counted[NUM_BUFFERS], chains.to_bytes(2, "little"), strict=True):
            self.model.write(address, bytes([byte]))
        self.done += chains


@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "plain"])
@pytest.mark.parametrize("size", SIZES)
def test_memory_is_the_same_after_every_round(size: int, event_idx: bool) -> None:
    twins = Twins(random.Random(size * 2 + event_idx), size, event_idx=event_idx)
    while twins.done < scaled(CHAINS) // (2 * len(SIZES)):
        twins.round()


@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "plain"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("writable", [True, False], ids=["writable", "readable"])
def test_batches_do_the_same(size: int, event_idx: bool, writable: bool) -> None:
    twins = BatchTwins(random.Random(size * 2 + event_idx), size, event_idx=event_idx, writable=writable)
    while twins.done < scaled(CHAINS) // (4 * len(SIZES)):
        twins.round()
