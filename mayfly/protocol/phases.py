"""Where a conversation with an agent stands: its phases, what may come in each, and all that it
takes to go on with it in another process.
"""

import enum
from collections.abc import Mapping

from mayfly.errors import SchemaError
from mayfly.protocol.messages import (
    Collected,
    Credit,
    Done,
    Error,
    Exit,
    Hello,
    Loaded,
    Message,
    Response,
    Stage,
    Start,
    Stderr,
    Stdout,
)
from mayfly.schema import Record


class Phase(enum.Enum):
    """Where the conversation stands."""

    GREETING = "before HELLO"
    IDLE = "between runs"
    STARTED = "before the first step"
    STEP = "in a step"
    LOADING = "before its function is loaded"
    LOADED = "between requests"
    ASKED = "in a request"
    RESUMING = "before the HELLO of a machine with a function"
    BETWEEN = "after a step"
    COLLECTING = "in the answer to COLLECT"
    ENDED = "after the end"


ALLOWED: Mapping[tuple[Phase, type[Message]], Phase] = {
    (Phase.GREETING, Hello): Phase.IDLE,
    (Phase.STARTED, Stage): Phase.STEP,
    (Phase.STARTED, Done): Phase.IDLE,  # a run without steps
    (Phase.STEP, Stdout): Phase.STEP,
    (Phase.STEP, Stderr): Phase.STEP,
    (Phase.STEP, Exit): Phase.BETWEEN,
    (Phase.BETWEEN, Stage): Phase.STEP,
    (Phase.BETWEEN, Done): Phase.IDLE,
    (Phase.STARTED, Credit): Phase.STARTED,
    (Phase.STEP, Credit): Phase.STEP,
    (Phase.LOADING, Stdout): Phase.LOADING,
    (Phase.LOADING, Stderr): Phase.LOADING,
    (Phase.LOADING, Loaded): Phase.LOADED,
    (Phase.LOADING, Exit): Phase.BETWEEN,
    (Phase.LOADED, Stdout): Phase.LOADED,
    (Phase.LOADED, Stderr): Phase.LOADED,
    (Phase.LOADED, Exit): Phase.BETWEEN,
    (Phase.ASKED, Stdout): Phase.ASKED,
    (Phase.ASKED, Stderr): Phase.ASKED,
    (Phase.ASKED, Response): Phase.ASKED,  # the last piece leads back to LOADED
    (Phase.ASKED, Exit): Phase.BETWEEN,
    (Phase.RESUMING, Stdout): Phase.RESUMING,
    (Phase.RESUMING, Stderr): Phase.RESUMING,
    (Phase.RESUMING, Hello): Phase.LOADED,
    (Phase.BETWEEN, Credit): Phase.BETWEEN,
    (Phase.COLLECTING, Collected): Phase.COLLECTING,  # the last piece leads back to IDLE
    **{(phase, Error): Phase.ENDED for phase in Phase},
}
OF_NO_RUN = (Hello, Error)
"""What may come with run 0."""

IN_A_RUN = (Phase.STARTED, Phase.STEP, Phase.BETWEEN)
"""The phases of a run whose last step is no function: a conversation can be carried over in
these.
"""
MOVABLE = tuple(phase for phase in Phase if phase not in (Phase.GREETING, Phase.RESUMING, Phase.ENDED))
"""The phases in which MOVED may be sent: it has no answer, and leaves the phase as it is."""


class Standing(Record, frozen=True, kw_only=True):
    """A conversation in the middle of a run, or of a request, between two bytes of the channel.
    `start` is the run's START, encoded; `packet` are the bytes of a frame that has begun, still
    escaped (`skipping`: it was too long, and its end has not come yet); `recent` is the end of the
    standard input that was sent. The other fields are those of a Conversation.
    """

    phase: Phase
    credit: int
    runs: int
    strays: int
    start: bytes
    step: int
    failed_step: bool
    received: int
    allowed: int
    written: tuple[int, int]
    cut: tuple[bool, bool]
    packet: bytes
    skipping: bool
    sent: int
    recent: bytes

    def plan(self, *, asked: bool = False) -> Start:
        """The run's START, whose last step is a function that is `asked`, or none is one.

        Raises:
            SchemaError: it is none, or the conversation cannot stand so in it.
        """
        start = Start.decode(self.start)
        functions = [index for index, step in enumerate(start.steps) if step.function] if start else []
        fits = (self.phase is Phase.ASKED and functions == [self.step]) if asked else (self.phase in IN_A_RUN and not functions)
        if start is None or not fits:
            raise SchemaError("a conversation that is carried over is not in the middle of a run, or of a request")
        first = 0 if self.phase is not Phase.STARTED else -1
        if not first <= self.step < len(start.steps) or self.runs < 1:
            raise SchemaError(f"a conversation that is carried over is in step {self.step} of {len(start.steps)}")
        return start
