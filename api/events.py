"""A run's events over HTTP, from any of them on: server-sent events (WHATWG HTML, 9.2), or JSON
lines; or over a WebSocket (RFC 6455), which takes what is sent to the run as well.
"""

import asyncio
import contextlib
import enum
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import aiohttp
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from mayfly.api.access import caller_of
from mayfly.api.requests import Query, Signalling, parse_fields, parse_object
from mayfly.errors import BusyError, RequestError, UnprocessableError, to_wire
from mayfly.host.snippet import Terminal
from mayfly.runs import render
from mayfly.runs.record import START, Position, Reader, Record, Restored, RunEvent
from mayfly.runs.result import AnyEvent, DoneEvent, describe, id_of
from mayfly.runs.run import Run
from mayfly.runs.runner import Runner
from mayfly.runs.stdin import StdinWriter
from mayfly.schema import Record as Schema
from mayfly.schema import msgspec, replace, show

log = logging.getLogger(__name__)
HEARTBEAT_S = 15.0
"""A comment is sent after so long without an event, for proxies (WHATWG HTML, 9.2.7). Over a
WebSocket a ping is sent as often.
"""
PATIENCE_S = 30.0
"""A client of a WebSocket that does not answer a ping for so long is closed."""
MAX_MESSAGE = 64 * 1024
"""Bytes of a message over a WebSocket; a larger one closes it."""
PROTOCOL = "mayfly"
"""The protocol that a page names beside the one that carries its API key."""
CLOSE_S = 5.0
"""For the client's answer to the end of a WebSocket."""
MAX_READERS = 256
"""Readers of one run's events at a time."""
PIECE = 16 * 1024
"""Bytes that are rendered at a time, and that wait for a slow reader before the next ones are."""
OUTPUT = 4 * 1024
"""Bytes of output in an event, at most: JSON may need six times as many."""


SSE = "text/event-stream"
JSONL = "application/jsonl"
TYPES = (SSE, JSONL, "application/x-ndjson")
"""The media types that events can have; the first one where a client has no wish."""


class Format(enum.StrEnum):
    """How events are written."""

    SSE = "sse"
    JSONL = "jsonl"


KINDS = {Format.SSE: SSE, Format.JSONL: JSONL}


class EventsQuery(Schema, frozen=True, kw_only=True):
    """What can stand in the address of a run's events."""

    format: Annotated[Format, Meta(description="in place of the header Accept")] | UnsetType = UNSET
    after: Annotated[str, Meta(description="the event to begin behind; the header Last-Event-ID precedes")] = ""


class AttachQuery(Schema, frozen=True, kw_only=True):
    """What can stand in the address of a run that is attached to."""

    after: Annotated[str, Meta(description="the event to begin behind")] = ""


class RunQuery(Query, frozen=True, kw_only=True):
    """What can stand in the address of a run that is waited for."""

    stream: Annotated[Format, Meta(description="give the events as they come; the last one has the result")] | UnsetType = UNSET


async def get_events(request: web.Request, run: Run, query: EventsQuery) -> web.StreamResponse:
    """Send a run's events behind the one that the client names; 204, which ends an EventSource, if
    there will be none.

    Raises:
        UnprocessableError: the run had no such event.
        BusyError: the run has MAX_READERS readers, or the key as many as it may have.
    """
    after = find_position(request.headers.get("Last-Event-ID") or query.after, run.record)
    if run.record.ends_at(after):
        return web.Response(status=204)
    kind = choose_type(request.headers.getall("Accept", ())) if query.format is UNSET else KINDS[query.format]
    return await send(request, run, kind, after)


