"""SnapFaaS's TCP protocol for requests, which its clients speak unchanged.

    to us  8 bytes, big endian: length    JSON: {"function", "payload"}, also "user_id" and "time"
    back   8 bytes, big endian: length    the function's answer as it is, or `Request failed`

A connection carries many requests at a time, and each answer comes when it is there: nothing says
to which request it belongs. An empty frame is passed over. There are no keys: whoever can connect
may invoke every function.

What a client sends is read as fast as it is answered: IN_FLIGHT requests of a connection are under
way at most, and all frames together have MEMORY. A client that does not read is disconnected.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence

from mayfly.errors import MayflyError
from mayfly.functions.lines import MAX_LINE, parse_line
from mayfly.functions.openloop import Invoke, in_process
from mayfly.functions.runner import FunctionRunner
from mayfly.host.addresses import Address
from mayfly.host.config import Config
from mayfly.host.listen import open_keyless
from mayfly.units import MIB

log = logging.getLogger(__name__)
LENGTH = 8
FAILED = b"Request failed"
NOTHING = b"null"
"""Stands for an empty answer: their client would take an empty frame for none."""
MAX_FRAME = MAX_LINE
"""Bytes of a request, which is what a line of a file holds."""
MAX_SKIPPED = 64 * MIB
"""Bytes of a longer frame that are read and dropped, so that the connection can go on."""
IN_FLIGHT = 64
CONNECTIONS = 256
MEMORY = 256 * MIB
"""Bytes of requests that are not answered yet, and of answers that are not sent yet."""
FRAME_S = 10.0
"""For a frame that has begun, besides its bytes."""
FRAME_RATE = 256 * 1024
"""Bytes a second at which a frame must come at least."""
SEND_S = 30.0
"""How long a client may leave an answer unread when its socket is full."""
PIECE = 64 * 1024


class _Memory:
    """Bytes that all connections share."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._freed = asyncio.Event()

    async def take(self, size: int) -> None:
        """Wait until there are so many."""
        while not self.take_now(size):
            self._freed.clear()
            await self._freed.wait()

    def take_now(self, size: int) -> bool:
        """Take so many, if there are."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """Others may have them."""
        self._left += size
        self._freed.set()


@contextlib.asynccontextmanager
async def serve(config: Config, functions: FunctionRunner) -> AsyncIterator[str]:
    """Serve at `function_listen`, if the configuration has it; gives the address."""
    if not config.function_listen:
        yield ""
        return
    with open_keyless(config.function_listen, config) as listeners:
        addresses = [Address(*listener.getsockname()[:2]) for listener in listeners]
        async with answering(listeners, in_process(functions)):
            yield ", ".join(f"frames at {address}" for address in addresses)


@contextlib.asynccontextmanager
async def answering(listeners: Sequence[socket.socket], invoke: Invoke) -> AsyncIterator[None]:
    """Answer what comes in at the listening sockets. On leaving, nothing more is read, what is
    under way is answered, and all connections are closed.
    """
    connections = _Connections(invoke)
    servers = [await asyncio.start_server(connections.serve, sock=listener, limit=PIECE) for listener in listeners]
    try:
        yield
    finally:
        for server in servers:
            server.close()
        await connections.close()


class _Connections:
    """The connections of one server."""

    def __init__(self, invoke: Invoke) -> None:
        self._invoke = invoke
        self._memory = _Memory(MEMORY)
        self._open: dict[_Connection, asyncio.Task[None]] = {}
        self._closed = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one, to its end."""
        task = asyncio.current_task()
        if self._closed or task is None or len(self._open) >= CONNECTIONS:
            writer.transport.abort()
            return
        connection = _Connection(reader, writer, self._invoke, self._memory)
        self._open[connection] = task
        try:
            await connection.serve()
        finally:
            del self._open[connection]

    async def close(self) -> None:
        """Read no more, and wait until what was read is answered."""
        self._closed = True
        open_ones = dict(self._open)
        for connection in open_ones:
            connection.stop()
        if open_ones:
            await asyncio.wait(open_ones.values())


