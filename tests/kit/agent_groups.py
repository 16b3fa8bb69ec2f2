"""Control groups of agents that are ordinary processes. One that is killed leaves its group, and
another agent that gets its process id later could make none.
"""

import contextlib
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
