"""Control groups of machines, where this process's own group was delegated to it (Linux
admin-guide/cgroup-v2.rst; systemd.io/CGROUP_DELEGATION).

    GROUP               the delegated one; no process is in it itself
    ├── server          whatever was in GROUP: the server and its zygote
    └── machine-PID-N   machine N of the server PID: its vmm process, and its passt
"""

import contextlib
import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from mayfly.errors import HostError
from mayfly.units import MIB
from mayfly.vmm.config import MachineConfig

log = logging.getLogger(__name__)

CONTROLLERS = ("memory", "cpu", "pids")
MARKS = ("user.delegate", "trusted.delegate")
"""Extended attributes of a group that was delegated; root alone sees the second."""
OVERHEAD = 128 * MIB
"""Of a machine besides its guest's RAM: the vmm process, passt, buffers of sockets. KVM's page
tables take a 16th of the RAM at most.
"""
PROCESSES = 16
"""Of a machine besides its vCPUs' threads: the event loop's, KVM's own, passt."""
CPU_PERIOD = 100_000  # Microseconds, the kernel's usual one
SERVER_WEIGHT = 1000
"""Where processors are short; each machine has the usual 100."""


def group_of(process: int | str = "self", proc: Path = Path("/proc")) -> Path | None:
    """The folder of a process's group in cgroup v2, or None where this one cannot see it."""
    for line in (proc / str(process) / "cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if (number, controllers) == ("0", ""):
            break
    else:
        return None
    for line in (proc / "self/mountinfo").read_text().splitlines():
        mount, _, rest = line.partition(" - ")  # proc_pid_mountinfo(5)
        if rest.split(" ", 1)[0] == "cgroup2":
            root, where = mount.split(" ")[3:5]
            if Path(path).is_relative_to(root):
                return Path(where) / Path(path).relative_to(root)
    return None


def is_delegated(group: Path) -> bool:
    """Whether whoever manages the groups above has left this one to its processes."""
    for mark in MARKS:
        with contextlib.suppress(OSError):
            if os.getxattr(group, mark) == b"1":
                return True
    return False


def offered(group: Path) -> tuple[str, ...]:
    """Those of CONTROLLERS that a group may hand on. Raises OSError."""
    there = (group / "cgroup.controllers").read_text().split()
    return tuple(name for name in CONTROLLERS if name in there)


def limits(config: MachineConfig) -> Mapping[str, Mapping[str, str]]:
    """By controller, what is written to a machine's group."""
    return {
        "memory": {"memory.max": str(config.memory + config.memory // 16 + OVERHEAD), "memory.oom.group": "1"},
        "cpu": {"cpu.max": f"{(config.cpus + 1) * CPU_PERIOD} {CPU_PERIOD}"},  # the event loop's thread counts
        "pids": {"pids.max": str(config.cpus + PROCESSES)},
    }


class Groups:
    """A delegated group, and those of machines in it.

    Attributes:
        controllers: those of CONTROLLERS that are there; nothing else is limited.
    """

    def __init__(self, group: Path) -> None:
        """Move all processes of `group` into one of their own within it. Raises OSError."""
        self._group = group
        server = group / "server"
        server.mkdir(exist_ok=True)
        for process in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (server / "cgroup.procs").write_text(process)
        self.controllers = offered(group)
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in self.controllers))
        if "cpu" in self.controllers:
            (server / "cpu.weight").write_text(str(SERVER_WEIGHT))
        for left in group.glob("machine-*"):  # by a server that was killed
            with contextlib.suppress(OSError):
                left.rmdir()

    @classmethod
    def take(cls) -> Self | None:
        """Those below this process's own group, which it leaves; None where it was not
        delegated.
        """
        group = group_of()
        if group is None or not is_delegated(group):
            return None
        try:
            groups = cls(group)
            log.info("each machine has a control group: %s", ", ".join(groups.controllers) or "without a limit")
            return groups
        except OSError as error:
            log.warning("machines have no control groups, although %s is delegated: %s", group, error.strerror)
            return None

    def make(self, machine: int, config: MachineConfig) -> int:
        """A new group with the limits of a machine; a descriptor, which the caller closes: who
        writes 0 to it is in that group.

        Raises:
            HostError: the kernel refuses it.
        """
        group = self._of(machine)
        try:
            group.mkdir()
            for name in self.controllers:
                for file, value in limits(config)[name].items():
                    (group / file).write_text(value)
            return os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            self.remove(machine)
            many = error.errno == errno.EAGAIN
            hint = f"see {'cgroup.max.descendants of the groups above: too many are there' if many else '`mayfly doctor`'}"
            raise HostError(f"no control group for the machine: {error.strerror}", hint=hint) from error

    def remove(self, machine: int) -> bool:
        """Kill what is left in a machine's group and remove it; false: it takes a moment longer."""
        group = self._of(machine)
        try:
            group.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            with contextlib.suppress(OSError):  # it is empty now, or Linux is older than 5.14
                (group / "cgroup.kill").write_text("1")
            return False
        return True

    def _of(self, machine: int) -> Path:
        return self._group / f"machine-{os.getpid()}-{machine}"
