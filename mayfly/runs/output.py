"""A run's output socket: every connection gets the whole output from its beginning, then what
comes, then EOF.
"""

import asyncio
import contextlib
import socket
from pathlib import Path

from mayfly.errors import HostError
from mayfly.host.snippet import Mode
from mayfly.runs.record import Record
from mayfly.runs.render import Renderer
from mayfly.unix import listen

MAX_READERS = 64
"""Readers of one run at a time; the next ones wait in the listen queue."""


LACKING = "this host lacks descriptors or disk space: raise its limits, or run fewer snippets at a time"
"""The hint of errors that the system gave."""


class OutputSocket:
    """Listens from its making until `close`.

    Raises:
        HostError: it cannot listen.
    """

    def __init__(self, path: Path, record: Record, mode: Mode) -> None:
        self.path = path
        self._record = record
        self._mode = mode
        try:
            self._listener = listen(path)
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}", hint=LACKING) from error
        self._readers: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_READERS)
        self._accepting = asyncio.create_task(self._accept(), name=f"output {path.name}")

    async def close(self, grace_s: float = 1.0) -> None:
        """Remove the socket; who is reading has `grace_s` to read the rest."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._accepting
        self._listener.close()
        if self._readers:
            await asyncio.wait(self._readers, timeout=grace_s)
        for reader in self._readers:
            reader.cancel()
        if self._readers:
            await asyncio.wait(self._readers)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError:  # out of descriptors, or the client is gone already
                self._room.release()
                await asyncio.sleep(0.1)  # not in a tight loop while descriptors are short
                continue
            except BaseException:
                self._room.release()
                raise
            task = asyncio.create_task(self._serve(connection))
            self._readers.add(task)
            task.add_done_callback(self._served)

    def _served(self, task: "asyncio.Task[None]") -> None:
        self._readers.discard(task)
        self._room.release()

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = Renderer.of(self._record, self._mode)
        with connection, contextlib.suppress(OSError):  # a reader that goes away is nobody's problem
            connection.setblocking(False)
            while True:
                while (piece := reader.take()) is not None:
                    await loop.sock_sendall(connection, piece)
                    await asyncio.sleep(0)  # a reader that keeps up must not starve all others
                if not await reader.wait():
                    return
