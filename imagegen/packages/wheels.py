"""Python's packages: wheels from a simple index, for the image's Python, unpacked to where it looks
for them. Nothing is built, and nothing of a package is run.

PyPA specifications: simple repository API (JSON), version specifiers, dependency specifiers,
platform compatibility tags, core metadata, binary distribution format.
"""

import dataclasses
import functools
import re
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from packaging.markers import UndefinedEnvironmentName
from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from mayfly.errors import ConfigError, ImageError, LayerError, RegistryError, SchemaError
from mayfly.imagegen.digests import is_digest
from mayfly.imagegen.packages.archives import ARCHIVE_ERRORS, Packed, read_zip
from mayfly.imagegen.packages.downloads import Downloads
from mayfly.imagegen.packages.target import Target
from mayfly.imagegen.rootfs.spools import Limits, Spools
from mayfly.imagegen.rootfs.tree import Content, Tree
from mayfly.images.manifest import Package
from mayfly.schema import decode

ACCEPT = "application/vnd.pypi.simple.v1+json"
MAX_METADATA = 4 << 20
MAX_TRIED = 500
"""Wheels that are looked at for one image; as deep as the search can be."""
MAX_LIBC = 8 << 20
_GLIBC = re.compile(rb"stable release version (\d{1,3})\.(\d{1,3})")
_LEGACY = {(2, 17): "manylinux2014", (2, 12): "manylinux2010", (2, 5): "manylinux1"}
_SHEBANG = re.compile(rb"#!python[^\n]*")


class Interpreter(NamedTuple):
    """An image's Python: its version (3, 13), the machine's type, and glibc's version where the C
    library is that one.
    """

    version: tuple[int, int]
    arch: str
    glibc: tuple[int, int] | None

    @property
    def name(self) -> str:
        """`3.13`"""
        return f"{self.version[0]}.{self.version[1]}"

    def tags(self) -> Mapping[Tag, int]:
        """What wheels may be for, the best lowest."""
        platforms = []
        if self.glibc is not None and self.glibc[0] == 2:
            for minor in range(self.glibc[1], 4, -1):
                platforms.append(f"manylinux_2_{minor}_{self.arch}")
                if (2, minor) in _LEGACY:
                    platforms.append(f"{_LEGACY[2, minor]}_{self.arch}")
            platforms.append(f"linux_{self.arch}")
        platforms = platforms or ["any"]  # else those of this host
        cpython = f"cp{self.version[0]}{self.version[1]}"
        found = [*cpython_tags(self.version, [cpython], platforms), *compatible_tags(self.version, cpython, platforms)]
        return {tag: rank for rank, tag in reversed(list(enumerate(found)))}

    def environment(self) -> dict[str, str]:
        """What environment markers are about."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.name}.0",
            "os_name": "posix",
            "platform_machine": self.arch,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.name}.0",
            "python_version": self.name,
            "sys_platform": "linux",
        }


def interpreter(target: Target) -> Interpreter:
    """The image's Python.

    Raises:
        ImageError: the version is not one of Python.
    """
    arch = target.options.arch
    numbers = re.match(r"3\.(\d{1,3})", target.version)
    if numbers is None:
        raise ImageError(f"no packages are known for Python {target.version}", hint="take an image of Python 3")
    glibc = None
    for path in (f"usr/lib/{arch}-linux-gnu/libc.so.6", f"lib/{arch}-linux-gnu/libc.so.6", "usr/lib64/libc.so.6", "lib64/libc.so.6"):
        node = target.tree.find(path.encode())
        if node is not None and not node.is_dir and not node.is_symlink and node.inode.size <= MAX_LIBC:
            found = _GLIBC.search(target.spools.read(node.inode.content))
            glibc = (int(found[1]), int(found[2])) if found else None
            break
    return Interpreter((3, int(numbers[1])), arch, glibc)


class _File(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A file of a project (simple repository API, Project Detail)."""

    filename: str
    url: str
    hashes: Mapping[str, str]
    requires_python: str | None = None
    core_metadata: bool | Mapping[str, str] = False
    yanked: bool | str = False


