"""How much the tests do: everything with MAYFLY_FULL=1 (`make test-all`), a tenth of it otherwise (`make test`)."""

import os

FULL = os.environ.get("MAYFLY_FULL") == "1"


def scaled(count: int) -> int:
    """`count` in a full run, a tenth of it, but at least one, otherwise."""
    return count if FULL else max(1, count // 10)
