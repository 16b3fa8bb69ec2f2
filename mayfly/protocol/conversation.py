"""One machine's side of the protocol without any I/O: the channel's bytes in, events out; what to
send comes back as frames.

The guest is hostile. A frame that is none, or belongs to another run, is counted and ignored; one
that the table below does not allow ends the run with a GuestError. `feed` never raises for what the
guest did, and gives nothing more after `Done` or `Failed`.
"""

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from mayfly.errors import BootError, GuestError, MayflyError
from mayfly.protocol.frames import (
    MAX_FILE_CHUNK,
    MAX_PAYLOAD,
    PROTOCOL_VERSION,
    Begin,
    Credit,
    Done,
    Error,
    ErrorCode,
    Exit,
    ExitHow,
    File,
    Frame,
    FrameReader,
    Hello,
    Limit,
    Message,
    Resumed,
    Signal,
    Stage,
    Start,
    Stderr,
    Stdin,
    StdinEof,
    Stdout,
    encode_frame,
)

OVERHEAD_ALLOWED = 1 << 20
"""Bytes that a guest may send in a run besides its output."""
FRAME_OF_ONE = 24
"""Most bytes of a frame that carries one byte of output: 10 of a packet with each escaped, and two
ENDs, rounded up.
"""


class State(enum.Enum):
    """Where the conversation stands."""

    GREETING = "waiting for HELLO"
    IDLE = "before START"
    STARTED = "before the first step"
    STEP = "in a step"
    BETWEEN = "after a step"
    ENDED = "over"


_ALLOWED: Mapping[tuple[State, type[Message]], State] = {
    (State.GREETING, Hello): State.IDLE,
    (State.STARTED, Stage): State.STEP,
    (State.STARTED, Exit): State.BETWEEN,  # a step whose program never started
    (State.STEP, Stdout): State.STEP,
    (State.STEP, Stderr): State.STEP,
    (State.STEP, Exit): State.BETWEEN,
    (State.BETWEEN, Stage): State.STEP,
    (State.BETWEEN, Exit): State.BETWEEN,  # as above
    (State.BETWEEN, Done): State.ENDED,
    (State.STARTED, Credit): State.STARTED,
    (State.STEP, Credit): State.STEP,
    (State.BETWEEN, Credit): State.BETWEEN,
    (State.GREETING, Error): State.ENDED,
    (State.IDLE, Error): State.ENDED,
    (State.STARTED, Error): State.ENDED,
    (State.STEP, Error): State.ENDED,
    (State.BETWEEN, Error): State.ENDED,
}
_OF_NO_RUN = (Hello, Error)
"""What may come with run 0."""


class Failed(NamedTuple):
    """The run, or the machine before it, has come to a bad end."""

    error: MayflyError


Event: TypeAlias = Hello | Stage | Stdout | Stderr | Exit | Done | Failed