class _Project(msgspec.Struct, frozen=True, kw_only=True):
    files: tuple[_File, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel that fits: where it is, its digest, and its metadata's, if that is beside it."""

    name: str
    version: Version
    url: str
    digest: str
    metadata_digest: str
    yanked: bool


def add(target: Target) -> tuple[Package, ...]:
    """Unpack the wheels of what is asked for, and of all that it needs, to where the image's Python
    finds them.

    Raises:
        ConfigError, ImageError, LayerError, RegistryError: as for any package.
    """
    python = interpreter(target)
    downloads = target.downloads()
    index = Index(downloads, python, target.limits)
    site = _site(target.tree, python)
    added = []
    for wheel in resolve(target.options.packages, index):
        path = downloads.file(wheel.url, wheel.digest, target.limits.unpacked)
        try:
            target.place("", [_placed(file, site, target.spools) for file in read_zip(path, target.spools, target.limits)])
        except LayerError as error:
            raise LayerError(f"{wheel.url}: {error.message}", hint=error.hint) from error
        added.append(
            Package(
                kind="pypi",
                name=wheel.name,
                version=str(wheel.version),
                digest=wheel.digest,
                source=wheel.url,
                license=index.metadata(wheel).get("license_expression", ""),
            )
        )
    return tuple(added)


class _Conflict(Exception):  # noqa: N818 (a state of the search, not an error)
    """What stands in the way of a choice."""


class Index:
    """A simple index, for one interpreter."""

    def __init__(self, downloads: Downloads, python: Interpreter, limits: Limits) -> None:
        self._downloads = downloads
        self._python = python
        self._limits = limits
        self._tags = python.tags()
        self._wheels = functools.cache(self._read_wheels)
        self.metadata = functools.cache(self._read_metadata)

    def candidates(self, name: str, wanted: SpecifierSet) -> list[Wheel]:
        """The wheels of a project that fit, the newest first; pre-releases only where they are
        asked for, or there is nothing else.

        Raises:
            RegistryError: the index cannot be read.
            _Conflict: there is none, for the reason that it says.
        """
        known = self._wheels(name)
        pinned = any(part.operator in ("==", "===") and "*" not in part.version for part in wanted)
        usable = {wheel.version: wheel for wheel in known if pinned or not wheel.yanked}
        found = [usable[version] for version in wanted.filter(sorted(usable, reverse=True))]
        if not found:
            newest = ", ".join(str(wheel.version) for wheel in known[:3])
            what = f"has {newest} …" if known else f"has none for Python {self._python.name} on {self._python.arch}"
            raise _Conflict(f"no wheel of {name} fits {str(wanted) or 'any version'}: the index {what}")
        return found

    def _read_wheels(self, name: str) -> list[Wheel]:
        """All wheels for the interpreter, of each version the best, the newest first."""
        at = f"{self._downloads.base}/{name}/"
        data = self._downloads.document(at, ACCEPT)
        if data is None:
            raise _Conflict(f"the index has no project {name!r}")
        try:
            files = decode(_Project, data).files
        except SchemaError as error:
            raise RegistryError(f"{at} is not a simple index in JSON: {error.message}", hint="give another --packages-from") from error
        best: dict[Version, tuple[int, Wheel]] = {}
        for file in files:
            wheel = self._wheel(name, at, file)
            if wheel is not None and (wheel[1].version not in best or wheel[0] < best[wheel[1].version][0]):
                best[wheel[1].version] = wheel
        return [best[version][1] for version in sorted(best, reverse=True)]

    def _wheel(self, name: str, at: str, file: _File) -> tuple[int, Wheel] | None:
        """What the file is, if it fits, with the rank of its best tag."""
        try:
            project, version, _, tags = parse_wheel_filename(file.filename)
            supported = file.requires_python is None or SpecifierSet(file.requires_python).contains(f"{self._python.name}.99")
        except (InvalidWheelFilename, InvalidSpecifier):
            return None
        ranks = [self._tags[tag] for tag in tags if tag in self._tags]
        digest = f"sha256:{file.hashes.get('sha256', '')}"
        if not ranks or not supported or project != name or not is_digest(digest):
            return None
        beside = f"sha256:{file.core_metadata.get('sha256', '')}" if isinstance(file.core_metadata, Mapping) else ""
        url = urllib.parse.urljoin(at, file.url)
        known = beside if is_digest(beside) else ""
        return min(ranks), Wheel(name=name, version=version, url=url, digest=digest, metadata_digest=known, yanked=bool(file.yanked))

    def _read_metadata(self, wheel: Wheel) -> RawMetadata:
        """What the wheel says of itself, without fetching it where the index has that beside it."""
        if wheel.metadata_digest:
            data = self._downloads.file(f"{wheel.url}.metadata", wheel.metadata_digest, MAX_METADATA).read_bytes()
        else:
            path = self._downloads.file(wheel.url, wheel.digest, self._limits.unpacked)
            try:
                with zipfile.ZipFile(path) as archive:
                    names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith(".dist-info/METADATA")]
                    if len(names) != 1 or archive.getinfo(names[0]).file_size > MAX_METADATA:
                        raise LayerError(f"{wheel.url} has not one METADATA of at most {MAX_METADATA} bytes", hint="do not use it")
                    data = archive.read(names[0])
            except ARCHIVE_ERRORS as error:
                raise LayerError(f"{wheel.url} is damaged: {error}") from error
        return parse_email(data)[0]

    def wants(self, requirement: Requirement, extras: Iterable[str] = ()) -> bool:
        """Whether the requirement is one for the image's Python, with these extras of who has it.

        Raises:
            UndefinedEnvironmentName: its marker makes no sense.
        """
        environments = [{**self._python.environment(), "extra": extra} for extra in ("", *extras)]
        return requirement.marker is None or any(map(requirement.marker.evaluate, environments))

    def dependencies(self, wheel: Wheel, extras: Iterable[str]) -> Iterator[Requirement]:
        """What the wheel needs, with these extras of it."""
        for text in self.metadata(wheel).get("requires_dist", ()):
            try:
                requirement = Requirement(text)
                wanted = self.wants(requirement, extras)
            except (InvalidRequirement, UndefinedEnvironmentName) as error:
                raise ImageError(f"{wheel.name} {wheel.version} needs {text!r}, which makes no sense: {error}") from error
            if wanted:
                yield requirement


