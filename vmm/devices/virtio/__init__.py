"""Virtio devices (virtio 1.2) behind modern virtio-mmio, without I/O: memory, interrupts, kicks and
data come in as arguments.
"""
