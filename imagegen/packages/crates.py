"""Packages of Rust: crates of a sparse index, unpacked to where cargo finds them without a network,
compiled by the prepare steps of Rust's file. Nothing of a crate is run on this host.

The Cargo Book: registry index, dependency resolution, features, source replacement.
"""

import dataclasses
import functools
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from semantic_version import NpmSpec, Version  # type: ignore[import-untyped]

from mayfly.errors import ConfigError, ImageError, LayerError, RegistryError, SchemaError
from mayfly.imagegen.digests import is_digest
from mayfly.imagegen.packages.archives import Packed, read_tgz
from mayfly.imagegen.packages.cfg import holds
from mayfly.imagegen.packages.downloads import Downloads
from mayfly.imagegen.packages.target import Target
from mayfly.images.manifest import Package
from mayfly.schema import decode

MAX_PACKAGES = 1000
MAX_PASSES = 200
MAX_MANIFEST = 1 << 20
"""Bytes of a Cargo.toml that is looked into."""
ROOT = "mayfly_packages"
FOLDER = "usr/lib/mayfly/rust"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FEATURE = r"[A-Za-z0-9_][A-Za-z0-9_+.-]*"
_ASKED = re.compile(rf"({_NAME.pattern})(?:@([^\[\]]+))?(?:\[((?:{_FEATURE})(?:,{_FEATURE})*)\])?")
_BY_US = "--package"
CONFIG = f"""\
# Crates that are not in the image cannot be had.
[source.crates-io]
replace-with = "image"
[source.image]
directory = "/{FOLDER}/vendor"
[net]
offline = true
# As snippets are compiled.
[profile.dev]
opt-level = 1
codegen-units = 1
debug = false
incremental = false
strip = "debuginfo"
[profile.dev.build-override]
opt-level = 1
codegen-units = 1
"""
RECORD = f"""\
#!/bin/sh
# rustc, for cargo: what it is to find the crates by, into a file of arguments.
case " $* " in
*" --crate-name {ROOT} "*)
    previous=
    for word; do
        case $previous in --extern | -L) printf '%s\\n' "$previous" "$word" ;; esac
        previous=$word
    done >/var/cache/rust/arguments
    ;;
esac
exec "$@"
"""


class _Dependency(msgspec.Struct, frozen=True, kw_only=True):
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


