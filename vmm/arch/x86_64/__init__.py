"""x86-64: memory map, interrupt controllers, the description of the hardware, kernel loading, vCPU state."""
