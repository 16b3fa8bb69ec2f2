"""Speak with a guest's agent: let it run a job, and collect the files that the job left. (What is
asked of a function that a job has loaded: guests/function.py.)

Reading and sending go on side by side: one task feeds the conversation what the channel brings and
tells the listener; the other sends the files, and then standard input as the guest grants credit.
Back-pressure is the sockets' own: at most a piece of frames waits here in either direction.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mayfly.errors import GuestError, MayflyError
from mayfly.guests.job import Job
from mayfly.guests.start import Guest, explain, going_on
from mayfly.protocol.conversation import Event, Failed
from mayfly.protocol.frames import Collected, Credit, Done, Loaded, Stderr, Stdout
from mayfly.protocol.phases import IN_A_RUN, Phase

log = logging.getLogger(__name__)
FLUSH_S = 2.0
"""For the vmm process to take what was sent to it."""
PIECE = 16 * 1024
"""Bytes of frames at which they are sent."""


class Listener(Protocol):
    """Who is told what happens in a guest."""

    def note(self, event: Event) -> None:
        """Take an event; `Done` is the last one, or `Loaded`. What failed is raised by `converse`
        instead.
        """


class StdinSource(Protocol):
    """Where a job's standard input comes from."""

    async def read(self, most: int) -> bytes:
        """At least one and at most `most` bytes; empty at the end."""
        ...


class BytesStdin:
    """Standard input that is there already."""

    ended = True

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def waiting(self) -> bytes:
        """What nobody has read yet."""
        return self._data[self._position :]

    async def read(self, most: int) -> bytes:
        """The next bytes."""
        piece = self._data[self._position : self._position + most]
        self._position += len(piece)
        return piece


NO_STDIN = BytesStdin(b"")
"""Standard input that is at its end; many jobs may have it."""


async def converse(guest: Guest, job: Job, listener: Listener, stdin: StdinSource = NO_STDIN) -> None:
    """Let the agent run the job, and tell `listener` all that comes back, to its Done. The guest
    takes the next job then. A job whose last step is a function ends here when that is loaded.

    Raises:
        MayflyError: the machine ended, or did not finish in time; it is gone by then, and the
            console's tail is with the error.
    """
    await Exchange(guest, listener, stdin, deadline_s=job.deadline_s, rate=job.rate).run(job)


Elsewhere = Callable[[], Awaitable[None]]
"""Sees to a job that goes on elsewhere, until it is over."""


