"""What happens to the runs of a fleet, as lines of JSON in the `audit_log` (docs/serving.md) of
each gateway and host, beside what they say in words.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from mayfly.host.logs import JsonLog, open_log

FLEET = "mayfly.fleet"


def step(action: str, run: str, **more: Any) -> dict[str, Any]:
    """The `extra` of a logged message that tells of a step of a run."""
    return {"step": {"action": action, "run": run, **more}}


class _Steps(logging.Handler):
    def __init__(self, log: JsonLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a step; other messages are for people."""
        if (fields := getattr(record, "step", None)) is not None:
            self._log.write(**fields)


@contextlib.contextmanager
def noted(path: str, member: str) -> Iterator[None]:
    """Write the steps of runs that this process sees to the log at `path`, if there is one.

    Raises:
        HostError: it cannot be written.
    """
    log = open_log(path)
    handler = _Steps(_Of(log, member))
    logging.getLogger(FLEET).addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger(FLEET).removeHandler(handler)
        log.close()


class _Of:
    """A log of a member of the fleet: each line says whose it is."""

    def __init__(self, log: JsonLog, member: str) -> None:
        self._log, self._member = log, member

    def write(self, **fields: Any) -> None:
        """Note the fields."""
        self._log.write(member=self._member, **fields)
