"""Virtio devices (virtio 1.2) behind modern virtio-mmio; memory, kicks and data are arguments."""