class Exchange:
    """A job's conversation under way, which can be held, to go on here or elsewhere. The arguments
    are those of `converse`; the job has `deadline_s` left. With `stdin_ended` its standard input
    was ended before. A `clone` goes on besides the guest that it was made of, and is told so.

    Nothing is lost when it is held: frames are handed to the channel whole or not at all, and what
    was read has been told to the listener.

    Attributes:
        over: the job is done, or failed, or goes on elsewhere.
    """

    def __init__(
        self,
        guest: Guest,
        listener: Listener,
        stdin: StdinSource,
        *,
        deadline_s: float,
        rate: float,
        stdin_ended: bool = False,
        clone: bool = False,
    ) -> None:
        self.guest = guest
        self.stdin = stdin
        self.rate = rate
        self.stdin_ended = stdin_ended
        self.over = False
        self._listener = listener
        self._time_s = deadline_s
        self._clone = clone
        self._deadline: asyncio.Timeout | None = None
        self._opening: Iterator[bytes] = iter(())
        self._credited = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._decided: asyncio.Future[Elsewhere | None] | None = None
        self._opened = False
        self._finished = False
        self._fault: MayflyError | None = None

    async def run(self, job: Job | None = None) -> bool:
        """Begin the job, or without one go on with that which the conversation is in, in another
        machine than it began in; false if it went on elsewhere.

        Raises:
            MayflyError: as `converse`, or what `hand_over` was given raises.
        """
        try:
            async with self.watched(self._time_s) as self._deadline:
                self._opening = self.begun(job)
                elsewhere = await self._talk()
        finally:
            self.over = True
        if elsewhere is not None:
            await elsewhere()
        return elsewhere is None

    def watched(self, left_s: float) -> AbstractAsyncContextManager[asyncio.Timeout]:
        """What stops the guest if it ends badly within the block, or is late."""
        return _watched(self.guest, left_s)

    def begun(self, job: Job | None) -> Iterator[bytes]:
        """The frames that begin the job, or let it go on, in pieces of some at a time."""
        conversation = self.guest.conversation
        if job is None:
            return iter((going_on(conversation, clone=self._clone),))
        frames = conversation.begin(job.start, job.files)
        if isinstance(self.stdin, BytesStdin) and not self.stdin.waiting and any(step.stdin for step in job.start.steps):
            if not self.stdin_ended:
                frames = itertools.chain(frames, (conversation.stdin_eof(),))
            self.stdin_ended = True
        return _joined(frames)

    def heard(self, event: Event) -> bool:
        """Tell the listener; whether it was the last event."""
        self._listener.note(event)
        return isinstance(event, Done | Loaded)

    async def _talk(self) -> Elsewhere | None:
        while True:
            self._listening = asyncio.create_task(self._listen(), name=f"listen to machine {self.guest.process.number}")
            self._sending = asyncio.create_task(self._send(), name=f"send to machine {self.guest.process.number}")
            try:
                await asyncio.wait([self._listening])
            finally:
                await _end(self._listening)
                await self._stop_sending()
            if self._decided is None or not self._listening.cancelled():
                self._listening.result()
                return None
            elsewhere = await self._decided
            self._decided = None
            if self._fault is not None:
                raise self._fault
            if elsewhere is not None or self._finished:
                return elsewhere

    async def hold(self) -> None:
        """Send nothing more, and let time stand still; what comes from the guest is still heard.
        `go_on` or `hand_over` must follow.

        Raises:
            ValueError: it is over, or held.
        """
        if self.over or self._decided is not None or self._deadline is None or self._deadline.expired():
            raise ValueError("nothing is under way that could be held")
        self._decided = asyncio.get_running_loop().create_future()
        when = self._deadline.when()
        self._time_s = max(0.0, when - asyncio.get_running_loop().time()) if when is not None else self._time_s
        self._deadline.reschedule(None)
        await self._stop_sending()

    async def hold_flushed(self, flush_s: float = FLUSH_S) -> None:
        """Hold it, and wait until the machine has taken what was sent.

        Raises:
            ValueError: as `hold`.
            GuestError: the machine does not take it. It is held.
        """
        await self.hold()
        if not await self.guest.process.flushed(flush_s):
            raise GuestError("the machine does not take what was sent to it", hint="try again later")

    async def stand_still(self) -> bool:
        """Hear what the channel still holds of the guest, which stands still; then no more. False
        if that ended the job, or it was not yet begun whole: it can only go on here.
        """
        if self._listening is None or self._decided is None:
            raise ValueError("it is not held")
        await _end(self._listening)
        if not self._listening.cancelled() or self.over:
            return False
        try:
            for event in _good(self.guest.conversation.feed(await self.guest.process.rest())):
                self._finished = self._note(event)
                if self._finished:  # what comes behind the last event is not this job's
                    break
        except MayflyError as error:
            self._fault = error
        return self._opened and self._fault is None and self.guest.conversation.phase in (*IN_A_RUN, Phase.ASKED)

    @property
    def left_s(self) -> float:
        """The time that the job had left when it was held."""
        return self._time_s

    def go_on(self) -> None:
        """Go on here after `hold`."""
        if self._decided is None or self.over:
            return
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._time_s)
        self._decide(None)
        if self._listening is not None:
            self._listening.cancel()  # if it did not stand still: sending begins again with listening

    def hand_over(self, elsewhere: Elsewhere) -> None:
        """End this after `hold`: the job goes on elsewhere, and `elsewhere` sees to it."""
        self._decide(elsewhere)

    def _decide(self, elsewhere: Elsewhere | None) -> None:
        if self._decided is not None and not self._decided.done():
            self._decided.set_result(elsewhere)

    async def _listen(self) -> None:
        """Tell the listener what the channel brings, to the job's Done or to Loaded."""
        last = False
        while not last:
            for event in await hear(self.guest):
                last = self._note(event)
                if last:
                    break

    def _note(self, event: Event) -> bool:
        if isinstance(event, Credit):
            self._credited.set()
            return False
        if isinstance(event, Stdout | Stderr):
            self._extend(len(event.data))  # not for all bytes: noise would keep a guest alive
        return self.heard(event)

    def _extend(self, count: int) -> None:
        """Give the job more time, for so many bytes."""
        if self._deadline is None:
            return
        if self._deadline.when() is None:
            self._time_s += count / self.rate
        else:
            _extend(self._deadline, count / self.rate)

    async def _send(self) -> None:
        """Send START, files and BEGIN, then standard input. It ends early if the channel does: the
        listener sees that too. It can be cancelled, and begun again.
        """
        process, conversation = self.guest.process, self.guest.conversation
        for piece in self._opening:
            self._extend(len(piece))
            if not await process.write(piece):
                return
        self._opened = True
        while not self.stdin_ended:
            while not conversation.credit:
                self._credited.clear()
                await self._credited.wait()
            data = await self.stdin.read(conversation.stdin_room())
            self._extend(len(data))
            self.stdin_ended = not data
            if not await process.write(conversation.stdin(data) if data else conversation.stdin_eof()):
                return

    async def _stop_sending(self) -> None:
        if self._sending is not None:
            await _end(self._sending)
            if fault := None if self._sending.cancelled() else self._sending.exception():
                log.error("machine %d: sending failed", self.guest.process.number, exc_info=fault)


