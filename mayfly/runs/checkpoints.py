"""Checkpoints: a run's program is stopped, and goes on from a file in another run, on any
architecture (docs/wasm.md).
"""

import asyncio
import signal

from mayfly.errors import NotCheckpointableError, NotRunningError, RunEndedError
from mayfly.guests.converse import BytesStdin, Exchange
from mayfly.protocol.phases import Phase
from mayfly.runs.carried import MAX_STATE, Carried, Then, with_input
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import LiveStdin

STOP_S = 30.0
"""For a program to be stopped, besides the time that its state takes to come."""


async def checkpoint(service: Service, run: Run) -> bytes:
    """Stop a run's program and give its state, with all standard input that its client sent; the
    run is over then.

    Raises:
        NotCheckpointableError: its program has no checkpoint, or none that could go on. The run
            goes on then.
        NotRunningError: it is not under way yet.
        RunEndedError: the run is over, or its program ended before it was stopped.
    """
    if not run.checkpoint:
        raise NotCheckpointableError(
            f"a program of {run.language} cannot be stopped and written to a file", hint="compile it to WebAssembly: docs/wasm.md"
        )
    if run.moving is not None or run.cases is not None:
        what = "is being moved" if run.moving is not None else "has cases"
        raise NotCheckpointableError(f"a run that {what} is not stopped", hint="wait for the end of that")
    async with run.alone:
        state = await _stop(service, run)
    await service.settled(run)
    return state


async def _stop(service: Service, run: Run) -> bytes:
    if run.elsewhere is not None:
        raise NotCheckpointableError("the run goes on at another server, which has none of its checkpoints", hint="move it back")
    if run.done.is_set():
        raise RunEndedError("the run is over")
    exchange = run.exchange
    if exchange is None or not run.outcome.built or exchange.guest.conversation.phase is not Phase.STEP:
        raise NotRunningError("the run's program is not under way", hint="wait for the event of its stage")
    run.going.clear()
    try:
        await exchange.hold()
        conversation = exchange.guest.conversation
        run.carried = carried = Carried(run, conversation.standing().plan())
        try:
            await exchange.guest.process.write(conversation.signal(signal.SIGUSR1))
            async with asyncio.timeout(service.config.here(STOP_S) + MAX_STATE / exchange.rate):
                state = await asyncio.shield(carried.state)
            if state is None:
                raise RunEndedError("the run's program ended before it was stopped")
            state = _with_input(state, exchange)
            carried.decide(Then.ENDS)
        finally:
            carried.decide(Then.HERE)
    except ValueError as error:
        raise RunEndedError("the run is over") from error
    except TimeoutError as error:
        raise NotCheckpointableError("the program was not stopped", hint="its standard error may say why; it goes on") from error
    finally:
        exchange.go_on()
        run.going.set()
    return state


def _with_input(state: bytes, exchange: Exchange) -> bytes:
    """The checkpoint with the standard input that was not sent yet; nobody can write more then.

    Raises:
        NotCheckpointableError: it would be too large.
    """
    stdin = exchange.stdin
    if not isinstance(stdin, BytesStdin | LiveStdin):
        return state
    whole = with_input(state, lambda _: stdin.waiting, ended=stdin.ended)
    if len(whole) > MAX_STATE:
        hint = f"a program goes on from {MAX_STATE} at most; this one goes on here"
        raise NotCheckpointableError(f"the checkpoint and the input that the program has not read have {len(whole)} bytes", hint=hint)
    if isinstance(stdin, LiveStdin):
        stdin.close()
    return whole
