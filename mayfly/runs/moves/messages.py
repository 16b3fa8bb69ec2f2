"""What two servers say to each other over a move's connection: each message is a tagged object of
MessagePack. The machine itself travels in `Pages`, whose bytes are the affair of
mayfly/snapshots/moving.py.

A run's events travel as the payloads of the channel's own messages (agent/PROTOCOL.md), with their
type: a stage, output, the end of a step. Both records have them in the same order, so a position in
one means the same in the other.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, TypeAlias

from mayfly.errors import MayflyError, MoveError, from_wire, to_wire
from mayfly.guests.outcome import StepResult
from mayfly.guests.start import StartKind
from mayfly.host.snippet import MIN_CHECKPOINT_S, Mode
from mayfly.images.manifest import Seconds
from mayfly.protocol.frames import Exit, FrameType, Stage, Stderr, Stdout
from mayfly.runs.files import Left
from mayfly.runs.moments import Moment
from mayfly.runs.record import Mark, Position, Restored, RunEvent
from mayfly.runs.run import Run
from mayfly.runs.stdin import LiveStdin
from mayfly.schema import Meta, Record, msgspec
from mayfly.vmm.config import MachineConfig

MAX_MESSAGE = 4 << 20
"""Bytes of a message; a larger one closes the connection."""
MAX_PAGES = 1 << 20
"""Bytes of the machine in one message."""
MAX_EVENTS = 256 << 10
"""Bytes of output in one message, and a piece more."""
RESTORED = 0
"""The type of an event that is none of the channel's: a WentBack."""
ID = "[0-9a-f]{32}"
Id = Annotated[str, Meta(pattern=f"^{ID}$")]
Count = Annotated[int, Meta(ge=0)]


class Happened(Record, frozen=True, kw_only=True, array_like=True):
    """An event of a run; `name` is the step's, of its end."""

    type: int
    payload: bytes
    name: str = ""


class NetworkHad(Record, frozen=True, kw_only=True):
    """The MAC, the addresses with their networks, and the gateways of a machine with a network."""

    mac: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]


class WentBack(Record, frozen=True, kw_only=True, array_like=True):
    """The run was restored; the fields are those of record.Restored and record.Mark."""

    reason: str
    span: int
    offset: Count
    first: Count
    step: Count
    sizes: dict[Count, Count]
    steps: Count
    repeats: bool


class Description(Record, frozen=True, kw_only=True):
    """What must be known of a run to go on with it, elsewhere or later. `memory` is its machine's,
    in bytes; `collect` are the globs of the files that it gives back, `checkpoint` the one that its
    program writes when it is stopped, if it can be.
    """

    id: Id
    owner: str
    language: str
    version: str
    mode: Mode
    step_names: tuple[str, ...]
    start: StartKind | None
    interactive: bool
    has_terminal: bool
    collect: tuple[str, ...]
    checkpoint: str
    memory: Count
    checkpoint_every_s: Seconds = 0.0
    network: NetworkHad | None = None
    hidden: tuple[str, ...] = ()
    tests: str = ""

    def __post_init__(self) -> None:
        if 0 < self.checkpoint_every_s < MIN_CHECKPOINT_S:
            raise ValueError(f"checkpoint_every_s is {self.checkpoint_every_s:g}, less than {MIN_CHECKPOINT_S}")


class Offer(Record, frozen=True, kw_only=True, tag="offer"):
    """The first message of a move: the run, and what its `machine` needs (of
    mayfly/snapshots/moving.py). It came to the source by the move `came`, if it did.
    """

    move: Id
    run: Description
    machine: bytes
    came: Id | None = None


class Fits(Record, frozen=True, kw_only=True, tag="fits"):
    """The destination takes the run, and has `held` of the layers that its machine stands on. If
    it is `portable`, not the machine is to come but its program's checkpoint. With `back` the run
    came from the destination, where clients may write to it still.
    """

    held: Count
    portable: bool = False
    back: bool = False


class Misfits(Record, frozen=True, kw_only=True, tag="misfits"):
    """It does not, for these reasons."""

    reasons: tuple[str, ...]


