"""What gateways and hosts of a fleet say to each other, as values and as bytes (MessagePack).

    run.ARCH.LANG.PIECE     Work               gateway to one host, through the stream
    run.now.ARCH.LANG       Work -> Taken      gateway to one host that has much room
    begin.HOST.RUN          Begin -> Verdict   a host has the run: may it?
    gw.GATEWAY.HOST.RUN     Begun, Told, Tail  host to a gateway: who has it, its record, its end
    settle.GATEWAY.HOST.RUN Settle -> Verdict  it has ended: is that the result?
    host.HOST.RUN           Attach, Grant      gateway to a host: send from there on; so much more
                            Input, Signal, Size, Cancel -> Answer
    beat.HOST               Beat               every second
    about.HOST              -> About           what it can run
    ping.MEMBER             -> nothing         whether it is there at all
    wish.HOST               Wish -> Answer     drain, or serve again
    measure.HOST            -> text            its metrics
    offers.HOST             Ask -> Offers      a host to a gateway: images that can be fetched
    keys, images            KeyChange, ImageChange -> Done   an operator to a gateway
    over.RUN                                   gateway to gateways: a result was stored, or removed
    seek.HOST.RUN           Seek -> Found      which hosts could take a run?
    move.HOST.FROM.LINK     Piece -> Verdict   host to host: a message of a run's move
    take.HOST.FROM.RUN      Take -> Answer     host to host: the run that moved there is its work

A decoder leaves out fields that it does not know, and those that are added have defaults: hosts and
gateways of neighbouring versions understand each other.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, overload

import msgspec

from mayfly.fleet.failures import UnreadableError
from mayfly.fleet.wire import WireEvent
from mayfly.guests.start import StartKind
from mayfly.host.snippet import Mode, Snippet
from mayfly.images.store import InstalledImage
from mayfly.runs.result import RunState

ANY = "any"
"""In the place of a gateway's name: whichever."""
SNAPSHOT = "SN"
"""Where runs wait that name a snapshot. Languages have small letters."""
GROUP = "hosts"
"""Of them one gets each piece of work."""
_T = TypeVar("_T")
WINDOW = 256 * 1024
"""Bytes of a record that are on their way to a gateway at most."""
PIECE = 32 * 1024


def token_of(name: str) -> str:
    """A language and version, or another name, as a word of a subject: `python@3.12` is
    `python-3_12`.
    """
    return re.sub(r"[^A-Za-z0-9_+-]", "_", name.replace("@", "-"))


def queue_of(image: str, snapshot: str = "") -> str:
    """Where runs wait for an image of that name, and for a snapshot, if they start from one. Names
    that would be one word are told apart.
    """
    if not snapshot:
        return token_of(image)
    return f"{SNAPSHOT}-{token_of(snapshot)}-{hashlib.sha256(f'{snapshot} {image}'.encode()).hexdigest()[:12]}"


def id_of(place: str, token: str) -> str:
    """By what the work of what is registered at a place is stored once."""
    return f"{place} {token}"


def name_of(image: InstalledImage) -> str:
    """The name by which exactly this image's language and version is asked for."""
    return exact_name(image.manifest.language, image.manifest.version)


def exact_name(language: str, version: str) -> str:
    """The name of exactly this version of a language."""
    return f"{language}@{version}" if version else language


class Head(msgspec.Struct, kw_only=True):
    """What a run is, before it has begun: enough to show it."""

    id: str
    language: str
    version: str
    mode: Mode
    step_names: tuple[str, ...]
    owner: str = ""
    cases: tuple[str, ...] = ()
    stop_at_first_failure: bool = False
    interactive: bool = False
    terminal: bool = False

    @property
    def image(self) -> str:
        """The name by which exactly its image is asked for."""
        return exact_name(self.language, self.version)


