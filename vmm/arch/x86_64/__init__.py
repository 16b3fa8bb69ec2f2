"""x86-64: memory map, interrupt controllers, hardware tables, kernel loading, vCPU state."""

from mayfly.vmm.arch.x86_64 import boot, cpu, hardware, interrupts, layout, probe, state

__all__ = ["boot", "cpu", "hardware", "interrupts", "layout", "probe", "state"]
