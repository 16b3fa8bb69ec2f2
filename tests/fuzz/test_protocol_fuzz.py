"""Invariant: whatever bytes arrive in whatever pieces, the reader raises nothing, holds at most
MAX_ESCAPED bytes, finds the next frame.
"""

from hypothesis import given
from hypothesis import strategies as st

from mayfly.protocol import frames as p

EVERY = p.FROM_HOST + p.FROM_AGENT
raw_text = st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
data = st.binary(max_size=300)
u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
env = st.lists(st.tuples(raw_text, raw_text), max_size=3).map(tuple)
raw_list = st.lists(raw_text, max_size=4).map(tuple)
step = st.builds(p.Step, text, raw_list, raw_text, env, u32, u32, u64, u32, u64, u64, st.booleans(), u16, u16, st.booleans())
entry = st.builds(p.FileEntry, raw_text, u32, u64)
message = st.one_of(
    st.builds(p.Start, env, st.lists(step, max_size=3).map(tuple), st.lists(entry, max_size=3).map(tuple)),
    st.builds(p.File, u16, u64, data),
    st.builds(p.Begin),
    st.builds(p.Stdin, data),
    st.builds(p.StdinEof),
    st.builds(p.Signal, u8),
    st.builds(p.Collect, raw_list),
    *(
        st.builds(kind, u64, st.binary(min_size=16, max_size=16), text, text, st.binary(min_size=16, max_size=512))
        for kind in (p.Resumed, p.Moved)
    ),
    st.builds(p.Shutdown),
    st.builds(p.Resize, u16, u16),
    st.builds(p.Request, u32, text, u32, data),
    st.builds(p.Hello, u16, text, text, u64, text),
    st.builds(p.Stage, u8, text),
    st.builds(p.Stdout, data),
    st.builds(p.Stderr, data),
    st.builds(
        p.Exit, u8, st.sampled_from(p.ExitHow), u32, st.sampled_from(p.Limit), u64, u64, u64, st.tuples(st.booleans(), st.booleans())
    ),
    st.builds(p.Done),
    st.builds(p.Credit, u32),
    st.builds(p.Collected, u16, st.none() | entry, st.booleans(), st.booleans(), data),
    st.builds(p.Error, st.sampled_from(p.ErrorCode), text),
    st.builds(p.Loaded),
    st.builds(p.Response, u32, st.sampled_from(p.ResponseKind), u64, text, u32, data),
)
MARK = p.Frame(p.Done(), 0xC0DB)


@given(st.lists(st.tuples(message, u32), max_size=5), st.integers(1, 50))
def test_frames_survive_the_way_there_in_any_pieces(sent: list[tuple[p.Message, int]], size: int) -> None:
    stream = b"".join(p.encode_frame(message, run) for message, run in sent)
    reader = p.FrameReader(EVERY)
    got = [frame for at in range(0, len(stream), size) for frame in reader.feed(stream[at : at + size])]
    assert got == [p.Frame(message, run) for message, run in sent]
    assert not reader.dropped


@given(st.lists(st.binary(max_size=400), max_size=20))
def test_garbage(pieces: list[bytes]) -> None:
    reader = p.FrameReader(EVERY)
    for piece in pieces:
        reader.feed(piece)
        assert len(reader._packet) <= p.MAX_ESCAPED
    assert reader.feed(p.END + p.encode_frame(MARK.message, MARK.run))[-1] == MARK


@given(message, u32, st.data())
def test_one_changed_byte_never_gives_another_frame(message: p.Message, run: int, choice: st.DataObject) -> None:
    stream = bytearray(p.encode_frame(message, run))
    at = choice.draw(st.integers(1, len(stream) - 2))
    stream[at] ^= choice.draw(st.integers(1, 255))
    reader = p.FrameReader(EVERY)
    frames = reader.feed(bytes(stream))
    assert frames == []
    assert reader.feed(p.encode_frame(MARK.message, MARK.run)) == [MARK]


@given(st.sampled_from(sorted(kind.type for kind in EVERY)), st.binary(max_size=200))
def test_any_payload_parses_whole_and_packs_again_or_is_dropped(kind: p.FrameType, payload: bytes) -> None:
    messages = {k.type: k for k in EVERY}
    parsed = messages[kind].decode(payload)
    if parsed is not None:
        assert parsed.encode() == payload
