"""Connections between two hosts of a fleet over its engine: what a move's messages go over. Neither
host has to be reached from outside, and the engine says who is who.

A message goes in one piece, which the other end answers when it has taken it: so no more than one
is on its way in each direction. One that got no answer is sent again, and taken once.
"""

import asyncio
import collections
import contextlib
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from mayfly.errors import ServerLostError
from mayfly.fleet.engine import Engine
from mayfly.fleet.engine import Message as Received
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.message import Piece, Verdict, decode, encode
from mayfly.runs.moves import messages
from mayfly.runs.moves.messages import Message

ANSWER_S = 5.0
TRIES = 3
LATER_S = 0.2
"""From one look whether a piece was taken to the next."""
QUIET_S = 5.0
"""After so long without a message the other end is asked whether it is there."""


class HostLink:
    """One end of a connection to the host `to`; a Link of mayfly/runs/moves."""

    def __init__(self, engine: Engine, to: str, name: str, forget: Callable[[str], None]) -> None:
        self.to = to
        self.name = name
        self._engine = engine
        self._forget = forget
        self._inbox: collections.deque[tuple[bytes, str]] = collections.deque()
        self._come = asyncio.Event()
        self._sending = asyncio.Lock()
        self._sent = self._received = 0
        self._closed = False

    async def send(self, message: Message) -> None:
        """As Link."""
        async with self._sending:
            self._sent += 1
            await self._post(Piece(number=self._sent, data=messages.encode(message)))

    async def _post(self, piece: Piece) -> None:
        """Have the other end take a piece. Raises ServerLostError."""
        subject, left = f"move.{self.to}.{self._engine.name}.{self.name}", TRIES
        while left and not self._closed:
            try:
                verdict = decode(await self._engine.ask(subject, encode(piece), ANSWER_S), type=Verdict).verdict
            except NobodyError:
                break
            except SilenceError:
                left -= 1
                continue
            if verdict == "taken":
                return
            if verdict != "later":
                break
            await asyncio.sleep(LATER_S)
        self._end()
        raise ServerLostError(f"the connection to {self.to} is lost")

    async def receive(self) -> Message:
        """As Link."""
        while not self._inbox:
            if self._closed:
                raise ServerLostError(f"the connection to {self.to} is lost")
            self._come.clear()
            try:
                async with asyncio.timeout(QUIET_S):
                    await self._come.wait()
            except TimeoutError:
                await self._post(Piece(number=0))
        data, reply = self._inbox.popleft()
        await self._say(reply, "taken")
        return messages.decode(data)

    async def heard(self, piece: Piece, reply: str) -> None:
        """The other end sends something."""
        if piece.ends:
            self._end()
        elif piece.number > 0 and piece.number == self._received + 1 and not self._inbox and not self._closed:
            self._received += 1
            self._inbox.append((piece.data, reply))
            self._come.set()
        elif self._closed or piece.number > self._received:
            await self._say(reply, "lost")
        else:  # it came before, or only asks
            await self._say(reply, "later" if piece.number == self._received and self._inbox else "taken")

    async def _say(self, reply: str, verdict: str) -> None:
        if reply:
            await self._engine.send(reply, encode(Verdict(verdict=verdict)))

    async def close(self) -> None:
        """As Link."""
        if not self._closed:
            self._end()
            await self._engine.send(f"move.{self.to}.{self._engine.name}.{self.name}", encode(Piece(number=0, ends=True)))

    def _end(self) -> None:
        self._closed = True
        self._come.set()
        self._forget(self.name)


class Links:
    """The connections of one host. `serve` is called with each that another host begins."""

    def __init__(
        self,
        engine: Engine,
        serve: Callable[[HostLink], Coroutine[Any, Any, None]],
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._engine, self._serve, self._spawn = engine, serve, spawn
        self._open: dict[str, HostLink] = {}

    def connect(self, to: str) -> HostLink:
        """A new connection to that host; its first message shows whether there is one."""
        return self._add(to, secrets.token_hex(8))

    def _add(self, to: str, name: str) -> HostLink:
        self._open[name] = link = HostLink(self._engine, to, name, self._forget)
        return link

    def _forget(self, name: str) -> None:
        self._open.pop(name, None)

    def heard(self, received: Received) -> None:
        """Another host sends a piece: `move.OURS.THEIRS.LINK`."""
        _, _, host, name = received.subject.split(".")
        with contextlib.suppress(ValueError):
            piece = decode(received.data, type=Piece)
            link = self._open.get(name)
            if link is None and piece.number == 1:
                link = self._add(host, name)
                self._spawn(self._serve(link), f"serve {host}")
            if link is not None and link.to == host:
                self._spawn(link.heard(piece, received.reply), f"hear {host}")
            elif received.reply:
                self._spawn(self._engine.send(received.reply, encode(Verdict(verdict="lost"))), f"tell {host}")
