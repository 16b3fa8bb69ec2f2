"""The descriptors that a vmm process has."""

import itertools
import os
from collections.abc import Iterable

STANDARD_STREAMS = range(3)
_LAST_DESCRIPTOR = 1 << 30


def keep_only(descriptors: Iterable[int]) -> None:
    """Close all other descriptors, and put /dev/null in place of the standard streams."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in STANDARD_STREAMS:
        os.dup2(null, stream)
    close_others([*STANDARD_STREAMS, *descriptors])


def close_others(kept: Iterable[int]) -> None:
    """Close all descriptors but these, of which 0 is one."""
    kept = sorted({*kept})
    for before, after in itertools.pairwise([*kept, _LAST_DESCRIPTOR]):
        if before + 1 < after:
            os.closerange(before + 1, after)  # close_range(2), where the kernel has it
