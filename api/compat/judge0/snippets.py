"""From a submission's fields to a snippet and the image that it runs in."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mayfly.api.compat.images import is_interpreted, limits_of
from mayfly.api.compat.judge0.archive import unpack
from mayfly.api.compat.judge0.fields import Errors, Fields, split, unknown_language
from mayfly.api.compat.judge0.languages import MULTI_FILE, image_of
from mayfly.errors import MayflyError
from mayfly.host.snippet import Snippet
from mayfly.images.manifest import LanguageStep
from mayfly.images.store import InstalledImage
from mayfly.runs.runner import Runner
from mayfly.schema import replace

BUILD, RUN = "compile", "run"
"""The scripts of a program of many files; the first one may be absent."""
GO_FLAGS = "GOFLAGS"
"""Go's compiler is called by a script: its options come by the environment."""


class Job(NamedTuple):
    """What is to be run, and where."""

    snippet: Snippet
    image: InstalledImage


async def make_job(service: Runner, fields: Fields) -> Job | Errors:
    """What the fields ask for, or what is wrong with them."""
    files: Mapping[str, bytes] = {}
    if fields.additional_files is not None:
        try:
            files = await asyncio.to_thread(unpack, fields.additional_files)
        except MayflyError as error:
            return Errors(additional_files=[error.message])
    installed = service.installed()
    image = _image_of_files(installed, files) if fields.language_id == MULTI_FILE else image_of(installed, fields.language_id)
    if image is None:
        return Errors(language_id=[unknown_language(fields.language_id)])
    try:
        if fields.language_id == MULTI_FILE:
            return _of_many_files(service, fields, image, files)
        return _of_one_file(service, fields, image, files)
    except MayflyError as error:
        return Errors(source_code=[error.message])


def _of_one_file(service: Runner, fields: Fields, image: InstalledImage, files: Mapping[str, bytes]) -> Job | Errors:
    content = image.manifest
    name = content.source_file
    source = fields.source_code or b""
    options = split(fields.compiler_options)
    steps: tuple[LanguageStep, ...] = ()
    build_env = {}
    if options:
        if is_interpreted(image) or len(content.steps) < 2:
            return Errors(compiler_options=["setting compiler options is only allowed for compiled languages"])
        if content.language == "go":
            build_env[GO_FLAGS] = " ".join((content.env.get(GO_FLAGS, ""), *options)).strip()
        else:
            steps = (replace(content.steps[0], argv=(*content.steps[0].argv, *options)), *content.steps[1:])
    snippet = Snippet(
        files={**files, name: source},
        stdin=fields.stdin or b"",
        args=split(fields.command_line_arguments),
        build_env=build_env,
        steps=steps,
        limits=_limits(service, fields, image),
        network=fields.flags["enable_network"],
    )
    return Job(snippet, image)


def _of_many_files(service: Runner, fields: Fields, image: InstalledImage, files: Mapping[str, bytes]) -> Job | Errors:
    if RUN not in files:
        return Errors(additional_files=[f"has no file {RUN}"])
    last = replace(image.manifest.steps[-1], argv=("bash", RUN))
    first = LanguageStep(name="build", argv=("bash", BUILD))
    steps = (first, last) if BUILD in files else (last,)
    limits = {name: limit for name, limit in _limits(service, fields, image).items() if name in {step.name for step in steps}}
    snippet = Snippet(files=files, stdin=fields.stdin or b"", steps=steps, limits=limits, network=fields.flags["enable_network"])
    return Job(snippet, image)


def _image_of_files(installed: Sequence[InstalledImage], files: Mapping[str, bytes]) -> InstalledImage | None:
    """The image whose language most of the files are of; else any."""
    return max(installed, key=lambda image: sum(name.endswith(image.manifest.extensions) for name in files), default=None)


def _limits(service: Runner, fields: Fields, image: InstalledImage) -> dict[str, dict[str, float]]:
    """Those of the program. A compiler has this server's."""
    numbers = fields.numbers
    asked = {
        "cpu_s": numbers["cpu_time_limit"],
        "wall_s": numbers["wall_time_limit"],
        "memory": numbers["memory_limit"] * 1024,
        "processes": numbers["max_processes_and_or_threads"],
        "output": numbers["max_file_size"] * 1024,
    }
    return limits_of(image, service.config, run=asked)
