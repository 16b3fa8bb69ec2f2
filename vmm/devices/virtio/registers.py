"""Registers of virtio-mmio and the device status (virtio 1.2, 4.2.2 and 2.1)."""

from enum import IntEnum, IntFlag

WORD = 4  # Bytes of a register


class Register(IntEnum):
    """Offsets (virtio 1.2, 4.2.2). Below CONFIG only aligned accesses of 4 bytes are allowed."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_NUM_MAX = 0x034
    QUEUE_NUM = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DESC_HIGH = 0x084
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DRIVER_HIGH = 0x094
    QUEUE_DEVICE_LOW = 0x0A0
    QUEUE_DEVICE_HIGH = 0x0A4
    SHM_SEL = 0x0AC
    SHM_LEN_LOW = 0x0B0
    SHM_LEN_HIGH = 0x0B4
    SHM_BASE_LOW = 0x0B8
    SHM_BASE_HIGH = 0x0BC
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


class DeviceStatus(IntFlag):
    """The device status field (virtio 1.2, 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Interrupt(IntFlag):
    """InterruptStatus (virtio 1.2, 4.2.2)."""

    USED_BUFFER = 1
    CONFIG_CHANGE = 2


RESET = DeviceStatus(0)
ACKNOWLEDGED = DeviceStatus.ACKNOWLEDGE
DRIVER = ACKNOWLEDGED | DeviceStatus.DRIVER
NEGOTIATED = DRIVER | DeviceStatus.FEATURES_OK
LIVE = NEGOTIATED | DeviceStatus.DRIVER_OK

STEPS: dict[DeviceStatus, DeviceStatus] = {RESET: ACKNOWLEDGED, ACKNOWLEDGED: DRIVER, DRIVER: NEGOTIATED, NEGOTIATED: LIVE}
"""The one way up (virtio 1.2, 3.1.1). From anywhere else only 0, the reset, or FAILED on top."""

_LOW = (Register.QUEUE_DESC_LOW, Register.QUEUE_DRIVER_LOW, Register.QUEUE_DEVICE_LOW)
ADDRESSES = tuple(Register(offset) for low in _LOW for offset in (low, low + WORD))
"""The low and the high half of each 64-bit address of a queue's parts."""
SELECTORS = (Register.DEVICE_FEATURES_SEL, Register.DRIVER_FEATURES_SEL, Register.QUEUE_SEL)
SHARED_MEMORY = (Register.SHM_LEN_LOW, Register.SHM_LEN_HIGH, Register.SHM_BASE_LOW, Register.SHM_BASE_HIGH)

WRITABLE_IN: dict[int, DeviceStatus] = {
    Register.DRIVER_FEATURES: DRIVER,
    **dict.fromkeys((Register.QUEUE_NUM, Register.QUEUE_READY, *ADDRESSES), NEGOTIATED),
}
"""The one status that allows a write; others are always writable. Features precede queues."""
