"""Typed decoding: JSON bytes or plain objects to frozen records, with errors that name the value.

The records are `msgspec.Struct`s. A struct is also the cheaper record: making one of ten fields
costs 0.2 million instructions, a frozen dataclass 5.7 million (docs/architecture.md).
"""

import enum
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from mayfly.errors import MalformedError, SchemaError

_loaded = sys.modules.setdefault("typing_extensions", None)  # type: ignore[arg-type]
import msgspec  # noqa: E402  # with typing_extensions, which it can do without, loading it costs twice as much
from msgspec import Meta, ValidationError, field  # noqa: E402
from msgspec.structs import replace  # noqa: E402

if _loaded is None:
    del sys.modules["typing_extensions"]

__all__ = ["Meta", "Record", "allowed", "convert", "decode", "field", "msgspec", "replace", "show"]
_T = TypeVar("_T")
SHOWN = 80
"""Characters of a bad value or name that a message shows."""
MAX_EXPLAINED = 1 << 20
"""Bytes of JSON that are decoded once more, without types, for a message that shows the value: a
larger text of tiny values would take gigabytes. For that one msgspec's own message is shown."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of decoded records: unknown fields are refused."""


def decode(kind: type[_T], data: bytes | str) -> _T:
    """Decode JSON.

    Raises:
        MalformedError: not JSON, nested too deeply, or text that is not UTF-8.
        SchemaError: a value does not fit.
    """
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_hook)
    except ValidationError as error:
        if len(data) > MAX_EXPLAINED:
            raise SchemaError(str(error)) from error
        raise _explain(kind, _plain(data), error) from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise _malformed(data, error) from error


def convert(kind: type[_T], value: object, *, strict: bool = True) -> _T:
    """Check plain objects (of YAML, or a query if not `strict`: numbers and flags are text there).

    Raises:
        SchemaError: a value does not fit.
    """
    try:
        return msgspec.convert(value, kind, strict=strict, dec_hook=_hook)
    except ValidationError as error:
        raise _explain(kind, value, error, strict=strict) from error
    except (RecursionError, ValueError, TypeError) as error:
        raise SchemaError(str(error)[:200]) from error


def _plain(data: bytes | str) -> object:
    try:
        return msgspec.json.decode(data)
    except ValidationError as error:  # a number beyond all types
        raise SchemaError(str(error)) from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise _malformed(data, error) from error


def _malformed(data: bytes | str, error: Exception) -> MalformedError:
    if "truncated" in str(error) and data and data[-1:] in (b"}", "}", b"]", "]"):
        return MalformedError("it ends too early, or holds half of a surrogate pair (\\ud800 to \\udfff)")
    return MalformedError(str(error)[:200])


def _hook(kind: Any, value: Any) -> Any:
    if _is_path(kind) and isinstance(value, os.PathLike | str) and str(value):
        try:
            return kind(value).expanduser()
        except RuntimeError as error:  # no home
            raise SchemaError(f"{str(value)!r}: {error}", hint="write the path without ~") from error
    raise ValidationError("another type is needed")


