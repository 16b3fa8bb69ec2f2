"""What clients get of a run has a place for everything that there is to say."""

import typing

import msgspec
import pytest

from mayfly.errors import BusyError, GuestError, KvmError, MayflyError, kinds, to_wire
from mayfly.guests.outcome import StepResult
from mayfly.protocol.frames import Exit, ExitHow, Limit
from mayfly.runs.result import LimitName, Problem, StepEnd, describe_end


def test_a_problem_has_every_detail_of_every_error() -> None:
    details = {name: kind for error in kinds() if error.__module__.startswith("mayfly.") for name, kind in error.details.items()}
    fields = {field.name: field.type for field in msgspec.structs.fields(Problem)}
    assert list(fields) == ["code", "message", "hint", *sorted(details, key=list(fields).index)]
    for name, kind in details.items():
        assert kind in typing.get_args(fields[name])


@pytest.mark.parametrize("error", [BusyError("no room"), KvmError("KVM_RUN", 14), GuestError("it crashed", console="Kernel panic")])
def test_a_problem_is_what_goes_over_a_wire(error: MayflyError) -> None:
    assert msgspec.to_builtins(Problem.of(error)) == to_wire(error)


@pytest.mark.parametrize("how", ExitHow)
@pytest.mark.parametrize("limit", Limit)
def test_every_end_of_a_step_can_be_said(how: ExitHow, limit: Limit) -> None:
    fields = describe_end(StepResult("run", Exit(0, how, 3, limit, 1_500_000, 0, 0, (False, True))))
    assert msgspec.convert(fields, StepEnd) == StepEnd(**fields)
    assert [fields[name] for name in ("code", "signal", "errno")].count(3) == 1
    assert (fields["limit"] is None) == (limit is Limit.NONE)
    assert len(typing.get_args(LimitName)) == len(Limit) - 1
