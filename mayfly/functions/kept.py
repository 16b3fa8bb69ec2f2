"""What is kept of requests that are over, within limits of number, bytes and time: the answers to
those that nobody waited for, and what functions printed.
"""

import asyncio
import collections

from mayfly.errors import MayflyError, UnknownRequestError
from mayfly.functions.answer import Answer, LogLine
from mayfly.functions.request import Piece, Request
from mayfly.host.config import Config

LOG_BYTES = 256 * 1024
"""Of what one function printed."""
LOG_PIECES = 2000
OVERHEAD = 200
"""Bytes that a kept thing takes besides its own."""


class Results:
    """Requests by their ids, from their beginning. One that is over is dropped when those are over
    a limit, the oldest first (`keep_runs`, `keep_bytes`, `keep_s`).
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._requests: dict[str, Request] = {}
        self._over: dict[str, tuple[float, int]] = {}  # until when, and bytes; the oldest first
        self._bytes = 0
        self._expiry: asyncio.TimerHandle | None = None

    def add(self, request: Request) -> None:
        """Take a request that begins."""
        self._requests[request.id] = request
        request.answer.add_done_callback(lambda _: self._keep(request))

    def get(self, request_id: str, *, function: str = "", owner: str | None = None) -> Request:
        """The request with that id, if it is one to `function` and `owner`'s, where that is said.

        Raises:
            UnknownRequestError: there is none, or it is no longer kept.
        """
        request = self._requests.get(request_id)
        if request is None or (function and request.function != function) or (owner is not None and request.tenant != owner):
            raise UnknownRequestError(f"no request {request_id[:64]!r}", hint=f"an answer is kept for {self._config.keep_s:g} s")
        return request

    def _keep(self, request: Request) -> None:
        size = OVERHEAD
        if not request.answer.cancelled() and request.answer.exception() is None:
            answer: Answer = request.answer.result()
            size += len(answer.payload) + len(answer.log)
        self._over[request.id] = asyncio.get_running_loop().time() + self._config.keep_s, size
        self._bytes += size
        self._expire()

    def _expire(self) -> None:
        """Drop what is over the limits; come back when the next one's time is up."""
        self.close()
        loop = asyncio.get_running_loop()
        while self._over:
            request_id, (until, size) = next(iter(self._over.items()))
            if self._bytes <= self._config.keep_bytes and len(self._over) <= self._config.keep_runs and loop.time() < until:
                self._expiry = loop.call_at(until, self._expire)
                break
            del self._over[request_id], self._requests[request_id]
            self._bytes -= size

    def close(self) -> None:
        """Drop nothing any more by itself."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None


class Log:
    """What one function printed lately."""

    def __init__(self) -> None:
        self._pieces: collections.deque[tuple[str, Piece]] = collections.deque()
        self._bytes = 0

    def add(self, request: Request) -> None:
        """Take what it printed in a request that is over."""
        for piece in request.log:
            self._pieces.append((request.id, piece))
            self._bytes += len(piece.data)
        while self._bytes > LOG_BYTES or len(self._pieces) > LOG_PIECES:
            self._bytes -= len(self._pieces.popleft()[1].data)

    def lines(self, last: int) -> list[LogLine]:
        """The last lines, in the order in which they began to come. A line of a request that came
        in several pieces is one.
        """
        found: list[tuple[str, Piece, list[bytes]]] = []
        unfinished: dict[tuple[str, str], list[bytes]] = {}
        for request_id, piece in self._pieces:
            key = (request_id, piece.stream)
            for part in piece.data.splitlines(keepends=True):
                if key not in unfinished:
                    unfinished[key] = []
                    found.append((request_id, piece, unfinished[key]))
                unfinished[key].append(part)
                if part.endswith((b"\n", b"\r")):
                    del unfinished[key]
        return [
            LogLine(at=piece.at, request_id=request_id, stream=piece.stream, text=b"".join(parts).decode(errors="replace").rstrip("\r\n"))
            for request_id, piece, parts in (found[-last:] if last > 0 else [])
        ]


def outcome(request: Request) -> tuple[str, MayflyError | None]:
    """How a request ended, in a word: ok, exception, cancelled, or the error's code; and that."""
    if request.answer.cancelled():
        return "cancelled", None
    error = request.answer.exception()
    if error is None:
        return request.answer.result().status, None
    if isinstance(error, MayflyError):
        return error.code, error
    return "internal", None
