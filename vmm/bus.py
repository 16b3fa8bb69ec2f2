"""An address space of devices: which device answers a port or MMIO access, and at which offset of
its own.
"""

import bisect
from typing import Protocol


class BusDevice(Protocol):
    """A device on a bus. Offsets are its own, sizes 1, 2, 4 or 8 bytes, values unsigned. It must
    take any access without an exception.
    """

    def read(self, offset: int, size: int) -> int:
        """The guest reads `size` bytes at `offset`."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes `value` of `size` bytes at `offset`."""
        ...


class Bus:
    """Devices at ranges that do not overlap. An access that no device takes reads as all ones,
    writes nothing and is counted.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, BusDevice]] = []
        self.unclaimed = 0

    def attach(self, base: int, size: int, device: BusDevice) -> None:
        """Place `device` at [base, base + size).

        Raises:
            ValueError: the range overlaps another device's.
        """
        index = bisect.bisect_left(self._starts, base)
        before = self._ranges[index - 1][1] if index else 0
        after = self._starts[index] if index < len(self._starts) else 1 << 64
        if before > base or base + size > after:
            raise ValueError(f"[{base:#x}, +{size:#x}) overlaps another device")
        self._starts.insert(index, base)
        self._ranges.insert(index, (base, base + size, device))

    def find(self, address: int, size: int) -> tuple[BusDevice, int] | None:
        """The device that holds the whole access, and the offset in it."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        base, end, device = self._ranges[index]
        return (device, address - base) if address + size <= end else None

    def read(self, address: int, size: int) -> int:
        """Carry out a read of the guest's."""
        found = self.find(address, size)
        if found is None:
            self.unclaimed += 1
            return (1 << 8 * size) - 1
        device, offset = found
        return device.read(offset, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Carry out a write of the guest's."""
        found = self.find(address, size)
        if found is None:
            self.unclaimed += 1
            return
        device, offset = found
        device.write(offset, size, value)
