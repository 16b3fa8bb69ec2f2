"""Packages of Java: jars of a Maven repository, by coordinates, with what they need at compile time
and at run time. Nothing of a package is run.

Maven's documentation: POM reference (inheritance, dependency management), Introduction to the
dependency mechanism (nearest wins), repository layout.
"""

import dataclasses
import functools
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from xml.etree import ElementTree

from mayfly.errors import ConfigError, ImageError, RegistryError
from mayfly.imagegen.packages.archives import Packed
from mayfly.imagegen.packages.downloads import Downloads
from mayfly.imagegen.packages.target import Target
from mayfly.images.manifest import Package

FOLDER = "usr/lib/mayfly/java"
"""Where the jars are; the language's steps have it in the class path."""
MAX_DEPTH = 20
"""Parents of a POM, or imports of one by another."""
MAX_PACKAGES = 500
MAX_POM = 4 << 20
MAX_EXPANSIONS = 50
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_ASKED = re.compile(rf"({_PART}):({_PART})(?::({_PART}))?")
_PROPERTY = re.compile(r"\$\{([^}]*)\}")
_JARS = ("jar", "bundle", "maven-plugin", "ejb")


class Name(NamedTuple):
    """What a package is called, without its version."""

    group: str
    artifact: str

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """A dependency, as a POM writes it; what it leaves out is managed elsewhere."""

    name: Name
    version: str
    scope: str
    optional: bool
    kind: str
    classifier: str
    excludes: frozenset[Name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pom:
    """A project, with all that it inherits: properties not yet put in."""

    name: Name
    version: str
    packaging: str
    properties: Mapping[str, str]
    needs: tuple[Need, ...]
    managed: Mapping[Name, Need]
    license: str

    def value(self, text: str) -> str:
        """The text with properties in the place of `${…}`; those that are not known stay."""
        own = {"groupId": self.name.group, "artifactId": self.name.artifact, "version": self.version}
        known = {**{f"{prefix}{key}": value for prefix in ("", "project.", "pom.") for key, value in own.items()}, **self.properties}
        for _ in range(MAX_EXPANSIONS):
            found = _PROPERTY.sub(lambda match: known.get(match[1], match[0]), text)
            if found == text or len(found) > MAX_POM:
                break
            text = found
        return text

    def direct(self) -> list[Need]:
        """What it needs, with versions and scopes that are managed."""
        return [self._completed(need) for need in self.needs]

    def _completed(self, need: Need) -> Need:
        name = Name(self.value(need.name.group), self.value(need.name.artifact))
        managed = self.managed.get(name)
        version, scope = need.version or (managed.version if managed else ""), need.scope or (managed.scope if managed else "")
        excludes = need.excludes | (managed.excludes if managed else frozenset())
        return dataclasses.replace(need, name=name, version=self.value(version), scope=self.value(scope), excludes=excludes)


class Repository:
    """A Maven repository."""

    def __init__(self, downloads: Downloads) -> None:
        self._downloads = downloads
        self.pom = functools.cache(self._pom)

    def address(self, name: Name, version: str, suffix: str) -> str:
        """Where a file of a package is."""
        for part in (*name, version):
            if not re.fullmatch(_PART, part) or ".." in part:
                raise ImageError(
                    f"{name}:{version[:80]} is not a package", hint="its version may be a range, or set by a property: say one"
                )
        return f"{self._downloads.base}/{name.group.replace('.', '/')}/{name.artifact}/{version}/{name.artifact}-{version}{suffix}"

    def fetch(self, url: str) -> bytes | None:
        """A file, if it is there; checked against the digest beside it.

        Raises:
            RegistryError: it is another one.
        """
        data = self._downloads.document(url)
        stated = self._downloads.document(f"{url}.sha1") if data is not None else None
        if data is not None and stated is not None:
            words = stated.decode("ascii", "replace").split()
            if not words or words[0].lower() != hashlib.sha1(data, usedforsecurity=False).hexdigest():
                raise RegistryError(f"{url} is not what its digest says", hint="the repository is damaged or lies; do not use it")
        return data

    def newest(self, name: Name) -> str:
        """The version that the repository names as the newest release."""
        data = self._downloads.document(f"{self._downloads.base}/{name.group.replace('.', '/')}/{name.artifact}/maven-metadata.xml")
        found = _text(_parse(data, str(name)), "versioning/release") if data is not None else ""
        if not found:
            raise ImageError(f"the repository has no {name}", hint="is it spelled so? write it as GROUP:ARTIFACT:VERSION")
        return found

    def _pom(self, name: Name, version: str, depth: int = 0) -> Pom:
        data = self.fetch(self.address(name, version, ".pom"))
        if data is None:
            raise ImageError(f"the repository has no {name}:{version}", hint="is it spelled so? give another --packages-from")
        if depth > MAX_DEPTH:
            raise ImageError(f"{name}:{version} has more than {MAX_DEPTH} parents", hint="do not use the package")
        root = _parse(data, f"{name}:{version}")
        parent = None
        if root.find("parent") is not None:
            of = Name(_text(root, "parent/groupId"), _text(root, "parent/artifactId"))
            parent = self.pom(of, _text(root, "parent/version"), depth + 1)
        properties = {**(parent.properties if parent else {})}
        if parent:
            properties |= {f"{prefix}parent.version": parent.version for prefix in ("", "project.")}
            properties |= {f"{prefix}parent.groupId": parent.name.group for prefix in ("", "project.")}
        properties |= {child.tag: (child.text or "").strip() for child in root.findall("properties/*")}
        pom = Pom(
            name=name,
            version=version,
            packaging=_text(root, "packaging") or "jar",
            properties=properties,
            needs=(*_needs(root, "dependencies/dependency"), *(parent.needs if parent else ())),
            managed=dict(parent.managed) if parent else {},
            license=_text(root, "licenses/license/name") or (parent.license if parent else ""),
        )
        managed = dict(pom.managed)
        for need in _needs(root, "dependencyManagement/dependencies/dependency"):
            known = Name(pom.value(need.name.group), pom.value(need.name.artifact))
            if need.scope == "import":
                imported = self.pom(known, pom.value(need.version), depth + 1)
                managed = {**{key: value for key, value in imported.managed.items() if key not in managed}, **managed}
            else:
                managed[known] = dataclasses.replace(need, version=pom.value(need.version), scope=pom.value(need.scope))
        return dataclasses.replace(pom, managed=managed)


def _parse(data: bytes, what: str) -> ElementTree.Element:
    """A document without its namespace. Entities are refused: they can be bombs."""
    if len(data) > MAX_POM or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise RegistryError(f"the document of {what} is larger than {MAX_POM} bytes, or defines entities", hint="do not use the package")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 (without definitions there is nothing to expand)
    except ElementTree.ParseError as error:
        raise RegistryError(f"the document of {what} is not XML: {error}", hint="do not use the package") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _needs(root: ElementTree.Element, path: str) -> list[Need]:
    return [
        Need(
            name=Name(_text(found, "groupId"), _text(found, "artifactId")),
            version=_text(found, "version"),
            scope=_text(found, "scope"),
            optional=_text(found, "optional") == "true",
            kind=_text(found, "type") or "jar",
            classifier=_text(found, "classifier"),
            excludes=frozenset(Name(_text(one, "groupId"), _text(one, "artifactId")) for one in found.findall("exclusions/exclusion")),
        )
        for found in root.findall(path)
    ]


def parse(text: str) -> tuple[Name, str]:
    """`org.json:json:20240303` as name and version, which may be empty.

    Raises:
        ConfigError: it makes no sense.
    """
    asked = _ASKED.fullmatch(text)
    if asked is None:
        raise ConfigError(
            f"--package {text!r} is not Maven's name of a package", hint="write it as GROUP:ARTIFACT or GROUP:ARTIFACT:VERSION"
        )
    return Name(asked[1], asked[2]), asked[3] or ""


def resolve(wanted: Iterable[str], repository: Repository) -> list[Pom]:
    """The packages that are wanted and what they need, sorted by name: of one that is needed in
    several versions the one nearest to what was asked for.

    Raises:
        ConfigError: a package is named in a way that makes no sense.
        ImageError: one is not in the repository.
    """
    chosen: dict[Name, Pom] = {}
    todo: deque[tuple[Name, str, frozenset[Name]]] = deque()
    for name, version in map(parse, wanted):
        todo.append((name, version or repository.newest(name), frozenset()))
    while todo:
        name, version, excluded = todo.popleft()
        if name in chosen:
            continue
        if len(chosen) == MAX_PACKAGES:
            raise ImageError(f"these are more than {MAX_PACKAGES} packages", hint="ask for fewer")
        chosen[name] = repository.pom(name, version)
        for need in chosen[name].direct():
            left_out = {need.name, Name(need.name.group, "*"), Name("*", need.name.artifact), Name("*", "*")} & excluded
            if (
                need.scope in ("", "compile", "runtime")
                and not need.optional
                and not left_out
                and need.kind in _JARS
                and not need.classifier
            ):
                todo.append((need.name, _exact(need.version), excluded | need.excludes))
    return [chosen[name] for name in sorted(chosen)]


def _exact(version: str) -> str:
    """A version; of a range that has only one, `[1.0]`, that one."""
    found = re.fullmatch(r"\[([^,\]]+)\]", version)
    return found[1] if found else version


def add(target: Target) -> tuple[Package, ...]:
    """Put the jars of what is asked for, and of what it needs, into the image.

    Raises:
        ConfigError, ImageError, LayerError, RegistryError: as for any package.
    """
    repository = Repository(target.downloads())
    added = []
    for pom in resolve(target.options.packages, repository):
        if pom.packaging not in _JARS:
            continue
        url = repository.address(pom.name, pom.version, ".jar")
        data = repository.fetch(url)
        if data is None:
            raise ImageError(f"the repository has no {url}", hint="give another --packages-from")
        name = f"{pom.name.group}.{pom.name.artifact}-{pom.version}.jar"
        target.place(FOLDER, [Packed(name=name, executable=False, content=target.spools.append([data], target.limits))])
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        full = f"{pom.name.group}/{pom.name.artifact}"
        added.append(Package(kind="maven", name=full, version=pom.version, digest=digest, source=url, license=pom.license))
    return tuple(added)
