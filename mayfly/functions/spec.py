"""The function file: YAML (or JSON) that says what a function is. One function, a list, or several
documents.

SnapFaaS's names for the same are taken, and where one of them cannot mean anything here, the error
says what to write instead.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from mayfly.errors import ConfigError, SchemaError
from mayfly.host.snippet import MIN_CHECKPOINT_S
from mayfly.schema import Meta, Record, convert, msgspec, replace
from mayfly.units import GIB, KIB, MIB
from mayfly.vmm.config import MAX_CPUS, MAX_MEMORY, MIN_MEMORY

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}"
ENTRY = r"([A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*)?"
MAX_FILE = 1 * MIB
"""Bytes of a function file."""
_SIZE = re.compile(r"([0-9]{1,12})([KMG]?)")
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB}
_FILE_SYSTEMS = (".ext2", ".ext3", ".ext4", ".img", ".squashfs", ".sqfs")
_RUNTIMES = {
    **{"python": "python", "python3": "python", "go": "go", "golang": "go", "rust": "rust"},
    **{"javascript": "javascript", "node": "javascript", "nodejs": "javascript", "java": "java", "openjdk": "java"},
}
"""SnapFaaS's names of runtimes, without what follows a dash or a dot, and our languages."""
_ADDED = ("checkpoint_every_s",)
"""Fields that a build of the same version may not know: it refuses them."""
_OPTIONS = ("copy_base", "copy_diff", "load_ws", "dump_ws")


class SnapshotOptions(Record, frozen=True, kw_only=True):
    """What a function's guests start from, and how.

    With `base` from the language's base; with `diff` from a snapshot of the loaded function, over
    the base if there is one. Without `diff` each guest builds and loads the function anew.
    `copy_base` and `copy_diff` read a snapshot's memory into the machine before it runs, instead of
    mapping its file. `load_ws` maps the working set ahead, `dump_ws` notes it when the snapshot is
    made.
    """

    base: bool = True
    diff: bool = True
    copy_base: bool = False
    copy_diff: bool = False
    load_ws: bool = True
    dump_ws: bool = True


class FunctionSpec(Record, frozen=True, kw_only=True):
    """A function as its author describes it. Times are in seconds.

    `code` is a file or a folder. `memory` is in bytes; what is less than its image needs becomes
    that. `concurrency_limit` is the most guests at a time, `min_guests` how many stay ready while
    there is room for them; a further one that was not asked for `keep_alive_s` is ended. `queue` is
    how many requests may wait for a guest, each for `queue_s`; `timeout_s` is for one request with
    its guest. A guest that answers is saved every `checkpoint_every_s` (0: never), so that its
    request outlasts it.
    """

    name: Annotated[str, Meta(pattern=f"^{NAME}$")]
    language: Annotated[str, Meta(min_length=1, max_length=100)]
    code: Annotated[str, Meta(min_length=1, max_length=4096)]
    entry: Annotated[str, Meta(pattern=f"^{ENTRY}$", max_length=200)] = ""
    memory: Annotated[int, Meta(ge=0, le=MAX_MEMORY)] = 0
    vcpus: Annotated[int, Meta(ge=1, le=MAX_CPUS)] = 1
    concurrency_limit: Annotated[int, Meta(ge=1, le=10_000)] = 1
    timeout_s: Annotated[float, Meta(ge=0.001, le=86400)] = 30.0
    env: Mapping[str, str] = {}
    network: bool = False
    keep_alive_s: Annotated[float, Meta(ge=0, le=1e9)] = 300.0
    min_guests: Annotated[int, Meta(ge=0, le=10_000)] = 0
    queue: Annotated[int, Meta(ge=0, le=100_000)] = 64
    queue_s: Annotated[float, Meta(ge=0, le=86400)] = 10.0
    checkpoint_every_s: Annotated[float, Meta(ge=0, le=86400)] = 0.0
    snapshot: SnapshotOptions = SnapshotOptions()

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name) or not re.fullmatch(ENTRY, self.entry):  # a pattern's $ allows for a line's end
            raise ConfigError(f"name {self.name[:80]!r} or entry {self.entry[:80]!r} is not usable", hint="leave white space out")
        if 0 < self.memory < MIN_MEMORY:
            raise ConfigError(
                f"memory is {self.memory} bytes; a machine has at least {MIN_MEMORY // MIB} MiB",
                hint="write it with its unit, as in 512M, or leave it out: the image knows what it needs",
            )
        if self.min_guests > self.concurrency_limit:
            raise ConfigError(
                f"min_guests is {self.min_guests}, concurrency_limit {self.concurrency_limit}", hint="it cannot be more than that"
            )
        if self.checkpoint_every_s:
            self._check_lasting()
        for name, value in self.env.items():
            if not name or "=" in name or "\0" in name + value:
                raise ConfigError(f"env: {name[:80]!r} is not usable", hint="a name is not empty and has no =, nothing a NUL")

    def _check_lasting(self) -> None:
        """Refuse what no save holds, or could ever be made of."""
        every_s = self.checkpoint_every_s
        if not every_s >= MIN_CHECKPOINT_S:  # nor if it is no number
            raise ConfigError(
                f"checkpoint_every_s is {every_s:g}; at least {MIN_CHECKPOINT_S:g} is taken", hint="leave it out, or raise it"
            )
        if self.network:
            raise ConfigError(
                "checkpoint_every_s is not for a function with a network, whose connections would be lost", hint="leave one of them out"
            )
        if every_s >= self.timeout_s:
            raise ConfigError(
                f"checkpoint_every_s is {every_s:g}, timeout_s {self.timeout_s:g}: no request takes so long",
                hint="lower the one, or raise the other",
            )


