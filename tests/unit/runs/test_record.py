"""Whoever reads a record, in whatever pieces and however late, gets the same bytes."""

import asyncio
import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from mayfly.runs.record import PIECE, Kind, Mode, Reader, Record


def drain(reader: Reader, mode: Mode) -> bytes:
    whole = b""
    while (piece := reader.take_rendered(mode)) is not None:
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


appends = st.lists(
    st.tuples(st.sampled_from([Kind.STDOUT, Kind.STDERR]), st.binary(max_size=12) | st.text(max_size=4).map(str.encode)), max_size=20
)


@given(appends)
def test_live_and_late_readers_get_the_same(pieces: list[tuple[Kind, bytes]]) -> None:
    record = Record()
    live, live_raw = Reader(record), Reader(record)
    seen = seen_raw = b""
    for kind, data in pieces:
        record.output(kind, data)
        seen += drain(live, Mode.EVENTS)
        seen_raw += drain(live_raw, Mode.RAW)
    record.close()
    seen += drain(live, Mode.EVENTS)
    late = drain(Reader(record), Mode.EVENTS)
    assert seen_raw == drain(Reader(record), Mode.RAW) == b"".join(data for _, data in pieces)
    assert decode(seen) == decode(late)
    assert b"".join(data for _, data in decode(late)) == seen_raw


@given(st.text(min_size=1, max_size=20))
def test_text_in_single_bytes_stays_text(text: str) -> None:
    record = Record()
    reader = Reader(record)
    seen = b""
    for byte in text.encode():
        record.output(Kind.STDOUT, bytes([byte]))
        seen += drain(reader, Mode.EVENTS)
    assert "base64" not in seen.decode().replace(text, "")
    assert "".join(json.loads(line)["data"] for line in seen.splitlines()) == text


def test_events_are_lines_of_their_own_and_absent_from_raw() -> None:
    record = Record()
    record.event("stage", step="build")
    record.output(Kind.STDERR, b"warning\n")
    record.event("exit", step="build", code=0)
    record.event("done", status="ok")
    record.close()
    assert drain(Reader(record), Mode.RAW) == b"warning\n"
    assert [json.loads(line)["event"] for line in drain(Reader(record), Mode.EVENTS).splitlines()] == ["stage", "stderr", "exit", "done"]


def test_big_output_comes_in_pieces_and_cuts_no_character() -> None:
    record = Record()
    text = "a" + "é" * PIECE
    record.output(Kind.STDOUT, text.encode())
    record.close()
    lines = drain(Reader(record), Mode.EVENTS).splitlines()
    assert len(lines) == 3
    assert "".join(json.loads(line)["data"] for line in lines) == text


def test_a_cut_character_at_the_end_of_a_stream_is_bytes() -> None:
    record = Record()
    record.output(Kind.STDOUT, b"ok\xc3")
    record.event("done")
    record.close()
    assert decode(drain(Reader(record), Mode.EVENTS)) == [("stdout", b"ok\xc3")]


def test_many_small_pieces_cost_little() -> None:
    record = Record()
    for _ in range(10_000):
        record.output(Kind.STDOUT, b"x")
    assert len(record) < 10_100


def test_wait_ends_with_the_record() -> None:
    async def scenario() -> list[bool]:
        record = Record()
        reader = Reader(record)
        first = asyncio.create_task(reader.wait())
        await asyncio.sleep(0)
        record.output(Kind.STDOUT, b"x")
        second = await first
        record.close()
        return [second, await reader.wait()]

    assert asyncio.run(scenario()) == [True, False]
