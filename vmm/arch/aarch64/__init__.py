"""64-bit Arm: memory map, interrupt controller, device tree, kernel loading, vCPU state."""

from mayfly.vmm.arch.aarch64 import boot, cpu, hardware, interrupts, layout, probe, state

__all__ = ["boot", "cpu", "hardware", "interrupts", "layout", "probe", "state"]
