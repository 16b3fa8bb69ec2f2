"""The manifest: what an image is and how its language builds and runs a snippet. Written by
imagegen, read by the API.

It lies as `manifest.json` beside the `initramfs`. The JSON has the fields of these classes, by
name; times are in seconds, sizes in bytes.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from mayfly.errors import ImageError, ImageNotFoundError, SchemaError
from mayfly.files import stamp
from mayfly.schema import Record, decode

FORMAT = 1
COMPRESSIONS = ("zstd", "lz4", "gzip", "none")
MAX_MANIFEST = 8 << 20
"""Bytes of a manifest.json."""
MAX_START = 32 * 1024
"""Bytes of the image's environment and of its steps' programs and environments. They go into one
frame of 64 KiB (agent/PROTOCOL.md), with the snippet's own.
"""
VERSION = r"^([0-9A-Za-z][0-9A-Za-z._+~-]{0,63})?$"
REBUILD = "build the image again: imagegen build LANG"

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class LanguageStep(Record, frozen=True, kw_only=True):
    """One program that is run for a snippet, in the order of the manifest (`build`, then `run`; of
    a function `build`, then `function`).

    `{args}` as a whole element of `argv` stands for the request's arguments, `{name}` for the value
    of the option `name`. `stdin`: the request's standard input goes to this step. A limit of None
    means the server's default for a step of this name.

    `standby` is the command of a program that is started before a snapshot is taken, and may be
    this step's program afterwards (agent/PROTOCOL.md). At most one of the language's own steps has
    it; other steps of that name, such as a profile's, may be done by the same program if they name
    it too.
    """

    name: str
    argv: tuple[str, ...]
    cwd: str = "/work"
    env: Mapping[str, str] = {}
    stdin: bool = False
    wall_s: Seconds | None = None
    cpu_s: Seconds | None = None
    memory: Count | None = None
    processes: Count | None = None
    output: Count | None = None
    standby: tuple[str, ...] = ()


class Warmup(Record, frozen=True, kw_only=True):
    """A snippet whose steps a machine runs once before a snapshot of it is taken, so that what
    compiler and linker read is in memory.

    `files` are by name, to be written as a run's are; there may be neither files nor steps.
    """

    files: Mapping[str, str] = {}
    steps: tuple[LanguageStep, ...] = ()


class Function(Record, frozen=True, kw_only=True):
    """How the language loads a function.

    `files` is the text of what goes beside the function's own files, by paths relative to /work.
    The last of `steps` is the function: a program that serves descriptor 3 (agent/PROTOCOL.md); the
    steps before it build it. `{entry}` in their arguments stands for what is to be called, which is
    `entry` unless the function says otherwise; `{name}` for the value of an option, as for
    snippets. A function that is one file is written to `source_file`.
    """

    files: Mapping[str, str]
    steps: Annotated[tuple[LanguageStep, ...], Meta(min_length=1)]
    source_file: Annotated[str, Meta(pattern="^[^/]+$")]
    entry: str

    def __post_init__(self) -> None:
        if any({"", ".", ".."} & set(path.split("/")) or "\0" in path for path in self.files):
            raise ValueError("a file's path is relative, and has no empty, . or .. component")
        if self.source_file in self.files:
            raise ValueError(f"{self.source_file} is the function's own file")


class Profile(Record, frozen=True, kw_only=True):
    """What else than running it can be done with a snippet: test, format or lint it.

    A source that has no name goes to `source_file`, or to the language's own. `files` is the text
    of what goes beside the snippet's own files, by paths relative to /work. `{hidden}` as a whole
    element of a step's `argv` stands for the names of the request's hidden files, `{time_factor}`
    for how much longer everything may take on the host. With `tests` the last step puts out results
    of tests (mayfly.runs.tested says how). Files that match `collect` are given back.
    """

    steps: Annotated[tuple[LanguageStep, ...], Meta(min_length=1)]
    source_file: Annotated[str, Meta(pattern="^[^/]*$")] = ""
    files: Mapping[str, str] = {}
    tests: Literal["", "lines", "libtest", "gotest"] = ""
    collect: tuple[str, ...] = ()


class Option(Record, frozen=True, kw_only=True):
    """A choice that a snippet has, such as the edition of the language: one of the values. An
    option that `takes` addresses has none; it is such as `0.0.0.0:8080,[::]:8081`, or empty.
    """

    values: tuple[str, ...]
    default: str
    takes: Literal["", "addresses"] = ""


class ImageSource(Record, frozen=True, kw_only=True):
    """Where an image came from: the reference as given, and the digests that it resolved to."""

    reference: str
    manifest_digest: str
    config_digest: str
    layers: tuple[str, ...]


class Package(Record, frozen=True, kw_only=True):
    """A third-party package in an image. `kind` is the type that package URLs have for it (`pypi`,
    `npm`, …), `digest` that of the file it came in, at the address `source`; `license` is what it
    says of itself, as an SPDX expression.
    """

    kind: str
    name: str
    version: str
    digest: str = ""
    source: str = ""
    license: str = ""


class Manifest(Record, frozen=True, kw_only=True):
    """An image. `memory` is what a machine of it needs: archive + every file rounded up to 4 KiB +
    working memory.

    `version` is what the image's files show, `compiler` what the compiler said of itself in a
    machine; empty where none could be asked. `sizes` and `pruned` are bytes by directory: in the
    image, and taken out of it. `recipe_digest` is over everything that went into it; an image of
    the same recipe need not be built again. `checkpoint` is the file in /work that the last step's
    program writes when SIGUSR1 stops it; empty if it cannot be stopped so. `target` is what the
    programs are compiled to (`wasm`); empty if that is the machine's own code. A source is written
    to `source_file`, or to the one of `source_files` for the extension that it has. `system` has
    the versions of the distribution's packages of which a file is in the image.
    """

    language: str
    version: Annotated[str, Meta(pattern=VERSION)]
    arch: str
    extensions: tuple[str, ...]
    source_file: str
    source_files: Mapping[str, str] = {}
    steps: tuple[LanguageStep, ...]
    env: Mapping[str, str]
    source: ImageSource
    compression: Annotated[str, Meta(pattern=f"^({'|'.join(COMPRESSIONS)})$")]
    initramfs_size: Count
    initramfs_digest: str
    end_marker: str
    unpacked_size: Count
    entries: Count
    memory: Count
    agent_digest: str
    generator: str
    recipe_digest: str = ""
    compiler: str = ""
    options: Mapping[str, Option] = {}
    warmup: Warmup = Warmup()
    function: Function | None = None
    profiles: Mapping[str, Profile] = {}
    checkpoint: str = ""
    target: str = ""
    packages: tuple[Package, ...] = ()
    distribution: str = ""
    system: Mapping[str, str] = {}
    sizes: Mapping[str, Count] = {}
    pruned: Mapping[str, Count] = {}
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not re.fullmatch(VERSION, self.version):
            raise ImageError(f"the version {self.version[:80]!r} is not usable", hint="a version has letters, digits and . _ + ~ -")
        if sum(bool(step.standby) for step in self.steps) > 1:
            raise ImageError("more than one step has a standby", hint="have one program stand by, for the step that takes longest")
        others = (profile.steps for profile in self.profiles.values())
        jobs = (self.steps, self.warmup.steps, self.function.steps if self.function else (), *others)
        for env in (self.env, *(step.env for steps in jobs for step in steps)):
            _check_env(env)
        size = max(_size(self.env, steps) for steps in jobs)
        if size > MAX_START:
            raise ImageError(
                f"environment and steps have {size} bytes; at most {MAX_START} can go to a guest", hint="use an image with less"
            )

    def source_name(self, path: str) -> str:
        """The name in the working folder of a source that is called `path` elsewhere."""
        return self.source_files.get(PurePath(path).suffix, self.source_file)

    def to_json(self) -> str:
        """The manifest as JSON text, the same for equal manifests."""
        return json.dumps(msgspec.to_builtins(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "manifest") -> Self:
        """Parse and check.

        Raises:
            ImageError: not JSON, a field is missing, unknown or of the wrong type, or the format is
                not ours. `origin` is named in it.
        """
        try:
            if decode(_Format, text).format != FORMAT:
                raise ImageError(f"its format is not {FORMAT}")
            return decode(cls, text)
        except (SchemaError, ImageError) as error:
            raise ImageError(f"{origin}: not a valid image manifest: {error}", hint=REBUILD) from error


class _Format(msgspec.Struct):
    format: Any = None


def _check_env(env: Mapping[str, str]) -> None:
    """Refuse variables that no process can have."""
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise ImageError(
                f"the environment variable {name[:80]!r} is not usable",
                hint="a name is not empty and has no =, nothing a NUL",
            )
        try:
            (name + value).encode()
        except UnicodeEncodeError as error:
            raise ImageError(f"the environment variable {name[:80]!r} is not UTF-8 text") from error


def _size(env: Mapping[str, str], steps: tuple[LanguageStep, ...]) -> int:
    """Bytes of what goes to a guest for these steps."""
    words = [
        *env,
        *env.values(),
        *(word for step in steps for word in (step.name, step.cwd, *step.argv, *step.standby, *step.env, *step.env.values())),
    ]
    return sum(len(word.encode(errors="surrogatepass")) for word in words)


def stamps(folder: Path) -> object:
    """What is another once an image, or a file of it, is; None: it cannot be read."""
    try:
        return [stamp(f"{folder}/{name}") for name in ("manifest.json", "initramfs")]
    except OSError:
        return None


def load(folder: Path) -> Manifest:
    """Read the manifest of the image in `folder`.

    Raises:
        ImageNotFoundError: there is none.
        ImageError: it is broken, or the initramfs beside it is missing or of another size.
    """
    path = folder / "manifest.json"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST + 1)
    except FileNotFoundError as error:
        raise ImageNotFoundError(f"{folder}: no image there", hint=f"build it: imagegen build {folder.parent.name}") from error
    if len(data) > MAX_MANIFEST:
        raise ImageError(f"{path} has more than {MAX_MANIFEST} bytes", hint=REBUILD)
    manifest = Manifest.from_json(data, str(path))
    try:
        size = (folder / "initramfs").stat().st_size
    except FileNotFoundError as error:
        raise ImageError(f"{folder}/initramfs is missing", hint=REBUILD) from error
    if size != manifest.initramfs_size:
        raise ImageError(
            f"{folder}/initramfs has {size} bytes, its manifest says {manifest.initramfs_size}",
            hint=REBUILD,
        )
    return manifest
