"""A program of WebAssembly that is stopped in the middle of its run, to go on from a file, or in
another machine: at another server, or here if that comes to nothing. Readers of a run that goes on
notice a pause: the end of the program that was stopped is withheld, and what the next machine says
continues the run.
"""

import asyncio
import dataclasses
import enum
import struct
from collections.abc import Callable

from mayfly.guests.converse import Elsewhere, Exchange
from mayfly.guests.job import Job
from mayfly.guests.start import Guest
from mayfly.protocol.conversation import Event
from mayfly.protocol.frames import MAX_FILES_SIZE, Exit, ExitHow, FileEntry, Stage, Start
from mayfly.runs.moments import Moment, stdin_from
from mayfly.runs.run import Run

LANGUAGE = "wasm"
"""The language whose image has the runtime and nothing else."""
PROGRAM = "main.wasm"
"""The file of which the runtime's steps make a program, be it a module or a checkpoint."""
STOPPED = 75
"""The runtime's exit status when it has written a checkpoint (wasm/src/main.rs)."""
MAX_STATE = MAX_FILES_SIZE
"""Bytes of a checkpoint that goes on: it goes to a machine as a file."""
HEAD = struct.Struct("<8sIQ?")
"""A checkpoint's first fields (wasm/src/checkpoint/mod.rs): magic, version, how many bytes of
standard input its process had taken, whether nothing follows those that wait at the file's end.
"""


class Then(enum.Enum):
    """What becomes of a program that was stopped, if it goes on at no other server."""

    HERE = "it goes on here"
    ENDS = "the run ends"


class Carried:
    """The program of `run`, whose last step is under way as `start` says and will be stopped.

    Attributes:
        state: the checkpoint, once it is there; nothing if the run ended first.
        end: the end that is withheld.
    """

    def __init__(self, run: Run, start: Start) -> None:
        self._run = run
        self._start = start
        self._last = len(run.outcome.step_names) - 1
        self.end: Exit | None = None
        self.state: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._then: asyncio.Future[Elsewhere | Then] = asyncio.get_running_loop().create_future()

    def withholds(self, event: Event) -> bool:
        """Whether an event says only that the program was stopped."""
        if isinstance(event, Exit) and event.step == self._last and (event.how, event.code) == (ExitHow.EXITED, STOPPED):
            self.end = event
            return True
        return False

    def over(self) -> None:
        """The run is over, or its program."""
        if not self.state.done():
            self.state.set_result(None)

    def whole(self, state: bytes, exchange: Exchange) -> bytes:
        """The checkpoint, with what was sent of standard input and not read by the program."""
        # What was typed at a terminal cannot be told from what its program read.
        unread = (lambda _: b"") if self._run.has_terminal else exchange.guest.conversation.unread
        return with_input(state, unread, ended=exchange.stdin_ended)

    async def give(self, state: bytes) -> Elsewhere | Then:
        """Give the checkpoint to who wants it; what becomes of the run: a function sees to it
        elsewhere.
        """
        if not self.state.done():
            self.state.set_result(state)
        return await self._then

    def decide(self, then: Elsewhere | Then) -> None:
        """Say where the run goes on, for `give`. What is said first counts."""
        if not self._then.done():
            self._then.set_result(then)

    def start(self, written: int) -> Start:
        """The program's step alone, with what is left of its limits when it has `written` so many
        bytes.
        """
        step, end = self._start.steps[-1], self.end
        if end is not None:
            step = dataclasses.replace(
                step,
                wall_ms=step.wall_ms and max(1, step.wall_ms - end.wall_us // 1000),
                cpu_ms=step.cpu_ms and max(1, step.cpu_ms - end.cpu_us // 1000),
                output=step.output and max(1, step.output - written),
            )
        return Start(env=self._start.env, steps=(step,), files=())

    def here(self, exchange: Exchange, state: bytes) -> tuple[Exchange, Job]:
        """The conversation in which the program goes on in the machine where it was stopped."""
        start = self.start(exchange.guest.conversation.written)
        job = resuming(start, state, deadline_s=exchange.left_s, rate=exchange.rate)
        listener = Continued(self._run)
        return Exchange(
            exchange.guest, listener, exchange.stdin, deadline_s=job.deadline_s, rate=job.rate, stdin_ended=exchange.stdin_ended
        ), job


class Continued:
    """Listens for a run to the machine in which its last step goes on."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._step = len(run.outcome.step_names) - 1

    def note(self, event: Event) -> None:
        """As guests.converse.Listener."""
        match event:
            case Stage():
                return
            case Exit():
                event = dataclasses.replace(event, step=self._step)
        self._run.note(event)


def with_input(state: bytes, more: Callable[[int], bytes], *, ended: bool) -> bytes:
    """The checkpoint with more standard input at its end: what `more` gives, told how many bytes
    the process had taken; with `ended` nothing follows. Unchanged if nothing followed before, or it
    is too short to be a checkpoint.
    """
    if len(state) < HEAD.size:
        return state
    magic, version, taken, had_ended = HEAD.unpack_from(state)
    if had_ended:
        return state
    return HEAD.pack(magic, version, taken, ended) + state[HEAD.size :] + more(taken)


def resuming(start: Start, state: bytes, *, deadline_s: float, rate: float) -> Job:
    """The job that lets the program of a checkpoint go on."""
    entry = FileEntry(PROGRAM, 0o644, len(state))
    return Job(start=dataclasses.replace(start, files=(entry,)), files=(state,), deadline_s=deadline_s, rate=rate)


def go_on_anew(moment: Moment, state: bytes, guest: Guest, run: Run) -> tuple[Exchange, Job]:
    """The conversation of `run` from that moment on, with a guest that has done nothing yet, and
    the job in it. Raises SchemaError: it cannot stand so.
    """
    job = resuming(moment.standing.plan(), state, deadline_s=moment.left_s, rate=moment.rate)
    stdin = stdin_from(moment, run)
    run.exchange = Exchange(guest, Continued(run), stdin, deadline_s=job.deadline_s, rate=job.rate, stdin_ended=moment.stdin_ended)
    return run.exchange, job
