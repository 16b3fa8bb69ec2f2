"""Carry a run out: get a guest, let it do the jobs, clean up, whatever happens."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mayfly.errors import HostError, MayflyError
from mayfly.guests.converse import BytesStdin, Exchange, StdinSource, collect, converse
from mayfly.guests.job import Job
from mayfly.guests.spawner import GRACE_S
from mayfly.guests.start import Guest
from mayfly.host.config import Config
from mayfly.host.plan import Plan
from mayfly.host.snippet import Snippet
from mayfly.protocol.frames import WORK_FOLDER
from mayfly.runs.carried import MAX_STATE, Carried, Then
from mayfly.runs.cases import Cases, Trial
from mayfly.runs.files import MAX_FILES, Files
from mayfly.runs.output import LACKING
from mayfly.runs.run import Run

log = logging.getLogger(__name__)
COLLECT_S = 10.0
"""For finding files, besides the time that their bytes take."""
Copies = Callable[[Guest, int], AbstractAsyncContextManager[list[Guest]]]
"""What makes copies of an idle guest, as many as asked for or fewer."""


class Reviver(Protocol):
    """Lets a run outlast its guest, while this block is under way."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def revive(self, guest: Guest, error: MayflyError) -> Guest:
        """Another guest in the place of one that ended with `error`. Raises that: there is none."""

    async def work(self, guest: Guest) -> None:
        """What is done with that."""


async def execute(
    starting: Awaitable[Guest],
    work: Callable[[Guest], Awaitable[None]],
    run: Run,
    grace_s: float = GRACE_S,
    lasting: Reviver | None = None,
) -> None:
    """Have `work` done with the guest that `starting` gives. The guest is gone when this returns or
    is cancelled. A run that is `lasting` gets another one where that is lost.

    After a good end its process has `grace_s` to end by itself and report its exits. What goes
    wrong, with the guest or with this host, ends the run with an error; only a cancellation is
    raised.
    """
    guest: Guest | None = None
    try:
        guest = await starting
        if lasting is None:
            await work(guest)
        else:
            async with lasting:
                while True:
                    try:
                        await work(guest)
                        break
                    except MayflyError as error:
                        guest, work = await lasting.revive(_last(run, guest), error), lasting.work
        run.finish()
    except MayflyError as error:
        run.fail(error)
    except OSError as error:
        run.fail(HostError(f"the run could not go on: {error.strerror or error}", hint=LACKING))
    except Exception as error:
        log.exception("run %s", run.id)
        run.fail(HostError(f"a fault of ours: {type(error).__name__}", hint="see the server's log, and report it"))
    finally:
        if guest is not None:
            process = _last(run, guest).process
            ended = await process.stop(grace_s if run.done.is_set() else 0)
            if run.elsewhere is None:
                run.exits = ended.exits
            run.phases.update({f"vmm_{name}": seconds for name, seconds in (ended.phases or process.phases).items()})


def _last(run: Run, guest: Guest) -> Guest:
    """The guest that a run has now: another than its first `guest`, if it was elsewhere since."""
    return run.exchange.guest if run.exchange is not None else guest


async def do_once(guest: Guest, plan: Plan, run: Run, stdin: StdinSource, config: Config) -> None:
    """Build the program and run it. If files of it are wanted, they are collected then, however it
    ended; a run that has none of them is no worse for that.
    """
    run.exchange = Exchange(guest, run, stdin, deadline_s=plan.job.deadline_s, rate=plan.job.rate)
    await go_on(run.exchange, run, config, plan.job)


async def go_on(exchange: Exchange, run: Run, config: Config, job: Job | None = None) -> None:
    """As `do_once`; without a job the conversation is in the middle of it. A program that is
    stopped on the way goes on in another machine, or in the same one, or the run ends with it.
    """
    while await exchange.run(job):
        carried = run.carried
        if isinstance(carried, Carried) and carried.end is not None:
            left = (await _collect(exchange, (run.checkpoint,), config, MAX_STATE)).by_name.get(run.checkpoint)
            state = carried.whole(left.data, exchange) if left else b""
            then = await carried.give(state) if state else Then.ENDS
            run.carried = None
            if not isinstance(then, Then):
                await then()
                return
            if then is Then.HERE:
                exchange, job = carried.here(exchange, state)
                run.exchange = exchange
                continue
            carried.over()
            run.note(carried.end)
        if run.collect and len(run.outcome.steps) == len(run.outcome.step_names):
            await _collect_files(exchange, run, config)
        return


async def _collect_files(exchange: Exchange, run: Run, config: Config) -> None:
    """Collect the files that are wanted back."""
    run.files = Files()
    try:
        run.files = await _collect(exchange, run.collect, config, config.collect_bytes)
        run.files.hide(run.hidden)
    except MayflyError as error:
        run.files.error = error
    run.lap("files")


async def _collect(exchange: Exchange, globs: Sequence[str], config: Config, size: int) -> Files:
    """The files in the working folder that match.

    Raises:
        CollectError: they have more than `size` bytes, or there are too many.
        MayflyError: as `converse`.
    """
    files = Files()
    await collect(
        exchange.guest,
        [f"{WORK_FOLDER}/{glob}" for glob in globs],
        files.take,
        entries=MAX_FILES,
        size=size,
        deadline_s=config.here(COLLECT_S),
        rate=exchange.rate,
        globs=True,
    )
    files.finish()
    return files


async def do_cases(guest: Guest, plan: Plan, run: Run, snippet: Snippet, copy: Copies, worth_s: float) -> None:
    """Build the program once, and run it for each case: in the guest, and in copies of it too.

    Where the snippet does not say how many guests there may be, there is one for each processor if
    the first case lets expect that the others would take longer than `worth_s` in one.
    """
    await converse(guest, plan.job, run)
    if run.cases is None or not run.outcome.built:
        return
    cases, most = run.cases, snippet.parallel or len(os.sched_getaffinity(0))
    cases.parallel = 1
    if snippet.parallel is None:
        began = time.monotonic()
        alive = await _do_next(guest, plan, cases, snippet)
        if not alive or (time.monotonic() - began) * cases.left < worth_s:
            most = 1
    async with copy(guest, min(most, cases.left) - 1) as copies:
        run.lap("copies")
        cases.parallel += len(copies)
        async with asyncio.TaskGroup() as group:
            for each in (guest, *copies):
                group.create_task(_do_all(each, plan, cases, snippet))
    run.lap("cases")
    cases.end(cases.error)


async def _do_all(guest: Guest, plan: Plan, cases: Cases, snippet: Snippet) -> None:
    while guest.process.alive and await _do_next(guest, plan, cases, snippet):
        pass


async def _do_next(guest: Guest, plan: Plan, cases: Cases, snippet: Snippet) -> bool:
    """Do one more case; false if there is none, or the guest is gone."""
    index = cases.take()
    if index is None:
        return False
    case = cases.all[index]
    trial = Trial(index, case, plan.step_names[-1])
    stdin = snippet.stdin if case.stdin is None else case.stdin
    error = None
    try:
        await converse(guest, plan.cases[index], trial, BytesStdin(stdin))
    except MayflyError as caught:
        error = caught
    cases.add(trial.result(cases.kept, error))
    return error is None
