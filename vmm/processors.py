"""The vCPUs of a machine: a thread runs each, and they start, stand still and end together."""

import signal
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from mayfly.errors import GuestError, HostError, MayflyError
from mayfly.protocol.report import End
from mayfly.vmm.arch import cpu
from mayfly.vmm.bus import Bus
from mayfly.vmm.kvm.kvm import EVENT_RESET, EVENT_SHUTDOWN, ExitReason, Vcpu
from mayfly.vmm.signals import handle
from mayfly.vmm.threads import Thread

KICK = signal.SIGRTMIN  # Interrupts a KVM_RUN that is under way; its handler does nothing
PIO_OUT = 1
STOP_DEADLINE_S = 1.0


class VcpuThread(Thread):
    """Runs one vCPU until `stop` or until the guest ends.

    `lock` is held while a device handles an access. `finish` is called once, from this thread, when
    the vCPU cannot go on.
    """

    def __init__(self, vcpu: Vcpu, ports: Bus, mmio: Bus, lock: threading.Lock, finish: Callable[..., None]) -> None:
        super().__init__()
        self._vcpu, self._ports, self._mmio, self._lock, self._finish = vcpu, ports, mmio, lock, finish
        self._stopping = self._pausing = self._standing = self._ended = False
        self._work: deque[Callable[[Vcpu], None]] = deque()
        self._turn = threading.Condition()  # for the last three of these
        self.exits: defaultdict[str, int] = defaultdict(int)  # a Counter costs each machine 30 pages
        """Returns of KVM_RUN by reason and device ("io 0x3f8", "mmio unmapped", "interrupted")."""

    def stop(self) -> None:
        """Make the thread end soon, whatever the guest does. Any thread; join afterwards."""
        self._stopping = True
        self.resume()
        self._interrupt()

    def call(self, work: Callable[[Vcpu], None]) -> None:
        """Have the thread do `work`, which only it can, before the guest goes on. Any thread."""
        self._work.append(work)
        self._interrupt()

    def pause(self) -> None:
        """Have the guest stand still soon, with no access half done, until `resume` or `stop`."""
        with self._turn:
            self._pausing = True
        self._interrupt()

    def await_standing(self) -> None:
        """Wait until the guest stands still after `pause`, or the thread has ended."""
        with self._turn:
            self._turn.wait_for(lambda: self._standing or self._ended)

    def resume(self) -> None:
        """Let a guest that stands still go on."""
        with self._turn:
            self._pausing = self._standing = False  # the latter here, as another `pause` may come before the thread's turn
            self._turn.notify_all()

    def _interrupt(self) -> None:
        self._vcpu.request_exit()
        if ident := self.ident:  # else it has yet to look at the request, or has ended
            signal.pthread_kill(ident, KICK)

    def run(self) -> None:
        """Thread body."""
        try:
            # Until EINTR, as only the next KVM_RUN completes an access (api.rst 5, KVM_EXIT_IO).
            reason: int | None = None
            while not (self._stopping and reason == ExitReason.INTR):
                reason = self._vcpu.run()
                self._carry_out(reason)
        except MayflyError as error:
            self._finish(End.ERROR, error)
        except Exception as error:
            self._finish(End.ERROR, GuestError(f"vCPU {self._vcpu.index} stopped by a fault of the monitor: {error!r}"))
            raise
        finally:
            with self._turn:
                self._ended = True
                self._turn.notify_all()

    def _carry_out(self, reason: int) -> None:
        if reason == ExitReason.IO:
            self._port_access()
        elif reason == ExitReason.MMIO:
            self._mmio_access()
        elif reason == ExitReason.INTR:
            if not self._stopping:
                self.exits["interrupted"] += 1
            self._vcpu.withdraw_exit()
            while self._work:
                self._work.popleft()(self._vcpu)
            with self._turn:
                while self._pausing and not self._stopping:
                    self._standing = True
                    self._turn.notify_all()
                    self._turn.wait()
        elif reason == ExitReason.SYSTEM_EVENT and self._vcpu.page.system_event.type in (EVENT_SHUTDOWN, EVENT_RESET):
            self.exits["last"] += 1
            self._stopping = True
            self._finish(End.RESET)
        else:
            self.exits["last"] += 1
            raise self._fatal(reason)

    def _port_access(self) -> None:
        access = self._vcpu.page.io
        port, size, count = access.port, access.size, access.count
        data = self._vcpu.bytes[access.data_offset : access.data_offset + size * count]
        device, offset, name = self._ports.find(port, size)
        self.exits[name] += 1
        with self._lock:
            for index in range(0, size * count, size):
                if access.direction == PIO_OUT:
                    device.write(offset, size, int.from_bytes(data[index : index + size], "little"))
                else:
                    data[index : index + size] = device.read(offset, size).to_bytes(size, "little")

    def _mmio_access(self) -> None:
        access = self._vcpu.page.mmio
        address, size = access.phys_addr, access.len
        device, offset, name = self._mmio.find(address, size)
        self.exits[name] += 1
        with self._lock:
            if access.is_write:
                device.write(offset, size, int.from_bytes(bytes(access.data[0:size]), "little"))
            else:
                access.data[0:size] = device.read(offset, size).to_bytes(size, "little")

    def _fatal(self, reason: int) -> GuestError:
        page = self._vcpu.page
        explained: dict[int, str] = {
            ExitReason.SHUTDOWN: "it crashed beyond recovery (triple fault)",
            ExitReason.FAIL_ENTRY: f"the processor refused its state ({page.fail_entry.hardware_entry_failure_reason:#x})",
            ExitReason.INTERNAL_ERROR: f"KVM could not emulate it (suberror {page.internal.suberror})",
            ExitReason.SYSTEM_EVENT: f"it asked for system event {page.system_event.type}",
            ExitReason.HLT: "it halted with no way to wake up",
        }
        what = explained.get(reason, f"KVM_RUN ended with the exit reason {reason}, which nothing here causes")
        return GuestError(f"the guest stopped: {what}; vCPU {self._vcpu.index}: {cpu.describe_registers(self._vcpu)}")


