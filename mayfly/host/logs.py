"""Logs for programs: a line of JSON for each thing that happened. None of them has source text,
input or output.
"""

import datetime
import json
import logging
import logging.handlers
import sys
from pathlib import Path
from typing import Any, Protocol

from mayfly.errors import HostError

log = logging.getLogger(__name__)


class JsonLog(Protocol):
    """Takes what happened."""

    def write(self, **fields: Any) -> None:
        """Note the fields, with the time before them."""


class NoLog:
    """Forgets it."""

    def write(self, **fields: Any) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing is open."""


class FileLog:
    """Appends to the file `path`, which others may rename and remove; `-` is standard error.

    Raises:
        HostError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        try:
            self._handler = _Handler(Path(path).expanduser(), encoding="utf-8") if path != "-" else logging.StreamHandler(sys.stderr)
        except OSError as error:
            raise HostError(f"{path}: no log can be written there: {error.strerror}", hint="choose another file, or -") from error

    def write(self, **fields: Any) -> None:
        """Append a line."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        text = json.dumps({"time": now, **fields}, ensure_ascii=True)
        self._handler.handle(logging.LogRecord("", logging.INFO, "", 0, text, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class _Handler(logging.handlers.WatchedFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Say that it cannot be written: a request is answered all the same."""
        log.error("%s: %s", self.baseFilename, sys.exc_info()[1])


def open_log(path: str) -> FileLog | NoLog:
    """The log at `path`, or none."""
    return FileLog(path) if path else NoLog()
