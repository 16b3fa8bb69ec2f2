"""The queue and a slow model of the specification do the same to guest memory, chain by chain, for
100,000 valid chains.
"""

import random

import pytest

from mayfly.vmm.devices.virtio.buffers import advance, copy_start, scatter
from mayfly.vmm.devices.virtio.queue import Chain, Queue, QueueLayout
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
        queue._taken = queue._offered = queue._returned = queue._published = index
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
        readable = rng.randint(0, count)
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

    def pop(self) -> list[Chain]:
        """The next chain, or several of one buffer each."""
        if self.rng.random() < 0.5:
            heads, length, views = self.queue.pop_buffers()
            chains = []
            for head in heads:
                chains.append(Chain(head, [], [views[0][:length]], length))
                views = advance(views, length)
            if chains:
                return chains
        chain = self.queue.pop()
        return [chain] if chain else []

    def serve(self, limit: int) -> None:
        taken: list[tuple[Chain, list[tuple[int, int]]]] = []
        while len(taken) < limit:
            chains = self.pop()
            for chain in chains:
                expected = self.model.take()
                assert expected is not None
                head, readable, writable = expected
                assert chain.head == head
                assert [bytes(view) for view in chain.readable] == [self.model.read(*place) for place in readable]
                assert [len(view) for view in chain.writable] == [length for _, length in writable]
                taken.append((chain, writable))
            if not chains:
                assert self.model.take() is None
                break
        self.rng.shuffle(taken)
        returned = []
        for chain, writable in taken:
            answer = bytes(copy_start(chain.readable, 4096)[0])[::-1] + self.rng.randbytes(self.rng.randint(0, 300))
            written = scatter(answer, chain.writable)
            rest = answer[:written]
            for address, length in writable:
                self.model.write(address, rest[:length])
                rest = rest[length:]
            returned.append((chain.head, written))
            self.model.give(chain.head, written)
        if self.rng.random() < 0.5:
            self.queue.push_all([head for head, _ in returned], [written for _, written in returned])
        else:
            for head, written in returned:
                self.queue.push(head, written)
        self.done += len(taken)
        assert self.queue.publish() == self.model.expose()


@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "plain"])
@pytest.mark.parametrize("size", SIZES)
def test_memory_is_the_same_after_every_round(size: int, event_idx: bool) -> None:
    twins = Twins(random.Random(size * 2 + event_idx), size, event_idx=event_idx)
    while twins.done < scaled(CHAINS) // (2 * len(SIZES)):
        twins.round()
