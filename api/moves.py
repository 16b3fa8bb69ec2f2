"""Moves over HTTP: a server takes runs over a WebSocket (RFC 6455), whose messages are those of
mayfly/runs/moves/messages.py; an operator has runs moved, and reads how that goes as JSON lines.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Literal

import aiohttp
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType

from mayfly.api.access import caller_of
from mayfly.api.events import JSONL
from mayfly.api.intake import BODIES, audit, find_run, note
from mayfly.api.openapi import Route
from mayfly.api.requests import parse_object
from mayfly.errors import ForbiddenError, MayflyError, RequestError, ServerLostError, UnprocessableError
from mayfly.runs.moves.desk import Moves, Went, follow
from mayfly.runs.moves.link import Connect, ImageSent, Round, Times
from mayfly.runs.moves.messages import MAX_MESSAGE, Message, decode, encode
from mayfly.runs.moves.outgoing import Moved
from mayfly.runs.result import Problem
from mayfly.schema import Record, msgspec

MOVES: web.AppKey[Moves] = web.AppKey("moves", Moves)
CLOSE_S = 2.0


class MoveBody(Record, frozen=True, kw_only=True):
    """Where a run is to go on: another server's address, and the API key for it, which was made
    there with `--moves`.
    """

    to: Annotated[str, Meta(description="`https://host:port`, `http://host:port`, or the path of a Unix socket", min_length=1)]
    key: str = ""
    limit_bytes_s: Annotated[int, Meta(ge=0, description="bytes that may be sent a second; 0: no limit")] = 0
    certificates: Annotated[str, Meta(description="a file with the certificates to trust, of this host")] = ""


class MoveLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a move, or of a drain. The last one of a move is `moved` or `stayed`, of a drain
    `drained`.

    `image`: so many `bytes` of the `size` of the image have been sent, which that server lacks.
    `round`: so many `bytes` of a run's memory have been sent while it ran. `moved`: its machine
    stood still for `pause_s` seconds; `bytes` are of all of the machine. `stayed`: it could not be
    moved; the error says where it goes on, if not here. `drained`: how many runs moved and stayed.
    """

    event: Literal["image", "round", "moved", "stayed", "drained"]
    run: str | UnsetType = UNSET
    number: int | UnsetType = UNSET
    bytes: int | UnsetType = UNSET
    size: int | UnsetType = UNSET
    to: str | UnsetType = UNSET
    total_s: float | UnsetType = UNSET
    pause_s: float | UnsetType = UNSET
    rounds: int | UnsetType = UNSET
    error: Problem | UnsetType = UNSET
    moved: int | UnsetType = UNSET
    stayed: int | UnsetType = UNSET


class SocketLink:
    """A move's connection over a WebSocket, of either end; `session` is closed with it."""

    def __init__(
        self, socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse, session: aiohttp.ClientSession | None = None
    ) -> None:
        self._socket = socket
        self._session = session

    async def send(self, message: Message) -> None:
        """As Link."""
        try:
            await self._socket.send_bytes(encode(message))
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise ServerLostError("the connection to the other server is lost") from error

    async def receive(self) -> Message:
        """As Link."""
        try:
            message = await self._socket.receive()
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise ServerLostError("the connection to the other server is lost") from error
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise ServerLostError("the other server closed the connection")
        return decode(message.data)

    async def close(self) -> None:
        """As Link."""
        try:
            await self._socket.close()
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise ServerLostError("the connection to the other server is lost") from error
        finally:
            if self._session is not None:
                await self._session.close()


def connect_to(body: MoveBody, times: Times) -> Connect:
    """What connects to the server that is named.

    Raises:
        UnprocessableError: the address is none, or the certificates cannot be read.
    """
    address = body.to.removeprefix("unix:")
    is_http = address.startswith(("http://", "https://"))
    if not is_http and "://" in address:
        raise UnprocessableError(
            f"to is {address[:200]!r}; it is no server's address", hint="give http://host:port, https://host:port, or a socket's path"
        )
    trusted: ssl.SSLContext | bool = True
    if body.certificates:
        try:
            trusted = ssl.create_default_context(cafile=body.certificates)
        except OSError as error:
            raise UnprocessableError(f"certificates: {Path(body.certificates)}: {error.strerror or error}") from error
    url = f"{address.rstrip('/')}/moves" if is_http else "http://mayfly/moves"
    headers = {"Authorization": f"Bearer {body.key}"} if body.key else {}

    async def connect() -> SocketLink:
        connector = aiohttp.TCPConnector(ssl=trusted) if is_http else aiohttp.UnixConnector(path=address)
        session = aiohttp.ClientSession(connector=connector, headers=headers)
        try:
            timeout = aiohttp.ClientWSTimeout(ws_close=CLOSE_S)
            async with asyncio.timeout(times.connect_s):
                socket = await session.ws_connect(url, timeout=timeout, heartbeat=times.silent_s, max_msg_size=MAX_MESSAGE, compress=0)
        except BaseException as error:
            await session.close()
            if isinstance(error, aiohttp.WSServerHandshakeError):
                hint = (
                    "give a key that was made there: mayfly key create NAME --moves"
                    if error.status in (401, 403)
                    else "is it a Mayfly server of this version?"
                )
                raise ServerLostError(f"{body.to} refuses runs: {error.status} {error.message}", hint=hint) from error
            if isinstance(error, OSError | aiohttp.ClientError):  # TimeoutError is an OSError
                raise ServerLostError(
                    f"{body.to} cannot be reached: {error}", hint="see that the server runs, and that its address is right"
                ) from error
            raise
        return SocketLink(socket, session)

    return connect


