"""Packages of JavaScript: tarballs of an npm registry, unpacked to /node_modules, where Node looks
for what a program in /work imports. No script of a package is run.

npm's documentation: package metadata, package.json (dependencies), semver ranges.
"""

import base64
import binascii
import dataclasses
import re
import urllib.parse
from collections import deque
from collections.abc import Iterable, Mapping

import msgspec
from semantic_version import NpmSpec, Version  # type: ignore[import-untyped]

from mayfly.errors import ConfigError, ImageError, LayerError, RegistryError, SchemaError
from mayfly.imagegen.packages.archives import read_tgz
from mayfly.imagegen.packages.downloads import Downloads
from mayfly.imagegen.packages.target import Target
from mayfly.images.manifest import Package
from mayfly.schema import decode

ACCEPT = "application/vnd.npm.install-v1+json"
MAX_PACKAGES = 2000
_NAME = re.compile(r"(?:@[a-z0-9~-][a-z0-9._~-]*/)?[a-zA-Z0-9~_-][a-zA-Z0-9._~-]*")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_LOOSE = re.compile(r"(?<=[<>=~^])\s+(?:v(?=\d))?|(?<![\w.+-])v(?=\d)")
"""What npm passes over in a range: spaces behind an operator, a `v` before a version."""
_CPUS = {"x86_64": "x64", "aarch64": "arm64"}
_ASKED = "--package"


class _Dist(msgspec.Struct, frozen=True, kw_only=True):
    tarball: str
    integrity: str = ""


class _Optional(msgspec.Struct, frozen=True, kw_only=True):
    optional: bool = False