class Lacks(Record, frozen=True, kw_only=True, tag="lacks"):
    """The destination has no image of that digest, and takes it now: an Image, then its initramfs
    as Pages, the last of them empty. FITS or MISFITS follows.
    """

    digest: str


class Image(Record, frozen=True, kw_only=True, tag="image"):
    """An image's manifest, as its file has it."""

    manifest: bytes


class Pages(Record, frozen=True, kw_only=True, tag="pages"):
    """Bytes of the machine, of the image that it began with, or of the checkpoint."""

    data: bytes


class Events(Record, frozen=True, kw_only=True, tag="events"):
    """Events of the run, behind those that came before."""

    events: tuple[Happened, ...]


class Handed(Record, frozen=True, kw_only=True, tag="handed"):
    """All of the machine has been sent, and all events. Of a checkpoint the START in `moment` has
    the step that lets the program go on. Of a run that goes back, `taken` bytes of the input that
    the destination sent since it gave it away are in `moment`, or went to the program.
    """

    moment: Moment
    taken: Count = 0
    phases: dict[str, Seconds]


class Ready(Record, frozen=True, kw_only=True, tag="ready"):
    """The machine is there, paused."""


class Broken(Record, frozen=True, kw_only=True, tag="broken"):
    """The destination cannot go on; it will never run the machine."""

    error: dict[str, str | int]


class Commit(Record, frozen=True, kw_only=True, tag="commit"):
    """The source has given the machine up."""


class Ask(Record, frozen=True, kw_only=True, tag="ask"):
    """The first message of a further connection of a move. The source has the run's events as far
    as the position (`span`, `offset`).
    """

    move: Id
    span: int
    offset: Count


class Running(Record, frozen=True, kw_only=True, tag="running"):
    """The run goes on at the destination, which has taken so many bytes of input since COMMIT. Its
    events follow.
    """

    taken: Count


class Unknown(Record, frozen=True, kw_only=True, tag="unknown"):
    """The destination will never run the machine, or no longer knows of it."""


class Input(Record, frozen=True, kw_only=True, tag="input"):
    """Standard input from the byte `offset` on, counted since COMMIT; none ends it."""

    offset: Count
    data: bytes


class Taken(Record, frozen=True, kw_only=True, tag="taken"):
    """So many bytes of input have been taken since COMMIT."""

    count: Count


class Signalled(Record, frozen=True, kw_only=True, tag="signal"):
    """A signal for the run's present step."""

    number: int


class Resized(Record, frozen=True, kw_only=True, tag="resize"):
    """Another size of its terminal."""

    columns: int
    rows: int


class Cancelled(Record, frozen=True, kw_only=True, tag="cancel"):
    """End the run."""

    reason: str


class FileSent(Record, frozen=True, kw_only=True, tag="file"):
    """A piece of a file that the program left: its permission bits, and bytes that follow those
    before.
    """

    name: str
    mode: int
    data: bytes


class Ended(Record, frozen=True, kw_only=True, tag="ended"):
    """The run is over, with this error or without; all events and files were sent before."""

    error: dict[str, str | int] | None
    files_error: dict[str, str | int] | None
    has_files: bool
    phases: dict[str, Seconds]
    exits: dict[str, int]


Message: TypeAlias = (
    Offer
    | Fits
    | Misfits
    | Lacks
    | Image
    | Pages
    | Events
    | Handed
    | Ready
    | Broken
    | Commit
    | Ask
    | Running
    | Unknown
    | Input
    | Taken
    | Signalled
    | Resized
    | Cancelled
    | FileSent
    | Ended
)
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message's bytes."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes) -> Message:
    """The message in these bytes.

    Raises:
        MoveError: they are none.
    """
    try:
        found: Message = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise MoveError(f"the other server sent no message of a move: {str(error)[:200]}", hint="are both of the same version?") from error
    return found


def describe(run: Run, machine: MachineConfig) -> Description:
    """What a run is that has this machine."""
    network = machine.network
    return Description(
        id=run.id,
        owner=run.owner,
        language=run.language,
        version=run.version,
        mode=run.mode,
        step_names=run.outcome.step_names,
        start=run.start,
        interactive=run.is_interactive,
        has_terminal=run.has_terminal,
        collect=run.collect,
        hidden=run.hidden,
        tests=run.tests,
        checkpoint=run.checkpoint,
        memory=machine.memory,
        checkpoint_every_s=run.checkpoint_every_s,
        network=NetworkHad(mac=network.mac, addresses=network.addresses, gateways=network.gateways) if network else None,
    )


