"""What every contract of others has here: routes under a prefix, its own form of errors, and the
place where its clients put an API key.

Errors get their status where all do (answers.py); a dialect only gives them its form.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from aiohttp import web

from mayfly.api.connections import Handler
from mayfly.api.intake import BODIES, attended, submit
from mayfly.api.requests import check_quotes
from mayfly.errors import MalformedError, RequestError, SchemaError
from mayfly.host.snippet import Snippet
from mayfly.images.store import InstalledImage
from mayfly.runs.run import Run
from mayfly.schema import decode, replace


class Path(NamedTuple):
    """What answers a method at a path, which may have a slash at its end. To an `open` one a client
    needs no key.
    """

    method: str
    path: str
    handler: Handler
    open: bool = False


class Dialect(abc.ABC):
    """A contract, served beneath `prefix`: `/piston`, or empty for one with a port of its own."""

    name: ClassVar[str]

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    @abc.abstractmethod
    def paths(self) -> Sequence[Path]:
        """All that it answers."""

    @abc.abstractmethod
    def refuse(self, status: int, problem: Mapping[str, Any]) -> web.Response:
        """An error, which has this status at our own routes, in this contract's form."""

    def finish(self, answer: web.StreamResponse) -> None:  # noqa: B027  # most need nothing
        """Add what every answer has, errors too."""

    def has(self, path: str) -> bool:
        """Whether a request for `path` is one of this contract."""
        return path == self.prefix or path.startswith(f"{self.prefix}/")

    def mount(self, app: web.Application) -> None:
        """Add its routes to the application."""
        for method, path, handler, _ in self.paths():
            pattern = self.prefix + path.rstrip("/") + "{slash:/?}"
            app.router.add_route(method, pattern, handler)
            if method == "GET":
                app.router.add_head(pattern, handler)


def text_of(problem: Mapping[str, Any]) -> str:
    """An error's message, with the hint behind it."""
    return f"{problem['message']}; {problem['hint']}" if problem["hint"] else str(problem["message"])


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object in a request, however it is declared.

    Raises:
        RequestError: it cannot be read, or is not one.
    """
    return parse_object(await request.app[BODIES].read(request))


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        RequestError: it is not one.
    """
    check_quotes(body)
    try:
        found: Any = decode(Any, body)
    except MalformedError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    except SchemaError as error:
        raise RequestError(f"the body cannot be used: {error}") from error
    if not isinstance(found, dict):
        raise RequestError("the body is not a JSON object")
    return found


async def start(
    request: web.Request, snippet: Snippet, image: InstalledImage, call: bytes = b"", about: bytes = b"", run_id: str = ""
) -> Run:
    """Start a run of that image, with the rest as of Order.

    Raises:
        MayflyError: it is refused; nothing has been started.
    """
    name, version = image.manifest.language, image.manifest.version
    return await submit(request, replace(snippet, language=f"{name}@{version}" if version else name), call=call, about=about, run_id=run_id)


async def run_to_end(request: web.Request, snippet: Snippet, image: InstalledImage) -> Run:
    """Run a snippet. If the client goes away, the run is ended.

    Raises:
        MayflyError: it is refused; nothing has been started.
    """
    async with attended(request, await start(request, snippet, image)) as run:
        await run.done.wait()
        return run
