"""Languages, each the whole of it in one YAML file beside this one: where its image comes from,
what stays of it, how a snippet is run.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mayfly.errors import ConfigError, UnknownLanguageError
from mayfly.imagegen.rootfs.prune import Pruner
from mayfly.images.manifest import Step, Warmup
from mayfly.units import MIB

FOLDER = Path(__file__).parent
NAME = re.compile(r"[a-z][a-z0-9+-]{0,31}")
_COLLECTED = re.compile(r"(?:/(?!\.\.?(?:/|$))[^/\0]+)+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionRule:
    """Where an image shows the language's version: group 1 of `pattern`, in a path's name (`file`
    is None) or in the text of `file`.
    """

    pattern: str
    file: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Steps to run once in a machine of the whole image, and the folders of which all files then
    belong to the image. There may be none.
    """

    steps: tuple[Step, ...] = ()
    collect: tuple[str, ...] = ()
    working_memory: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """What a language's file says. `digest` is of the file's bytes; `working_memory` is in bytes.

    `version_command` makes the compiler say which one it is. In `image` `{version}` stands for a
    version, or for `default_version` where none is asked for. A step whose directory the file does
    not give has an empty one, and runs in the image's WorkingDir.
    """

    name: str
    image: str
    default_version: str
    extensions: tuple[str, ...]
    source_file: str
    version: tuple[VersionRule, ...]
    version_command: tuple[str, ...]
    working_memory: int
    steps: tuple[Step, ...]
    prune: tuple[str, ...]
    env: Mapping[str, str]
    prepare: Prepare
    warmup: Warmup
    digest: str

    def reference(self, version: str = "") -> str:
        """The image on the language's own registry, of its newest version or of the one given."""
        return self.image.replace("{version}", version or self.default_version)


def known_languages() -> list[str]:
    """The names of all languages, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_language(name: str, folder: Path = FOLDER) -> Language:
    """Read a language's file.

    Raises:
        UnknownLanguageError: there is none of that name.
        ConfigError: it says something that makes no sense.
    """
    path = folder / f"{name}.yaml"
    if not NAME.fullmatch(name) or not path.is_file():
        raise UnknownLanguageError(f"language {name!r} is not known", hint=f"known: {', '.join(known_languages())}")
    return parse_language(path.read_bytes(), str(path))


def parse_language(data: bytes, origin: str) -> Language:
    """Parse and check a language's YAML. Raises ConfigError, which names `origin` and the field."""
    try:
        raw = yaml.safe_load(data)
        language = Language(
            name=_text(raw, "name"),
            image=_text(raw, "image"),
            default_version=_text(raw, "default_version") if "{version}" in _text(raw, "image") else "",
            extensions=_texts(raw, "extensions"),
            source_file=_text(raw, "source_file"),
            version=tuple(_version_rule(rule) for rule in raw["version"]),
            version_command=_texts(raw, "version_command") if "version_command" in raw else (),
            working_memory=_number(raw, "working_memory_mib") * MIB,
            steps=tuple(_step(step) for step in raw["steps"]),
            prune=_texts(raw, "prune"),
            env={str(key): str(value) for key, value in (raw.get("env") or {}).items()},
            prepare=_prepare(raw["prepare"]) if raw.get("prepare") else Prepare(working_memory=_number(raw, "working_memory_mib") * MIB),
            warmup=_warmup(raw["warmup"]) if raw.get("warmup") else Warmup(),
            digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
        )
        Pruner(language.prune)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, re.error) as error:
        raise ConfigError(f"{origin}: {type(error).__name__}: {error}", hint="compare it with languages/rust.yaml") from error
    if not NAME.fullmatch(language.name) or "/" in language.source_file or not language.steps:
        raise ConfigError(f"{origin}: name, source_file or steps are not usable")
    return language


def _text(raw: Mapping[str, Any], key: str) -> str:
    value = raw[key]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is {value!r}, not a text")
    return value


def _texts(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = raw[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key} is {value!r}, not a list of texts")
    return tuple(value)


def _number(raw: Mapping[str, Any], key: str) -> int:
    value = raw[key]
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{key} is {value!r}, not a number above 0")
    return value


def _version_rule(raw: Mapping[str, Any]) -> VersionRule:
    file = raw.get("file")
    rule = VersionRule(pattern=_text(raw, "pattern" if file else "path"), file=file)
    if re.compile(rule.pattern).groups != 1:
        raise ValueError(f"version pattern {rule.pattern!r} has not exactly one group")
    return rule


def _step(raw: Mapping[str, Any]) -> Step:
    known = {field.name for field in dataclasses.fields(Step)}
    if unknown := set(raw) - known:
        raise ValueError(f"step has the unknown field {sorted(unknown)[0]!r}")
    return Step(**{"cwd": "", **raw, "argv": _texts(raw, "argv")})


def _prepare(raw: Mapping[str, Any]) -> Prepare:
    prepare = Prepare(
        steps=tuple(_step(step) for step in raw["steps"]),
        collect=_texts(raw, "collect"),
        working_memory=_number(raw, "working_memory_mib") * MIB,
    )
    if not prepare.steps or not prepare.collect or not all(_COLLECTED.fullmatch(path) for path in prepare.collect):
        raise ValueError("prepare has no steps, or collects what is no absolute path of plain names")
    return prepare


def _warmup(raw: Mapping[str, Any]) -> Warmup:
    warmup = Warmup(files=dict(raw["files"]), steps=tuple(_step(step) for step in raw["steps"]))
    if not warmup.steps or not all(isinstance(item, str) for pair in warmup.files.items() for item in pair):
        raise ValueError("warmup has no steps, or files that are no text")
    return warmup


def find_version(rules: Iterable[VersionRule], paths: Iterable[bytes], read: Callable[[str], bytes | None]) -> str | None:
    """The version that an image's files show, without running any of them: the first rule that
    finds something counts.

    `paths` are all names of the image, sorted; `read` gives a file's contents, or None where there
    is no such file.
    """
    names = [path.decode("utf-8", "replace") for path in paths]
    for rule in rules:
        pattern = re.compile(rule.pattern)
        if rule.file is None:
            found = next((match for name in names if (match := pattern.fullmatch(name))), None)
        else:
            text = read(rule.file)
            found = pattern.search(text.decode("utf-8", "replace")) if text is not None else None
        if found:
            return found[1]
    return None
