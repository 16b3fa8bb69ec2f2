"""A run that is over, by stages: what they put out, and how isolate(1) would say that they ended,
which Piston and Judge0 stand on.
"""

import signal
from typing import NamedTuple

from mayfly.guests.outcome import StepResult
from mayfly.protocol.frames import Exit, ExitHow, Limit, Stage, Stderr, Stdout
from mayfly.runs.record import Reader
from mayfly.runs.run import Run

REASONS = {
    Limit.WALL: "Time limit exceeded (wall clock)",
    Limit.CPU: "Time limit exceeded",
    Limit.MEMORY: "Memory limit exceeded",
    Limit.PROCESSES: "Process limit exceeded",
    Limit.FILE_SIZE: "File size limit exceeded",
}
"""What is said of a step that a limit ended."""


class Ended(NamedTuple):
    """The end of a stage as isolate's meta file has it: `status` is empty, RE (exit status), SG
    (signal), TO (time) or XX (it never ran).
    """

    status: str
    message: str
    code: int | None
    signal: int | None


class StageResult(NamedTuple):
    """A stage that is over. `output` is both streams in the order of arrival."""

    name: str
    exit: Exit
    stdout: bytes
    stderr: bytes
    output: bytes

    @property
    def ok(self) -> bool:
        """Whether it ended with exit status 0."""
        return not self.ended.status

    @property
    def ended(self) -> Ended:
        """How it ended, in isolate's words. A limit is said to have killed it."""
        return ended_of(self.exit)


def ended_of(end: Exit) -> Ended:
    """How a step ended, in isolate's words. A limit is said to have killed it."""
    code, limit = end.code, end.limit
    if end.how is ExitHow.NOT_STARTED:
        return Ended("XX", f"the program could not be started (errno {code})", None, None)
    if limit in (Limit.WALL, Limit.CPU):
        return Ended("TO", REASONS[limit], None, signal.SIGKILL)
    if limit is Limit.FILE_SIZE:
        return Ended("SG", REASONS[limit], None, signal.SIGXFSZ)
    if limit is not Limit.NONE:
        return Ended("SG", REASONS[limit], None, signal.SIGKILL)
    if end.how is ExitHow.SIGNALED:
        return Ended("SG", f"Caught fatal signal {code}", None, code)
    if code:
        return Ended("RE", f"Exited with error status {code}", code, None)
    return Ended("", "", 0, None)


def stages_of(run: Run) -> list[StageResult]:
    """The stages of a run that ended, in their order."""
    found: list[StageResult] = []
    out, err, both = bytearray(), bytearray(), bytearray()
    reader = Reader(run.record)
    while (event := reader.take()) is not None:
        match event:
            case Stage():
                out, err, both = bytearray(), bytearray(), bytearray()
            case Stdout(data):
                out += data
                both += data
            case Stderr(data):
                err += data
                both += data
            case StepResult(name, ended):
                found.append(StageResult(name, ended, bytes(out), bytes(err), bytes(both)))
    return found


def text(data: bytes) -> str:
    """Output as text, with a mark in place of what is not UTF-8."""
    return data.decode(errors="replace")
