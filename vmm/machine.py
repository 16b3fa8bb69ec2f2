"""One virtual machine: how it runs, pauses, is saved and ends. `mayfly.vmm.build` makes it."""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingOf
from typing import Any

from mayfly.errors import ConfigError, HostError, MayflyError
from mayfly.protocol import control
from mayfly.protocol.pages import Runs
from mayfly.protocol.report import End
from mayfly.schema import field, msgspec
from mayfly.units import PAGE
from mayfly.vmm.arch import layout, state
from mayfly.vmm.channels.carrier import Carrier
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.devices.serial import Serial
from mayfly.vmm.devices.virtio.mmio import MmioTransport
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.kvm.kvm import Kvm, Vcpu, Vm
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.processors import Processors
from mayfly.vmm.resources import Resources
from mayfly.vmm.snapshot.files import Layers, MachineState, shape, write_snapshot
from mayfly.vmm.snapshot.sender import Sender
from mayfly.vmm.snapshot.state import raw
from mayfly.vmm.worker import Worker

_STATM_BYTES = 256
Part = Serial | MmioTransport  # What a snapshot holds of a machine besides KVM's state and memory


class Machine(msgspec.Struct, kw_only=True, eq=False):
    """A machine that is ready to run: `run`, in the thread that made it, then `close`.

    While it runs, `finish` is for any thread, all else for the event loop's.
    """

    config: MachineConfig
    loop: EventLoop
    vm: Vm
    controller: Any  # The interrupt controllers, as `arch.hardware` made them
    processors: Processors
    mapping: Mapping  # Guest RAM in this process
    layers: Layers  # What the machine began with
    boot_console: Serial
    parts: MappingOf[str, Part]  # By names that are the same in each machine of this configuration
    phases: dict[str, float]  # Seconds that each part of the making took, and of the saving
    resources: Resources  # Give back everything, in reverse order of creation
    statm: int  # Descriptor of this process's /proc/self/statm
    carrier: Carrier | None = None  # Of the channel, unless it goes over TCP
    set_back: Callable[[], None] | None = None  # Gives a restored guest the time of its snapshot anew
    worker: Worker = field(default_factory=Worker)
    sender: Sender | None = None  # While the machine is sent elsewhere

    def finish(self, end: End, error: MayflyError | None = None) -> None:
        """End the machine for this reason; the first one counts. Any thread."""
        self.processors.finish(end, error)

    def stand_by(self) -> None:
        """Start all threads ahead; the guest does not run before `run`. Raises HostError."""
        self.worker.start()
        self.processors.start(paused=True)

    def run(self, started: Callable[[], None] = lambda: None) -> End:
        """Start all threads, unless they stand by, call `started`, and serve the machine until it
        ends.
        """
        paused, standing_by = self.config.paused or self.config.arriving, self.processors.paused
        if not standing_by:
            self.worker.start()
            self.processors.start(paused=paused)
        started()
        if paused:
            self.loop.stand_still()
        elif standing_by:
            self.processors.resume()
        self.loop.run()
        self.processors.join()
        return self.processors.end or End.STOPPED

    def resume(self) -> None:
        """Let vCPUs and devices go on, and tell the guest of it. It is sent no more."""
        self.loop.go_on()
        if self.sender is not None:
            self.sender.stop()
        if self.processors.paused:
            state.tell_of_pause(self.processors.vcpus)
            self.processors.resume()

    def snapshot(self, descriptors: Sequence[int], *, go_on: bool) -> int:
        """Write the machine to the files `descriptors`; the bytes of memory written.

        With `go_on`, or when that fails, it goes on as it was, else it ends as `End.SAVED`. Raises
        ConfigError (a snapshot cannot hold this machine), SnapshotError, or GuestError (ended).
        """
        self._check_channel()
        if self.config.network is not None and self.config.network.connected:
            raise ConfigError("a snapshot holds no network's addresses", hint="save a machine that is connected to none")
        began = time.monotonic()
        paused = self.processors.paused
        self.processors.pause()
        try:
            written = write_snapshot(descriptors, self._state(), self.mapping, self.layers)
            if not go_on:
                self.finish(End.SAVED)
        finally:
            if not paused and self.processors.end is None:
                self.resume()
        self.phases["save"] = time.monotonic() - began
        return written

    def track(self, held: int) -> control.Tracking:
        """Get ready to be sent. Raises ConfigError: it cannot be."""
        self._check_channel()
        if self.sender is not None:
            self.sender.close()
        self.sender = Sender(self.mapping, self.layers, held, self.worker)
        return control.Tracking(live=self.sender.live)

    def send(self, fd: int, *, last: bool) -> None:
        """Send a round to a duplicate of `fd`; with `last` vCPUs and devices stand still then,
        until they are resumed. Raises ConfigError, GuestError (ended), HostError, KvmError.
        """
        if self.sender is None or not self.sender.ready:
            raise ConfigError("the machine is not ready to send a round: track it first", hint="begin the move anew")
        try:
            fd = os.dup(fd)
        except OSError as error:
            raise HostError(f"no descriptor for a round: {error.strerror}", hint="raise the limit of open files (ulimit -n)") from error
        with contextlib.ExitStack() as failed:
            failed.callback(os.close, fd)
            saved = self._stand_still() if last else None
            failed.pop_all()
            self.sender.send(fd, saved)

    def _stand_still(self) -> MachineState:
        paused = self.processors.paused
        self.processors.pause()
        try:
            saved = self._state()
        except MayflyError:
            if not paused:
                self.resume()
            raise
        self.loop.stand_still()
        return saved

    def _check_channel(self) -> None:
        if self.config.channel is Channel.TCP:
            raise ConfigError("channel is tcp, which a snapshot cannot hold", hint="use the channel virtio")

    def _state(self) -> MachineState:
        return MachineState(
            identity=state.identity(self.vm.kvm),
            machine=shape(self.config),
            initrd_offset=self.layers.initrd_offset,
            kvm=raw(state.save(self.vm, self.controller, self.processors.vcpus)),
            parts={name: raw(part.save()) for name, part in self.parts.items()},
        )

    def carry_out(self, request: control.Request, descriptors: Sequence[int]) -> control.Answer:
        """Do what was asked through the control socket."""
        match request:
            case control.Pause():
                self.processors.pause()
            case control.Resume():
                self.resume()
            case control.Snapshot(go_on=go_on):
                return control.Done(memory_bytes=self.snapshot(descriptors, go_on=go_on))
            case control.Track(held=held):
                return self.track(held)
            case control.Send(last=last):
                self.send(descriptors[0], last=last)
            case control.Stats():
                return control.Figures(paused=self.processors.paused, exits=self.exits() | self.usage())
            case control.Prefault():
                if not self.config.page_by_page:
                    self.mapping.use_huge_pages()
                if runs := self.layers.working_set:
                    self.processors.threads[0].call(lambda vcpu: pre_fault(self.vm.kvm, vcpu, self.mapping, runs))
        return control.Done()

    def exits(self) -> dict[str, int]:
        """Returns of KVM_RUN by cause, `total`, `channel-data` and `kicks` (eventfd wakes)."""
        causes = self.processors.exits()
        channel = self.parts.get("uart1")
        counted = {"total": sum(causes.values()), "channel-data": channel.data_accesses if isinstance(channel, Serial) else 0}
        return {**causes, **counted, "kicks": sum(part.kicks for part in self.parts.values() if isinstance(part, MmioTransport))}

    def usage(self) -> dict[str, int]:
        """This process's page faults and anonymous bytes (proc_pid_statm(5): those of no file)."""
        _, resident, shared, *_ = map(int, os.pread(self.statm, _STATM_BYTES, 0).split())
        return {"page-faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt, "own-bytes": (resident - shared) * PAGE}

    def close(self) -> None:
        """Give everything back."""
        self.worker.finish()
        if self.sender is not None:
            self.sender.close()
        self.resources.close()


def pre_fault(kvm: Kvm, vcpu: Vcpu, mapping: Mapping, runs: Runs) -> None:
    """Map runs of pages of the memory for the guest, where KVM can."""
    if not runs or not kvm.check_extension("KVM_CAP_PRE_FAULT_MEMORY"):
        return
    offset = 0
    for address, size in layout.ram_regions(mapping.size):
        for first, count in runs:
            begin, end = max(first * PAGE, offset), min((first + count) * PAGE, offset + size)
            if begin < end:
                vcpu.pre_fault(address + begin - offset, end - begin)
        offset += size
