"""The split virtqueue alone: what a driver may do, and what a hostile one does."""

import functools

import pytest

from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.queue import INDIRECT, NEXT, WRITE, Chain, Queue, QueueLayout
from mayfly.vmm.kvm import order
from mayfly.vmm.memory import GuestAddressError
from tests.kit.virtio_driver import Buffer, DriverQueue, Ram

NEXT, WRITE, INDIRECT = int(NEXT), int(WRITE), int(INDIRECT)
SIZE = 8


class Rig:
    """A queue and its driver."""

    def __init__(self, *, event_idx: bool = True, indirect: bool = True, size: int = SIZE) -> None:
        self.ram = Ram(1 << 20)
        self.driver = DriverQueue(self.ram, size, event_idx=event_idx)
        self.reports: list[Misuse] = []
        layout = QueueLayout(size=size, descriptors=self.driver.descriptors, available=self.driver.available, used=self.driver.used_ring)
        self.queue = Queue(self.ram.memory, layout, event_idx=event_idx, indirect=indirect, report=self.reports.append)
        self.page = self.ram.allocate(4096, 16)

    def pop(self) -> Chain:
        chain = self.queue.pop()
        assert chain is not None
        return chain

    def bad(self) -> None:
        """The next chain comes out empty, and goes back with a length of 0."""
        chain = self.pop()
        assert (chain.readable, chain.writable) == ([], [])
        self.queue.push(chain.head, 0)
        self.queue.publish()

    def describe(self, *descriptors: tuple[int, int, int, int], head: int = 0) -> None:
        """Write (address, length, flags, next) from slot 0 on, and make `head` available."""
        for index, (address, length, flags, following) in enumerate(descriptors):
            self.driver.write_descriptor(index, address, length, flags, following)
        self.driver.write_available(head)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# What a driver may do.


def test_an_empty_queue_has_no_chain(rig: Rig) -> None:
    assert rig.queue.pop() is None
    assert not rig.queue.publish()


@pytest.mark.parametrize("indirect", [False, True])
def test_a_chain_has_its_buffers_in_order(rig: Rig, indirect: bool) -> None:
    head = rig.driver.offer([Buffer(b"one"), Buffer(b"two"), Buffer(room=5), Buffer(room=7)], indirect=indirect)
    chain = rig.pop()
    assert chain.head == head
    assert [bytes(view) for view in chain.readable] == [b"one", b"two"]
    assert [len(view) for view in chain.writable] == [5, 7]
    chain.writable[0][:] = b"12345"
    rig.queue.push(chain.head, 5)
    assert rig.driver.used() == []
    rig.queue.publish()
    assert rig.driver.used() == [(head, 5, b"12345")]


def test_direct_descriptors_may_end_in_an_indirect_table(rig: Rig) -> None:
    table = rig.ram.allocate(32, 16)
    rig.driver.write_descriptor(0, rig.page + 1, 1, NEXT, 1, table)
    rig.driver.write_descriptor(1, rig.page + 2, 1, WRITE, 0, table)
    rig.describe((rig.page, 1, NEXT, 1), (table, 32, INDIRECT | WRITE, 0))  # WRITE means nothing there (2.7.5.3.2)
    chain = rig.pop()
    assert (len(chain.readable), len(chain.writable)) == (2, 1)
    assert not rig.reports


@pytest.mark.parametrize("indirect", [False, True])
def test_a_chain_as_long_as_the_queue_is_accepted(rig: Rig, indirect: bool) -> None:
    rig.driver.offer([Buffer(b"x")] * SIZE, indirect=indirect)
    assert len(rig.pop().readable) == SIZE
    assert not rig.reports


