"""What this host can do: the factor for time limits, and the checks of `mayfly doctor`."""

import os
import platform
import pwd
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mayfly import paths
from mayfly.errors import HostError, MayflyError
from mayfly.guests.cgroups import group_of, is_delegated, offered
from mayfly.guests.probe import KvmProbe, probe
from mayfly.host import processor
from mayfly.host.admission import DEFAULT_SHARE
from mayfly.host.config import DEFAULT_EMULATED_FACTOR, Config
from mayfly.host.memory import available_memory
from mayfly.images.store import Images
from mayfly.units import MIB
from mayfly.vmm.config import NetworkBackend, Sandbox
from mayfly.vmm.kvm.kvm import Kvm
from mayfly.vmm.network.passt import PROGRAM

PID_MAX = Path("/proc/sys/kernel/pid_max")


def time_factor(config: Config, probing: Callable[[], KvmProbe] = probe) -> float:
    """The factor for all times on this host: the configured one, else 1, else more where KVM itself
    is emulated.

    Raises:
        HostError: Linux guests do not run on this host.
    """
    if config.time_factor:
        return config.time_factor
    found = probing()
    if not found.usable:
        raise HostError(f"no machine can run here: {found.reason}", hint=found.hint)
    return DEFAULT_EMULATED_FACTOR if found.emulated else 1.0


def sandbox(config: Config) -> tuple[Sandbox, str]:
    """The sandbox of the machines of a server here, and what it consists of."""
    from mayfly.vmm.sandbox import parts  # only here, as few commands need its parts

    found = parts.look() if config.sandbox is not Sandbox.OFF else []
    lacking = [f"{part.name} ({part.lacking})" for part in found if part.lacking]
    text = "; ".join(f"{part.name}: {part.finding}" for part in found if part.finding) or "off"
    if lacking:
        text += f"; this host lacks {', '.join(lacking)}"
    if config.sandbox is Sandbox.AUTO:
        return Sandbox.BEST_EFFORT if lacking else Sandbox.REQUIRED, text
    return config.sandbox, text


class Check(NamedTuple):
    """One line of the doctor: what was looked at, how it is, and if it is not well, what fixes
    it.
    """

    name: str
    ok: bool
    finding: str
    fix: str = ""


def examine(config: Config, probing: Callable[[], KvmProbe] = probe) -> Iterator[Check]:
    """Look at everything that a run needs."""
    yield from _kvm(config, probing)
    yield _linux()
    yield _kernel(config)
    images = Images(config.languages).installed()
    found = ", ".join(f"{image.manifest.language} {image.manifest.version}" for image in images)
    yield Check(name="images", ok=bool(images), finding=found or f"none beneath {paths.data_dir() / 'images'}", fix="imagegen build rust")
    yield _memory(config, max((image.manifest.memory for image in images), default=0))
    yield _user(config)
    yield _groups()
    yield from _sandbox(config)
    if config.network_backend is not NetworkBackend.NONE:
        yield _network(config)
    if config.listen:
        yield _listen(config)


def _kvm(config: Config, probing: Callable[[], KvmProbe]) -> Iterator[Check]:
    """Whether KVM runs guests, and the processor beneath it."""
    try:
        found = probing()
    except (MayflyError, OSError) as error:
        found = KvmProbe(usable=False, reason=str(error), hint=getattr(error, "hint", ""), emulated=False)
    factor = config.time_factor or (DEFAULT_EMULATED_FACTOR if found.emulated else 1.0)
    limits = f"; time limits are multiplied by {factor:g}" if factor != 1 else ""
    yield Check(name="kvm", ok=found.usable, finding=found.reason + (limits if found.usable else ""), fix=found.hint)
    beneath = processor.virtualisation(platform.machine(), emulated=found.emulated)
    yield Check(name="cpu", ok=beneath.ok, finding=beneath.text, fix=beneath.hint)


def _linux() -> Check:
    """How old this host's kernel is, and what its KVM lacks."""
    try:
        with Kvm() as kvm:
            has = frozenset(number for number in processor.Capability if kvm.ioctl("KVM_CHECK_EXTENSION", number) > 0)
    except MayflyError:  # the check of kvm tells why
        has = None
    found = processor.kernel(platform.release(), platform.machine(), has)
    return Check(name="linux", ok=found.ok, finding=found.text, fix=found.hint)


