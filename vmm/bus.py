"""An address space of devices: which device answers a port or MMIO access, at which offset."""

import bisect


class BusDevice:
    """A device on a bus: own offsets, sizes 1, 2, 4 or 8, unsigned values. It never raises.

    This one is where no device is: it reads as all ones.
    """

    def read(self, offset: int, size: int) -> int:
        """The guest reads `size` bytes at `offset`."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes `value` of `size` bytes at `offset`."""


class Bus:
    """Devices at ranges that do not overlap. `kind` names its accesses ("io", "mmio")."""

    def __init__(self, kind: str) -> None:
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, BusDevice, str]] = []
        self._kind = kind
        self._nowhere = (BusDevice(), 0, f"{kind} unmapped")

    def attach(self, base: int, size: int, device: BusDevice) -> None:
        """Place `device` at [base, base + size). Raises ValueError if that overlaps another."""
        index = bisect.bisect_left(self._starts, base)
        before = self._ranges[index - 1][1] if index else 0
        after = self._starts[index] if index < len(self._starts) else 1 << 64
        if before > base or base + size > after:
            raise ValueError(f"[{base:#x}, +{size:#x}) overlaps another device")
        self._starts.insert(index, base)
        self._ranges.insert(index, (base, base + size, device, f"{self._kind} {base:#x}"))

    def find(self, address: int, size: int) -> tuple[BusDevice, int, str]:
        """The device that holds the whole access, its offset, and one of a few names for it."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return self._nowhere
        base, end, device, name = self._ranges[index]
        return (device, address - base, name) if address + size <= end else self._nowhere
