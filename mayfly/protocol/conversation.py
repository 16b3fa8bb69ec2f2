"""The host's side of the protocol without any I/O: the channel's bytes in, events out; frames to
send come back as bytes.

One conversation serves many runs on one agent, one after another: DONE leads back to IDLE. What the
ended run left can be collected until the next one begins. A run whose last step is a function stays
in that step, and answers requests one after another: RESPONSE leads back to LOADED.

The guest is hostile. A packet that is not a frame, or a frame of another run, is counted and
ignored. A frame that the table below does not allow ends the conversation with a GuestError. `feed`
never raises for what the guest did, and gives nothing more after `Failed`.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self, TypeAlias

from mayfly.errors import BootError, CollectError, GuestError, MayflyError, OversizeError
from mayfly.protocol.answers import CollectedSoFar, ResponseSoFar
from mayfly.protocol.frames import (
    EARLIER_VERSIONS,
    MAX_BODY,
    MAX_BODY_CHUNK,
    MAX_CONTENT_TYPE,
    MAX_FILE_CHUNK,
    MAX_PAYLOAD,
    PROTOCOL_VERSION,
    WORK_FOLDER,
    Begin,
    Collect,
    Collected,
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
    Loaded,
    Moved,
    Request,
    Resize,
    Response,
    Resumed,
    Signal,
    Stage,
    Start,
    Stderr,
    Stdin,
    StdinEof,
    Stdout,
    Step,
    encode_frame,
)
from mayfly.protocol.phases import ALLOWED, IN_A_RUN, MOVABLE, OF_NO_RUN, Phase, Standing

OVERHEAD_ALLOWED = 1 << 20
"""Bytes that a guest may send in a run, in an answer to COLLECT or to a request, besides what that
holds.
"""
FRAME_OF_ONE = 24
"""Most bytes of a frame that carries one byte of output: 10 of a packet with each escaped, and two
ENDs, rounded up.
"""
STDIN_KEPT = 2 * 65536
"""Bytes of standard input that an agent and the program's pipe hold at most."""
MAX_HEAD = 64
"""Most bytes of a COLLECTED frame besides path and data: 26 of the packet, escaped, two ENDs."""


class Failed(NamedTuple):
    """The conversation has come to a bad end, and the run in it."""

    error: MayflyError


Event: TypeAlias = Hello | Stage | Stdout | Stderr | Exit | Done | Credit | Collected | Loaded | Response | Failed


