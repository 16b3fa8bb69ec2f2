"""Control groups of agents that are ordinary processes, and the folders of those that are played.
One that is killed leaves its group, and another agent that gets its process id later could make
none; and it leaves its folder.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from mayfly.guests.cgroups import group_of


def remove_left(group: Path | None = None) -> None:
    """Remove the groups of agents that are gone from `group`, by default this process's own."""
    group = group or group_of()
    for left in group.glob("mayfly-agent-*") if group else ():
        if not Path(f"/proc/{left.name.rpartition('-')[2]}").exists():
            for inner in [*left.glob("step-*"), left]:
                with contextlib.suppress(OSError):  # somebody else was sooner, or what it ran is still ending
                    inner.rmdir()


def folder(kind: str) -> tempfile.TemporaryDirectory[str]:
    """A folder for an agent that is this process."""
    return tempfile.TemporaryDirectory(prefix=f"{kind}-agent-{os.getpid()}-")


def remove_left_folders() -> None:
    """Remove the folders of agents that are gone."""
    for left in Path(tempfile.gettempdir()).glob("*-agent-[0-9]*-*"):
        pid = left.name.split("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
