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
from typing import Any

from mayfly.api import problems
from mayfly.errors import MayflyError
from mayfly.guests.outcome import Outcome
from mayfly.guests.start import StartKind
from mayfly.protocol.conversation import Event
from mayfly.protocol.frames import Done, Exit, Hello, Stage, Stderr, Stdout
from mayfly.runs.record import Kind, Mode, Reader, Record


class RunState(enum.StrEnum):
    """How far a run is."""

    QUEUED = "queued"
    BOOTING = "booting"
    RUNNING = "running"
    DONE = "done"


class Run:
    """One run. `outcome` grows while it is under way; `step_names` are the steps of its job."""

    def __init__(self, *, language: str, version: str, mode: Mode, step_names: tuple[str, ...]) -> None:
        self.id = os.urandom(16).hex()
        self.language = language
        self.version = version
        self.mode = mode
        self.state = RunState.QUEUED
        self.start: StartKind | None = None
        self.record = Record()
        self.outcome = Outcome(step_names)
        self.phases: dict[str, float] = {}
        self.exits: Mapping[str, int] = {}
        self.done = asyncio.Event()
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
        self.outcome.note(event)
        match event:
            case Stage():
                self.record.event("stage", step=event.name)
            case Stdout():
                self.record.output(Kind.STDOUT, event.data)
            case Stderr():
                self.record.output(Kind.STDERR, event.data)
            case Exit():
                result = self.outcome.steps[-1]
                self.phases[result.name] = event.wall_us / 1e6
                self.record.event("exit", **result.to_json())
            case Done():
                self.lap("steps")
                self._finish()

    def fail(self, error: MayflyError) -> None:
        """End it with an error, unless it has ended already."""
        if not self.done.is_set():
            self.outcome.error = error
            self._finish()

    def _finish(self) -> None:
        if self.outcome.error is not None:
            self.record.event("error", error=problems.as_json(self.outcome.error))
        status, exit_status = self.outcome.verdict()
        self.state = RunState.DONE
        self.ended_at = time.monotonic()
        self.record.event("done", status=status, exit_status=exit_status)
        self.record.close()
        self.done.set()

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
            "error": problems.as_json(self.outcome.error) if self.outcome.error else None,
            "phases": self.phases,
            "exits": dict(self.exits),
        }
        if self.done.is_set():
            result["status"], result["exit_status"] = self.outcome.verdict()
        outputs = self.outputs()
        for step in self.outcome.steps:
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
