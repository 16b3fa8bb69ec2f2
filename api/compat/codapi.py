"""Codapi, whose widget makes the code in documentation pages run: `POST /v1/exec` and
`HEAD /v1/health`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from msgspec import Struct

from mayfly.api.compat.dialect import Dialect, Path, read_object, run_to_end, text_of
from mayfly.api.compat.images import find_image
from mayfly.api.compat.stages import stages_of, text
from mayfly.api.intake import SERVICE
from mayfly.errors import RequestError, SchemaError, UnknownLanguageError, UnprocessableError
from mayfly.host.snippet import Snippet
from mayfly.schema import convert

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "options, post",
    "Access-Control-Allow-Headers": "authorization, content-type",
    "Access-Control-Max-Age": "3600",
}
"""What the widget needs, which runs in the pages of others."""
COMMAND = "run"
"""The one command that every sandbox has here."""


class Asked(Struct, frozen=True):
    """A request; unknown fields are ignored, as theirs are. The file without a name is the one that
    the language names.
    """

    sandbox: str = ""
    command: str = ""
    version: str = ""
    files: dict[str, str] = {}


class Codapi(Dialect):
    """The contract."""

    name = "codapi"

    def paths(self) -> Sequence[Path]:
        """All that it answers."""
        return (
            Path("POST", "/v1/exec", self._exec),
            Path("OPTIONS", "/v1/exec", self._preflight, open=True),
            Path("GET", "/v1/health", self._health, open=True),
            Path("OPTIONS", "/v1/health", self._preflight, open=True),
        )

    def refuse(self, status: int, problem: Mapping[str, Any]) -> web.Response:
        """An error as a result that is not ok. What is wrong with a value is a 400 there."""
        message = "busy: try again later" if status == 429 else text_of(problem)
        return web.json_response(_result("-", stderr=message), status=400 if status in (415, 422) else status)

    def finish(self, answer: web.StreamResponse) -> None:
        """Let pages from anywhere read the answer."""
        answer.headers.update(CORS)

    async def _preflight(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _health(self, request: web.Request) -> web.Response:
        request.app[SERVICE].health()
        return web.Response()

    async def _exec(self, request: web.Request) -> web.Response:
        try:
            asked = convert(Asked, await read_object(request))
        except SchemaError as error:
            raise UnprocessableError(error.message, hint=error.hint) from error
        if asked.command != COMMAND:
            raise UnknownLanguageError("unknown command", hint=f"every sandbox has {COMMAND} alone")
        image = find_image(request.app[SERVICE].installed(), asked.sandbox, asked.version)
        if len(asked.files) < 2 and not "".join(asked.files.values()).strip():
            raise RequestError("empty request")
        files = {name or image.manifest.source_file: content.encode() for name, content in asked.files.items()}
        if len(files) == 1:  # whatever its name is: it can only be the program
            files = {image.manifest.source_file: next(iter(files.values()))}
        run = await run_to_end(request, Snippet(files=files), image)
        stages = stages_of(run)
        name = f"{asked.sandbox}.{asked.version}" if asked.version else asked.sandbox
        result = _result(f"{name}_{asked.command}_{run.id[:8]}", duration=sum(stage.exit.wall_us for stage in stages) // 1000)
        if stages:
            ended = stages[-1].ended
            failed = "code execution timeout" if ended.status == "TO" else ended.message if stages[-1].exit.limit else ""
            stderr = "\n".join(part for part in (text(stages[-1].stderr).strip(), failed) if part)
            result.update(ok=stages[-1].ok, stdout=text(stages[-1].stdout).strip(), stderr=stderr)
        if run.outcome.error is not None:
            result.update(ok=False, stderr=run.outcome.error.message)
        return web.json_response(result)


def _result(name: str, *, duration: int = 0, stderr: str = "") -> dict[str, Any]:
    return {"id": name, "ok": False, "duration": duration, "stdout": "", "stderr": stderr}