async def send(request: web.Request, run: Run, kind: str, after: Position = START, *, result: bool = False) -> web.StreamResponse:
    """Send events as the media type `kind` until the run is over, or the client gone; the last one
    has the run's result if `result`.

    Raises:
        BusyError: the run has MAX_READERS readers, or the key as many as it may have.
    """
    headers = {"Content-Type": kind, "Content-Location": f"/runs/{run.id}/events", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    answer = web.StreamResponse(headers={**headers, "Vary": "Accept"})
    transport = request.transport
    try:
        async with _reading(request, run):
            await _copy(request, answer, make_renderer(run, kind, after, result=result), HEARTBEAT_S if kind == SSE else None)
    except OSError:  # the client is gone, or did not read what was no longer kept
        if transport is not None:
            transport.abort()
    return answer


@contextlib.asynccontextmanager
async def _reading(request: web.Request, run: Run) -> AsyncIterator[None]:
    """Be one of the run's readers; TimeoutError when the run is no longer kept."""
    if len(run.readers) >= MAX_READERS:
        raise BusyError(f"the run has {MAX_READERS} readers", hint="let fewer clients read it at a time")
    tenant = caller_of(request).tenant
    with tenant.read() if tenant else contextlib.nullcontext():
        async with asyncio.timeout(None) as limit:
            run.readers.add(limit)
            try:
                yield
            finally:
                run.readers.discard(limit)


async def _copy(request: web.Request, answer: web.StreamResponse, renderer: render.Renderer, beat_s: float | None) -> None:
    await answer.prepare(request)
    if request.method == "HEAD":
        return
    if request.transport is not None:
        request.transport.set_write_buffer_limits(PIECE)
    more = True
    while more:
        while (piece := renderer.take()) is not None:
            await answer.write(piece)
            await request.writer.drain()
            await asyncio.sleep(0)  # a reader that keeps up must not starve all others
        try:
            async with asyncio.timeout(beat_s):
                more = await renderer.wait()
        except TimeoutError:
            await answer.write(b":\n\n")


def make_renderer(run: Run, kind: str, after: Position, *, result: bool = False) -> render.Renderer:
    """What renders the events behind `after` as the media type `kind`."""

    def write(event: RunEvent, position: Position) -> bytes:
        value, id_ = _value(run, event, result=result), id_of(position, len(run.record.lives))
        if kind == SSE:
            return b"id: %b\ndata: %b\n\n" % (id_.encode(), render.dump(value))
        return render.dump(replace(value, id=id_)) + b"\n"

    return render.Renderer(Reader(run.record, text=True, after=after, size=OUTPUT), write, PIECE)


def _value(run: Run, event: RunEvent, *, result: bool) -> AnyEvent:
    """An event as clients get it; the last one has the run's result if `result`."""
    value = describe(event)
    if isinstance(event, Restored):
        return replace(value, after=id_of(event.mark.position, len(run.record.lives)))
    return replace(value, result=run.result()) if result and isinstance(value, DoneEvent) else value


def find_position(name: str, record: Record) -> Position:
    """The position that an event's id names, or START if there is none. One of a record that was
    lost is behind what is left of that.

    Raises:
        UnprocessableError: the run had no such event.
    """
    if not name:
        return START
    found = re.fullmatch(r"([0-9]{1,15})-([0-9]{1,15})(?:\.([0-9]{1,3}))?", name)
    position = Position(int(found[1]), int(found[2])) if found else START
    if found and int(found[3] or 0) < len(record.lives):
        position = min(position, record.lives[int(found[3] or 0)])
    if not found or not record.has(position):
        raise UnprocessableError(f"the run had no event {show(name)}", hint="give the id of an event that was read, or none to have all")
    return position


def choose_type(accept: Sequence[str]) -> str:
    """The type that a client prefers (RFC 9110, 12.5.1). One that takes none of ours gets the first
    one nevertheless, as 12.4.1 allows.
    """
    weights: dict[str, float] = {}
    for item in ",".join(accept).lower().split(","):
        kind, _, parameters = item.partition(";")
        weight = re.search(r"(?:^|;)\s*q=([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", parameters)
        weights[kind.strip()] = float(weight[1]) if weight else 1.0

    def weigh(kind: str) -> Any:
        ranges = (kind, kind.partition("/")[0] + "/*", "*/*")
        return next((weights[found] for found in ranges if found in weights), 0.0)

    return max(TYPES, key=weigh)


class Typing(Schema, frozen=True, kw_only=True):
    """A client's message: text for standard input."""

    data: str


class Eof(Schema, frozen=True, kw_only=True):
    """A client's message: the end of standard input."""


Said: TypeAlias = Typing | Eof | Signalling | Terminal
MESSAGES: Mapping[str, type[Said]] = {"stdin": Typing, "eof": Eof, "signal": Signalling, "resize": Terminal}
"""What a client may send over a WebSocket, by the field `type`."""


async def attach(request: web.Request, run: Run, service: Runner, query: AttachQuery) -> web.StreamResponse:
    """Send a run's events over a WebSocket, and give the run what the client sends.

    Raises:
        RequestError: the request is none of a WebSocket.
        UnprocessableError, BusyError: as `get_events`.
    """
    after = find_position(query.after, run.record)
    offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    protocols = [PROTOCOL, *(name for name in offered if name.startswith("bearer."))]  # else aiohttp logs them, with the key
    answer = web.WebSocketResponse(
        timeout=CLOSE_S, autoping=False, compress=False, max_msg_size=MAX_MESSAGE, writer_limit=PIECE, protocols=protocols
    )
    if not answer.can_prepare(request):
        raise RequestError("a WebSocket is attached here", hint="use a client of WebSockets, or read the run's events")
    transport = request.transport
    try:
        async with _reading(request, run):
            await answer.prepare(request)
            if transport is not None:
                transport.set_write_buffer_limits(PIECE)
            await _Attached(answer, run, service).serve(after)
    except OSError:  # as in `send`
        if transport is not None:
            transport.abort()
    except Exception:  # nothing but a WebSocket's frames may be sent now
        if not answer.prepared:
            raise
        log.exception("%s %s", request.method, request.path)
        await answer.close(code=aiohttp.WSCloseCode.INTERNAL_ERROR)
    return answer


class _Attached:
    """A client that is attached to a run."""

    def __init__(self, socket: web.WebSocketResponse, run: Run, service: Runner) -> None:
        self._socket = socket
        self._run = run
        self._service = service
        self._writing = contextlib.ExitStack()
        self._writer: StdinWriter | None = None

    async def serve(self, after: Position) -> None:
        """Talk until the run is over, or the client gone. OSError if it went without a word."""
        telling = asyncio.create_task(self._tell(after))
        tasks = [telling, asyncio.create_task(self._beat()), asyncio.create_task(self._listen())]
        try:
            with self._writing:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end
        await self._socket.close()

    async def _tell(self, after: Position) -> None:
        """Send the events to the last one."""
        reader = Reader(self._run.record, text=True, after=after, size=OUTPUT)
        more = True
        while more:
            while (event := reader.take()) is not None:
                value = _value(self._run, event, result=True)
                await self._send(render.dump(replace(value, id=id_of(reader.position, len(self._run.record.lives)))))
                await asyncio.sleep(0)  # a reader that keeps up must not starve all others
            more = await reader.wait()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._socket.ping()

    async def _listen(self) -> None:
        """Do what the client says, until it closes."""
        while True:
            message = await self._socket.receive(PATIENCE_S)
            match message.type:
                case aiohttp.WSMsgType.PING:
                    await self._socket.pong(message.data)
                case aiohttp.WSMsgType.PONG:
                    pass
                case aiohttp.WSMsgType.TEXT | aiohttp.WSMsgType.BINARY:
                    await self._obey(message.data)
                case _:
                    return
            await asyncio.sleep(0)  # as above

    async def _obey(self, said: str | bytes) -> None:
        try:
            message = parse_message(said) if isinstance(said, str) else said
        except RequestError as error:
            await self._refuse(error)
            await self._socket.close(code=aiohttp.WSCloseCode.POLICY_VIOLATION, message=b"no message that is taken")
            return
        try:
            match message:
                case bytes():
                    await self._stdin().write(message)
                case Typing():
                    await self._stdin().write(message.data.encode())
                case Eof():
                    self._stdin().end()
                case Signalling():
                    await self._service.signal(self._run, message.number())
                case Terminal():
                    await self._service.resize(self._run, message)
        except RequestError as error:
            await self._refuse(error)

    def _stdin(self) -> StdinWriter:
        if self._writer is None:
            self._writer = self._writing.enter_context(StdinWriter(self._run.stdin))
        return self._writer

    async def _refuse(self, error: RequestError) -> None:
        await self._send(msgspec.json.encode({"type": "error", **to_wire(error)}))

    async def _send(self, text: bytes) -> None:
        await self._socket.send_str(text.decode())


def parse_message(text: str) -> Said:
    """What a client says over a WebSocket.

    Raises:
        RequestError: it cannot be understood.
    """
    fields = parse_object(dict[str, Any], text.encode())
    name = fields.pop("type", None)
    if not isinstance(name, str) or name not in MESSAGES:
        raise UnprocessableError(f"type is {show(name)}; it must be {' or '.join(MESSAGES)}")
    return parse_fields(MESSAGES[name], fields)
