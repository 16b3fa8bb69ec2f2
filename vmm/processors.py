"""The vCPUs of a machine as one: they start, stand still and end together."""

import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from mayfly.errors import GuestError, MayflyError
from mayfly.vmm.bus import Bus
from mayfly.vmm.kvm.kvm import Vcpu
from mayfly.vmm.process.report import End
from mayfly.vmm.vcpu import KICK, VcpuThread

STOP_DEADLINE_S = 1.0


class Processors:
    """The threads of all vCPUs. `finish` is for any thread, the rest for the one that made it.

    `lock` is held while a device handles an access; `wake` is called, from any thread, when the
    machine has ended. `end` says why, and `error` belongs to `End.ERROR`.
    """

    def __init__(self, vcpus: Sequence[Vcpu], ports: Bus, mmio: Bus, lock: threading.Lock, wake: Callable[[], None]) -> None:
        self.paused = False
        self.end: End | None = None
        self.error: MayflyError | None = None
        self.threads = [VcpuThread(vcpu, ports, mmio, lock, self._ended) for vcpu in vcpus]
        self._wake = wake
        self._end_lock = threading.Lock()

    def start(self) -> None:
        """Let the guest run."""
        signal.signal(KICK, lambda *_: None)
        for thread in self.threads:
            thread.start()

    def finish(self, end: End, error: MayflyError | None = None) -> None:
        """End the machine for this reason; the first one counts."""
        with self._end_lock:
            if self.end is None:
                self.end, self.error = end, error
        for thread in self.threads:
            thread.stop()
        self._wake()

    def _ended(self, error: MayflyError | None) -> None:
        self.finish(End.RESET if error is None else End.ERROR, error)

    def pause(self) -> None:
        """Pause all vCPUs, with no access half done. Raises GuestError if the machine has ended."""
        if not self.paused:
            for thread in self.threads:
                thread.pause()
            for thread in self.threads:
                thread.standing.wait()
        if self.end is not None:
            raise GuestError("the machine has ended")
        self.paused = True

    def resume(self) -> None:
        """Let the vCPUs go on."""
        if self.paused:
            for thread in self.threads:
                thread.resume()
        self.paused = False

    def join(self) -> None:
        """Stop the vCPUs and wait for their threads, though not for long."""
        for thread in self.threads:
            thread.stop()
        for thread in self.threads:
            thread.join(STOP_DEADLINE_S)

    def exits(self) -> Counter[str]:
        """Returns of KVM_RUN by cause."""
        causes: Counter[str] = Counter()
        for thread in self.threads:
            causes.update(dict(thread.exits))  # a copy, as the thread goes on counting
        return causes
