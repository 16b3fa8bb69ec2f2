"""A machine's memory as runs of pages, which a snapshot's files name, and a machine as a stream of
bytes: its memory in rounds while it runs, then what else it is.

A record of a stream is {kind u16, 0 u16, length u32, first u64}, in little endian, and what that
announces:

    START   `length` bytes of JSON: a `Start`                   the first record
    PAGES   `length` pages from page `first` on
    ZEROS   nothing: `length` pages from `first` on are zeros
    ROUND   nothing: a round is over; the machine goes on, and another one follows
    STATE   `length` bytes of JSON: a `MachineState`            the last record

Who reads it takes it for hostile: the machine that is sent may have hijacked its monitor.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from mayfly.errors import SnapshotError
from mayfly.protocol.report import Count
from mayfly.schema import Record
from mayfly.units import PAGE

Runs = Sequence[tuple[int, int]]  # (first page, pages), ascending, apart from each other

GAP = 256  # Zero pages between two runs of a base that are mapped with them: a mapping costs more

HEAD = struct.Struct("<HHIQ")
MAX_PAGES = 64  # Of a record
MAX_TEXT = 8 << 20  # Bytes of a START's or STATE's text; a vCPU has some 20 KiB
_RUN = struct.Struct("<QQ")
_NOTED = struct.Struct("<QII")


def runs_of(flags: bytearray) -> Iterator[tuple[int, int]]:
    """The runs of ones."""
    first = flags.find(1)
    while first >= 0:
        end = flags.find(0, first)
        end = len(flags) if end < 0 else end
        yield first, end - first
        first = flags.find(1, end)


def pack_runs(runs: Runs) -> bytes:
    """The content of the file `pages`."""
    return b"".join(_RUN.pack(*run) for run in runs)


def unpack_runs(data: bytes, size: int) -> list[tuple[int, int]]:
    """The runs in such a file, for a memory of `size` bytes. Raises SnapshotError if damaged."""
    if len(data) % _RUN.size:
        raise SnapshotError(f"a snapshot's list of pages has {len(data)} bytes, not whole entries")
    return _checked(list(_RUN.iter_unpack(data)), size)


def unpack_working_set(data: bytes, size: int) -> "WorkingSet":
    """What such a file notes, for a memory of `size` bytes. Raises SnapshotError if damaged."""
    if len(data) % _NOTED.size:
        raise SnapshotError(f"a snapshot's working set has {len(data)} bytes, not whole entries")
    entries = list(_NOTED.iter_unpack(data))
    _checked([(first, count) for first, count, _ in entries], size)
    read, written = ([(first, count) for first, count, kind in entries if bool(kind) is wanted] for wanted in (False, True))
    return WorkingSet(read, written)


def _checked(runs: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    end = 0
    for first, count in runs:
        if first < end or not count:
            raise SnapshotError("a snapshot's list of pages is not in order")
        end = first + count
    if end > size // PAGE:
        raise SnapshotError(f"a snapshot has page {end - 1}, its machine {size // PAGE} pages")
    return runs


def joined(runs: Runs, apart: Iterable[tuple[int, int]] = (), gap: int = GAP) -> list[tuple[int, int]]:
    """`runs` with gaps up to `gap` pages closed, except next to a run of `apart` (sorted too)."""
    fixed = list(apart)
    passed = 0
    whole: list[tuple[int, int]] = []
    for first, count in runs:
        if whole:
            begin, length = whole[-1]
            while passed < len(fixed) and sum(fixed[passed]) <= begin + length:
                passed += 1
            if first - (begin + length) <= gap and not (passed < len(fixed) and fixed[passed][0] < first):
                whole[-1] = (begin, first + count - begin)
                continue
        whole.append((first, count))
    return whole


def common(runs: Runs, others: Runs) -> list[tuple[int, int]]:
    """The pages that are in both."""
    found: list[tuple[int, int]] = []
    passed = 0
    for first, count in runs:
        while passed < len(others) and sum(others[passed]) <= first:
            passed += 1
        for place in range(passed, len(others)):
            other, length = others[place]
            if other >= first + count:
                break
            begin = max(first, other)
            found.append((begin, min(first + count, other + length) - begin))
    return found


class WorkingSet(NamedTuple):
    """The runs of file pages that were read but not written, with their cached neighbours; and of
    the pages that were written, of a file or not.

    A written page gets a copy; had it been mapped before, it would first have to be unmapped.
    """

    read: Runs = ()
    written: Runs = ()

    @property
    def all(self) -> list[tuple[int, int]]:
        """Both."""
        return joined(sorted((*self.read, *self.written)), gap=0)

    def pack(self) -> bytes:
        """The content of the file `working-set`."""
        runs = [(first, count, kind) for kind, runs in enumerate(self) for first, count in runs]
        return b"".join(_NOTED.pack(*run) for run in sorted(runs))


class Kind(IntEnum):
    """What a record is."""

    START = 1
    PAGES = 2
    ZEROS = 3
    ROUND = 4
    STATE = 5


class Start(Record, tag_field="version", tag=1, frozen=True, kw_only=True):
    """What is known before the first page: of RAM its bytes, and where in it the initramfs is."""

    memory: Count
    initrd_offset: Count | None


class Head(NamedTuple):
    """The head of a record."""

    kind: Kind
    length: int
    first: int

    @property
    def size(self) -> int:
        """The bytes that follow."""
        return {Kind.PAGES: PAGE * self.length, Kind.START: self.length, Kind.STATE: self.length}.get(self.kind, 0)

    def pack(self) -> bytes:
        """As bytes."""
        return HEAD.pack(self.kind, 0, self.length, self.first)


def parse(data: bytes | bytearray, pages: int) -> Head:
    """The head in `data`, HEAD.size bytes, for RAM of so many pages. Raises SnapshotError."""
    kind, zero, count, first = HEAD.unpack(data)
    try:
        head = Head(Kind(kind), count, first)
    except ValueError as error:
        raise damaged(f"a record of the kind {kind}") from error
    if head.kind in (Kind.PAGES, Kind.ZEROS):
        most = MAX_PAGES if head.kind is Kind.PAGES else pages
        if zero or not 0 < count <= most or not first < first + count <= pages:
            raise damaged(f"{count} pages from page {first} on, of {pages}")
    elif zero or first or count > (0 if head.kind is Kind.ROUND else MAX_TEXT):
        raise damaged(f"a record {head.kind.name} with {count} bytes")
    return head


def damaged(why: str) -> SnapshotError:
    """The error for a stream that is not as it should be."""
    return SnapshotError(f"the stream of a machine is damaged: {why}", hint="try again; if that does not help, report it")
