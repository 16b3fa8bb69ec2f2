"""Mayfly's tests on emulated Intel processors, which QEMU's emulator cannot offer: Bochs can."""
