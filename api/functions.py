"""The routes of functions: a request's body is a function's payload, and its answer the body that
comes back, each of any type.
"""

import re
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from mayfly.api.access import caller_of, is_operator, owner_of
from mayfly.api.answers import answer
from mayfly.api.intake import BODIES, SERVICE, audit
from mayfly.api.openapi import Route
from mayfly.api.requests import parse_query
from mayfly.errors import MayflyError, MediaTypeError, QueueFullError, ResourceExhaustedError, UnknownFunctionError
from mayfly.functions.answer import Answer, FunctionFigures, Invocation, LogLine
from mayfly.functions.lines import MAX_PAYLOAD
from mayfly.functions.runner import FunctionRunner
from mayfly.functions.store import Function
from mayfly.schema import Record

FUNCTIONS: web.AppKey[FunctionRunner] = web.AppKey("functions", FunctionRunner)
INVOCATION: web.RequestKey[str] = web.RequestKey("invocation", str)
"""The id of the request to a function that the HTTP request makes or asks for."""
_SANE_TYPE = re.compile(r"[ -~]{1,255}")
"""What may stand in the header Content-Type."""
NO_TYPES = ("", "application/x-www-form-urlencoded")
"""No type, and what `curl --data-binary` says by default."""
UNKNOWN_TYPE = "application/octet-stream"
GUARDS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
"""A function's page has neither our origin nor our scripts' rights."""
DROPPED = (QueueFullError.code, ResourceExhaustedError.code)
MAX_LINES = 1000
POLL_S = 1


class InvokeQuery(Record, frozen=True, kw_only=True):
    """What can stand in the address of a request to a function."""

    later: Annotated[
        Literal["", "true", "false"],
        Meta(description="answer with the request's id at once; `?async` is enough", extra={"allowed": "true or false"}),
    ] = msgspec.field(default="false", name="async")


class RequestQuery(Record, frozen=True, kw_only=True):
    """What can stand in the address of an asynchronous request."""

    wait: Annotated[bool, Meta(description="answer when the request is over")] = False


class LogsQuery(Record, frozen=True, kw_only=True):
    """What can stand in the address of a function's log."""

    last: Annotated[int, Meta(ge=1, le=MAX_LINES, description="so many lines, the latest ones")] = 100


class FunctionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A function, and what it has done since the server began."""

    name: str
    language: str
    memory: Annotated[int, Meta(description="bytes of a guest; 0: what its image needs")]
    vcpus: int
    concurrency_limit: Annotated[int, Meta(description="guests at a time")]
    timeout_s: float
    keep_alive_s: Annotated[float, Meta(description="how long a guest that is not asked stays")]
    min_guests: int
    checkpoint_every_s: Annotated[float, Meta(description="how often a guest that answers is saved; 0: never")]
    queue: Annotated[int, Meta(description="requests that may wait")]
    queue_s: Annotated[float, Meta(description="how long they may")]
    network: bool
    created: str
    code_digest: str
    figures: FunctionFigures

    @classmethod
    def of(cls, function: Function, figures: FunctionFigures) -> "FunctionInfo":
        """The function as clients see it."""
        spec = function.spec
        shown = {name: getattr(spec, name) for name in cls.__struct_fields__ if name in spec.__struct_fields__}
        return cls(**shown, created=function.created, code_digest=function.code_digest, figures=figures)


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What all functions have done since the server began. `memory` is the budget of all machines
    in bytes; `dropped` are requests that were refused for lack of room.
    """

    memory: int
    guests_created: int
    guests_evicted: int
    completed: int
    dropped: int

    @classmethod
    def of(cls, figures: Sequence[FunctionFigures], memory: int) -> "Totals":
        """The sums."""
        return cls(
            memory=memory,
            guests_created=sum(one.created for one in figures),
            guests_evicted=sum(one.evicted for one in figures),
            completed=sum(one.ok + one.exceptions for one in figures),
            dropped=sum(count for one in figures for code, count in one.failures.items() if code in DROPPED),
        )