class Processors:
    """The threads of all vCPUs. `finish` is for any thread, the rest for the one that made it.

    `lock` is held while a device on `ports` or `mmio` handles an access; `wake` is called, from any
    thread, when the machine has ended. `end` says why, and `error` belongs to `End.ERROR`.
    """

    def __init__(self, vcpus: Sequence[Vcpu], wake: Callable[[], None]) -> None:
        self.vcpus, self.ports, self.mmio, self.lock = vcpus, Bus("io"), Bus("mmio"), threading.Lock()
        self.paused = False
        self.end: End | None = None
        self.error: MayflyError | None = None
        self.threads = [VcpuThread(vcpu, self.ports, self.mmio, self.lock, self.finish) for vcpu in vcpus]
        self._wake = wake
        self._end_lock = threading.RLock()  # a signal's handler may end the machine while this thread does

    def start(self, *, paused: bool = False) -> None:
        """Let the guest run, or with `paused` not before `resume`. Raises HostError: there is no
        thread for a vCPU.
        """
        handle(KICK, lambda *_: None)
        try:
            for thread in self.threads:
                if paused:
                    thread.pause()
                thread.start()
        except RuntimeError as error:
            raise HostError(f"no thread for a vCPU: {error}", hint="raise this service's limits of processes and memory") from error
        if paused:
            self.pause()

    def finish(self, end: End, error: MayflyError | None = None) -> None:
        """End the machine for this reason; the first one counts."""
        with self._end_lock:
            if self.end is None:
                self.end, self.error = end, error
        for thread in self.threads:
            thread.stop()
        self._wake()

    def pause(self) -> None:
        """Pause all vCPUs, with no access half done. Raises GuestError if the machine has ended."""
        if not self.paused:
            for thread in self.threads:
                thread.pause()
            for thread in self.threads:
                thread.await_standing()
        if self.end is not None:
            raise GuestError("the machine has ended")
        self.paused = True

    def resume(self) -> None:
        """Let the vCPUs go on."""
        for thread in self.threads:
            thread.resume()
        self.paused = False

    def join(self) -> None:
        """Stop the vCPUs and wait for their threads, though not for long."""
        for thread in self.threads:
            thread.stop()
        for thread in self.threads:
            thread.join(STOP_DEADLINE_S)

    def exits(self) -> dict[str, int]:
        """Returns of KVM_RUN by cause."""
        causes: dict[str, int] = {}
        for thread in self.threads:
            for cause, count in thread.exits.copy().items():  # which goes on counting
                causes[cause] = causes.get(cause, 0) + count
        return causes
