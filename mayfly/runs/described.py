"""A run as data: what it takes to have the same run in another process, and what happened in it.

Events are the payloads of the channel's own messages (agent/PROTOCOL.md), with their type: a stage,
output, the end of a step. Both records have them in the same order, so a position in one means the
same in the other.
"""

import os
from typing import Annotated

from mayfly.errors import MoveError
from mayfly.guests.outcome import StepResult
from mayfly.guests.start import StartKind
from mayfly.host.snippet import MIN_CHECKPOINT_S, Mode
from mayfly.images.manifest import Seconds
from mayfly.protocol.frames import Exit, FrameType, Stage, Stderr, Stdout
from mayfly.runs.record import Mark, Position, Restored, RunEvent
from mayfly.runs.run import Run
from mayfly.runs.stdin import LiveStdin
from mayfly.schema import Meta, Record, msgspec, replace
from mayfly.vmm.config import MachineConfig

RESTORED = 0
"""The type of an event that is none of the channel's: a WentBack."""
ID = "[0-9a-f]{32}"
Id = Annotated[str, Meta(pattern=f"^{ID}$")]
Count = Annotated[int, Meta(ge=0)]


class NetworkHad(Record, frozen=True, kw_only=True):
    """The MAC, the addresses with their networks, and the gateways of a machine with a network."""

    mac: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]


class Description(Record, frozen=True, kw_only=True):
    """What must be known of a run to go on with it, elsewhere or later. `memory` is its machine's,
    in bytes; `collect` are the globs of the files that it gives back, `checkpoint` the one that its
    program writes when it is stopped, if it can be.
    """

    id: Id
    owner: str
    language: str
    version: str
    mode: Mode
    step_names: tuple[str, ...]
    start: StartKind | None
    interactive: bool
    has_terminal: bool
    collect: tuple[str, ...]
    checkpoint: str
    memory: Count
    checkpoint_every_s: Seconds = 0.0
    network: NetworkHad | None = None
    hidden: tuple[str, ...] = ()
    tests: str = ""

    def __post_init__(self) -> None:
        if 0 < self.checkpoint_every_s < MIN_CHECKPOINT_S:
            raise ValueError(f"checkpoint_every_s is {self.checkpoint_every_s:g}, less than {MIN_CHECKPOINT_S}")


class Happened(Record, frozen=True, kw_only=True, array_like=True):
    """An event of a run; `name` is the step's, of its end."""

    type: int
    payload: bytes
    name: str = ""


class WentBack(Record, frozen=True, kw_only=True, array_like=True):
    """The run was restored; the fields are those of record.Restored and record.Mark."""

    reason: str
    span: int
    offset: Count
    first: Count
    step: Count
    sizes: dict[Count, Count]
    steps: Count
    repeats: bool


def describe(run: Run, machine: MachineConfig) -> Description:
    """What a run is that has this machine."""
    network = machine.network
    return Description(
        id=run.id,
        owner=run.owner,
        language=run.language,
        version=run.version,
        mode=run.mode,
        step_names=run.outcome.step_names,
        start=run.start,
        interactive=run.is_interactive,
        has_terminal=run.has_terminal,
        collect=run.collect,
        hidden=run.hidden,
        tests=run.tests,
        checkpoint=run.checkpoint,
        memory=machine.memory,
        checkpoint_every_s=run.checkpoint_every_s,
        network=NetworkHad(mac=network.mac, addresses=network.addresses, gateways=network.gateways) if network else None,
    )


def make_run(about: Description) -> Run:
    """The run that is described, as far as nothing has happened in it."""
    run = Run(
        run_id=about.id,
        owner=about.owner,
        language=about.language,
        version=about.version,
        mode=about.mode,
        step_names=about.step_names,
        stdin=LiveStdin() if about.interactive else None,
        has_terminal=about.has_terminal,
        collect=about.collect,
        hidden=about.hidden,
        tests=about.tests,
        checkpoint=about.checkpoint,
        checkpoint_every_s=about.checkpoint_every_s,
    )
    run.start = about.start
    return run


def clone_of(run: Run, machine: MachineConfig) -> Run:
    """A run of the same kind with an id of its own, which goes on in a copy of this machine."""
    clone = make_run(replace(describe(run, machine), id=os.urandom(16).hex()))
    clone.forked_from, clone.state, clone.phases = run.id, run.state, dict(run.phases)
    return clone


def happened(event: RunEvent) -> Happened | None:
    """The event as it travels; None of one that a run's end says again."""
    match event:
        case Stage() | Stdout() | Stderr():
            return Happened(type=event.type, payload=event.encode())
        case StepResult():
            return Happened(type=event.exit.type, payload=event.exit.encode(), name=event.name)
        case Restored(reason=reason, mark=mark, steps=steps, repeats=repeats):
            (span, offset), first, step, sizes = mark
            went = WentBack(reason=reason, span=span, offset=offset, first=first, step=step, sizes=sizes, steps=steps, repeats=repeats)
            return Happened(type=RESTORED, payload=msgspec.msgpack.encode(went))
    return None


def event_of(sent: Happened) -> RunEvent:
    """The event that travelled so.

    Raises:
        MoveError: it is none.
    """
    kinds: dict[int, type[Stage | Stdout | Stderr | Exit]] = {
        FrameType.STAGE: Stage,
        FrameType.STDOUT: Stdout,
        FrameType.STDERR: Stderr,
        FrameType.EXIT: Exit,
    }
    if sent.type == RESTORED:
        try:
            went = msgspec.msgpack.decode(sent.payload, type=WentBack)
        except (msgspec.DecodeError, RecursionError) as error:
            raise MoveError("the other server sent an event that cannot be read") from error
        mark = Mark(Position(went.span, went.offset), went.first, went.step, went.sizes)
        return Restored(went.reason, mark, went.steps, went.repeats)
    kind = kinds.get(sent.type)
    message = kind.decode(sent.payload) if kind else None
    if message is None:
        raise MoveError(f"the other server sent an event of type {sent.type} that cannot be read")
    return StepResult(sent.name, message) if isinstance(message, Exit) else message


def replay(run: Run, sent: Happened) -> RunEvent:
    """Have the event that travelled so happen in a run.

    Raises:
        MoveError: it is none, or cannot come now.
    """
    event = event_of(sent)
    if isinstance(event, Restored) and not run.record.may_go_back(event.mark):
        raise MoveError("the other server sent an event that leads back to where the run was not, or once too often")
    run.replay(event)
    return event
