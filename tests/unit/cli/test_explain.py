"""What `mayfly run` says of a step's end."""

import pytest

from mayfly.cli.ending import explain
from mayfly.errors import HostError
from mayfly.exit_status import LIMIT_STATUS
from mayfly.guests.outcome import StepResult, signal_name
from mayfly.protocol.frames import Exit, ExitHow, Limit
from mayfly.runs.result import describe_end


def ended(how: ExitHow, code: int, limit: Limit = Limit.NONE, cut: tuple[bool, bool] = (False, False)) -> StepResult:
    return StepResult("run", Exit(1, how, code, limit, 1_500_000, 0, 0, cut))


@pytest.mark.parametrize(
    ("step", "status", "said"),
    [
        (ended(ExitHow.SIGNALED, 11), 139, "mayfly: step run: ended by SIGSEGV: Segmentation fault\n"),
        (ended(ExitHow.SIGNALED, 6), 134, "mayfly: step run: ended by SIGABRT: Aborted\n"),
        (ended(ExitHow.SIGNALED, 9, Limit.MEMORY), LIMIT_STATUS, "mayfly: step run: ended by its memory limit after 1.5 s\n"),
        (ended(ExitHow.SIGNALED, 9, Limit.FILE_SIZE), LIMIT_STATUS, "mayfly: step run: ended by its file size limit after 1.5 s\n"),
        (ended(ExitHow.EXITED, 3), 3, ""),
        (ended(ExitHow.EXITED, 0, cut=(False, True)), 0, "mayfly: step run: stderr was cut at its limit\n"),
    ],
)
def test_an_end_is_named(step: StepResult, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    explain([describe_end(step)], status, 1)
    assert capsys.readouterr() == ("", said)


def test_the_factor_of_times_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    explain([describe_end(ended(ExitHow.SIGNALED, 9, Limit.WALL))], LIMIT_STATUS, 5)
    assert capsys.readouterr().err == "mayfly: step run: ended by its wall limit after 1.5 s (times are multiplied by 5 on this host)\n"


def test_an_error_of_ours_stands_for_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    explain([describe_end(ended(ExitHow.SIGNALED, 9))], 125, 1, HostError("no room", hint="wait"))
    explain([], 125, 1)
    assert capsys.readouterr().err == "mayfly: no room\n  hint: wait\n"


def test_every_signal_has_a_name() -> None:
    assert signal_name(40).startswith("signal 40: ")
    assert all(signal_name(number) for number in range(1, 65))
    result = describe_end(ended(ExitHow.SIGNALED, 11))
    assert (result["signal"], result["signal_name"]) == (11, "SIGSEGV: Segmentation fault")
