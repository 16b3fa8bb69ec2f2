"""A run: one execution of a snippet, from acceptance to result. No I/O: `execute` tells it what
happens, readers follow its record.
"""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import UNSET

from mayfly.errors import MayflyError, NotInteractiveError
from mayfly.guests.converse import Exchange
from mayfly.guests.outcome import Outcome, StepResult, Verdict
from mayfly.guests.start import StartKind
from mayfly.host.snippet import Case, Mode
from mayfly.protocol.conversation import Event, Failed
from mayfly.protocol.frames import Done, Exit, Hello, Stage, Stderr, Stdout
from mayfly.runs.cases import CaseResult, Cases
from mayfly.runs.files import Files
from mayfly.runs.record import Attempt, Record, Restored, RunEvent
from mayfly.runs.result import Problem, RunResult, RunState, TestReport, describe_cases, describe_files, describe_step
from mayfly.runs.stdin import LiveStdin
from mayfly.runs.tested import read_tests


class Moving(Protocol):
    """A run's move to another server, under way."""

    async def give_way(self) -> None:
        """Take the move back, or wait for its end if it is too late for that."""

    def abandon(self) -> None:
        """End it at once, even if then nobody knows where the run goes on."""


class Stopped(Protocol):
    """A run's program that is stopped to go on in another machine (carried.py)."""

    def withholds(self, event: Event) -> bool:
        """Whether an event is none of the run's own."""

    def over(self) -> None:
        """The run is over."""


class Elsewhere(Protocol):
    """A run that goes on at another server, whose record here follows."""

    to: str

    async def until_taken(self) -> None:
        """Wait until all input that clients have written here is taken there."""

    async def signal(self, number: int) -> None:
        """Send a signal to the processes of the run's present step."""

    async def resize(self, columns: int, rows: int) -> None:
        """Give its terminal another size."""

    async def cancel(self, reason: str) -> None:
        """End it there."""


