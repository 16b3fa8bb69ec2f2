"""A request to a function on its way: from its gateway to its answer. No I/O."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from mayfly.errors import BodyTooLargeError, FunctionGuestError, MayflyError, UnprocessableError
from mayfly.functions.answer import Answer, Invocation, Times
from mayfly.guests.function import FunctionResponse, Moment
from mayfly.guests.start import Guest, StartKind
from mayfly.protocol.conversation import Event
from mayfly.protocol.frames import MAX_BODY, MAX_CONTENT_TYPE, Stderr, Stdout

KEPT_LOG = 64 * 1024
"""Bytes of what a function prints in one request that are kept, the last ones."""
SHOWN_LOG = 2000
"""Of those, in an error."""


def check(asked: Invocation) -> None:
    """Refuse what no guest can be sent.

    Raises:
        BodyTooLargeError, UnprocessableError: payload or type cannot be sent.
    """
    kind = asked.content_type
    if len(asked.payload) > MAX_BODY:
        raise BodyTooLargeError(f"the payload has {len(asked.payload)} bytes; at most {MAX_BODY} are taken")
    if len(kind) > MAX_CONTENT_TYPE or not kind.isascii():
        raise UnprocessableError(
            f"the content type {kind[:80]!r} is not usable", hint=f"it has at most {MAX_CONTENT_TYPE} ASCII characters"
        )


class Piece(NamedTuple):
    """What a function printed, as it came; `at` is Unix time."""

    stream: Literal["stdout", "stderr"]
    data: bytes
    at: float


Arrival: TypeAlias = Callable[[Guest], Awaitable[tuple[Guest, Moment, Sequence[Piece]]]]
"""Has the machine of a request that another host has begun come in the place of a guest, which is
gone then: its guest, which stands still, the moment, and what was printed until then. Raises
MayflyError: it does not come; nothing of it is left, maybe the guest.
"""


class Request:
    """One request. `tenant` is the name of whose it is, or empty; `received` Unix time at the
    gateway; other times are the event loop's, 0 until it has come so far.

    Attributes:
        answer: its end.
        kind: how its guest started, once it has one; `guest` is that one's number.
        log: what the function printed meanwhile.
        movable: whether its machine may go elsewhere with it.
        arrival: how its machine comes, if another host has begun it.
        deadline: until when it waits in the queue.
    """

    def __init__(self, asked: Invocation) -> None:
        loop = asyncio.get_running_loop()
        now = time.time()
        self.id = asked.request_id or os.urandom(16).hex()
        self.function = asked.function
        self.payload = asked.payload
        self.content_type = asked.content_type
        self.tenant = asked.owner
        self.received = now if asked.received is None else asked.received
        self.answer: asyncio.Future[Answer] = loop.create_future()
        self.kind: StartKind | None = None
        self.guest = 0
        self.guest_us = 0
        self.log: list[Piece] = []
        self.movable = False
        self.arrival: Arrival | None = None
        self.queued_at = self.started_at = self.sent_at = self.answered_at = 0.0
        self.deadline = float("inf")
        self.expiry: asyncio.TimerHandle | None = None
        self._log_bytes = 0
        self._zero = loop.time() - max(0.0, now - self.received)  # the loop's time when it was received

    def note(self, event: Event) -> None:
        """Take what the function prints."""
        match event:
            case Stdout(data):
                self._keep(Piece("stdout", data, time.time()))
            case Stderr(data):
                self._keep(Piece("stderr", data, time.time()))

    def _keep(self, piece: Piece) -> None:
        self.log.append(piece)
        self._log_bytes += len(piece.data)
        while self._log_bytes > KEPT_LOG:
            first, over = self.log[0], self._log_bytes - KEPT_LOG
            if len(first.data) <= over:
                self._log_bytes -= len(self.log.pop(0).data)
            else:
                self.log[0] = first._replace(data=first.data[over:])
                self._log_bytes -= over

    def go_back(self, log: Sequence[Piece]) -> None:
        """Forget what was printed since the log was this: the function goes on from there."""
        self.log = list(log)
        self._log_bytes = sum(len(piece.data) for piece in log)

    def went(self) -> None:
        """It goes on elsewhere, where all of it is told."""
        self.go_back(())
        self.answer.cancel()

    def taken(self, kind: StartKind, guest: int) -> None:
        """A guest is there for it."""
        self.kind, self.guest = kind, guest
        self.started_at = asyncio.get_running_loop().time()

    def sent(self) -> None:
        """It goes to its guest."""
        self.sent_at = asyncio.get_running_loop().time()

    def answered(self, response: FunctionResponse) -> None:
        """The function has answered."""
        self.answered_at = asyncio.get_running_loop().time()
        self.guest_us = response.guest_us
        self.payload = b""
        if self.answer.done():
            return
        self.answer.set_result(
            Answer(
                request_id=self.id,
                function=self.function,
                status="exception" if response.kind == "exception" else "ok",
                content_type=response.content_type,
                payload=response.payload,
                start=self.kind or StartKind.WARM,
                times=self.times(),
                log=b"".join(piece.data for piece in self.log),
            )
        )

    def fail(self, error: MayflyError) -> None:
        """There is no answer, and why."""
        self.answered_at = asyncio.get_running_loop().time()
        self.payload = b""
        if isinstance(error, FunctionGuestError) and not error.log:
            error.log = b"".join(piece.data for piece in self.log)[-SHOWN_LOG:].decode(errors="replace")
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # nobody has to want it

    def times(self) -> Times:
        """When what happened; 0 is what did not."""

        def since(at: float) -> float:
            return round(at - self._zero, 6) if at else 0.0

        return Times(
            received=self.received,
            queued_s=since(self.queued_at),
            started_s=since(self.started_at),
            sent_s=since(self.sent_at),
            answered_s=since(self.answered_at),
            guest_us=self.guest_us,
        )
