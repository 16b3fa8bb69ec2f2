"""Packages of Go: modules of a proxy, unpacked to a module cache that is in the image, compiled by
the prepare steps of Go's file. Nothing of a module is run on this host.

The Go Modules Reference: GOPROXY protocol, minimal version selection, go.mod files, module cache.
"""

import base64
import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from semantic_version import Version  # type: ignore[import-untyped]

from mayfly.errors import ConfigError, ImageError, LayerError, RegistryError
from mayfly.files import atomic_write, storing
from mayfly.imagegen.digests import blob_path, digest_of
from mayfly.imagegen.packages.archives import ARCHIVE_ERRORS, Packed, read_zip
from mayfly.imagegen.packages.downloads import Downloads
from mayfly.imagegen.packages.target import Target
from mayfly.images.manifest import Package
from mayfly.paths import cache_dir

FOLDER = "usr/lib/mayfly/go"
MAX_MODULES = 500
MAX_PASSES = 100
MAX_GO_MOD = 1 << 20
MAX_SOURCE = 4 << 20
"""Bytes of a source file whose imports are read."""
_PART = r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_NUMBER = r"(?:0|[1-9][0-9]{0,18})"
_WORD = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(rf"v{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_WORD}(?:\.{_WORD})*)?(?:\+incompatible)?")
_QUERY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]*")
_GO = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})*")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_CLAUSE = re.compile(r"[\s;]*import\s*(?:\(([^)]*)\)|((?:[\w.]+\s*)?(?:\"[^\"\n]*\"|`[^`\n]*`)))")
_PACKAGE = re.compile(r"\s*package\s+\w+")
_IMPORTED = re.compile(r"[\"`]([^\"`\n]+)[\"`]")
_PRUNES = (1, 17)
"""From this version of Go on a module names all that its packages need."""


class Module(NamedTuple):
    """A module in one version."""

    path: str
    version: str

    def __str__(self) -> str:
        return f"{self.path}@{self.version}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoMod:
    """What a go.mod says: which version of Go it is for, and what it needs."""

    text: bytes
    go: tuple[int, ...]
    needs: tuple[Module, ...]


class Proxy:
    """A module proxy."""

    def __init__(self, downloads: Downloads) -> None:
        self._downloads = downloads
        self._mods: dict[Module, GoMod] = {}
        self.archives: dict[Module, tuple[Path, str, str]] = {}

    @property
    def mods(self) -> Mapping[Module, GoMod]:
        """The go.mod files that were read."""
        return self._mods

    def address(self, path: str) -> str:
        """Where a module's versions are."""
        return f"{self._downloads.base}/{escaped(path)}"

    def module(self, path: str, query: str) -> Module:
        """The module that `go get PATH@QUERY` takes: the path's, or the one that has it as a
        package (Go Modules Reference, "Resolving a package to a module").

        Raises:
            ImageError: there is none.
        """
        for prefix in _prefixes(path):
            if version := self._version(prefix, query):
                module = Module(prefix, version)
                if prefix != path and path.removeprefix(f"{prefix}/") not in _Sources(module, self).folders:
                    raise ImageError(f"the module {module} has no package {path}", hint="is it spelled so? another version may have it")
                return module
        raise ImageError(f"the proxy has no module with {path}@{query}", hint="is it spelled so? give another --packages-from")

    def _version(self, path: str, query: str) -> str:
        """The version of a module that fits: of those with a number the highest release, else what
        the proxy says; "" if there is none.
        """
        listed = (self._downloads.document(f"{self.address(path)}/@v/list") or b"").decode("utf-8", "replace").split()
        fitting = [
            version for version in listed if _VERSION.fullmatch(version) and (query == "latest" or f"{version}.".startswith(f"{query}."))
        ]
        if fitting:
            return max(fitting, key=lambda version: (not order(version).prerelease, order(version)))
        at = "@latest" if query == "latest" else f"@v/{escaped(query)}.info"
        data = self._downloads.document(f"{self.address(path)}/{at}")
        try:
            found = json.loads(data or b"{}").get("Version", "")
        except (ValueError, AttributeError):
            found = ""
        return found if isinstance(found, str) and _VERSION.fullmatch(found) else ""

    def mod(self, module: Module) -> GoMod:
        """A module's go.mod. Raises RegistryError: it is not there."""
        if module not in self._mods:
            _check(module)
            data = self._downloads.document(f"{self.address(module.path)}/@v/{escaped(module.version)}.mod")
            if data is None or len(data) > MAX_GO_MOD:
                raise RegistryError(f"the proxy has no go.mod of {module}", hint="ask for another version")
            self._mods[module] = read_go_mod(data)
        return self._mods[module]

    def archive(self, module: Module) -> Path:
        """A module's zip, whose digest and address are then in `archives`. Raises RegistryError."""
        if module not in self.archives:
            url = f"{self.address(module.path)}/@v/{escaped(module.version)}.zip"
            data = self._downloads.document(url)
            if data is None:
                raise RegistryError(f"the proxy has no {module}", hint="ask for another version")
            digest = digest_of(data)
            path = blob_path(cache_dir() / "blobs", digest)
            with storing(path), atomic_write(path) as file:
                file.write(data)
            self.archives[module] = path, digest, url
        return self.archives[module][0]


def escaped(text: str) -> str:
    """A path or version for an address or a file: `!a` for `A`."""
    return re.sub("[A-Z]", lambda match: f"!{match[0].lower()}", text)


def order(version: str) -> Version:
    """A version, to be compared."""
    return Version(version.removeprefix("v").removesuffix("+incompatible"))


def _check(module: Module) -> None:
    if not _PATH.fullmatch(module.path) or not _VERSION.fullmatch(module.version):
        raise ImageError(f"{str(module)[:120]!r} is needed, which is not a module", hint="do not use what needs it")


def read_go_mod(data: bytes) -> GoMod:
    """Parse a go.mod, as far as those of dependencies count: `replace` and `exclude` do not."""
    needs = []
    go, block = "1.16", ""
    for line in data.decode("utf-8", "replace").split("\n"):
        words = line.partition("//")[0].replace("(", " ( ").split()
        if block and words == [")"]:
            block = ""
        elif words[1:] == ["("]:
            block = words[0]
        else:
            match [block, *words] if block else words:
                case ["require", path, version] if version.startswith("v"):
                    needs.append(Module(path.strip('"`'), version))
                case ["go", version] if numbers := _GO.match(version):
                    go = numbers[0]
    return GoMod(text=data, go=tuple(int(part) for part in go.split(".")), needs=tuple(needs))


def imports(source: str) -> list[str]:
    """What a source file imports."""
    text = _COMMENT.sub(" ", source)
    clause = _PACKAGE.match(text)
    found: list[str] = []
    at = clause.end() if clause else len(text)
    while match := _CLAUSE.match(text, at):
        found += _IMPORTED.findall(match[1] or match[2])
        at = match.end()
    return found


def parse(text: str) -> tuple[str, str]:
    """`golang.org/x/exp@v0.1` as path and what is wanted of its versions.

    Raises:
        ConfigError: it makes no sense.
    """
    path, _, query = text.partition("@")
    if not _PATH.fullmatch(path) or "." not in path.partition("/")[0] or (query and not _QUERY.fullmatch(query)):
        raise ConfigError(f"--package {text!r} is not a module", hint="write it as golang.org/x/exp or golang.org/x/exp@VERSION")
    return path, query or "latest"


def resolve(wanted: Iterable[str], proxy: Proxy) -> list[Module]:
    """The modules that are wanted, and those that their packages need, sorted: of each the lowest
    version that all take.

    Raises:
        ConfigError: a module is named in a way that makes no sense.
        ImageError, RegistryError: one cannot be had.
    """
    asked = [proxy.module(path, query) for path, query in map(parse, wanted)]
    chosen = _highest(asked)
    used = {module.path for module in asked}
    for _ in range(MAX_PASSES):
        before = dict(chosen), set(used)
        for path in sorted(used):
            _require(Module(path, chosen[path]), chosen, proxy)
        used |= _providers({module.path for module in asked}, chosen, used, proxy)
        if len(used) > MAX_MODULES:
            raise ImageError(f"these are more than {MAX_MODULES} modules", hint="ask for fewer")
        if before == (chosen, used):
            return sorted(Module(path, chosen[path]) for path in used)
    raise ImageError(f"after {MAX_PASSES} tries no set of modules fits together", hint="say which versions you want")


def _highest(modules: Iterable[Module]) -> dict[str, str]:
    found: dict[str, str] = {}
    for module in modules:
        if module.path not in found or order(found[module.path]) < order(module.version):
            found[module.path] = module.version
    return found


def _require(module: Module, chosen: dict[str, str], proxy: Proxy) -> None:
    """Take in what a module needs; of one that does not name all that, what those need too."""
    seen: set[Module] = set()
    todo = [module]
    while todo:
        known = proxy.mod(todo.pop())
        for need in known.needs:
            _check(need)
            if need.path not in chosen or order(chosen[need.path]) < order(need.version):
                chosen[need.path] = need.version
            if known.go < _PRUNES and need not in seen:
                seen.add(need)
                todo.append(need)
        if len(seen) > MAX_MODULES * 10:
            raise ImageError(f"{module} needs too many modules", hint="ask for a newer version")


def _providers(asked: set[str], chosen: Mapping[str, str], used: set[str], proxy: Proxy) -> set[str]:
    """The modules that have the packages which those of the `asked` modules import."""
    sources = {path: _Sources(Module(path, chosen[path]), proxy) for path in used}
    todo = [f"{path}/{folder}".rstrip("/") for path in asked for folder in sources[path].folders]
    seen = set(todo)
    found: set[str] = set()
    while todo:
        package = todo.pop()
        path = next((path for path in _prefixes(package) if path in chosen), None)
        if path is None:
            continue  # of the standard library, or of none that is known: what needs it is not compiled
        found.add(path)
        if path not in sources:
            sources[path] = _Sources(Module(path, chosen[path]), proxy)
        for needed in sources[path].imported(package.removeprefix(path).lstrip("/")):
            if needed not in seen:
                seen.add(needed)
                todo.append(needed)
    return found


def _prefixes(package: str) -> Iterator[str]:
    parts = package.split("/")
    return ("/".join(parts[:count]) for count in range(len(parts), 0, -1))


class _Sources:
    """The source files of a module, by their folders."""

    def __init__(self, module: Module, proxy: Proxy) -> None:
        self._path = proxy.archive(module)
        self.folders: dict[str, list[str]] = {}
        prefix = f"{module}/"
        with _reading(module), zipfile.ZipFile(self._path) as archive:
            for member in archive.infolist():
                folder, _, name = member.filename.removeprefix(prefix).rpartition("/")
                hidden = any(part.startswith((".", "_")) or part in ("testdata", "vendor") for part in folder.split("/"))
                if name.endswith(".go") and not name.endswith("_test.go") and not hidden and member.file_size <= MAX_SOURCE:
                    self.folders.setdefault(folder, []).append(member.filename)
        self._module = module

    def imported(self, folder: str) -> set[str]:
        """What the package in a folder imports."""
        with _reading(self._module), zipfile.ZipFile(self._path) as archive:
            texts = (archive.read(name).decode("utf-8", "replace") for name in self.folders.get(folder, ()))
            return {name for text in texts for name in imports(text) if name != "C"}


class _reading:  # noqa: N801 (a context manager)
    """Turns what is wrong with a zip into LayerError."""

    def __init__(self, module: Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ARCHIVE_ERRORS):
            raise LayerError(f"{self._module}: its zip is damaged: {error}", hint="do not use it") from error


def hash1(files: Iterable[tuple[str, str]]) -> str:
    """A module's hash as in go.sum, of names with the SHA-256, in hex, of each file
    (golang.org/x/mod/sumdb/dirhash, Hash1).
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files))
    return f"h1:{base64.b64encode(hashlib.sha256(lines.encode()).digest()).decode()}"


def add(target: Target) -> tuple[Package, ...]:
    """Unpack what is asked for, and all that its packages need, to the image's module cache.

    Raises:
        ConfigError, ImageError, LayerError, RegistryError: as for any package.
    """
    proxy = Proxy(target.downloads())
    modules = resolve(target.options.packages, proxy)
    added, sums = [], []
    for module in modules:
        path = proxy.archive(module)
        _, digest, url = proxy.archives[module]
        prefix = f"{module}/"
        try:
            files = list(read_zip(path, target.spools, target.limits))
            if any(not file.name.startswith(prefix) for file in files):
                raise LayerError(f"it has files of another module than {module}", hint="do not use it")
            hashed = hash1((file.name, _digest(target, file)) for file in files)
            inside = (dataclasses.replace(file, name=file.name.removeprefix(prefix)) for file in files)
            target.place(f"{FOLDER}/mod/{escaped(module.path)}@{escaped(module.version)}", inside)
        except LayerError as error:
            raise LayerError(f"{url}: {error.message}", hint=error.hint) from error
        at = f"{FOLDER}/mod/cache/download/{escaped(module.path)}/@v"
        name = escaped(module.version)
        info = json.dumps({"Version": module.version})
        target.place(at, [_text("list", f"{module.version}\n"), _text(f"{name}.info", info), _text(f"{name}.ziphash", hashed)])
        sums.append(f"{module.path} {module.version} {hashed}\n")
        added.append(Package(kind="golang", name=module.path, version=module.version, digest=digest, source=url))
    for module, known in proxy.mods.items():
        at = f"{FOLDER}/mod/cache/download/{escaped(module.path)}/@v"
        target.place(at, [Packed(name=f"{escaped(module.version)}.mod", executable=False, content=known.text)])
        sums.append(f"{module.path} {module.version}/go.mod {hash1([('go.mod', hashlib.sha256(known.text).hexdigest())])}\n")
    go = ".".join(target.version.split(".")[:2])
    needs = "".join(f"\t{module.path} {module.version}\n" for module in modules)
    tree = [_text("go.mod", f"module snippet\n\ngo {go}\n\nrequire (\n{needs})\n"), _text("go.sum", "".join(sorted(sums)))]
    target.place("", tree)
    patterns = "".join(f"{module.path}/...\n" for module in modules)
    target.place(FOLDER, [_text("modules", patterns)])
    return tuple(added)


def _text(name: str, text: str) -> Packed:
    return Packed(name=name, executable=False, content=text.encode())


def _digest(target: Target, file: Packed) -> str:
    hasher = hashlib.sha256()
    for piece in target.spools.chunks(file.content):
        hasher.update(piece)
    return hasher.hexdigest()
