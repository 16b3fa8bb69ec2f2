"""One virtual machine: what it is wired from, how it runs, how it ends."""

import contextlib
import functools
import io
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Mapping as MappingOf
from enum import StrEnum
from typing import Any, Protocol

from mayfly.errors import ConfigError, GuestError, KvmError, MayflyError, SnapshotError
from mayfly.vmm.arch import InterruptController, boot, cpu, hardware, interrupts, layout, state
from mayfly.vmm.bus import Bus
from mayfly.vmm.channels import PORT_NAME
from mayfly.vmm.channels.serial import SerialChannel
from mayfly.vmm.channels.tcp import TcpChannel
from mayfly.vmm.channels.virtio import VirtioChannel
from mayfly.vmm.config import CHANNEL_PORT, Channel, MachineConfig
from mayfly.vmm.devices.serial import Serial
from mayfly.vmm.devices.virtio.device import VirtioDevice
from mayfly.vmm.devices.virtio.entropy import Entropy
from mayfly.vmm.devices.virtio.mmio import Interrupt, MmioTransport, Register
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.kvm.kvm import Kvm, Vcpu, Vm
from mayfly.vmm.kvm.mapping import PAGE, Mapping
from mayfly.vmm.memory import GuestAddressError, GuestMemory
from mayfly.vmm.network.link import Link, open_backend
from mayfly.vmm.snapshot.files import AGAIN, Chain, Target, shape
from mayfly.vmm.snapshot.memory import Runs
from mayfly.vmm.vcpu import KICK, VcpuThread

STOP_DEADLINE_S = 1.0


class End(StrEnum):
    """Why a machine ended."""

    RESET = "reset"
    CHANNEL_CLOSED = "channel-closed"
    STOPPED = "stopped"
    SAVED = "saved"
    ERROR = "error"


class Part(Protocol):
    """A part of a machine that a snapshot holds."""

    def save(self) -> MappingOf[str, Any]:
        """Its state as JSON; called when nothing uses it any more."""
        ...

    def restore(self, state: MappingOf[str, Any]) -> None:
        """Go on where `save` was called; called before anything uses it."""
        ...


class Machine:
    """A machine that is ready to run: `run` in the thread that made it, `stop` from anywhere, then
    `close`.

    Attributes:
        phases: seconds that each part of the making took.
        boot_console: UART0; use it under `lock`.
        on_console_room: called, in a vCPU's thread, when UART0 takes input again.
        error: what ended it, if `End.ERROR`.
        memory: guest RAM.
        parts: its devices, by names that are the same in each machine of this configuration.
        pre_fault: map for the guest, which was restored and runs, what it will touch soon; a
            signal's handler may call it.
        save: write the machine, which has ended as `End.SAVED`, to the folder of its configuration;
            the bytes of memory written.
    """

    def __init__(self, loop: EventLoop) -> None:
        self.phases: dict[str, float] = {}
        self.error: MayflyError | None = None
        self.end: End | None = None
        self.ports, self.mmio = Bus("io"), Bus("mmio")
        self.lock = threading.Lock()
        self.channel: SerialChannel | VirtioChannel | TcpChannel | None = None
        self.boot_console: Serial
        self.memory: GuestMemory
        self.on_console_room: Callable[[], None] = lambda: None
        self.vcpus: list[VcpuThread] = []
        self.transports: list[MmioTransport] = []
        self.parts: dict[str, Part] = {}
        self.pre_fault: Callable[[], None] = lambda: None
        self.save: Callable[[], int]
        self.resources = contextlib.ExitStack()
        self._loop = loop
        self._end_lock = threading.Lock()

    def finish(self, end: End, error: MayflyError | None = None) -> None:
        """End the machine for this reason; the first one counts. Any thread."""
        with self._end_lock:
            if self.end is None:
                self.end, self.error = end, error
        for vcpu in self.vcpus:
            vcpu.stop()
        self._loop.stop()

    def vcpu_ended(self, error: MayflyError | None) -> None:
        """A vCPU cannot go on: because of `error`, or because the guest has reset its machine or
        switched it off. Any thread.
        """
        self.finish(End.RESET if error is None else End.ERROR, error)

    def run(self) -> End:
        """Start the vCPUs and serve the machine until it ends."""
        signal.signal(KICK, lambda *_: None)
        for vcpu in self.vcpus:
            vcpu.start()
        self._loop.run()
        for vcpu in self.vcpus:
            vcpu.stop()
            vcpu.join(None if self.end is End.SAVED else STOP_DEADLINE_S)
        return self.end or End.STOPPED

    def exits(self) -> dict[str, int]:
        """Returns of KVM_RUN by cause, `total`, and `channel-data`, those of the total that carried
        the channel's own bytes. Beside them `kicks`: how often a queue's eventfd woke the event
        loop, which is no exit.
        """
        causes: Counter[str] = Counter()
        for vcpu in self.vcpus:
            causes.update(vcpu.exits)
        counted = {"total": causes.total(), "channel-data": self.channel.data_accesses if self.channel else 0}
        return {**causes, **counted, "kicks": sum(transport.kicks for transport in self.transports)}

    def close(self) -> None:
        """Give everything back, in reverse order of creation."""
        self.resources.close()