class Work(msgspec.Struct, kw_only=True):
    """A run for whoever has room for it. The `token` shows that a host was given the run. Of one
    that is `awaited` its gateway need hear nothing before it has ended, or lasts.
    """

    id: str
    token: str
    gateway: str
    snippet: Snippet
    awaited: bool = False


class Registered(msgspec.Struct, kw_only=True):
    """A run as the fleet knows it until it has a result. `digest` tells its request from others of
    the same Idempotency-Key; `attempts` are hosts that began it, of which `host` was the last one;
    it may have `given_back` the run. One that is `charged` stands in its key's account. What it is
    about, if anything, gateways keep beside.
    """

    head: Head
    token: str
    gateway: str
    arch: str
    lang: str
    digest: bytes = b""
    host: str = ""
    delivered: int = 0
    attempts: int = 0
    given_back: bool = False
    charged: bool = False
    has_about: bool = False


class Begin(msgspec.Struct, kw_only=True):
    """A host has the run, given out for the `delivered`-th time; it may have moved from another, or
    `goes_on` at this host, which was given it once more. Of a request to a function: it is
    `moved_to` another one's from now on, by this `move`. With `renew` the host has it for long:
    what is known of it is to be kept on.
    """

    token: str
    delivered: int
    moved_from: str = ""
    moved_to: str = ""
    move: str = ""
    goes_on: bool = False
    renew: bool = False


class Verdict(msgspec.Struct, kw_only=True):
    """What becomes of a host's run: `go` on, `done` (it is settled, and needs no host any more),
    `again` (others are to try), `moved` (it is the other host's), or `later` (nobody can say now).
    Who is to go on hears which `attempt` of the run that is.
    """

    verdict: str
    attempt: int = 0


class Begun(msgspec.Struct, kw_only=True, tag="begun"):
    """A host has begun, or `goes_on` though it was given the work once more, or with a run that
    `moved_from` another one in its midst. The work is given back at `ack` if it dies.
    """

    token: str
    delivered: int
    ack: str
    goes_on: bool = False
    moved_from: str = ""


class Told(msgspec.Struct, kw_only=True, tag="told"):
    """What comes in the record behind a position. `cost` is to be granted anew."""

    delivered: int
    after: tuple[int, int]
    events: list[WireEvent]
    state: RunState
    cost: int


class Tail(msgspec.Struct, kw_only=True, tag="tail"):
    """A piece of the Ending of `size` bytes, from `offset` on; the record ends at `after`."""

    delivered: int
    after: tuple[int, int]
    offset: int
    size: int
    data: bytes


class FileLeft(msgspec.Struct, array_like=True):
    """A file that the program left."""

    name: str
    mode: int
    data: bytes


class Ending(msgspec.Struct, kw_only=True):
    """How a run ended, besides what its record has."""

    error: Mapping[str, Any] | None = None
    start: StartKind | None = None
    phases: Mapping[str, float] = {}
    exits: Mapping[str, int] = {}
    parallel: int = 0
    files: Sequence[FileLeft] | None = None
    files_error: Mapping[str, Any] | None = None
    host: str = ""


class Settle(msgspec.Struct, kw_only=True):
    """A host's run has ended. With `error` it is to be tried elsewhere, and why; `final`: that is
    the result. `said` is all of the run, if nothing was said of it before.
    """

    token: str
    delivered: int
    error: Mapping[str, Any] | None = None
    final: bool = True
    said: Sequence[Told | Tail] = ()


class Claim(msgspec.Struct, kw_only=True):
    """Of a Work or a Settle what every version can read."""

    token: str
    id: str = ""
    gateway: str = ""
    delivered: int = 0


class Taken(msgspec.Struct, kw_only=True):
    """The host that has the work which was handed to it, with the run's end if it has come by then;
    without `host` it has too little room.
    """

    host: str = ""
    ended: Settle | None = None


