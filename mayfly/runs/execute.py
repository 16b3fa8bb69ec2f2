"""Carry one plan out in a machine: hold the conversation, and clean up, whatever happens.

Reading and sending go on side by side: one task reads the channel, feeds the session and tells the
run; the other sends the files and then standard input as the guest grants credit. Back-pressure is
the sockets' own: at most a frame waits here in either direction.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from mayfly.errors import GuestError, HostError, MayflyError
from mayfly.guests.spawner import GRACE_S, Machine
from mayfly.guests.start import Ready, explain
from mayfly.host.plan import Plan
from mayfly.protocol.conversation import Failed, Session
from mayfly.protocol.frames import Done
from mayfly.runs.run import Run

log = logging.getLogger(__name__)
RUN_NUMBER = 1
"""The run's number on the channel. Each machine serves one run."""


class Stdin(Protocol):
    """Where a run's standard input comes from."""

    async def read(self, most: int) -> bytes:
        """At least one and at most `most` bytes; empty at the end."""
        ...


class BytesStdin:
    """Standard input that is there already."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    async def read(self, most: int) -> bytes:
        """The next bytes."""
        piece = self._data[self._position : self._position + most]
        self._position += len(piece)
        return piece


async def execute(starting: Awaitable[Ready], plan: Plan, run: Run, stdin: Stdin, grace_s: float = GRACE_S) -> None:
    """Carry the plan out in the machine that `starting` gives, and tell `run` what happens. The
    machine is gone when this returns or is cancelled.

    After a good end its process has `grace_s` to end by itself and report its exits. What goes
    wrong, with the guest or with this host, ends the run with an error; only a cancellation is
    raised.
    """
    machine: Machine | None = None
    try:
        ready = await starting
        machine = ready.machine
        run.started(ready.kind, ready.hello)
        await converse(machine, ready.session, plan, run, stdin)
    except MayflyError as error:
        run.fail(error)
    except Exception as error:
        log.exception("run %s", run.id)
        run.fail(HostError(f"a fault of ours: {type(error).__name__}", hint="see the server's log, and report it"))
    finally:
        if machine is not None:
            ended = await machine.stop(grace_s if run.done.is_set() else 0)
            run.exits = ended.exits
            run.phases.update({f"vmm_{name}": seconds for name, seconds in (ended.phases or machine.phases).items()})


async def converse(machine: Machine, session: Session, plan: Plan, run: Run, stdin: Stdin) -> None:
    """Send the plan to a machine that has said HELLO, and tell `run` all that comes back, to its
    end.

    Raises:
        MayflyError: the machine ended, or did not finish in time; it is gone by then, and `run` has
            not ended.
    """
    progress = asyncio.Event()
    try:
        async with asyncio.timeout(plan.deadline_s) as deadline:

            def moved(count: int) -> None:
                if not deadline.expired():
                    deadline.reschedule((deadline.when() or 0) + count / plan.rate)

            def heard(count: int) -> None:
                moved(count)
                progress.set()  # there may be more credit

            sender = asyncio.create_task(_send(machine, session, plan, stdin, moved, progress), name=f"send to machine {machine.number}")
            try:
                await _listen(machine, session, run, Done, heard)
            finally:
                sender.cancel()
                await asyncio.wait([sender])
                if not sender.cancelled() and (fault := sender.exception()):
                    log.error("run %s: sending failed", run.id, exc_info=fault)
    except TimeoutError as error:
        late = GuestError(f"the machine did not finish within {plan.deadline_s:g} s, its limits and some slack")
        raise explain(late, await machine.stop()) from error
    except MayflyError as error:
        raise explain(error, await machine.stop()) from error


async def _listen(machine: Machine, session: Session, run: Run, until: type, heard: Callable[[int], None] = lambda _: None) -> None:
    """Tell the run what the channel brings, until an event of the type `until`; `heard` is called
    with the size of each piece.
    """
    while True:
        data = await machine.read()
        if not data:
            raise GuestError(
                "the machine ended in the middle of the run", hint="the snippet may have brought it down; nothing else is affected"
            )
        found = False
        for event in session.feed(data):
            if isinstance(event, Failed):
                raise event.error
            run.note(event)
            found |= isinstance(event, until)
        if found:
            return
        heard(len(data))


async def _send(
    machine: Machine, session: Session, plan: Plan, stdin: Stdin, moved: Callable[[int], None], progress: asyncio.Event
) -> None:
    """Send START, files and BEGIN, then standard input. It ends early if the channel does: the
    listener sees that too.
    """
    for frame in session.begin(RUN_NUMBER, plan.start, plan.files):
        if not await machine.write(frame):
            return
        moved(len(frame))
    while True:
        while not session.credit:
            progress.clear()
            await progress.wait()
        data = await stdin.read(session.stdin_room())
        if not data:
            await machine.write(session.stdin_eof())
            return
        if not await machine.write(session.stdin(data)):
            return
        moved(len(data))
