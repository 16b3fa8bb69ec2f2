"""A submission: the runs that it takes, the verdict on them, and how it is shown."""

import datetime
import enum
import signal
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mayfly.api.compat.judge0.fields import Fields, encode
from mayfly.api.compat.stages import StageResult, stages_of
from mayfly.host.snippet import Compare
from mayfly.runs.cases import matches
from mayfly.runs.result import RunState
from mayfly.runs.run import Run
from mayfly.schema import msgspec

DEFAULT_FIELDS = ("token", "time", "memory", "stdout", "stderr", "compile_output", "message", "status")
CONTENT = ("source_code", "stdin", "expected_output", "stdout", "stderr", "compile_output")
"""Fields that may be any bytes."""
ALL_FIELDS = (
    *("source_code", "language_id", "stdin", "expected_output", "stdout", "status_id", "created_at", "finished_at", "time", "memory"),
    *("stderr", "token", "number_of_runs", "cpu_time_limit", "cpu_extra_time", "wall_time_limit", "memory_limit", "stack_limit"),
    *("max_processes_and_or_threads", "enable_per_process_and_thread_time_limit", "enable_per_process_and_thread_memory_limit"),
    *("max_file_size", "compile_output", "exit_code", "exit_signal", "message", "wall_time", "compiler_options"),
    *("command_line_arguments", "redirect_stderr_to_stdout", "callback_url", "additional_files", "enable_network", "status", "language"),
)
"""In the order of Judge0's columns."""


class Status(enum.IntEnum):
    """How far a submission is, or how it ended."""

    QUEUE = 1
    PROCESS = 2
    ACCEPTED = 3
    WRONG_ANSWER = 4
    TIME_LIMIT = 5
    COMPILATION_ERROR = 6
    SIGSEGV = 7
    SIGXFSZ = 8
    SIGFPE = 9
    SIGABRT = 10
    NZEC = 11
    OTHER = 12
    INTERNAL_ERROR = 13
    EXEC_FORMAT_ERROR = 14

    def to_json(self) -> dict[str, Any]:
        """Number and words."""
        return {"id": int(self), "description": DESCRIPTIONS[self - 1]}


DESCRIPTIONS = (
    *("In Queue", "Processing", "Accepted", "Wrong Answer", "Time Limit Exceeded", "Compilation Error"),
    *(f"Runtime Error ({why})" for why in ("SIGSEGV", "SIGXFSZ", "SIGFPE", "SIGABRT", "NZEC", "Other")),
    *("Internal Error", "Exec Format Error"),
)
SIGNALS = {
    signal.SIGSEGV: Status.SIGSEGV,
    signal.SIGXFSZ: Status.SIGXFSZ,
    signal.SIGFPE: Status.SIGFPE,
    signal.SIGABRT: Status.SIGABRT,
}


class About(msgspec.Struct, kw_only=True, tag="judge0"):
    """What a run keeps of the submission that it is: `builds` if it has a step that compiles."""

    fields: Fields
    language: dict[str, Any]
    builds: bool
    created_at: datetime.datetime


