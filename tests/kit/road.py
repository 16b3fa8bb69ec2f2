"""Connections between the servers of a move, in memory, which can be cut at any message."""

import asyncio
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mayfly.errors import MayflyError, ServerLostError
from mayfly.runs.moves.desk import Moves
from mayfly.runs.moves.messages import Message, decode, encode
from mayfly.runs.moves.outgoing import Outgoing


class Cut(NamedTuple):
    """The connection is lost at the message `at` of all that go over it (a number from 0, or a
    name), which still arrives if `arrives`.
    """

    at: int | str
    arrives: bool

    def is_now(self, names: list[str]) -> bool:
        """Whether it is lost at the last one of these messages."""
        return names[-1] == self.at if isinstance(self.at, str) else len(names) > self.at


class MemoryLink:
    """One end of a connection."""

    def __init__(self, wire: "Wire", number: int) -> None:
        self.wire = wire
        self.number = number
        self.inbox: asyncio.Queue[bytes] = asyncio.Queue()

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        self.wire.carry(self, message)

    async def receive(self) -> Message:
        if self.wire.lost and self.inbox.empty():
            raise ServerLostError("the connection is lost")
        if not (data := await self.inbox.get()):
            self.inbox.put_nowait(b"")
            raise ServerLostError("the connection is lost")
        return decode(data)

    async def close(self) -> None:
        self.wire.lose()


class Wire:
    """A connection that is lost at some message; `log` has what went over it."""

    def __init__(self, cut: Cut | None, log: list[str], lost: list[Callable[[], None]]) -> None:
        self.cut, self.log, self._when_lost = cut, log, lost
        self.lost = False
        self.names: list[str] = []
        self.ends = (MemoryLink(self, 0), MemoryLink(self, 1))

    def carry(self, sender: MemoryLink, message: Message) -> None:
        if self.lost:
            raise ServerLostError("the connection is lost")
        self.names.append(type(message).__name__)
        self.log.append(self.names[-1])
        cut = self.cut is not None and self.cut.is_now(self.names)
        if not cut or (self.cut is not None and self.cut.arrives):
            self.ends[1 - sender.number].inbox.put_nowait(encode(message))
        if cut:
            self.lose()
            while self._when_lost:
                asyncio.get_running_loop().call_soon(self._when_lost.pop())  # before anybody connects again

    def lose(self) -> None:
        self.lost = True
        for end in self.ends:
            end.inbox.put_nowait(b"")


class Road:
    """The connections from one server to another; `cuts` are those of the next ones, in their
    order. `closed` keeps all further ones from being made; what is in `lost` is called when the
    next one is cut.
    """

    def __init__(self, there: Moves, cuts: Iterator[Cut | None]) -> None:
        self.there, self.cuts = there, cuts
        self.log: list[str] = []
        self.wires: list[Wire] = []
        self.closed = False
        self.lost: list[Callable[[], None]] = []
        self.serving: set[asyncio.Task[None]] = set()

    async def connect(self) -> MemoryLink:
        if self.closed:
            raise ServerLostError("there is no server")
        wire = Wire(next(self.cuts, None), self.log, self.lost)
        self.wires.append(wire)
        task = asyncio.create_task(self._serve(wire.ends[1]))
        self.serving.add(task)
        return wire.ends[0]

    async def _serve(self, link: MemoryLink) -> None:
        try:
            await self.there.serve(link)
        except MayflyError as error:
            self.log.append(f"! {error}")

    async def close(self) -> None:
        for wire in self.wires:
            wire.lose()
        if self.serving:
            await asyncio.wait(self.serving)


async def cancelled_at(going: Outgoing, road: Road, at: int, pause_s: float = 0) -> bool:
    """Begin a move over the road, and cancel it when so many messages have gone: whether it was
    taken back.
    """
    moving = going.begin()
    while len(road.log) < at and not moving.done():
        await asyncio.sleep(pause_s)
    taken_back = going.cancel()
    await asyncio.wait([moving])
    assert taken_back == moving.cancelled()
    return taken_back