class _Connection:
    """A client's connection: one task reads frames, and each has a task that answers it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, invoke: Invoke, memory: _Memory) -> None:
        self._reader, self._writer = reader, writer
        self._invoke = invoke
        self._memory = memory
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._answering: set[asyncio.Task[None]] = set()
        self._reading = asyncio.create_task(self._read(), name="read frames")

    def stop(self) -> None:
        """Read no more."""
        self._reading.cancel()

    async def serve(self) -> None:
        """Answer all that comes, until the client has said all, is gone, or breaks the protocol."""
        try:
            await asyncio.wait([self._reading])
            if not self._reading.cancelled() and (fault := self._reading.exception()):
                log.error("a connection of the frames' gateway", exc_info=fault)
            while self._answering:
                await asyncio.wait(self._answering)
        finally:
            for task in (self._reading, *self._answering):
                task.cancel()
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(SEND_S):
                    await self._writer.wait_closed()
            self._writer.transport.abort()

    async def _read(self) -> None:
        """Take frames to the end of what the client says, or until it breaks the protocol."""
        with contextlib.suppress(EOFError, OSError, TimeoutError):
            while True:
                size = await self._length()
                if size > MAX_FRAME:
                    log.info("a frame of %d bytes; at most %d are taken", size, MAX_FRAME)
                    if size <= MAX_SKIPPED:
                        await self._skip(size)
                    await self._send(FAILED)
                if size > MAX_SKIPPED:
                    return  # nobody knows where the next one would begin
                if 0 < size <= MAX_FRAME:
                    await self._take(size)

    async def _length(self) -> int:
        """The length of the next frame, for which there is no hurry."""
        first = await self._reader.readexactly(1)
        async with _in_time(LENGTH):
            return int.from_bytes(first + await self._reader.readexactly(LENGTH - 1), "big")

    async def _skip(self, size: int) -> None:
        async with _in_time(size):
            while size:
                piece = await self._reader.read(min(size, PIECE))
                if not piece:
                    raise EOFError
                size -= len(piece)

    async def _take(self, size: int) -> None:
        """Take a frame's bytes, as soon as there is room for them, and begin to answer it."""
        with contextlib.ExitStack() as held:
            await self._room.acquire()
            held.callback(self._room.release)
            await self._memory.take(size)
            held.callback(self._memory.give_back, size)
            async with _in_time(size):
                body = await self._reader.readexactly(size)
            task = asyncio.create_task(self._answer(body), name="answer a frame")
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            holding = held.pop_all()
            task.add_done_callback(lambda _: holding.close())

    async def _answer(self, body: bytes) -> None:
        answer = FAILED
        try:
            reply = await self._invoke(parse_line(body))
            if reply.status == "ok":
                answer = reply.payload or NOTHING
        except MayflyError as error:
            log.info("a request in a frame failed: %s", error)
        except Exception:
            log.exception("a request in a frame")
        await self._send(answer)

    async def _send(self, answer: bytes) -> None:
        """Send an answer. A client that is gone, or does not read, loses its connection."""
        size = LENGTH + len(answer)
        if not self._memory.take_now(size):
            log.warning("a client of the frames' gateway is disconnected: all memory for frames is taken")
            self._writer.transport.abort()
            return
        try:
            self._writer.write(len(answer).to_bytes(LENGTH, "big") + answer)
            async with asyncio.timeout(SEND_S):
                await self._writer.drain()
        except (OSError, TimeoutError):
            self._writer.transport.abort()
        finally:
            self._memory.give_back(size)


def _in_time(size: int) -> asyncio.Timeout:
    """For so many bytes that have begun to come."""
    return asyncio.timeout(FRAME_S + size / FRAME_RATE)
