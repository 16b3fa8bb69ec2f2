"""Send a workload to functions, each request at its time, and write down what comes back."""

import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from mayfly.client import AsyncClient
from mayfly.errors import MayflyError
from mayfly.functions.lines import NOT_SENT, AnswerLine, BadLine, RequestLine, Summary, read_lines
from mayfly.functions.openloop import ANSWER_S, MOST_UNDER_WAY, Reply, send_all
from mayfly.schema import msgspec


class Counters(NamedTuple):
    """What a server has counted since it started: bytes that guests may have together, guests that
    were made, and those that were ended to make room for another function's.
    """

    memory: int
    guests_created: int
    guests_evicted: int


class Target(Protocol):
    """What answers requests."""

    async def send(self, request: RequestLine) -> Reply:
        """Have a function answer; raises a MayflyError if it cannot."""

    async def counters(self) -> Counters | None:
        """What it has counted until now; None if it does not say."""


class ServerTarget:
    """A server, over HTTP. It has no patience: a refusal is an answer too."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def send(self, request: RequestLine) -> Reply:
        """As `Target`."""
        found = await self._client.invoke(request.function, bytes(request.payload), "application/json")
        return Reply(
            id=found.request_id,
            status=found.status,
            start=found.start,
            content_type=found.content_type,
            payload=found.payload,
            queued_ms=round(found.queued_s * 1000, 3),
            guest_ms=round(found.duration_s * 1000, 3),
        )

    async def counters(self) -> Counters | None:
        """As `Target`."""
        found = (await self._client.functions()).statistics
        return Counters(found.memory, found.guests_created, found.guests_evicted) if found else None


class Progress:
    """How far a replay is; `told` is called at each change."""

    def __init__(self, told: Callable[["Progress"], None] = lambda _: None) -> None:
        self.bytes_read = 0
        self.requests = 0
        self.answered = 0
        self.ok = 0
        self.not_sent = 0
        self._told = told

    def sending(self, bytes_read: int) -> None:
        """One more request."""
        self.bytes_read = bytes_read
        self.requests += 1
        self._told(self)

    def done(self, status: str) -> None:
        """One more answer."""
        self.answered += status != NOT_SENT
        self.not_sent += status == NOT_SENT
        self.ok += status == "ok"
        self._told(self)


async def replay(
    file: BinaryIO,
    target: Target,
    output: BinaryIO,
    on_bad: Callable[[BadLine], None],
    progress: Progress,
    *,
    most: int = MOST_UNDER_WAY,
    timeout_s: float = ANSWER_S,
    speed: float = 1.0,
) -> Summary:
    """Send the requests in `file` to `target`, and write an `AnswerLine` for each to `output`, then
    a `Summary`. If it is cancelled, what is known then is written.

    Raises:
        MayflyError: the target does not answer at all.
    """
    before = await target.counters()
    bad = 0

    def skip(line: BadLine) -> None:
        nonlocal bad
        bad += 1
        on_bad(line)

    def lines() -> Iterator[tuple[int, RequestLine]]:
        for number, request in read_lines(file, skip):
            progress.sending(file.tell() if file.seekable() else 0)
            yield number, request

    def write(answer: AnswerLine) -> None:
        output.write(msgspec.json.encode(answer) + b"\n")
        progress.done(answer.status)

    beginning = time.monotonic()
    try:
        await send_all(lines(), target.send, write, most=most, timeout_s=timeout_s, speed=speed)
    finally:
        duration = time.monotonic() - beginning
        summary = await _summary(target, before, Summary(requests=progress.requests, bad_lines=bad, duration_s=round(duration, 3)))
        output.write(msgspec.json.encode({"summary": summary}) + b"\n")
        output.flush()
    return summary


async def _summary(target: Target, before: Counters | None, known: Summary) -> Summary:
    """With what the target has counted meanwhile, if it still answers."""
    try:
        after = await target.counters()
    except MayflyError:
        return known
    if before is None or after is None:
        return known
    return msgspec.structs.replace(
        known,
        memory=after.memory,
        guests_created=after.guests_created - before.guests_created,
        guests_evicted=after.guests_evicted - before.guests_evicted,
    )
