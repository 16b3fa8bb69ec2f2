"""The processes of a zygote's machines."""

import contextlib
from pathlib import Path


def machines_of(zygote: int) -> list[int]:
    """Those whose guests run. A zygote has other children: at first one that makes namespaces, and
    spares, which have yet to take their filters of system calls.
    """
    found = []
    for task in Path(f"/proc/{zygote}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found += [pid for pid in map(int, task.read_text().split()) if _filters(pid) > _filters(zygote)]
    return found


def _filters(pid: int) -> int:
    """How many a process has (proc_pid_status(5))."""
    with contextlib.suppress(OSError):  # it has ended meanwhile
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(status["Seccomp_filters"])
    return 0
