"""How a job ended: its steps, and the verdict on them."""

import enum
import signal
from typing import NamedTuple

from mayfly.errors import GuestError, MayflyError
from mayfly.exit_status import LIMIT_STATUS, OUR_STATUS
from mayfly.protocol.conversation import Event, Failed
from mayfly.protocol.frames import Done, Exit, ExitHow, Limit, Stderr, Stdout


class Status(enum.StrEnum):
    """How a job ended, in a word."""

    OK = "ok"
    FAILED = "failed"
    SIGNAL = "signal"
    LIMIT = "limit"
    BUILD_FAILED = "build_failed"
    ERROR = "error"


def signal_name(number: int) -> str:
    """A signal's name and what a shell says of it: `SIGSEGV: Segmentation fault`."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal between the first and the last
        name = f"signal {number}"
    return f"{name}: {signal.strsignal(number) or 'unknown'}"


class StepResult(NamedTuple):
    """How one step ended."""

    name: str
    exit: Exit

    @property
    def good(self) -> bool:
        """Whether the next step is done."""
        return self.exit.how is ExitHow.EXITED and self.exit.code == 0 and self.exit.limit is Limit.NONE


class Verdict(NamedTuple):
    """How a job ended in a word, and the exit status that `mayfly run` gives for that."""

    status: Status
    exit_status: int


class Outcome:
    """What becomes of a job; a listener of `converse`.

    `step_names` are the job's steps: the last one is the program itself, the ones before build it.
    `tail` holds the last `kept` bytes of all output, for a message.
    """

    def __init__(self, step_names: tuple[str, ...], *, kept: int = 0) -> None:
        self.step_names = step_names
        self.steps: list[StepResult] = []
        self.error: MayflyError | None = None
        self.tail = b""
        self._kept = kept

    def note(self, event: Event) -> None:
        """Take what the conversation brings."""
        match event:
            case Stdout() | Stderr():
                if self._kept:
                    self.tail = (self.tail + event.data)[-self._kept :]
            case Exit():
                self.steps.append(StepResult(self.step_names[event.step], event))
            case Done():
                last = self.steps[-1] if self.steps else None
                if last and last.exit.how is ExitHow.NOT_STARTED:
                    self.error = GuestError(f"the program of step {last.name!r} could not be started (errno {last.exit.code})")
            case Failed():
                self.error = event.error

    @property
    def built(self) -> bool:
        """Whether of its steps all but the program itself have been done, and well."""
        return self.error is None and len(self.steps) == len(self.step_names) - 1 and all(step.good for step in self.steps)

    def verdict(self) -> Verdict:
        """How it ended. Only for a job that is over."""
        if self.error is not None or not self.steps:
            return Verdict(Status.ERROR, OUR_STATUS)
        last = self.steps[-1]
        if last.exit.limit is not Limit.NONE:
            return Verdict(Status.LIMIT, LIMIT_STATUS)
        if last.name != self.step_names[-1]:
            return Verdict(Status.BUILD_FAILED, 1)
        if last.exit.how is ExitHow.SIGNALED:
            return Verdict(Status.SIGNAL, 128 + last.exit.code)
        return Verdict(Status.FAILED if last.exit.code else Status.OK, last.exit.code & 0xFF)

    def failure(self) -> str:
        """How a job that is over failed, with the end of its output; empty if it did not."""
        if self.verdict().status is Status.OK:
            return ""
        ended = self.steps[-1].exit
        limit = "" if ended.limit is Limit.NONE else f", limit {ended.limit.name.lower()}"
        said = self.tail.decode(errors="replace").rstrip()
        return f"failed ({ended.how.name.lower().replace('_', ' ')} {ended.code}{limit}); it said:\n{said}"
