"""SandboxFusion's `/run_code`, which trainers of models use."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from aiohttp import web
from msgspec import Meta, Struct

from mayfly.api.compat.dialect import Dialect, Path, read_object, run_to_end, text_of
from mayfly.api.compat.images import find_image, is_interpreted, limits_of
from mayfly.api.compat.stages import StageResult, stages_of, text
from mayfly.api.intake import SERVICE
from mayfly.errors import RequestError, SchemaError, UnprocessableError
from mayfly.host.snippet import Snippet
from mayfly.images.manifest import LanguageStep
from mayfly.images.store import InstalledImage
from mayfly.runs.run import Run
from mayfly.schema import convert, replace
from mayfly.units import MIB

Seconds = Annotated[float, Meta(gt=0)]
LACKING = 120
"""Exit status that says that an image has no pytest; pytest's own are up to 5."""
PYTEST = f"""
import importlib.util, sys
if importlib.util.find_spec("pytest") is None:
    sys.exit({LACKING})
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
GO_TEST = """
GOCACHE=/tmp/go-build
mkdir -p $GOCACHE && ln -sf /var/cache/go/?? $GOCACHE && exec go test -vet=off "$@"
"""
"""With a cache that it may write to, of links to what the image has compiled. There is no vet."""


class Tester(NamedTuple):
    """What runs a language's code as tests: a program before the name of its file. The first word
    is None where it is the language's own interpreter.
    """

    language: str
    file: str
    argv: tuple[str | None, ...]


TESTERS: Mapping[str, Tester] = {
    "pytest": Tester("python", "test_main.py", (None, "-c", PYTEST)),
    "go_test": Tester("go", "main_test.go", ("sh", "-c", GO_TEST, "sh")),
}
"""Languages of theirs that are not compiled, but run by another's test runner."""


class Asked(Struct, frozen=True):
    """A request; unknown fields are ignored, as theirs are. Files are base64; None is no file.
    `args` are pytest's alone.
    """

    code: str
    language: str
    stdin: str | None = None
    compile_timeout: Seconds = 10
    run_timeout: Seconds = 10
    memory_limit_MB: int = -1  # noqa: N815  # its name
    files: dict[str, str | None] = {}
    fetch_files: tuple[str, ...] = ()
    args: tuple[str, ...] = ()


class SandboxFusion(Dialect):
    """The contract."""

    name = "sandboxfusion"

    def paths(self) -> Sequence[Path]:
        """All that it answers."""
        return (Path("POST", "/run_code", self._run_code), Path("GET", "/v1/ping", self._ping))

    def refuse(self, status: int, problem: Mapping[str, Any]) -> web.Response:
        """An error as FastAPI has it: what is wrong with a value is a 422."""
        if problem["code"] in ("bad_request", "unknown_language"):
            status = 422
        detail: Any = text_of(problem)
        if status == 422:
            detail = [{"type": problem["code"], "loc": ["body"], "msg": detail}]
        return web.json_response({"detail": detail}, status=status)

    async def _ping(self, request: web.Request) -> web.Response:
        request.app[SERVICE].health()
        return web.json_response("pong")

    async def _run_code(self, request: web.Request) -> web.Response:
        try:
            asked = convert(Asked, await read_object(request))
        except SchemaError as error:
            raise UnprocessableError(error.message, hint=error.hint) from error
        service = request.app[SERVICE]
        tester = TESTERS.get(asked.language)
        image = find_image(service.installed(), tester.language if tester else asked.language)
        memory = {"memory": asked.memory_limit_MB * MIB}
        build, run = {"wall_s": asked.compile_timeout, **memory}, {"wall_s": asked.run_timeout, **memory}
        limits = limits_of(image, service.config, build=build, run=run)
        name, steps = image.manifest.source_file, tuple[LanguageStep, ...]()
        if tester:
            name, steps = tester.file, (_test_step(image, tester, asked),)
            limits = {step.name: limits[step.name] for step in steps}
        snippet = Snippet(
            files={**_files(asked.files), name: asked.code.encode()},
            stdin=(asked.stdin or "").encode(),
            steps=steps,
            limits=limits,
            collect=tuple({_relative(name) for name in asked.fetch_files}),
        )
        ended = await run_to_end(request, snippet, image)
        result = _result(ended, image) | _fetched(ended, asked.fetch_files)
        if asked.language == "pytest" and ended.outcome.verdict().exit_status == LACKING:
            result |= {"status": "SandboxError", "message": "the image of Python has no pytest; make one that has it"}
        return web.json_response(result)


def _test_step(image: InstalledImage, tester: Tester, asked: Asked) -> LanguageStep:
    """The language's last step, with the tests in place of the program."""
    build, run = image.manifest.steps[0], image.manifest.steps[-1]
    argv = tuple(run.argv[0] if word is None else word for word in tester.argv)
    more = asked.args if asked.language == "pytest" else ()
    return replace(run, argv=(*argv, tester.file, *more), env={**build.env, **run.env})


def _relative(name: str) -> str:
    return name.removeprefix("./")


def _fetched(run: Run, wanted: Sequence[str]) -> dict[str, Any]:
    """The wanted files that are there, by the names that they were asked for."""
    if run.files is None:
        return {}
    if run.files.error is not None:
        return {"message": run.files.error.message}
    left = run.files.by_name
    found = {name: left[_relative(name)].data for name in wanted if _relative(name) in left}
    return {"files": {name: base64.b64encode(data).decode() for name, data in found.items()}}


def _files(given: Mapping[str, str | None]) -> dict[str, bytes]:
    found = {}
    for name, content in given.items():
        if content is not None:
            try:
                found[_relative(name)] = base64.b64decode(content)
            except (binascii.Error, ValueError) as error:
                raise RequestError(f"files.{name[:80]}: not base64: {error}") from error
    return found


def _result(run: Run, image: InstalledImage) -> dict[str, Any]:
    stages = stages_of(run)
    compiled = len(run.outcome.step_names) > 1 and not is_interpreted(image)
    build = stages[0] if stages and compiled else None
    last = stages[-1] if len(stages) > 1 or not compiled else None
    error = run.outcome.error
    status = "SandboxError" if error else "Success" if stages and stages[-1].ok else "Failed"
    return {
        "status": status,
        "message": error.message if error else "",
        "compile_result": build and _stage(build),
        "run_result": last and _stage(last),
        "executor_pod_name": None,
        "files": {},
    }


def _stage(stage: StageResult) -> dict[str, Any]:
    """A stage; the exit status of one that a signal ended is its number below zero."""
    ended = stage.ended
    late = ended.status == "TO"
    number = None if ended.signal is None else -ended.signal
    return {
        "status": "TimeLimitExceeded" if late else "Error" if ended.status == "XX" else "Finished",
        "execution_time": stage.exit.wall_us / 1e6,
        "return_code": None if late else ended.code if number is None else number,
        "stdout": text(stage.stdout),
        "stderr": text(stage.stderr),
    }