class FunctionList(msgspec.Struct, frozen=True, kw_only=True):
    """What can be invoked."""

    functions: Sequence[FunctionInfo]
    statistics: Totals


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A request whose answer comes later."""

    id: str
    function: str
    status: Literal["pending"] = "pending"


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """What a function printed, the latest last."""

    lines: Sequence[LogLine]


async def list_functions(request: web.Request) -> web.Response:
    """List the functions, with what they have done."""
    functions, memory = request.app[FUNCTIONS], request.app[SERVICE].health().memory_budget
    every = [(function, await functions.figures(function.name)) for function in functions.all()]
    shown = [FunctionInfo.of(function, figures) for function, figures in every if _is_visible(request, function)]
    return answer(FunctionList(functions=shown, statistics=Totals.of([figures for _, figures in every], memory)))


async def get_function(request: web.Request) -> web.Response:
    """Say what a function is, and what it has done."""
    function = _find(request)
    return answer(FunctionInfo.of(function, await request.app[FUNCTIONS].figures(function.name)))


async def get_logs(request: web.Request) -> web.Response:
    """Give the latest lines that a function printed, for whomever it worked."""
    query = parse_query(LogsQuery, request.query)
    return answer(Log(lines=await request.app[FUNCTIONS].logs(_find(request).name, query.last)))


async def invoke(request: web.Request) -> web.Response:
    """Have a function answer the body: its answer comes back with its own type, an exception of its
    own as 500.
    """
    received = time.time()
    functions = request.app[FUNCTIONS]
    query = parse_query(InvokeQuery, request.query)
    function = _find(request)
    kind = _type(request)
    payload = await request.app[BODIES].read(request, MAX_PAYLOAD)
    request[INVOCATION] = request_id = secrets.token_hex(16)
    asked = Invocation(
        function=function.name,
        payload=payload,
        content_type=kind,
        tenant=caller_of(request).tenant,
        received=received,
        request_id=request_id,
    )
    status = "pending"
    try:
        if query.later != "false":
            await functions.submit(asked)
            place = f"/functions/{function.name}/requests/{request_id}"
            return answer(Accepted(id=request_id, function=function.name), 202, {"Location": place})
        found = await functions.invoke(asked)
        status = found.status
        return respond(found)
    except MayflyError as error:
        status = error.code
        raise
    finally:
        audit(request, "invoke", function=function.name, id=request_id, status=status)


async def get_answer(request: web.Request) -> web.Response:
    """Give the answer to an asynchronous request as `POST` would have; 202 while there is none."""
    query = parse_query(RequestQuery, request.query)
    functions, function = request.app[FUNCTIONS], _find(request)
    request[INVOCATION] = request_id = request.match_info["id"][:64]
    owner = None if is_operator(request) else owner_of(request)
    found = await functions.result(request_id, function=function.name, owner=owner)
    if found is None and query.wait:
        await functions.settled(request_id)
        found = await functions.result(request_id, function=function.name, owner=owner)
    if found is None:
        return answer(Accepted(id=request_id, function=function.name), 202, {"Retry-After": str(POLL_S)})
    return respond(found)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the id of the request to a function, also to an error's answer."""
    if request_id := request.get(INVOCATION):
        response.headers["X-Mayfly-Request-Id"] = request_id


def respond(found: Answer) -> web.Response:
    """A function's answer. Its type is the guest's word, which may be anything."""
    kind = found.content_type if _SANE_TYPE.fullmatch(found.content_type) else UNKNOWN_TYPE
    times = found.times
    headers: dict[str, str] = {
        **GUARDS,
        "Content-Type": kind,
        "X-Mayfly-Start": str(found.start),
        "X-Mayfly-Duration": f"{times.guest_us / 1e6:.6f}",
        "X-Mayfly-Queued": f"{max(0.0, times.started_s - times.queued_s):.6f}",
    }
    if found.status == "exception":
        headers["X-Mayfly-Function-Error"] = "exception"
    return web.Response(body=found.payload, status=200 if found.status == "ok" else 500, headers=headers)


def _find(request: web.Request) -> Function:
    """The function in the address, if whoever sent the request may invoke it.

    Raises:
        UnknownFunctionError: there is none, or it is another key's.
    """
    name = request.match_info["name"]
    function = request.app[FUNCTIONS].find(name)
    if not _is_visible(request, function):
        raise UnknownFunctionError(f"no function {name[:64]!r}", hint="GET /functions lists them")
    return function


def _is_visible(request: web.Request, function: Function) -> bool:
    """Whether whoever sent the request may invoke the function: those of the operator are for
    everybody.
    """
    return is_operator(request) or function.owner in ("", owner_of(request))


def _type(request: web.Request) -> str:
    kind = request.headers.get("Content-Type", "")
    if request.content_type in NO_TYPES or kind == "":
        return ""
    if not _SANE_TYPE.fullmatch(kind):
        raise MediaTypeError("the header Content-Type is no type", hint="give at most 255 printable ASCII characters")
    return kind


_PATH = "/functions/{name}"
ROUTES: tuple[Route, ...] = (
    Route("GET", "/functions", list_functions, FunctionList, (200,)),
    Route("GET", _PATH, get_function, FunctionInfo, (200, 404)),
    Route("GET", f"{_PATH}/logs", get_logs, Log, (200, 404, 422), query=LogsQuery, operator=True),
    Route(
        "POST",
        _PATH,
        invoke,
        Accepted,
        (200, 202, 400, 404, 413, 415, 422, 429, 500, 502, 503, 504),
        query=InvokeQuery,
        passes=True,
    ),
    Route(
        "GET",
        f"{_PATH}/requests/{{id}}",
        get_answer,
        Accepted,
        (200, 202, 404, 422, 429, 500, 502, 503, 504),
        query=RequestQuery,
        passes=True,
    ),
)
