"""What clients get of a run: its result, and its events. JSON and openapi.json are made of these
types.

Fields are added to them in time, so a client must ignore those that it does not know.
"""

import base64
import enum
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mayfly.errors import MayflyError, to_wire
from mayfly.guests.outcome import Status, StepResult, Verdict, signal_name
from mayfly.guests.start import StartKind
from mayfly.protocol.conversation import Failed
from mayfly.protocol.frames import ExitHow, Limit, Stage, Stderr, Stdout
from mayfly.runs.cases import CaseResult, Cases, CaseVerdict
from mayfly.runs.files import Files
from mayfly.runs.record import START, Attempt, Position, Restored, RunEvent

LimitName: TypeAlias = Literal["wall", "cpu", "memory", "processes", "file_size"]
Base64 = Annotated[str, Meta(description="in place of text, of bytes that are not UTF-8")]


class RunState(enum.StrEnum):
    """How far a run is."""

    QUEUED = "queued"
    BOOTING = "booting"
    RUNNING = "running"
    DONE = "done"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error. The fields behind `hint` are details that some codes have."""

    code: str
    message: str
    hint: str
    console: str | UnsetType = UNSET
    ioctl: str | UnsetType = UNSET
    errno: int | UnsetType = UNSET
    retry_after_s: int | UnsetType = UNSET
    resource: str | UnsetType = UNSET
    log: str | UnsetType = UNSET
    output: str | UnsetType = UNSET

    @classmethod
    def of(cls, error: MayflyError) -> "Problem":
        """The error as clients get it."""
        return cls(**to_wire(error))


class StepEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a step ended. One of `code`, `signal` and `errno` (it never started) is not null. Times
    are milliseconds, memory is bytes.
    """

    step: str
    code: int | None
    signal: int | None
    signal_name: str | None
    errno: int | None
    limit: Annotated[LimitName | None, Meta(description="the limit that ended it")]
    wall_ms: float
    cpu_ms: float
    peak_memory: int
    stdout_truncated: bool
    stderr_truncated: bool


class Step(StepEnd, frozen=True, kw_only=True):
    """A step in a result: how it ended, and what it put out."""

    stdout: str | UnsetType = UNSET
    stdout_base64: Base64 | UnsetType = UNSET
    stderr: str | UnsetType = UNSET
    stderr_base64: Base64 | UnsetType = UNSET


class CaseReport(msgspec.Struct, frozen=True, kw_only=True):
    """A case: the verdict on it, how the program ended, and what it put out. The fields of the end
    are there if the program ran to an end that is known.
    """

    index: int
    name: str
    verdict: CaseVerdict
    step: str | UnsetType = UNSET
    code: int | UnsetType | None = UNSET
    signal: int | UnsetType | None = UNSET
    signal_name: str | UnsetType | None = UNSET
    errno: int | UnsetType | None = UNSET
    limit: LimitName | UnsetType | None = UNSET
    wall_ms: float | UnsetType = UNSET
    cpu_ms: float | UnsetType = UNSET
    peak_memory: int | UnsetType = UNSET
    stdout_truncated: bool | UnsetType = UNSET
    stderr_truncated: bool | UnsetType = UNSET
    error: Problem | UnsetType = UNSET
    stdout: str | UnsetType = UNSET
    stdout_base64: Base64 | UnsetType = UNSET
    stderr: str | UnsetType = UNSET
    stderr_base64: Base64 | UnsetType = UNSET


class CasesReport(msgspec.Struct, frozen=True, kw_only=True):
    """The cases that are done, and how many guests have done them at a time."""

    parallel: int
    passed: int
    results: Sequence[CaseReport]


class TestReport(msgspec.Struct, frozen=True, kw_only=True):
    """A test: how it went, what it says of that, and what it put out. One that did not come to its
    end is an error, or a timeout if a limit of time ended it.
    """

    name: str
    outcome: Literal["passed", "failed", "skipped", "error", "timeout"]
    message: str
    wall_ms: float | None
    output: str


class FileContent(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a program left."""

    base64: str


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is, or how it ended."""

    id: str
    language: str
    version: str
    state: RunState
    start: StartKind | None
    status: Status | None
    exit_status: int | None
    steps: Sequence[Step]
    error: Problem | None
    phases: Annotated[Mapping[str, float], Meta(description="seconds by phase")]
    exits: Annotated[Mapping[str, int], Meta(description="returns to the machine monitor, by reason")]
    forked_from: Annotated[str, Meta(description="the run whose clone it is")] | UnsetType = UNSET
    moved_to: Annotated[str, Meta(description="the server where it goes on, or ended")] | UnsetType = UNSET
    cases: CasesReport | UnsetType = UNSET
    tests: Annotated[Sequence[TestReport], Meta(description="of the profile test; empty if they could not be built")] | UnsetType = UNSET
    files: Annotated[Mapping[str, FileContent], Meta(description="what was collected, by relative name")] | UnsetType = UNSET
    files_error: Annotated[Problem, Meta(description="why there are none")] | UnsetType = UNSET


EventId = Annotated[str, Meta(description="names the place behind the event; only over HTTP")]


class StageEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="stage"):
    """A step's program starts."""

    id: EventId | UnsetType = UNSET
    step: str


class OutputEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Bytes of a program's output."""

    id: EventId | UnsetType = UNSET
    data: str | UnsetType = UNSET
    base64: Base64 | UnsetType = UNSET


class StdoutEvent(OutputEvent, frozen=True, kw_only=True, tag="stdout"):
    """Standard output."""


class StderrEvent(OutputEvent, frozen=True, kw_only=True, tag="stderr"):
    """Standard error."""


class ExitEvent(StepEnd, frozen=True, kw_only=True, tag_field="event", tag="exit"):
    """A step has ended."""

    id: EventId | UnsetType = UNSET


class CaseEvent(CaseReport, frozen=True, kw_only=True, tag_field="event", tag="case"):
    """A case is done."""

    id: EventId | UnsetType = UNSET


class AttemptEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="attempt"):
    """The run begins again on another host of the fleet: what came before counts for nothing."""

    id: EventId | UnsetType = UNSET
    attempt: int
    reason: str


class RestoredEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="restored"):
    """The run's machine, or its server, was lost, and the run goes on from what was saved of it."""

    id: EventId | UnsetType = UNSET
    reason: str
    after: Annotated[str, Meta(description="id of the event behind which output counts for nothing, and comes again; empty: all")]


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """Mayfly or the machine failed, or the run was ended."""

    id: EventId | UnsetType = UNSET
    error: Problem


class DoneEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The last event of a run."""

    id: EventId | UnsetType = UNSET
    status: Status
    exit_status: int
    result: Annotated[RunResult, Meta(description="of `POST /run?stream=`")] | UnsetType = UNSET


AnyEvent: TypeAlias = StageEvent | StdoutEvent | StderrEvent | ExitEvent | CaseEvent | AttemptEvent | RestoredEvent | ErrorEvent | DoneEvent


def id_of(position: Position, life: int = 0) -> str:
    """The id of the event in front of a position, of a record that is not the run's first one but
    has `life` before it.
    """
    return "" if position == START else f"{position.span}-{position.offset}" + (f".{life}" if life else "")


def describe(event: RunEvent) -> AnyEvent:
    """The event as clients get it."""
    match event:
        case Stage():
            return StageEvent(step=event.name)
        case Stdout():
            return StdoutEvent(**encode("data", "base64", event.data))
        case Stderr():
            return StderrEvent(**encode("data", "base64", event.data))
        case StepResult():
            return ExitEvent(**describe_end(event))
        case CaseResult():
            return CaseEvent(**_case_fields(event))
        case Attempt():
            return AttemptEvent(attempt=event.number, reason=event.reason)
        case Restored():
            return RestoredEvent(reason=event.reason, after=id_of(event.mark.position))
        case Failed():
            return ErrorEvent(error=Problem.of(event.error))
        case Verdict():
            return DoneEvent(status=event.status, exit_status=event.exit_status)


def describe_step(result: StepResult, stdout: bytes, stderr: bytes) -> Step:
    """A step as a result has it."""
    return Step(**(describe_end(result) | _output_fields(stdout, stderr)))


def describe_cases(cases: Cases) -> CasesReport:
    """The cases as a result has them."""
    results = sorted(cases.results, key=lambda result: result.index)
    return CasesReport(parallel=cases.parallel, passed=cases.passed, results=[CaseReport(**_case_fields(result)) for result in results])


def describe_files(files: Files) -> dict[str, Any]:
    """The fields of a RunResult about files."""
    contents = {name: FileContent(base64=base64.b64encode(left.data).decode()) for name, left in files.by_name.items()}
    return {"files": contents, "files_error": UNSET if files.error is None else Problem.of(files.error)}


def _case_fields(result: CaseResult) -> dict[str, Any]:
    fields: dict[str, Any] = {"index": result.index, "name": result.name, "verdict": result.verdict}
    if result.step is not None:
        fields |= describe_end(result.step)
    if result.error is not None:
        fields["error"] = Problem.of(result.error)
    return fields | _output_fields(result.stdout, result.stderr)


def _output_fields(stdout: bytes, stderr: bytes) -> dict[str, str]:
    return encode("stdout", "stdout_base64", stdout) | encode("stderr", "stderr_base64", stderr)


def describe_end(result: StepResult) -> dict[str, Any]:
    """The fields of a StepEnd."""
    ended = result.exit
    return {
        "step": result.name,
        "code": ended.code if ended.how is ExitHow.EXITED else None,
        "signal": ended.code if ended.how is ExitHow.SIGNALED else None,
        "signal_name": signal_name(ended.code) if ended.how is ExitHow.SIGNALED else None,
        "errno": ended.code if ended.how is ExitHow.NOT_STARTED else None,
        "limit": None if ended.limit is Limit.NONE else ended.limit.name.lower(),
        "wall_ms": round(ended.wall_us / 1000, 3),
        "cpu_ms": round(ended.cpu_us / 1000, 3),
        "peak_memory": ended.peak_memory,
        "stdout_truncated": ended.cut[0],
        "stderr_truncated": ended.cut[1],
    }


def encode(text: str, encoded: str, data: bytes) -> dict[str, str]:
    """`data` as the field `text` if it is UTF-8, else as the field `encoded`."""
    try:
        return {text: data.decode()}
    except UnicodeDecodeError:
        return {encoded: base64.b64encode(data).decode()}
