"""A conversation that goes on in another process: cut at any byte of the channel, it gives the same
events as one that stays.
"""

import pytest

from mayfly.errors import SchemaError
from mayfly.protocol import frames as p
from mayfly.protocol.conversation import Conversation, Event, Failed
from mayfly.protocol.phases import Phase, Standing
from mayfly.schema import msgspec, replace

STEPS = (p.Step(name="build", argv=("x",), output=10), p.Step(name="run", argv=("y",), output=6, stdin=True))
START = p.Start((("name", "\udcff"),), STEPS, (p.FileEntry("a", 0o644, 3),))
GOOD = p.Exit(0, p.ExitHow.EXITED, 0, p.Limit.NONE, 1, 1, 1, (False, False))


def begun() -> Conversation:
    conversation = Conversation(arch="x86_64", end_marker="ab")
    conversation.feed(p.encode_frame(p.Hello(p.PROTOCOL_VERSION, "1", "x86_64", 1, "ab"), 0))
    list(conversation.begin(START, [b"abc"]))
    return conversation


def played() -> bytes:
    messages: tuple[p.Message, ...] = (
        *(p.Stage(0, "build"), p.Stdout(b"\xc0\xdb"), GOOD, p.Stage(1, "run"), p.Credit(100), p.Stdout(b"abcd")),
        *(p.Stderr(b"1234"), p.Stdout(b"efgh"), p.Credit(7)),
    )
    return b"noise\xc0" + b"".join(p.encode_frame(message, 1) for message in messages)


def carry(conversation: Conversation) -> Conversation:
    """The conversation as it goes on elsewhere."""
    sent = msgspec.msgpack.encode(conversation.standing())
    return Conversation.going_on(msgspec.msgpack.decode(sent, type=Standing), arch="x86_64", end_marker="ab")


def test_it_is_cut_at_any_byte() -> None:
    stays, data = begun(), played()
    whole = stays.feed(data)
    last = stays.feed(p.encode_frame(replace_step(GOOD, 1), 1) + p.encode_frame(p.Done(), 1))
    for at in range(len(data) + 1):
        conversation = begun()
        events: list[Event] = conversation.feed(data[:at])
        moved = carry(conversation)
        events += moved.feed(data[at:])
        assert events == whole
        assert moved.credit == 107
        assert moved.stdin(b"typed") == conversation_after(data).stdin(b"typed")
        assert moved.feed(p.encode_frame(replace_step(GOOD, 1), 1) + p.encode_frame(p.Done(), 1)) == last


def replace_step(exit: p.Exit, step: int) -> p.Exit:
    return p.Exit(step, *list(vars(exit).values())[1:])


def conversation_after(data: bytes) -> Conversation:
    conversation = begun()
    conversation.feed(data)
    return conversation


def test_moved_leaves_the_phase_as_it_is() -> None:
    identity = p.Moved(1, bytes(16), "", "", bytes(range(16)))
    conversation = begun()
    stays = begun()
    for message in (p.Stage(0, "build"), p.Stdout(b"123"), GOOD, p.Stage(1, "run"), replace_step(GOOD, 1), p.Done()):
        before = conversation.phase
        assert conversation.moved(identity) == p.encode_frame(identity, 0)
        assert conversation.phase is before
        data = p.encode_frame(message, 1)
        assert conversation.feed(data) == stays.feed(data)
    assert conversation.moved(identity)
    fresh = Conversation(arch="x86_64", end_marker="ab")
    with pytest.raises(ValueError, match="HELLO"):
        fresh.moved(identity)


def test_an_agent_that_could_not_take_moved_ends_the_run() -> None:
    conversation = begun()
    conversation.feed(p.encode_frame(p.Stage(0, "build"), 1))
    conversation.moved(p.Moved(1, bytes(16), "", "", bytes(16)))
    (event,) = conversation.feed(p.encode_frame(p.Error(p.ErrorCode.RESUMED_FAILED, "entropy: why"), 0))
    assert isinstance(event, Failed) and "entropy: why" in event.error.message
    with pytest.raises(type(event.error)):
        conversation.moved(p.Moved(1, bytes(16), "", "", bytes(16)))


def test_limits_go_on_where_they_were() -> None:
    conversation = begun()
    conversation.feed(p.encode_frame(p.Stage(0, "build"), 1) + p.encode_frame(p.Stdout(b"12345678"), 1))
    moved = carry(conversation)
    assert moved.feed(p.encode_frame(p.Stdout(b"90abc"), 1)) == [p.Stdout(b"90")]
    ended = moved.feed(p.encode_frame(GOOD, 1))[0]
    assert isinstance(ended, p.Exit) and ended.cut == (True, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": Phase.IDLE},
        {"phase": Phase.LOADED},
        {"step": 2},
        {"step": -1},
        {"runs": 0},
        {"start": b"\x00"},
        {"start": p.Start((), (*STEPS[:1], p.Step(name="f", argv=("f",), function=True)), ()).encode()},
    ],
)
def test_one_that_cannot_stand_so_is_refused(changes: dict[str, object]) -> None:
    conversation = begun()
    conversation.feed(p.encode_frame(p.Stage(0, "build"), 1))
    with pytest.raises(SchemaError):
        Conversation.going_on(replace(conversation.standing(), **changes), arch="x86_64", end_marker="ab")


def test_only_one_in_a_run_can_be_carried() -> None:
    conversation = begun()
    conversation.feed(
        b"".join(
            p.encode_frame(message, 1) for message in (p.Stage(0, "build"), p.Exit(0, p.ExitHow.EXITED, 1, *list(vars(GOOD).values())[3:]))
        )
    )
    conversation.standing()
    conversation.feed(p.encode_frame(p.Done(), 1))
    with pytest.raises(ValueError, match="between runs"):
        conversation.standing()