class _Version(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is known of one version (abbreviated metadata format)."""

    dist: _Dist
    dependencies: Mapping[str, str] = {}
    optional_dependencies: Mapping[str, str] = {}
    peer_dependencies: Mapping[str, str] = {}
    peer_dependencies_meta: Mapping[str, _Optional] = {}
    os: tuple[str, ...] | str = ()
    cpu: tuple[str, ...] | str = ()
    libc: tuple[str, ...] | str = ()


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry knows of a package. Versions are read when they are chosen: old ones may have
    anything in them.
    """

    versions: Mapping[str, msgspec.Raw]
    dist_tags: Mapping[str, str] = msgspec.field(default_factory=dict, name="dist-tags")


@dataclasses.dataclass(eq=False)
class _Placed:
    """A package at its place: below another one, or at the top."""

    name: str
    version: str
    known: _Version
    parent: "_Placed | None"
    inside: dict[str, "_Placed"] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Where it is in the image."""
        return f"{self.parent.folder if self.parent else ''}/node_modules/{self.name}" if self.name else ""

    def find(self, name: str) -> "_Placed | None":
        """What `name` is to this package: its own, or the nearest above it."""
        return self.inside.get(name) or (self.parent.find(name) if self.parent else None)


class _Registry:
    def __init__(self, downloads: Downloads, arch: str) -> None:
        self._downloads = downloads
        self._arch = arch
        self._documents: dict[str, _Document] = {}

    def choose(self, name: str, wanted: str, by: str) -> tuple[str, _Version]:
        """The version of a package that npm would install.

        Raises:
            ImageError: there is none.
        """
        document = self._document(name, by)
        tags = document.dist_tags
        if wanted in tags:
            found = tags[wanted]
        else:
            newest = tags.get("latest", "")
            fitting = [version for version in document.versions if _fits(version, wanted)]
            found = newest if newest in fitting else max(fitting, key=Version, default="")
        if found not in document.versions:
            hint = "see its versions in the registry, or give another --packages-from"
            raise ImageError(f"{by} needs {name}@{wanted}, of which the registry has no version", hint=hint)
        try:
            return found, decode(_Version, bytes(document.versions[found]))
        except SchemaError as error:
            raise RegistryError(f"{name}@{found} in the registry: {error.message}", hint="ask for another version") from error

    def fits(self, name: str, version: str, wanted: str, by: str) -> bool:
        """Whether a version that is there is what is wanted. Raises ImageError: that is neither a
        range nor a tag.
        """
        try:
            return _fits(version, wanted)
        except ImageError:
            tagged = self._document(name, by).dist_tags.get(wanted)
            if tagged is None:
                raise
            return version == tagged

    def _document(self, name: str, by: str) -> _Document:
        if name not in self._documents:
            at = f"{self._downloads.base}/{urllib.parse.quote(name, safe='@')}"
            data = self._downloads.document(at, ACCEPT)
            if data is None:
                raise ImageError(f"{by} needs {name}, which the registry has not", hint="is it spelled so? give another --packages-from")
            try:
                self._documents[name] = decode(_Document, data)
            except SchemaError as error:
                raise RegistryError(f"{at} is not npm's metadata: {error.message}", hint="give another --packages-from") from error
        return self._documents[name]

    def runs_here(self, known: _Version) -> bool:
        """Whether a package is for the image's system: those with machine code may not be."""
        system = {"os": "linux", "cpu": _CPUS.get(self._arch, self._arch), "libc": "glibc"}
        return all(_allows(getattr(known, key), value) for key, value in system.items())


def _allows(listed: tuple[str, ...] | str, value: str) -> bool:
    names = (listed,) if isinstance(listed, str) else listed
    only = [name for name in names if name and not name.startswith("!")]
    return f"!{value}" not in names and (not only or value in only or "any" in only)


def _fits(version: str, wanted: str) -> bool:
    """Whether a version is in a range. Raises ImageError: it is not a range of versions."""
    try:
        spec = NpmSpec(_LOOSE.sub("", wanted.strip().replace("~>", "~")) or "*")
    except ValueError as error:
        raise ImageError(f"{wanted!r} is not a range of versions in a registry", hint="only those are taken: no URL, no file") from error
    try:
        return bool(spec.match(Version(version)))
    except ValueError:
        return False


def add(target: Target) -> tuple[Package, ...]:
    """Unpack what is asked for, and all that it needs, to /node_modules.

    Raises:
        ConfigError, ImageError, LayerError, RegistryError: as for any package.
    """
    downloads = target.downloads()
    added = []
    for placed in resolve(target.options.packages, _Registry(downloads, target.options.arch)):
        digest = _digest(placed)
        url = placed.known.dist.tarball
        path = downloads.file(url, digest, target.limits.unpacked)
        try:
            target.place(placed.folder, read_tgz(path, target.spools, target.limits))
        except LayerError as error:
            raise LayerError(f"{url}: {error.message}", hint=error.hint) from error
        added.append(Package(kind="npm", name=placed.name, version=placed.version, digest=digest, source=url))
    return tuple(sorted(added, key=lambda package: (package.name, package.version)))


def resolve(wanted: Iterable[str], registry: _Registry) -> list[_Placed]:
    """Where all packages go: each at the top, unless another version of it is there; then below the
    one that needs it. What is asked for comes first.

    Raises:
        ConfigError: a package is named in a way that makes no sense.
        ImageError: one cannot be had, or two contradict each other.
    """
    top = _Placed("", "", _Version(dist=_Dist(tarball="")), None)
    todo: deque[_Placed] = deque()
    placed: list[_Placed] = []

    def need(by: _Placed, name: str, range_: str, *, optional: bool = False, peer: bool = False) -> None:
        who = f"{by.name}@{by.version}" if by.name else _ASKED
        alias = re.fullmatch(r"npm:(.+)@([^@/]+)", range_)
        there = by.find(name)
        if there is not None and (alias or registry.fits(name, there.version, range_, who)):
            return
        if there is not None and (peer or by is top):
            raise ImageError(f"{who} needs {name}@{range_}, and {there.version} is chosen", hint="ask for versions that go together")
        version, known = registry.choose(alias[1] if alias else name, alias[2] if alias else range_, who)
        if not registry.runs_here(known):
            if optional:
                return
            raise ImageError(f"{name}@{version}, which {who} needs, is not for this machine")
        parent = top if there is None else by
        parent.inside[name] = _Placed(name, version, known, parent)
        todo.append(parent.inside[name])
        placed.append(parent.inside[name])
        if len(placed) > MAX_PACKAGES:
            raise ImageError(f"these are more than {MAX_PACKAGES} packages", hint="ask for fewer")

    for name, range_ in map(parse, wanted):
        need(top, name, range_)
    while todo:
        package = todo.popleft()
        known = package.known
        for name, range_ in known.dependencies.items():
            if name not in known.optional_dependencies:
                _check_name(name, package)
                need(package, name, range_)
        for name, range_ in known.optional_dependencies.items():
            _check_name(name, package)
            need(package, name, range_, optional=True)
        for name, range_ in known.peer_dependencies.items():
            meta = known.peer_dependencies_meta.get(name)
            if meta is None or not meta.optional:
                _check_name(name, package)
                need(package, name, range_, peer=True)
    return placed


def parse(text: str) -> tuple[str, str]:
    """`lodash`, `lodash@4`, `@types/node@^20` as name and range.

    Raises:
        ConfigError: it makes no sense.
        ImageError: the range is none, nor the name of a version.
    """
    at = text.find("@", 1)
    name, range_ = (text, "latest") if at < 0 else (text[:at], text[at + 1 :])
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--package {text!r} is not a name of npm's", hint="write it as lodash, lodash@4 or @types/node@^20")
    if not _TAG.fullmatch(range_):
        _fits("0.0.0", range_)
    return name, range_


def _check_name(name: str, by: _Placed) -> None:
    if not _NAME.fullmatch(name):
        raise ImageError(f"{by.name}@{by.version} needs {name[:80]!r}, which is not a name", hint="do not use the package")


def _digest(placed: _Placed) -> str:
    """The digest of the tarball (Subresource Integrity): of several the strongest."""
    found = dict(part.split("-", 1) for part in placed.known.dist.integrity.split() if "-" in part)
    for algorithm in ("sha512", "sha256"):
        try:
            raw = base64.b64decode(found.get(algorithm, "").partition("?")[0], validate=True)
        except binascii.Error:
            continue
        if len(raw) * 8 == int(algorithm[3:]):
            return f"{algorithm}:{raw.hex()}"
    raise ImageError(f"{placed.name}@{placed.version} has no digest in the registry but that of SHA-1", hint="ask for a newer version")
