"""64-bit Arm: memory map, interrupt controller, device tree, kernel loading, vCPU state."""
