"""openapi.json, made from the table of routes (OpenAPI 3.1)."""

import dataclasses
import http
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from mayfly.api import requests
from mayfly.api.connections import Handler
from mayfly.api.events import JSONL, SSE, EventsQuery, RunQuery
from mayfly.errors import kinds
from mayfly.guests.outcome import Status
from mayfly.guests.start import StartKind
from mayfly.runs.cases import CaseVerdict
from mayfly.runs.run import RunState

_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer"}
_NUMBER: dict[str, Any] = {"type": "number"}
_FLAG: dict[str, Any] = {"type": "boolean"}


@dataclasses.dataclass(frozen=True)
class Route:
    """One route: what openapi.json says of it is the handler's first line, the schemas' names, the
    statuses, the parameters in the address, the schema of its JSON body, whether a snippet comes
    and a stream of events may go; and whether it is `open` to all without an API key, or for the
    `operator` alone.
    """

    method: str
    path: str
    handler: Handler
    answer: str
    statuses: tuple[int, ...]
    query: type[msgspec.Struct] | None = None
    body: str = ""
    snippet: bool = False
    streams: bool = False
    open: bool = False
    operator: bool = False


def _object(required: Iterable[str] = (), /, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _map(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": item}


def _or_null(kind: dict[str, Any]) -> dict[str, Any]:
    return {"oneOf": [kind, {"type": "null"}]}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_MODE = _ref("Mode")
_CLOSED: dict[str, Any] = {"additionalProperties": False}
_REQUEST = requests.schemas(requests.Query, RunQuery, EventsQuery, requests.RunsQuery)
_ENDED: dict[str, Any] = {
    "step": _TEXT,
    "code": _or_null(_WHOLE),
    "signal": _or_null(_WHOLE),
    "signal_name": _or_null(_TEXT),
    "errno": _or_null(_WHOLE),
    "limit": _or_null(_TEXT),
    "wall_ms": _NUMBER,
    "cpu_ms": _NUMBER,
    "peak_memory": _WHOLE,
    "stdout_truncated": _FLAG,
    "stderr_truncated": _FLAG,
}
"""How a step ended."""
_OUTPUT: dict[str, Any] = {name: _TEXT for name in ("stdout", "stdout_base64", "stderr", "stderr_base64")}
SCHEMAS: dict[str, Any] = {
    **{name: schema for name, schema in _REQUEST.items() if not name.endswith("Query")},
    "Started": _object(
        ("id", "output_socket"),
        id=_TEXT,
        language=_TEXT,
        version=_TEXT,
        output=_MODE,
        output_socket=_or_null(_TEXT),
    ),
    "Batch": {**_object(("runs",), runs={**_list(_ref("Snippet")), "minItems": 1, "maxItems": requests.MAX_BATCH}), **_CLOSED},
    "Save": {**_object(("name",), name=_TEXT), **_CLOSED},
    "Batched": _object(("runs",), runs=_list({"oneOf": [_ref("Started"), _object(("error",), error=_ref("Problem"))]})),
    "Runs": _object(("runs",), runs=_list(_or_null(_ref("Run")))),
    "Run": _object(
        ("id", "state", "status", "exit_status", "steps", "error"),
        id=_TEXT,
        language=_TEXT,
        version=_TEXT,
        state={"type": "string", "enum": list(RunState)},
        start=_or_null({"type": "string", "enum": list(StartKind)}),
        status=_or_null({"type": "string", "enum": list(Status)}),
        exit_status=_or_null(_WHOLE),
        steps=_list(_ref("Step")),
        error=_or_null(_ref("Problem")),
        phases=_map(_NUMBER),
        exits=_map(_WHOLE),
        cases=_object(("parallel", "passed", "results"), parallel=_WHOLE, passed=_WHOLE, results=_list(_ref("Case"))),
    ),
    "Case": _object(
        ("index", "name", "verdict"),
        index=_WHOLE,
        name=_TEXT,
        verdict={"type": "string", "enum": list(CaseVerdict)},
        **_ENDED,
        **_OUTPUT,
        error=_ref("Problem"),
    ),
    "Step": _object(
        ("step", "code", "signal", "limit"),
        **_ENDED,
        **_OUTPUT,
    ),
    "Event": _object(
        ("id", "event"),
        id=_TEXT,
        event={"type": "string", "enum": ["stage", "stdout", "stderr", "exit", "case", "error", "done"]},
        data=_TEXT,
        base64=_TEXT,
        **_ENDED,
        index=_WHOLE,
        name=_TEXT,
        verdict={"type": "string", "enum": list(CaseVerdict)},
        **_OUTPUT,
        error=_ref("Problem"),
        status={"type": "string", "enum": list(Status)},
        exit_status=_WHOLE,
        result=_ref("Run"),
    ),
    "Saved": _object(("name",), name=_TEXT, parent=_or_null(_TEXT), run=_TEXT, memory_bytes=_WHOLE),
    "Languages": _object(
        ("languages",),
        languages=_list(
            _object(
                language=_TEXT,
                version=_TEXT,
                compiler=_TEXT,
                default=_FLAG,
                architecture=_TEXT,
                extensions=_list(_TEXT),
                source_file=_TEXT,
                steps=_list(_TEXT),
                memory=_WHOLE,
                image=_TEXT,
            )
        ),
    ),
    "Health": _object(status=_TEXT, waiting=_WHOLE, idle=_WHOLE, memory_used=_WHOLE, memory_budget=_WHOLE),
    "Version": _object(version=_TEXT, protocol=_WHOLE, architecture=_TEXT, time_factor=_NUMBER),
    "Problem": _object(
        ("code", "message", "hint"),
        code=_TEXT,
        message=_TEXT,
        hint=_TEXT,
        **{name: _WHOLE if kind is int else _TEXT for error in kinds() for name, kind in error.details.items()},
    ),
    "Error": _object(("error", "request_id"), error=_ref("Problem"), request_id=_TEXT),
}


SECURITY: dict[str, Any] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
WANTED: dict[str, Any] = {"security": [{"key": []}, {}]}
"""An API key over TCP, nothing over the Unix socket."""


def describe(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The whole description."""
    found: dict[str, Any] = {}
    for route in routes:
        found.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    info = {"title": "Mayfly", "version": version, "description": "Runs code snippets, each in a virtual machine of its own."}
    return {"openapi": "3.1.0", "info": info, "paths": found, "components": {"schemas": SCHEMAS, **SECURITY}, **WANTED}


def _operation(route: Route) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in re.findall(r"{(\w+)}", route.path)
    ]
    operation: dict[str, Any] = {"operationId": route.handler.__name__, "summary": str(route.handler.__doc__).splitlines()[0]}
    if route.query:
        query = _REQUEST[route.query.__name__]
        needed = query.get("required", ())
        parameters += [
            {"name": name, "in": "query", "required": name in needed, "schema": schema} for name, schema in query["properties"].items()
        ]
    if route.query is EventsQuery:
        parameters.append({"name": "Last-Event-ID", "in": "header", "schema": _TEXT})
    if route.snippet:
        content = {"text/plain": {"schema": _TEXT}, "application/json": {"schema": _ref("Snippet")}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(route.body)}}}
    if route.snippet or route.body == "Batch":
        parameters.append({"name": "Idempotency-Key", "in": "header", "schema": {**_TEXT, "minLength": 1, "maxLength": 255}})
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
    name = route.answer if status < 400 else "Error"
    if name:
        content["application/json"] = {"schema": _ref(name)}
    if route.streams and status == 200:
        content |= {SSE: {"schema": _TEXT}, JSONL: {"schema": _ref("Event")}}
    return {**response, "content": content} if content else response