class _Wish(NamedTuple):
    requirement: Requirement
    by: str


@dataclasses.dataclass
class _Search:
    """Looks for a set of wheels that fit together: depth first, newest first."""

    index: Index
    tried: int = 0
    reason: str = ""

    def choose(self, todo: Sequence[_Wish], chosen: Mapping[str, tuple[Wheel, frozenset[str]]]) -> Mapping[str, Wheel] | None:
        """All wheels, of those `chosen` and those for what is left to do, or None if there are no
        such; `reason` says then what stood in the way.
        """
        todo, chosen = list(todo), dict(chosen)
        while todo and (name := canonicalize_name(todo[0].requirement.name)) in chosen:
            requirement, by = todo.pop(0)
            wheel, extras = chosen[name]
            if not requirement.specifier.contains(wheel.version, prereleases=True):
                self.reason = f"{by} needs {requirement}, not {wheel.version}"
                return None
            if not requirement.extras <= extras:
                chosen[name] = wheel, extras | requirement.extras
                todo += self._needs(wheel, extras | requirement.extras)
        if not todo:
            return {name: wheel for name, (wheel, _) in chosen.items()}
        (requirement, by), *left = todo
        name = canonicalize_name(requirement.name)
        if requirement.url:
            self.reason = f"{by} needs {requirement}, which is not in an index"
            return None
        same = [wish.requirement for wish in left if canonicalize_name(wish.requirement.name) == name]
        specifier = functools.reduce(lambda all_, wish: all_ & wish.specifier, same, requirement.specifier)
        try:
            candidates = self.index.candidates(name, specifier)
        except _Conflict as conflict:
            self.reason = f"{conflict} ({by} needs it)"
            return None
        for wheel in candidates:
            self.tried += 1
            if self.tried > MAX_TRIED:
                raise ImageError(f"after {MAX_TRIED} wheels no set fits together: {self.reason}", hint="say which versions you want")
            extras = frozenset(requirement.extras)
            found = self.choose([*left, *self._needs(wheel, extras)], {**chosen, name: (wheel, extras)})
            if found is not None:
                return found
        return None

    def _needs(self, wheel: Wheel, extras: Iterable[str]) -> list[_Wish]:
        by = f"{wheel.name} {wheel.version}"
        return [_Wish(need, by) for need in self.index.dependencies(wheel, sorted(extras))]