def _kernel(config: Config) -> Check:
    readable = os.access(config.kernel, os.R_OK)
    return Check(name="kernel", ok=readable, finding=f"{config.kernel}{'' if readable else ' is not there'}", fix="mayfly kernel build")


def _memory(config: Config, largest: int) -> Check:
    available = available_memory()
    budget = config.memory_budget or int(available * DEFAULT_SHARE)
    finding = f"{available // MIB} MiB available, {budget // MIB} MiB of it for machines; the largest image needs {largest // MIB} MiB"
    finding += f"; at most {config.threads} threads of machines for {os.cpu_count()} processors" if config.threads else ""
    return Check(name="memory", ok=largest <= budget, finding=finding, fix="free memory, or set memory_budget")


def _user(config: Config) -> Check:
    if os.geteuid() != 0 or not config.user:
        return Check(name="user", ok=True, finding="machines run as the user who starts Mayfly")
    try:
        pwd.getpwnam(config.user)
    except KeyError:
        return Check(
            name="user", ok=False, finding=f"the service user {config.user!r} does not exist", fix=f"adduser --system {config.user}"
        )
    first, last = config.uids
    ids, processes = last - first + 1, int(PID_MAX.read_text())
    finding = f"each machine has an id of its own from {first}, in the group of {config.user!r}"
    if ids < processes:
        finding = f"uid_range has {ids} ids; processes here have numbers up to {processes}, each of which may become a machine's"
    return Check(name="user", ok=ids >= processes, finding=finding, fix=f"give uid_range {processes} ids, or lower kernel.pid_max")


def _groups() -> Check:
    """Whether machines of a server that is started here have control groups."""
    group = group_of()
    if group is None or not is_delegated(group):
        finding = "not delegated to this process, so machines have none of their own (a service with Delegate=yes has them)"
    else:
        finding = f"{group} is delegated; machines' own limit {', '.join(offered(group)) or 'nothing'}"
    return Check(name="cgroups", ok=True, finding=finding)


def _sandbox(config: Config) -> Iterator[Check]:
    """Each part of the sandbox; a lacking one matters where the sandbox is required."""
    from mayfly.vmm.sandbox import parts

    if config.sandbox is Sandbox.OFF:
        yield Check(name="sandbox", ok=True, finding="off: a machine gives up its user's privileges alone")
        return
    for part in parts.look():
        finding = f"{part.finding}{f'; this host refuses {part.lacking}' if part.lacking else ''}"
        ok = not part.lacking or config.sandbox is not Sandbox.REQUIRED
        yield Check(name=part.name, ok=ok, finding=finding, fix="set sandbox to best_effort, or allow it: docs/threat-model.md")


def _listen(config: Config) -> Check:
    """Whether clients can come in over TCP; whether an address is free shows when it is served."""
    from mayfly.host.addresses import parse_address  # only here, as few ask
    from mayfly.host.keys import default_path, load

    unread = [name for name in (config.tls_certificate, config.tls_key) if name and not os.access(os.path.expanduser(name), os.R_OK)]  # noqa: PTH111
    if unread:
        return Check(name="listen", ok=False, finding=f"{unread[0]} cannot be read", fix="name files that the server's user may read")
    try:
        where = ", ".join(str(parse_address(text)) for text in config.listen)
        keys = len(load(default_path()))
    except MayflyError as error:
        return Check(name="listen", ok=False, finding=error.message, fix=error.hint)
    finding = f"{where}{' with TLS' if config.tls_certificate else ''}; {keys} API keys"
    return Check(name="listen", ok=keys > 0, finding=finding, fix="mayfly key create NAME")


def _network(config: Config) -> Check:
    """What the back end for networks needs; whether it works shows when a machine opens it."""
    if config.network_backend is NetworkBackend.PASST:
        import shutil  # only here, as few ask

        program = shutil.which(PROGRAM)
        return Check(name="network", ok=program is not None, finding=program or "passt is not installed", fix="apt-get install passt")
    there = {name for _, name in socket.if_nameindex()}
    missing = [tap for tap in config.network_taps if tap not in there]
    return Check(
        name="network",
        ok=bool(config.network_taps) and not missing,
        finding=f"no interface {', '.join(missing)}" if missing else f"{len(config.network_taps)} tap interfaces",
        fix="sudo mayfly network setup N, and name them in network_taps",
    )
