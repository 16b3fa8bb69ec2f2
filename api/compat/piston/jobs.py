"""From a request of Piston's to a snippet and the image that it runs in."""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from semantic_version import NpmSpec, Version  # type: ignore[import-untyped]

from mayfly.api.compat.images import find_images, full_version, largest, limits_of, names_of
from mayfly.errors import RequestError
from mayfly.host.snippet import Snippet
from mayfly.images.store import InstalledImage
from mayfly.runs.runner import Runner

RUNTIMES = {"javascript": "node", "c": "gcc", "c++": "gcc"}
"""The package of those that share one with other languages."""
DEFAULTS_MS = {"run_timeout": 3000, "compile_timeout": 10000, "run_cpu_time": 3000, "compile_cpu_time": 10000}
MAX_NUMBER = 1 << 53
"""Larger numbers are not told apart in JavaScript."""
LIMITS = {"memory_limit": "memory", "timeout": "wall_s", "cpu_time": "cpu_s"}
"""Their names of limits, in the order in which they are checked, and ours."""


class Job(NamedTuple):
    """What a request asks for."""

    image: InstalledImage
    snippet: Snippet


def runtime_of(image: InstalledImage) -> dict[str, Any]:
    """An image as an entry of `/runtimes`."""
    name = names_of(image.manifest.language)[0]
    found = {"language": name, "version": full_version(image.manifest), "aliases": list(names_of(name)[1:])}
    return {**found, "runtime": RUNTIMES[name]} if name in RUNTIMES else found


def find_runtime(service: Runner, language: str, version: str) -> InstalledImage | None:
    """The highest version of the language that is in the range."""
    try:
        wanted = NpmSpec(re.sub(r"([<>=~^])\s+", r"\1", version.strip()).removeprefix("v"))
    except ValueError:
        return None
    found = [(Version(full_version(image.manifest)), image) for image in find_images(service.installed(), language)]
    fitting = [(number, image) for number, image in found if wanted.match(number)]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def make_job(service: Runner, body: Mapping[str, Any]) -> Job:
    """What a request asks for.

    Raises:
        RequestError: something in it is wrong; it is checked in Piston's order.
    """
    for name in ("language", "version"):
        if not body.get(name) or not isinstance(body[name], str):
            raise RequestError(f"{name} is required as a string")
    language, version, files = body["language"], body["version"], body.get("files")
    if not isinstance(files, list):
        raise RequestError("files is required as an array")
    for index, file in enumerate(files):
        if not isinstance(file, dict) or not isinstance(file.get("content"), str):
            raise RequestError(f"files[{index}].content is required as a string")
    image = find_runtime(service, language, version)
    if image is None:
        raise RequestError(f"{language[:80]}-{version[:80]} runtime is unknown")
    if not any(_encoding(file) == "utf8" for file in files):
        raise RequestError("files must include at least one utf8 encoded file")
    limits = _limits(service, image, body)
    stdin = _text("stdin", body.get("stdin"))
    args = body.get("args") or []
    if not isinstance(args, list):
        raise RequestError("args must be an array of strings")
    snippet = Snippet(
        files=_files(image, files),
        stdin=(stdin if stdin.endswith("\n") else f"{stdin}\n").encode(),
        args=tuple(_text(f"args[{index}]", value) for index, value in enumerate(args)),
        limits=limits,
    )
    return Job(image, snippet)


def _encoding(file: Mapping[str, Any]) -> str:
    encoding = file.get("encoding")
    return encoding if encoding in ("base64", "hex") else "utf8"


def _text(name: str, value: object) -> str:
    """A text, or a number as one."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise RequestError(f"{name} must be a string")
    found = str(value)
    if "\0" in found and name != "stdin":
        raise RequestError(f"{name} has a NUL")
    return found


def _files(image: InstalledImage, files: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The files by name; the first one that is text gets the name that the language wants."""
    found: dict[str, bytes] = {}
    main = next(index for index, file in enumerate(files) if _encoding(file) == "utf8")
    for index, file in [(main, files[main]), *((index, file) for index, file in enumerate(files) if index != main)]:
        name = file.get("name") or f"file{index}.code"
        if not isinstance(name, str):
            raise RequestError(f"files[{index}].name must be a string")
        name = image.manifest.source_name(name) if index == main else name.removeprefix("./")
        if name in found:
            raise RequestError(f"files[{index}].name is {name[:80]!r}, which is another file already", hint="rename it")
        try:
            found[name] = _decoded(file["content"], _encoding(file))
        except ValueError as error:
            raise RequestError(f"files[{index}].content is not {file['encoding']}: {error}") from error
    return found


def _decoded(content: str, encoding: str) -> bytes:
    if encoding == "hex":
        return binascii.unhexlify(content)
    if encoding == "base64":  # as Node's Buffer takes it: of both alphabets, and without the end's signs
        plain = re.sub(r"[^A-Za-z0-9+/]", "", content.replace("-", "+").replace("_", "/"))
        return base64.b64decode(plain[: len(plain) - (len(plain) % 4 == 1)] + "==")
    return content.encode()


def _limits(service: Runner, image: InstalledImage, body: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Limits by step, checked as Piston does: but a negative one of memory is none."""
    asked: dict[str, dict[str, float]] = {"compile": {}, "run": {}}
    for constraint, ours in LIMITS.items():
        for kind, limits in asked.items():
            name = f"{kind}_{constraint}"
            scale = 1 if ours == "memory" else 1000
            most = largest(image, service.config, ours, building=kind == "compile") * scale
            value = body.get(name)
            if value not in (None, False, 0, ""):  # as JavaScript has it: a list is something
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise RequestError(f"If specified, {name} must be a number")
                if most and value > most:
                    raise RequestError(f"{name} cannot exceed the configured limit of {most:.15g}")
                if value < 0 and ours != "memory":
                    raise RequestError(f"{name} must be non-negative")
            limits[ours] = max(0, min(value or DEFAULTS_MS.get(name, 0), MAX_NUMBER)) / scale
    return limits_of(image, service.config, build=asked["compile"], run=asked["run"])