async def _end(task: "asyncio.Task[None]") -> None:
    """Cancel a task and wait until it has ended."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # whoever wants it asks for it


def _joined(frames: Iterator[bytes]) -> Iterator[bytes]:
    """The frames, as many together as are worth it: for each piece there is a system call, and the
    guest is woken.
    """
    piece = bytearray()
    for frame in frames:
        piece += frame
        if len(piece) >= PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def _extend(deadline: asyncio.Timeout, seconds: float) -> None:
    if not deadline.expired():
        deadline.reschedule((deadline.when() or 0) + seconds)


async def collect(
    guest: Guest,
    paths: Sequence[str],
    take: Callable[[Collected], None],
    *,
    entries: int,
    size: int,
    deadline_s: float,
    rate: float,
    globs: bool = False,
) -> None:
    """Give `take` the pieces of the regular files and folders at and beneath `paths`, which the
    last job left (with `globs` of the files in the working folder that match): at most `entries`,
    with `size` bytes together. The time is as a job's.

    Raises:
        CollectError: there are more, or the agent cannot read them.
        MayflyError: as `converse`.
    """
    async with _watched(guest, deadline_s) as deadline:
        await guest.process.write(guest.conversation.collect(paths, entries=entries, size=size, globs=globs))
        last = False
        while not last:
            for event in await hear(guest):
                if isinstance(event, Collected):
                    take(event)
                    last = event.last
                    _extend(deadline, (len(event.data) + (len(event.head.path) if event.head else 0)) / rate)


@contextlib.asynccontextmanager
async def _watched(guest: Guest, deadline_s: float) -> AsyncIterator[asyncio.Timeout]:
    """Stop the guest if it ends badly or is late, and raise the error that says why. Gives its
    deadline.
    """
    try:
        async with asyncio.timeout(deadline_s) as deadline:
            yield deadline
    except TimeoutError as error:
        late = GuestError(f"the machine did not finish within {deadline_s:g} s, its limits and some slack")
        raise explain(late, await guest.process.stop()) from error
    except MayflyError as error:
        raise explain(error, await guest.process.stop()) from error


async def hear(guest: Guest) -> Iterator[Event]:
    """The events of the channel's next bytes that have any.

    Raises:
        GuestError: the channel is at its end.
    """
    while data := await guest.process.read():
        if events := guest.conversation.feed(data):
            return _good(events)
    raise GuestError("the machine ended in the middle of the run", hint="the snippet may have brought it down; nothing else is affected")


def _good(events: list[Event]) -> Iterator[Event]:
    """The events one by one, and the error of the one that failed."""
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        yield event
