"""One virtual machine: how it runs, pauses, is saved and ends. `mayfly.vmm.build` makes it."""

import contextlib
import dataclasses
import resource
import threading
import time
from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mayfly.errors import ConfigError, MayflyError
from mayfly.schema import Record
from mayfly.vmm.arch import InterruptController, layout, state
from mayfly.vmm.bus import Bus
from mayfly.vmm.channels.serial import SerialChannel
from mayfly.vmm.channels.tcp import TcpChannel
from mayfly.vmm.channels.virtio import VirtioChannel
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.devices.serial import Serial
from mayfly.vmm.devices.virtio.mmio import MmioTransport
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.kvm.kvm import Kvm, Vcpu, Vm
from mayfly.vmm.kvm.mapping import PAGE, Mapping
from mayfly.vmm.memory import GuestMemory
from mayfly.vmm.process.control import Figures
from mayfly.vmm.process.report import End
from mayfly.vmm.processors import Processors
from mayfly.vmm.snapshot.files import Chain, MachineState, shape, write_snapshot
from mayfly.vmm.snapshot.memory import Runs
from mayfly.vmm.snapshot.state import Saved, raw


class Part(Protocol):
    """A part of a machine that a snapshot holds."""

    def save(self) -> Record:
        """Its state; it goes on undisturbed."""

    def restore(self, saved: Saved) -> None:
        """Go on where `save` was called; called before anything uses it."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Machine:
    """A machine that is ready to run: `run`, in the thread that made it, then `close`.

    While it runs, `finish` is for any thread, all else for the event loop's.

    Attributes:
        vcpus: KVM's side of `processors`.
        mapping: guest RAM in this process; `memory` is the same by guest physical address.
        chain: what the machine began with.
        pagemap: a descriptor for `changed_pages`.
        lock: held around each access of the guest's to a device on `ports` or `mmio`.
        parts: the devices, by names that are the same in each machine of this configuration.
        phases: seconds that each part of the making took, and of the saving.
        resources: give back everything, in reverse order of creation.
    """

    config: MachineConfig
    loop: EventLoop
    vm: Vm
    controller: InterruptController
    vcpus: Sequence[Vcpu]
    processors: Processors
    mapping: Mapping
    memory: GuestMemory
    chain: Chain
    pagemap: int
    lock: threading.Lock
    ports: Bus
    mmio: Bus
    boot_console: Serial
    channel: SerialChannel | VirtioChannel | TcpChannel | None
    parts: MappingOf[str, Part]
    phases: dict[str, float]
    resources: contextlib.ExitStack

    def finish(self, end: End, error: MayflyError | None = None) -> None:
        """End the machine for this reason; the first one counts. Any thread."""
        self.processors.finish(end, error)

    def run(self) -> End:
        """Start the vCPUs and serve the machine until it ends."""
        self.processors.start()
        self.loop.run()
        self.processors.join()
        return self.processors.end or End.STOPPED

    def pause(self) -> None:
        """Pause the vCPUs; the devices go on. Raises GuestError if the machine has ended."""
        self.processors.pause()

    def resume(self) -> None:
        """Let the vCPUs go on, and tell the guest that it stood still."""
        if self.processors.paused:
            state.tell_of_pause(self.vcpus)
            self.processors.resume()

    def snapshot(self, descriptors: Sequence[int], *, go_on: bool) -> int:
        """Write the machine to the files `descriptors`; the bytes of memory written.

        With `go_on`, or when that fails, it goes on as it was, else it ends as `End.SAVED`. Raises
        ConfigError (a snapshot cannot hold this machine), SnapshotError, or GuestError (ended).
        """
        if self.config.channel is Channel.TCP:
            raise ConfigError("channel is tcp, which a snapshot cannot hold", hint="use the channel virtio")
        if self.config.network is not None and self.config.network.connected:
            raise ConfigError("a snapshot holds no network's addresses", hint="save a machine that is connected to none")
        began = time.monotonic()
        paused = self.processors.paused
        self.pause()
        try:
            written = write_snapshot(descriptors, self._state(), self.mapping, self.chain, self.pagemap)
            if not go_on:
                self.finish(End.SAVED)
        finally:
            if not paused and self.processors.end is None:
                self.resume()
        self.phases["save"] = time.monotonic() - began
        return written

    def _state(self) -> MachineState:
        return MachineState(
            identity=state.identity(self.vm.kvm),
            machine=shape(self.config),
            initrd_offset=self.chain.initrd_offset,
            kvm=raw(state.save(self.vm, self.controller, self.vcpus)),
            parts={name: raw(part.save()) for name, part in self.parts.items()},
        )

    def pre_fault(self) -> None:
        """Have the first vCPU map for the guest, which was restored, what it will touch soon."""
        runs = self.chain.working_set
        if runs:
            self.processors.threads[0].call(lambda vcpu: pre_fault(self.vm.kvm, vcpu, self.mapping, runs))

    def figures(self) -> Figures:
        """What was counted, for `control.Stats`."""
        return Figures(paused=self.processors.paused, exits=self.exits() | usage())

    def exits(self) -> dict[str, int]:
        """Returns of KVM_RUN by cause, `total`, `channel-data` and `kicks` (eventfd wakes)."""
        causes = self.processors.exits()
        counted = {"total": causes.total(), "channel-data": self.channel.data_accesses if self.channel else 0}
        return {**causes, **counted, "kicks": sum(part.kicks for part in self.parts.values() if isinstance(part, MmioTransport))}

    def close(self) -> None:
        """Give everything back."""
        self.resources.close()


def pre_fault(kvm: Kvm, vcpu: Vcpu, mapping: Mapping, runs: Runs) -> None:
    """Map runs of pages of the memory for the guest, where KVM can."""
    if not kvm.check_extension("KVM_CAP_PRE_FAULT_MEMORY"):
        return
    offset = 0
    for address, size in layout.ram_regions(mapping.size):
        for first, count in runs:
            begin, end = max(first * PAGE, offset), min((first + count) * PAGE, offset + size)
            if begin < end:
                vcpu.pre_fault(address + begin - offset, end - begin)
        offset += size


def usage() -> dict[str, int]:
    """This process's page faults and anonymous bytes (RssAnon in proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    own_kib = next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)
    return {"page-faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt, "own-bytes": own_kib * 1024}
