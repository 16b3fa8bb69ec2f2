"""The configuration: one table of keys, read from `config.yaml`, overridden by flags of the same
names.

A key's type, default, range and meaning stand in its field below; the loader, the command line's
flags and the documentation use that.
"""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from mayfly import paths
from mayfly.errors import ConfigError, SchemaError
from mayfly.schema import Meta, Record, convert, field, replace
from mayfly.units import MIB
from mayfly.vmm.config import PASST_UIDS, UID_RANGE, Channel, NetworkBackend, Sandbox

MAX_UID = (1 << 32) - 1  # Which means none (setresuid(2))
DEFAULT_EMULATED_FACTOR = 5.0
"""How much longer everything may take on a host whose KVM is emulated, unless `time_factor` says
otherwise.
"""
CHOICES: Mapping[Any, tuple[str, ...]] = {
    Channel: ("serial", "virtio", "tcp"),
    NetworkBackend: tuple(map(str, NetworkBackend)),
    Sandbox: tuple(map(str, Sandbox)),
}
"""What may be said for a key of such a type."""


def key(meaning: str, low: float | None = None, high: float | None = None, *, allowed: str = "") -> Meta:
    """What a configuration key means, and for numbers the range."""
    return Meta(description=meaning, ge=low, le=high, extra={"allowed": allowed} if allowed else None)


