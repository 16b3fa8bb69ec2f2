"""What a host fails to carry out. It would be free at once for more, and have piece after piece of
work fail that others could do. So what failed here is left to others for a moment; and when several
have failed in a row, this host asks for no more of the same for a while, each time longer, and then
for one.
"""

import asyncio
import logging

log = logging.getLogger(__name__)
IN_A_ROW = 3
FIRST_S, LONGEST_S = 1.0, 5.0
MANY = 1 << 30


class Row:
    """The failures in a row of one queue's work: until when no more of it is asked for, and how
    long that is.
    """

    def __init__(self) -> None:
        self.count = 0
        self.until = self.wait_s = 0.0


class Failing:
    """The work that fails on this host."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._left: dict[str, float] = {}  # until when, by the work's id

    def failed(self, queue: str, work_id: str, why: object, *, counts: bool = True) -> None:
        """Work from there has failed for want of this host; it `counts` if other work is likely to
        fail too.
        """
        now = asyncio.get_running_loop().time()
        self._left = {each: until for each, until in self._left.items() if until > now}
        self._left[work_id] = now + FIRST_S
        if not counts:
            return
        row = self._rows.setdefault(queue, Row())
        row.count += 1
        if row.count >= IN_A_ROW and now >= row.until:  # else it was begun before that was known
            row.wait_s = min(2 * row.wait_s, LONGEST_S) or FIRST_S
            row.until = now + row.wait_s
            log.warning("fleet: this host takes no work from %s for %g s: %s", queue, row.wait_s, why)

    def done(self, queue: str) -> None:
        """Work from there was done."""
        self._rows.pop(queue, None)

    def leaves(self, work_id: str) -> bool:
        """Whether that work is left to others for now."""
        return self._left.get(work_id, 0) > asyncio.get_running_loop().time()

    def is_well(self, queue: str) -> bool:
        """Whether work from there is not known to fail."""
        return queue not in self._rows or not self._rows[queue].wait_s

    def most(self, queue: str) -> int:
        """How much work from there this host may have at a time."""
        if self.is_well(queue):
            return MANY
        return int(asyncio.get_running_loop().time() >= self._rows[queue].until)
