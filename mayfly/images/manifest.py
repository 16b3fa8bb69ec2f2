"""The manifest: what an image is and how its language builds and runs a snippet. Written by
imagegen, read by the API.

It lies as `manifest.json` beside the `initramfs`. The JSON has the fields of these classes, by
name; times are in seconds, sizes in bytes.
"""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from mayfly.errors import ImageError, ImageNotFoundError

_T = TypeVar("_T")
FORMAT = 1
COMPRESSIONS = ("zstd", "lz4", "gzip", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One program that is run for a snippet, in the order of the manifest (`build`, then `run`).

    `{args}` as a whole element of `argv` stands for the request's arguments. `stdin`: the request's
    standard input goes to this step. A limit of None means the server's default for a step of this
    name.
    """

    name: str
    argv: tuple[str, ...]
    cwd: str = "/work"
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stdin: bool = False
    wall_s: float | None = None
    cpu_s: float | None = None
    memory: int | None = None
    processes: int | None = None
    output: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warmup:
    """A snippet whose steps a machine runs once before a snapshot of it is taken, so that what
    compiler and linker read is in memory.

    `files` are by name, to be written as a run's are; there may be neither files nor steps.
    """

    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    steps: tuple[Step, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where an image came from: the reference as given, and the digests that it resolved to."""

    reference: str
    manifest_digest: str
    config_digest: str
    layers: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """An image. `memory` is what a machine of it needs: archive + every file rounded up to 4 KiB +
    working memory.

    `version` is what the image's files show, `compiler` what the compiler said of itself in a
    machine; empty where none could be asked. `sizes` and `pruned` are bytes by directory: in the
    image, and taken out of it. `recipe_digest` is over everything that went into it; an image of
    the same recipe need not be built again.
    """

    language: str
    version: str
    arch: str
    extensions: tuple[str, ...]
    source_file: str
    steps: tuple[Step, ...]
    env: Mapping[str, str]
    source: Source
    compression: str
    initramfs_size: int
    initramfs_digest: str
    end_marker: str
    unpacked_size: int
    entries: int
    memory: int
    agent_digest: str
    generator: str
    recipe_digest: str = ""
    compiler: str = ""
    warmup: Warmup = Warmup()
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pruned: Mapping[str, int] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        """The manifest as JSON text, the same for equal manifests."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str = "manifest") -> Self:
        """Parse and check.

        Raises:
            ImageError: not JSON, a field is missing, unknown or of the wrong type, or the format is
                not ours. `origin` is named in it.
        """
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict) or raw.get("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            raw["steps"] = _steps(raw["steps"])
            if "warmup" in raw:
                raw["warmup"] = checked(Warmup, {**raw["warmup"], "steps": _steps(raw["warmup"]["steps"])})
            raw["source"] = checked(Source, {**raw["source"], "layers": tuple(raw["source"]["layers"])})
            raw["extensions"] = tuple(raw["extensions"])
            manifest = checked(cls, raw)
            if manifest.compression not in COMPRESSIONS:
                raise ValueError(f"compression {manifest.compression!r} is none of {', '.join(COMPRESSIONS)}")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ImageError(f"{origin}: not a valid image manifest: {error}", hint="build the image again: imagegen build LANG") from error
        return manifest


def _steps(raw: list[dict[str, Any]]) -> tuple[Step, ...]:
    return tuple(checked(Step, {**step, "argv": tuple(step["argv"])}) for step in raw)


_hints = functools.cache(typing.get_type_hints)


def checked(cls: type[_T], raw: Mapping[str, Any]) -> _T:
    """`cls(**raw)` after comparing each value with its field's type, as far as JSON can tell types
    apart.
    """
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable, which mypy does not see of one that is a parameter
    for name, value in raw.items():
        if name not in hints:
            raise ValueError(f"unknown field {name!r}")
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {value!r}")
    return cls(**raw)


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(isinstance(k, str) and _fits(v, typing.get_args(hint)[1]) for k, v in value.items())
    if origin is types.UnionType:
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is Any:
        return True
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    if hint is int:
        return isinstance(value, int) and value >= 0
    return isinstance(value, hint)


def load(folder: Path) -> Manifest:
    """Read the manifest of the image in `folder`.

    Raises:
        ImageNotFoundError: there is none.
        ImageError: it is broken, or the initramfs beside it is missing or of another size.
    """
    path = folder / "manifest.json"
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise ImageNotFoundError(f"{folder}: no image there", hint=f"build it: imagegen build {folder.parent.name}") from error
    manifest = Manifest.from_json(text, str(path))
    try:
        size = (folder / "initramfs").stat().st_size
    except FileNotFoundError as error:
        raise ImageError(f"{folder}/initramfs is missing", hint="build the image again: imagegen build LANG") from error
    if size != manifest.initramfs_size:
        raise ImageError(
            f"{folder}/initramfs has {size} bytes, its manifest says {manifest.initramfs_size}",
            hint="build the image again: imagegen build LANG",
        )
    return manifest
