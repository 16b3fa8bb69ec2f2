"""Invariant: a stream of a machine gives the memory and the state that were written, or the reader
raises SnapshotError and has written to no page that the head did not name.
"""

import contextlib
import os
import random
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import SnapshotError
from mayfly.protocol.pages import HEAD, MAX_TEXT, Head, Kind, Start, common, parse, runs_of
from mayfly.units import MIB, PAGE
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.snapshot import stream
from mayfly.vmm.snapshot.files import Layers
from mayfly.vmm.snapshot.sender import Sender
from mayfly.vmm.worker import Worker

SIZE = 16 * MIB
PAGES = SIZE // PAGE


def carried(data: bytes, mapping: Mapping) -> tuple[Start, bytes]:
    """What a reader makes of these bytes."""
    ours, theirs = socket.socketpair()
    with theirs:

        def send() -> None:
            with ours, contextlib.suppress(OSError):  # the reader has refused them
                ours.sendall(data)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            start = stream.read_start(theirs, SIZE)
            return start, bytes(stream.read_memory(theirs, mapping)._data)
        finally:
            theirs.close()
            sender.join()


def written(mapping: Mapping, rounds: list[list[tuple[int, int]]], state: bytes = b"{}") -> bytes:
    """The stream of these rounds."""
    reading, writing = os.pipe()
    data = bytearray()

    def collect() -> None:
        with open(reading, "rb") as pipe:  # noqa: PTH123 (a descriptor)
            data.extend(pipe.read())

    reader = threading.Thread(target=collect)
    reader.start()
    stream.write_start(writing, Start(memory=SIZE, initrd_offset=None))
    for number, runs in enumerate(rounds, 1):
        stream.write_pages(writing, mapping, runs)
        stream.write_end(writing, state if number == len(rounds) else None)
    os.close(writing)
    reader.join()
    return bytes(data)


def test_pages_and_zeros_arrive() -> None:
    """In memory that was not zeros before, where the source's is."""
    rng = random.Random(1)
    with Mapping(SIZE) as there, Mapping(SIZE) as here:
        for page in rng.sample(range(PAGES), 700):
            there.view[page * PAGE : (page + 1) * PAGE] = rng.randbytes(PAGE)
        for page in rng.sample(range(PAGES), 300):
            here.view[page * PAGE : (page + 1) * PAGE] = rng.randbytes(PAGE)
        start, state = carried(written(there, [[(0, 1000)], [], [(500, PAGES - 500)]]), here)
        assert start == Start(memory=SIZE, initrd_offset=None)
        assert state == b"{}"
        assert there.view == here.view


@given(st.binary(min_size=HEAD.size, max_size=HEAD.size), st.integers(1, PAGES))
def test_a_head_is_refused_or_names_pages_that_are_there(data: bytes, pages: int) -> None:
    try:
        head = parse(data, pages)
    except SnapshotError:
        return
    assert head.first + head.length <= pages or head.kind in (Kind.START, Kind.STATE)
    assert 0 <= head.size <= MAX_TEXT


@pytest.mark.parametrize(
    "head",
    [
        Head(Kind.PAGES, 0, 0),
        Head(Kind.PAGES, 65, 0),
        Head(Kind.PAGES, 1, PAGES),
        Head(Kind.PAGES, 2, PAGES - 1),
        Head(Kind.ZEROS, PAGES, 1),
        Head(Kind.ZEROS, 1, (1 << 64) - 1),
        Head(Kind.ROUND, 1, 0),
        Head(Kind.STATE, MAX_TEXT + 1, 0),
        Head(Kind.STATE, 1, 1),
        Head(Kind.START, 2, 0),
    ],
)
def test_what_a_head_must_not_say(head: Head) -> None:
    with Mapping(SIZE) as there, Mapping(SIZE) as here, pytest.raises(SnapshotError, match="damaged"):
        carried(written(there, [[]])[: HEAD.size + 54] + head.pack() + bytes(PAGE), here)


@given(st.data())
def test_a_stream_with_a_turned_bit_or_cut_off_never_raises_anything_else(data: st.DataObject) -> None:
    with Mapping(SIZE) as there, Mapping(SIZE) as here:
        there.view[PAGE : 3 * PAGE] = b"x" * 2 * PAGE
        whole = bytearray(written(there, [[(0, 4)], [(1, 1)]]))
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        end = data.draw(st.integers(0, len(whole)))
        with contextlib.suppress(SnapshotError):
            carried(bytes(whole[:end]), here)


def test_a_round_for_which_there_is_no_memory_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the thread is there for what comes after."""

    def refuse(*_: object) -> None:
        raise MemoryError

    worker = Worker()
    worker.start()
    for lacks in ("write_pages", "write_end"):
        with Mapping(SIZE) as mapping, contextlib.closing(Layers([], None)) as layers, monkeypatch.context() as patch:
            patch.setattr(stream, lacks, refuse)
            reading, writing = os.pipe()
            with contextlib.closing(Sender(mapping, layers, 0, worker)) as sender, open(reading, "rb") as pipe:  # noqa: PTH123 (a descriptor)
                sender.send(writing, None)
                assert pipe.read()[-HEAD.size :] != Head(Kind.ROUND, 0, 0).pack()
                assert not sender.ready
    assert worker.is_alive()
    worker.finish()


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_common_pages_are_those_of_both(some: set[int], others: set[int]) -> None:
    runs, more = (list(runs_of(bytearray(page in pages for page in range(41)))) for pages in (some, others))
    assert {page for first, count in common(runs, more) for page in range(first, first + count)} == some & others
