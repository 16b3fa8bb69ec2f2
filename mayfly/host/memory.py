"""Memory that machines may take: what the host has available, within the limits of the control
groups (a container's, a service's) that this process is in.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mayfly.errors import HostError

UNLIMITED = 1 << 62
"""Version 1 writes "no limit" as a number near 2^63."""


class _Names(NamedTuple):
    """What a version of control groups calls its files (Linux
    Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).
    """

    limit: str
    used: str
    reclaimable: str


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names("memory.max", "memory.current", "inactive_file")


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping and without meeting a control group's limit.

    Args:
        root: where /proc and /sys are.

    Raises:
        HostError: /proc/meminfo does not say what is available.
    """
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return min([int(rest.split()[0]) * 1024, *_room_in_groups(root)])
    raise HostError("/proc/meminfo has no MemAvailable", hint="set memory_budget")


def _room_in_groups(root: Path) -> Iterator[int]:
    """Bytes that this process's control group, and each one above it, still has room for."""
    for folder, names in _groups(root):
        try:
            limit = int((folder / names.limit).read_text())  # not "max"
            used = int((folder / names.used).read_text())
            stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit < UNLIMITED:
            yield max(0, limit - used + int(stat.get(names.reclaimable, 0)))


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The folders of this process's group and those above it, up to the mounted root.

    In a container the path may be the host's, of which only the root is mounted here.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (mounts / "memory", _V1) if controllers else (mounts, _V2)
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for length in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:length]), names
