"""A run that came from another server, at the server where it is: its events go to the source, and
what the source's clients send comes from there, over one connection after another.
"""

import asyncio
import collections
import contextlib
import logging

from mayfly.errors import MoveError, RequestError, ServerLostError
from mayfly.host.snippet import Terminal
from mayfly.runs.moves.link import Link, close_quietly
from mayfly.runs.moves.messages import (
    Cancelled,
    Ended,
    Input,
    Message,
    Resized,
    Running,
    Signalled,
    Taken,
    batches,
    file_messages,
    problem_of,
)
from mayfly.runs.record import Position, Reader
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter

log = logging.getLogger(__name__)
MAX_AHEAD = 256 * 1024
"""Bytes of input that may wait here for the run."""


class Relay:
    """What the source is told of `run`, and what it sends."""

    def __init__(self, run: Run, service: Service) -> None:
        self._run = run
        self._service = service
        self._came = run.record.end
        self._link: Link | None = None
        self._inputs: collections.deque[bytes] = collections.deque()  # the first of them may be taken in part
        self._more = asyncio.Event()
        self._accepted = self._taken = 0
        self._writer = StdinWriter(run.stdin) if run.is_interactive else None
        self._feeding: asyncio.Task[None] | None = None
        self.go_on()

    def close(self) -> None:
        """The run is over, or goes on where it came from."""
        if self._feeding is not None:
            self._feeding.cancel()

    def let_others_write(self) -> None:
        """The source has sent all input that it will."""
        if self._writer is not None:
            self._writer.release()

    def hold(self) -> int:
        """Give the run nothing more of the input that came, until `go_on`; how many bytes it has
        taken of it.
        """
        self.close()
        return self._writer.written if self._writer is not None else 0

    def go_on(self) -> None:
        """Give the run its input."""
        if self._writer is not None:
            self._feeding = asyncio.create_task(self._feed(self._writer), name=f"input of run {self._run.id}")

    async def serve(self, link: Link, after: Position | None) -> None:
        """Say that the run goes on here, then send what happens in it behind `after`, or since it
        came; and do what comes back. An earlier connection is closed.

        Raises:
            ServerLostError: the connection is lost.
            MoveError: the source has broken the protocol.
        """
        earlier, self._link = self._link, link
        if earlier is not None:
            await close_quietly(earlier)
        position = self._came if after is None else after
        if not self._run.record.has(position):
            raise MoveError(f"the run had no event at {position.span}-{position.offset}")
        await link.send(Running(taken=self._taken))
        telling = asyncio.create_task(self._tell(link, position), name=f"tell of run {self._run.id}")
        hearing = asyncio.create_task(self._hear(link), name=f"hear of run {self._run.id}")
        try:
            await asyncio.wait([telling, hearing], return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in (telling, hearing):
                task.cancel()
            ends = await asyncio.gather(telling, hearing, return_exceptions=True)
            if self._link is link:
                self._link = None
                if self._writer is not None:
                    self._writer.release()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _tell(self, link: Link, after: Position) -> None:
        """Send the events to the end of the run, then how it ended."""
        run, reader = self._run, Reader(self._run.record, after=after)
        more = True
        while more:
            # Each time anew, to the last event: what happens while one batch is sent is in another.
            while batch := next(batches(iter(reader.take, None)), None):
                await link.send(batch)
                await asyncio.sleep(0)  # a reader that keeps up must not starve all others
            more = await reader.wait()
        await self._service.settled(run)
        files = run.files
        for name, left in files.by_name.items() if files else ():
            for piece in file_messages(name, left):
                await link.send(piece)
        ended = Ended(
            error=problem_of(run.outcome.error) if run.outcome.error else None,
            files_error=problem_of(files.error) if files and files.error else None,
            has_files=files is not None,
            phases=dict(run.phases),
            exits=dict(run.exits),
        )
        await link.send(ended)

    async def _hear(self, link: Link) -> None:
        """Do what comes from the source, until it closes the connection."""
        while True:
            message = await link.receive()
            try:
                await self._obey(message)
            except RequestError as error:  # as the source knew the run some time ago
                log.debug("run %s: %s", self._run.id, error)

    async def _obey(self, message: Message) -> None:
        match message:
            case Input(offset=offset, data=data):
                self._accept(offset, data)
            case Signalled(number=number):
                await self._service.signal(self._run, number)
            case Resized(columns=columns, rows=rows):
                await self._service.resize(self._run, Terminal(columns=columns, rows=rows))
            case Cancelled(reason=reason):
                await self._service.end(self._run, reason)
            case _:
                raise MoveError(f"the source sent {type(message).__name__} of a run that it gave away")

    def _accept(self, offset: int, data: bytes) -> None:
        """Take input that is not here yet."""
        if offset > self._accepted or offset + len(data) - self._taken > MAX_AHEAD:
            raise MoveError(f"the source sent input from {offset} on, where {self._accepted} bytes were here")
        new = data[self._accepted - offset :]
        if new or not data:
            self._accepted += len(new)
            self._inputs.append(new)
            self._more.set()

    async def _feed(self, writer: StdinWriter) -> None:
        """Give the run its input, as fast as it takes that."""
        while True:
            while not self._inputs:
                self._more.clear()
                await self._more.wait()
            data = self._inputs[0]
            try:
                if data:
                    await writer.write(data[writer.written - self._taken :])
                else:
                    writer.end()
            except RequestError as error:  # it ended, or a client here writes to it
                log.info("run %s: input that came from where it was is not taken: %s", self._run.id, error)
            self._inputs.popleft()
            self._taken += len(data)
            writer.written = self._taken
            if self._link is not None:
                with contextlib.suppress(ServerLostError):
                    await self._link.send(Taken(count=self._taken))
            else:
                writer.release()