def build_machine(config: MachineConfig, *, loop: EventLoop, channel: socket.socket | None, console: Callable[[bytes], None]) -> Machine:
    """Make the machine that `config` describes, up to the kernel's first instruction, or to the
    next one after its snapshot.

    `console` is called with what the guest prints on UART0, from a vCPU's thread.

    Raises:
        KvmUnavailableError, KvmError: no KVM, or it refused.
        BootError: the kernel or the initramfs cannot be loaded.
        ConfigError: files are missing, or the command line is too long.
        NetworkError: the back end of the network cannot be had.
        SnapshotError: the snapshot is damaged, or not for this machine or host.
    """
    machine = Machine(loop)
    with contextlib.ExitStack() as failed:
        failed.callback(machine.close)
        began = time.monotonic()
        kvm = machine.resources.enter_context(Kvm())
        chain = machine.resources.enter_context(contextlib.closing(Chain(config.restore, config.initrd, page_by_page=bool(config.save_to))))
        if config.restore:
            chain.check(config, state.identity(kvm))
        mapping = machine.resources.enter_context(Mapping(config.memory))
        chain.lay_over(mapping)
        vm = machine.resources.enter_context(kvm.create_vm())
        memory = machine.memory = _add_memory(vm, mapping)
        machine.resources.callback(memory.release)
        registers = _add_registers(machine, vm, config)
        controller = machine.resources.enter_context(contextlib.closing(interrupts.create(vm, pit=config.interactive)))
        vcpus = [machine.resources.enter_context(vm.create_vcpu(index)) for index in range(config.cpus)]
        controller.start()
        machine.phases["objects"] = time.monotonic() - began

        began = time.monotonic()
        _add_boot_console(machine, vm, console)
        hardware.attach(machine.ports, machine.mmio, lambda: machine.finish(End.RESET))
        if channel is not None and config.channel is Channel.SERIAL:
            _add_serial_channel(machine, vm, loop, channel)
        for slot, device in enumerate(_virtio_devices(config, machine, loop, channel)):
            _add_virtio(machine, vm, loop, slot, device, registers)
        if config.restore:
            _restore(machine, vm, controller, vcpus, chain.state)
            machine.pre_fault = lambda: machine.vcpus[0].call(lambda vcpu: _pre_fault(kvm, vcpu, mapping, chain.working_set))
        else:
            token = machine.channel.token if isinstance(machine.channel, TcpChannel) else ""
            cpu.set_up(vm, vcpus, entry=_load(config, vm, memory, mapping, command_line(config, token)))
            _pre_fault(kvm, vcpus[0], mapping, [(offset // PAGE, -(-size // PAGE)) for offset, size in mapping.files])
            chain.initrd_offset = mapping.files[0][0] if config.initrd else None
        for vcpu in vcpus:
            machine.vcpus.append(VcpuThread(vcpu, machine.ports, machine.mmio, machine.lock, machine.vcpu_ended))
        if config.save_to:
            target = machine.resources.enter_context(contextlib.closing(Target(config.save_to, chain)))
            machine.save = lambda: target.write(_saved(machine, config, vm, controller, vcpus, chain), mapping)
        machine.phases["load"] = time.monotonic() - began
        failed.pop_all()
    return machine


def _saved(
    machine: Machine, config: MachineConfig, vm: Vm, controller: InterruptController, vcpus: list[Vcpu], chain: Chain
) -> dict[str, Any]:
    return {
        "identity": state.identity(vm.kvm),
        "machine": shape(config),
        "initrd_offset": chain.initrd_offset,
        "kvm": state.save(vm, controller, vcpus),
        "parts": {name: part.save() for name, part in machine.parts.items()},
    }


def _restore(machine: Machine, vm: Vm, controller: InterruptController, vcpus: list[Vcpu], saved: MappingOf[str, Any]) -> None:
    try:
        if len(saved["kvm"]["vcpus"]) != len(vcpus):
            raise SnapshotError(f"the snapshot has {len(saved['kvm']['vcpus'])} vCPUs, the machine {len(vcpus)}", hint=AGAIN)
        state.restore(vm, controller, vcpus, saved["kvm"])
        for name, part in machine.parts.items():
            part.restore(saved["parts"][name])
    except KvmError as error:
        raise SnapshotError(f"this KVM does not take the snapshot's state: {error}", hint=AGAIN) from error
    except (KeyError, ValueError, TypeError, GuestAddressError) as error:
        raise SnapshotError(f"the snapshot's state is damaged: {error!r}", hint=AGAIN) from error


def _pre_fault(kvm: Kvm, vcpu: Vcpu, mapping: Mapping, runs: Runs) -> None:
    """Map runs of pages of the memory's for the guest, where KVM can."""
    if not kvm.check_extension("KVM_CAP_PRE_FAULT_MEMORY"):
        return
    offset = 0
    for address, size in layout.ram_regions(mapping.size):
        for first, count in runs:
            begin, end = max(first * PAGE, offset), min((first + count) * PAGE, offset + size)
            if begin < end:
                vcpu.pre_fault(address + begin - offset, end - begin)
        offset += size


def _add_memory(vm: Vm, mapping: Mapping) -> GuestMemory:
    regions, offset = [], 0
    for slot, (address, size) in enumerate(layout.ram_regions(mapping.size)):
        vm.set_memory(slot, address, mapping.address + offset, size)
        regions.append((address, mapping.view[offset : offset + size]))
        offset += size
    return GuestMemory(regions)


def _add_registers(machine: Machine, vm: Vm, config: MachineConfig) -> memoryview:
    """Memory for what the guest reads in virtio devices' registers. Where it is shown to the guest
    itself, no such read is an exit.
    """
    size = config.virtio_devices * layout.VIRTIO_MMIO_SIZE
    registers = machine.resources.enter_context(Mapping(size, huge=False))
    if layout.VIRTIO_READABLE_AS_MEMORY:
        vm.set_memory(len(layout.ram_regions(config.memory)), layout.VIRTIO_MMIO, registers.address, size, read_only=True)
    return registers.view


def _interrupt(machine: Machine, vm: Vm, gsi: int) -> Callable[[], None]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    machine.resources.callback(os.close, fd)
    vm.irqfd(fd, gsi)
    return lambda: os.eventfd_write(fd, 1)


def _add_boot_console(machine: Machine, vm: Vm, console: Callable[[bytes], None]) -> None:
    uart = Serial(
        _interrupt(machine, vm, layout.UART0_GSI), on_output=lambda: console(uart.take()), on_room=lambda: machine.on_console_room()
    )
    hardware.uart_bus(machine.ports, machine.mmio).attach(layout.UART0, layout.UART_SIZE, uart)
    machine.boot_console = machine.parts["uart0"] = uart


def _add_serial_channel(machine: Machine, vm: Vm, loop: EventLoop, channel: socket.socket) -> None:
    interrupt = _interrupt(machine, vm, layout.UART1_GSI)
    machine.channel = SerialChannel(channel, loop, machine.lock, interrupt=interrupt, closed=lambda: machine.finish(End.CHANNEL_CLOSED))
    hardware.uart_bus(machine.ports, machine.mmio).attach(layout.UART1, layout.UART_SIZE, machine.channel.serial)
    machine.parts["uart1"] = machine.channel.serial


def _virtio_devices(config: MachineConfig, machine: Machine, loop: EventLoop, channel: socket.socket | None) -> Iterator[VirtioDevice]:
    """The devices in the order of their slots; `MachineConfig.virtio_devices` is how many."""
    if config.channel is Channel.VIRTIO:
        if channel is None:
            raise ConfigError("a machine with a virtio channel needs the channel's socket")
        machine.channel = VirtioChannel(channel, loop, closed=lambda: machine.finish(End.CHANNEL_CLOSED))
        yield machine.channel.console
    entropy = Entropy(os.urandom, time.monotonic, later=lambda delay_s: loop.call_later(delay_s, entropy.resume))
    yield entropy
    if config.network is not None:
        over_tcp = config.channel is Channel.TCP
        backend = machine.resources.enter_context(contextlib.closing(open_backend(config.network, loop, channel=over_tcp)))
        link = Link(config.network, backend, loop)
        if over_tcp and channel is not None:
            _add_tcp_channel(machine, loop, channel, link)
        yield link.net


def _add_tcp_channel(machine: Machine, loop: EventLoop, channel: socket.socket, link: Link) -> None:
    """The agent listens before it brings the network up, and then asks for its gateway: the guest's
    first packet says that it is there.
    """

    def failed(error: OSError) -> None:
        machine.finish(End.ERROR, GuestError(f"the agent takes no connection for its channel: {error.strerror}"))

    closed = functools.partial(machine.finish, End.CHANNEL_CLOSED)
    machine.channel = TcpChannel(channel, loop, connect=link.connect, closed=closed, failed=failed)
    machine.resources.callback(machine.channel.close)
    link.net.on_first_packet = machine.channel.open


def _add_virtio(machine: Machine, vm: Vm, loop: EventLoop, slot: int, device: VirtioDevice, registers: memoryview) -> None:
    """Put `device` into virtio-mmio slot `slot`: registers on the bus, each queue's notifications
    on an eventfd, interrupts on an irqfd.
    """
    offset = slot * layout.VIRTIO_MMIO_SIZE
    base = layout.VIRTIO_MMIO + offset
    kicks = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in device.queue_sizes]
    transport = MmioTransport(
        device,
        machine.memory,
        interrupt=_interrupt(machine, vm, layout.VIRTIO_GSI + slot),
        kick=lambda queue: os.eventfd_write(kicks[queue], 1),
        registers=registers[offset : offset + layout.VIRTIO_MMIO_SIZE],
    )
    machine.resources.callback(transport.close)
    machine.transports.append(transport)
    machine.parts[f"virtio{slot}"] = transport
    for queue, fd in enumerate(kicks):
        loop.add_eventfd(fd, functools.partial(transport.notify, queue))
        vm.ioeventfd(fd, base + Register.QUEUE_NOTIFY, 4, queue)
    # What a driver acknowledges with each interrupt goes to an eventfd that nobody reads: it would
    # be an exit else, and that the bit stays set means no more to a driver than that it should look
    # at its queues.
    acknowledged = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    machine.resources.callback(os.close, acknowledged)
    vm.ioeventfd(acknowledged, base + Register.INTERRUPT_ACK, 4, Interrupt.USED_BUFFER)
    machine.mmio.attach(base, layout.VIRTIO_MMIO_SIZE, transport)


def _load(config: MachineConfig, vm: Vm, memory: GuestMemory, mapping: Mapping, cmdline: str) -> int:
    with contextlib.ExitStack() as files:
        kernel_fd = files.enter_context(_open(config.kernel, "kernel")).fileno()
        initrd_fd = files.enter_context(_open(config.initrd, "initramfs")).fileno() if config.initrd else None
        return boot.load(config, vm, memory, mapping, kernel_fd=kernel_fd, initrd_fd=initrd_fd, cmdline=cmdline)


def _open(path: str, what: str) -> io.FileIO:
    try:
        return io.FileIO(path)
    except OSError as error:
        raise ConfigError(
            f"the {what} {path} cannot be read: {error.strerror}", hint="mayfly kernel build" if what == "kernel" else ""
        ) from error


def command_line(config: MachineConfig, token: str = "") -> str:
    """The kernel's parameters: the machine's own, then the configuration's, which win. `token`:
    what a channel over TCP begins with.
    """
    parameters = [layout.kernel_parameters(config), "panic=-1"]
    if config.interactive:
        parameters.append("console=ttyS0")
    else:
        # The root is a tmpfs of half the memory by default, and one that is full cuts files short
        # in silence. Giving the archive's memory back would write to each of its pages, which are
        # shared with the file and would have to be copied for it.
        parameters += ["quiet", "console=ttynull", layout.EARLY_CONSOLE, "initramfs_options=size=90%", "retain_initrd"]
        # Else the kernel starts a shell in the place of an init that does not start.
        parameters.append("init=/init")
    if config.channel is Channel.SERIAL:
        parameters.append("mayfly.channel=serial:/dev/ttyS1")
    elif config.channel is Channel.VIRTIO:
        parameters.append(f"mayfly.channel=virtio:{PORT_NAME}")
    elif config.channel is Channel.TCP:
        parameters += [f"mayfly.channel=tcp:{CHANNEL_PORT}", f"mayfly.token={token}"]
    if config.network is not None:
        # A sent packet is forgotten when it is on its way: no interrupt says so, and the guest does
        # not wait for one to send the next.
        parameters.append("virtio_net.napi_tx=0")
        parameters += config.network.words
    return " ".join([*parameters, config.cmdline]).strip()