def parse(text: str) -> Requirement:
    """`requests[socks]>=2` as a requirement.

    Raises:
        ConfigError: it makes no sense, or is an address.
    """
    hint = "write it as numpy, 'numpy==2.*' or 'requests[socks]>=2'"
    try:
        requirement = Requirement(text)
        if requirement.marker is not None:
            requirement.marker.evaluate({"extra": ""})
    except (InvalidRequirement, UndefinedEnvironmentName) as error:
        raise ConfigError(f"--package {text!r}: {error}", hint=hint) from error
    if requirement.url is not None:
        raise ConfigError(f"--package {text!r} is at an address, which is not in an index", hint=hint)
    return requirement


def resolve(wanted: Sequence[str], index: Index) -> list[Wheel]:
    """The wheels of the packages that are `wanted` and of all that they need, sorted by name.

    Raises:
        ConfigError: a requirement makes no sense.
        ImageError: there is no set of wheels that fits.
        RegistryError: the index cannot be read.
    """
    wishes = [_Wish(requirement, "the command line") for requirement in map(parse, wanted) if index.wants(requirement)]
    search = _Search(index)
    found = search.choose(wishes, {})
    if found is None:
        raise ImageError(search.reason, hint="only wheels are taken; ask for other versions, or give another --packages-from")
    return [found[name] for name in sorted(found)]


def _site(tree: Tree, python: Interpreter) -> str:
    """Where the image's Python looks for packages that were not there from the beginning: Debian's
    has a name of its own for it.
    """
    own = f"usr/local/lib/python{python.name}"
    return f"{own}/site-packages" if tree.find(f"{own}/os.py".encode()) is not None else f"{own}/dist-packages"


def _placed(file: Packed, site: str, spools: Spools) -> Packed:
    """A wheel's file with its place in the image (binary distribution format, The .data
    directory).
    """
    top, _, rest = file.name.partition("/")
    if not top.endswith(".data") or not rest:
        return dataclasses.replace(file, name=f"{site}/{file.name}")
    scheme, _, name = rest.partition("/")
    if scheme not in ("purelib", "platlib", "scripts", "data", "headers") or not name:
        raise LayerError(f"its member {file.name!r} has no place", hint="do not use the package")
    folder = {"scripts": "usr/local/bin", "data": "usr/local", "headers": "usr/local/include"}.get(scheme, site)
    if scheme != "scripts":
        return dataclasses.replace(file, name=f"{folder}/{name}")
    return Packed(name=f"{folder}/{name}", executable=True, content=_script(file.content, spools))


def _script(content: Content, spools: Spools) -> Content:
    """A script, with the image's Python in the place of `#!python`."""
    if not next(iter(spools.chunks(content)), b"").startswith(b"#!python"):
        return content
    return _SHEBANG.sub(b"#!/usr/bin/env python3", spools.read(content), count=1)
