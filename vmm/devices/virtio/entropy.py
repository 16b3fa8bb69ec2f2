"""An entropy device (virtio 1.2, 5.4): random bytes for the guest, at a limited rate."""

from collections.abc import Callable

from mayfly.vmm.devices.virtio.buffers import scatter
from mayfly.vmm.devices.virtio.device import ENTROPY, VirtioDevice
from mayfly.vmm.devices.virtio.misuse import Misuse

RATE = 16 << 10
"""Bytes a second. Linux asks for 64, then once a minute (drivers/char/hw_random/core.c)."""
BURST = 16 << 10  # Bytes at once and per request; longer buffers come back partly filled (5.4.6.1)
REQUESTS = 0  # The queue (virtio 1.2, 5.4.2)


class Entropy(VirtioDevice):
    """The device. `source` is `os.urandom` (getrandom), `clock` gives monotonic seconds.

    `later` has the event loop call `resume` after so many seconds; one call is pending at most.
    """

    device_type = ENTROPY
    queue_sizes = (8,)

    def __init__(self, source: Callable[[int], bytes], clock: Callable[[], float], later: Callable[[float], None]) -> None:
        super().__init__()
        self._source, self._clock, self._later = source, clock, later
        self._budget, self._counted_at = float(BURST), clock()
        self._waiting = False

    def resume(self) -> None:
        """The time asked for has passed."""
        with self.lock:
            self._waiting = False
            self._serve()

    def notify(self, index: int) -> None:
        """The driver wants random bytes."""
        if not self._waiting:
            self._serve()

    def _serve(self) -> None:
        """Fill requests while there is budget; then wait until the budget is full again."""
        queue = self.queues.get(REQUESTS)
        if queue is None:
            return
        now = self._clock()
        self._budget, self._counted_at = min(BURST, self._budget + (now - self._counted_at) * RATE), now
        for _ in range(queue.size):
            if self._budget < 1 or (chain := queue.pop()) is None:
                break
            if not chain.writable:
                self.host.report(Misuse.DIRECTION)
            wanted = min(sum(map(len, chain.writable)), int(self._budget))
            self._budget -= scatter(self._source(wanted), chain.writable)
            queue.push(chain.head, wanted)
        self.end_turn(REQUESTS, more=self._budget >= 1)
        if self._budget < 1:
            self._waiting = True
            self._later((BURST - self._budget) / RATE)
