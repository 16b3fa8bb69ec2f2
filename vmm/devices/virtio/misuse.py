"""What a driver can do wrong: counted, never an exception; fatal ones set DEVICE_NEEDS_RESET."""

from enum import StrEnum


class Misuse(StrEnum):
    """One kind of wrong doing, by where it shows."""

    REGISTER = "register"
    """An access to no register, of a wrong size, or a write in a status that does not allow it."""
    STATUS = "status"  # A status write that skips a step, or takes a bit back without a reset
    FEATURES = "features"
    """FEATURES_OK asked for with features that were not offered, or without VERSION_1."""
    QUEUE_SIZE = "queue-size"
    QUEUE_ADDRESS = "queue-address"
    NOTIFY = "notify"  # A kick for no queue, or before DRIVER_OK

    AVAILABLE_INDEX = "available-index"  # The available index is more than the queue's size ahead
    HEAD = "head"  # A head outside the descriptor table

    NEXT_INDEX = "next-index"
    CHAIN_LENGTH = "chain-length"  # More descriptors than the queue has: a loop, mostly
    BUFFER_LENGTH = "buffer-length"  # An empty buffer, or more than 4 GiB in a chain
    BUFFER_ORDER = "buffer-order"  # A buffer to read behind one to write
    OUTSIDE_RAM = "outside-ram"
    INDIRECT = "indirect"
    """An indirect table that was not negotiated, is nested or continued, or has an odd length."""

    DIRECTION = "direction"
    """A chain without a buffer of the kind that the queue is for, or too small."""
    CONTROL = "control"  # A control message that is cut short, unknown, or for no port
    PACKET = "packet"
    """A packet that is too short or too long, or that uses an offload which was not negotiated."""
    FILTERED = "filtered"  # A packet that the guest may not send


FATAL = frozenset({Misuse.AVAILABLE_INDEX, Misuse.HEAD})
"""The ring itself makes no sense, and no chain of it could be given back."""
