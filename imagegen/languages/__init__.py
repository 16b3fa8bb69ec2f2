"""Languages, each in one YAML file beside this one: where its image comes from, what stays of it,
how a snippet is run, how a function is loaded. What they share is in `common.yaml`, what a
language's functions and profiles need besides in `functions/` and `profiles/`.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import yaml
from msgspec import Meta

from mayfly.errors import ConfigError, SchemaError, UnknownLanguageError
from mayfly.imagegen.rootfs.prune import Pruner
from mayfly.images.manifest import Function, LanguageStep, Option, Profile, Warmup
from mayfly.schema import Record, convert
from mayfly.units import MIB

FOLDER = Path(__file__).parent
NAME = re.compile(r"[a-z][a-z0-9+-]{0,31}")
COMMON = "common.yaml"
"""What languages share: not one itself."""
FUNCTION_FILE = re.compile(r"[a-z][a-z0-9_-]*\.[a-z0-9]+")
DPKG_STATUS = "var/lib/dpkg/status"
MAX_LINE = 128
"""Characters of a line that may show a version. Lines are searched one by one, so that the time for
a hostile text grows with its length and not with its square.
"""
_COLLECTED = r"^(?:/(?!\.\.?(?:/|$))[^/\0]+)+$"
_FACTS = re.compile(rf"\n{{2,}}|^(Package|Version): (.{{1,{MAX_LINE}}})$", re.MULTILINE)
"""Of dpkg's status file: the ends of paragraphs, and two fields."""

Name = Annotated[str, Meta(min_length=1)]
ProfileName: TypeAlias = Literal["test", "format", "lint"]
Mebibytes = Annotated[int, Meta(gt=0, le=1 << 20)]


class VersionRule(Record, frozen=True, kw_only=True):
    """Where an image shows the language's version: group 1 of a pattern.

    `path` is the pattern of a whole path. Otherwise `pattern` is searched in the beginning of each
    line of `file`, in the version of the Debian package whose name matches `package`, or in the
    variable `env` of the image's configuration.
    """

    path: Name | None = None
    file: Name | None = None
    package: Name | None = None
    env: Name | None = None
    pattern: Name | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.path, self.file, self.package, self.env) if value]
        if len(given) != 1 or bool(self.pattern) == bool(self.path):
            raise ValueError("a version rule has a path, or a pattern and one of file, package and env")
        try:
            groups = re.compile(self.pattern or self.path or "").groups
            re.compile(self.package or "")
        except re.error as error:
            raise ValueError(f"the version pattern is not usable: {error}") from error
        if groups != 1:
            raise ValueError(f"version pattern {self.pattern or self.path!r} has not exactly one group")


class Prepare(Record, frozen=True, kw_only=True):
    """Steps to run once in a machine of the whole image, and the folders of which all files then
    belong to the image. There may be none. Those that are `optional` only make programs quicker:
    where no machine can run, the image comes without what they make.
    """

    steps: tuple[LanguageStep, ...] = ()
    collect: tuple[Annotated[str, Meta(pattern=_COLLECTED)], ...] = ()
    working_memory_mib: Mebibytes | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if not bool(self.steps) == bool(self.collect) == bool(self.working_memory_mib):
            raise ValueError("prepare needs all of steps, collect and working_memory_mib, or none")


class Packages(Record, frozen=True, kw_only=True):
    """How the language's third-party packages come into an image: of what kind they are, and the
    address of the registry that has them; what an image with packages has besides: files that stay,
    environment, and what its machine makes of the packages.
    """

    kind: Literal["crates", "deb", "maven", "modules", "npm", "wheels"]
    registry: Name
    keep: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    prepare: Prepare = Prepare()


class Choice(Record, frozen=True, kw_only=True):
    """An option that snippets have: its values, each with the first version of the language that
    has it (empty: every version), or what it `takes` instead. The last value that an image's
    version has is the default; addresses are none by default.
    """

    values: Mapping[Name, str] = {}
    takes: Literal["", "addresses"] = ""

    def __post_init__(self) -> None:
        if bool(self.values) == bool(self.takes):
            raise ValueError("an option needs either values or takes")


class Common(Record, frozen=True, kw_only=True):
    """What languages share: environment, and sets of globs by name."""

    env: Mapping[str, str] = {}
    prune: Mapping[Name, tuple[str, ...]] = {}


