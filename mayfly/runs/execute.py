"""Carry a run out: get a guest, let it do the job, clean up, whatever happens."""

import logging
from collections.abc import Awaitable

from mayfly.errors import HostError, MayflyError
from mayfly.guests.converse import StdinSource, converse
from mayfly.guests.job import Job
from mayfly.guests.spawner import GRACE_S, VmmProcess
from mayfly.guests.start import Guest
from mayfly.runs.output import LACKING
from mayfly.runs.run import Run

log = logging.getLogger(__name__)


async def execute(starting: Awaitable[Guest], job: Job, run: Run, stdin: StdinSource, grace_s: float = GRACE_S) -> None:
    """Do the job in the guest that `starting` gives, and tell `run` what happens. The guest is gone
    when this returns or is cancelled.

    After a good end its process has `grace_s` to end by itself and report its exits. What goes
    wrong, with the guest or with this host, ends the run with an error; only a cancellation is
    raised.
    """
    process: VmmProcess | None = None
    try:
        guest = await starting
        process = guest.process
        run.started(guest.kind, guest.hello)
        await converse(guest, job, run, stdin)
    except MayflyError as error:
        run.fail(error)
    except OSError as error:
        run.fail(HostError(f"the run could not go on: {error.strerror or error}", hint=LACKING))
    except Exception as error:
        log.exception("run %s", run.id)
        run.fail(HostError(f"a fault of ours: {type(error).__name__}", hint="see the server's log, and report it"))
    finally:
        if process is not None:
            ended = await process.stop(grace_s if run.done.is_set() else 0)
            run.exits = ended.exits
            run.phases.update({f"vmm_{name}": seconds for name, seconds in (ended.phases or process.phases).items()})
