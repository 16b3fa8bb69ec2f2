"""One folder per architecture, with the same file names. Common code sees only these Protocols."""

import platform
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mayfly.errors import HostError
from mayfly.schema import Record
from mayfly.vmm.bus import Bus
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.kvm.kvm import Kvm, Vcpu, Vm
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.memory import GuestMemory
from mayfly.vmm.snapshot.state import Saved


class Layout(Protocol):
    """Guest physical addresses and interrupts (GSIs) of what every machine has."""

    RAM: int  # Where guest RAM begins; offset n of the mapping's first region is at RAM + n
    VIRTIO_MMIO: int
    VIRTIO_MMIO_SIZE: int
    VIRTIO_READABLE_AS_MEMORY: bool
    """Whether guests' uncached reads of registers see what this process writes to memory there."""
    VIRTIO_GSI: int  # The first virtio-mmio device's; the next ones follow
    UART0: int
    UART0_GSI: int
    UART1: int
    UART1_GSI: int
    UART_SIZE: int
    EARLY_CONSOLE: str  # The kernel's parameters for UART0 as a boot console

    def ram_regions(self, size: int) -> list[tuple[int, int]]:
        """(guest physical address, bytes) of each region of RAM for `size` bytes of it."""

    def kernel_parameters(self, config: MachineConfig) -> str:
        """The parameters by which the kernel finds these devices and looks for no others."""


class InterruptController(Protocol):
    """KVM's own interrupt controllers."""

    def start(self) -> None:
        """Make them ready, once every vCPU exists."""

    def close(self) -> None:
        """Give back what they hold besides the machine."""


class Interrupts(Protocol):
    """How the interrupt controllers are made."""

    def create(self, vm: Vm, *, pit: bool) -> InterruptController:
        """Make the controllers, after the memory slots and before the first vCPU. Raises KvmError.

        `pit`: also the timer that old x86 kernels need.
        """


class Hardware(Protocol):
    """What a machine has besides."""

    def uart_bus(self, ports: Bus, mmio: Bus) -> Bus:
        """The bus on which UARTs answer."""

    def attach(self, ports: Bus, mmio: Bus, on_reset: Callable[[], None]) -> None:
        """Add this architecture's own devices. `on_reset`: the guest resets its machine."""


class Boot(Protocol):
    """The kernel's boot protocol."""

    def load(
        self, config: MachineConfig, vm: Vm, memory: GuestMemory, mapping: Mapping, *, kernel_fd: int, initrd_fd: int | None, cmdline: str
    ) -> int:
        """Put what the kernel needs into guest RAM; its entry point (guest physical address).

        The initramfs is mapped from its file, not copied. The caller keeps the descriptors. Raises
        BootError and ConfigError: a file is not for this machine, or something does not fit.
        """


class Cpu(Protocol):
    """State of the processors."""

    def set_up(self, vm: Vm, vcpus: Sequence[Vcpu], *, entry: int) -> None:
        """Give all vCPUs the kernel's entry state: the first enters at `entry`, the others wait."""

    def describe_registers(self, vcpu: Vcpu) -> str:
        """The registers that matter, for the error of a guest that crashed."""


class Probe(Protocol):
    """What it takes to see whether this host's KVM is a real one."""

    def host_is_emulated(self) -> bool:
        """Whether this host is itself a guest of QEMU's TCG."""

    def write_loop(self, memory: GuestMemory, loops: int) -> int:
        """Write 2 * `loops` supervisor instructions and an access that exits; the address."""


class State(Protocol):
    """What KVM keeps of a machine besides its memory, as JSON, for snapshots."""

    def identity(self, kvm: Kvm) -> str:
        """What guests see of processor and KVM; snapshots are restored only where it is equal."""

    def save(self, vm: Vm, controller: Any, vcpus: Sequence[Vcpu]) -> Record:
        """Read the state of paused vCPUs. `controller` is what `Interrupts.create` made."""

    def restore(self, vm: Vm, controller: Any, vcpus: Sequence[Vcpu], saved: Saved) -> None:
        """Restore into as many new vCPUs and new controllers. Raises SnapshotError, KvmError."""

    def tell_of_pause(self, vcpus: Sequence[Vcpu]) -> None:
        """Tell the guest that it stood still, before its vCPUs go on."""


boot: Boot
cpu: Cpu
hardware: Hardware
interrupts: Interrupts
layout: Layout
probe: Probe
state: State
if platform.machine() == "x86_64":
    from mayfly.vmm.arch import x86_64 as pc

    boot, cpu, hardware, interrupts = pc.boot, pc.cpu, pc.hardware, pc.interrupts
    layout, probe, state = pc.layout, pc.probe, pc.state
elif platform.machine() == "aarch64":
    from mayfly.vmm.arch import aarch64 as arm

    boot, cpu, hardware, interrupts = arm.boot, arm.cpu, arm.hardware, arm.interrupts
    layout, probe, state = arm.layout, arm.probe, arm.state
else:
    raise HostError(f"Mayfly does not run on {platform.machine()}", hint="use a host with x86_64 or aarch64 processors")