class Language(Record, frozen=True, kw_only=True):
    """What a language's file says. `digest` is of its bytes, and of the files that it names.
    `common_env` is what all languages have, `env` its own.

    `version_command` makes the compiler say which one it is. In `image` `{version}` stands for a
    version, or for `default_version` where none is asked for. A step whose directory the file does
    not give has an empty one, and runs in the image's WorkingDir. `{name}` in a step's argument
    stands for the value of the option `name`. Paths that match `keep` stay in spite of `prune`: no
    prepare step needs them. With `checkpoint` the image has the runtime for
    WebAssembly, /usr/bin/mayfly-wasm; it and `target` are the manifest's.
    """

    name: Annotated[str, Meta(pattern=f"^{NAME.pattern}$")]
    image: Name
    default_version: str = ""
    extensions: tuple[str, ...]
    source_file: Annotated[str, Meta(pattern="^[^/]+$")]
    source_files: Mapping[str, Annotated[str, Meta(pattern="^[^/]+$")]] = {}
    version: tuple[VersionRule, ...]
    version_command: tuple[str, ...] = ()
    working_memory_mib: Mebibytes
    steps: Annotated[tuple[LanguageStep, ...], Meta(min_length=1)]
    prune: tuple[str, ...]
    env: Mapping[str, str] = {}
    common_env: Mapping[str, str] = {}
    options: Mapping[Name, Choice] = {}
    packages: Packages | None = None
    prepare: Prepare = Prepare()
    warmup: Warmup = Warmup()
    function: Function | None = None
    profiles: Mapping[ProfileName, Profile] = {}
    keep: tuple[str, ...] = ()
    checkpoint: Annotated[str, Meta(pattern="^[^/*?]*$")] = ""
    target: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        if "{version}" in self.image and not self.default_version:
            raise ValueError("default_version is missing; the image's name has {version}")
        if unknown := set(self.source_files) - set(self.extensions):
            raise ValueError(f"source_files has {min(unknown)!r}, which is none of the extensions")
        if bool(self.warmup.steps) != bool(self.warmup.files):
            raise ValueError("warmup needs both files and steps, or none")
        if self.target and not self.name.endswith(f"-{self.target}"):
            raise ValueError(f"a language with the target {self.target} has the name of another one, and -{self.target}")
        Pruner(self.globs())

    def globs(self, packages: Packages | None = None) -> tuple[str, ...]:
        """What is pruned of an image, and after `!` what is not; of one with packages, if these are
        given.
        """
        return (*self.prune, *(f"!{glob}" for glob in (*self.keep, *(packages.keep if packages else ()))))

    @property
    def working_memory(self) -> int:
        """What a machine needs beside its files, in bytes."""
        return self.working_memory_mib * MIB

    def reference(self, version: str = "") -> str:
        """The image on the language's own registry, of its newest version or of the one given."""
        return self.image.replace("{version}", version or self.default_version)


def known_languages() -> list[str]:
    """The names of all languages, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.name != COMMON)


def _named(name: object, folder: Path) -> str:
    """The name of a language's file in the folder. Raises SchemaError: there is none."""
    if not isinstance(name, str) or not _is_known(name, folder):
        raise SchemaError(f"like: there is no language {str(name)[:80]!r}")
    return name


def _is_known(name: str, folder: Path) -> bool:
    path = folder / f"{name}.yaml"
    return NAME.fullmatch(name) is not None and path.name != COMMON and path.is_file()


def load_language(name: str, folder: Path = FOLDER) -> Language:
    """Read a language's file.

    Raises:
        UnknownLanguageError: there is none of that name.
        ConfigError: it says something that makes no sense.
    """
    path = folder / f"{name}.yaml"
    if not _is_known(name, folder):
        raise UnknownLanguageError(f"language {name!r} is not known", hint=f"known: {', '.join(known_languages())}")
    return parse_language(path.read_bytes(), str(path), folder / "functions")


def parse_language(data: bytes, origin: str, functions: Path = FOLDER / "functions") -> Language:
    """Parse and check a language's YAML, which names files of the folder `functions`.

    What it leaves out is as in the language that it is `like`, whose file lies beside that folder,
    as common.yaml does.

    Raises:
        ConfigError: it names `origin` and the field.
    """
    try:
        shared, common = _read_common(functions.parent / COMMON)
        raw = yaml.safe_load(data)
        if isinstance(raw, dict) and "like" in raw:
            model = (functions.parent / f"{_named(raw.pop('like'), functions.parent)}.yaml").read_bytes()
            raw, data = {**yaml.safe_load(model), **raw}, model + data
        if isinstance(raw, dict):
            profiles = raw.get("profiles")
            profiles = profiles if isinstance(profiles, dict) else {}
            packages = raw.get("packages")
            prepared = packages.get("prepare") if isinstance(packages, dict) else None
            for holder in (raw, raw.get("prepare"), prepared, raw.get("warmup"), raw.get("function"), *profiles.values()):
                _no_directory(holder)
            texts = _texts("function", raw.get("function"), functions)
            for name, profile in profiles.items():
                texts += _texts(f"profiles.{str(name)[:80]}", profile, functions.parent / "profiles")
            raw["digest"] = f"sha256:{hashlib.sha256(b''.join((data, shared, *texts))).hexdigest()}"
            raw["common_env"] = common.env
            raw["prune"] = _expanded(raw.get("prune"), common)
        return convert(Language, raw)
    except (yaml.YAMLError, SchemaError, RecursionError) as error:
        hint = getattr(error, "hint", "") or "compare it with languages/rust.yaml"
        raise ConfigError(f"{origin}: {error}", hint=hint) from error


