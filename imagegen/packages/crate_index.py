"""A sparse index of crates: which versions there are, what they need, where their files are.

The Cargo Book: registry index.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping

import msgspec
from semantic_version import NpmSpec, Version  # type: ignore[import-untyped]

from mayfly.errors import ImageError, RegistryError, SchemaError
from mayfly.imagegen.packages.downloads import Downloads
from mayfly.schema import decode

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""Of a crate."""


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """What a version needs. `package` is the crate's name where the code calls it otherwise."""

    name: str
    req: str
    features: tuple[str, ...] = ()
    optional: bool = False
    default_features: bool = True
    target: str | None = None
    kind: str | None = None
    registry: str | None = None
    package: str | None = None


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the index (registry index, JSON schema)."""

    name: str
    vers: str
    deps: tuple[Dependency, ...]
    cksum: str
    features: Mapping[str, tuple[str, ...]] = {}
    features2: Mapping[str, tuple[str, ...]] | None = None
    yanked: bool = False
    rust_version: str | None = None

    def all_features(self) -> dict[str, tuple[str, ...]]:
        """What each feature turns on; an optional dependency is a feature too, if `dep:` names it
        nowhere.
        """
        found = {**self.features, **(self.features2 or {})}
        named = {text for turned_on in found.values() for text in turned_on}
        implied = {need.name: (f"dep:{need.name}",) for need in self.deps if need.optional and f"dep:{need.name}" not in named}
        return {**implied, **found}


class Index:
    """A sparse index, for a compiler of this version (1.85.1)."""

    def __init__(self, downloads: Downloads, version: str) -> None:
        self._downloads = downloads
        self._rust = _numbers(version)
        self._versions: dict[str, list[Release]] = {}

    def choose(self, name: str, wanted: Iterable[str], by: str) -> Release | None:
        """The newest version of a crate that fits all of what is wanted, if there is one.

        Raises:
            ImageError: the index has no such crate, or spells it otherwise.
        """
        specs = [spec(text, by) for text in wanted]
        for known in self._read(name, by):
            if all(one.match(Version(known.vers)) for one in specs):
                return known
        return None

    def newest(self, name: str) -> str:
        """The newest version there is for this compiler; empty if there is none."""
        return next((known.vers for known in self._versions.get(name, ())), "")

    def _read(self, name: str, by: str) -> list[Release]:
        """The versions for this compiler, the newest first."""
        if name not in self._versions:
            if not NAME.fullmatch(name):
                raise ImageError(f"{by} needs {name[:80]!r}, which is not a name", hint="do not use the crate")
            at = f"{self._downloads.base}/{index_path(name)}"
            data = self._downloads.document(at)
            if data is None:
                raise ImageError(f"{by} needs {name}, which the index has not", hint="is it spelled so? give another --packages-from")
            try:
                found = [decode(Release, line) for line in data.splitlines() if line.strip()]
                if others := {known.name for known in found} - {name}:
                    has = repr(min(others)[:80])
                    raise ImageError(f"{by} needs {name}, which the index has as {has}", hint="spell it as the index does")
                usable = [known for known in found if not known.yanked and _numbers(known.rust_version or "") <= self._rust]
                self._versions[name] = sorted(usable, key=lambda known: Version(known.vers), reverse=True)
            except (SchemaError, ValueError) as error:
                raise RegistryError(f"{at} is not of an index of crates: {error}", hint="give another --packages-from") from error
        return self._versions[name]

    @functools.cached_property
    def _template(self) -> str:
        at = f"{self._downloads.base}/config.json"
        try:
            return str(json.loads(self._downloads.document(at) or b"")["dl"])
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"{at} does not say where crates are", hint="give another --packages-from") from error

    def address(self, known: Release) -> str:
        """Where a crate's file is (registry index, Index configuration)."""
        template = self._template
        name = known.name
        values = {"crate": name, "version": known.vers, "prefix": index_path(name).rpartition("/")[0]}
        values |= {"lowerprefix": index_path(name.lower()).rpartition("/")[0], "sha256-checksum": known.cksum}
        if not any(f"{{{key}}}" in template for key in values):
            template += "/{crate}/{version}/download"
        for key, value in values.items():
            template = template.replace(f"{{{key}}}", value)
        return template


def index_path(name: str) -> str:
    """A crate's file in an index (registry index, Index files)."""
    folder = {1: "1", 2: "2", 3: f"3/{name[:1]}"}.get(len(name), f"{name[:2]}/{name[2:4]}")
    return f"{folder}/{name}".lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", version.partition("-")[0])[:3])


def spec(text: str, by: str) -> NpmSpec:
    """A requirement of Cargo's: as npm has it, but a plain version is a caret's."""
    parts = [part.strip().partition("+")[0] for part in text.split(",")]
    try:
        return NpmSpec(" ".join(f"^{part}" if part[:1].isdigit() else re.sub(r"([<>=~^])\s+", r"\1", part) for part in parts))
    except ValueError as error:
        raise ImageError(f"{by} needs {text!r}, which is not a range of versions", hint="write it as 1, 0.8, =1.0.2 or >=1,<3") from error
