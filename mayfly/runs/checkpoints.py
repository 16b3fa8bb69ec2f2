"""Checkpoints: a run's program is stopped, and goes on from a file in another run, on any
architecture (docs/wasm.md).
"""

import signal

from mayfly.errors import NotCheckpointableError, NotRunningError, RunEndedError
from mayfly.runs.run import Run
from mayfly.runs.service import Service


async def checkpoint(service: Service, run: Run) -> bytes:
    """Stop a run's program and give its state; the run is over then.

    Raises:
        NotCheckpointableError: its program has no checkpoint.
        NotRunningError: it is not under way yet.
        RunEndedError: the run is over, or its program ended before it was stopped.
        CollectError: the state is larger than what may come back from a run.
    """
    if not run.checkpoint:
        raise NotCheckpointableError(
            f"a program of {run.language} cannot be stopped and written to a file", hint="compile it to WebAssembly: docs/wasm.md"
        )
    if run.elsewhere is not None:
        raise NotCheckpointableError("the run goes on at another server, which has none of its checkpoints", hint="move it back")
    if run.done.is_set():
        raise RunEndedError("the run is over")
    if not run.outcome.built:
        raise NotRunningError("the run's program is not under way yet", hint="wait for the event of its stage")
    await service.signal(run, signal.SIGUSR1)
    await service.settled(run)
    if run.files is not None and run.files.error is not None:
        raise run.files.error
    left = run.files.by_name.get(run.checkpoint) if run.files is not None else None
    if left is None:
        raise RunEndedError("the run's program ended before it was stopped")
    return left.data
