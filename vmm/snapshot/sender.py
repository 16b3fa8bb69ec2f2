"""Sends a machine while it runs, in rounds: at first what differs from the layers that the receiver
holds, then what was written meanwhile.

Pages are write-protected when a round begins, and those that are written then (by the guest, a
device or the kernel) are of the next round. A worker sends them, as it waits for whoever reads.
"""

import contextlib
import functools
import os
import threading

from mayfly.errors import ConfigError, MayflyError
from mayfly.protocol.pages import Start, runs_of
from mayfly.schema import msgspec
from mayfly.units import PAGE
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.snapshot import stream
from mayfly.vmm.snapshot.files import Layers, MachineState
from mayfly.vmm.snapshot.memory import BATCH
from mayfly.vmm.worker import Worker

_OWN = (1 << 63).to_bytes(8, "little")  # A pagemap entry of a page that is the process's own


class Sender:
    """Rounds of `mapping`, which began with `layers`, for who holds the first `held` of them.

    `live`: the machine may run until its last round. For the event loop's thread; `close` waits
    for the reader to end. Raises ConfigError: there are not so many layers.
    """

    def __init__(self, mapping: Mapping, layers: Layers, held: int, worker: Worker) -> None:
        if held > len(layers.pages):
            raise ConfigError(f"the receiver holds {held} layers; the machine began with {len(layers.pages)}")
        self._mapping, self._layers, self._held, self._worker = mapping, layers, held, worker
        self._first = self._whole = True
        self._stopped = False
        self._idle = threading.Event()
        self._idle.set()
        self._tracking = -1
        with contextlib.suppress(OSError):
            self._tracking = mapping.track_writes()

    @property
    def live(self) -> bool:
        """Whether the kernel tells which pages were written."""
        return self._tracking >= 0

    @property
    def ready(self) -> bool:
        """Whether no round is under way, and none was cut off, so that nobody has all."""
        return self._whole and not self._stopped

    def send(self, fd: int, state: MachineState | None) -> None:
        """Send a round to `fd`, which is closed at its end; with `state` it is the last one."""
        self._whole = False
        encoded = None if state is None else msgspec.json.encode(state)
        self._idle.clear()
        self._worker.do(functools.partial(self._send, fd, encoded))

    def _send(self, fd: int, state: bytes | None) -> None:
        """Without its end a round counts as cut off, here as at the reader."""
        try:
            with contextlib.suppress(OSError, MemoryError, MayflyError), open(fd, "wb", buffering=0):
                if self._first:
                    stream.write_start(fd, Start(memory=self._mapping.size, initrd_offset=self._layers.initrd_offset))
                stream.write_pages(fd, self._mapping, self._runs())
                self._first = False
                self._whole = True  # before the reader knows, who may ask for another one at once
                try:
                    stream.write_end(fd, state)
                except (OSError, MemoryError):
                    self._whole = False
        finally:
            self._idle.set()

    def _runs(self) -> list[tuple[int, int]]:
        pagemap, mapping = self._layers.pagemap, self._mapping
        written = mapping.written_pages(pagemap) if self.live else [(0, mapping.size // PAGE)]
        if not self._first:
            return written
        differs = bytearray(mapping.size // PAGE)
        with Mapping(mapping.size) as before:
            before.use_huge_pages()
            self._layers.lay_over(before, self._held)
            for first, count in [*written, *(run for pages in self._layers.pages[self._held :] for run in pages)]:
                for begin in range(first, first + count, BATCH):
                    pages = min(BATCH, first + count - begin)
                    differs[begin : begin + pages] = mapping.differing_pages(before, _OWN * pages, begin, pages)
        return list(runs_of(differs))

    def stop(self) -> None:
        """Note no more which pages are written; whoever reads a round sees no end of it."""
        self._stopped = True
        if self._tracking >= 0:
            os.close(self._tracking)
            self._tracking = -1

    def close(self) -> None:
        """Stop, and wait until no thread reads the memory."""
        self.stop()
        self._idle.wait()
