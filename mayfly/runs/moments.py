"""A run at one moment in the middle of its program: its machine is saved while the run goes on, and
with it what belongs to that moment outside of the machine.
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, NamedTuple

from mayfly.errors import MoveError, NotRunningError, RequestError, RunEndedError
from mayfly.guests.converse import FLUSH_S, BytesStdin, Exchange
from mayfly.guests.start import Guest
from mayfly.images.manifest import Seconds
from mayfly.protocol.conversation import Conversation
from mayfly.protocol.phases import Standing
from mayfly.runs.record import Mark, Reader, RunEvent
from mayfly.runs.run import Run
from mayfly.runs.stdin import LiveStdin
from mayfly.schema import Meta, Record, replace
from mayfly.snapshots import live
from mayfly.vmm.config import Channel


class Moment(Record, frozen=True, kw_only=True):
    """What it takes, besides the machine, to go on with a run's program: its conversation, and
    `left_s` seconds; each byte of input and output gives it 1/`rate` more. `stdin` is what it has
    not read yet.
    """

    standing: Standing
    left_s: Seconds
    rate: Annotated[float, Meta(ge=1)]
    stdin: bytes
    stdin_ended: bool


class Kept(NamedTuple):
    """A moment of a run, what had happened in it until then, that place in its record, and how many
    steps had ended.
    """

    moment: Moment
    events: tuple[RunEvent, ...]
    mark: Mark
    steps: int


def check_live(run: Run, done: str, refusal: type[RequestError]) -> Exchange:
    """The conversation of a run whose machine can be `done` ("moved") now.

    Raises:
        RunEndedError, NotRunningError: it has no machine that could be.
        RequestError: a `refusal`: it cannot be as it is.
    """
    if run.done.is_set():
        raise RunEndedError("the run is over")
    if run.elsewhere is not None:
        raise refusal(f"the run went to {run.elsewhere.to}", hint="ask there")
    if run.moving is not None:
        raise refusal("the run is being moved already", hint="wait for the end of the move")
    if run.cases is not None:
        raise refusal(f"a run with cases is not {done}", hint="wait for its end")
    if run.exchange is None:
        raise NotRunningError("the run has no machine yet, or its program has ended", hint="wait for the event of its stage")
    if run.exchange.guest.wanted.machine.channel is Channel.TCP:
        raise refusal(f"a machine whose channel is a TCP connection cannot be {done}", hint="serve with --channel virtio")
    if not isinstance(run.exchange.stdin, BytesStdin | LiveStdin):
        raise refusal("the run's standard input belongs to a client that cannot follow it")
    return run.exchange


def moment_of(exchange: Exchange) -> Moment:
    """Where a run's conversation stands, that stands still."""
    stdin = exchange.stdin
    return Moment(
        standing=exchange.guest.conversation.standing(),
        left_s=exchange.left_s,
        rate=exchange.rate,
        stdin=stdin.waiting if isinstance(stdin, BytesStdin | LiveStdin) else b"",
        stdin_ended=exchange.stdin_ended,
    )


def go_on_from(moment: Moment, guest: Guest, run: Run, *, clone: bool = False) -> Exchange:
    """The conversation of `run` from that moment on, with another guest: a `clone` of the first, or
    what takes its place. It does not go on yet.

    Raises:
        SchemaError, MoveError: it cannot stand so.
    """
    manifest = guest.wanted.image.manifest
    conversation = Conversation.going_on(moment.standing, arch=manifest.arch, end_marker=manifest.end_marker)
    if len(moment.standing.plan().steps) != len(run.outcome.step_names):
        raise MoveError("the conversation is of a run with other steps")
    guest = replace(guest, conversation=conversation)
    stdin = stdin_from(moment, run)
    run.exchange = Exchange(guest, run, stdin, deadline_s=moment.left_s, rate=moment.rate, stdin_ended=moment.stdin_ended, clone=clone)
    return run.exchange


def stdin_from(moment: Moment, run: Run) -> BytesStdin | LiveStdin:
    """The standard input of `run` from that moment on."""
    if not run.is_interactive:
        return BytesStdin(moment.stdin)
    run.stdin.start_with(moment.stdin)
    return run.stdin


async def hold(run: Run, exchange: Exchange, flush_s: float = FLUSH_S) -> None:
    """Send nothing more to a run's machine, and wait until it has taken what was sent. The run's
    `going` must be set again, when it goes on here or elsewhere.

    Raises:
        RunEndedError: it has ended.
        GuestError: the machine does not take what was sent.
    """
    run.going.clear()
    try:
        await exchange.hold_flushed(flush_s)
    except ValueError as error:
        raise RunEndedError("the run ended meanwhile") from error


async def keep(run: Run, exchange: Exchange, folder: Path) -> Kept:
    """Save the machine of a run into the empty `folder`, while it goes on, with all that belongs to
    that moment. Who calls has the run `alone`.

    Raises:
        RunEndedError: the run ended meanwhile, or its program has not begun.
        MayflyError: the machine has ended, or cannot be saved.
    """
    guest, kept = exchange.guest, list[Kept]()

    @contextlib.asynccontextmanager
    async def still() -> AsyncIterator[None]:
        try:
            await hold(run, exchange)
            yield
        finally:
            exchange.go_on()
            run.going.set()

    async def at_rest() -> None:
        if not await exchange.stand_still():
            raise RunEndedError("the run ended meanwhile, or its program has not begun")
        reader, events = Reader(run.record), list[RunEvent]()
        while (event := reader.take()) is not None:
            events.append(event)
        kept.append(Kept(moment_of(exchange), tuple(events), run.record.mark(), len(run.outcome.steps)))

    await live.save(guest, folder, still=still(), at_rest=at_rest)
    return kept[0]
