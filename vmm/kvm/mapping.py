"""Anonymous memory with files laid over parts of it: the host's side of guest RAM."""

import os
from typing import Any, Self

from mayfly.errors import HostError
from mayfly.units import PAGE
from mayfly.vmm.kvm._kvm import ffi, lib

HUGE_PAGE = 2 << 20
_MADV_NOHUGEPAGE = 15
_MADV_POPULATE_WRITE = 23  # Of Linux 5.14; this machine's headers may be older than its kernel
_RUNS = 1024  # So many are asked for at a time


class Mapping:
    """Owns `size` bytes of anonymous, private memory that is not reserved ahead, aligned to huge
    pages if one fits. `files`: offset and size of each file laid over it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.files: list[tuple[int, int]] = []
        alignment = HUGE_PAGE if size >= HUGE_PAGE else PAGE
        self._reserved = size + alignment - PAGE
        self._whole = mmap(ffi.NULL, self._reserved, lib.MAP_PRIVATE | lib.MAP_ANONYMOUS | lib.MAP_NORESERVE, -1)
        self._pointer = self._whole + -int(ffi.cast("uintptr_t", self._whole)) % alignment
        self.address = int(ffi.cast("uintptr_t", self._pointer))  # in this process, for KVM
        self.view = memoryview(ffi.buffer(self._pointer, size))

    def overlay_file(self, offset: int, fd: int, size: int, file_offset: int = 0) -> None:
        """Map part of the file `fd` at `offset` without a copy; offsets are whole pages.

        Pages are shared with every other mapping of the file until somebody writes one. The rest of
        the last page reads as zeros. The caller keeps `fd`.
        """
        if offset % PAGE or file_offset % PAGE or not 0 <= offset <= offset + size <= self.size or file_offset < 0:
            raise ValueError(f"[{offset:#x}, +{size:#x}) is not whole pages inside {self.size:#x} bytes")
        mmap(self._pointer + offset, size, lib.MAP_PRIVATE | lib.MAP_FIXED | lib.MAP_NORESERVE, fd, file_offset)
        self.files.append((offset, size))

    def use_small_pages(self) -> None:
        """Have none of 2 MiB until `use_huge_pages`, also where all memory else has them."""
        lib.madvise(self._pointer, self.size, _MADV_NOHUGEPAGE)

    def use_huge_pages(self) -> None:
        """From now on have a page of 2 MiB where all of it is no file's and yet untouched: a fault
        for it is cheaper than 512, but the first byte takes the whole. A kernel without them just
        goes on with small ones.
        """
        end = 0
        for offset, size in sorted([*self.files, (self.size, 0)]):
            if offset - end >= HUGE_PAGE:
                lib.madvise(self._pointer + end, offset - end, lib.MADV_HUGEPAGE)
            end = max(end, offset + -(-size // PAGE) * PAGE)

    def read_page_by_page(self) -> None:
        """Have no page of a file read from the disk before it is touched itself."""
        for offset, size in self.files:
            lib.madvise(self._pointer + offset, size, lib.MADV_RANDOM)

    def write_ahead(self, offset: int, size: int) -> None:
        """Give whole pages copies of their own, as if they had been written; for speed only."""
        lib.madvise(self._pointer + offset, size, _MADV_POPULATE_WRITE)

    def differing_pages(self, before: "Mapping", pagemap: bytes, first: int, count: int) -> bytes:
        """A byte per page: 1 if it is anonymous by `pagemap` (8 bytes each) and not as `before`."""
        differs = ffi.new("uint8_t[]", count)
        offset = first * PAGE
        lib.differing_pages(ffi.from_buffer("uint64_t[]", pagemap), self._pointer + offset, before._pointer + offset, count, differs)
        return bytes(ffi.buffer(differs))

    def zero_pages(self, first: int, count: int) -> bytes:
        """A byte per page: 1 if it holds only zeros."""
        zero = ffi.new("uint8_t[]", count)
        lib.zero_pages(self._pointer + first * PAGE, count, zero)
        return bytes(ffi.buffer(zero))

    def track_writes(self) -> int:
        """Have the kernel note which pages are written, for `written_pages`, while the descriptor
        that this returns is open. Raises OSError: this kernel cannot (Linux 6.7 and newer can,
        on arm64 6.10).
        """
        fd: int = lib.track_writes(self._pointer, self.size)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd))
        return fd

    def written_pages(self, pagemap_fd: int) -> list[tuple[int, int]]:
        """The runs of pages that are not a file's and were written since the last call, or ever."""
        at, end = ffi.new("uint64_t *", self.address), self.address + self.size
        found = ffi.new("uint64_t[]", 3 * _RUNS)
        runs = []
        while at[0] < end:
            count = lib.written_pages(pagemap_fd, at, end, found, _RUNS)
            if count < 0:
                raise HostError(f"the kernel does not tell which pages were written: {os.strerror(-count)}")
            for index in range(0, 3 * count, 3):
                runs.append(((found[index] - self.address) // PAGE, (found[index + 1] - found[index]) // PAGE))
        return runs

    def close(self) -> None:
        """Unmap. The view must not be in use any more."""
        if self._pointer is not None:
            self.view.release()
            lib.munmap(self._whole, self._reserved)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def mmap(address: Any, size: int, flags: int, fd: int, file_offset: int = 0) -> Any:
    """Map `size` bytes to be read and written, with MAP_* `flags`; where. Raises HostError."""
    pointer = lib.mmap(address, size, lib.PROT_READ | lib.PROT_WRITE, flags, fd, file_offset)
    if pointer == lib.MAP_FAILED:
        raise HostError(
            f"mapping {size} bytes failed: {os.strerror(ffi.errno)}", hint="ask for less guest memory, or free some on this host"
        )
    return ffi.cast("char *", pointer)
