"""A run that was given away, at the server that gave it: its record follows the destination's, and
what clients send here goes there. Readers here see no byte less or twice, whatever happens to the
connection.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from mayfly.errors import MayflyError, MoveError, NotRunningError, ServerLostError
from mayfly.guests.outcome import StepResult
from mayfly.protocol.frames import Stage
from mayfly.runs.described import replay
from mayfly.runs.files import Files, Left
from mayfly.runs.moves.link import Connect, Link, Times, close_quietly, within
from mayfly.runs.moves.messages import (
    Ask,
    Cancelled,
    Ended,
    Events,
    FileSent,
    Input,
    Message,
    Resized,
    Running,
    Signalled,
    Taken,
    Unknown,
    error_of,
)
from mayfly.runs.run import Run

log = logging.getLogger(__name__)
WINDOW = 64 * 1024
"""Bytes of standard input that are sent ahead of what the destination's run has taken."""
CANCEL_S = 5.0
"""For the destination to say that a run is over that was to be ended."""


class Followed:
    """A run that goes on at `to`, `in_step` or between two. `skip` bytes of its standard input went
    there with it; `link` is the connection on which RUNNING came.
    """

    def __init__(self, run: Run, move: str, link: Link, connect: Connect, *, to: str, skip: int, in_step: bool, times: Times) -> None:
        self.to = to
        self.move = move
        self._run = run
        self._link: Link | None = link
        self._connect = connect
        self._times = times
        self._skip = skip
        self._unacked = bytearray()
        self._acked = 0
        self.ended_input = False
        self._room = asyncio.Event()
        self._in_step = in_step
        self._files: dict[str, Left] = {}
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._back: Callable[[], Awaitable[None]] | None = None

    async def follow(self) -> None:
        """Follow the run to its end, there or, if it comes back, here.

        Raises:
            MayflyError: how it ended there, or that nobody knows.
        """
        if self._back is None:
            await self._follow_there()
        if self._back is not None:
            await self._back()

    async def _follow_there(self) -> None:
        following = asyncio.create_task(self._follow(), name=f"follow run {self._run.id}")
        self._tasks.append(following)
        if self._run.is_interactive:
            self._tasks.append(asyncio.create_task(self._feed(), name=f"input of run {self._run.id}"))
        try:
            await asyncio.wait([following])
        finally:
            self._over.set()
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            if self._link is not None:
                await close_quietly(self._link)
        if self._back is None:
            following.result()

    async def _follow(self) -> None:
        while not await self._follow_on():
            await self._reconnect()

    def come_back(self, work: Callable[[], Awaitable[None]], taken: int) -> bytes:
        """The run goes on here again, by `work`: follow it no more. There it took `taken` bytes of
        the input that was sent since it went; the others, which come next.
        """
        self._run.elsewhere, self._back = None, work
        for task in self._tasks:
            task.cancel()
        if self._run.is_interactive:
            self._run.stdin.skip(self._skip)
        return bytes(self._unacked[max(0, taken - self._acked) :])

    async def _follow_on(self) -> bool:
        """Take what comes on the present connection; whether that was the end."""
        link = self._link
        try:
            while link is not None:
                message = await link.receive()
                if isinstance(message, Ended):
                    self._take_end(message)
                    return True
                self._take(message)
        except ServerLostError:
            self._link = None
        return False

    def _take(self, message: Message) -> None:
        match message:
            case Events(events=events):
                for sent in events:
                    event = replay(self._run, sent)
                    self._in_step = isinstance(event, Stage) or (self._in_step and not isinstance(event, StepResult))
            case Taken(count=count):
                self._drop(count)
            case FileSent(name=name, mode=mode, data=data):
                before = self._files.get(name)
                self._files[name] = Left(mode, before.data + data if before else data)
            case _:
                raise MoveError(f"{self.to} sent {type(message).__name__} in the middle of a run that moved there")

    def _take_end(self, end: Ended) -> None:
        run = self._run
        run.phases.update(end.phases)
        run.exits = dict(end.exits)
        if end.has_files:
            run.files = Files()
            run.files.by_name = self._files
            run.files.error = error_of(end.files_error) if end.files_error else None
        if end.error is not None:
            raise error_of(end.error)

    async def _reconnect(self) -> None:
        """Connect again, and go on where the connection was lost.

        Raises:
            MoveError: the run is lost, or nobody knows.
        """
        log.warning("run %s: the connection to %s is lost; connecting again", self._run.id, self.to)
        until = asyncio.get_running_loop().time() + self._times.lost_s
        while self._link is None:
            await asyncio.sleep(self._times.again_s)
            if asyncio.get_running_loop().time() > until:
                hint = f"ask there for the run {self._run.id}"
                raise MoveError(f"{self.to}, where the run went, does not answer; how it ended is not known", hint=hint)
            try:
                link = await self._connect()
            except MayflyError as error:
                log.debug("run %s: %s", self._run.id, error)
                continue
            try:
                taken = await ask(link, self.move, self._run, self._times, holds=False)
                if taken is None:
                    raise MoveError(f"the run moved to {self.to}, and was lost there", hint="start it again")
                self._drop(taken)
                self._files.clear()
                sent = 0
                while data := bytes(self._unacked[sent:]):  # clients go on writing meanwhile
                    await link.send(Input(offset=self._acked + sent, data=data))
                    sent += len(data)
                if self.ended_input:
                    await link.send(Input(offset=self._acked + sent, data=b""))
                self._link = link
            except ServerLostError:
                continue
            finally:
                if self._link is None:
                    await close_quietly(link)

    def _drop(self, taken: int) -> None:
        """Forget input that the destination has taken."""
        if taken > self._acked:
            del self._unacked[: taken - self._acked]
            self._acked = taken
            self._room.set()

    async def _feed(self) -> None:
        """Send what clients write here."""
        stdin = self._run.stdin
        while True:
            while len(self._unacked) >= WINDOW:
                self._room.clear()
                await self._room.wait()
            data = await stdin.read(WINDOW - len(self._unacked))
            self._room.set()
            left = data[self._skip :]
            self._skip = max(0, self._skip - len(data))
            offset = self._acked + len(self._unacked)
            self._unacked += left
            self.ended_input = not data
            if left or not data:
                await self._send(Input(offset=offset, data=left))
            if not data:
                return

    async def until_taken(self) -> None:
        """Wait until the destination has taken all that clients wrote here."""
        while self._run.is_interactive and (self._run.stdin.waiting or self._unacked):
            self._room.clear()
            await self._room.wait()

    async def _send(self, message: Message) -> bool:
        """Send a message now; false if the connection is lost."""
        link = self._link
        if link is None:
            return False
        try:
            await link.send(message)
        except ServerLostError:  # `follow` sees that too
            return False
        return True

    async def signal(self, number: int) -> None:
        """As Service.signal.

        Raises:
            NotRunningError: no step is under way, as far as is known here.
            MoveError: the server there cannot be reached now.
        """
        await self._tell(Signalled(number=number))

    async def resize(self, columns: int, rows: int) -> None:
        """As Service.resize. Raises as `signal`."""
        await self._tell(Resized(columns=columns, rows=rows))

    async def _tell(self, message: Message) -> None:
        if not self._in_step:
            raise NotRunningError("no program of the run is running now", hint="wait for the event of its stage")
        if not await self._send(message):
            raise MoveError(f"{self.to}, where the run went, cannot be reached now", hint="try again in a moment")

    async def end(self, reason: str) -> None:
        """End the run there that nobody is to `follow` any more."""
        following = asyncio.create_task(self._until_ended())
        await self.cancel(reason)
        following.cancel()
        await asyncio.wait([following])
        if self._link is not None:
            await close_quietly(self._link)

    async def _until_ended(self) -> None:
        """Hear what comes to no use any more, until the run has ended or the connection is lost."""
        with contextlib.suppress(MayflyError):
            while self._link is not None and not isinstance(await self._link.receive(), Ended):
                pass
        self._over.set()

    async def cancel(self, reason: str) -> None:
        """End the run there, and wait for a moment until it has ended."""
        if await self._send(Cancelled(reason=reason)):
            try:
                async with asyncio.timeout(CANCEL_S):
                    await self._over.wait()
            except TimeoutError:
                log.warning("run %s: %s did not say that it ended", self._run.id, self.to)


async def ask(link: Link, move: str, run: Run, times: Times, *, holds: bool) -> int | None:
    """Ask what became of a run: the bytes of input that the destination has taken, if the run goes
    on there; its events behind those of `run` follow then. None if it never will; if the
    source `holds` its machine, that may go on then.

    Raises:
        ServerLostError: the connection is lost.
        MoveError: the answer is none, or does not come.
    """
    span, offset = run.record.end
    await link.send(Ask(move=move, span=span, offset=offset, holds=holds))
    async with within(times.answer_s, "the destination did not answer"):
        match await link.receive():
            case Running(taken=taken):
                return taken
            case Unknown():
                return None
            case other:
                raise MoveError(f"the destination answered {type(other).__name__} when it was asked for a run")