class Config(Record, frozen=True, kw_only=True):
    """The whole configuration. Times are in seconds, sizes in bytes; 0 as a limit means none.

    `load` checks types and ranges.
    """

    socket: Annotated[Path, key("path of the API's socket")] = field(default_factory=lambda: paths.runtime_dir() / "api.sock")
    listen: Annotated[tuple[str, ...], key("HOST:PORT to serve on over TCP too, for clients with an API key")] = ()
    tls_certificate: Annotated[str, key("file with the certificate chain (PEM) of the TCP addresses, which then speak TLS")] = ""
    tls_key: Annotated[str, key("file with the certificate's private key (PEM)")] = ""
    insecure: Annotated[bool, key("listen on other addresses than loopback without TLS, behind a proxy that has it")] = False
    cors_origins: Annotated[tuple[str, ...], key("origins whose pages may use the API, such as https://example.com, or *")] = ()
    callback_hosts: Annotated[
        tuple[str, ...], key("hosts, addresses and networks that callbacks may reach besides the public Internet")
    ] = ()
    access_log: Annotated[str, key("file for a line of JSON for each request; -: standard error")] = ""
    audit_log: Annotated[str, key("file for a line of JSON for each start, end and change of a run; -: standard error")] = ""
    compat: Annotated[
        tuple[str, ...], key("contracts of others to serve, each as NAME, NAME=/PREFIX or NAME=HOST:PORT (docs/compat.md)")
    ] = ()
    playground: Annotated[bool, key("serve a page to try it on at /")] = False
    function_listen: Annotated[str, key("HOST:PORT to take requests for functions on in SnapFaaS's frames, which have no keys")] = ""
    languages: Annotated[tuple[str, ...], key("languages to serve (name or name@version); none given: every installed one")] = ()
    image_keys: Annotated[
        tuple[str, ...], key("public keys of minisign, of which one must have signed an image that is pulled; none: unsigned ones too")
    ] = ()
    kernel: Annotated[Path, key("the guests' kernel")] = field(default_factory=lambda: paths.kernel_path(platform.machine()))
    user: Annotated[str, key("of machines that root starts: each has its own id, in this user's group; empty: stay root")] = "nobody"
    uid_range: Annotated[str, key("user ids FIRST-LAST of machines that root starts, as many as this host may have processes")] = (
        f"{UID_RANGE[0]}-{UID_RANGE[1]}"
    )
    sandbox: Annotated[
        Sandbox, key("of machines: required, best_effort or off; auto: required where this host has all parts, else best_effort")
    ] = Sandbox.AUTO
    channel: Annotated[
        Channel, key("what carries the channel: serial, virtio or tcp (of runs with a network)", allowed="serial or virtio or tcp")
    ] = Channel.VIRTIO
    cpus: Annotated[int, key("virtual CPUs of a machine", 1, 64)] = 1
    memory: Annotated[int, key("memory of a machine, if more than its image asks for; 0: as the image asks", 0, 1 << 39)] = 0
    network_backend: Annotated[NetworkBackend, key("what connects runs that ask for a network: none, tap or passt")] = NetworkBackend.NONE
    network_taps: Annotated[tuple[str, ...], key("tap interfaces, one for each machine with a network at a time")] = ()
    network_subnets: Annotated[tuple[str, ...], key("subnets of machines with a network, at most one of IPv4 and of IPv6")] = (
        "10.87.0.0/16",
    )
    network_first: Annotated[
        int, key("place in each subnet of the first machine's address; hosts on one bridge need ranges of their own", 2, 1 << 62)
    ] = 2
    network_nameservers: Annotated[tuple[str, ...], key("name servers of machines with a network")] = ()
    network_allow: Annotated[tuple[str, ...], key("networks that machines may reach besides the public Internet")] = ()
    network_bytes: Annotated[int, key("bytes that a machine may send and receive over its network in all; 0: no limit", 0, 1 << 60)] = 0
    network_rate: Annotated[int, key("bytes a second that it may send, and receive; 0: no limit", 0, 1 << 40)] = 0
    network_packets: Annotated[int, key("packets a second, likewise; 0: no limit", 0, 10**9)] = 0
    boot_timeout_s: Annotated[float, key("time for a machine to come up", 0.1, 3600)] = 30.0
    time_factor: Annotated[float, key("factor for all times on this host; 0: chosen by probing KVM", 0, 1000)] = 0.0

    build_wall_s: Annotated[float, key("wall-clock limit of a build step", 0.05, 86400)] = 60.0
    build_cpu_s: Annotated[float, key("CPU time limit of a build step", 0, 86400)] = 0.0
    build_memory: Annotated[int, key("memory limit of a build step; 0: what the image leaves free", 0, 1 << 39)] = 0
    build_processes: Annotated[int, key("process limit of a build step", 1, 4096)] = 128
    build_output: Annotated[int, key("output limit of a build step, per stream", 1, 64 * MIB)] = 1 * MIB
    run_wall_s: Annotated[float, key("wall-clock limit of any other step", 0.05, 86400)] = 10.0
    interactive_wall_s: Annotated[float, key("the same where a client writes to the program while it runs", 0.05, 86400)] = 300.0
    run_cpu_s: Annotated[float, key("CPU time limit of any other step", 0, 86400)] = 0.0
    run_memory: Annotated[int, key("memory limit of any other step; 0: what the image leaves free", 0, 1 << 39)] = 0
    run_processes: Annotated[int, key("process limit of any other step", 1, 4096)] = 128
    run_output: Annotated[int, key("output limit of any other step, per stream", 1, 64 * MIB)] = 1 * MIB
    file_size: Annotated[int, key("largest file that a step may write", 1 * MIB, 1 << 39)] = 256 * MIB

    collect_bytes: Annotated[int, key("files that come back from a run, all together", 0, 64 * MIB)] = 8 * MIB

    memory_budget: Annotated[int, key("memory for all machines together; 0: 60 % of what is available at the start", 0, 1 << 45)] = 0
    threads: Annotated[
        int, key("threads of all machines, ready ones too: one a virtual CPU and one for devices, not an idle one; 0: no limit", 0, 1 << 20)
    ] = 0
    cold: Annotated[bool, key("boot a machine for each run instead of restoring it from a snapshot")] = False
    warm: Annotated[int, key("restored machines kept ready for each language that was asked for", 0, 10_000)] = 0
    queue: Annotated[int, key("runs that may wait for room", 0, 10_000)] = 32
    drain_s: Annotated[float, key("how long runs may go on when the server is told to stop", 0, 86400)] = 20.0
    keep_s: Annotated[float, key("how long a run's output is kept after its end", 0, 86400)] = 60.0
    keep_bytes: Annotated[int, key("output kept of all ended runs together", 0, 1 << 40)] = 64 * MIB
    keep_runs: Annotated[int, key("ended runs kept", 0, 100_000)] = 256

    function_log: Annotated[str, key("file for a line of JSON for each request to a function; -: standard error")] = ""
    function_statistics: Annotated[str, key("file for what functions did, as JSON, written when the server stops")] = ""

    def __post_init__(self) -> None:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigError("tls_certificate and tls_key go together", hint="give both, or none")
        if self.channel not in CHOICES[Channel]:
            raise ConfigError(f"channel is '{self.channel}'; it must be {' or '.join(CHOICES[Channel])}")
        if self.channel is Channel.TCP and self.network_backend is NetworkBackend.NONE:
            raise ConfigError(
                "channel is 'tcp', but no run has a network", hint="set network_backend to tap or passt, or channel to virtio"
            )

        if not re.fullmatch(r"[1-9]\d{0,9}-[1-9]\d{0,9}", self.uid_range) or not self.uids[0] <= self.uids[1] < MAX_UID:
            raise ConfigError(f"uid_range is {self.uid_range!r}; it must be FIRST-LAST, from 1 to {MAX_UID - 1}")
        first, last = PASST_UIDS
        if self.network_backend is NetworkBackend.PASST and self.uids[0] <= last and self.uids[1] >= first:
            raise ConfigError(f"uid_range is {self.uid_range!r}, and passt's ids are {first}-{last}", hint="give a range beside them")

    @classmethod
    def load(cls, overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> Self:
        """Read the configuration file, if there is one, and lay `overrides` over it.

        Raises:
            ConfigError: a key is unknown, of the wrong type or out of range; the file is not YAML.
                The message names key and range.
        """
        path = path or paths.config_file()
        try:
            return convert(cls, {**_read(path), **(overrides or {})})
        except (ConfigError, SchemaError) as error:
            usual = f"correct {path} or the flag; docs/api.md lists every key"
            message = error.message.replace("unknown field", f"{path}: unknown key")
            raise ConfigError(message, hint=error.hint.replace("fields", "keys") or usual) from error

    @property
    def uids(self) -> tuple[int, int]:
        """`uid_range` as its ends."""
        first, _, last = self.uid_range.partition("-")
        return int(first), int(last)

    def scaled(self, factor: float) -> Self:
        """The same for a host where everything may take `factor` times as long."""
        return replace(self, time_factor=factor)

    def here(self, seconds: float) -> float:
        """What `seconds` of a limit become on this host. Nobody else multiplies times."""
        return seconds * (self.time_factor or 1.0)


class Key(Record, frozen=True, kw_only=True):
    """A key of the configuration. `high` is the end of a number's range."""

    name: str
    type: Any
    meaning: str
    high: float | None


def _key(name: str, annotation: Any) -> Key:
    meta = annotation.__metadata__[0]
    return Key(name=name, type=annotation.__origin__, meaning=meta.description, high=meta.le)


FIELDS: Mapping[str, Key] = {name: _key(name, annotation) for name, annotation in Config.__annotations__.items()}


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
    return raw
