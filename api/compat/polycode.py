"""Polycode's runner: `POST /run`, in the two forms that public backends of it send.

{id, source, compilerOptions: {language, version}}  ->  {success, output: {stdout, stderr}}
{sourceCode, language, stdin: [text]}               ->  {stdout, stderr, exitCode, runId}
"""

import http
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from mayfly.api.compat.dialect import Dialect, Path, read_object, run_to_end, text_of
from mayfly.api.compat.images import find_image, find_images
from mayfly.api.compat.stages import StageResult, stages_of, text
from mayfly.api.intake import SERVICE
from mayfly.errors import SchemaError, UnprocessableError
from mayfly.host.snippet import Snippet
from mayfly.images.store import InstalledImage
from mayfly.runs.run import Run
from mayfly.schema import convert


class CompilerOptions(Struct, frozen=True):
    """The language, and a version of it that is wished for."""

    language: str
    version: str | float | None = None


class Workload(Struct, frozen=True, rename="camel"):
    """A source in the one form; other fields are ignored, as theirs are."""

    source: str
    compiler_options: CompilerOptions


class Submission(Struct, frozen=True, rename="camel"):
    """A source in the other form. Its texts of standard input are lines of one input."""

    source_code: str
    language: str
    stdin: Annotated[tuple[str, ...], Meta(max_length=1024)] | str = ()
    version: str | float | None = None


class Polycode(Dialect):
    """The contract."""

    name = "polycode"

    def paths(self) -> Sequence[Path]:
        """All that it answers."""
        return (Path("POST", "/run", self._run),)

    def refuse(self, status: int, problem: Mapping[str, Any]) -> web.Response:
        """An error as NestJS, on which theirs stands, has it."""
        body = {"statusCode": status, "message": text_of(problem), "error": http.HTTPStatus(status).phrase}
        return web.json_response(body, status=status)

    async def _run(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        try:
            if "sourceCode" in body:
                return await self._run_submission(request, convert(Submission, body))
            return await self._run_workload(request, convert(Workload, body))
        except SchemaError as error:
            raise UnprocessableError(error.message, hint=error.hint) from error

    async def _run_workload(self, request: web.Request, asked: Workload) -> web.Response:
        options = asked.compiler_options
        image = _choose(request, options.language, options.version)
        run = await run_to_end(request, Snippet(source=asked.source.encode()), image)
        stdout, stderr, code = _ended(run)
        return web.json_response({"success": code == 0, "output": {"stdout": stdout, "stderr": stderr}}, status=201)

    async def _run_submission(self, request: web.Request, asked: Submission) -> web.Response:
        image = _choose(request, asked.language, asked.version)
        stdin = asked.stdin if isinstance(asked.stdin, str) else "".join(f"{line}\n" for line in asked.stdin)
        run = await run_to_end(request, Snippet(source=asked.source_code.encode(), stdin=stdin.encode()), image)
        stdout, stderr, code = _ended(run)
        return web.json_response({"stdout": stdout, "stderr": stderr, "exitCode": code, "runId": run.id}, status=201)


def _choose(request: web.Request, language: str, version: str | float | None) -> InstalledImage:
    """The image of the language; of the version if there is one that fits it. Theirs takes any."""
    installed = request.app[SERVICE].installed()
    for image in find_images(installed, language) if version else ():
        if image.answers(f"{image.manifest.language}@{version}"):
            return image
    return find_image(installed, language)


def _ended(run: Run) -> tuple[str, str, int]:
    """Standard output and error of the last stage, and the exit code, as a shell has it."""
    stages = stages_of(run)
    _, code = run.outcome.verdict()
    last: StageResult | None = stages[-1] if stages else None
    stderr = text(last.stderr) if last else ""
    if run.outcome.error is not None:
        stderr += f"{run.outcome.error.message}\n"
    elif last is not None and last.exit.limit:
        stderr += f"{last.ended.message}\n"
    return _cleaned(text(last.stdout) if last else ""), _cleaned(stderr), code


def _cleaned(output: str) -> str:
    return output.replace("\r\n", "\n").removesuffix("\n")
