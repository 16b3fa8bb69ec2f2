"""The frames' vectors and what the reader does with good and damaged packets."""

import json
from pathlib import Path

import pytest

from agent import make_vectors
from mayfly.errors import EncodeError, OversizeError
from mayfly.protocol import frames as p

AGENT = Path(make_vectors.__file__).parent
VECTORS = json.loads((AGENT / "vectors.json").read_text())
EVERY = p.FROM_HOST + p.FROM_AGENT


def test_vector_files_are_what_the_script_writes() -> None:
    assert (AGENT / "vectors.json").read_text() == make_vectors.as_json()
    assert (AGENT / "vectors.txt").read_text() == make_vectors.as_text()


def test_every_type_and_every_reason_has_a_vector() -> None:
    assert {type(message) for message, _ in make_vectors.GOOD.values()} == set(EVERY)
    assert {row["verdict"] for row in VECTORS} == {"ok", *p.BadPacket} - {p.BadPacket.LONG}


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: row["name"])
def test_vector(row: dict[str, str]) -> None:
    reader = p.FrameReader(EVERY)
    frames = reader.feed(p.END + bytes.fromhex(row["escaped"]) + p.END)
    if row["verdict"] == "ok":
        message, run = make_vectors.GOOD[row["name"]]
        assert frames == [p.Frame(message, run)]
        assert p.pack(message, run).hex() == row["packed"]
        assert p.encode_frame(message, run) == p.END + bytes.fromhex(row["escaped"]) + p.END
        assert not reader.dropped
    else:
        assert frames == []
        assert reader.dropped == {p.BadPacket(row["verdict"]): 1}


def test_only_the_other_sides_messages_are_accepted() -> None:
    reader = p.FrameReader(p.FROM_AGENT)
    assert reader.feed(p.encode_frame(p.Begin(), 1) + p.encode_frame(p.Done(), 1)) == [p.Frame(p.Done(), 1)]
    assert reader.dropped == {p.BadPacket.TYPE: 1}


def test_reader_resynchronises_and_holds_no_more_than_the_cap() -> None:
    reader = p.FrameReader(p.FROM_AGENT)
    good = p.encode_frame(p.Stdout(b"x"), 3)
    assert reader.feed(b"garbage before the first END" + good) == [p.Frame(p.Stdout(b"x"), 3)]
    for _ in range(40):
        assert reader.feed(b"y" * 10_000) == []
        assert len(reader._packet) <= p.MAX_ESCAPED
    assert reader.dropped[p.BadPacket.LONG] == 1
    assert reader.feed(good) == [p.Frame(p.Stdout(b"x"), 3)]
    assert reader.dropped.total() == 2


def test_largest_packet_passes_though_every_byte_is_escaped() -> None:
    reader = p.FrameReader(p.FROM_AGENT)
    big = p.Stdout(b"\xc0" * p.MAX_PAYLOAD)
    assert reader.feed(p.encode_frame(big, 1)) == [p.Frame(big, 1)]
    with pytest.raises(EncodeError):
        p.encode_frame(p.Stdout(b"\xc0" * (p.MAX_PAYLOAD + 1)), 1)


def test_empty_packets_mean_nothing() -> None:
    reader = p.FrameReader()
    assert reader.feed(p.END * 20) == []
    assert not reader.dropped


@pytest.mark.parametrize(
    "message",
    [
        p.Signal(256),
        p.Signal(-1),
        p.Collect(("a\0b",)),
        p.Stage(0, "\udcff"),
        p.Resumed(0, bytes(16), "h", "", b"short"),
        p.Resumed(0, bytes(15), "h", "", bytes(16)),
        p.Start((("A", "x" * 70_000),), (), ()),
        p.Start((("A", "x" * 40_000), ("B", "x" * 40_000)), (), ()),
        p.Stdin(bytes(p.MAX_PAYLOAD + 1)),
        p.Request(2**32, "", 0, b""),
        p.Request(0, "", 2**32, b""),
        p.Request(0, "\udcff", 0, b""),
        p.Request(0, "", 0, bytes(p.MAX_PAYLOAD)),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_refused_when_encoding(message: p.Message) -> None:
    with pytest.raises(EncodeError):
        p.encode_frame(message, 1)


@pytest.mark.parametrize("path", ["/work", "/work/", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "", "/workx/a", "a/"])
def test_check_start_refuses_paths_outside(path: str) -> None:
    with pytest.raises(EncodeError, match="beneath /work"):
        p.check_start(p.Start((), (p.Step("run", ("true",)),), (p.FileEntry(path, 0o644, 1),)))


def test_check_start_takes_good_ones_and_counts_bytes() -> None:
    step = p.Step("run", ("true",))
    half = p.MAX_FILES_SIZE // 2
    p.check_start(p.Start((), (step,), (p.FileEntry("a/b.rs", 0o644, half), p.FileEntry("/work/c", 0o644, half))))
    with pytest.raises(OversizeError):
        p.check_start(p.Start((), (step,), (p.FileEntry("a", 0o644, half), p.FileEntry("b", 0o644, half + 1))))


TRUE = p.Step("run", ("true",))


@pytest.mark.parametrize(
    "start",
    [
        p.Start((), (), ()),
        p.Start((), (p.Step("run", ()),), ()),
        p.Start((), (p.Step("run", ("",)),), ()),
        p.Start((), (TRUE,) * 256, ()),
        p.Start((), (p.Step("run", ("true",), cwd="work"),), ()),
        p.Start((), (p.Step("run", ("true",), stdin=True),) * 2, ()),
        p.Start((), (p.Step("f", ("true",), function=True), TRUE), ()),
        p.Start((), (TRUE, p.Step("f", ("true",), function=True, stdin=True)), ()),
        p.Start((), (TRUE, p.Step("f", ("true",), function=True, columns=80, rows=24)), ()),
        p.Start((("A=", "b"),), (TRUE,), ()),
        p.Start((), (TRUE, p.Step("run", ("true",), env=(("", "b"),))), ()),
        p.Start((), (TRUE,), (p.FileEntry("a", 0o644, 1), p.FileEntry("/work/a", 0o644, 1))),
        p.Start((), (TRUE,), (p.FileEntry("a", 0o4755, 1),)),
    ],
    ids=repr,
)
def test_check_start_refuses_what_the_agent_refuses(start: p.Start) -> None:
    with pytest.raises(EncodeError):
        p.check_start(start)


def test_escaping_is_rfc_1055() -> None:
    packet = p.pack(p.Stdin(b"\xc0\xdb"), 0)
    assert p.encode_frame(p.Stdin(b"\xc0\xdb"), 0) == b"\xc0" + packet.replace(b"\xc0\xdb", b"\xdb\xdc\xdb\xdd") + b"\xc0"
