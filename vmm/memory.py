"""Guest physical memory as checked slices of bytes that are handed in."""

from collections.abc import Sequence


class GuestAddressError(Exception):
    """A range is not inside one region of guest RAM. The guest's doing: devices count it."""


class GuestMemory:
    """Guest RAM: regions of guest physical addresses. A range must not cross regions."""

    def __init__(self, regions: Sequence[tuple[int, memoryview]]) -> None:
        self._regions = tuple((base, len(view), view) for base, view in regions)

    @property
    def regions(self) -> list[tuple[int, memoryview]]:
        """Guest physical address and bytes of each region."""
        return [(base, view) for base, _, view in self._regions]

    def slice(self, address: int, length: int) -> memoryview:
        """The bytes of a range, which the guest may change. Raises GuestAddressError: no RAM."""
        for base, size, view in self._regions:
            begin = address - base
            end = begin + length
            if 0 <= begin <= end <= size:
                return view[begin:end]
        raise GuestAddressError(f"[{address:#x}, +{length:#x}) is not guest RAM")

    def release(self) -> None:
        """Drop the regions' bytes, so that they can be unmapped. No slice may be in use."""
        for _, _, view in self._regions:
            view.release()
        self._regions = ()

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `address`."""
        self.slice(address, len(data))[:] = data
