"""Whatever a guest sends, the conversation raises nothing, gives events in a legal order, and
nothing after the end.
"""

import dataclasses
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import BootError, GuestError
from mayfly.protocol import frames as p
from mayfly.protocol.conversation import OVERHEAD_ALLOWED, Conversation, Event, Failed, Phase

HELLO = p.Hello(p.PROTOCOL_VERSION, "1", "x86_64", 1000, "ab")
START = p.Start((), (p.Step("build", ("cc",), output=100), p.Step("run", ("a",), output=100, stdin=True)), ())
GOOD = p.Exit(0, p.ExitHow.EXITED, 0, p.Limit.NONE, 1, 1, 1, (False, False))
NEVER = dataclasses.replace(GOOD, how=p.ExitHow.NOT_STARTED, code=2)
RUN = 1


def frame(message: p.Message, run: int = RUN) -> bytes:
    return p.encode_frame(message, 0 if isinstance(message, p.Hello) else run)


def begun(start: p.Start = START, files: Iterable[bytes] = ()) -> Conversation:
    """A conversation after HELLO and START."""
    conversation = Conversation(arch="x86_64", end_marker="ab")
    assert conversation.feed(frame(HELLO)) == [HELLO]
    list(conversation.begin(start, list(files)))
    return conversation


def feed(conversation: Conversation, *messages: p.Message) -> list[Event]:
    return conversation.feed(b"".join(frame(message) for message in messages))


def failure(events: list[Event]) -> str:
    """The message of the error that the events end with."""
    assert isinstance(events[-1], Failed)
    return events[-1].error.message


def test_a_whole_run() -> None:
    conversation = begun()
    sent = (p.Stage(0, "build"), p.Stderr(b"w"), GOOD, p.Stage(1, "run"), p.Stdout(b"x"), dataclasses.replace(GOOD, step=1), p.Done())
    assert feed(conversation, *sent) == list(sent)
    assert conversation.phase is Phase.IDLE


def test_bytes_may_come_one_by_one() -> None:
    conversation = begun()
    sent = (p.Stage(0, "build"), dataclasses.replace(GOOD, code=1), p.Done())
    events = [event for byte in b"".join(map(frame, sent)) for event in conversation.feed(bytes([byte]))]
    assert events == list(sent)


def test_the_opening_frames() -> None:
    conversation = Conversation(arch="x86_64", end_marker="ab")
    conversation.feed(frame(HELLO))
    files = (b"x" * (p.MAX_FILE_CHUNK + 1), b"")
    start = dataclasses.replace(START, files=(p.FileEntry("a", 0o644, len(files[0])), p.FileEntry("b", 0o644, 0)))
    frames = [found for data in conversation.begin(start, files) for found in p.FrameReader(p.FROM_HOST).feed(data)]
    assert [found.message.type.name for found in frames] == ["START", "FILE", "FILE", "BEGIN"]
    assert all(found.run == RUN for found in frames)
    pieces = [found.message for found in frames if isinstance(found.message, p.File)]
    assert [(piece.index, piece.offset, len(piece.data)) for piece in pieces] == [(0, 0, p.MAX_FILE_CHUNK), (0, p.MAX_FILE_CHUNK, 1)]


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (dataclasses.replace(HELLO, version=99), "protocol 99"),
        (dataclasses.replace(HELLO, arch="aarch64"), "aarch64"),
        (dataclasses.replace(HELLO, end_marker="cd"), "'cd'"),
        (dataclasses.replace(HELLO, end_marker=""), "''"),
    ],
)
def test_a_hello_that_does_not_fit_is_a_boot_error(hello: p.Hello, words: str) -> None:
    conversation = Conversation(arch="x86_64", end_marker="ab")
    (event,) = conversation.feed(frame(hello))
    assert isinstance(event, Failed)
    assert isinstance(event.error, BootError)
    assert words in event.error.message


def test_an_incomplete_root_is_a_boot_error() -> None:
    conversation = Conversation(arch="x86_64", end_marker="ab")
    (event,) = conversation.feed(p.encode_frame(p.Error(p.ErrorCode.INCOMPLETE_ROOT, "no marker"), 0))
    assert isinstance(event, Failed)
    assert isinstance(event.error, BootError)
    assert "memory" in event.error.hint


@pytest.mark.parametrize(
    "sent",
    [
        (p.Stdout(b"x"),),
        (p.Done(),),
        (GOOD,),
        (NEVER,),
        (p.Stage(0, "build"), GOOD, dataclasses.replace(NEVER, step=1)),
        (p.Stage(1, "run"),),
        (p.Stage(0, "build"), p.Stage(1, "run")),
        (p.Stage(0, "build"), p.Done()),
        (p.Stage(0, "build"), dataclasses.replace(GOOD, step=1)),
        (p.Stage(0, "build"), GOOD, p.Done()),
        (p.Stage(0, "build"), GOOD, p.Stdout(b"x")),
        (p.Stage(0, "build"), dataclasses.replace(GOOD, code=1), p.Stage(1, "run")),
        (p.Stage(0, "build"), GOOD, dataclasses.replace(GOOD, step=1)),
        (p.Stage(0, "build"), GOOD, p.Stage(1, "run"), dataclasses.replace(GOOD, step=1), p.Stage(2, "more")),
        (p.Collected(0, None, True, True, b""),),
        (p.Error(p.ErrorCode.START_REFUSED, "why"),),
    ],
)
def test_a_broken_order_ends_the_run(sent: tuple[p.Message, ...]) -> None:
    conversation = begun()
    events = feed(conversation, *sent, p.Stage(0, "build"))
    assert failure(events)
    assert sum(isinstance(event, Failed) for event in events) == 1
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, GuestError)
    assert feed(conversation, HELLO, p.Done()) == []


