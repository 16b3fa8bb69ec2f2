"""The handover of a run as two tables, without any I/O: what the source and the destination do at
each message and each failure.

Only one of the two may let the machine run. The source gives it up with COMMIT, which it sends
after READY and never takes back: from then on it lets its own paused machine go on only when the
destination has said UNKNOWN, which that says only once it will never run the machine. docs/moves.md
has the tables as a picture. What is not in a table breaks the protocol: before COMMIT it counts as
a cut.
"""

import enum
from collections.abc import Mapping
from typing import NamedTuple


class Source(enum.Enum):
    """Where the server stands that gives a run away. In the last two the handover is over."""

    OFFERED = "it waits whether the run fits there"
    COPYING = "it sends the machine, which mostly runs"
    HANDED = "all is sent, the machine is paused, and it waits for READY"
    COMMITTED = "COMMIT is sent: past the point of no return"
    ASKING = "the connection was lost after COMMIT: it asks what became of the run"
    GIVEN = "the run goes on at the destination"
    KEPT = "the run goes on here"


class Destination(enum.Enum):
    """Where the server stands that takes a run."""

    OFFERED = "it looks whether the run fits"
    RECEIVING = "it takes the machine"
    READY = "the machine is there, paused; it waits for COMMIT"
    RUNNING = "the run goes on here"
    DISCARDED = "the run never goes on here"


class Input(enum.Enum):
    """What happens to either: a message of the other, or something at home."""

    FITS = "the destination takes the run"
    MISFITS = "the destination does not take it"
    COPIED = "all has been sent"
    READY = "the destination has the machine"
    BROKEN = "the destination cannot go on, and will never run the machine"
    RUNNING = "the destination runs the machine"
    UNKNOWN = "the destination will never run the machine"
    CUT = "the connection is lost"
    FAULT = "something at home went wrong: the machine, the disk"
    CANCEL = "whoever asked for the move takes that back"
    COMMIT = "the source has given the machine up"
    ASK = "the source asks, over another connection"


class Action(enum.Enum):
    """What is to be done then."""

    NOTHING = "nothing"
    COPY = "send the machine"
    COMMIT = "send COMMIT"
    GO_ON = "let the machine here go on, if it was paused; close the connection"
    FREE = "end the machine here, and follow the run there"
    CONNECT_AND_ASK = "connect again, and ask"
    TAKE = "send FITS, and take the machine"
    REFUSE = "send MISFITS"
    SAY_READY = "send READY"
    RUN = "let the machine go on, then send RUNNING"
    SAY_RUNNING = "send RUNNING"
    DISCARD = "end the machine, if there is one; say so if the connection is still there"
    SAY_UNKNOWN = "end the machine, if there is one, and send UNKNOWN"


class Step(NamedTuple):
    """What an input leads to."""

    state: Source | Destination
    action: Action


def _before_commit(state: Source) -> dict[tuple[Source, Input], Step]:
    """Whatever goes wrong before COMMIT leaves the run where it was."""
    losses = (Input.BROKEN, Input.CUT, Input.FAULT, Input.CANCEL)
    return {(state, loss): Step(Source.KEPT, Action.GO_ON) for loss in losses}


SOURCE: Mapping[tuple[Source, Input], Step] = {
    **_before_commit(Source.OFFERED),
    **_before_commit(Source.COPYING),
    **_before_commit(Source.HANDED),
    (Source.OFFERED, Input.FITS): Step(Source.COPYING, Action.COPY),
    (Source.OFFERED, Input.MISFITS): Step(Source.KEPT, Action.GO_ON),
    (Source.COPYING, Input.COPIED): Step(Source.HANDED, Action.NOTHING),
    (Source.HANDED, Input.READY): Step(Source.COMMITTED, Action.COMMIT),
    (Source.COMMITTED, Input.RUNNING): Step(Source.GIVEN, Action.FREE),
    (Source.COMMITTED, Input.CUT): Step(Source.ASKING, Action.CONNECT_AND_ASK),
    (Source.COMMITTED, Input.BROKEN): Step(Source.KEPT, Action.GO_ON),
    (Source.COMMITTED, Input.FAULT): Step(Source.COMMITTED, Action.NOTHING),
    (Source.COMMITTED, Input.CANCEL): Step(Source.COMMITTED, Action.NOTHING),
    (Source.ASKING, Input.RUNNING): Step(Source.GIVEN, Action.FREE),
    (Source.ASKING, Input.UNKNOWN): Step(Source.KEPT, Action.GO_ON),
    (Source.ASKING, Input.CUT): Step(Source.ASKING, Action.CONNECT_AND_ASK),
    (Source.ASKING, Input.FAULT): Step(Source.ASKING, Action.NOTHING),
    (Source.ASKING, Input.CANCEL): Step(Source.ASKING, Action.NOTHING),
}
_DISCARD = Step(Destination.DISCARDED, Action.DISCARD)
_NEVER = Step(Destination.DISCARDED, Action.SAY_UNKNOWN)
DESTINATION: Mapping[tuple[Destination, Input], Step] = {
    (Destination.OFFERED, Input.FITS): Step(Destination.RECEIVING, Action.TAKE),
    (Destination.OFFERED, Input.MISFITS): Step(Destination.DISCARDED, Action.REFUSE),
    (Destination.RECEIVING, Input.COPIED): Step(Destination.READY, Action.SAY_READY),
    **{
        (state, loss): _DISCARD
        for state in (Destination.OFFERED, Destination.RECEIVING, Destination.READY)
        for loss in (Input.CUT, Input.FAULT)
    },
    **{(state, Input.ASK): _NEVER for state in (Destination.OFFERED, Destination.RECEIVING, Destination.READY, Destination.DISCARDED)},
    (Destination.READY, Input.COMMIT): Step(Destination.RUNNING, Action.RUN),
    (Destination.RUNNING, Input.ASK): Step(Destination.RUNNING, Action.SAY_RUNNING),
    (Destination.RUNNING, Input.CUT): Step(Destination.RUNNING, Action.NOTHING),
    (Destination.RUNNING, Input.FAULT): Step(Destination.RUNNING, Action.NOTHING),
    (Destination.DISCARDED, Input.COMMIT): Step(Destination.DISCARDED, Action.NOTHING),
    (Destination.DISCARDED, Input.CUT): Step(Destination.DISCARDED, Action.NOTHING),
    (Destination.DISCARDED, Input.FAULT): Step(Destination.DISCARDED, Action.NOTHING),
}
