"""Guest memory as pages in files: which a machine has changed, written and laid over memory.

A page that was written since a file was laid under it is anonymous, which /proc/self/pagemap tells
(Linux admin-guide/mm/pagemap.rst). That includes the devices' writes, which KVM's dirty log does
not see, and costs the guest nothing while it runs.
"""

import os

from mayfly.errors import SnapshotError
from mayfly.protocol.pages import Runs, WorkingSet, joined, runs_of
from mayfly.units import PAGE
from mayfly.vmm.kvm.mapping import Mapping

_PAGEMAP_ENTRY = 8
_IS_READ, _IS_WRITTEN = (bytes(bits & 0xA0 == wanted for bits in range(256)) for wanted in (0xA0, 0x80))
"""For an entry's highest byte: 1 if mapped (bit 63) and a file's (bit 61), or anonymous."""
BATCH = 1 << 14  # Pages compared at a time (64 MiB)
NEAR = 8  # Untouched pages between two runs that were read, mapped ahead with them, as `GAP` says
SHORT = 4  # Runs of a diff with fewer pages are copied: a mapping of their own would cost more
MAX_MAPPINGS = 16 * 1024  # A quarter of what a process may have by default (vm.max_map_count)


def changed_pages(pagemap_fd: int, mapping: Mapping, before: Mapping) -> list[tuple[int, int]]:
    """The runs of pages in which `mapping` differs from `before`, its state before anything ran."""
    differs = bytearray(mapping.size // PAGE)
    for first in range(0, len(differs), BATCH):
        count = min(BATCH, len(differs) - first)
        entries = _entries(pagemap_fd, mapping, first, count)
        differs[first : first + count] = mapping.differing_pages(before, entries, first, count)
    return list(runs_of(differs))


def working_set(pagemap_fd: int, mapping: Mapping) -> WorkingSet:
    """What the machine has read and written since it began."""
    read, written = bytearray(mapping.size // PAGE), bytearray(mapping.size // PAGE)
    for first in range(0, len(written), BATCH):
        count = min(BATCH, len(written) - first)
        highest = _entries(pagemap_fd, mapping, first, count)[_PAGEMAP_ENTRY - 1 :: _PAGEMAP_ENTRY]
        read[first : first + count] = highest.translate(_IS_READ)
        written[first : first + count] = highest.translate(_IS_WRITTEN)
    runs = list(runs_of(written))
    return WorkingSet(joined(list(runs_of(read)), runs, gap=NEAR), runs)


def _entries(pagemap_fd: int, mapping: Mapping, first: int, count: int) -> bytes:
    entries = os.pread(pagemap_fd, count * _PAGEMAP_ENTRY, (mapping.address // PAGE + first) * _PAGEMAP_ENTRY)
    if len(entries) != count * _PAGEMAP_ENTRY:
        raise SnapshotError("/proc/self/pagemap cannot be read", hint="mount /proc without restrictions")
    return entries


def write_pages(fd: int, mapping: Mapping, runs: Runs) -> None:
    """Write the pages of `runs` to the empty file `fd`, at their own offsets; then holes."""
    os.ftruncate(fd, mapping.size)
    for first, count in runs:
        offset, end = first * PAGE, (first + count) * PAGE
        while offset < end:
            offset += os.pwrite(fd, mapping.view[offset:end], offset)


def lay_base(mapping: Mapping, fd: int, runs: Runs) -> None:
    """Map a base's pages over `mapping`, with the zeros between near runs."""
    for first, count in joined(runs, [(offset // PAGE, -(-size // PAGE)) for offset, size in mapping.files]):
        mapping.overlay_file(first * PAGE, fd, count * PAGE, first * PAGE)


def lay_diff(mapping: Mapping, fd: int, runs: Runs, *, short: int = SHORT) -> None:
    """Lay a diff's pages over `mapping`: runs of `short` pages and more as mappings, shorter ones
    as copies.
    """
    long = [run for run in runs if run[1] >= short][:MAX_MAPPINGS]
    for first, count in long:
        mapping.overlay_file(first * PAGE, fd, count * PAGE, first * PAGE)
    copy_pages(mapping, fd, sorted({*runs} - {*long}))


def copy_pages(mapping: Mapping, fd: int, runs: Runs) -> None:
    """Read the pages of a base or diff into `mapping`, whose own they then are."""
    for first, count in runs:  # a disk reads many pieces at once quicker than one after another
        os.posix_fadvise(fd, first * PAGE, count * PAGE, os.POSIX_FADV_WILLNEED)
    for first, count in runs:
        view, offset = mapping.view[first * PAGE : (first + count) * PAGE], first * PAGE
        while view:
            read = os.preadv(fd, [view], offset)
            if not read:
                raise SnapshotError("a snapshot's memory ends too early")
            view, offset = view[read:], offset + read
