"""Count KVM's exits to user space, of whatever monitor: by the kernel's tracepoint
kvm_userspace_exit, whose hits a histogram of the kernel's own counts (Linux
Documentation/trace/histogram.rst).
"""

import contextlib
import re
import subprocess
from pathlib import Path
from typing import Self

TRACEFS = Path("/sys/kernel/tracing")
EVENT = TRACEFS / "events/kvm/kvm_userspace_exit"
HISTOGRAM = "hist:keys=reason"


class UserspaceExits:
    """Exits of all machines since `reset`; counts nothing where the kernel has no such tracepoint,
    or this user may not see it.
    """

    def __init__(self) -> None:
        self._counts = False

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            if not EVENT.exists():
                subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACEFS], capture_output=True, check=False)
            self._set(HISTOGRAM)
            self._counts = True
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # none was set
            self._set(f"!{HISTOGRAM}")

    def reset(self) -> None:
        """Begin at zero."""
        if self._counts:
            try:
                self._set(f"{HISTOGRAM}:clear")
            except OSError:  # so old a kernel that it cannot
                self._counts = False

    def count(self) -> int | None:
        """How many there were; None: they cannot be counted here."""
        if not self._counts:
            return None
        hits = re.search(r"^\s*Hits: (\d+)", (EVENT / "hist").read_text(), re.MULTILINE)
        return int(hits[1]) if hits else None

    @staticmethod
    def _set(trigger: str) -> None:
        with (EVENT / "trigger").open("a") as file:  # opened to be truncated, it loses its triggers
            file.write(trigger)
