"""From a MachineConfig to a Machine, which is complete when it is made."""

import functools
import os
import socket
import time
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingOf
from typing import Any

from mayfly.errors import ConfigError, GuestError, KvmError, SnapshotError
from mayfly.protocol.report import End
from mayfly.units import PAGE
from mayfly.vmm.arch import boot, cpu, hardware, layout, state
from mayfly.vmm.channels.carrier import Carrier
from mayfly.vmm.channels.serial import SerialChannel
from mayfly.vmm.channels.tcp import TcpChannel
from mayfly.vmm.channels.virtio import VirtioChannel
from mayfly.vmm.config import MAX_CMDLINE, Channel, DeviceKind, MachineConfig
from mayfly.vmm.devices.serial import Serial
from mayfly.vmm.devices.virtio.device import VirtioDevice
from mayfly.vmm.devices.virtio.entropy import Entropy
from mayfly.vmm.devices.virtio.mmio import MmioTransport
from mayfly.vmm.devices.virtio.registers import Interrupt, Register
from mayfly.vmm.eventloop import EventLoop, eventfd
from mayfly.vmm.kvm.kvm import Kvm, Vcpu, Vm
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.loader.placing import open_file
from mayfly.vmm.machine import Machine, Part, pre_fault
from mayfly.vmm.memory import GuestMemory
from mayfly.vmm.network.link import Link
from mayfly.vmm.processors import Processors
from mayfly.vmm.resources import Resources
from mayfly.vmm.snapshot import stream
from mayfly.vmm.snapshot.files import Layers, MachineState
from mayfly.vmm.snapshot.state import AGAIN, Saved


