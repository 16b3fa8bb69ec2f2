"""Where a net device's next packets go: receive buffers that were taken and not given back yet."""

from bisect import bisect_left

from mayfly.vmm.devices.virtio.buffers import advance, scatter
from mayfly.vmm.devices.virtio.packet import NUM_BUFFERS
from mayfly.vmm.devices.virtio.queue import Chain, Queue


class ReceiveBuffers:
    """Buffers of one queue in the driver's order, as one stretch of `room` bytes for packets.

    Adjacent buffers are one of the `views`. Which chain holds a byte matters only when a packet is
    complete, so packets of many chains take no more steps.
    """

    def __init__(self) -> None:
        self.views: list[memoryview] = []
        self.room = 0
        self._heads: list[int] = []  # of the chains
        self._lengths: list[int] = []  # of each one: its own, or of what was written to it
        self._bounds = [0]  # offsets in all that the queue has ever held: where the first chain begins, and where each one ends
        self._filled = 0  # of the chains

    @property
    def chains(self) -> int:
        """In how many chains the room is."""
        return len(self._heads) - self._filled

    def take_alike(self, queue: Queue) -> bool:
        """Take available buffers that are alike (`Queue.pop_buffers`); false if there were none."""
        heads, length, views = queue.pop_buffers()
        if not heads:
            return False
        begin, size = self._bounds[-1], length * len(heads)
        self._heads += heads
        self._lengths += [length] * len(heads)
        self._bounds += range(begin + length, begin + size + 1, length)
        self.views += views
        self.room += size
        return True

    def add(self, chain: Chain) -> None:
        """Take a chain of any number of buffers."""
        self._heads.append(chain.head)
        self._lengths.append(chain.size)
        self._bounds.append(self._bounds[-1] + chain.size)
        self.views += chain.writable
        self.room += chain.size

    def complete(self, size: int) -> None:
        """The first `size` bytes are a packet now."""
        bounds, begin = self._bounds, self._filled
        end = bounds[begin] + size
        filled = self._filled = bisect_left(bounds, end, begin)
        self._lengths[filled - 1] = end - bounds[filled - 1]
        first, count = self.views[0], (filled - begin).to_bytes(2, "little")
        if len(first) >= NUM_BUFFERS.stop:
            first[NUM_BUFFERS] = count
        else:
            scatter(count, advance(self.views, NUM_BUFFERS.start))
        taken = bounds[filled] - bounds[begin]
        self.room -= taken
        if taken < len(first):
            self.views[0] = first[taken:]
        else:
            self.views = advance(self.views, taken)

    def give_up(self) -> None:
        """Have all chains given back empty."""
        self._lengths[self._filled :] = [0] * self.chains
        self._filled = len(self._heads)
        self.views, self.room = [], 0

    def give_back(self, queue: Queue) -> None:
        """Return the chains of all packets."""
        filled, self._filled = self._filled, 0
        queue.push_all(self._heads[:filled], self._lengths[:filled])
        del self._heads[:filled], self._lengths[:filled], self._bounds[:filled]
