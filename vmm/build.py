"""From a MachineConfig to a Machine, which is complete when it is made."""

import contextlib
import functools
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingOf

from mayfly.errors import ConfigError, GuestError, KvmError, SnapshotError
from mayfly.vmm.arch import InterruptController, boot, cpu, hardware, interrupts, layout, state
from mayfly.vmm.bus import Bus
from mayfly.vmm.channels.serial import SerialChannel
from mayfly.vmm.channels.tcp import TcpChannel
from mayfly.vmm.channels.virtio import VirtioChannel
from mayfly.vmm.cmdline import command_line
from mayfly.vmm.config import Channel, DeviceKind, MachineConfig
from mayfly.vmm.devices.serial import Serial
from mayfly.vmm.devices.virtio.device import VirtioDevice
from mayfly.vmm.devices.virtio.entropy import Entropy
from mayfly.vmm.devices.virtio.mmio import MmioTransport
from mayfly.vmm.devices.virtio.registers import Interrupt, Register
from mayfly.vmm.eventloop import EventLoop
from mayfly.vmm.kvm.kvm import Kvm, Vcpu, Vm
from mayfly.vmm.kvm.mapping import PAGE, Mapping
from mayfly.vmm.machine import Machine, Part, pre_fault
from mayfly.vmm.memory import GuestMemory
from mayfly.vmm.network.link import Link, open_backend
from mayfly.vmm.process.report import End
from mayfly.vmm.processors import Processors
from mayfly.vmm.snapshot.files import Chain, MachineState
from mayfly.vmm.snapshot.memory import open_pagemap
from mayfly.vmm.snapshot.state import AGAIN, Saved


