"""The bodies of Piston's requests, however clients declare and write them."""

import re
import urllib.parse
from typing import Any

from aiohttp import web

from mayfly.api.compat.dialect import parse_object
from mayfly.api.intake import BODIES
from mayfly.api.requests import MAX_ITEMS
from mayfly.errors import MediaTypeError, RequestError


async def read_body(request: web.Request) -> dict[str, Any]:
    """The object in a request: JSON, whatever it is declared as, or a form.

    Raises:
        RequestError: it is neither.
    """
    body = await request.app[BODIES].read(request)
    if body.lstrip()[:1] == b"{":
        return parse_object(body)
    if not body.strip() and request.content_type == "application/json":
        return {}  # as Express has it
    if request.content_type == "application/x-www-form-urlencoded":
        return parse_form(body)
    if request.content_type != "application/json" and not request.content_type.startswith("text/"):
        raise MediaTypeError("requests must be of type application/json")
    return parse_object(body)


def parse_form(body: bytes) -> dict[str, Any]:
    """A form as an object: `files[0][content]=…&args[]=…&run_timeout=3000`. A value that JSON would
    take for a number, a list or an object is one.

    Raises:
        RequestError: there is too much of it.
    """
    found: dict[str, Any] = {}
    try:
        pairs = urllib.parse.parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=4 * MAX_ITEMS)
    except ValueError as error:
        raise RequestError(f"the form cannot be used: {error}") from error
    files: dict[str, dict[str, str]] = {}
    for name, value in pairs:
        if inner := re.fullmatch(r"files\[(\d{1,4})\]\[(\w+)\]", name):
            files.setdefault(inner[1], {})[inner[2]] = value
        elif name in ("args", "args[]") or re.fullmatch(r"args\[\d{1,4}\]", name):
            found.setdefault("args", []).append(value)
        elif name == "files":
            found.update(parse_object(b'{"files":%b}' % value.encode()))
        elif name.endswith(("_timeout", "_time", "_limit")) and re.fullmatch(r"-?\d{1,15}", value):
            found[name] = int(value)
        else:
            found[name] = value
    if files:
        found["files"] = [files[number] for number in sorted(files, key=int)]
    return found
