"""One folder per architecture, with the same modules. Common code sees only these names of them,
whose signatures are equal (tests/unit/vmm/test_arch.py):

    layout    guest physical addresses and interrupts (GSIs): RAM, UART0, UART1, VIRTIO_MMIO and the
              like; `ram_regions`; parameters of the kernel, VIRTIO_PARAMETER for each device
    boot      `load` puts kernel, initramfs and what describes the machine into guest RAM, by the
              kernel's boot protocol. The initramfs is mapped, not copied; the caller closes the
              files. BootError: one is not for this machine, or does not fit
    cpu       `withhold` denies guests what KVM would give them: before the interrupt controllers
              are made, as KVM takes 80 times as long for it behind them. `set_up` gives vCPUs the
              kernel's entry state: the first enters, the others wait; `write_loop` and
              `host_is_emulated` tell whether this host's KVM is a real one
    hardware  `create_interrupts` makes KVM's interrupt controllers, after the memory slots and
              before the first vCPU, `start_interrupts` makes them ready once every vCPU exists;
              `attach` adds this architecture's own devices
    state     what KVM keeps of a machine besides its memory, for snapshots: `identity`, what
              guests see of processor and KVM, which must be equal, `difference`, how two of these
              differ; `prepare`, before a machine runs in its sandbox; `save`, `restore`, which
              gives what sets the time back; `tell_of_pause`, before vCPUs that stood still go on
"""

import platform
from typing import TYPE_CHECKING

from mayfly.errors import HostError

__all__ = ["boot", "cpu", "hardware", "layout", "state"]

if TYPE_CHECKING or platform.machine() == "x86_64":
    from mayfly.vmm.arch.x86_64 import boot, cpu, hardware, layout, state
elif platform.machine() == "aarch64":
    from mayfly.vmm.arch.aarch64 import boot, cpu, hardware, layout, state
else:
    raise HostError(f"Mayfly does not run on {platform.machine()}", hint="use a host with x86_64 or aarch64 processors")
