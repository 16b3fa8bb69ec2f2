"""How much the tests do, and how long they wait.

They do everything with MAYFLY_FULL=1 (`make test-all`), a tenth of it otherwise (`make test`). On
64-bit Arm, whose hosts here are emulated, everything is a quarter.
"""

import functools
import os
import platform

from mayfly.errors import MayflyError

FULL = os.environ.get("MAYFLY_FULL") == "1"
PART = 10 if not FULL else 4 if platform.machine() == "aarch64" else 1


def scaled(count: int) -> int:
    """`count` in a full run on x86-64, a part of it, but at least one, otherwise."""
    return max(1, count // PART)


LOAD = 4.0
"""Deadlines hold under a load of four for each processor."""


@functools.cache
def time_factor() -> float:
    """The factor that the product has for times on this host: more than 1 where KVM is emulated."""
    from mayfly.guests.probe import probe
    from mayfly.host.config import DEFAULT_EMULATED_FACTOR  # only few tests ask

    try:
        return DEFAULT_EMULATED_FACTOR if probe().emulated else 1.0
    except (MayflyError, OSError):
        return 1.0


def patience(seconds: float) -> float:
    """A deadline for what takes at most `seconds` on an idle machine with hardware virtualisation.

    Only a test that fails waits until then.
    """
    return seconds * LOAD * time_factor()
