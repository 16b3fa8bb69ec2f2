"""Writes a machine as a stream (`protocol/pages.py`), and makes a machine's memory of one."""

import os
import socket
from collections.abc import Iterator

from mayfly.protocol.pages import HEAD, MAX_PAGES, Head, Kind, Runs, Start, damaged, parse, runs_of
from mayfly.schema import msgspec
from mayfly.units import PAGE
from mayfly.vmm.devices.virtio.buffers import advance
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.snapshot.memory import BATCH
from mayfly.vmm.snapshot.state import Saved

_PIECES = 512  # Views that are written at once; IOV_MAX is 1024


def write_start(fd: int, start: Start) -> None:
    """Write the first record. Raises OSError, as the next two."""
    _write_text(fd, Kind.START, msgspec.json.encode(start))


def write_pages(fd: int, mapping: Mapping, runs: Runs) -> None:
    """Write runs of pages."""
    pieces: list[memoryview] = []
    for head in _heads(mapping, runs):
        pieces.append(memoryview(head.pack()))
        if head.kind is Kind.PAGES:
            pieces.append(mapping.view[head.first * PAGE : (head.first + head.length) * PAGE])
        if len(pieces) >= _PIECES or head.length == MAX_PAGES:
            _write(fd, pieces)
            pieces = []
    _write(fd, pieces)


def write_end(fd: int, state: bytes | None) -> None:
    """Write the end of a round, or with the machine's encoded `state` that of the stream."""
    if state is None:
        _write(fd, [memoryview(Head(Kind.ROUND, 0, 0).pack())])
    else:
        _write_text(fd, Kind.STATE, state)


def _heads(mapping: Mapping, runs: Runs) -> Iterator[Head]:
    for first, count in runs:
        for begin in range(first, first + count, BATCH):
            zero = bytearray(mapping.zero_pages(begin, min(BATCH, first + count - begin)))
            yield from [Head(Kind.ZEROS, pages, begin + at) for at, pages in runs_of(zero)]
            for at, pages in runs_of(zero.translate(_OTHERWISE)):
                for part in range(0, pages, MAX_PAGES):
                    yield Head(Kind.PAGES, min(MAX_PAGES, pages - part), begin + at + part)


_OTHERWISE = bytes([1, 0]) + bytes(254)


def _write_text(fd: int, kind: Kind, text: bytes) -> None:
    _write(fd, [memoryview(Head(kind, len(text), 0).pack()), memoryview(text)])


def _write(fd: int, pieces: list[memoryview]) -> None:
    while pieces:
        pieces = advance(pieces, os.writev(fd, pieces))


def read_start(source: socket.socket, memory: int) -> Start:
    """Read the first record, of a machine with so much memory. Raises SnapshotError."""
    head = _read_head(source, memory)
    if head.kind is not Kind.START:
        raise damaged(f"it begins with {head.kind.name}")
    start = Saved("start", _read_text(source, head)).decode(Start)
    if start.memory != memory:
        raise damaged(f"its machine has {start.memory} bytes of memory, not {memory}")
    return start


def read_memory(source: socket.socket, mapping: Mapping) -> Saved:
    """Read the rest: pages into `mapping`, up to the state. Raises SnapshotError."""
    while (head := _read_head(source, mapping.size)).kind is not Kind.STATE:
        view = mapping.view[head.first * PAGE : (head.first + head.length) * PAGE]
        if head.kind is Kind.PAGES:
            _read(source, view)
        elif head.kind is Kind.ZEROS:
            for at, count in runs_of(bytearray(mapping.zero_pages(head.first, head.length)).translate(_OTHERWISE)):
                view[at * PAGE : (at + count) * PAGE] = bytes(count * PAGE)
        elif head.kind is Kind.START:
            raise damaged("it begins twice")
    return Saved("state", _read_text(source, head))


def _read_head(source: socket.socket, memory: int) -> Head:
    data = bytearray(HEAD.size)
    _read(source, memoryview(data))
    return parse(data, memory // PAGE)


def _read_text(source: socket.socket, head: Head) -> bytes:
    text = bytearray(head.length)
    _read(source, memoryview(text))
    return bytes(text)


def _read(source: socket.socket, view: memoryview) -> None:
    while view:
        count = source.recv_into(view, flags=socket.MSG_WAITALL)
        if not count:
            raise damaged("it ends too early")
        view = view[count:]
