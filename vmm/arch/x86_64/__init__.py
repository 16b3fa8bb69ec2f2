"""x86-64: memory map, interrupt controllers, hardware tables, kernel loading, vCPU state."""
