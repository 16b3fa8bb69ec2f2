"""A run: one execution of a snippet, from acceptance to result. No I/O: `execute` tells it what
happens, readers follow its record.
"""

import asyncio
import base64
import enum
import json
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from mayfly.api import problems
from mayfly.errors import GuestError, MayflyError
from mayfly.guests.start import StartKind
from mayfly.protocol.conversation import Event, Failed
from mayfly.protocol.frames import Done, Exit, ExitHow, Hello, Limit, Stage, Stderr, Stdout
from mayfly.runs.record import Kind, Mode, Reader, Record

LIMIT_STATUS = 124
OUR_STATUS = 125


class RunState(enum.StrEnum):
    """How far a run is."""

    QUEUED = "queued"
    BOOTING = "booting"
    RUNNING = "running"
    DONE = "done"


class Status(enum.StrEnum):
    """How a run ended, in a word."""

    OK = "ok"
    FAILED = "failed"
    SIGNAL = "signal"
    LIMIT = "limit"
    BUILD_FAILED = "build_failed"
    ERROR = "error"


class StepResult(NamedTuple):
    """How one step ended."""

    name: str
    exit: Exit

    def to_json(self) -> dict[str, Any]:
        """What results and `exit` events say of a step. Milliseconds and bytes; `limit` names the
        limit that ended it.
        """
        ended = self.exit
        return {
            "step": self.name,
            "code": ended.code if ended.how is ExitHow.EXITED else None,
            "signal": ended.code if ended.how is ExitHow.SIGNALED else None,
            "errno": ended.code if ended.how is ExitHow.NOT_STARTED else None,
            "limit": None if ended.limit is Limit.NONE else ended.limit.name.lower(),
            "wall_ms": round(ended.wall_us / 1000, 3),
            "cpu_ms": round(ended.cpu_us / 1000, 3),
            "peak_memory": ended.peak_memory,
            "stdout_truncated": ended.cut[0],
            "stderr_truncated": ended.cut[1],
        }


class Run:
    """One run. `step_names` are the steps that its language has; the last one is the snippet
    itself, the ones before it build it.
    """

    def __init__(self, *, language: str, version: str, mode: Mode, step_names: tuple[str, ...]) -> None:
        self.id = os.urandom(16).hex()
        self.language = language
        self.version = version
        self.mode = mode
        self.state = RunState.QUEUED
        self.start: StartKind | None = None
        self.record = Record()
        self.steps: list[StepResult] = []
        self.error: MayflyError | None = None
        self.phases: dict[str, float] = {}
        self.exits: Mapping[str, int] = {}
        self.done = asyncio.Event()
        self.ended_at = 0.0
        self.step_names = step_names
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
        """Take what the session reports."""
        match event:
            case Stage():
                self.record.event("stage", step=event.name)
            case Stdout():
                self.record.output(Kind.STDOUT, event.data)
            case Stderr():
                self.record.output(Kind.STDERR, event.data)
            case Exit():
                result = StepResult(self.step_names[event.step], event)
                self.steps.append(result)
                self.phases[result.name] = event.wall_us / 1e6
                self.record.event("exit", **result.to_json())
            case Done():
                self.lap("steps")
                self._finish()
            case Failed():
                self.fail(event.error)

    def fail(self, error: MayflyError) -> None:
        """End it with an error, unless it has ended already."""
        if not self.done.is_set():
            self.error = error
            self.record.event("error", error=problems.as_json(error))
            self._finish()

    def _finish(self) -> None:
        if self.error is None:
            last = self.steps[-1]
            if last.exit.how is ExitHow.NOT_STARTED:
                self.fail(GuestError(f"the program of step {last.name!r} could not be started (errno {last.exit.code})"))
                return
        status, exit_status = self.verdict()
        self.state = RunState.DONE
        self.ended_at = time.monotonic()
        self.record.event("done", status=status, exit_status=exit_status)
        self.record.close()
        self.done.set()

    def verdict(self) -> tuple[Status, int]:
        """How it ended, and the exit status that `mayfly run` gives for that. Only for a run that
        is over.
        """
        if self.error is not None or not self.steps:
            return Status.ERROR, OUR_STATUS
        last = self.steps[-1]
        if last.exit.limit is not Limit.NONE:
            return Status.LIMIT, LIMIT_STATUS
        if last.name != self.step_names[-1]:
            return Status.BUILD_FAILED, 1
        if last.exit.how is ExitHow.SIGNALED:
            return Status.SIGNAL, 128 + last.exit.code
        return (Status.FAILED if last.exit.code else Status.OK), last.exit.code & 0xFF

    def to_json(self) -> dict[str, Any]:
        """The run as `GET /runs/ID` and `POST /run` give it; phases in seconds."""
        result: dict[str, Any] = {
            "id": self.id,
            "language": self.language,
            "version": self.version,
            "state": self.state,
            "start": self.start,
            "status": None,
            "exit_status": None,
            "steps": [],
            "error": problems.as_json(self.error) if self.error else None,
            "phases": self.phases,
            "exits": dict(self.exits),
        }
        if self.done.is_set():
            result["status"], result["exit_status"] = self.verdict()
        outputs = self.outputs()
        for step in self.steps:
            stdout, stderr = outputs.get(step.name, (b"", b""))
            result["steps"].append({**step.to_json(), **_text("stdout", stdout), **_text("stderr", stderr)})
        return result

    def outputs(self) -> dict[str, tuple[bytes, bytes]]:
        """Standard output and standard error of each step that has begun, by its name."""
        found: dict[str, tuple[bytearray, bytearray]] = {}
        step = ""
        reader = Reader(self.record)
        while (piece := reader.take()) is not None:
            kind, data = piece
            if kind is Kind.EVENT:
                event = json.loads(data)
                step = event["step"] if event["event"] == "stage" else step
                continue
            found.setdefault(step, (bytearray(), bytearray()))[kind].extend(data)
        return {name: (bytes(stdout), bytes(stderr)) for name, (stdout, stderr) in found.items()}


def _text(name: str, data: bytes) -> dict[str, str]:
    """A stream in a result: `stdout` if it is UTF-8, else `stdout_base64`."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
