"""What gateways and hosts of a fleet say to each other of functions.

    run.ARCH.FN-NAME.PIECE     Asked               gateway to one host, through the stream
    run.ARCH.FN.PIECE          Asked               the same, for a function that is being created
    fn.begin.HOST.ID           Begin -> Verdict    may the host do it? Nobody else will then
    fn.settle.GATEWAY.HOST.ID  Answered -> Verdict it is over: is that the answer?
    fn.seek.HOST.ID            Seek -> Found    which hosts could take it, and which one has it?
    fn.code.HOST               CodeAsk -> Done     what a function is, with its code
    fn.ask.HOST                Question -> Done    what the function has done there, and printed
    functions                  Change -> Done      an operator to a gateway

What is registered of a request, its result and its charge lie where those of a run do, under `f-`
and its id.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from mayfly.errors import MayflyError
from mayfly.fleet.message import decode
from mayfly.fleet.wire import error_of, wire
from mayfly.functions.answer import Answer, Times
from mayfly.functions.request import Piece
from mayfly.functions.spec import fields_of
from mayfly.functions.store import Function
from mayfly.guests.function import Moment
from mayfly.guests.start import StartKind
from mayfly.schema import convert, replace
from mayfly.schema import decode as from_json

CREATING = "FN"
"""Where functions wait that are being created. Languages have small letters."""
LOCAL = 34
"""Characters of its name that a function keeps on a host."""


def queue_of(name: str) -> str:
    """Where requests to a function wait."""
    return f"{CREATING}-{name}"


def place_of(request_id: str) -> str:
    """Where in the buckets a request is."""
    return f"f-{request_id}"


class _Named(msgspec.Struct):
    name: str


class _About(msgspec.Struct):
    """Of a Function what every version can read."""

    spec: _Named


class FleetFunction(msgspec.Struct, kw_only=True, frozen=True):
    """A function: what it is, as JSON; the architecture that it is for; bytes of a guest; a key
    that nothing else has, not even the function before it was changed.
    """

    about: bytes
    arch: str
    memory: int
    key: str

    @property
    def function(self) -> Function:
        """What it is."""
        return from_json(Function, self.about)

    @property
    def name(self) -> str:
        """Its name, also if another version has made it; empty if even that cannot be read."""
        try:
            return msgspec.json.decode(self.about, type=_About).spec.name
        except (msgspec.DecodeError, ValueError, RecursionError):
            return ""

    @property
    def local(self) -> Function:
        """What it is on a host, beside others of its name."""
        function = self.function
        return replace(function, spec=replace(function.spec, name=f"{function.name[:LOCAL]}_{self.key}"))


def make(function: Function, arch: str, memory: int) -> FleetFunction:
    """A function that is being created."""
    about = msgspec.json.encode({**msgspec.to_builtins(function), "spec": fields_of(function.spec)})
    return FleetFunction(about=about, arch=arch, memory=memory, key=hashlib.sha256(about).hexdigest()[:12])


class Stored(msgspec.Struct, kw_only=True):
    """A function with its files."""

    function: FleetFunction
    code: Mapping[str, bytes]


class Asked(msgspec.Struct, kw_only=True):
    """A request to the function with that key; one that `creates` it asks nothing. The `token`
    shows that a host was given it.
    """

    id: str
    token: str
    gateway: str
    key: str
    creates: bool = False
    payload: bytes = b""
    content_type: str = ""
    received: float = 0.0
    wait_s: float | None = None
    owner: str = ""


class Given(msgspec.Struct, kw_only=True):
    """A request that a host gives to another with its guest's machine, of which `machine` is what
    mayfly/snapshots/moving.py says. It was given out for the `delivered`-th time, and is
    acknowledged at `ack`. No other `move` has this name.
    """

    move: str
    asked: Asked
    delivered: int
    ack: str
    machine: bytes


class Rest(msgspec.Struct, kw_only=True):
    """What belongs to the machine, which was sent: the moment, and what was printed before."""

    moment: Moment
    log: Sequence[Piece]


class Pending(msgspec.Struct, kw_only=True):
    """A request as the fleet knows it until it has a result: it waits at `arch` and `lang`, and
    `host` has begun it, which it came to by the last `move`. Hosts have let go of the moves that
    are `refused`.
    """

    token: str
    function: str
    arch: str = ""
    lang: str = ""
    owner: str = ""
    charged: bool = False
    host: str = ""
    delivered: int = 0
    attempts: int = 0
    move: str = ""
    refused: tuple[str, ...] = ()


class Sent(msgspec.Struct, kw_only=True):
    """An Answer on its way."""

    status: Literal["ok", "exception"]
    content_type: str
    payload: bytes
    start: StartKind
    times: Mapping[str, float]
    log: bytes = b""


class Answered(msgspec.Struct, kw_only=True):
    """What came of a request on a host: an answer, nothing (of one that created a function), or an
    error. With `again` others are to try: nothing has begun here.
    """

    token: str
    delivered: int
    answer: Sent | None = None
    error: Mapping[str, Any] | None = None
    again: bool = False


class Result(msgspec.Struct, kw_only=True):
    """What came of a request, as the fleet keeps it."""

    function: str
    owner: str = ""
    answer: Sent | None = None
    error: Mapping[str, Any] | None = None

    def get(self, request_id: str) -> Answer:
        """The answer.

        Raises:
            MayflyError: there is none.
        """
        if (problem := error_of(self.error)) is not None:
            raise problem
        if self.answer is None:
            raise MayflyError("the request has no answer")
        sent = self.answer
        known = {name: sent.times.get(name, 0) for name in Times.__struct_fields__}  # of another version there may be more
        return Answer(
            request_id=request_id,
            function=self.function,
            status=sent.status,
            content_type=sent.content_type,
            payload=sent.payload,
            start=sent.start,
            times=convert(Times, {**known, "guest_us": int(known["guest_us"])}),
            log=sent.log,
        )


def sent(answer: Answer) -> Sent:
    """An answer as it goes."""
    return Sent(
        status=answer.status,
        content_type=answer.content_type,
        payload=answer.payload,
        start=answer.start,
        times=msgspec.to_builtins(answer.times),
        log=answer.log,
    )


def failed(function: str, owner: str, error: MayflyError) -> Result:
    """A result that is an error."""
    return Result(function=function, owner=owner, error=wire(error))


class CodeAsk(msgspec.Struct, kw_only=True):
    """What is the function with that key?"""

    key: str


class Question(msgspec.Struct, kw_only=True):
    """What has the function with that local name done, or printed: `last` lines; 0: figures."""

    local: str
    last: int = 0


class Change(msgspec.Struct, kw_only=True):
    """A function to be created: what its author says, as JSON, and its files, of which an only one
    may have no name; or the name of one to be removed; neither: nothing changes.
    """

    spec: bytes = b""
    code: Mapping[str, bytes] = {}
    remove: str = ""


def dump(functions: Sequence[FleetFunction]) -> bytes:
    """The functions as they are kept."""
    return msgspec.msgpack.encode(list(functions))


def load(data: bytes) -> list[FleetFunction]:
    """The functions as they were kept."""
    return decode(data, type=list[FleetFunction])
