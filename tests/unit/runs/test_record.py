"""Whoever reads a record, in whatever pieces and however late, gets the same bytes."""

import asyncio
import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.guests.outcome import Status, StepResult, Verdict
from mayfly.host.snippet import Mode
from mayfly.protocol.frames import Stage, Stderr, Stdout
from mayfly.runs.record import PIECE, Reader, Record, Restored
from mayfly.runs.render import Renderer
from tests.kit.played_guest import EXIT

DONE = Verdict(Status.OK, 0)


def drain(reader: Renderer) -> bytes:
    whole = b""
    while (piece := reader.take()) is not None:
        whole += piece
    return whole


def decode(lines: bytes) -> list[tuple[str, bytes]]:
    """The output events as (stream, bytes), neighbours of a stream joined."""
    joined: list[tuple[str, bytes]] = []
    for line in lines.splitlines():
        event = json.loads(line)
        if event["event"] not in ("stdout", "stderr"):
            continue
        assert ("data" in event) != ("base64" in event)
        data = event["data"].encode() if "data" in event else base64.b64decode(event["base64"])
        if joined and joined[-1][0] == event["event"]:
            joined[-1] = (event["event"], joined[-1][1] + data)
        else:
            joined.append((event["event"], data))
    return joined


appends = st.lists(st.tuples(st.sampled_from([Stdout, Stderr]), st.binary(max_size=12) | st.text(max_size=4).map(str.encode)), max_size=20)


@given(appends)
def test_live_and_late_readers_get_the_same(pieces: list[tuple[type[Stdout] | type[Stderr], bytes]]) -> None:
    record = Record()
    live, live_raw = Renderer.of(record, Mode.EVENTS), Renderer.of(record, Mode.RAW)
    seen = seen_raw = b""
    for kind, data in pieces:
        record.append(kind(data))
        seen += drain(live)
        seen_raw += drain(live_raw)
    record.close()
    seen += drain(live)
    late = drain(Renderer.of(record, Mode.EVENTS))
    assert seen_raw == drain(Renderer.of(record, Mode.RAW)) == b"".join(data for _, data in pieces)
    assert decode(seen) == decode(late)
    assert b"".join(data for _, data in decode(late)) == seen_raw


@given(st.text(min_size=1, max_size=20))
def test_text_in_single_bytes_stays_text(text: str) -> None:
    record = Record()
    reader = Renderer.of(record, Mode.EVENTS)
    seen = b""
    for byte in text.encode():
        record.append(Stdout(bytes([byte])))
        seen += drain(reader)
    assert "base64" not in seen.decode().replace(text, "")
    assert "".join(json.loads(line)["data"] for line in seen.splitlines()) == text


def test_events_are_lines_of_their_own_and_absent_from_raw() -> None:
    record = Record()
    record.append(Stage(0, "build"))
    record.append(Stderr(b"warning\n"))
    record.append(StepResult("build", EXIT))
    record.append(DONE)
    record.close()
    assert drain(Renderer.of(record, Mode.RAW)) == b"warning\n"
    lines = drain(Renderer.of(record, Mode.EVENTS)).splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["stage", "stderr", "exit", "done"]


def test_big_output_comes_in_pieces_and_cuts_no_character() -> None:
    record = Record()
    text = "a" + "é" * PIECE
    record.append(Stdout(text.encode()))
    record.close()
    lines = drain(Renderer.of(record, Mode.EVENTS)).splitlines()
    assert len(lines) == 3
    assert "".join(json.loads(line)["data"] for line in lines) == text


def test_a_cut_character_at_the_end_of_a_stream_is_bytes() -> None:
    record = Record()
    record.append(Stdout(b"ok\xc3"))
    record.append(DONE)
    record.close()
    assert decode(drain(Renderer.of(record, Mode.EVENTS))) == [("stdout", b"ok\xc3")]


def test_many_small_pieces_cost_little() -> None:
    record = Record()
    for _ in range(10_000):
        record.append(Stdout(b"x"))
    assert len(record) < 10_100


def test_wait_ends_with_the_record() -> None:
    async def scenario() -> list[bool]:
        record = Record()
        reader = Reader(record)
        first = asyncio.create_task(reader.wait())
        await asyncio.sleep(0)
        record.append(Stdout(b"x"))
        second = await first
        record.close()
        return [second, await reader.wait()]

    assert asyncio.run(scenario()) == [True, False]


def test_the_output_of_each_step() -> None:
    record = Record()
    for event in (Stage(0, "build"), Stdout(b"a"), Stderr(b"b"), Stdout(b"c"), StepResult("build", EXIT), Stage(1, "run"), Stderr(b"d")):
        record.append(event)
    assert (record.output(0), record.output(1), record.output(2)) == ((b"ac", b"b"), (b"", b"d"), (b"", b""))
    reader = Reader(record)
    assert [type(reader.take()) for _ in range(8)] == [Stage, Stdout, Stderr, Stdout, StepResult, Stage, Stderr, type(None)]


def test_any_way_of_splitting_lines_gives_the_events() -> None:
    record = Record()
    text = "".join(map(chr, range(0x3000)))
    record.append(Stdout(text.encode()))
    record.append(DONE)
    lines = drain(Renderer.of(record, Mode.EVENTS)).decode()
    assert [json.loads(line).get("data") for line in lines.splitlines()] == [text, None]


def test_many_short_pieces_are_rendered_together() -> None:
    """A reader that keeps up costs a system call for many lines."""
    record = Record()
    for _ in range(1000):
        record.append(Stdout(b"x"))
        record.append(Stderr(b"y"))
    renderer = Renderer.of(record, Mode.EVENTS)
    assert len((renderer.take() or b"").splitlines()) > 500


def test_a_run_that_goes_back_has_each_byte_once() -> None:
    record = Record()
    for event in (Stage(0, "build"), Stderr(b"warning"), StepResult("build", EXIT), Stage(1, "run"), Stdout(b"a"), Stderr(b"x")):
        record.append(event)
    mark = record.mark()
    for piece in (b"void", b"void too"):
        record.append(Stdout(piece))
        record.append(Restored("lost", mark, 1, repeats=True))
    record.append(Stdout(b"b"))
    late = record.mark()
    record.append(Stdout(b"void again"))
    record.append(Restored("lost", late, 1, repeats=True))
    record.append(Stdout(b"c"))
    assert (record.output(0), record.output(1)) == ((b"", b"warning"), (b"abc", b"x"))
    assert drain(Renderer.of(record, Mode.EVENTS)).count(b'"restored"') == 3
    with pytest.raises(ConnectionAbortedError):
        drain(Renderer.of(record, Mode.RAW))


def test_a_run_that_goes_back_to_before_its_step_does_that_step_anew() -> None:
    record = Record()
    record.append(Stage(0, "build"))
    mark = record.mark()
    for event in (Stderr(b"void"), StepResult("build", EXIT), Stage(1, "run"), Stdout(b"void")):
        record.append(event)
    record.append(Restored("lost", mark, 0, repeats=True))
    for event in (Stderr(b"warning"), StepResult("build", EXIT), Stage(1, "run"), Stdout(b"out")):
        record.append(event)
    assert (record.output(0), record.output(1)) == ((b"", b"warning"), (b"out", b""))