class _Version(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the index (registry index, JSON schema)."""

    name: str
    vers: str
    deps: tuple[_Dependency, ...]
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


@dataclasses.dataclass(eq=False)
class Crate:
    """A crate that is chosen, with the features that are wanted of it. One that is not `here` is
    only for other systems.
    """

    known: _Version
    features: set[str] = dataclasses.field(default_factory=set)
    here: bool = False
    asked: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        """`serde-1.0.217`"""
        return f"{self.known.name}-{self.known.vers}"


class Index:
    """A sparse index, for a compiler of this version (1.85.1) and a machine of this type."""

    def __init__(self, downloads: Downloads, version: str, arch: str) -> None:
        self._downloads = downloads
        self._rust = _numbers(version)
        self.arch = arch
        self._versions: dict[str, list[_Version]] = {}

    def choose(self, name: str, wanted: Iterable[str], by: str) -> _Version | None:
        """The newest version of a crate that fits all of what is wanted, if there is one.

        Raises:
            ImageError: the index has no such crate, or spells it otherwise.
        """
        specs = [_spec(text, by) for text in wanted]
        for known in self._read(name, by):
            if all(spec.match(Version(known.vers)) for spec in specs):
                return known
        return None

    def newest(self, name: str) -> str:
        """The newest version there is for this compiler; empty if there is none."""
        return next((known.vers for known in self._versions.get(name, ())), "")

    def _read(self, name: str, by: str) -> list[_Version]:
        """The versions for this compiler, the newest first."""
        if name not in self._versions:
            if not _NAME.fullmatch(name):
                raise ImageError(f"{by} needs {name[:80]!r}, which is not a name", hint="do not use the crate")
            at = f"{self._downloads.base}/{index_path(name)}"
            data = self._downloads.document(at)
            if data is None:
                raise ImageError(f"{by} needs {name}, which the index has not", hint="is it spelled so? give another --packages-from")
            try:
                found = [decode(_Version, line) for line in data.splitlines() if line.strip()]
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

    def address(self, crate: Crate) -> str:
        """Where a crate's file is (registry index, Index configuration)."""
        template = self._template
        name = crate.known.name
        values = {"crate": name, "version": crate.known.vers, "prefix": index_path(name).rpartition("/")[0]}
        values |= {"lowerprefix": index_path(name.lower()).rpartition("/")[0], "sha256-checksum": crate.known.cksum}
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


def _spec(text: str, by: str) -> NpmSpec:
    """A requirement of Cargo's: as npm has it, but a plain version is a caret's."""
    parts = [part.strip().partition("+")[0] for part in text.split(",")]
    try:
        return NpmSpec(" ".join(f"^{part}" if part[:1].isdigit() else re.sub(r"([<>=~^])\s+", r"\1", part) for part in parts))
    except ValueError as error:
        raise ImageError(f"{by} needs {text!r}, which is not a range of versions", hint="write it as 1, 0.8, =1.0.2 or >=1,<3") from error


def _kin(version: str) -> tuple[str, ...]:
    """What versions have in common that a program has only one of: 1, 0.8, 0.0.3."""
    numbers = version.split("+")[0].split("-")[0].split(".")
    first = next((place for place, number in enumerate(numbers) if number != "0"), len(numbers) - 1)
    return tuple(numbers[: first + 1])


def add(target: Target) -> tuple[Package, ...]:
    """Unpack what is asked for, and all that it needs, to where cargo finds it.

    Raises:
        ConfigError, ImageError, LayerError, RegistryError: as for any package.
    """
    downloads = target.downloads()
    index = Index(downloads, target.version, target.options.arch)
    wanted = [parse(text) for text in target.options.packages]
    added = []
    chosen = resolve(wanted, index)
    for crate in chosen:
        folder = f"{FOLDER}/vendor/{crate.label}"
        digest = f"sha256:{crate.known.cksum}"
        target.place(folder, [_text(".cargo-checksum.json", json.dumps({"files": {}, "package": crate.known.cksum}))])
        if not crate.here:
            target.place(folder, [_text("Cargo.toml", _empty(crate)), _text("src/lib.rs", "")])
            continue
        if not is_digest(digest):
            raise RegistryError(f"{crate.label} has no digest in the index", hint="give another --packages-from")
        url = index.address(crate)
        path = downloads.file(url, digest, target.limits.unpacked, crate.label)
        try:
            files = list(read_tgz(path, target.spools, target.limits))
            target.place(folder, (file for file in files if file.name != ".cargo-checksum.json"))
        except LayerError as error:
            raise LayerError(f"{url}: {error.message}", hint=error.hint) from error
        license_ = _license(target, files)
        added.append(Package(kind="cargo", name=crate.known.name, version=crate.known.vers, digest=digest, source=url, license=license_))
    target.place(".cargo", [_text("config.toml", CONFIG)])
    target.place(f"{FOLDER}/packages", [_text("Cargo.toml", _root(wanted, chosen)), _text("src/main.rs", "fn main() {}\n")])
    target.place(FOLDER, [Packed(name="record", executable=True, content=RECORD.encode())])
    return tuple(added)


def _text(name: str, text: str) -> Packed:
    return Packed(name=name, executable=False, content=text.encode())


def _root(wanted: Iterable[tuple[str, str, frozenset[str]]], chosen: Iterable[Crate]) -> str:
    """The manifest of a program that needs what was asked for, in the versions that were chosen."""
    lines = ["[package]", f'name = "{ROOT}"', 'version = "0.0.0"', 'edition = "2018"', "[workspace]", "[dependencies]"]
    for name, req, features in wanted:
        (version,) = (crate.known.vers for crate in chosen if crate.known.name == name and req in crate.asked)
        lines.append(f"{name} = {{ version = {json.dumps(f'={version}')}, features = {json.dumps(sorted(features))} }}")
    return "\n".join([*lines, ""])


def _empty(crate: Crate) -> str:
    """The manifest of an empty crate, in the place of one for other systems: cargo wants to know
    their versions, and never compiles them.
    """
    lines = ["[package]", f"name = {json.dumps(crate.known.name)}", f"version = {json.dumps(crate.known.vers)}", "[features]"]
    features = {*crate.known.all_features(), "default"}
    return "\n".join([*lines, *(f"{json.dumps(name)} = []" for name in sorted(features)), ""])


def _license(target: Target, files: Iterable[Packed]) -> str:
    manifest = next((file for file in files if file.name == "Cargo.toml"), None)
    if manifest is None or (not isinstance(manifest.content, bytes) and manifest.content.size > MAX_MANIFEST):
        return ""
    try:
        return str(tomllib.loads(target.spools.read(manifest.content).decode())["package"].get("license", ""))
    except (ValueError, KeyError, AttributeError):
        return ""


def parse(text: str) -> tuple[str, str, frozenset[str]]:
    """`serde@1[derive]` as name, requirement and features.

    Raises:
        ConfigError: it makes no sense.
    """
    asked = _ASKED.fullmatch(text)
    if asked is None:
        raise ConfigError(f"--package {text!r} is not a crate", hint="write it as serde, serde@1 or serde@1 --features derive")
    return asked[1], asked[2] or "*", frozenset(asked[3].split(",") if asked[3] else ())


class _AgainError(Exception):
    """A version that was chosen does not fit; another one is known to."""


def resolve(wanted: Iterable[tuple[str, str, frozenset[str]]], index: Index) -> list[Crate]:
    """The crates of what is wanted and of all that it needs, sorted by name and version: of
    compatible versions one, the newest that fits.

    Raises:
        ConfigError: a crate is asked for twice.
        ImageError: one cannot be had, or two contradict each other.
    """
    wanted = list(wanted)
    if len({name for name, *_ in wanted}) < len(wanted):
        raise ConfigError("a crate is asked for twice", hint="a snippet can name one version of it")
    pinned: dict[tuple[str, tuple[str, ...]], str] = {}
    for _ in range(MAX_PASSES):
        try:
            return _Search(index, pinned).find(wanted)
        except _AgainError:
            continue
    raise ImageError(f"after {MAX_PASSES} tries no set of crates fits together", hint="say which versions you want")


class _Search:
    """One try: what was `pinned` by those before it is taken."""

    def __init__(self, index: Index, pinned: dict[tuple[str, tuple[str, ...]], str]) -> None:
        self._index = index
        self._pinned = pinned
        self._chosen: dict[tuple[str, tuple[str, ...]], Crate] = {}
        self._changed = False

    def find(self, wanted: Iterable[tuple[str, str, frozenset[str]]]) -> list[Crate]:
        for name, req, features in wanted:
            self._need(name, req, {*features, "default"}, by=_BY_US, here=True)
        while self._changed:
            self._changed = False
            for crate in [crate for crate in self._chosen.values() if crate.here]:
                for need, features in _needs(crate):
                    if need.registry:
                        raise ImageError(f"{crate.label} needs {need.name} of another index", hint="do not use the crate")
                    here = holds(need.target or "", self._index.arch)
                    self._need(need.package or need.name, need.req, features, by=crate.label, here=here)
        return sorted(self._chosen.values(), key=lambda crate: (crate.known.name, Version(crate.known.vers)))

    def _need(self, name: str, req: str, features: Iterable[str], *, by: str, here: bool) -> None:
        spec = _spec(req, by)
        same = [crate for (known, _), crate in self._chosen.items() if known == name and spec.match(Version(crate.known.vers))]
        crate = max(same, key=lambda crate: Version(crate.known.vers), default=None) or self._choose(name, req, by)
        if req not in crate.asked:
            crate.asked.append(req)
        if here and not crate.here:
            crate.here = self._changed = True
        if not crate.features.issuperset(features):
            crate.features |= {*features}
            self._changed = True

    def _choose(self, name: str, req: str, by: str) -> Crate:
        known = self._index.choose(name, [req], by)
        if known is None:
            newest = self._index.newest(name)
            has = f"the newest for this compiler is {newest}" if newest else "there is none for this compiler"
            raise ImageError(f"{by} needs {name}@{req}, of which the index has no version: {has}", hint="ask for another version")
        key = name, _kin(known.vers)
        if key in self._pinned:
            known = self._index.choose(name, [f"={self._pinned[key]}"], by) or known
        if key in self._chosen:
            there = self._chosen[key]
            fits = self._index.choose(name, [*there.asked, req], by)
            if fits is None or self._pinned.get(key) == fits.vers:
                raise ImageError(f"{by} needs {name}@{req}, and {there.known.vers} is chosen", hint="ask for versions that go together")
            self._pinned[key] = fits.vers
            raise _AgainError
        if len(self._chosen) >= MAX_PACKAGES:
            raise ImageError(f"these are more than {MAX_PACKAGES} crates", hint="ask for fewer")
        self._chosen[key] = Crate(known)
        self._changed = True
        return self._chosen[key]


def _needs(crate: Crate) -> Iterator[tuple[_Dependency, frozenset[str]]]:
    """What a crate needs with its features, and the features of that (features, Features
    dependencies).

    Raises:
        ImageError: it has not a feature that is wanted of it.
    """
    known = crate.known.all_features()
    on: set[str] = set()
    todo = sorted(crate.features)
    extra: dict[str, set[str]] = {}
    wanted = {need.name for need in crate.known.deps if not need.optional}
    while todo:
        text = todo.pop()
        if text in on:
            continue
        on.add(text)
        name, slash, feature = text.partition("/")
        if slash:
            extra.setdefault(name.rstrip("?"), set()).add(feature)
            if not name.endswith("?"):
                wanted.add(name)
                todo += [name] if name in known else []
        elif text.startswith("dep:"):
            wanted.add(text[4:])
        elif text in known:
            todo += known[text]
        elif text != "default":
            raise ImageError(f"{crate.label} has no feature {text!r}", hint=f"those it has: {', '.join(sorted(known)[:20]) or 'none'}")
    for need in crate.known.deps:
        if need.kind != "dev" and need.name in wanted:
            usual = {"default"} if need.default_features else set()
            yield need, frozenset({*need.features, *usual, *extra.get(need.name, ())})
