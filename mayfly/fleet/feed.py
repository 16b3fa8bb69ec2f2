"""One gateway's view of a host's run: its record from any position, then its Ending, by credit."""

import asyncio
from collections.abc import Awaitable, Callable

from mayfly.fleet.message import PIECE, WINDOW, Attach, Tail, ToGateway, Told
from mayfly.fleet.wire import WireEvent, from_event, place
from mayfly.guests.outcome import Verdict
from mayfly.protocol.conversation import Failed
from mayfly.protocol.frames import Stderr, Stdout
from mayfly.runs.cases import CaseResult
from mayfly.runs.record import START, Position, Reader
from mayfly.runs.result import RunState
from mayfly.runs.run import Run

COST = 64
"""Bytes that an event is taken to need besides its output."""
SIZE = 8 * 1024
"""Bytes of output in an event."""


class Feed:
    """Sends a run to a gateway through `send`, no more than that one grants. `tail` gives the
    Ending when the run is over and its machine gone; `delivered` is asked for each message, as it
    may change.
    """

    def __init__(
        self, run: Run, send: Callable[[ToGateway], Awaitable[None]], tail: "asyncio.Future[bytes]", delivered: Callable[[], int]
    ) -> None:
        self._run = run
        self._send = send
        self._tail = tail
        self._delivered = delivered
        self._credit = WINDOW
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, after: Position = START, tail: int = 0) -> None:
        """Send what is behind that place, whatever was sent before."""
        self.close()
        self._credit = WINDOW
        self._task = asyncio.create_task(self._go(after, tail), name=f"feed {self._run.id}")

    def attach(self, message: Attach) -> None:
        """As a gateway asks for it. One that asks for what is not there gets nothing."""
        after = Position(*message.after)
        if after == START or self._run.record.has(after):
            self.begin(after, message.tail)

    def grant(self, count: int) -> None:
        """The gateway takes so many bytes more."""
        self._credit += count
        self._room.set()

    def close(self) -> None:
        """Send nothing any more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    @classmethod
    def whole(cls, run: Run, tail: bytes, delivered: int) -> list[Told | Tail]:
        """All that is to be said of a run that is over, if it is short; else nothing."""
        reader = Reader(run.record, size=SIZE)
        events, cost = cls._collect(reader)
        if cost >= PIECE or len(tail) > PIECE:
            return []
        told = Told(delivered=delivered, after=place(START), events=events, state=run.state, cost=cost)
        at = reader.position if events else START
        return [told, Tail(delivered=delivered, after=place(at), offset=0, size=len(tail), data=tail)]

    async def _go(self, after: Position, tail: int) -> None:
        reader = Reader(self._run.record, after=after, size=SIZE)
        # that it has begun the gateway knows
        state: RunState | None = self._run.state if self._run.state in (RunState.QUEUED, RunState.BOOTING) else None
        more = True
        at = after  # the end of the record, without what the gateway makes itself
        while more:
            while True:
                await self._granted()
                begun = at
                events, cost = self._collect(reader)
                at = reader.position if events else at
                if not events and state == self._run.state:
                    break
                state = self._run.state
                self._credit -= cost
                await self._send(Told(delivered=self._delivered(), after=place(begun), events=events, state=state, cost=cost))
            more = await reader.wait()
        data = await asyncio.shield(self._tail)
        while True:
            await self._granted()
            piece = data[tail : tail + PIECE]
            self._credit -= len(piece) + COST
            await self._send(Tail(delivered=self._delivered(), after=place(at), offset=tail, size=len(data), data=piece))
            tail += len(piece)
            if tail >= len(data):
                return

    @staticmethod
    def _collect(reader: Reader) -> tuple[list[WireEvent], int]:
        """Some of the events that are there, and what they cost."""
        events: list[WireEvent] = []
        cost = 0
        while cost < PIECE:
            before = reader.position
            event = reader.take()
            if event is None:
                break
            if isinstance(event, Failed | Verdict):
                reader.position = before
                break
            sent = from_event(event)
            if sent is not None:
                events.append(sent)
            match event:
                case Stdout() | Stderr():
                    cost += len(event.data)
                case CaseResult():
                    cost += len(event.stdout) + len(event.stderr)
            cost += COST
        return events, cost

    async def _granted(self) -> None:
        while self._credit <= 0:
            self._room.clear()
            await self._room.wait()