def test_a_step_that_never_started_has_its_stage() -> None:
    sent = (p.Stage(0, "build"), NEVER, p.Done())
    assert feed(begun(), *sent) == list(sent)


def test_a_run_without_steps_is_over_at_once() -> None:
    conversation = begun(p.Start((), (), (), keep=True))
    assert feed(conversation, p.Done()) == [p.Done()]
    assert conversation.phase is Phase.IDLE


def test_a_stage_has_the_name_that_the_host_gave_it() -> None:
    assert feed(begun(), p.Stage(0, "\x1b[2J")) == [p.Stage(0, "build")]


def test_frames_of_other_runs_and_noise_are_counted() -> None:
    conversation = begun()
    noise = b"\xc0boot noise\xc0\xc0" + bytes(40) + b"\xc0"
    events = conversation.feed(noise + p.encode_frame(p.Stdout(b"old"), 7) + p.encode_frame(p.Done(), 0) + frame(p.Stage(0, "build")))
    assert events == [p.Stage(0, "build")]
    assert (conversation.dropped, conversation.strays) == (2, 2)


def test_output_is_cut_at_its_limit_per_stream_and_step() -> None:
    conversation = begun()
    events = feed(conversation, p.Stage(0, "build"), p.Stdout(b"x" * 60), p.Stdout(b"y" * 60), p.Stdout(b"z"), p.Stderr(b"e" * 100), GOOD)
    assert events[1:4] == [p.Stdout(b"x" * 60), p.Stdout(b"y" * 40), p.Stderr(b"e" * 100)]
    assert events[4] == dataclasses.replace(GOOD, cut=(True, False))
    assert feed(conversation, p.Stage(1, "run"), p.Stdout(b"x" * 100))[1] == p.Stdout(b"x" * 100)


def test_a_flood_ends_the_run() -> None:
    conversation = begun()
    feed(conversation, p.Stage(0, "build"))
    piece = frame(p.Credit(0)) * 1000
    for _ in range(2 * OVERHEAD_ALLOWED // len(piece)):
        events = conversation.feed(piece)
        if isinstance(events[-1], Failed):
            assert "allow" in failure(events)
            return
    pytest.fail("it went on")


def test_stdin_only_against_credit() -> None:
    conversation = begun()
    assert conversation.stdin_room() == 0
    with pytest.raises(ValueError, match="0 may be sent"):
        conversation.stdin(b"x")
    feed(conversation, p.Credit(10), p.Credit(0xFFFF_FFFF))
    assert conversation.stdin_room() == p.MAX_PAYLOAD
    conversation.stdin(b"x" * 10)
    assert conversation.credit == 0xFFFF_FFFF


def test_begin_wants_a_hello() -> None:
    with pytest.raises(ValueError, match="before HELLO"):
        Conversation(arch="x86_64", end_marker="ab").begin(START, [])


_exits = st.builds(
    p.Exit,
    st.integers(0, 2),
    st.sampled_from(p.ExitHow),
    st.integers(0, 2),
    st.sampled_from(p.Limit),
    *[st.just(1)] * 3,
    st.tuples(st.booleans(), st.booleans()),
)
_messages = st.one_of(
    st.just(HELLO),
    st.builds(p.Stage, st.integers(0, 2), st.sampled_from(["build", "run", ""])),
    st.builds(p.Stdout, st.binary(max_size=150)),
    st.builds(p.Stderr, st.binary(max_size=150)),
    _exits,
    st.just(p.Done()),
    st.builds(p.Credit, st.integers(0, 0xFFFF_FFFF)),
    st.builds(p.Error, st.sampled_from(p.ErrorCode), st.just("x")),
)
_sent = st.lists(
    st.tuples(_messages, st.sampled_from([0, 1, 1, 1, 2])).map(lambda pair: p.encode_frame(*pair)) | st.binary(max_size=20), max_size=30
)


@given(_sent, st.booleans())
def test_any_guest(pieces: list[bytes], greeted: bool) -> None:
    conversation = begun() if greeted else Conversation(arch="x86_64", end_marker="ab")
    events = [event for piece in pieces for event in conversation.feed(piece)]
    failed = [index for index, event in enumerate(events) if isinstance(event, Failed)]
    assert failed in ([], [len(events) - 1])
    assert bool(failed) == (conversation.phase is Phase.ENDED) == (conversation.failure is not None)
    assert sum(isinstance(event, p.Done) for event in events) <= 1
    depth = 0
    for event in events:
        if isinstance(event, p.Stage):
            assert depth == 0
            depth = 1
        elif isinstance(event, p.Stdout | p.Stderr):
            assert depth == 1
        elif isinstance(event, p.Exit):
            assert depth == 1
            depth = 0
    for kind in (p.Stdout, p.Stderr):
        assert sum(len(event.data) for event in events if isinstance(event, kind)) <= 200
