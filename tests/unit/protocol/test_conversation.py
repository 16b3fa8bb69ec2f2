"""Whatever a guest sends, the conversation raises nothing, gives events in a legal order, and
nothing after the end.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import BootError, EncodeError, GuestError, OversizeError
from mayfly.protocol import frames as p
from mayfly.protocol.conversation import OVERHEAD_ALLOWED, Conversation, Event, Failed
from mayfly.protocol.phases import Phase

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
        (dataclasses.replace(HELLO, version=4), "protocol 4"),
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


def test_an_agent_of_an_earlier_version_is_taken() -> None:
    hello = dataclasses.replace(HELLO, version=5)
    assert Conversation(arch="x86_64", end_marker="ab").feed(frame(hello)) == [hello]


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


FUNCTION = p.Start((), (p.Step("build", ("cc",), output=100), p.Step("function", ("f",), output=100, function=True)), ())
ENDED = dataclasses.replace(GOOD, step=1)


def loaded() -> Conversation:
    """A conversation whose function is loaded."""
    conversation = begun(FUNCTION)
    sent = (p.Stage(0, "build"), GOOD, p.Stage(1, "function"), p.Stdout(b"x" * 90), p.Loaded())
    assert feed(conversation, *sent) == list(sent)
    assert conversation.phase is Phase.LOADED
    return conversation


def asked(payload: bytes = b"x", number: int = 7) -> Conversation:
    """A conversation in a request."""
    conversation = loaded()
    list(conversation.request(number, "", payload))
    return conversation


def response(data: bytes = b"", size: int = -1, *, number: int = 7, content_type: str = "", guest_us: int = 1) -> p.Response:
    return p.Response(number, p.ResponseKind.ANSWER, guest_us, content_type, len(data) if size < 0 else size, data)


def test_requests_one_after_another() -> None:
    conversation = loaded()
    for number, payload in enumerate((b"", b"x", b"x" * (2 * p.MAX_BODY_CHUNK + 1))):
        frames = p.FrameReader(p.FROM_HOST).feed(b"".join(conversation.request(number, "a/b", payload)))
        assert {frame.run for frame in frames} == {RUN}
        pieces = [frame.message for frame in frames if isinstance(frame.message, p.Request)]
        assert len(pieces) == len(frames) == max(1, -(-len(payload) // p.MAX_BODY_CHUNK))
        assert {(piece.id, piece.content_type, piece.size) for piece in pieces} == {(number, "a/b", len(payload))}
        assert b"".join(piece.data for piece in pieces) == payload
        assert conversation.phase.name == "ASKED"
        answer = [p.Stderr(b"log"), response(b"ab", 3, number=number), response(b"c", 3, number=number)]
        assert feed(conversation, *answer) == answer
        assert conversation.phase is Phase.LOADED
    assert feed(conversation, p.Stdout(b"between"), ENDED, p.Done()) == [p.Stdout(b"between"), ENDED, p.Done()]
    assert conversation.phase is Phase.IDLE


def test_the_largest_request_and_response() -> None:
    conversation = asked(bytes(p.MAX_BODY))
    data = b"\xc0" * p.MAX_BODY_CHUNK
    pieces = [response(data[: p.MAX_BODY - at], p.MAX_BODY, content_type="x" * 255) for at in range(0, p.MAX_BODY, len(data))]
    assert feed(conversation, *pieces) == pieces
    assert conversation.phase is Phase.LOADED


@pytest.mark.parametrize(
    ("number", "content_type", "payload", "error"),
    [
        (1, "", bytes(p.MAX_BODY + 1), OversizeError),
        (1, "ß" * 128, b"", OversizeError),
        (2**32, "", b"", EncodeError),
        (1, "\udcff", b"", EncodeError),
    ],
)
def test_a_request_that_does_not_fit_changes_nothing(number: int, content_type: str, payload: bytes, error: type[EncodeError]) -> None:
    conversation = loaded()
    with pytest.raises(error):
        conversation.request(number, content_type, payload)
    conversation.request(1, "", b"")


def test_only_a_loaded_function_that_nobody_asks_is_asked() -> None:
    for conversation in (begun(), begun(FUNCTION), asked()):
        with pytest.raises(ValueError, match="not "):
            conversation.request(1, "", b"")
    conversation = loaded()
    feed(conversation, ENDED, p.Done())
    with pytest.raises(ValueError, match="not "):
        conversation.request(1, "", b"")
    feed(conversation, p.Loaded())
    with pytest.raises(GuestError, match="LOADED between runs"):
        conversation.request(1, "", b"")


@pytest.mark.parametrize(
    ("make", "sent"),
    [
        (lambda: begun(FUNCTION), (p.Stage(0, "build"), p.Loaded())),
        (begun, (p.Stage(0, "build"), GOOD, p.Stage(1, "run"), p.Loaded())),
        (lambda: begun(FUNCTION), (p.Stage(0, "build"), GOOD, p.Stage(1, "function"), response())),
        (lambda: begun(FUNCTION), (p.Stage(0, "build"), GOOD, p.Stage(1, "function"), p.Credit(1))),
        (loaded, (p.Loaded(),)),
        (loaded, (response(),)),
        (loaded, (HELLO,)),
        (loaded, (p.Done(),)),
        (loaded, (p.Error(p.ErrorCode.FUNCTION_BROKE_CONTRACT, "why"),)),
        (asked, (p.Loaded(),)),
        (asked, (response(number=8),)),
        (asked, (response(b"x", number=8),)),
        (asked, (response(b"xy", 1),)),
        (asked, (response(b"x", 2), response(b"xy", 2))),
        (asked, (response(b"x", 2), response(b"", 2))),
        (asked, (response(b"", 2),)),
        (asked, (response(b"x", 2), response(b"x", 2, number=8))),
        (asked, (response(b"x", 2), response(b"x", 3))),
        (asked, (response(b"x", 2), response(b"x", 2, content_type="y"))),
        (asked, (response(b"x", 2), response(b"x", 2, guest_us=2))),
        (asked, (response(b"x", 2), dataclasses.replace(response(b"x", 2), kind=p.ResponseKind.EXCEPTION))),
        (asked, (response(b"x", p.MAX_BODY + 1),)),
        (asked, (response(b"x", content_type="x" * 256),)),
        (asked, (response(b"x", content_type="ß"),)),
        (asked, (response(b"x", content_type="a/b\r\nX: y"),)),
        (asked, (response(), response())),
    ],
)
def test_a_function_out_of_order_ends_the_conversation(make: Callable[[], Conversation], sent: tuple[p.Message, ...]) -> None:
    events = feed(make(), *sent, p.Stage(0, "build"))
    assert isinstance(events[-1], Failed)
    assert len(events) == len(sent)
    assert isinstance(events[-1].error, GuestError)


def test_the_output_of_each_request_is_limited() -> None:
    conversation = loaded()
    assert feed(conversation, p.Stdout(b"y" * 20)) == [p.Stdout(b"y" * 10)]
    for number in range(3):
        list(conversation.request(number, "", b""))
        assert feed(conversation, p.Stdout(b"x" * 150), response(number=number))[0] == p.Stdout(b"x" * 100)


@pytest.mark.parametrize("noise", [frame(p.Stdout(b"x")) * 1000, b"\xc0garbage" * 10_000, frame(response(b"x", p.MAX_BODY)) * 1000])
def test_a_flood_ends_a_request(noise: bytes) -> None:
    conversation = asked()
    for count in itertools.count():
        assert count * len(noise) < 2 * OVERHEAD_ALLOWED
        events = conversation.feed(noise)
        if events and isinstance(events[-1], Failed):
            assert "allow" in failure(events)
            return


def test_a_restored_machine_whose_function_is_loaded() -> None:
    conversation = Conversation(arch="x86_64", end_marker="ab", loaded=FUNCTION)
    for _ in range(2):
        conversation.resumed(p.Resumed(0, bytes(16), "x", "", bytes(16)))
        with pytest.raises(ValueError, match="HELLO"):
            conversation.request(1, "", b"")
        assert feed(conversation, p.Stderr(b"again"), HELLO) == [p.Stderr(b"again"), HELLO]
    list(conversation.request(1, "", b""))
    assert feed(conversation, response(number=1)) == [response(number=1)]
    assert feed(conversation, ENDED, p.Done()) == [ENDED, p.Done()]
    list(conversation.begin(START, []))
    assert conversation.runs == 2


@pytest.mark.parametrize(
    "message", [ENDED, response(), p.Loaded(), p.Stage(1, "function"), p.Done(), p.Error(p.ErrorCode.RESUMED_FAILED, "why")]
)
def test_a_restored_function_that_does_not_say_hello(message: p.Message) -> None:
    conversation = Conversation(arch="x86_64", end_marker="ab", loaded=FUNCTION)
    conversation.resumed(p.Resumed(0, bytes(16), "x", "", bytes(16)))
    assert failure(feed(conversation, message))


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
    st.just(p.Loaded()),
    st.builds(
        p.Response, st.integers(7, 8), st.sampled_from(p.ResponseKind), st.just(1), st.just(""), st.integers(0, 3), st.binary(max_size=2)
    ),
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


@given(_sent)
def test_any_guest_with_a_function(pieces: list[bytes]) -> None:
    """Whatever comes after a request, it gets at most one response: the one that it asked for,
    whole if another request may follow.
    """
    conversation = asked()
    events = [event for piece in pieces for event in conversation.feed(piece)]
    failed = [index for index, event in enumerate(events) if isinstance(event, Failed)]
    assert failed in ([], [len(events) - 1])
    answers = [event for event in events if isinstance(event, p.Response)]
    assert {(answer.id, answer.size) for answer in answers} <= {(7, answers[0].size if answers else 0)}
    size = sum(len(answer.data) for answer in answers)
    assert not answers or size <= answers[0].size
    if conversation.phase is Phase.LOADED:
        assert answers
        assert size == answers[0].size
        list(conversation.request(8, "", b""))
