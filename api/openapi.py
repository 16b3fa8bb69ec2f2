"""openapi.json (OpenAPI 3.1), made of the table of routes and of the types that it names."""

import dataclasses
import http
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from mayfly.api.answers import Error
from mayfly.api.connections import Handler
from mayfly.api.events import JSONL, SSE, EventsQuery
from mayfly.api.requests import Batch, Body, StdinQuery
from mayfly.runs.result import AnyEvent

_TEXT: dict[str, Any] = {"type": "string"}
_REF = "#/components/schemas/{}"


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REF.format(name)}


@dataclasses.dataclass(frozen=True)
class Route:
    """One route: what serves it, and all that openapi.json says of it.

    `answer`, `query` and `body` are the types of the answer's JSON, of the parameters in the
    address and of the JSON in the request; their docstrings and descriptions are shown. The summary
    is the first line of the handler's docstring. A route that takes a Body takes the snippet alone
    as text too. One that `streams` may answer with a run's events; one that has `lines` answers
    with lines of JSON, each an `answer`. One that `passes` is about a request to a function, which
    may send and get anything; its `answer` is that of 202. One that is `open` needs no API key; one
    that is for the `operator` alone is not there for keys.
    """

    method: str
    path: str
    handler: Handler
    answer: type[msgspec.Struct] | None
    statuses: tuple[int, ...]
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    streams: bool = False
    lines: bool = False
    passes: bool = False
    open: bool = False
    operator: bool = False


SECURITY: dict[str, Any] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
WANTED: dict[str, Any] = {"security": [{"key": []}, {}]}
"""An API key over TCP, nothing over the Unix socket."""

FUNCTIONS_OWN = {200: "the function's answer, of its own type", 500: "what the function raised, as JSON, or a fault of Mayfly's"}
OF_ANSWERS: dict[str, Any] = {
    "X-Mayfly-Request-Id": {"schema": _TEXT},
    "X-Mayfly-Start": {"schema": {"enum": ["cold", "restored", "warm"]}, "description": "how it got its guest"},
    "X-Mayfly-Duration": {"schema": _TEXT, "description": "seconds that the function took"},
    "X-Mayfly-Queued": {"schema": _TEXT, "description": "seconds until a guest was there for it"},
    "X-Mayfly-Function-Error": {"schema": {"const": "exception"}, "description": "of 500: the function raised it"},
}
"""Headers of what a function answers."""

MESSAGE: dict[str, Any] = {
    "description": "each message of the stream",
    "type": "object",
    "properties": {"id": _TEXT, "data": {**_TEXT, "contentMediaType": "application/json", "contentSchema": _ref("Event")}},
    "required": ["id", "data"],
}


def describe(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The whole description."""
    table = list(routes)
    schemas = _schemas({kind for route in table for kind in (route.answer, route.query, route.body) if kind})
    queries: dict[Any, Any] = {route.query: schemas[route.query.__name__] for route in table if route.query}
    for kind in queries:
        schemas.pop(kind.__name__)
    found: dict[str, Any] = {}
    for route in table:
        found.setdefault(route.path, {})[route.method.lower()] = _operation(route, queries.get(route.query, {}))
    info = {"title": "Mayfly", "version": version, "description": "Runs code snippets, each in a virtual machine of its own."}
    return {"openapi": "3.1.0", "info": info, "paths": found, "components": {"schemas": schemas, **SECURITY}, **WANTED}


def _schemas(kinds: Iterable[type[msgspec.Struct]]) -> dict[str, Any]:
    """The schemas of types, and of all that they refer to, by name."""
    ordered: list[Any] = sorted(kinds, key=lambda kind: kind.__name__)
    (*_, event), found = msgspec.json.schema_components([*ordered, Error, AnyEvent], ref_template=_REF.format("{name}"))
    return {**found, "Event": event}


def _operation(route: Route, query: dict[str, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in re.findall(r"{(\w+)}", route.path)
    ]
    needed = query.get("required", ())
    for name, schema in query.get("properties", {}).items():
        parameters.append({"name": name, "in": "query", "required": name in needed, "schema": schema})
    if route.query is EventsQuery:
        parameters.append({"name": "Last-Event-ID", "in": "header", "schema": _TEXT})
    operation: dict[str, Any] = {"operationId": route.handler.__name__, "summary": str(route.handler.__doc__).splitlines()[0]}
    if route.body:
        content = {"application/json": {"schema": _ref(route.body.__name__)}}
        if route.body is Body:
            content["text/plain"] = {"schema": _TEXT}
        operation["requestBody"] = {"required": True, "content": content}
    if route.body in (Body, Batch):
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": {**_TEXT, "minLength": 1, "maxLength": 255}})
    if route.query is StdinQuery or (route.passes and route.method == "POST"):
        operation["requestBody"] = {"content": {"application/octet-stream": {}}}
    if parameters:
        operation["parameters"] = parameters
    if route.open:
        operation["security"] = []
    statuses = {*route.statuses, *(() if route.open else (401,)), *((403,) if route.operator else ())}
    operation["responses"] = {str(status): _response(route, status) for status in sorted(statuses)}
    return operation


def _response(route: Route, status: int) -> dict[str, Any]:
    response: dict[str, Any] = {"description": http.HTTPStatus(status).phrase}
    content: dict[str, Any] = {}
    if route.passes and status in FUNCTIONS_OWN:
        return {"description": FUNCTIONS_OWN[status], "headers": OF_ANSWERS}
    kind = route.answer if status < 400 else Error
    if kind:
        content[JSONL if route.lines and status < 400 else "application/json"] = {"schema": _ref(kind.__name__)}
    if route.streams and status == 200:
        content |= {SSE: {"schema": MESSAGE}, JSONL: {"schema": _ref("Event")}}
    return {**response, "content": content} if content else response