def fields_of(spec: FunctionSpec) -> dict[str, Any]:
    """The spec as it is sent and kept where builds before read it: fields that they may not know
    are left out unless they are used.
    """
    fields = msgspec.to_builtins(spec)
    return {name: value for name, value in fields.items() if value or name not in _ADDED}


def load_specs(path: Path) -> list[FunctionSpec]:
    """The functions that a file describes; the path of each one's code is absolute.

    Raises:
        ConfigError: the file cannot be read, is not YAML, has no function or two of a name, or says
            something that makes no sense. The message names file, function and field.
    """
    specs = []
    for number, raw in enumerate(_entries(path), start=1):
        name = raw.get("name") if isinstance(raw, dict) else None
        where = f"{path}: {f'function {name[:80]!r}' if isinstance(name, str) else f'function number {number}'}"
        try:
            spec = convert(FunctionSpec, _ours(raw))
        except (ConfigError, SchemaError) as error:
            raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error
        specs.append(replace(spec, code=str(path.absolute().parent / Path(spec.code).expanduser())))
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{path}: two functions have the name {min(twice)!r}", hint="rename one of them")
    if not specs:
        raise ConfigError(f"{path}: there is no function in it", hint="a function needs name, language and code")
    return specs


def _entries(path: Path) -> Iterator[Any]:
    """What a file has as functions, as plain objects."""
    import yaml  # only here: a server loads no function file

    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE + 1)
        if len(text) > MAX_FILE:
            raise ConfigError(f"{path}: a function file has at most {MAX_FILE} bytes")
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (OSError, RecursionError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {getattr(error, 'strerror', error)}", hint="give the path of a function file"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    for document in documents:
        yield from document if isinstance(document, list) else [document]


def _ours(raw: Any) -> dict[str, Any]:
    """An entry with SnapFaaS's names replaced by ours, and sizes in bytes."""
    if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
        raise ConfigError("it must be a mapping of fields to values", hint="a function needs name, language and code")
    fields = dict(raw)
    theirs = {"runtimefs", "appfs"} & set(fields)
    if isinstance(fields.get("memory"), int) and theirs and not isinstance(fields["memory"], bool):
        fields["memory"] *= MIB  # SnapFaaS counts so
    if isinstance(fields.get("memory"), str):
        fields["memory"] = _size(fields["memory"])
    if "runtimefs" in fields:
        _rename(fields, "runtimefs", "language", _language(fields["runtimefs"]))
    if "appfs" in fields:
        _rename(fields, "appfs", "code", _code(fields["appfs"]))
    if fields.get("code") == "":
        raise ConfigError("code is empty", hint="write the path of a file or a folder")
    options = _snapshot(fields)
    if options:
        fields["snapshot"] = options
    return fields


def _rename(fields: dict[str, Any], theirs: str, ours: str, value: Any) -> None:
    if ours in fields:
        raise ConfigError(f"{theirs} and {ours} mean the same", hint=f"leave {theirs} out")
    del fields[theirs]
    fields[ours] = value


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ConfigError(f"memory is {text[:80]!r}, which is not a size", hint="write it as 536870912, 512M or 2G")
    return int(match[1]) * _FACTORS[match[2]]


def _language(runtimefs: Any) -> str:
    """The language that is meant by the name of a runtime's file system."""
    name = re.split(r"[-.@]", str(runtimefs).rsplit("/", 1)[-1].lower(), maxsplit=1)[0]
    if name not in _RUNTIMES:
        raise ConfigError(
            f"runtimefs is {str(runtimefs)[:80]!r}, which names no language here",
            hint="write language: NAME in its place; GET /languages and `mayfly image list` have the names",
        )
    return _RUNTIMES[name]


def _code(appfs: Any) -> Any:
    """The code that is meant by an application's file system."""
    if isinstance(appfs, str) and appfs.endswith(_FILE_SYSTEMS):
        raise ConfigError(
            f"appfs is {appfs[:80]!r}, a file system's image, which is not taken here",
            hint="write code: PATH in its place, the file or folder that the image was made from",
        )
    return appfs


def _snapshot(fields: dict[str, Any]) -> dict[str, Any]:
    """The snapshot options, without SnapFaaS's own fields for them, which are removed. Names of
    snapshots count as true: ours have names that are made.
    """
    given = fields.get("snapshot")
    if given is not None and not isinstance(given, dict):
        return {}  # the error is that of its type
    options = dict(given or {})
    for name in (name for name in _OPTIONS if name in fields):
        options.setdefault(name, fields.pop(name))
    if "diff_dirs" in fields:
        options.setdefault("diff", bool(_layers(fields.pop("diff_dirs"), "diff_dirs")))
    if "load_dir" in fields:
        layers = _layers(fields.pop("load_dir"), "load_dir")
        options.setdefault("base", len(layers) > 0)
        options.setdefault("diff", len(layers) > 1)
    for name in ("base", "diff"):
        if isinstance(options.get(name), str):
            options[name] = bool(options[name])
    return options


def _layers(value: Any, field: str) -> list[str]:
    layers = value.split(",") if isinstance(value, str) else value
    most = 2 if field == "load_dir" else 1
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise ConfigError(f"{field} is {str(value)[:80]!r}", hint="write snapshot: {base: true, diff: true} in its place")
    layers = [layer.strip() for layer in layers if layer.strip()]
    if len(layers) > most:
        raise ConfigError(
            f"{field} names {len(layers)} snapshots; there are a base and a diff at most",
            hint="write snapshot: {base: true, diff: true} in its place",
        )
    return layers
