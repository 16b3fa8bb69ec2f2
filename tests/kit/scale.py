"""How much the tests do: everything with MAYFLY_FULL=1 (`make test-all`), a tenth of it otherwise
(`make test`).

On 64-bit Arm, whose hosts here are emulated, everything is a quarter.
"""

import os
import platform

FULL = os.environ.get("MAYFLY_FULL") == "1"
PART = 10 if not FULL else 4 if platform.machine() == "aarch64" else 1


def scaled(count: int) -> int:
    """`count` in a full run on x86-64, a part of it, but at least one, otherwise."""
    return max(1, count // PART)
