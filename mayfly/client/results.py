"""What a server answers, typed. Fields that a newer server adds are left out."""

from collections.abc import Mapping
from typing import Any, Self, TypeAlias

import msgspec

from mayfly.errors import MayflyError, from_wire


class _Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended: one of `code`, `signal` and `errno` (it never started) is set. `limit`
    names the limit that ended it. Milliseconds and bytes.
    """

    code: int | None = None
    signal: int | None = None
    signal_name: str | None = None
    errno: int | None = None
    limit: str | None = None
    wall_ms: float | None = None
    cpu_ms: float | None = None
    peak_memory: int | None = None
    stdout_truncated: bool = False
    stderr_truncated: bool = False


class _Streams(_Ended, frozen=True, kw_only=True):
    """Both streams of a program; the server gives each as text, or as base64 if it is not UTF-8."""

    out_text: str = msgspec.field(name="stdout", default="")
    out_bytes: bytes | None = msgspec.field(name="stdout_base64", default=None)
    err_text: str = msgspec.field(name="stderr", default="")
    err_bytes: bytes | None = msgspec.field(name="stderr_base64", default=None)

    @property
    def stdout(self) -> str:
        """Standard output; bytes that are not UTF-8 become U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error; bytes that are not UTF-8 become U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def stdout_bytes(self) -> bytes:
        """Standard output as it came."""
        return self.out_text.encode() if self.out_bytes is None else self.out_bytes

    @property
    def stderr_bytes(self) -> bytes:
        """Standard error as it came."""
        return self.err_text.encode() if self.err_bytes is None else self.err_bytes


class StepOutput(_Streams, frozen=True, kw_only=True):
    """A step of a run, such as `build` or `run`."""

    step: str


class CaseOutput(_Streams, frozen=True, kw_only=True):
    """What became of one case. `verdict`: passed, wrong_answer, failed, signal, limit, error,
    skipped.
    """

    index: int
    name: str | None = None
    verdict: str

    @property
    def passed(self) -> bool:
        """Whether the program did as expected."""
        return self.verdict == "passed"


class CasesOutput(msgspec.Struct, frozen=True, kw_only=True):
    """All cases, by index. `parallel`: on so many machines."""

    parallel: int = 1
    passed: int = 0
    results: tuple[CaseOutput, ...] = ()


class _Encoded(msgspec.Struct, frozen=True):
    base64: bytes


class TestOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A test of the profile `test`. `outcome` is passed, failed, skipped, error or timeout."""

    __test__ = False  # pytest takes it for tests of its own

    name: str
    outcome: str
    message: str = ""
    wall_ms: float | None = None
    output: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A run, ended or as far as it is. `status` is None until its end, then: ok, failed, signal,
    limit, build_failed, error. `phases` are seconds. `moved_to` is the server where it goes on, or
    ended, if that is another one; `forked_from` is the id of the run whose clone it is.
    """

    id: str
    language: str
    version: str
    state: str
    status: str | None = None
    exit_status: int | None = None
    steps: tuple[StepOutput, ...] = ()
    problem: dict[str, Any] | None = msgspec.field(name="error", default=None)
    phases: Mapping[str, float] = {}
    exits: Mapping[str, int] = {}
    forked_from: str | None = None
    moved_to: str | None = None
    cases: CasesOutput | None = None
    tests: tuple[TestOutput, ...] = ()
    collected: Mapping[str, _Encoded] = msgspec.field(name="files", default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it was built and the program exited with 0, in every case."""
        return self.status == "ok"

    @property
    def stdout(self) -> str:
        """The program's standard output; empty if it did not run."""
        return self._program.stdout if self._program else ""

    @property
    def stderr(self) -> str:
        """The standard error of the step that ran last: the compiler's if building failed."""
        return self.steps[-1].stderr if self.steps else ""

    @property
    def error(self) -> MayflyError | None:
        """Why Mayfly, not the program, failed."""
        return error_of(self.problem) if self.problem else None

    @property
    def files(self) -> dict[str, bytes]:
        """The files that `collect` asked for, by their names in the working folder."""
        return {name: content.base64 for name, content in self.collected.items()}

    @property
    def _program(self) -> StepOutput | None:
        return self.steps[-1] if self.steps and self.status != "build_failed" else None

    def check(self) -> Self:
        """The result itself, if all went well.

        Raises:
            RunFailedError: it did not.
        """
        if not self.ok:
            raise RunFailedError(self)
        return self


class RunFailedError(Exception):
    """A run did not end well; `result` says how."""

    def __init__(self, result: Result) -> None:
        cause = result.error.message if result.error else result.stderr.strip()[-2000:]
        super().__init__(f"the run ended with {result.status} ({result.exit_status}){': ' if cause else ''}{cause}")
        self.result = result


class LanguageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A language that a server runs."""

    language: str
    version: str
    default: bool = False
    compiler: str = ""
    extensions: tuple[str, ...] = ()
    source_file: str = ""
    steps: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()


class FunctionResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a function answered.

    Attributes:
        request_id: what the server calls the request.
        status: `ok`, or `exception` if the function raised one; the payload then describes it.
        start: how its guest came to be: `cold`, `restored` or `warm`.
        duration_s: for how long the function ran.
        queued_s: for how long the request waited for a guest.
    """

    request_id: str
    status: str
    content_type: str
    payload: bytes
    start: str = ""
    duration_s: float = 0.0
    queued_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the function returned without an exception."""
        return self.status == "ok"

    @property
    def text(self) -> str:
        """The payload; bytes that are not UTF-8 become U+FFFD."""
        return self.payload.decode(errors="replace")

    def json(self) -> Any:
        """What the payload means as JSON.

        Raises:
            ValueError: it is none.
        """
        return msgspec.json.decode(self.payload)


class FunctionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A function that a server has."""

    name: str
    language: str = ""


class FunctionStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a server has counted of its functions since it started.

    Attributes:
        memory: bytes that guests may have together.
        guests_created: guests that were booted or restored.
        guests_evicted: those that were ended to make room for another function's.
        completed: requests that were answered.
        dropped: those for which there was no room.
    """

    memory: int = 0
    guests_created: int = 0
    guests_evicted: int = 0
    completed: int = 0
    dropped: int = 0


class FunctionList(msgspec.Struct, frozen=True, kw_only=True):
    """The functions of a server."""

    functions: tuple[FunctionInfo, ...] = ()
    statistics: FunctionStatistics | None = None


class StageEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="stage"):
    """The program of a step starts."""

    step: str


class _Piece(msgspec.Struct, frozen=True, kw_only=True):
    text: str = msgspec.field(name="data", default="")
    base64: bytes | None = None

    @property
    def data(self) -> bytes:
        """The bytes."""
        return self.text.encode() if self.base64 is None else self.base64


class StdoutEvent(_Piece, frozen=True, kw_only=True, tag_field="event", tag="stdout"):
    """A piece of standard output."""


class StderrEvent(_Piece, frozen=True, kw_only=True, tag_field="event", tag="stderr"):
    """A piece of standard error."""


class ExitEvent(_Ended, frozen=True, kw_only=True, tag_field="event", tag="exit"):
    """A step has ended."""

    step: str


class CaseEvent(CaseOutput, frozen=True, kw_only=True, tag_field="event", tag="case"):
    """A case is done."""


class AttemptEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="attempt"):
    """The run begins again on another host; what came before counts for nothing."""

    attempt: int
    reason: str = ""


class RestoredEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="restored"):
    """The machine was lost, and the run goes on from what was saved of it: output behind the event
    with the id `after` counts for nothing, and comes again.
    """

    reason: str = ""
    after: str = ""


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """Mayfly or the machine failed, or the run was ended."""

    problem: dict[str, Any] = msgspec.field(name="error")

    @property
    def error(self) -> MayflyError:
        """What failed."""
        return error_of(self.problem)


class DoneEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The run is over; always the last event."""

    status: str
    exit_status: int
    result: Result | None = None


RunClientEvent: TypeAlias = (
    StageEvent | StdoutEvent | StderrEvent | ExitEvent | CaseEvent | AttemptEvent | RestoredEvent | ErrorEvent | DoneEvent
)


class _Known(msgspec.Struct):
    event: str = ""
    id: str = ""


_KINDS = {"stage", "stdout", "stderr", "exit", "case", "attempt", "restored", "error", "done"}


def decode_event(line: bytes | str) -> tuple[str, RunClientEvent | None]:
    """The id and the event in a line of JSON; None for a kind that this client does not know.

    Raises:
        msgspec.DecodeError: it is no event.
    """
    known = msgspec.json.decode(line, type=_Known)
    return known.id, msgspec.json.decode(line, type=RunClientEvent) if known.event in _KINDS else None


def error_of(fields: Mapping[str, Any]) -> MayflyError:
    """The error that a server described; of the root's class if a newer server knows more kinds."""
    try:
        return from_wire(fields)
    except ValueError:
        error = MayflyError(str(fields.get("message", "the server failed")), hint=str(fields.get("hint", "")))
        error.code = str(fields.get("code", error.code))  # type: ignore[misc]  # this one's own
        return error
