"""Holds real answers against the types from which openapi.json is made."""

import re
from typing import Any

import msgspec

from mayfly.api.answers import Error
from mayfly.api.openapi import Route
from mayfly.api.routes import ROUTES
from mayfly.runs.result import AnyEvent


def find_route(method: str, path: str) -> Route | None:
    """The route that serves `path`, which may have a query."""
    path = path.partition("?")[0]
    for route in ROUTES:
        if route.method == method.replace("HEAD", "GET") and re.fullmatch(re.sub(r"{\w+}", "[^/]+", route.path), path):
            return route
    return None


def check_fits(kind: Any, value: Any) -> None:
    """Fail unless `value` is what `kind` says, with no field besides."""
    assert msgspec.json.decode(msgspec.json.encode(msgspec.convert(value, kind))) == value


def check_answer(method: str, path: str, status: int, body: Any) -> None:
    """Fail unless openapi.json has this answer of the route."""
    route = find_route(method, path)
    if status >= 400:
        assert route is None or status in (*route.statuses, 401, 403, 500)
        if method != "HEAD":
            check_fits(Error, body)
        return
    assert route is not None
    assert status in route.statuses
    if route.answer is not None and method != "HEAD":
        check_fits(route.answer, body)


def check_event(value: Any) -> None:
    """Fail unless openapi.json has this event."""
    check_fits(AnyEvent, value)