def build_machine(config: MachineConfig, *, loop: EventLoop, channel: socket.socket | None, console: Callable[[bytes], None]) -> Machine:
    """Make the machine, up to the kernel's first instruction, or the next one after its snapshot.

    `console` is called with what the guest prints on UART0, from a vCPU's thread.

    Raises:
        KvmError, NetworkError: the host lacks KVM or the network's back end, or refuses.
        BootError, ConfigError: the kernel, initramfs or command line does not fit, or is missing.
        SnapshotError: the snapshot is damaged, or not for this machine or host.
    """
    with Resources() as resources:
        began = time.monotonic()
        kvm = resources.own(Kvm())
        state.prepare()
        statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        resources.callback(os.close, statm)
        layers = resources.own(Layers(config.restore, config.initrd, page_by_page=config.page_by_page))
        saved = layers.check(config, state.identity(kvm)) if config.restore else None
        if arriving := channel if config.arriving else None:
            layers.initrd_offset = stream.read_start(arriving, config.memory).initrd_offset
        mapping = resources.own(Mapping(config.memory))
        if config.restore and not config.arriving:  # it touches little before `control.Prefault`
            mapping.use_small_pages()
        else:
            mapping.use_huge_pages()
        layers.lay_over(mapping)
        for first, count in layers.eager.written:
            mapping.write_ahead(first * PAGE, count * PAGE)
        vm = resources.own(kvm.create_vm())
        memory = _guest_memory(vm, mapping)
        resources.callback(memory.release)
        registers = _registers(config, vm, resources)
        cpu.withhold(vm)
        controller = hardware.create_interrupts(vm, pit=config.interactive)
        vcpus = [resources.own(vm.create_vcpu(index)) for index in range(config.cpus)]
        hardware.start_interrupts(controller)
        if arriving:
            layers.state = stream.read_memory(arriving, mapping).decode(MachineState)
            saved = layers.check(config, state.identity(kvm))
        phases = {"objects": time.monotonic() - began}

        began = time.monotonic()
        wiring = _Wiring(vm, loop, memory, registers, vcpus, resources)
        boot_console = wiring.add_boot_console(console)
        hardware.attach(wiring.processors.ports, wiring.processors.mmio, functools.partial(wiring.processors.finish, End.RESET))
        if channel is not None and config.channel is Channel.SERIAL:
            wiring.add_serial_channel(channel)
        for slot, device in enumerate(config.devices):
            wiring.add_virtio(slot, wiring.make_device(device, config, channel))
        set_back = None
        if saved:
            set_back = _restore(vm, controller, vcpus, wiring.parts, saved)
            pre_fault(kvm, vcpus[0], mapping, layers.eager.all)
        else:
            cmdline = command_line(config)
            with open_file(config.kernel, "kernel", "mayfly kernel build") as kernel:
                entry = boot.load(config, controller, memory, mapping, kernel_fd=kernel.fileno(), initrd_fd=layers.initrd, cmdline=cmdline)
            cpu.set_up(vm, vcpus, entry=entry)
            pre_fault(kvm, vcpus[0], mapping, [(offset // PAGE, -(-size // PAGE)) for offset, size in mapping.files])
            layers.initrd_offset = mapping.files[0][0] if config.initrd else None
        phases["load"] = time.monotonic() - began
        return Machine(
            config=config,
            loop=loop,
            vm=vm,
            controller=controller,
            processors=wiring.processors,
            mapping=mapping,
            layers=layers,
            boot_console=boot_console,
            parts=wiring.parts,
            phases=phases,
            statm=statm,
            carrier=wiring.carrier,
            set_back=set_back,
            resources=resources.keep(),
        )


def command_line(config: MachineConfig) -> str:
    """The kernel's: the machine's parameters, then the configuration's, which win.

    Raises ConfigError: it is too long for a kernel.
    """
    uarts = 2 if config.channel is Channel.SERIAL else int(config.interactive)  # of two the second is the channel
    slots = [(layout.VIRTIO_MMIO + slot * layout.VIRTIO_MMIO_SIZE, layout.VIRTIO_GSI + slot) for slot in range(len(config.devices))]
    devices = [layout.VIRTIO_PARAMETER.format(address=address, gsi=gsi) for address, gsi in slots]
    parameters = [f"8250.nr_uarts={uarts}", layout.KERNEL_PARAMETERS, *devices, "panic=-1"]
    if config.interactive:
        parameters.append("console=ttyS0")
    else:
        # By default a tmpfs may fill half the memory, and a full one truncates files silently.
        # Freeing the archive would write to, and so copy, each page that is shared with its file.
        parameters += ["quiet", "console=ttynull", layout.EARLY_CONSOLE, "initramfs_options=size=90%", "retain_initrd"]
        # Otherwise the kernel starts a shell in the place of an init that does not start.
        parameters.append("init=/init")
    if config.network is not None:
        # No interrupt reports a sent packet, and guests do not wait for one to send the next.
        parameters.append("virtio_net.napi_tx=0")
    line = " ".join(filter(None, [*parameters, config.cmdline]))
    if (size := len(line.encode())) > MAX_CMDLINE:
        raise ConfigError(f"the kernel command line has {size} bytes with the machine's own parameters; kernels take {MAX_CMDLINE}")
    return line


def _guest_memory(vm: Vm, mapping: Mapping) -> GuestMemory:
    regions, offset = [], 0
    for slot, (address, size) in enumerate(layout.ram_regions(mapping.size)):
        vm.set_memory(slot, address, mapping.address + offset, size)
        regions.append((address, mapping.view[offset : offset + size]))
        offset += size
    return GuestMemory(regions)


def _registers(config: MachineConfig, vm: Vm, resources: Resources) -> memoryview:
    """Memory for virtio devices' registers. Where the guest sees it, no read of them is an exit."""
    size = len(config.devices) * layout.VIRTIO_MMIO_SIZE
    registers = resources.own(Mapping(size))
    if layout.VIRTIO_READABLE_AS_MEMORY:
        vm.set_memory(len(layout.ram_regions(config.memory)), layout.VIRTIO_MMIO, registers.address, size, read_only=True)
    return registers.view


def _restore(vm: Vm, controller: Any, vcpus: Sequence[Vcpu], parts: MappingOf[str, Part], saved: MachineState) -> Callable[[], None]:
    if parts.keys() != saved.parts.keys():
        raise SnapshotError(f"the snapshot's state has the parts {sorted(saved.parts)}, not {sorted(parts)}", hint=AGAIN)
    try:
        set_back = state.restore(vm, controller, vcpus, Saved("kvm", saved.kvm))
        for name, part in parts.items():
            part.restore(Saved(name, saved.parts[name]))
    except KvmError as error:
        raise SnapshotError(f"this KVM does not take the snapshot's state: {error}", hint=AGAIN) from error
    return set_back


class _Wiring:
    """Buses, interrupt lines and threads of the machine in the making, and its devices."""

    def __init__(
        self, vm: Vm, loop: EventLoop, memory: GuestMemory, registers: memoryview, vcpus: Sequence[Vcpu], resources: Resources
    ) -> None:
        self.parts: dict[str, Part] = {}
        self.carrier: Carrier | None = None
        self.processors = Processors(vcpus, wake=loop.stop)
        self._closed = functools.partial(self.processors.finish, End.CHANNEL_CLOSED)
        self._vm, self._loop, self._memory, self._registers, self._resources = vm, loop, memory, registers, resources

    def add_boot_console(self, console: Callable[[bytes], None]) -> Serial:
        uart = Serial(self._interrupt(layout.UART0_GSI), on_output=lambda: console(uart.take()), on_room=lambda: None)
        self._add_uart("uart0", layout.UART0, uart)
        return uart

    def add_serial_channel(self, channel: socket.socket) -> None:
        interrupt, lock = self._interrupt(layout.UART1_GSI), self.processors.lock
        self.carrier = serial = SerialChannel(channel, self._loop, lock, interrupt=interrupt, closed=self._closed)
        self._add_uart("uart1", layout.UART1, serial.serial)

    def make_device(self, device: DeviceKind, config: MachineConfig, channel: socket.socket | None) -> VirtioDevice:
        """The device of that kind, yet without its transport; one may carry the channel."""
        if device is DeviceKind.CONSOLE:
            if channel is None:
                raise ConfigError("a machine with a virtio channel needs the channel's socket")
            self.carrier = virtio = VirtioChannel(channel, self._loop, closed=self._closed)
            return virtio.console
        if device is DeviceKind.ENTROPY:
            entropy = Entropy(os.urandom, time.monotonic, later=lambda delay_s: self._loop.call_later(delay_s, entropy.resume))
            return entropy
        assert config.network is not None  # noqa: S101 (the device is there because of it)
        over_tcp = config.channel is Channel.TCP
        link = Link(config.network, self._loop, channel=over_tcp)
        self._resources.callback(link.backend.close)
        if config.arriving:
            self._loop.call_later(0, link.announce)  # when the machine goes on here, not earlier
        if over_tcp and channel is not None:
            self._add_tcp_channel(channel, config.token, link)
        return link.net

    def _add_tcp_channel(self, channel: socket.socket, token: str, link: Link) -> None:
        def failed(error: OSError) -> None:
            self.processors.finish(End.ERROR, GuestError(f"the agent takes no connection for its channel: {error.strerror}"))

        tcp = TcpChannel(channel, self._loop, token, connect=link.connect, closed=self._closed, failed=failed)
        self._resources.callback(tcp.close)
        link.net.on_first_packet = tcp.open  # by then the agent listens

    def add_virtio(self, slot: int, device: VirtioDevice) -> None:
        """Wire `device` to the bus, its queues to eventfds, and its interrupt to an irqfd."""
        offset = slot * layout.VIRTIO_MMIO_SIZE
        base = layout.VIRTIO_MMIO + offset
        kicks = [eventfd() for _ in device.queue_sizes]
        interrupt, registers = self._line(layout.VIRTIO_GSI + slot), self._registers[offset : offset + layout.VIRTIO_MMIO_SIZE]
        transport = MmioTransport(
            device,
            self._memory,
            functools.partial(os.eventfd_write, interrupt, 1),
            lambda queue: os.eventfd_write(kicks[queue], 1),
            registers,
        )
        self._resources.callback(transport.close)
        self.parts[f"virtio{slot}"] = transport
        for queue, fd in enumerate(kicks):
            self._loop.add_eventfd(fd, functools.partial(transport.notify, queue))
            self._vm.ioeventfd(fd, base + Register.QUEUE_NOTIFY, 4, queue)
        if device.pump is not None:
            device.pump.wire(kicks, interrupt)
        # Acknowledgements go to an eventfd that nobody reads: otherwise each would cost an exit.
        # USED_BUFFER stays set; drivers then just look at their queues.
        acknowledged = eventfd()
        self._resources.callback(os.close, acknowledged)
        self._vm.ioeventfd(acknowledged, base + Register.INTERRUPT_ACK, 4, Interrupt.USED_BUFFER)
        self.processors.mmio.attach(base, layout.VIRTIO_MMIO_SIZE, transport)

    def _add_uart(self, name: str, base: int, uart: Serial) -> None:
        (self.processors.ports if layout.UARTS_ON_PORTS else self.processors.mmio).attach(base, layout.UART_SIZE, uart)
        self.parts[name] = uart

    def _line(self, gsi: int) -> int:
        """An eventfd that raises the line `gsi`."""
        fd = eventfd()
        self._resources.callback(os.close, fd)
        self._vm.irqfd(fd, gsi)
        return fd

    def _interrupt(self, gsi: int) -> Callable[[], None]:
        return functools.partial(os.eventfd_write, self._line(gsi), 1)
