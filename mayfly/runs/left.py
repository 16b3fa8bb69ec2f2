"""Runs that outlast their server: the next one at its socket goes on with them as saved last."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from mayfly.errors import MayflyError, SnapshotError
from mayfly.guests.start import Guest
from mayfly.host.admission import Tenant
from mayfly.host.plan import want_machine
from mayfly.runs import saves
from mayfly.runs.described import make_run, replay
from mayfly.runs.execute import execute
from mayfly.runs.lasting import Lasting, Saved
from mayfly.runs.record import MAX_RESTORED, Position, Restored
from mayfly.runs.result import RunState
from mayfly.runs.saves import SavedRun
from mayfly.runs.service import Service
from mayfly.runs.work import Work
from mayfly.schema import replace

log = logging.getLogger(__name__)


def go_on(service: Service, tenant_of: Callable[[str], Tenant | None] = lambda _: None) -> None:
    """Go on with the runs that an earlier server at this one's socket has left, each `tenant_of`
    its owner. What was left by who had no socket is removed.
    """
    if not service.home:
        return
    for run_id in saves.left():
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(saves.claimed(run_id))
            except OSError:  # a server has it
                continue
            try:
                saved = saves.read(run_id)
            except SnapshotError as error:
                log.warning("%s; it is removed", error)
                saves.forget(run_id)
                continue
            if saved.socket == service.home:
                tenant = tenant_of(saved.run.owner)
                taken = held.pop_all()
                try:
                    _take_back(service, saved, taken, tenant)
                except MayflyError as error:
                    log.warning("the run %s cannot go on from what was saved: %s; it is removed", run_id, error)
                    with taken:
                        saves.forget(run_id)
            elif not saved.socket:
                saves.forget(run_id)


def _take_back(service: Service, saved: SavedRun, held: contextlib.ExitStack, tenant: Tenant | None) -> None:
    """Go on with a run of the `tenant` that was saved; it is claimed as long as `held`."""
    about = saved.run
    run = make_run(about)
    run.phases, run.came = saved.phases, saved.came
    for event in saved.events:
        replay(run, event)
    if run.record.restored >= MAX_RESTORED:
        raise SnapshotError(f"it has gone on from a save {run.record.restored} times already", hint="start the run again")
    mark, steps = run.record.mark(), len(run.outcome.steps)
    run.record.lives = (*(Position(*life) for life in saved.lives), mark.position)
    run.replay(Restored("its server was lost", mark, steps, repeats=False))
    lasting = Lasting(service, run, about.checkpoint_every_s)
    lasting.resume(Saved(saved.moment, mark, steps), held)

    async def come_back() -> Guest:
        image = service.images.find(f"{about.language}@{about.version}")
        if image.manifest.initramfs_digest != saved.image:
            raise SnapshotError(f"the image of {about.language} was made anew since the run was saved", hint="start the run again")
        wanted = want_machine(image, service.config)
        wanted = replace(wanted, machine=replace(wanted.machine, memory=about.memory, cpus=saved.cpus))
        origin = await asyncio.to_thread(saves.find_parent, saved.parent)
        if origin is not None:
            wanted = wanted.restored_from(origin.chain)
        guest = await lasting.stand_up(wanted, saved.moment, origin)
        run.state = RunState.RUNNING
        return guest

    log.info("run %s: goes on from what an earlier server has saved", run.id)
    service.runs.add(run, publish=True)
    work = service.work[run.id] = Work(held=contextlib.ExitStack(), lasting=lasting)
    work.held.callback(lasting.close)

    async def starting() -> Guest:
        """Its machine waits for memory however many others do: its tenant's limits were checked
        when it began.
        """
        work.place = service.admission.enter(about.memory, saved.cpus, of_run=False)
        work.held.callback(service.admission.leave, work.place)
        if tenant is not None:
            service.admission.charge(work.place, tenant, begins=False)
        await work.place.turn
        return await come_back()

    service.take_up(run, work, execute(starting(), lasting.work, run, service.grace_s, lasting), None)
