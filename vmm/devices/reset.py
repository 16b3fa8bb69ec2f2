"""Port 0x64 of the PC's keyboard controller, for its one command that resets the machine."""

from collections.abc import Callable

PULSE_RESET = 0xFE
"""Pulse output line 0, the processor's reset (IBM PC AT, "8042 commands"); Linux's reboot=k."""


class ResetPort:
    """The status register reads as "ready for a command"; `on_reset` is called for the reset."""

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset

    def read(self, offset: int, size: int) -> int:
        """Status: input buffer empty, output buffer empty."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A command; all but the reset are ignored."""
        if value & 0xFF == PULSE_RESET:
            self._on_reset()
