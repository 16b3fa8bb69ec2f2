"""The submissions that a server knows: those under way, and those that have ended, which are kept
within the same limits as runs (`keep_runs`, `keep_bytes`, `keep_s`).
"""

import asyncio

from mayfly.api.compat.judge0.submission import Submission
from mayfly.host.config import Config


class Store:
    """Submissions by their tokens, the oldest first."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._all: dict[str, Submission] = {}
        self._ended: dict[str, float] = {}  # when, by the loop's clock; the first one is the oldest

    def add(self, submission: Submission) -> None:
        """Take one that begins."""
        self._all[submission.token] = submission

    def drop(self, submission: Submission) -> None:
        """Forget one."""
        self._all.pop(submission.token, None)
        self._ended.pop(submission.token, None)

    def get(self, token: str, owner: str | None) -> Submission | None:
        """The one with that token, which `owner` may see if that is said."""
        found = self._all.get(token)
        return found if found is not None and owner in (None, found.owner) else None

    def newest(self, owner: str | None) -> list[Submission]:
        """All that `owner` may see, the newest first."""
        return [one for one in reversed(self._all.values()) if owner in (None, one.owner)]

    def keep(self, submission: Submission) -> None:
        """Keep one that has ended, as long as the limits allow."""
        loop = asyncio.get_running_loop()
        self._ended[submission.token] = loop.time()
        loop.call_later(self._config.keep_s, self._expire)
        self._expire()

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        kept = sum(self._all[token].size for token in self._ended)
        for token, ended_at in list(self._ended.items()):
            over = kept > self._config.keep_bytes or len(self._ended) > self._config.keep_runs
            if not over and now < ended_at + self._config.keep_s:
                break
            kept -= self._all[token].size
            self.drop(self._all[token])