def make_run(about: Description) -> Run:
    """The run that is described, as far as nothing has happened in it."""
    run = Run(
        run_id=about.id,
        owner=about.owner,
        language=about.language,
        version=about.version,
        mode=about.mode,
        step_names=about.step_names,
        stdin=LiveStdin() if about.interactive else None,
        has_terminal=about.has_terminal,
        collect=about.collect,
        hidden=about.hidden,
        tests=about.tests,
        checkpoint=about.checkpoint,
        checkpoint_every_s=about.checkpoint_every_s,
    )
    run.start = about.start
    return run


def happened(event: RunEvent) -> Happened | None:
    """The event as it travels; None of one that a run's end says again."""
    match event:
        case Stage() | Stdout() | Stderr():
            return Happened(type=event.type, payload=event.encode())
        case StepResult():
            return Happened(type=event.exit.type, payload=event.exit.encode(), name=event.name)
        case Restored(reason=reason, mark=mark, steps=steps, repeats=repeats):
            (span, offset), first, step, sizes = mark
            went = WentBack(reason=reason, span=span, offset=offset, first=first, step=step, sizes=sizes, steps=steps, repeats=repeats)
            return Happened(type=RESTORED, payload=msgspec.msgpack.encode(went))
    return None


def event_of(sent: Happened) -> RunEvent:
    """The event that travelled so.

    Raises:
        MoveError: it is none.
    """
    kinds: dict[int, type[Stage | Stdout | Stderr | Exit]] = {
        FrameType.STAGE: Stage,
        FrameType.STDOUT: Stdout,
        FrameType.STDERR: Stderr,
        FrameType.EXIT: Exit,
    }
    if sent.type == RESTORED:
        try:
            went = msgspec.msgpack.decode(sent.payload, type=WentBack)
        except (msgspec.DecodeError, RecursionError) as error:
            raise MoveError("the other server sent an event that cannot be read") from error
        mark = Mark(Position(went.span, went.offset), went.first, went.step, went.sizes)
        return Restored(went.reason, mark, went.steps, went.repeats)
    kind = kinds.get(sent.type)
    message = kind.decode(sent.payload) if kind else None
    if message is None:
        raise MoveError(f"the other server sent an event of type {sent.type} that cannot be read")
    return StepResult(sent.name, message) if isinstance(message, Exit) else message


def replay(run: Run, sent: Happened) -> RunEvent:
    """Have the event that travelled so happen in a run.

    Raises:
        MoveError: it is none, or cannot come now.
    """
    event = event_of(sent)
    if isinstance(event, Restored) and not run.record.may_go_back(event.mark):
        raise MoveError("the other server sent an event that leads back to where the run was not, or once too often")
    run.replay(event)
    return event


def batches(events: Iterable[RunEvent]) -> Iterator[Events]:
    """Messages that carry these events."""
    batch: list[Happened] = []
    size = 0
    for event in events:
        if (sent := happened(event)) is None:
            continue
        batch.append(sent)
        size += len(sent.payload) + 64
        if size >= MAX_EVENTS:
            yield Events(events=tuple(batch))
            batch, size = [], 0
    if batch:
        yield Events(events=tuple(batch))


def file_messages(name: str, left: Left) -> Iterator[FileSent]:
    """Messages that carry a file; one at least."""
    for at in range(0, len(left.data) or 1, MAX_PAGES):
        yield FileSent(name=name, mode=left.mode, data=left.data[at : at + MAX_PAGES])


def problem_of(error: MayflyError) -> dict[str, str | int]:
    """The error as it travels."""
    return to_wire(error)


def error_of(problem: dict[str, str | int]) -> MayflyError:
    """The error that travelled so."""
    try:
        return from_wire(problem)
    except ValueError:
        return MoveError(str(problem.get("message", "the other server failed"))[:500])