def test_indices_wrap_at_65536(rig: Rig) -> None:
    mark = rig.ram.mark()
    for round_number in range(65536 // SIZE + 2):
        rig.ram.rewind(mark)
        for _ in range(SIZE):
            rig.driver.offer([Buffer(b"x")])
        for _ in range(SIZE):
            rig.queue.push(rig.pop().head, round_number & 1)
        assert rig.queue.pop() is None
        rig.queue.publish()
        assert len(rig.driver.used()) == SIZE
    assert not rig.reports


def test_chains_may_come_back_in_any_order(rig: Rig) -> None:
    heads = [rig.driver.offer([Buffer(room=1)]) for _ in range(4)]
    chains = [rig.pop() for _ in range(4)]
    for chain in reversed(chains):
        rig.queue.push(chain.head, 1)
    rig.queue.publish()
    assert [head for head, _, _ in rig.driver.used()] == heads[::-1]


def test_event_index_decides_about_interrupts(rig: Rig) -> None:
    for _ in range(4):
        rig.driver.offer([Buffer(room=1)])
    event = rig.driver.available + 4 + 2 * SIZE
    asked = []
    for wanted in (0, 0, 2, 9):
        rig.ram.put16(event, wanted)
        rig.queue.push(rig.pop().head, 1)
        asked.append(rig.queue.publish())
    assert asked == [True, False, True, False]


def test_a_batch_crosses_the_event_index_once(rig: Rig) -> None:
    for _ in range(4):
        rig.driver.offer([Buffer(room=1)])
    rig.ram.put16(rig.driver.available + 4 + 2 * SIZE, 2)
    for _ in range(4):
        rig.queue.push(rig.pop().head, 1)
    assert rig.queue.publish()
    assert not rig.queue.publish()


def test_without_event_index_the_flag_decides_about_interrupts() -> None:
    rig = Rig(event_idx=False)
    for flag, expected in ((0, True), (1, False), (0, True)):
        rig.ram.put16(rig.driver.available, flag)
        rig.driver.offer([Buffer(room=1)])
        rig.queue.push(rig.pop().head, 1)
        assert rig.queue.publish() is expected


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_are_asked_for_only_when_the_device_waits(event_idx: bool) -> None:
    rig = Rig(event_idx=event_idx)
    rig.driver.offer([Buffer(b"x")])
    assert rig.driver.must_kick()
    rig.pop()
    rig.queue.suppress_notify()
    rig.driver.offer([Buffer(b"x")])
    assert not rig.driver.must_kick()
    assert rig.queue.enable_notify()  # one is there: no kick will come for it
    rig.pop()
    assert not rig.queue.enable_notify()
    rig.driver.offer([Buffer(b"x")])
    assert rig.driver.must_kick()


# What it may not.


def test_an_index_that_jumps_beyond_the_queue_stops_it(rig: Rig) -> None:
    rig.ram.put16(rig.driver.available + 2, SIZE + 1)
    assert rig.queue.pop() is None
    assert rig.queue.stopped
    assert rig.reports == [Misuse.AVAILABLE_INDEX]
    rig.ram.put16(rig.driver.available + 2, 1)
    assert rig.queue.pop() is None
    assert not rig.queue.enable_notify()


@pytest.mark.parametrize("back", [1, 2, 3, 0x8000])
def test_an_index_that_goes_back_stops_the_queue(rig: Rig, back: int) -> None:
    """By as little as a chain that is out too: taking up to that index again would take the whole
    16 bits' worth.
    """
    for _ in range(2):
        rig.driver.offer([Buffer(b"x")])
        rig.pop()
    rig.ram.put16(rig.driver.available + 2, 2 - back)
    assert rig.queue.pop() is None
    assert rig.reports == [Misuse.AVAILABLE_INDEX]


def test_chains_that_are_still_out_count_against_the_size(rig: Rig) -> None:
    for _ in range(SIZE):
        rig.driver.write_available(0)
    rig.driver.write_descriptor(0, rig.page, 1, 0)
    for _ in range(SIZE):
        rig.pop()
    rig.driver.write_available(0)
    assert rig.queue.pop() is None
    assert rig.reports == [Misuse.AVAILABLE_INDEX]


@pytest.mark.parametrize("head", [SIZE, 0xFFFF])
def test_a_head_outside_the_table_stops_the_queue(rig: Rig, head: int) -> None:
    rig.driver.write_available(head)
    assert rig.queue.pop() is None
    assert rig.queue.stopped
    assert rig.reports == [Misuse.HEAD]


def test_a_loop_ends(rig: Rig) -> None:
    rig.describe((rig.page, 1, NEXT, 1), (rig.page, 1, NEXT, 0))
    rig.bad()
    assert rig.reports == [Misuse.CHAIN_LENGTH]
    assert rig.driver.ram.get16(rig.driver.used_ring + 2) == 1


def test_a_chain_of_one_more_than_the_queue_is_refused(rig: Rig) -> None:
    table = rig.ram.allocate(16 * (SIZE + 1), 16)
    for index in range(SIZE + 1):
        rig.driver.write_descriptor(index, rig.page, 1, NEXT if index < SIZE else 0, index + 1, table)
    rig.describe((table, 16 * (SIZE + 1), INDIRECT, 0))
    rig.bad()
    assert rig.reports == [Misuse.CHAIN_LENGTH]


def test_direct_and_indirect_descriptors_count_together(rig: Rig) -> None:
    table = rig.ram.allocate(16 * SIZE, 16)
    for index in range(SIZE):
        rig.driver.write_descriptor(index, rig.page, 1, NEXT if index < SIZE - 1 else 0, index + 1, table)
    rig.describe((rig.page, 1, NEXT, 1), (table, 16 * SIZE, INDIRECT, 0))
    rig.bad()
    assert rig.reports == [Misuse.CHAIN_LENGTH]


@pytest.mark.parametrize(
    ("descriptor", "misuse"),
    [
        ((0, 0, 0, 0), Misuse.BUFFER_LENGTH),
        ((0, 0, WRITE, 0), Misuse.BUFFER_LENGTH),
        ((0, 1, NEXT, SIZE), Misuse.NEXT_INDEX),
        ((0, 1, NEXT, 0xFFFF), Misuse.NEXT_INDEX),
        ((0xFFFF_FFFF_FFFF_FFFF, 1, 0, 0), Misuse.OUTSIDE_RAM),
        ((0xFFFF_FFFF_FFFF_F000, 0x2000, 0, 0), Misuse.OUTSIDE_RAM),
        ((0x10_0000 + (1 << 20) - 1, 2, 0, 0), Misuse.OUTSIDE_RAM),
        ((0x10_0000 - 1, 2, WRITE, 0), Misuse.OUTSIDE_RAM),
        ((0x10_0000, 0xFFFF_FFFF, WRITE, 0), Misuse.OUTSIDE_RAM),
        ((0, 0, INDIRECT, 0), Misuse.INDIRECT),
        ((0, 15, INDIRECT, 0), Misuse.INDIRECT),
        ((0, 17, INDIRECT, 0), Misuse.INDIRECT),
        ((0, 16, INDIRECT | NEXT, 1), Misuse.INDIRECT),
        ((0xFFFF_FFFF_FFFF_FFF0, 32, INDIRECT, 0), Misuse.OUTSIDE_RAM),
        ((0x10_0000 + (1 << 20) - 16, 32, INDIRECT, 0), Misuse.OUTSIDE_RAM),
    ],
)
def test_a_bad_descriptor_makes_a_bad_chain(rig: Rig, descriptor: tuple[int, int, int, int], misuse: Misuse) -> None:
    address, length, flags, following = descriptor
    rig.describe((address or rig.page, length, flags, following))
    rig.bad()
    assert rig.reports == [misuse]
    rig.driver.write_descriptor(1, rig.page, 1, 0)
    rig.driver.write_available(1)
    assert len(rig.pop().readable) == 1  # the queue lives on


def test_a_nested_indirect_table_is_refused(rig: Rig) -> None:
    inner, outer = rig.ram.allocate(16, 16), rig.ram.allocate(16, 16)
    rig.driver.write_descriptor(0, rig.page, 1, 0, 0, inner)
    rig.driver.write_descriptor(0, inner, 16, INDIRECT, 0, outer)
    rig.describe((outer, 16, INDIRECT, 0))
    rig.bad()
    assert rig.reports == [Misuse.INDIRECT]


def test_an_index_beyond_the_indirect_table_is_refused(rig: Rig) -> None:
    table = rig.ram.allocate(32, 16)
    rig.driver.write_descriptor(0, rig.page, 1, NEXT, 1, table)
    rig.describe((table, 16, INDIRECT, 0))
    rig.bad()
    assert rig.reports == [Misuse.NEXT_INDEX]


def test_an_indirect_table_that_was_not_negotiated_is_refused() -> None:
    rig = Rig(indirect=False)
    rig.driver.offer([Buffer(b"x")], indirect=True)
    rig.bad()
    assert rig.reports == [Misuse.INDIRECT]


def test_a_buffer_to_read_behind_one_to_write_is_refused(rig: Rig) -> None:
    rig.describe((rig.page, 1, WRITE | NEXT, 1), (rig.page, 1, 0, 0))
    rig.bad()
    assert rig.reports == [Misuse.BUFFER_ORDER]


def test_a_chain_of_more_than_4_gib_is_refused(rig: Rig) -> None:
    half = 0x8000_0000
    memory = rig.ram.memory
    original = memory.slice  # stands for a RAM of many GiB; the views are short, as nobody looks into them here
    memory.slice = lambda address, length: original(address, min(length, 4096))  # type: ignore[method-assign]
    rig.describe((rig.page, half, NEXT, 1), (rig.page, half, NEXT, 2), (rig.page, 1, 0, 0))
    rig.bad()
    rig.describe((rig.page, half, NEXT, 1), (rig.page, half, 0, 0))
    assert len(rig.pop().readable) == 2
    assert rig.reports == [Misuse.BUFFER_LENGTH]


@pytest.mark.parametrize("part", ["descriptors", "available", "used"])
@pytest.mark.parametrize("address", [0x10_0001, 0, 0x10_0000 + (1 << 20) - 16, 0xFFFF_FFFF_FFFF_FFF0])
def test_a_part_outside_ram_or_not_aligned_is_no_queue(rig: Rig, part: str, address: int) -> None:
    addresses = {
        "descriptors": rig.driver.descriptors,
        "available": rig.driver.available,
        "used": rig.driver.used_ring,
        part: address,
    }
    with pytest.raises(GuestAddressError):
        Queue(rig.ram.memory, QueueLayout(size=SIZE, **addresses), event_idx=True, indirect=True, report=rig.reports.append)


def test_the_used_index_is_stored_behind_a_release_and_the_available_one_loaded_before_an_acquire(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each fence, what the driver could see by then."""
    seen: list[tuple[str, int, int]] = []

    def at(name: str) -> None:
        used = bytes(rig.ram.memory.slice(rig.driver.used_ring, 8))
        seen.append((name, int.from_bytes(used[2:4], "little"), int.from_bytes(used[4:8], "little")))

    for name in ("acquire", "release", "full"):
        monkeypatch.setattr(order, name, functools.partial(at, name))
    rig.driver.offer([Buffer(room=5)])
    second = rig.driver.offer([Buffer(room=5)])
    rig.pop()
    assert seen == [("acquire", 0, 0)]
    assert rig.pop().head == second
    rig.queue.push(second, 5)
    rig.queue.publish()
    assert seen[1:] == [("release", 0, second), ("full", 1, second)]
