"""A control group that is delegated, as systemd does it."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.guests.cgroups import CONTROLLERS, group_of

DEADLINE_S = 30.0


@contextlib.contextmanager
def delegated() -> Iterator[Path]:
    """A new group below this process's own, whose processes are killed at the end. Skips the test
    where it cannot be made.
    """
    own = group_of()
    if own is None:
        pytest.skip("cgroup v2 is not mounted here")
    group = own / f"mayfly-test-{os.getpid()}"
    try:
        for name in CONTROLLERS:
            with contextlib.suppress(OSError):  # version 1 has it
                (own / "cgroup.subtree_control").write_text(f"+{name}")
        group.mkdir()
        os.setxattr(group, "user.delegate", b"1")
    except OSError as error:
        pytest.skip(f"no control group can be delegated here: {error}")
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        until = time.monotonic() + DEADLINE_S
        while "populated 1" in (group / "cgroup.events").read_text() and time.monotonic() < until:
            time.sleep(0.01)
        for inner in [*group.iterdir(), group]:
            if inner.is_dir():
                inner.rmdir()


def inside(group: Path, *command: str) -> list[str]:
    """The command, run in the group."""
    return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group / "cgroup.procs"), *command]
