"""A run's events over HTTP, from any of them on: server-sent events (WHATWG HTML, 9.2), or JSON
lines.
"""

import asyncio
import enum
import re
from collections.abc import Sequence
from typing import Annotated, Any

from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from mayfly.api.requests import Query
from mayfly.errors import BusyError, UnprocessableError
from mayfly.runs import render
from mayfly.runs.record import START, Position, Reader, Record, RunEvent
from mayfly.runs.result import DoneEvent, describe
from mayfly.runs.run import Run
from mayfly.schema import Record as Schema
from mayfly.schema import replace, show

HEARTBEAT_S = 15.0
"""A comment is sent after so long without an event, for proxies (WHATWG HTML, 9.2.7)."""
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


class RunQuery(Query, frozen=True, kw_only=True):
    """What can stand in the address of a run that is waited for."""

    stream: Annotated[Format, Meta(description="give the events as they come; the last one has the result")] | UnsetType = UNSET


async def get_events(request: web.Request, run: Run, query: EventsQuery) -> web.StreamResponse:
    """Send a run's events behind the one that the client names; 204, which ends an EventSource, if
    there will be none.

    Raises:
        UnprocessableError: the run had no such event.
        BusyError: the run has MAX_READERS readers.
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
        BusyError: the run has MAX_READERS readers.
    """
    if len(run.readers) >= MAX_READERS:
        raise BusyError(f"the run has {MAX_READERS} readers", hint="let fewer clients read it at a time")
    headers = {"Content-Type": kind, "Content-Location": f"/runs/{run.id}/events", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    answer = web.StreamResponse(headers={**headers, "Vary": "Accept"})
    transport = request.transport
    try:
        async with asyncio.timeout(None) as limit:
            run.readers.add(limit)
            try:
                await _copy(request, answer, make_renderer(run, kind, after, result=result), HEARTBEAT_S if kind == SSE else None)
            finally:
                run.readers.discard(limit)
    except OSError:  # the client is gone, or did not read what was no longer kept
        if transport is not None:
            transport.abort()
    return answer


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
        value = describe(event)
        if result and isinstance(value, DoneEvent):
            value = replace(value, result=run.result())
        name = f"{position.span}-{position.offset}"
        if kind == SSE:
            return b"id: %b\ndata: %b\n\n" % (name.encode(), render.dump(value))
        return render.dump(replace(value, id=name)) + b"\n"

    return render.Renderer(Reader(run.record, text=True, after=after, size=OUTPUT), write, PIECE)


def find_position(name: str, record: Record) -> Position:
    """The position that an event's id names, or START if there is none.

    Raises:
        UnprocessableError: the run had no such event.
    """
    if not name:
        return START
    found = re.fullmatch(r"([0-9]{1,15})-([0-9]{1,15})", name)
    position = Position(int(found[1]), int(found[2])) if found else START
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
