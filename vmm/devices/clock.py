"""A clock: the reading half of the goldfish RTC (Linux drivers/rtc/rtc-goldfish.c), no alarm."""

import time
from collections.abc import Callable

TIME_LOW, TIME_HIGH = 0x00, 0x04  # Registers of 4 bytes


class Clock:
    """Nanoseconds since 1970. Reading the low half keeps the high half that belongs to it."""

    def __init__(self, now: Callable[[], int] = time.time_ns) -> None:
        self._now = now
        self._high = 0

    def read(self, offset: int, size: int) -> int:
        """The guest reads a register; all but the time are 0, and so is any other size."""
        if size != 4:
            return 0
        if offset == TIME_LOW:
            now = self._now()
            self._high = now >> 32
            return now & 0xFFFF_FFFF
        return self._high if offset == TIME_HIGH else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest can neither set the clock nor its alarm."""
