"""What another server says is checked before it is used: nothing that it may send makes this one
save or wait without end, or break.
"""

from typing import Any

import pytest

from mayfly.errors import MoveError
from mayfly.host.snippet import Mode
from mayfly.protocol.frames import Stage, Stdout
from mayfly.protocol.phases import Phase, Standing
from mayfly.runs.described import Description, Happened, WentBack, happened, replay
from mayfly.runs.moments import Moment
from mayfly.runs.moves.messages import Handed, Offer, decode, encode
from mayfly.runs.record import MAX_RESTORED, Mark, Position, Restored
from mayfly.runs.run import Run
from mayfly.schema import msgspec, replace

NO_TIME = [float("nan"), float("inf"), -1.0]
ABOUT = Description(
    id="0" * 32,
    owner="",
    language="toy",
    version="1",
    mode=Mode.RAW,
    step_names=("run",),
    start=None,
    interactive=False,
    has_terminal=False,
    collect=(),
    checkpoint="",
    memory=1,
)
STANDING = Standing(
    phase=Phase.STEP,
    credit=0,
    runs=1,
    strays=0,
    start=b"",
    step=0,
    failed_step=False,
    received=0,
    allowed=0,
    written=(0, 0),
    cut=(False, False),
    packet=b"",
    skipping=False,
    sent=5,
    recent=b"input",
)
MOMENT = Moment(standing=STANDING, left_s=1.0, rate=2048.0, stdin=b"", stdin_ended=True)


@pytest.mark.parametrize("every_s", [*NO_TIME, 1e-300, 0.5])
def test_a_run_that_would_be_saved_all_the_time_is_refused(every_s: float) -> None:
    offer = Offer(move="0" * 32, run=replace(ABOUT, checkpoint_every_s=1.0), machine=b"")
    assert decode(encode(offer)) == offer
    plain = msgspec.msgpack.decode(encode(offer))
    plain["run"]["checkpoint_every_s"] = every_s
    with pytest.raises(MoveError, match="checkpoint_every_s"):
        decode(msgspec.msgpack.encode(plain))


@pytest.mark.parametrize(
    "changes",
    [*({"left_s": value} for value in (*NO_TIME, 1e300)), *({"rate": value} for value in (float("nan"), 0.0, 1e-300, -1.0))],
    ids=str,
)
def test_a_run_that_would_have_no_limit_of_time_is_refused(changes: dict[str, Any]) -> None:
    assert decode(encode(Handed(moment=MOMENT, phases={"queue": 0.5})))
    with pytest.raises(MoveError, match="moment"):
        decode(encode(Handed(moment=replace(MOMENT, **changes), phases={})))


@pytest.mark.parametrize("value", NO_TIME)
def test_a_phase_that_took_no_time_is_refused(value: float) -> None:
    with pytest.raises(MoveError, match="phases"):
        decode(encode(Handed(moment=MOMENT, phases={"queue": value})))


def run_with_output() -> Run:
    run = Run(language="toy", version="1", mode=Mode.RAW, step_names=("run",))
    run.note(Stage(0, "run"))
    run.note(Stdout(b"some"))
    return run


@pytest.mark.parametrize(
    "changes",
    [{"first": 1 << 40}, {"first": 1}, {"step": 1 << 40}, {"step": 1}, {"step": 0, "sizes": {1 << 30: 0}}, {"sizes": {0: 0}}],
    ids=str,
)
def test_a_run_does_not_go_back_to_where_it_was_not(changes: dict[str, Any]) -> None:
    run = run_with_output()
    sent = happened(Restored("lost", run.record.mark(), 0, repeats=False))
    assert sent
    went = msgspec.msgpack.decode(sent.payload, type=WentBack)
    bad = Happened(type=sent.type, payload=msgspec.msgpack.encode(replace(went, **changes)))
    with pytest.raises(MoveError, match="where the run was not"):
        replay(run, bad)
    replay(run, sent)
    assert run.record.output(0) == (b"some", b"")


def test_a_run_does_not_go_back_without_end() -> None:
    run = run_with_output()
    sent = happened(Restored("lost", Mark(Position(0, 0), 0, 0, {}), 0, repeats=False))
    assert sent
    for _ in range(MAX_RESTORED):
        replay(run, sent)
    with pytest.raises(MoveError, match="too often"):
        replay(run, sent)