class Conversation:
    """The conversation with one agent. Feed it what the channel gives; send the frames that
    `resumed`, `moved`, `begin`, `stdin`, `stdin_eof`, `signal`, `collect` and `request` return.
    With `loaded` the agent is in its first run, which began with that START and whose function is
    loaded, and says HELLO when it has been `resumed`.

    Attributes:
        credit: bytes of standard input that may be sent now.
        runs: how many runs have begun; the present run's number on the channel.
        sent: bytes of standard input that were sent in this run.
        strays: ignored frames of other runs.
        failure: why the conversation is over, if it is.
    """

    def __init__(self, *, arch: str, end_marker: str, loaded: Start | None = None) -> None:
        self.phase = Phase.RESUMING if loaded else Phase.GREETING
        self.credit = 0
        self.runs = 1 if loaded else 0
        self.sent = 0
        self.strays = 0
        self.failure: MayflyError | None = None
        self._arch = arch
        self._end_marker = end_marker
        self._recent = b""
        self._frames = FrameReader()
        self._start = loaded or Start((), (), ())
        self._step = len(self._start.steps) - 1
        self._failed_step = False
        self._allow_output(*self._start.steps[-1:])
        self._written = {Stdout: 0, Stderr: 0}
        self._cut = {Stdout: False, Stderr: False}
        self._answer = CollectedSoFar((), 0, 0)
        self._response = ResponseSoFar(0)

    def standing(self) -> Standing:
        """All that it takes to go on with this run's conversation in another process, but for what
        has come of the response to a request.

        Raises:
            GuestError: as `begin`.
            ValueError: not in the middle of a run, or of a request.
        """
        self._leave((*IN_A_RUN, Phase.ASKED), self.phase)
        packet, skipping = self._frames.begun
        return Standing(
            phase=self.phase,
            credit=self.credit,
            runs=self.runs,
            strays=self.strays,
            start=self._start.encode(),
            step=self._step,
            failed_step=self._failed_step,
            received=self._received,
            allowed=self._allowed,
            written=(self._written[Stdout], self._written[Stderr]),
            cut=(self._cut[Stdout], self._cut[Stderr]),
            packet=packet,
            skipping=skipping,
            sent=self.sent,
            recent=self._recent,
        )

    @classmethod
    def going_on(cls, standing: Standing, *, arch: str, end_marker: str, response: ResponseSoFar | None = None) -> Self:
        """The conversation that stood so in another process, in the middle of a request if a
        `response` had come so far.

        Raises:
            SchemaError: none can stand so.
        """
        found = cls(arch=arch, end_marker=end_marker)
        found._start = standing.plan(asked=response is not None)
        found._response = response or found._response
        found.phase, found.credit, found.runs, found.strays = standing.phase, standing.credit, standing.runs, standing.strays
        found._step, found._failed_step = standing.step, standing.failed_step
        found._received, found._allowed = standing.received, standing.allowed
        found._written = dict(zip((Stdout, Stderr), standing.written, strict=True))
        found._cut = dict(zip((Stdout, Stderr), standing.cut, strict=True))
        found._frames.begun = standing.packet, standing.skipping
        found.sent, found._recent = standing.sent, standing.recent
        return found

    @property
    def dropped(self) -> int:
        """How many packets were no frames."""
        return self._frames.dropped.total()

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in their order; none once the conversation is over."""
        events: list[Event] = []
        self._received += len(data)
        for frame in self._frames.feed(data):
            if self.phase is Phase.ENDED:
                break
            events += self._frame(frame)
        if self.phase is not Phase.ENDED and self._received > self._allowed:
            events.append(self._fail(f"the guest sent {self._received} bytes; its limits allow {self._allowed}"))
        return events

    def _allow(self, size: int) -> None:
        """Begin to count anew what the guest sends: `size` bytes, and some besides."""
        self._received, self._allowed = 0, OVERHEAD_ALLOWED + size

    def _allow_output(self, *steps: Step) -> None:
        """Begin to count anew: the output of these steps."""
        self._allow(2 * FRAME_OF_ONE * sum(step.output for step in steps))

    def _frame(self, frame: Frame) -> list[Event]:
        message = frame.message
        of_run = frame.run == self.runs and self.runs != 0 and not isinstance(message, Hello)
        if not of_run and not (frame.run == 0 and isinstance(message, OF_NO_RUN)):
            self.strays += 1
            return []
        phase = ALLOWED.get((self.phase, type(message)))
        if phase is None:
            return [self._fail(f"the agent sent {message.type.name} {self.phase.value}")]
        before, self.phase = self.phase, phase
        match message:
            case Hello():
                return [self._hello(message)]
            case Stage():
                return [self._stage(message)]
            case Exit():
                return [self._exit(message)]
            case Stdout() | Stderr():
                return self._output(message)
            case Done():
                return [self._done(message)]
            case Credit():
                self.credit += message.count
                return [message]
            case Collected():
                return [self._collected(message)]
            case Error():
                return [self._error(message, before)]
            case Loaded():
                return [message]
            case Response():
                return [self._respond(message)]
        return []

    def _hello(self, hello: Hello) -> Event:
        wrong = (
            f"speaks protocol {hello.version}, this host {PROTOCOL_VERSION}"
            if hello.version not in (PROTOCOL_VERSION, *EARLIER_VERSIONS)
            else f"is of architecture {hello.arch!r}, its image of {self._arch!r}"
            if hello.arch != self._arch
            else f"found the end marker {hello.end_marker!r}, the manifest has {self._end_marker!r}"
            if hello.end_marker != self._end_marker
            else ""
        )
        if not wrong:
            return hello
        return self._end(BootError(f"the agent {wrong}", hint="build the image again: imagegen build LANG"))

    def _stage(self, stage: Stage) -> Event:
        self._step += 1
        if self._failed_step or stage.step != self._step or self._step >= len(self._start.steps):
            return self._fail(f"the agent began step {stage.step} out of order")
        self._count_output()
        step = self._start.steps[stage.step]
        if step.function:
            self.phase = Phase.LOADING
        return Stage(stage.step, step.name)

    def _count_output(self) -> None:
        self._written = dict.fromkeys(self._written, 0)
        self._cut = dict.fromkeys(self._cut, False)

    def _exit(self, ended: Exit) -> Event:
        if ended.step != self._step:
            return self._fail(f"the agent ended step {ended.step} out of order")
        self._failed_step = ended.how is not ExitHow.EXITED or ended.code != 0 or ended.limit is not Limit.NONE
        stdout, stderr = ended.cut
        cut = stdout or self._cut[Stdout], stderr or self._cut[Stderr]
        return ended if cut == ended.cut else dataclasses.replace(ended, cut=cut)

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

    def _collected(self, piece: Collected) -> Event:
        if wrong := self._answer.take(piece):
            return self._end(wrong)
        self._allowed += MAX_HEAD + 2 * (len(piece.data) + len(piece.head.path.encode(errors="surrogateescape") if piece.head else b""))
        if piece.last:
            self.phase = Phase.IDLE
        return piece

    def _respond(self, piece: Response) -> Event:
        if wrong := self._response.take(piece):
            return self._fail(wrong)
        self._allowed += 2 * len(piece.data)
        if self._response.whole:
            self.phase = Phase.LOADED
        return piece

    def _error(self, error: Error, before: Phase) -> Event:
        text = f"the agent reports: {error.message or error.code.name}"
        if error.code is ErrorCode.INCOMPLETE_ROOT:
            return self._end(BootError(text, hint="give the machine more memory (--memory), or build the image again: imagegen build LANG"))
        if before is Phase.COLLECTING and error.code is ErrorCode.COLLECT_FAILED:
            return self._end(CollectError(text))
        return self._end(BootError(text) if before in (Phase.GREETING, Phase.RESUMING) else GuestError(text))

    def _fail(self, text: str) -> Failed:
        return self._end(GuestError(text, hint="the snippet may have tampered with its machine; nothing else is affected"))

    def _end(self, error: MayflyError) -> Failed:
        self.phase, self.failure = Phase.ENDED, error
        return Failed(error)

    def resumed(self, identity: Resumed) -> bytes:
        """The frame that gives a restored machine an identity of its own; HELLO follows. Not during
        a run, but between the requests to a function.
        """
        loaded = self.phase in (Phase.LOADED, Phase.RESUMING)
        self._leave((Phase.GREETING, Phase.IDLE, Phase.LOADED, Phase.RESUMING), Phase.RESUMING if loaded else Phase.GREETING)
        return encode_frame(identity, 0)

    def moved(self, identity: Moved) -> bytes:
        """The frame that gives a machine which goes on elsewhere, or as a clone, what makes it
        another; nothing follows, and the phase stays.

        Raises:
            GuestError: as `begin`.
            ValueError: the agent is about to say HELLO.
        """
        self._leave(MOVABLE, self.phase)
        return encode_frame(identity, 0)

    def begin(self, start: Start, files: Sequence[bytes]) -> Iterator[bytes]:
        """The frames that begin a run, made one at a time as they are asked for: START, the files'
        pieces, BEGIN. `files` holds the content of each entry of `start.files`.

        Raises:
            GuestError: the guest has ended the conversation by what it sent after the last run.
            ValueError: not between runs.
        """
        self._leave((Phase.IDLE,), Phase.STARTED)
        self.runs += 1
        self.credit = self.sent = 0
        self._recent = b""
        self._start, self._step, self._failed_step = start, -1, False
        self._allow_output(*start.steps)
        return self._opening(start, files)

    def _leave(self, allowed: tuple[Phase, ...], phase: Phase) -> None:
        if self.failure:
            raise self.failure
        if self.phase not in allowed:
            raise ValueError(f"not {self.phase.value}")
        self.phase = phase

    def _opening(self, start: Start, files: Sequence[bytes]) -> Iterator[bytes]:
        yield encode_frame(start, self.runs)
        for index, content in enumerate(files):
            for offset in range(0, len(content), MAX_FILE_CHUNK):
                yield encode_frame(File(index, offset, content[offset : offset + MAX_FILE_CHUNK]), self.runs)
        yield encode_frame(Begin(), self.runs)

    def collect(self, paths: Sequence[str], *, entries: int, size: int, globs: bool = False) -> bytes:
        """The frame that asks for what lies at and beneath the absolute `paths` of the run that has
        just ended; with `globs` for the files in the working folder whose paths match.
        `Collected` events follow, each checked; the one that is `last` ends the answer.

        An answer of more than `entries` files and folders, or of files with more than `size` bytes,
        ends the conversation with a CollectError.

        Raises:
            GuestError: as `begin`.
            ValueError: not between runs.
        """
        self._leave((Phase.IDLE,), Phase.COLLECTING)
        self._answer = CollectedSoFar((WORK_FOLDER,) if globs else tuple(paths), entries, size)
        self._allow(0)
        return encode_frame(Collect(tuple(paths), globs), self.runs)

    def request(self, id: int, content_type: str, payload: bytes) -> Iterator[bytes]:
        """The frames that ask the loaded function, made one at a time as they are asked for.
        `Response` events follow, each checked; with the last one the phase is LOADED again.

        Raises:
            OversizeError: the payload has more than MAX_BODY bytes, its type more than
                MAX_CONTENT_TYPE.
            GuestError: as `begin`.
            ValueError: no function is loaded, or it is being asked.
        """
        if len(payload) > MAX_BODY or len(content_type.encode(errors="replace")) > MAX_CONTENT_TYPE:
            raise OversizeError(
                f"a request of {len(payload)} bytes, with a content type of {len(content_type)} characters",
                hint=f"a function takes at most {MAX_BODY} bytes, and {MAX_CONTENT_TYPE} of a content type",
            )
        run, size = self.runs, len(payload)
        pieces = (payload[at : at + MAX_BODY_CHUNK] for at in range(0, size or 1, MAX_BODY_CHUNK))
        frames = (encode_frame(Request(id, content_type, size, piece), run) for piece in pieces)
        first = next(frames)  # what cannot be encoded changes nothing
        self._leave((Phase.LOADED,), Phase.ASKED)
        self._response = ResponseSoFar(id)
        self._allow_output(self._start.steps[self._step])
        self._count_output()
        return itertools.chain((first,), frames)

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
        self.sent += len(data)
        self._recent = (self._recent + data)[-STDIN_KEPT:]
        return encode_frame(Stdin(data), self.runs)

    def unread(self, taken: int) -> bytes:
        """The standard input that was sent in this run, but for the first `taken` bytes, which its
        program has read.
        """
        count = self.sent - taken
        return self._recent[-count:] if count > 0 else b""

    @property
    def written(self) -> int:
        """Bytes of output of the present step, or of the last one: those of the larger stream."""
        return max(self._written.values())

    def stdin_eof(self) -> bytes:
        """The frame that ends standard input."""
        return encode_frame(StdinEof(), self.runs)

    def signal(self, number: int) -> bytes:
        """The frame that sends a signal to the processes of the running step."""
        return encode_frame(Signal(number), self.runs)

    def resize(self, columns: int, rows: int) -> bytes:
        """The frame that gives the running step's terminal another size."""
        return encode_frame(Resize(columns, rows), self.runs)
