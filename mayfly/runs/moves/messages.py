"""What two servers say to each other over a move's connection: each message is a tagged object of
MessagePack. The machine itself travels in `Pages`, whose bytes are the affair of
mayfly/snapshots/moving.py, and the run as mayfly/runs/described.py has it.
"""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from mayfly.errors import MayflyError, MoveError, from_wire, to_wire
from mayfly.images.manifest import Seconds
from mayfly.runs.described import Count, Description, Happened, Id, happened
from mayfly.runs.files import Left
from mayfly.runs.moments import Moment
from mayfly.runs.record import RunEvent
from mayfly.schema import Record, msgspec

MAX_MESSAGE = 4 << 20
"""Bytes of a message; a larger one closes the connection."""
MAX_PAGES = 1 << 20
"""Bytes of the machine in one message."""
MAX_EVENTS = 256 << 10
"""Bytes of output in one message, and a piece more."""


class Offer(Record, frozen=True, kw_only=True, tag="offer"):
    """The first message of a move: the run, and what its `machine` needs (of
    mayfly/snapshots/moving.py). It came to the source by the move `came`, if it did. What its
    program needs without that machine: an image that the same `generator` made, and `room` bytes of
    memory beside it.
    """

    move: Id
    run: Description
    machine: bytes
    came: Id | None = None
    generator: str = ""
    room: Count = 0


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
    as the position (`span`, `offset`), and its machine, if it `holds` that still.
    """

    move: Id
    span: int
    offset: Count
    holds: bool


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


class Other(Record, frozen=True, kw_only=True, tag="other"):
    """Of the move of something else than a run, as it has it (mayfly/fleet/functions)."""

    data: bytes


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
    | Other
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