def build_machine(config: MachineConfig, *, loop: EventLoop, channel: socket.socket | None, console: Callable[[bytes], None]) -> Machine:
    """Make the machine, up to the kernel's first instruction, or the next one after its snapshot.

    `console` is called with what the guest prints on UART0, from a vCPU's thread.

    Raises:
        KvmError, NetworkError: the host lacks KVM or the network's back end, or refuses.
        BootError, ConfigError: the kernel, initramfs or command line does not fit, or is missing.
        SnapshotError: the snapshot is damaged, or not for this machine or host.
    """
    with contextlib.ExitStack() as resources:
        began = time.monotonic()
        kvm = resources.enter_context(Kvm())
        chain = resources.enter_context(contextlib.closing(Chain(config.restore, config.initrd, page_by_page=config.page_by_page)))
        saved = chain.check(config, state.identity(kvm)) if config.restore else None
        mapping = resources.enter_context(Mapping(config.memory))
        chain.lay_over(mapping)
        vm = resources.enter_context(kvm.create_vm())
        memory = _guest_memory(vm, mapping)
        resources.callback(memory.release)
        registers = _registers(config, vm, resources)
        controller = resources.enter_context(contextlib.closing(interrupts.create(vm, pit=config.interactive)))
        vcpus = [resources.enter_context(vm.create_vcpu(index)) for index in range(config.cpus)]
        controller.start()
        phases = {"objects": time.monotonic() - began}

        began = time.monotonic()
        wiring = _Wiring(vm, loop, memory, registers, vcpus, resources)
        boot_console = wiring.add_boot_console(console)
        hardware.attach(wiring.ports, wiring.mmio, functools.partial(wiring.processors.finish, End.RESET))
        if channel is not None:
            wiring.add_channel(config.channel, channel)
        for slot, device in enumerate(config.devices):
            wiring.add_virtio(slot, wiring.make_device(device, config, channel))
        if saved:
            _restore(vm, controller, vcpus, wiring.parts, saved)
        else:
            token = wiring.carrier.token if isinstance(wiring.carrier, TcpChannel) else ""
            cpu.set_up(vm, vcpus, entry=_load(config, vm, memory, mapping, command_line(config, token)))
            pre_fault(kvm, vcpus[0], mapping, [(offset // PAGE, -(-size // PAGE)) for offset, size in mapping.files])
            chain.initrd_offset = mapping.files[0][0] if config.initrd else None
        pagemap = open_pagemap()
        resources.callback(os.close, pagemap)
        phases["load"] = time.monotonic() - began
        return Machine(
            config=config,
            loop=loop,
            vm=vm,
            controller=controller,
            vcpus=vcpus,
            processors=wiring.processors,
            mapping=mapping,
            memory=memory,
            chain=chain,
            pagemap=pagemap,
            lock=wiring.lock,
            ports=wiring.ports,
            mmio=wiring.mmio,
            boot_console=boot_console,
            channel=wiring.carrier,
            parts=wiring.parts,
            phases=phases,
            resources=resources.pop_all(),
        )


def _guest_memory(vm: Vm, mapping: Mapping) -> GuestMemory:
    regions, offset = [], 0
    for slot, (address, size) in enumerate(layout.ram_regions(mapping.size)):
        vm.set_memory(slot, address, mapping.address + offset, size)
        regions.append((address, mapping.view[offset : offset + size]))
        offset += size
    return GuestMemory(regions)


def _registers(config: MachineConfig, vm: Vm, resources: contextlib.ExitStack) -> memoryview:
    """Memory for virtio devices' registers. Where the guest sees it, no read of them is an exit."""
    size = len(config.devices) * layout.VIRTIO_MMIO_SIZE
    registers = resources.enter_context(Mapping(size, huge=False))
    if layout.VIRTIO_READABLE_AS_MEMORY:
        vm.set_memory(len(layout.ram_regions(config.memory)), layout.VIRTIO_MMIO, registers.address, size, read_only=True)
    return registers.view


def _restore(vm: Vm, controller: InterruptController, vcpus: Sequence[Vcpu], parts: MappingOf[str, Part], saved: MachineState) -> None:
    if parts.keys() != saved.parts.keys():
        raise SnapshotError(f"the snapshot's state has the parts {sorted(saved.parts)}, not {sorted(parts)}", hint=AGAIN)
    try:
        state.restore(vm, controller, vcpus, Saved("kvm", saved.kvm))
        for name, part in parts.items():
            part.restore(Saved(name, saved.parts[name]))
    except KvmError as error:
        raise SnapshotError(f"this KVM does not take the snapshot's state: {error}", hint=AGAIN) from error


class _Wiring:
    """Buses, interrupt lines and threads of the machine in the making, and its devices."""

    def __init__(
        self, vm: Vm, loop: EventLoop, memory: GuestMemory, registers: memoryview, vcpus: Sequence[Vcpu], resources: contextlib.ExitStack
    ) -> None:
        self.ports, self.mmio = Bus("io"), Bus("mmio")
        self.lock = threading.Lock()
        self.parts: dict[str, Part] = {}
        self.carrier: SerialChannel | VirtioChannel | TcpChannel | None = None
        self.processors = Processors(vcpus, self.ports, self.mmio, self.lock, wake=loop.stop)
        self._vm, self._loop, self._memory, self._registers, self._resources = vm, loop, memory, registers, resources

    def add_boot_console(self, console: Callable[[bytes], None]) -> Serial:
        uart = Serial(self._interrupt(layout.UART0_GSI), on_output=lambda: console(uart.take()), on_room=lambda: None)
        self._add_uart("uart0", layout.UART0, uart)
        return uart

    def add_channel(self, kind: Channel, channel: socket.socket) -> None:
        """Make a channel over UART1 or a console; one over TCP comes with its network device."""
        closed = functools.partial(self.processors.finish, End.CHANNEL_CLOSED)
        if kind is Channel.SERIAL:
            self.carrier = SerialChannel(channel, self._loop, self.lock, interrupt=self._interrupt(layout.UART1_GSI), closed=closed)
            self._add_uart("uart1", layout.UART1, self.carrier.serial)
        elif kind is Channel.VIRTIO:
            self.carrier = VirtioChannel(channel, self._loop, closed=closed)

    def make_device(self, device: DeviceKind, config: MachineConfig, channel: socket.socket | None) -> VirtioDevice:
        """The device of that kind, which is yet without its transport."""
        if device is DeviceKind.CONSOLE:
            if not isinstance(self.carrier, VirtioChannel):
                raise ConfigError("a machine with a virtio channel needs the channel's socket")
            return self.carrier.console
        if device is DeviceKind.ENTROPY:
            entropy = Entropy(os.urandom, time.monotonic, later=lambda delay_s: self._loop.call_later(delay_s, entropy.resume))
            return entropy
        assert config.network is not None  # noqa: S101 (the device is there because of it)
        over_tcp = config.channel is Channel.TCP
        backend = self._resources.enter_context(contextlib.closing(open_backend(config.network, self._loop, channel=over_tcp)))
        link = Link(config.network, backend, self._loop)
        if over_tcp and channel is not None:
            self._add_tcp_channel(channel, link)
        return link.net

    def _add_tcp_channel(self, channel: socket.socket, link: Link) -> None:
        """Connect at the guest's first packet: by then the agent listens."""

        def failed(error: OSError) -> None:
            self.processors.finish(End.ERROR, GuestError(f"the agent takes no connection for its channel: {error.strerror}"))

        closed = functools.partial(self.processors.finish, End.CHANNEL_CLOSED)
        self.carrier = TcpChannel(channel, self._loop, connect=link.connect, closed=closed, failed=failed)
        self._resources.callback(self.carrier.close)
        link.net.on_first_packet = self.carrier.open

    def add_virtio(self, slot: int, device: VirtioDevice) -> None:
        """Wire `device` to the bus, its queues to eventfds, and its interrupt to an irqfd."""
        offset = slot * layout.VIRTIO_MMIO_SIZE
        base = layout.VIRTIO_MMIO + offset
        kicks = [_eventfd() for _ in device.queue_sizes]
        transport = MmioTransport(
            device,
            self._memory,
            interrupt=self._interrupt(layout.VIRTIO_GSI + slot),
            kick=lambda queue: os.eventfd_write(kicks[queue], 1),
            registers=self._registers[offset : offset + layout.VIRTIO_MMIO_SIZE],
        )
        self._resources.callback(transport.close)
        self.parts[f"virtio{slot}"] = transport
        for queue, fd in enumerate(kicks):
            self._loop.add_eventfd(fd, functools.partial(transport.notify, queue))
            self._vm.ioeventfd(fd, base + Register.QUEUE_NOTIFY, 4, queue)
        # Acknowledgements go to an eventfd that nobody reads: otherwise each would cost an exit.
        # USED_BUFFER stays set; drivers then just look at their queues.
        acknowledged = _eventfd()
        self._resources.callback(os.close, acknowledged)
        self._vm.ioeventfd(acknowledged, base + Register.INTERRUPT_ACK, 4, Interrupt.USED_BUFFER)
        self.mmio.attach(base, layout.VIRTIO_MMIO_SIZE, transport)

    def _add_uart(self, name: str, base: int, uart: Serial) -> None:
        hardware.uart_bus(self.ports, self.mmio).attach(base, layout.UART_SIZE, uart)
        self.parts[name] = uart

    def _interrupt(self, gsi: int) -> Callable[[], None]:
        fd = _eventfd()
        self._resources.callback(os.close, fd)
        self._vm.irqfd(fd, gsi)
        return lambda: os.eventfd_write(fd, 1)


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


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