async def take_run(request: web.Request) -> web.StreamResponse:
    """Take a run from another server, over a WebSocket; for keys made with `--moves`."""
    tenant = caller_of(request).tenant
    if tenant is not None and not tenant.moves:
        raise ForbiddenError("this API key is not for moving runs", hint="make one that is: mayfly key create NAME --moves")
    moves = _moves(request)
    socket = web.WebSocketResponse(timeout=CLOSE_S, heartbeat=moves.times.silent_s, compress=False, max_msg_size=MAX_MESSAGE)
    if not socket.can_prepare(request):
        raise RequestError("runs are taken over a WebSocket", hint="use mayfly move, of the server that has the run")
    await socket.prepare(request)
    audit(request, "take_run")
    try:
        await moves.serve(SocketLink(socket))
    except MayflyError as error:
        audit(request, "run_not_taken", code=error.code, message=error.message)
    return socket


async def move_run(request: web.Request) -> web.StreamResponse:
    """Move a run to another server, where it goes on; it stays if the client goes away in time."""
    body = parse_object(MoveBody, await request.app[BODIES].read(request))
    run = await find_run(request, request.match_info["id"])
    events: asyncio.Queue[MoveLine | None] = asyncio.Queue()

    def tell(one: Round | ImageSent) -> None:
        if isinstance(one, ImageSent):
            events.put_nowait(MoveLine(event="image", run=run.id, bytes=one.bytes, size=one.size))
        else:
            events.put_nowait(MoveLine(event="round", run=run.id, number=one.number, bytes=one.bytes))

    moves = _moves(request)
    going = moves.begin(run, connect_to(body, moves.times), to=body.to, limit_bytes_s=body.limit_bytes_s, tell=tell)
    note(request, "move", run.id, to=body.to)
    moving = asyncio.create_task(follow(going))
    moving.add_done_callback(lambda _: events.put_nowait(None))
    try:
        first = await events.get()
        if first is None:
            return await _send(request, _lines([_moved(run.id, await moving)]))  # what it raises is the answer

        async def lines() -> AsyncIterator[MoveLine]:
            event: MoveLine | None = first
            while event is not None:
                yield event
                event = await events.get()
            try:
                yield _moved(run.id, await moving)
            except MayflyError as error:
                yield _stayed(run.id, error)

        return await _send(request, lines())
    finally:
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)


async def drain(request: web.Request) -> web.StreamResponse:
    """Take no more runs, and move those under way to another server; those that cannot be stay."""
    body = parse_object(MoveBody, await request.app[BODIES].read(request))
    moves = _moves(request)
    connect = connect_to(body, moves.times)
    link = await connect()  # what is wrong with the address shows before anything happens
    await link.close()
    audit(request, "drain", to=body.to)

    async def lines() -> AsyncIterator[MoveLine]:
        counts = {True: 0, False: 0}
        async with aclosing(moves.drain(connect, to=body.to, limit_bytes_s=body.limit_bytes_s)) as found:
            async for one in found:
                counts[isinstance(one, Went)] += 1
                yield _moved(one.run, one.moved) if isinstance(one, Went) else _stayed(one.run, one.error)
        yield MoveLine(event="drained", moved=counts[True], stayed=counts[False])

    return await _send(request, lines())


def _moves(request: web.Request) -> Moves:
    """The moves of this server's runs."""
    if MOVES not in request.app:
        raise UnprocessableError("this server has no machines of its own", hint="ask the host that has the run")
    return request.app[MOVES]


def _moved(run: str, moved: Moved) -> MoveLine:
    return MoveLine(event="moved", run=run, **msgspec.structs.asdict(moved))


def _stayed(run: str, error: MayflyError) -> MoveLine:
    return MoveLine(event="stayed", run=run, error=Problem.of(error))


async def _lines(events: list[MoveLine]) -> AsyncIterator[MoveLine]:
    for event in events:
        yield event


async def _send(request: web.Request, events: AsyncIterator[MoveLine]) -> web.StreamResponse:
    """Send events as lines of JSON, as they come."""
    answer = web.StreamResponse(headers={"Content-Type": JSONL, "Cache-Control": "no-store"})
    await answer.prepare(request)
    async for event in events:
        await answer.write(msgspec.json.encode(event) + b"\n")
    return answer


ROUTES: tuple[Route, ...] = (
    Route("GET", "/moves", take_run, None, (101, 400, 403)),
    Route(
        "POST",
        "/runs/{id}/move",
        move_run,
        MoveLine,
        (200, 400, 404, 409, 410, 413, 422, 429, 502, 503),
        body=MoveBody,
        lines=True,
        operator=True,
    ),
    Route("POST", "/drain", drain, MoveLine, (200, 400, 413, 422, 429, 503), body=MoveBody, lines=True, operator=True),
)