class Attach(msgspec.Struct, kw_only=True, tag="attach"):
    """Send the gateway what is behind that position of the record, and of the Ending."""

    gateway: str
    after: tuple[int, int]
    tail: int = 0


class Grant(msgspec.Struct, kw_only=True, tag="grant"):
    """The gateway takes so many bytes more."""

    gateway: str
    count: int


class Input(msgspec.Struct, kw_only=True, tag="input"):
    """Standard input, behind `offset` bytes that this gateway sent before; `end`: no more comes.
    All gateways send what they keep of it by the same name.
    """

    gateway: str
    offset: int
    data: bytes
    end: bool = False


class Signal(msgspec.Struct, kw_only=True, tag="signal"):
    """A signal for the program."""

    number: int


class Size(msgspec.Struct, kw_only=True, tag="size"):
    """Another size of the terminal."""

    columns: int
    rows: int


class Cancel(msgspec.Struct, kw_only=True, tag="cancel"):
    """The run has a result already: end it."""


class Answer(msgspec.Struct, kw_only=True):
    """That something was done, or why not: if the run has `moved`, another host is to be asked."""

    error: Mapping[str, Any] | None = None
    moved: bool = False


class Beat(msgspec.Struct, kw_only=True):
    """How a host is. `about` tells one About of it from the next; images that are `fetching` are so
    many percent here.
    """

    about: str
    memory_used: int
    memory_budget: int
    running: int
    waiting: int = 0
    idle: int = 0
    draining: bool = False
    fetching: Mapping[str, int] = {}


class Held(msgspec.Struct, kw_only=True, frozen=True):
    """A snapshot that a host has, from which runs on an image of that language and version may
    start; the digest is of its machine's state, which no two have.
    """

    name: str
    image: str
    digest: str


class About(msgspec.Struct, kw_only=True):
    """What a host is; its images' manifests as JSON, and its snapshots. Its machines cannot go on
    from those of the queues that are `unfit`.
    """

    name: str
    arch: str
    version: str
    images: list[bytes]
    snapshots: list[Held] = []
    unfit: list[str] = []


class Seek(msgspec.Struct, kw_only=True):
    """A host that is drained would give a run away. Of a request to a function: it asks whether
    this `move` to it is registered.
    """

    token: str
    move: str = ""


class Found(msgspec.Struct, kw_only=True):
    """Hosts that could have it, those with the most memory free first, and the one that has it."""

    hosts: list[str]
    host: str = ""


class Take(msgspec.Struct, kw_only=True):
    """The work that a run is which has moved, as far as it came, and the gateways that follow it.
    So many bytes of input are `received` from each; after their end if it is `ended`.
    """

    work: Work
    delivered: int
    ack: str
    gateways: list[str]
    received: Mapping[str, int] = {}
    ended: bool = False


class Piece(msgspec.Struct, kw_only=True):
    """The message `number` of a connection, from 1 on; 0 asks whether it is there, or `ends` it."""

    number: int
    data: bytes = b""
    ends: bool = False


class Wish(msgspec.Struct, kw_only=True):
    """What a host is to do. Of machines that it gives away it sends so many bytes a second at most,
    0: no limit.
    """

    drain: bool
    limit_bytes_s: int = 0


ToGateway: TypeAlias = Begun | Told | Tail
ToHost: TypeAlias = Attach | Grant | Input | Signal | Size | Cancel
encode = msgspec.msgpack.encode


@overload
def decode(data: bytes | bytearray, *, type: type[_T]) -> _T: ...
@overload
def decode(data: bytes | bytearray, *, type: Any) -> Any: ...
def decode(data: bytes | bytearray, *, type: Any) -> Any:
    """The message, or what lies in a bucket.

    Raises:
        UnreadableError: it is none, of this version or of a neighbouring one.
    """
    try:
        return msgspec.msgpack.decode(data, type=type)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UnreadableError(f"{getattr(type, '__name__', type)} cannot be read: {str(error)[:200]}") from error