class Session:
    """The conversation with one agent. Feed it what the channel gives; send what `begin`, `stdin`,
    `stdin_eof` and `signal` return.

    `credit` is how many bytes of standard input may be sent now. `strays` counts ignored frames of
    other runs, `dropped` what was no frame.
    """

    def __init__(self, *, arch: str, end_marker: str) -> None:
        self.state = State.GREETING
        self.credit = 0
        self.strays = 0
        self._arch = arch
        self._end_marker = end_marker
        self._frames = FrameReader()
        self._run = 0
        self._start = Start((), (), ())
        self._step = -1
        self._failed_step = False
        self._received = 0
        self._written = {Stdout: 0, Stderr: 0}
        self._cut = {Stdout: False, Stderr: False}

    @property
    def dropped(self) -> int:
        """How many packets were no frames."""
        return self._frames.dropped.total()

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in their order; nothing any more once the conversation
        is over.
        """
        events: list[Event] = []
        self._received += len(data)
        for frame in self._frames.feed(data):
            if self.state is State.ENDED:
                break
            events += self._frame(frame)
        if self.state is not State.ENDED and self._received > self._allowance():
            events.append(self._fail(f"the guest sent {self._received} bytes; its output limits allow {self._allowance()}"))
        return events

    def _allowance(self) -> int:
        return OVERHEAD_ALLOWED + 2 * FRAME_OF_ONE * sum(step.output for step in self._start.steps)

    def _frame(self, frame: Frame) -> list[Event]:
        message = frame.message
        of_run = frame.run == self._run and self._run != 0 and not isinstance(message, Hello)
        if not of_run and not (frame.run == 0 and isinstance(message, _OF_NO_RUN)):
            self.strays += 1
            return []
        state = _ALLOWED.get((self.state, type(message)))
        if state is None:
            return [self._fail(f"the agent sent {message.type.name} {self.state.value}")]
        before, self.state = self.state, state
        match message:
            case Hello():
                return [self._hello(message)]
            case Stage():
                return [self._stage(message)]
            case Exit():
                return [self._exit(message, before)]
            case Stdout() | Stderr():
                return self._output(message)
            case Done():
                return [self._done(message)]
            case Credit():
                self.credit += message.count
            case Error():
                return [self._error(message, before)]
        return []

    def _hello(self, hello: Hello) -> Event:
        wrong = (
            f"speaks protocol {hello.version}, this host {PROTOCOL_VERSION}"
            if hello.version != PROTOCOL_VERSION
            else f"is of architecture {hello.arch!r}, its image of {self._arch!r}"
            if hello.arch != self._arch
            else f"found the end marker {hello.end_marker!r}, the manifest has {self._end_marker!r}"
            if hello.end_marker != self._end_marker
            else ""
        )
        if not wrong:
            return hello
        self.state = State.ENDED
        return Failed(BootError(f"the agent {wrong}", hint="build the image again: imagegen build LANG"))

    def _stage(self, stage: Stage) -> Event:
        self._step += 1
        if self._failed_step or stage.step != self._step or self._step >= len(self._start.steps):
            return self._fail(f"the agent began step {stage.step} out of order")
        self._written = dict.fromkeys(self._written, 0)
        self._cut = dict.fromkeys(self._cut, False)
        return Stage(stage.step, self._start.steps[stage.step].name)

    def _exit(self, ended: Exit, before: State) -> Event:
        if before is not State.STEP:
            self._step += 1  # its program never started, so it had no STAGE
        if (
            ended.step != self._step
            or self._step >= len(self._start.steps)
            or (before is not State.STEP and ended.how is not ExitHow.NOT_STARTED)
        ):
            return self._fail(f"the agent ended step {ended.step} out of order")
        self._failed_step = ended.how is not ExitHow.EXITED or ended.code != 0 or ended.limit is not Limit.NONE
        stdout, stderr = ended.cut
        return dataclasses.replace(ended, cut=(stdout or self._cut[Stdout], stderr or self._cut[Stderr]))

    def _output(self, message: Stdout | Stderr) -> list[Event]:
        """Pass output on up to its limit: the agent cuts there too, but a guest is not to be
        believed.
        """
        kind = type(message)
        limit = self._start.steps[self._step].output
        data = message.data[: max(0, limit - self._written[kind])] if limit else message.data
        self._written[kind] += len(data)
        self._cut[kind] |= len(data) < len(message.data)
        return [kind(data)] if data else []

    def _done(self, done: Done) -> Event:
        if not self._failed_step and self._step + 1 < len(self._start.steps):
            return self._fail(f"the agent ended the run after step {self._step} of {len(self._start.steps)}")
        return done

    def _error(self, error: Error, before: State) -> Event:
        text = f"the agent reports: {error.message or error.code.name}"
        if error.code is ErrorCode.INCOMPLETE_ROOT:
            return Failed(BootError(text, hint="give the machine more memory (--memory), or build the image again: imagegen build LANG"))
        return Failed(BootError(text) if before is State.GREETING else GuestError(text))

    def _fail(self, text: str) -> Failed:
        self.state = State.ENDED
        return Failed(GuestError(text, hint="the snippet may have tampered with its machine; nothing else is affected"))

    def resumed(self, identity: Resumed) -> bytes:
        """The frame that gives a restored machine an identity of its own; HELLO follows. Before
        `begin` only.
        """
        self.state = State.GREETING
        return encode_frame(identity, 0)

    def begin(self, run: int, start: Start, files: Sequence[bytes]) -> Iterator[bytes]:
        """The frames that begin a run, made one at a time as they are asked for: START, the files'
        pieces, BEGIN.

        `files` holds the content of each entry of `start.files`. Call it once, after HELLO.
        """
        if self.state is not State.IDLE:
            raise ValueError(f"begin() {self.state.value}")
        self.state = State.STARTED
        self._run, self._start, self._step = run, start, -1
        return self._opening(start, files)

    def _opening(self, start: Start, files: Sequence[bytes]) -> Iterator[bytes]:
        yield encode_frame(start, self._run)
        for index, content in enumerate(files):
            for offset in range(0, len(content), MAX_FILE_CHUNK):
                yield encode_frame(File(index, offset, content[offset : offset + MAX_FILE_CHUNK]), self._run)
        yield encode_frame(Begin(), self._run)

    def stdin_room(self) -> int:
        """How many bytes the next STDIN frame may carry; 0: wait for more credit."""
        return min(self.credit, MAX_PAYLOAD)

    def stdin(self, data: bytes) -> bytes:
        """The frame that carries `data`, at most `stdin_room()` bytes, to the step that takes
        standard input.
        """
        if len(data) > self.stdin_room():
            raise ValueError(f"{len(data)} bytes of standard input, {self.stdin_room()} may be sent")
        self.credit -= len(data)
        return encode_frame(Stdin(data), self._run)

    def stdin_eof(self) -> bytes:
        """The frame that ends standard input."""
        return encode_frame(StdinEof(), self._run)

    def signal(self, number: int) -> bytes:
        """The frame that sends a signal to the processes of the running step."""
        return encode_frame(Signal(number), self._run)
