"""A vCPU's thread: run the guest, carry out what it exits for, end in a defined way."""

import signal
import threading
from collections import Counter, deque
from collections.abc import Callable

from mayfly.errors import GuestError, MayflyError
from mayfly.vmm.arch import cpu
from mayfly.vmm.bus import Bus
from mayfly.vmm.kvm.kvm import ExitReason, SystemEvent, Vcpu

KICK = signal.SIGRTMIN  # Interrupts a KVM_RUN that is under way; its handler does nothing
PIO_OUT = 1


class VcpuThread(threading.Thread):
    """Runs one vCPU until `stop` or until the guest ends.

    `lock` is held while a device handles an access. `end` is called once, from this thread, when
    the vCPU cannot go on: with the error, or None if the guest asked for a reset. `standing` is set
    while the guest stands still after `pause`, or has ended.
    """

    def __init__(self, vcpu: Vcpu, ports: Bus, mmio: Bus, lock: threading.Lock, end: Callable[[MayflyError | None], None]) -> None:
        super().__init__(name=f"vcpu{vcpu.index}", daemon=True)
        self._vcpu, self._ports, self._mmio, self._lock, self._end = vcpu, ports, mmio, lock, end
        self._stopping = False
        self._work: deque[Callable[[Vcpu], None]] = deque()
        self._going = threading.Event()
        self._going.set()
        self.standing = threading.Event()
        self.exits: Counter[str] = Counter()
        """Returns of KVM_RUN by reason and device ("io 0x3f8", "mmio unmapped", "interrupted")."""

    def stop(self) -> None:
        """Make the thread end soon, whatever the guest does. Any thread; join afterwards."""
        self._stopping = True
        self._going.set()
        self._interrupt()

    def call(self, work: Callable[[Vcpu], None]) -> None:
        """Have the thread do `work`, which only it can, before the guest goes on. Any thread."""
        self._work.append(work)
        self._interrupt()

    def pause(self) -> None:
        """Have the guest stand still, with no access half done, until `resume` or `stop`."""
        self._going.clear()
        self._interrupt()

    def resume(self) -> None:
        """Let a guest that stands still go on."""
        self.standing.clear()  # here, so that a `pause` right after this waits for the thread to stand again
        self._going.set()

    def _interrupt(self) -> None:
        self._vcpu.request_exit()
        if self.is_alive() and self.ident is not None:
            signal.pthread_kill(self.ident, KICK)

    def run(self) -> None:
        """Thread body."""
        try:
            # Until EINTR, as only the next KVM_RUN completes an access (api.rst 5, KVM_EXIT_IO).
            reason: int | None = None
            while not (self._stopping and reason == ExitReason.INTR):
                reason = self._vcpu.run()
                self._carry_out(reason)
        except MayflyError as error:
            self._end(error)
        except Exception as error:
            self._end(GuestError(f"vCPU {self._vcpu.index} stopped by a fault of the monitor: {error!r}"))
            raise
        finally:
            self.standing.set()

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
            while not self._going.is_set():
                self.standing.set()
                self._going.wait()
        elif reason == ExitReason.SYSTEM_EVENT and self._vcpu.page.system_event.type in SystemEvent.__members__.values():
            self.exits["last"] += 1
            self._stopping = True
            self._end(None)
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
        known = reason in ExitReason.__members__.values()
        what = {
            ExitReason.SHUTDOWN: "it crashed beyond recovery (triple fault)",
            ExitReason.FAIL_ENTRY: f"the processor refused its state ({page.fail_entry.hardware_entry_failure_reason:#x})",
            ExitReason.INTERNAL_ERROR: f"KVM could not emulate it (suberror {page.internal.suberror})",
            ExitReason.SYSTEM_EVENT: f"it asked for system event {page.system_event.type}",
            ExitReason.HLT: "it halted with no way to wake up",
        }.get(
            ExitReason(reason) if known else ExitReason.UNKNOWN,
            f"an exit for {ExitReason(reason).name if known else reason}, which nothing here causes",
        )
        return GuestError(f"the guest stopped: {what}; vCPU {self._vcpu.index}: {cpu.describe_registers(self._vcpu)}")
