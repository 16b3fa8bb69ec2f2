"""Speak with a guest's agent: let it run a job, and collect the files that the job left. (What is
asked of a function that a job has loaded: guests/function.py.)

Reading and sending go on side by side: one task feeds the conversation what the channel brings and
tells the listener; the other sends the files, and then standard input as the guest grants credit.
Back-pressure is the sockets' own: at most a frame waits here in either direction.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Protocol

from mayfly.errors import GuestError, MayflyError
from mayfly.guests.job import Job
from mayfly.guests.start import Guest, explain
from mayfly.protocol.conversation import Event, Failed
from mayfly.protocol.frames import Collected, Credit, Done, Loaded, Stderr, Stdout

log = logging.getLogger(__name__)


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

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

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
    credited = asyncio.Event()
    async with _watched(guest, job.deadline_s, job.rate) as extend:
        opening = guest.conversation.begin(job.start, job.files)
        sending = _send(guest, opening, stdin, extend, credited)
        sender = asyncio.create_task(sending, name=f"send to machine {guest.process.number}")
        try:
            await _listen(guest, listener, extend, credited)
        finally:
            sender.cancel()
            await asyncio.wait([sender])
            if not sender.cancelled() and (fault := sender.exception()):
                log.error("machine %d: sending failed", guest.process.number, exc_info=fault)


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
    async with _watched(guest, deadline_s, rate) as extend:
        await guest.process.write(guest.conversation.collect(paths, entries=entries, size=size, globs=globs))
        last = False
        while not last:
            for event in await hear(guest):
                if isinstance(event, Collected):
                    take(event)
                    last = event.last
                    extend(len(event.data) + (len(event.head.path) if event.head else 0))


@contextlib.asynccontextmanager
async def _watched(guest: Guest, deadline_s: float, rate: float) -> AsyncIterator[Callable[[int], None]]:
    """Stop the guest if it ends badly or is late, and raise the error that says why. Gives what
    extends its time by so many bytes.
    """
    try:
        async with asyncio.timeout(deadline_s) as deadline:

            def extend(count: int) -> None:
                if not deadline.expired():
                    deadline.reschedule((deadline.when() or 0) + count / rate)

            yield extend
    except TimeoutError as error:
        late = GuestError(f"the machine did not finish within {deadline_s:g} s, its limits and some slack")
        raise explain(late, await guest.process.stop()) from error
    except MayflyError as error:
        raise explain(error, await guest.process.stop()) from error


async def _listen(guest: Guest, listener: Listener, extend: Callable[[int], None], credited: asyncio.Event) -> None:
    """Tell the listener what the channel brings, to the job's Done or to Loaded."""
    while True:
        for event in await hear(guest):
            if isinstance(event, Credit):
                credited.set()
                continue
            listener.note(event)
            if isinstance(event, Done | Loaded):
                return
            if isinstance(event, Stdout | Stderr):
                extend(len(event.data))  # not for all bytes: noise would keep a guest alive


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


async def _send(guest: Guest, opening: Iterator[bytes], stdin: StdinSource, extend: Callable[[int], None], credited: asyncio.Event) -> None:
    """Send START, files and BEGIN, then standard input. It ends early if the channel does: the
    listener sees that too.
    """
    process, conversation = guest.process, guest.conversation
    for frame in opening:
        if not await process.write(frame):
            return
        extend(len(frame))
    while True:
        while not conversation.credit:
            credited.clear()
            await credited.wait()
        data = await stdin.read(conversation.stdin_room())
        if not data:
            await process.write(conversation.stdin_eof())
            return
        if not await process.write(conversation.stdin(data)):
            return
        extend(len(data))
