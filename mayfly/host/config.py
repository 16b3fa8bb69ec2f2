"""The configuration: one table of keys, read from `config.yaml`, overridden by flags of the same
names.

A key's type, default, range and meaning stand in its field below; the loader, the command line's
flags and the documentation use that.
"""

# ruff: noqa: RUF009  # key() makes a field, as dataclasses.field() does

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mayfly import paths
from mayfly.errors import ConfigError
from mayfly.units import MIB
from mayfly.vmm.config import Channel, NetworkBackend

DEFAULT_EMULATED_FACTOR = 5.0
"""How much longer everything may take on a host whose KVM is emulated, unless `time_factor` says
otherwise.
"""


def key(default: Any, meaning: str, low: float | None = None, high: float | None = None) -> Any:
    """A configuration key: its default (or a function that makes it), what it means, and for
    numbers the range.
    """
    metadata = {"meaning": meaning, "low": low, "high": high}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration. Times are in seconds, sizes in bytes; 0 as a limit means none."""

    socket: Path = key(lambda: paths.runtime_dir() / "api.sock", "path of the API's socket")
    languages: tuple[str, ...] = key((), "languages to serve (name or name@version); none given: every installed one")
    kernel: Path = key(lambda: paths.kernel_path(platform.machine()), "the guests' kernel")
    user: str = key("nobody", "of machines that root starts: each has its own id, in this user's group; empty: stay root")
    channel: Channel = key(Channel.VIRTIO, "what carries the channel: serial, virtio or tcp (of runs with a network)")
    cpus: int = key(1, "virtual CPUs of a machine", 1, 64)
    memory: int = key(0, "memory of a machine, if more than its image asks for; 0: as the image asks", 0, 1 << 39)
    network_backend: NetworkBackend = key(NetworkBackend.NONE, "what connects runs that ask for a network: none, tap or passt")
    network_taps: tuple[str, ...] = key((), "tap interfaces, one for each machine with a network at a time")
    network_subnets: tuple[str, ...] = key(("10.87.0.0/16",), "subnets of machines with a network, at most one of IPv4 and of IPv6")
    network_nameservers: tuple[str, ...] = key((), "name servers of machines with a network")
    network_allow: tuple[str, ...] = key((), "networks that machines may reach besides the public Internet")
    boot_timeout_s: float = key(30.0, "time for a machine to come up", 0.1, 3600)
    time_factor: float = key(0.0, "factor for all times on this host; 0: chosen by probing KVM", 0, 1000)

    build_wall_s: float = key(60.0, "wall-clock limit of a build step", 0.05, 86400)
    build_cpu_s: float = key(0.0, "CPU time limit of a build step", 0, 86400)
    build_memory: int = key(0, "memory limit of a build step; 0: what the image leaves free", 0, 1 << 39)
    build_processes: int = key(128, "process limit of a build step", 1, 4096)
    build_output: int = key(1 * MIB, "output limit of a build step, per stream", 1, 64 * MIB)
    run_wall_s: float = key(10.0, "wall-clock limit of any other step", 0.05, 86400)
    run_cpu_s: float = key(0.0, "CPU time limit of any other step", 0, 86400)
    run_memory: int = key(0, "memory limit of any other step; 0: what the image leaves free", 0, 1 << 39)
    run_processes: int = key(128, "process limit of any other step", 1, 4096)
    run_output: int = key(1 * MIB, "output limit of any other step, per stream", 1, 64 * MIB)
    file_size: int = key(256 * MIB, "largest file that a step may write", 1 * MIB, 1 << 39)

    memory_budget: int = key(0, "memory for all machines together; 0: 60 % of what is available at the start", 0, 1 << 45)
    cold: bool = key(False, "boot a machine for each run instead of restoring it from a snapshot")
    warm: int = key(0, "restored machines kept ready for each language that was asked for", 0, 10_000)
    queue: int = key(32, "runs that may wait for room", 0, 10_000)
    keep_s: float = key(60.0, "how long a run's output is kept after its end", 0, 86400)
    keep_bytes: int = key(64 * MIB, "output kept of all ended runs together", 0, 1 << 40)
    keep_runs: int = key(256, "ended runs kept", 0, 100_000)

    def __post_init__(self) -> None:
        if self.channel not in CHOICES[Channel]:
            raise ConfigError(f"channel is '{self.channel}'; it must be {' or '.join(CHOICES[Channel])}")
        if self.channel is Channel.TCP and self.network_backend is NetworkBackend.NONE:
            raise ConfigError(
                "channel is 'tcp', but no run has a network", hint="set network_backend to tap or passt, or channel to virtio"
            )
        for field in FIELDS.values():
            check_range(field, getattr(self, field.name))

    @classmethod
    def load(cls, overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> Self:
        """Read the configuration file, if there is one, and lay `overrides` (values already of the
        right types) over it.

        Raises:
            ConfigError: a key is unknown, of the wrong type or out of range; the file is not YAML.
                The message names key and range.
        """
        path = path or paths.config_file()
        try:
            values = {name: convert(FIELDS[name], value, str(path)) for name, value in _read(path).items()}
            return cls(**{**values, **(overrides or {})})
        except ConfigError as error:
            raise ConfigError(error.message, hint=error.hint or f"correct {path} or the flag; docs/api.md lists every key") from error

    def scaled(self, factor: float) -> Self:
        """The same for a host where everything may take `factor` times as long."""
        return dataclasses.replace(self, time_factor=factor)

    def here(self, seconds: float) -> float:
        """What `seconds` of a limit become on this host. Nobody else multiplies times."""
        return seconds * (self.time_factor or 1.0)


CHOICES: Mapping[Any, tuple[str, ...]] = {Channel: ("serial", "virtio", "tcp"), NetworkBackend: tuple(map(str, NetworkBackend))}
"""What may be said for a key of such a type."""
FIELDS: Mapping[str, "dataclasses.Field[Any]"] = {field.name: field for field in dataclasses.fields(Config)}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    import yaml  # only here: most calls of the command line have no such file

    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: it must be a mapping of keys to values")
    for name in raw:
        if name not in FIELDS:
            raise ConfigError(f"{path}: unknown key {name!r}", hint=f"the keys are {', '.join(FIELDS)}")
    return raw


def convert(field: "dataclasses.Field[Any]", value: Any, origin: str) -> Any:
    """Turn a YAML value into the field's type; a wrong type is a ConfigError that names key, range
    and `origin`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if field.type is float and number:
        return float(value)
    if field.type is int and isinstance(value, int) and number:
        return value
    if field.type in (str, bool) and type(value) is field.type:
        return value
    if field.type is Path and isinstance(value, str) and value:
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise ConfigError(f"{origin}: {field.name}: {value!r}: {error}", hint="write the path without ~") from error
    if value in CHOICES.get(field.type, ()):
        choice: Any = field.type
        return choice(value)
    if field.type == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ConfigError(f"{origin}: {field.name} is {value!r}; it must be {allowed(field)}")


def allowed(field: "dataclasses.Field[Any]") -> str:
    """What may stand in `field`, in words."""
    low, high = field.metadata["low"], field.metadata["high"]
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    words |= {choice: " or ".join(names) for choice, names in CHOICES.items()}
    kind = words.get(field.type, "a list of names")  # type: ignore[arg-type]  # a type here, as annotations are evaluated in this module
    return kind if low is None else f"{kind} from {low} to {high}"


def check_range(field: "dataclasses.Field[Any]", value: Any) -> None:
    """Raise a ConfigError if the number `value` is out of the field's range."""
    low, high = field.metadata["low"], field.metadata["high"]
    if low is not None and not low <= value <= high:
        raise ConfigError(f"{field.name} is {value}; it must be {allowed(field)}")
