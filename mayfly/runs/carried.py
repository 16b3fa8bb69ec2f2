"""A program of WebAssembly that is stopped in the middle of its run, to go on in another machine:
at another server, or here if that comes to nothing. Readers of the run notice a pause: the end of
the program that was stopped is withheld, and what the next machine says continues the run.
"""

import asyncio
import dataclasses

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
        self._then: asyncio.Future[Elsewhere | None] = asyncio.get_running_loop().create_future()

    @property
    def stopped(self) -> bool:
        """Whether the program was stopped as wanted."""
        return self.end is not None

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

    async def give(self, state: bytes) -> Elsewhere | None:
        """Give the checkpoint to who wants it: what then sees to the run elsewhere, or nothing if
        it is to go on here.
        """
        if not self.state.done():
            self.state.set_result(state)
        return await self._then

    def decide(self, elsewhere: Elsewhere | None) -> None:
        """Say where the run goes on, for `give`."""
        if not self._then.done():
            self._then.set_result(elsewhere)

    def start(self) -> Start:
        """The program's step alone, with what is left of its limits."""
        step, end = self._start.steps[-1], self.end
        if end is not None:
            written = max(map(len, self._run.record.output(self._last)))
            step = dataclasses.replace(
                step,
                wall_ms=step.wall_ms and max(1, step.wall_ms - end.wall_us // 1000),
                cpu_ms=step.cpu_ms and max(1, step.cpu_ms - end.cpu_us // 1000),
                output=step.output and max(1, step.output - written),
            )
        return Start(env=self._start.env, steps=(step,), files=())

    def here(self, exchange: Exchange, state: bytes) -> tuple[Exchange, Job]:
        """The conversation in which the program goes on in the machine where it was stopped."""
        job = resuming(self.start(), state, deadline_s=exchange.left_s, rate=exchange.rate)
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
