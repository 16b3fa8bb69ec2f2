"""Who sends a request: over the Unix socket the operator of this host, who may do everything."""

from typing import NamedTuple

from aiohttp import web

from mayfly.host.admission import Tenant


class Caller(NamedTuple):
    """Who sent a request; `tenant` is None for those of the Unix socket."""

    name: str
    tenant: Tenant | None


OPERATOR = Caller(name="", tenant=None)
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)


def caller_of(request: web.Request) -> Caller:
    """Who sent the request."""
    return request.get(CALLER) or OPERATOR
