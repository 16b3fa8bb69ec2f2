"""What runs tell on their way through a fleet: events, errors and positions as values for
MessagePack.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from mayfly.errors import MayflyError, from_wire, to_wire
from mayfly.fleet.failures import UnreadableError
from mayfly.guests.outcome import StepResult
from mayfly.protocol.frames import Exit, ExitHow, Limit, Stage, Stderr, Stdout
from mayfly.runs.cases import CaseResult, CaseVerdict
from mayfly.runs.record import Position, RunEvent


class StepEnded(msgspec.Struct, array_like=True, tag="step"):
    """A StepResult."""

    name: str
    step: int
    how: int
    code: int
    limit: int
    wall_us: int
    cpu_us: int
    peak_memory: int
    cut: tuple[bool, bool]


class Began(msgspec.Struct, array_like=True, tag="stage"):
    """A Stage."""

    step: int
    name: str


class Out(msgspec.Struct, array_like=True, tag="out"):
    """A Stdout."""

    data: bytes


class Err(msgspec.Struct, array_like=True, tag="err"):
    """A Stderr."""

    data: bytes


class CaseEnded(msgspec.Struct, array_like=True, tag="case"):
    """A CaseResult."""

    index: int
    name: str
    verdict: CaseVerdict
    step: StepEnded | None
    stdout: bytes
    stderr: bytes
    error: Mapping[str, Any] | None


WireEvent: TypeAlias = StepEnded | Began | Out | Err | CaseEnded


def wire(error: MayflyError | None) -> dict[str, Any] | None:
    """An error on its way."""
    return None if error is None else to_wire(error)


def error_of(fields: Mapping[str, Any] | None) -> MayflyError | None:
    """An error that came. One that this version does not know is an ordinary MayflyError."""
    if fields is None:
        return None
    try:
        return from_wire(fields)
    except ValueError:
        return MayflyError(str(fields.get("message"))[:1000], hint=str(fields.get("hint"))[:1000])


def to_event(event: WireEvent) -> RunEvent:
    """The event that came.

    Raises:
        UnreadableError: it says what this version does not know.
    """
    match event:
        case Began():
            return Stage(event.step, event.name)
        case Out():
            return Stdout(event.data)
        case Err():
            return Stderr(event.data)
        case StepEnded():
            return _step(event)
        case CaseEnded():
            return CaseResult(
                index=event.index,
                name=event.name,
                verdict=event.verdict,
                step=_step(event.step) if event.step else None,
                stdout=event.stdout,
                stderr=event.stderr,
                error=error_of(event.error),
            )


def _step(event: StepEnded) -> StepResult:
    try:
        how, limit = ExitHow(event.how), Limit(event.limit)
    except ValueError as error:
        raise UnreadableError(f"the end of a step cannot be read: {error}") from error
    ended = Exit(event.step, how, event.code, limit, event.wall_us, event.cpu_us, event.peak_memory, event.cut)
    return StepResult(event.name, ended)


def from_event(event: RunEvent) -> WireEvent | None:
    """The event as it goes; None for one that the other end makes itself, from the Ending."""
    match event:
        case Stage():
            return Began(event.step, event.name)
        case Stdout():
            return Out(event.data)
        case Stderr():
            return Err(event.data)
        case StepResult():
            return _ended(event)
        case CaseResult():
            step = _ended(event.step) if event.step else None
            return CaseEnded(event.index, event.name, event.verdict, step, event.stdout, event.stderr, wire(event.error))
    return None


def _ended(result: StepResult) -> StepEnded:
    end = result.exit
    return StepEnded(result.name, end.step, int(end.how), end.code, int(end.limit), end.wall_us, end.cpu_us, end.peak_memory, end.cut)


def place(position: Position) -> tuple[int, int]:
    """A position as it goes."""
    return position.span, position.offset