class Submission:
    """One submission. `run` is the present run, or the last one; `owner` may see it. Its first
    run has its `id`. It `builds` in the first step, if there are several.

    `content` and `values` hold what is known of its end.
    """

    def __init__(self, fields: Fields, language: dict[str, Any], owner: str, *, builds: bool) -> None:
        self.id = uuid.uuid4()
        self.fields = fields
        self.language = language
        self.owner = owner
        self.builds = builds
        self.created_at = datetime.datetime.now(datetime.UTC)
        self.finished_at: datetime.datetime | None = None
        self.status: Status | None = None
        self.run: Run | None = None
        self.content: dict[str, bytes | None] = {}
        self.values: dict[str, Any] = {}

    @classmethod
    def of(cls, run: Run) -> "Submission | None":
        """The submission that one run is, whoever took it; None if it is not one."""
        if not run.about:
            return None
        about = msgspec.msgpack.decode(run.about, type=About)
        found = cls(about.fields, about.language, run.owner, builds=about.builds)
        found.created_at = about.created_at
        found.run, found.id = run, uuid.UUID(run.id)
        if run.done.is_set():
            found._end([found._judge(run)])
            found.finished_at = about.created_at + datetime.timedelta(seconds=sum(run.phases.values()))
        return found

    @property
    def is_one_run(self) -> bool:
        """Whether one run is all of it."""
        return self.fields.numbers["number_of_runs"] == 1

    @property
    def about(self) -> bytes:
        """What its run is to keep."""
        about = About(fields=self.fields, language=self.language, builds=self.builds, created_at=self.created_at)
        return msgspec.msgpack.encode(about) if self.is_one_run else b""

    @property
    def token(self) -> str:
        """Its name."""
        return str(self.id)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, about."""
        return self.fields.size + sum(len(data) for data in self.content.values() if data)

    async def carry_out(self, first: Run, again: Callable[[], Awaitable[Run]]) -> None:
        """Judge the first run, then those that `again` starts, as many as are wished for, until one
        is not accepted.
        """
        uses: list[tuple[float, float] | None] = []
        run = first
        while True:
            self.run = run
            await run.done.wait()
            uses.append(self._judge(run))
            if self.values["status"] is not Status.ACCEPTED or len(uses) >= self.fields.numbers["number_of_runs"]:
                break
            run = await again()
        self._end(uses)

    def _end(self, of_runs: Sequence[tuple[float, float] | None]) -> None:
        if uses := [use for use in of_runs if use is not None]:
            self.values["time"] = sum(use[0] for use in uses) / len(uses)
            self.values["memory"] = sum(use[1] for use in uses) / len(uses)
        self._finish(self.values.pop("status"))

    def fail(self, message: str) -> None:
        """End it with an error of ours, unless it has ended already."""
        if self.status is None:
            self.values = {"message": message}
            self._finish(Status.INTERNAL_ERROR)

    def _finish(self, status: Status) -> None:
        self.status = status
        self.finished_at = datetime.datetime.now(datetime.UTC)
        self.run = None  # its record is kept by the service alone

    def _judge(self, run: Run) -> tuple[float, float] | None:
        """Note a run's end; its CPU seconds and KiB of memory, if its program ran."""
        stages = stages_of(run)
        self.content, self.values = {}, {}
        if run.outcome.error is not None or not stages:
            message = run.outcome.error.message if run.outcome.error else "nothing ran"
            self.values.update(status=Status.INTERNAL_ERROR, message=message)
            return None
        building = stages[0] if len(run.outcome.step_names) > 1 and self.builds else None
        if building is not None:
            self.content["compile_output"] = building.output
            if not building.ok:
                late = building.ended.status == "TO"
                self.content["compile_output"] = b"Compilation time limit exceeded." if late else building.output
                self.values["status"] = Status.COMPILATION_ERROR
                return None
        return self._judge_program(stages[-1])

    def _judge_program(self, stage: StageResult) -> tuple[float, float]:
        both = self.fields.flags["redirect_stderr_to_stdout"]
        stdout = stage.output if both else stage.stdout
        self.content.update(stdout=stdout, stderr=b"" if both else stage.stderr)
        ended, cut = stage.ended, any(stage.exit.cut)
        message, number = ended.message, ended.signal
        if cut and ended.status in ("", "RE"):  # there output is a file, and too large a file ends the program
            message, number = f"Caught fatal signal {signal.SIGXFSZ:d}", int(signal.SIGXFSZ)
        if number is not None and ended.status != "TO":
            status = SIGNALS.get(signal.Signals(number), Status.OTHER) if number in set(signal.Signals) else Status.OTHER
        else:
            reasons = {"TO": Status.TIME_LIMIT, "RE": Status.NZEC, "XX": Status.EXEC_FORMAT_ERROR}
            status = reasons.get(ended.status) or self._compare(stdout)
        self.values.update(
            status=status,
            message=message or None,
            exit_code=ended.code or 0,
            exit_signal=number,
            wall_time=stage.exit.wall_us / 1e6,
        )
        return stage.exit.cpu_us / 1e6, stage.exit.peak_memory / 1024

    def _compare(self, stdout: bytes) -> Status:
        expected = self.fields.expected_output
        if expected is None or matches(expected, stdout, Compare.TRIMMED):
            return Status.ACCEPTED
        return Status.WRONG_ANSWER

    def to_json(self, names: Sequence[str], *, encoded: bool) -> dict[str, Any]:
        """The fields of these names; contents as base64 if `encoded`.

        Raises:
            UnicodeDecodeError: a content is not text, and not to be encoded.
        """
        status = self.status or (Status.PROCESS if self.run and self.run.state is not RunState.QUEUED else Status.QUEUE)
        values = self.values if self.status is not None else {}
        content = self.content if self.status is not None else {}
        asked = self.fields
        given = {"source_code": asked.source_code, "stdin": asked.stdin, "expected_output": asked.expected_output}
        found: dict[str, Any] = {
            **asked.to_json(),
            **dict.fromkeys(("exit_code", "exit_signal", "message", "time", "wall_time", "memory")),
            **values,
            "token": self.token,
            "status_id": int(status),
            "status": status.to_json(),
            "language": self.language,
            "created_at": _time(self.created_at),
            "finished_at": self.finished_at and _time(self.finished_at),
        }
        for name in ("time", "wall_time"):
            found[name] = None if found[name] is None else str(round(found[name], 3))
        found["memory"] = None if found["memory"] is None else int(found["memory"])
        if encoded and found["message"] is not None:
            found["message"] = encode(found["message"].encode())
        return {name: _shown((given | content).get(name), name, encoded) if name in CONTENT else found[name] for name in names}


def _shown(data: bytes | None, name: str, encoded: bool) -> str | None:
    """A content; output that is empty is as none."""
    if data is None or (not data and name not in ("source_code", "stdin", "expected_output")):
        return None
    return encode(data) if encoded else data.decode()


def _time(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
