"""What `mayfly run` says of a step's end."""

import pytest

from mayfly.cli.run import explain
from mayfly.guests.outcome import Outcome, StepResult, signal_name
from mayfly.protocol.frames import Exit, ExitHow, Limit
from mayfly.runs.result import describe_end


def ended(how: ExitHow, code: int, limit: Limit = Limit.NONE) -> Outcome:
    outcome = Outcome(("build", "run"))
    outcome.steps.append(StepResult("run", Exit(1, how, code, limit, 1_500_000, 0, 0, (False, False))))
    return outcome


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (ended(ExitHow.SIGNALED, 11), "mayfly: step run: ended by SIGSEGV: Segmentation fault\n"),
        (ended(ExitHow.SIGNALED, 6), "mayfly: step run: ended by SIGABRT: Aborted\n"),
        (ended(ExitHow.SIGNALED, 9, Limit.MEMORY), "mayfly: step run: ended by its memory limit after 1.5 s\n"),
        (ended(ExitHow.EXITED, 3), ""),
    ],
)
def test_a_signal_is_named(outcome: Outcome, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    explain(outcome, 1)
    assert capsys.readouterr() == ("", said)


def test_every_signal_has_a_name() -> None:
    assert signal_name(40).startswith("signal 40: ")
    assert all(signal_name(number) for number in range(1, 65))
    result = describe_end(ended(ExitHow.SIGNALED, 11).steps[0])
    assert (result["signal"], result["signal_name"]) == (11, "SIGSEGV: Segmentation fault")