def _read_common(path: Path) -> tuple[bytes, Common]:
    """What is shared, and its text; nothing where there is no such file. Raises SchemaError."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return b"", Common()
    try:
        return text, convert(Common, yaml.safe_load(text))
    except SchemaError as error:
        raise SchemaError(f"{COMMON}: {error}") from error


def _expanded(globs: object, common: Common) -> object:
    """The globs, with the shared ones in the place of each `@NAME`. Raises SchemaError."""
    found: list[object] = []
    if not isinstance(globs, list):
        return globs
    for glob in globs:
        if not isinstance(glob, str) or not glob.startswith("@"):
            found.append(glob)
        elif glob[1:] in common.prune:
            found += common.prune[glob[1:]]
        else:
            raise SchemaError(f"prune: {COMMON} has no set {glob[1:81]!r}")
    return found


def _texts(where: str, holder: object, folder: Path) -> list[bytes]:
    """Put the text of each file in the place of its name; gives the texts.

    Raises:
        SchemaError: there is no such file.
    """
    files = holder.get("files") if isinstance(holder, dict) else None
    texts: list[bytes] = []
    if not isinstance(files, dict):
        return texts
    for path, name in files.items():
        if not isinstance(name, str) or not FUNCTION_FILE.fullmatch(name) or not (folder / name).is_file():
            raise SchemaError(f"{where}.files.{path}: there is no file {str(name)[:80]!r} in {folder}")
        texts.append((folder / name).read_bytes())
        files[path] = texts[-1].decode()
    return texts


def _no_directory(holder: object) -> None:
    """Give the steps that have no directory an empty one, which stands for the image's own."""
    steps = holder.get("steps") if isinstance(holder, dict) else None
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict):
            step.setdefault("cwd", "")


def offered(language: Language, version: str) -> dict[str, Option]:
    """The options that an image of this version of the language has."""
    options = {}
    for name, choice in language.options.items():
        values = tuple(value for value, first in choice.values.items() if _numbers(first) <= _numbers(version))
        if choice.takes:
            options[name] = Option(values=(), default="", takes=choice.takes)
        elif values:
            options[name] = Option(values=values, default=values[-1])
    return options


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]{1,18}", version))


def find_version(
    rules: Iterable[VersionRule],
    paths: Callable[[], Iterable[bytes]],
    read: Callable[[str], bytes | None],
    env: Mapping[str, str] = {},
) -> str | None:
    """The version that an image shows, without running anything of it: the first rule that finds
    something counts.

    `paths` walks all names of the image, sorted; `read` gives a file's contents, or None where
    there is no such file; `env` is its environment.
    """
    for rule in rules:
        if rule.path:
            pattern = re.compile(rule.path)
            found = next((match for path in paths() if (match := pattern.fullmatch(path.decode("utf-8", "replace")))), None)
        elif rule.env:
            found = re.search(rule.pattern or "", env.get(rule.env, "")[:MAX_LINE])
        else:
            data = read(rule.file or DPKG_STATUS)
            pattern = re.compile(rule.pattern or "")
            text = (data or b"").decode("utf-8", "replace")
            lines = _package_versions(text, re.compile(rule.package)) if rule.package else _lines(text)
            found = next((match for line in lines if (match := pattern.search(line))), None)
        if found:
            return found[1]
    return None


def _lines(text: str) -> Iterable[str]:
    return (match[0] for match in re.finditer(rf"(?m)^.{{1,{MAX_LINE}}}", text))


def _package_versions(text: str, package: re.Pattern[str]) -> Iterable[str]:
    """The versions of the packages in dpkg's status file whose names match."""
    wanted = False
    for match in _FACTS.finditer(text):
        if match[1] == "Package":
            wanted = package.fullmatch(match[2]) is not None
        elif match[1] == "Version" and wanted:
            yield match[2]
        elif match[1] is None:
            wanted = False
