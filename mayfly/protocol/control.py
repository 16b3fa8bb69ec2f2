"""Requests to a live vmm process over its control socket, and their answers.

The socket is one end of a SOCK_SEQPACKET pair, handed over when the process is forked; it has no
path. A message is a tagged JSON object (`report.pack`). Each request has one answer, in order. One
that is refused, as it cannot be carried out or is malformed, has changed nothing.
"""

from mayfly.errors import GuestError, MayflyError
from mayfly.protocol.report import Count, Counts, unpack
from mayfly.schema import Record

MESSAGE_LIMIT = 128 << 10
MAX_DESCRIPTORS = 8


class Pause(Record, tag="pause", frozen=True, kw_only=True):
    """Stop the vCPUs until `Resume`; devices go on. A machine that is paused stays so."""


class Resume(Record, tag="resume", frozen=True, kw_only=True):
    """Let vCPUs and devices go on; a machine that runs goes on running. It is sent no more."""


class Snapshot(Record, tag="snapshot", frozen=True, kw_only=True):
    """Write a snapshot to the descriptors that come along, in the order of `snapshot.FILES`.

    With `go_on` the machine stays as it was, running or paused; else it ends as `End.SAVED`.
    """

    go_on: bool


class Track(Record, tag="track", frozen=True, kw_only=True):
    """Get ready for `Send`, whose receiver holds the first `held` layers that the machine began
    with. What was sent before counts no more.
    """

    held: Count


class Send(Record, tag="send", frozen=True, kw_only=True):
    """Write a round (`pages`) to the descriptor that comes along: the pages that differ
    from the layers, then those that were written since the last round. It is answered when that
    begins, and the descriptor is closed when it has ended.

    With `last` vCPUs and devices stand still first, until `Resume`, and the state comes behind.
    """

    last: bool


class Stats(Record, tag="stats", frozen=True, kw_only=True):
    """Tell what has been counted."""


class Prefault(Record, tag="prefault", frozen=True, kw_only=True):
    """Map for the restored guest what it will touch soon, and let it have huge pages from now on;
    answered before that is done.
    """


Request = Pause | Resume | Snapshot | Track | Send | Stats | Prefault


class Done(Record, tag="done", frozen=True, kw_only=True):
    """It is done; a snapshot with so many bytes of memory."""

    memory_bytes: Count = 0


class Tracking(Record, tag="tracking", frozen=True, kw_only=True):
    """The machine can send rounds; without `live` the last one alone, as this kernel does not tell
    which pages are written.
    """

    live: bool


class Figures(Record, tag="figures", frozen=True, kw_only=True):
    """What a machine has counted so far: `exits` as `report.Ended` has them."""

    paused: bool
    exits: Counts


class Refused(Record, tag="refused", frozen=True, kw_only=True):
    """It was not done."""

    error: MayflyError


Answer = Done | Tracking | Figures | Refused


def accept(data: bytes) -> Answer:
    """The answer in a message; raises what it refuses with, or GuestError: ended, or malformed."""
    if not data:
        raise GuestError("the machine has ended")
    try:
        answer: Answer = unpack(Answer, data)
    except ValueError as caught:
        raise GuestError(f"the machine's answer is malformed: {caught}") from caught
    if isinstance(answer, Refused):
        raise answer.error
    return answer
