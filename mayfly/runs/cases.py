"""The cases of a run: one program, many inputs, a verdict on each."""

import dataclasses
import enum
from collections.abc import Callable, Sequence

from mayfly.errors import MayflyError
from mayfly.guests.outcome import Outcome, Status, StepResult, Verdict
from mayfly.host.snippet import Case, Compare
from mayfly.protocol.conversation import Event
from mayfly.protocol.frames import Stderr, Stdout
from mayfly.schema import Record

KEPT_OF_STREAM = 256 << 10
"""Bytes that are kept of a case's standard output, and as many of its standard error, at most."""
KEPT = 16 << 20
"""Bytes that are kept of the output of all cases of a run."""


def matches(expected: bytes, found: bytes, how: Compare) -> bool:
    """Whether a program's output is what was expected of it."""
    if expected == found:
        return True
    match how:
        case Compare.EXACT:
            return False
        case Compare.TRIMMED:
            return _trimmed(expected) == _trimmed(found)
        case Compare.TOKENS:
            return expected.split() == found.split()


def _trimmed(text: bytes) -> bytes:
    return b"\n".join(line.rstrip() for line in text.rstrip().split(b"\n"))


class CaseVerdict(enum.StrEnum):
    """What is said of a case."""

    PASSED = "passed"
    WRONG_ANSWER = "wrong_answer"
    FAILED = "failed"
    SIGNAL = "signal"
    LIMIT = "limit"
    ERROR = "error"
    SKIPPED = "skipped"


_VERDICTS = {Status.FAILED: CaseVerdict.FAILED, Status.SIGNAL: CaseVerdict.SIGNAL, Status.LIMIT: CaseVerdict.LIMIT}


class CaseResult(Record, frozen=True, kw_only=True):
    """How a case ended: `step` is None where its program did not run, or its end is not known."""

    index: int
    name: str
    verdict: CaseVerdict
    step: StepResult | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    error: MayflyError | None = None


class Trial:
    """What the program does with one case; a listener of `converse`. Holds as much of its output as
    the step's limit allows.
    """

    def __init__(self, index: int, case: Case, step_name: str) -> None:
        self._index = index
        self._case = case
        self._outcome = Outcome((step_name,))
        self._output = {Stdout: bytearray(), Stderr: bytearray()}

    def note(self, event: Event) -> None:
        """Take what the conversation brings."""
        self._outcome.note(event)
        if isinstance(event, Stdout | Stderr):
            self._output[type(event)] += event.data

    def result(self, kept: int, error: MayflyError | None = None) -> CaseResult:
        """The verdict, and the first `kept` bytes of each stream. `error` is why its end is not
        known.
        """
        step = self._outcome.steps[-1] if self._outcome.steps else None
        error = error or self._outcome.error
        stdout, stderr = (bytes(stream[:kept]) for stream in self._output.values())
        if step is not None:
            out, err = (was or len(stream) > kept for was, stream in zip(step.exit.cut, self._output.values(), strict=True))
            step = step._replace(exit=dataclasses.replace(step.exit, cut=(out, err)))
        return CaseResult(
            index=self._index,
            name=self._case.name,
            verdict=self._verdict(error),
            step=step,
            stdout=stdout,
            stderr=stderr,
            error=error,
        )

    def _verdict(self, error: MayflyError | None) -> CaseVerdict:
        if error is not None:
            return CaseVerdict.ERROR
        status = self._outcome.verdict().status
        if status is not Status.OK:
            return _VERDICTS[status]
        expected = self._case.expected_stdout
        cut = self._outcome.steps[-1].exit.cut[0]  # there was more
        right = expected is None or (not cut and matches(expected, bytes(self._output[Stdout]), self._case.compare))
        return CaseVerdict.PASSED if right else CaseVerdict.WRONG_ANSWER


class Cases:
    """The cases of a run and their results. They are given out in their order, to one guest or to
    many, and `tell` is told of each when it is done.

    With `stop` the first one that does not pass is the last: those behind it are skipped, whatever
    other guests have made of them meanwhile, so that the result is the same with any number of
    guests. `tell` is told in their order then.

    Attributes:
        parallel: the most guests that have done cases at a time.
        kept: bytes that are kept of each stream of a case.
        results: of those that are done, in the order of their telling.
    """

    def __init__(self, cases: Sequence[Case], *, stop: bool, tell: Callable[[CaseResult], None]) -> None:
        self.all = tuple(cases)
        self.parallel = 0
        self.kept = min(KEPT_OF_STREAM, KEPT // (2 * len(cases)))
        self.results: list[CaseResult] = []
        self._stop = stop
        self._tell = tell
        self._next = 0
        self._held: dict[int, CaseResult] = {}
        self._failed = False

    @property
    def left(self) -> int:
        """How many are still to be given out."""
        return 0 if self._stop and self._failed else len(self.all) - self._next

    @property
    def error(self) -> MayflyError | None:
        """Why the first one whose end is not known has none."""
        return next((result.error for result in self.results if result.error), None)

    def take(self) -> int | None:
        """The index of the next one to be done; None if there is none."""
        if not self.left:
            return None
        self._next += 1
        return self._next - 1

    def add(self, result: CaseResult) -> None:
        """One is done."""
        self._failed |= result.verdict is not CaseVerdict.PASSED
        self._held[result.index] = result
        if not self._stop:
            return self._say(result.index)
        while len(self.results) in self._held and not self._is_over():
            self._say(len(self.results))
        return None

    def _is_over(self) -> bool:
        return bool(self.results) and self.results[-1].verdict is not CaseVerdict.PASSED

    def _say(self, index: int) -> None:
        self.results.append(self._held.pop(index))
        self._tell(self.results[-1])

    def end(self, error: MayflyError | None = None) -> None:
        """No more will be done: those that are not are skipped, or failed by `error`."""
        while error and (index := self.take()) is not None:
            self.add(CaseResult(index=index, name=self.all[index].name, verdict=CaseVerdict.ERROR, error=error))
        done = {result.index for result in self.results}
        for index, case in enumerate(self.all):
            if index not in done:
                self._held[index] = CaseResult(index=index, name=case.name, verdict=CaseVerdict.SKIPPED)
                self._say(index)

    def verdict(self) -> Verdict:
        """What is said of all of them together, when they are done."""
        return Verdict(Status.OK, 0) if self.passed == len(self.all) else Verdict(Status.FAILED, 1)

    @property
    def passed(self) -> int:
        """How many of them passed so far."""
        return sum(result.verdict is CaseVerdict.PASSED for result in self.results)
