"""Repeated requests: one that comes again with the same Idempotency-Key gets the run that the first
one began (draft-ietf-httpapi-idempotency-key-header).

A key is known as long as its run is kept (`keep_s`, `keep_runs`, `keep_bytes`), and each tenant has
keys of its own.
"""

import re
from typing import NamedTuple

from mayfly.errors import KeyReusedError, UnknownRunError, UnprocessableError
from mayfly.runs.kept import Runs
from mayfly.runs.run import Run

_SANE = re.compile(r"[\x21-\x7e]{1,255}")
_FEW = 64
"""Keys that are held without looking for those whose runs are no longer kept."""


def check_key(key: str) -> None:
    """Refuse what is not a key."""
    if not _SANE.fullmatch(key):
        raise UnprocessableError("Idempotency-Key: it must be 1 to 255 printable ASCII characters without blanks", hint="a UUID, say")


class Repeat(NamedTuple):
    """What tells whether a request came before: whose it is, its key, and what it is as a whole."""

    owner: str
    key: str
    digest: bytes

    def check(self, digest: bytes) -> None:
        """See that the request that came with this key before was the same.

        Raises:
            KeyReusedError: it was another one.
        """
        if digest != self.digest:
            raise KeyReusedError("this Idempotency-Key came with another request before", hint="take a new key for a new request")


class _Begun(NamedTuple):
    digest: bytes
    run_id: str


class Repeats:
    """The keys of one server's runs."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._begun: dict[tuple[str, str], _Begun] = {}
        self._sweep_at = _FEW

    def find(self, repeat: Repeat) -> Run | None:
        """The run that a request with this key began, if one did.

        Raises:
            KeyReusedError: that was another request.
        """
        begun = self._begun.get((repeat.owner, repeat.key))
        if begun is None:
            return None
        try:
            run = self._runs.get(begun.run_id)
        except UnknownRunError:
            return None
        repeat.check(begun.digest)
        return run

    def remember(self, repeat: Repeat, run: Run) -> None:
        """A request with this key has begun `run`."""
        if len(self._begun) >= self._sweep_at:
            self._begun = {name: begun for name, begun in self._begun.items() if self._is_kept(begun.run_id)}
            self._sweep_at = max(_FEW, 2 * len(self._begun))
        self._begun[repeat.owner, repeat.key] = _Begun(repeat.digest, run.id)

    def _is_kept(self, run_id: str) -> bool:
        try:
            self._runs.get(run_id)
        except UnknownRunError:
            return False
        return True
