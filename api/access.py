"""Who sends a request, and what they may: request ids, API keys, pages of other origins, the access
log.

Over the Unix socket comes the operator of this host, who may do everything. Over TCP comes a
client with an API key, who begins runs within the key's limits, and sees and ends no others. A
handler that is not in `open` is not reached without a key, one in `operators` not with one.
"""

import os
import re
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from aiohttp import hdrs, web

from mayfly.api.connections import OWNER, Handler
from mayfly.errors import ForbiddenError, UnauthorizedError
from mayfly.host.admission import Tenant
from mayfly.host.keys import Keyring
from mayfly.host.logs import JsonLog

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""What a request id may be that comes from a client, as it goes into logs."""
PATH = 200
"""Characters of a path in the log."""
AUTH_TOKEN = "X-Auth-Token"  # noqa: S105  # a header's name
REQUEST_ID = "X-Request-Id"
EXPOSED = (
    "Content-Location, Idempotency-Replayed, Location, Retry-After, X-Request-Id, "
    "X-Mayfly-Duration, X-Mayfly-Function-Error, X-Mayfly-Queued, X-Mayfly-Request-Id, X-Mayfly-Start"
)
ALLOWED = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Auth-Token, X-Auth-User, X-Request-Id"
PREFLIGHT_S = 600
GONE = 499
"""What the log has where a client went away before its answer; nginx's number for it."""


class Caller(NamedTuple):
    """Who sent a request; `tenant` is None for the operator."""

    name: str
    tenant: Tenant | None


OPERATOR = Caller(name="", tenant=None)
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
ID: web.RequestKey[str] = web.RequestKey("id", str)
REPLAYED: web.RequestKey[bool] = web.RequestKey("replayed", bool)
"""The answer is that of an earlier request with the same Idempotency-Key."""


def caller_of(request: web.Request) -> Caller:
    """Who sent the request."""
    return request[CALLER]


def is_operator(request: web.Request) -> bool:
    """Whether the operator of this host sent the request, who has its files and sockets at hand."""
    return caller_of(request).tenant is None


def owner_of(request: web.Request) -> str:
    """Whose the runs are that the request begins."""
    tenant = caller_of(request).tenant
    return tenant.name if tenant else ""


class Access:
    """The middlewares of one server. The first one that a request meets is `identify`, the last one
    `authenticate`.
    """

    def __init__(self, keyring: Keyring, origins: tuple[str, ...], log: JsonLog) -> None:
        self.open: set[Handler] = set()
        self.operators: set[Handler] = set()
        self._keyring = keyring
        self._origins = frozenset(origin.rstrip("/") for origin in origins)
        self._log = log

    @web.middleware
    async def identify(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give the request its id, answer preflights, and log the request."""
        given = request.headers.get(REQUEST_ID, "")
        request[ID] = given if _SANE_ID.fullmatch(given) else os.urandom(8).hex()
        begun = time.monotonic()
        status = GONE
        try:
            answer = self._preflight(request) or await handler(request)
            status = answer.status
            return answer
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            caller = request.get(CALLER)
            self._log.write(
                request=request[ID],
                peer=request.remote if not _is_local(request) else "unix",
                key=caller.name if caller else None,
                method=request.method,
                path=request.path[:PATH],
                status=status,
                ms=round((time.monotonic() - begun) * 1000, 1),
            )

    @web.middleware
    async def authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Find out who sent the request, and refuse what they may not."""
        if _is_local(request):
            request[CALLER] = OPERATOR
            return await handler(request)
        token = token_of(request)
        known = self._keyring.find(token) if token else None
        wanted = request.match_info.handler
        if known is not None:
            request[CALLER] = Caller(known.key.name, known.tenant)
            request[OWNER] = known.tenant.name
        elif wanted not in self.open:
            raise UnauthorizedError(
                "this API key is not known, or was revoked" if token else "no API key",
                hint="send the header Authorization: Bearer TOKEN; the operator makes tokens: mayfly key create NAME",
            )
        if wanted in self.operators:
            raise ForbiddenError(f"{request.method} {request.path[:PATH]} is not for API keys", hint="use the server's Unix socket")
        return await handler(request)

    async def on_prepare(self, request: web.Request, answer: web.StreamResponse) -> None:
        """Add the headers that all answers have, streams too."""
        answer.headers.setdefault(REQUEST_ID, request.get(ID, ""))
        if request.get(REPLAYED):
            answer.headers["Idempotency-Replayed"] = "true"
        if self._origins:
            answer.headers.add(hdrs.VARY, hdrs.ORIGIN)
            if allowed := self._allowed_origin(request):
                answer.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
                answer.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED

    def _allowed_origin(self, request: web.Request) -> str:
        """The origin of the page that sent the request, or *, if it may use the API."""
        origin = request.headers.get(hdrs.ORIGIN, "")
        if origin and "*" in self._origins:
            return "*"
        return origin if origin in self._origins else ""

    def _preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser's question whether a page may send a request (Fetch, CORS
        protocol), which comes without a key.
        """
        method = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD, "")
        if request.method != hdrs.METH_OPTIONS or not method or not self._allowed_origin(request):
            return None
        headers: Mapping[str, str] = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, HEAD, POST, DELETE",
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ALLOWED,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
        }
        return web.Response(status=204, headers=headers)


def _is_local(request: web.Request) -> bool:
    """Whether the request came over the Unix socket. What is not known is not local."""
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    return sock is not None and sock.family == socket.AF_UNIX


def token_of(request: web.Request) -> str:
    """The API key's token that came with a request: in `Authorization: Bearer`, in `X-Auth-Token`,
    or as the WebSocket protocol `bearer.TOKEN`, since pages cannot give a WebSocket headers.
    Clients of Piston leave `Bearer` out; some of Judge0 put `X-Auth-Token` into the address.
    """
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer" or (scheme and not token):
        return (token or scheme).strip()
    for protocol in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(","):
        if protocol.strip().startswith("bearer."):
            return protocol.strip().removeprefix("bearer.")
    return request.headers.get(AUTH_TOKEN) or request.query.get(AUTH_TOKEN, "")
