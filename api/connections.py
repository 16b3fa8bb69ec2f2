"""Connections of clients: what aiohttp leaves open, and what it wrongly takes for an end.

- A client that shuts its side down for writing after its request (`nc -N`, socat) still wants the
  answer; aiohttp takes that for a disconnect. A client that is gone ends its run. Over TCP the two
  look the same until something is sent: then the host of a client that is gone answers with a
  reset.
- A connection without a request is closed after IDLE_S: half a request would keep a descriptor
  for ever.
- A body takes at most as long as its size allows, and all bodies that are being received share one
  budget of memory: nobody has been admitted by then. Those of one API key have half of it.
"""

import asyncio
import collections
import resource
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from aiohttp import web

from mayfly.errors import BodyTooLargeError, BusyError, RequestError
from mayfly.units import MIB

IDLE_S = 15.0
"""Without a request, or between two requests."""
PROBE_S = 15.0
"""Between two things that are sent to a client over TCP only to find out whether it is there."""
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""An interim answer, which every client of HTTP/1.1 passes over (RFC 9110, 15.2)."""
TICK_S = 1.0
BODY_S = 10.0
"""For a body, besides its bytes."""
BODY_RATE = 256 * 1024
"""Bytes a second at which a body must come at least."""
ALL_BODIES = 512 * MIB
"""Bytes of bodies that are held before their runs are admitted."""

OWNER: web.RequestKey[str] = web.RequestKey("owner", str)
"""The tenant that sends a request, if it is one's."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_gone(sock: socket.socket) -> bool:
    """Whether the other end has closed both directions. A Unix socket shows that at once; over TCP
    that looks like a half-closed connection until a reset comes.
    """
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


class Connection(asyncio.Protocol):
    """Stands between a transport and aiohttp's protocol, which does all the work."""

    def __init__(self, http: web.RequestHandler, known: "Connections") -> None:
        self._http = http
        self._known = known
        self._transport: asyncio.Transport
        self._half_closed = False
        self._probed_at = 0.0
        self._idle_since = asyncio.get_running_loop().time()
        self._request: web.Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over a client's connection."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a stream's is one)
        self._transport = transport
        self._known.add(self._http, self)
        self._http.connection_made(transport)
        if self.is_remote and not self._known.has_room():
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass bytes on."""
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        """Keep the connection for the answer to a whole request, if the client is still there."""
        if self._gone() or (self._request is not None and not self._request.content.is_eof()):
            return None
        if self._transport.get_extra_info("sslcontext") is not None:
            return None  # TLS has no half-closed connections here
        self._half_closed = True
        self._probe()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Tell aiohttp, which cancels the request under way."""
        self._known.remove(self._http)
        self._http.connection_lost(error)

    def pause_writing(self) -> None:
        """Pass back-pressure on."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass its end on."""
        self._http.resume_writing()

    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle a request, and remember that one is under way."""
        self._request = request
        try:
            answer = await handler(request)
        finally:
            self._request = None
            self._idle_since = asyncio.get_running_loop().time()
        if self._half_closed:
            answer.force_close()
        return answer

    def check(self) -> None:
        """Close the connection if nobody is there, or nothing comes."""
        idle_s = asyncio.get_running_loop().time() - self._idle_since
        late = self._request is None and idle_s > (TICK_S if self._half_closed else IDLE_S)
        if late or (self._half_closed and self._gone()):
            self._transport.close()
        elif self._half_closed:
            self._probe()

    @property
    def is_remote(self) -> bool:
        """Whether it came over TCP."""
        sock: socket.socket = self._transport.get_extra_info("socket")
        return sock.family != socket.AF_UNIX

    def _probe(self) -> None:
        """Have a client over TCP that has half-closed, and is gone, be known as gone."""
        now = asyncio.get_running_loop().time()
        request = self._request
        if self.is_remote and request is not None and request.version >= aiohttp.HttpVersion11 and now - self._probed_at > PROBE_S:
            self._probed_at = now
            if request.writer.output_size == 0:  # else an interim answer would be in the midst of the final one
                self._transport.write(PROBE)

    def _gone(self) -> bool:
        sock: socket.socket = self._transport.get_extra_info("socket")
        return sock.fileno() < 0 or is_gone(sock)


class Connections:
    """All connections of a server, looked after once in TICK_S. Those over TCP leave half of this
    process's descriptors to others.
    """

    def __init__(self) -> None:
        self._open: dict[object, Connection] = {}
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2

    def __len__(self) -> int:
        """How many there are."""
        return len(self._open)

    def has_room(self) -> bool:
        """Whether one more over TCP may stay."""
        return len(self._open) <= self._most

    def add(self, http: object, connection: Connection) -> None:
        """Look after one more."""
        self._open[http] = connection

    def remove(self, http: object) -> None:
        """It is closed."""
        self._open.pop(http, None)

    async def watch(self) -> None:
        """Close those whose time is up, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            for connection in list(self._open.values()):
                connection.check()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The outermost one of the application."""
        connection = self._open.get(request.protocol)
        return await (connection.serve(request, handler) if connection else handler(request))


async def pieces(request: web.Request) -> AsyncIterator[bytes]:
    """The pieces of a request's body as they come. What is not taken holds up the client.

    Raises:
        RequestError: it is malformed.
    """
    try:
        async for piece in request.content.iter_any():
            yield piece
    except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, web.RequestPayloadError) as error:
        raise RequestError(f"the body could not be read: {type(error).__name__}") from error


class Bodies:
    """The bodies that are being received: of `most` bytes each, unless a route takes fewer, of
    `room` together, of half as many for each tenant.
    """

    def __init__(self, most: int, room: int = ALL_BODIES) -> None:
        self._most = most
        self._room = room
        self._share = room // 2
        self._by_owner: collections.Counter[str] = collections.Counter()

    async def read(self, request: web.Request, most: int | None = None) -> bytes:
        """The whole body of a request.

        Raises:
            BodyTooLargeError: it is larger than `most`, or than bodies may be.
            BusyError: there is no room for it now.
            RequestError: it does not come in time, or is malformed.
        """
        body = bytearray()
        held = 0
        most = self._most if most is None else most
        owner = request.get(OWNER, "")
        try:
            _check_size(declared := request.content_length or 0, most)
            held = self._hold(declared, owner)
            async with asyncio.timeout(BODY_S) as deadline:
                async for piece in pieces(request):
                    body += piece
                    _check_size(len(body), most)
                    held += self._hold(max(0, len(body) - held), owner)
                    deadline.reschedule((deadline.when() or 0) + len(piece) / BODY_RATE)
            return bytes(body)
        except TimeoutError as error:
            raise RequestError("the body did not come in time", hint=f"send at least {BODY_RATE} bytes a second") from error
        finally:
            self._room += held
            self._by_owner[owner] -= held

    def _hold(self, size: int, owner: str) -> int:
        if size > self._room or (owner and self._by_owner[owner] + size > self._share):
            raise BusyError("too many large requests are being received", hint="try again in a moment")
        self._room -= size
        self._by_owner[owner] += size
        return size


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise BodyTooLargeError(f"the body has {size} bytes or more; at most {most} are taken")