def _explain(kind: Any, value: object, error: ValidationError, *, strict: bool = True) -> SchemaError:
    """The error that names the innermost value which does not fit."""
    path = ""
    while (inner := _inner(kind, value, path, strict)) is not None:
        path, kind, value = inner
    bare, metas = _bare(kind)
    if _is_record(bare) and isinstance(value, Mapping):
        names = {field.encode_name for field in msgspec.structs.fields(bare)}
        needed = {field.encode_name for field in msgspec.structs.fields(bare) if field.required}
        for name in value:
            if name not in names:
                import difflib  # only here: the command loads this module each time

                near = difflib.get_close_matches(str(name)[:SHOWN], names, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                return SchemaError(f"unknown field {_joined(path, name)!r}", hint=f"{hint}the fields are {', '.join(sorted(names))}")
        for name in sorted(needed - set(value)):
            return SchemaError(f"the field {_joined(path, name)!r} is missing")
        return SchemaError(f"{path}: {error}" if path else str(error))
    return SchemaError(f"{path or 'the value'} is {show(value)}; it must be {allowed(bare, metas)}")


def show(value: object) -> str:
    """A value for a message, cut."""
    return repr(value)[:SHOWN] if isinstance(value, str | int | float | None) else f"{type(value).__name__} {repr(value)[:SHOWN]}"


def _inner(kind: Any, value: Any, path: str, strict: bool) -> tuple[str, Any, Any] | None:
    """The first part of `value` that does not fit its own type: path, type, value."""
    bare, _ = _bare(kind)
    parts: list[tuple[str, Any, Any]] = []
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in arguments if option not in (types.NoneType, msgspec.UnsetType)]
        parts = [(path, option, value) for option in options if len(options) == 1 or _is_container(option, value)]
    elif _is_record(bare) and isinstance(value, Mapping):
        hints = typing.get_type_hints(bare, include_extras=True)
        parts = [(_joined(path, name), hints[name], item) for name, item in value.items() if name in hints]
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        for key, item in value.items():
            parts += [(f"a name in {path}", arguments[0], key), (_joined(path, key), arguments[1], item)]
    elif origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        parts = [(f"{path}[{index}]", arguments[0], item) for index, item in enumerate(value)]
    for part in parts:
        if part[1] is msgspec.Raw:  # takes any value
            continue
        try:
            msgspec.convert(part[2], part[1], strict=strict, dec_hook=_hook)
        except (ValidationError, RecursionError, ValueError, TypeError):
            return part
    return None


def _is_container(option: Any, value: object) -> bool:
    bare, _ = _bare(option)
    if _is_record(bare) or typing.get_origin(bare) in (dict, Mapping):
        return isinstance(value, Mapping)
    return typing.get_origin(bare) in (list, tuple, Sequence) and isinstance(value, list | tuple)


def _joined(path: str, name: object) -> str:
    return f"{path}.{str(name)[:SHOWN]}" if path else str(name)[:SHOWN]


def _bare(kind: Any) -> tuple[Any, list[Meta]]:
    metas: list[Meta] = []
    while typing.get_origin(kind) is Annotated:
        metas += [item for item in kind.__metadata__ if isinstance(item, Meta)]
        kind = kind.__origin__
    return kind, metas


def _is_path(kind: Any) -> bool:
    """Whether it is `Path`, whose module machines do not load: it takes 350 KiB."""
    return isinstance(kind, type) and issubclass(kind, os.PathLike)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


_WORDS: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "text", bytes: "base64", bool: "true or false"}


def allowed(kind: Any, metas: Sequence[Meta] = ()) -> str:
    """What may stand where `kind` is, in words: `a whole number from 1 to 64`."""
    kind, inner = _bare(kind)
    for meta in (*metas, *inner):
        if meta.extra and "allowed" in meta.extra:
            return str(meta.extra["allowed"])
    words = _kind_words(kind)
    for meta in (*metas, *inner):
        if meta.ge is not None and meta.le is not None:
            words += f" from {meta.ge:g} to {meta.le:g}" if max(abs(meta.ge), abs(meta.le)) < 1e6 else f" from {meta.ge} to {meta.le}"
        elif meta.gt is not None:
            words += f" above {meta.gt}" + (f", at most {meta.le}" if meta.le is not None else "")
        if meta.max_length is not None:
            words += f" of at most {meta.max_length} {'characters' if kind is str else 'entries'}"
        if meta.pattern is not None:
            words += f" that matches {meta.pattern}"
    return words


def _kind_words(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        kinds = [item for item in typing.get_args(kind) if item not in (types.NoneType, msgspec.UnsetType)]
        return " or ".join(allowed(item) for item in kinds)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " or ".join(str(item.value) for item in kind)
    if _is_path(kind):
        return "a path"
    if _is_record(kind):
        return f"an object with {', '.join(field.encode_name for field in msgspec.structs.fields(kind))}"
    if origin in (dict, Mapping):
        return f"an object, each value {allowed(typing.get_args(kind)[1])}"
    if origin in (list, tuple, Sequence):
        return f"a list, each item {allowed(typing.get_args(kind)[0])}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
