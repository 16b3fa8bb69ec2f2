"""Flags of commands: sizes, and one for every key of the configuration."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # a run that the server carries out needs no configuration
    from mayfly.host.config import Config, Key

SIZE_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
OF_SERVER = (
    *("socket", "compat", "listen", "playground", "tls_certificate", "tls_key", "insecure", "cors_origins", "callback_hosts"),
    *("access_log", "audit_log", "function_listen"),
    *("languages", "warm", "queue", "drain_s", "keep_s", "keep_bytes", "keep_runs"),
)
SHORT = {
    "languages": "--language",
    "cors_origins": "--cors-origin",
    "callback_hosts": "--callback-host",
    "run_wall_s": "--wall",
    "build_wall_s": "--build-wall",
    "run_output": "--output-limit",
}
"""Flags that have a second, shorter name (or, for a list, one in the singular)."""


class Size(click.ParamType[int]):
    """A number of bytes: 1000000, 512M, 2G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15})([KMG]?)(?:i?B)?", str(value).strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not a size; write it as 536870912, 512M or 2G", param, ctx)
        return int(match[1]) * SIZE_FACTORS[match[2].upper()]


def _flag(field: "Key") -> click.Option:
    from mayfly.host.config import CHOICES

    names = [f"--{field.name.replace('_', '-')}"]
    if field.name in SHORT:
        names = [SHORT[field.name]] if field.name == "languages" else [SHORT[field.name], *names]
    kinds: dict[Any, Any] = {
        float: float,
        str: str,
        Path: click.Path(path_type=Path),
        **{choice: click.Choice(names) for choice, names in CHOICES.items()},
    }
    if field.type == tuple[str, ...]:
        return click.Option([*names, field.name], multiple=True, help=field.meaning)
    if field.type is bool:
        return click.Option([*names, field.name], is_flag=True, default=None, help=field.meaning)
    is_size = field.type is int and (field.high or 0) >= 1 << 20
    kind = Size() if is_size else kinds.get(field.type, int)
    return click.Option([*names, field.name], type=kind, help=field.meaning)


class Configured(click.Command):
    """A command with a flag for every key of the configuration but those in `without`, or only for
    those in `only`; they arrive as keyword arguments, None if not given.

    They are made when the command is called: there are many, and other commands start without them.
    """

    def __init__(self, *args: Any, without: Sequence[str] = (), only: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._without, self._only = without, only

    @functools.cached_property
    def _flags(self) -> list[click.Parameter]:
        from mayfly.host.config import FIELDS

        return [
            _flag(field) for field in FIELDS.values() if field.name not in self._without and (field.name in self._only or not self._only)
        ]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, then the flags."""
        own = super().get_params(ctx)
        return [*own[:-1], *self._flags, *own[-1:]]  # --help is the last


class OwnFirst(Configured):
    """As Configured, for a command that is often called without any flag of the configuration: then
    none arrives, and none is made.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Try without the flags; an option that is not the command's own is one of theirs, or
        wrong.
        """
        try:
            self._in_own = True
            return super().parse_args(ctx, list(args))
        except click.NoSuchOption:
            self._in_own = False
            return super().parse_args(ctx, args)
        finally:
            self._in_own = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own alone while they are tried, and help is not what is asked for."""
        return click.Command.get_params(self, ctx) if self._in_own else super().get_params(ctx)

    def get_help(self, ctx: click.Context) -> str:
        """Of all flags."""
        self._in_own = False
        return super().get_help(ctx)

    _in_own = False


def load_config(flags: dict[str, Any]) -> "Config":
    """The configuration with the given flags laid over it."""
    from mayfly.host.config import Config

    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    return Config.load(given)