class Run:
    """One run. `outcome` grows while it is under way; `step_names` are the steps of its job;
    `readers` are the time limits of those who read its record over HTTP; `owner` is the tenant
    whose it is, or empty; `cases` are None where the program runs once, `files` until there are
    any that were asked for with `collect`, without those that are `hidden`. With `tests` its
    last step puts out results of tests, in that form. An interactive one has a `stdin` that
    clients write to; one whose program is at a terminal `has_terminal`. `exchange` is the
    conversation of its program, while there is one that can be held; `checkpoint` is the file
    that its program writes when SIGUSR1 stops it, or empty; `moving` and `elsewhere` say
    whether it moves, or has moved. Who moves, saves or clones its machine is `alone` with it;
    it is `going`, and takes what is sent to it, unless it stands still for that; `carried` is
    its program while that is stopped to go on in another machine. A clone is `forked_from` the run
    with that id; one from another server `came` by the move with that id. Its machine is saved
    every `checkpoint_every_s` seconds, or never (0).
    """

    def __init__(
        self,
        *,
        language: str,
        version: str,
        mode: Mode,
        step_names: tuple[str, ...],
        owner: str = "",
        cases: Sequence[Case] = (),
        stop_at_first_failure: bool = False,
        stdin: LiveStdin | None = None,
        has_terminal: bool = False,
        collect: tuple[str, ...] = (),
        hidden: tuple[str, ...] = (),
        tests: str = "",
        checkpoint: str = "",
        run_id: str = "",
        checkpoint_every_s: float = 0.0,
    ) -> None:
        self.id = run_id or os.urandom(16).hex()
        self.owner = owner
        self.about = b""
        self.forked_from = ""
        self.came = ""
        self.checkpoint_every_s = checkpoint_every_s
        self.has_terminal = has_terminal
        self.language = language
        self.version = version
        self.mode = mode
        self._stdin = stdin
        self.state = RunState.QUEUED
        self.start: StartKind | None = None
        self.record = Record()
        self.outcome = Outcome(step_names)
        self.cases = Cases(cases, stop=stop_at_first_failure, tell=self.record.append) if cases else None
        self.collect = collect
        self.hidden = hidden
        self.tests = tests
        self.checkpoint = checkpoint
        self.files: Files | None = None
        self.exchange: Exchange | None = None
        self.moving: Moving | None = None
        self.elsewhere: Elsewhere | None = None
        self.carried: Stopped | None = None
        self.alone = asyncio.Lock()
        self.going = asyncio.Event()
        self.going.set()
        self.phases: dict[str, float] = {}
        self.exits: Mapping[str, int] = {}
        self.done = asyncio.Event()
        self.readers: set[asyncio.Timeout] = set()
        self.ended_at = 0.0
        self._mark = time.monotonic()

    def lap(self, phase: str) -> None:
        """Book the time since the last lap, in seconds, as `phase`."""
        now = time.monotonic()
        self.phases[phase] = round(now - self._mark, 6)
        self._mark = now

    def booting(self) -> None:
        """A machine is being started for it."""
        self.lap("queue")
        self.state = RunState.BOOTING

    def started(self, kind: StartKind, hello: Hello) -> None:
        """It has its machine."""
        self.lap("start")
        self.start = kind
        if kind is StartKind.COLD:
            self.phases["guest_boot"] = hello.boot_us / 1e6
        self.state = RunState.RUNNING

    def note(self, event: Event) -> None:
        """Take what the conversation with the guest brings."""
        if self.carried is not None and self.carried.withholds(event):
            return
        self.outcome.note(event)
        match event:
            case Stage() | Stdout() | Stderr():
                self.record.append(event)
            case Exit():
                result = self.outcome.steps[-1]
                self.phases[result.name] = event.wall_us / 1e6
                self.record.append(result)
            case Done():
                self.lap("steps")

    def replay(self, event: RunEvent) -> None:
        """Take an event that happened to it at another server. Its end does not come this way."""
        match event:
            case StepResult():
                self.outcome.steps.append(event)
            case CaseResult() if self.cases is not None:
                self.cases.results.append(event)
            case Restored():
                del self.outcome.steps[event.steps :]
        self.record.append(event)

    def restart(self, attempt: Attempt) -> None:
        """It begins again on another host. Readers of the record are told; nothing else is kept."""
        self.record.append(attempt)
        self.outcome = Outcome(self.outcome.step_names)
        if self.cases is not None:
            self.cases.results.clear()
        self.phases, self.files, self.start = {}, None, None
        self.state = RunState.QUEUED

    def finish(self) -> None:
        """Its machine has done all that it was to do."""
        if not self.done.is_set():
            self._finish()

    def verdict(self) -> Verdict:
        """How it ended. Only for a run that is over."""
        if self.cases is None or not self.outcome.built:
            return self.outcome.verdict()
        return self.cases.verdict()

    def fail(self, error: MayflyError) -> None:
        """End it with an error, unless it has ended already."""
        if not self.done.is_set():
            self.outcome.error = error
            self._finish()

    def _finish(self) -> None:
        if self.cases is not None:
            self.cases.end()
            self.outcome.error = self.outcome.error or self.cases.error
        if self.outcome.error is not None:
            self.record.append(Failed(self.outcome.error))
        self.state = RunState.DONE
        if self._stdin is not None:
            self._stdin.close()
        if self.carried is not None:
            self.carried.over()
        self.ended_at = time.monotonic()
        self.record.append(self.verdict())
        self.record.close()
        self.done.set()

    @property
    def kept_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.record) + (len(self.files) if self.files else 0) + len(self.about)

    @property
    def is_interactive(self) -> bool:
        """Whether clients can write to its standard input."""
        return self._stdin is not None

    @property
    def stdin(self) -> LiveStdin:
        """Its standard input.

        Raises:
            NotInteractiveError: clients cannot write to it.
        """
        if self._stdin is None:
            raise NotInteractiveError("the run's standard input is not open", hint='start the run with "interactive": true')
        return self._stdin

    def dismiss(self, grace_s: float = 1.0) -> None:
        """Give who still reads `grace_s` to read the rest: the run is no longer kept."""
        for reader in self.readers:
            reader.reschedule(asyncio.get_running_loop().time() + grace_s)

    def result(self) -> RunResult:
        """What `GET /runs/ID` and `POST /run` give: how far it is, or how it ended."""
        status, exit_status = self.verdict() if self.done.is_set() else (None, None)
        return RunResult(
            id=self.id,
            language=self.language,
            version=self.version,
            state=self.state,
            start=self.start,
            status=status,
            exit_status=exit_status,
            steps=[describe_step(step, *self.record.output(step.exit.step)) for step in self.outcome.steps],
            error=Problem.of(self.outcome.error) if self.outcome.error else None,
            phases=self.phases,
            exits=dict(self.exits),
            forked_from=self.forked_from or UNSET,
            moved_to=UNSET if self.elsewhere is None else self.elsewhere.to,
            cases=describe_cases(self.cases) if self.cases is not None else UNSET,
            tests=self._tests() if self.tests else UNSET,
            **(describe_files(self.files) if self.files is not None else {}),
        )

    def _tests(self) -> list[TestReport]:
        """The results of its tests; none while they are under way, or if they were not built."""
        step = self.outcome.steps[-1] if self.outcome.steps else None
        if step is None or len(self.outcome.steps) < len(self.outcome.step_names):
            return []
        return read_tests(self.tests, self.record.output(step.exit.step)[0], step.exit)

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        plain: dict[str, Any] = msgspec.to_builtins(self.result())
        return plain
