"""A connection between two servers that is held at one message of a move, for as long as it takes
to kill one of what is at its ends.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

_TYPE = b"\xa4type"  # msgpack: what a message begins with, which its name follows
_READY, _RUNNING = _TYPE + b"\xa5ready", _TYPE + b"\xa7running"
"""Messages of the destination, which a server sends unmasked (RFC 6455, 5.3)."""


class Gate:
    """Passes connections at its own `port` on to another one. The first is held, in one direction,
    at READY or RUNNING, which comes from there, or at COMMIT, which goes there behind READY.
    """

    def __init__(self, there: int, at: str) -> None:
        self.port = 0
        self.reached, self._opened = asyncio.Event(), asyncio.Event()
        self._there, self._at = there, at
        self._is_ready = False
        self._passing: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def begin(cls, there: int, at: str) -> AsyncIterator[Self]:
        """A gate, which is closed with all that passes it at the end."""
        gate = cls(there, at)
        async with await asyncio.start_server(gate._serve, "127.0.0.1") as server:
            gate.port = server.sockets[0].getsockname()[1]
            yield gate
            for task in gate._passing:
                task.cancel()
            await asyncio.gather(*gate._passing, return_exceptions=True)

    def open(self) -> None:
        """Let pass what is held, and all after it."""
        self._opened.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._passing.add(task)
        with contextlib.suppress(OSError):
            from_there, to_there = await asyncio.open_connection("127.0.0.1", self._there)
            ways = [asyncio.create_task(self._pass(reader, to_there, False)), asyncio.create_task(self._pass(from_there, writer, True))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                to_there.close()
                writer.close()
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if not self.reached.is_set() and self._is_held(data, back):
                    self.reached.set()
                    await self._opened.wait()
                self._is_ready |= back and _READY in data
                writer.write(data)
                await writer.drain()

    def _is_held(self, data: bytes, back: bool) -> bool:
        match self._at:
            case "READY":
                return back and _READY in data
            case "COMMIT":
                return self._is_ready and not back
            case _:
                return back and _RUNNING in data
