"""Clones of a run under way: each goes on from the same moment as a run of its own, in a machine
with an identity of its own, and the original goes on too.
"""

import logging
from contextlib import AsyncExitStack

from mayfly.errors import BusyError, MayflyError, NotForkableError
from mayfly.guests.start import Guest
from mayfly.host.admission import Ticket
from mayfly.runs.described import clone_of
from mayfly.runs.execute import go_on
from mayfly.runs.moments import Kept, check_live, go_on_from, keep
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.snapshots import live
from mayfly.snapshots import store as snapshots

log = logging.getLogger(__name__)
MAX_CLONES = 64
"""That are made at a time."""


async def fork(service: Service, run: Run, count: int) -> list[Run]:
    """Make `count` clones of a run, which goes on. Their records begin with all that had happened
    in it; they have as much time left, and what it had not read yet of its standard input. They are
    charged to the key that it is charged to.

    Raises:
        RunEndedError, NotRunningError: it has no machine that could be cloned.
        NotForkableError: it cannot be cloned as it is.
        BusyError: there is no room for so many now, or a limit of the key's is reached.
        MayflyError: a machine did not come up. No clone is left.
    """
    service.check_ready()
    exchange = check_live(run, "cloned", NotForkableError)
    guest = exchange.guest
    if guest.wanted.machine.network is not None:
        raise NotForkableError("a machine with a network is not cloned: the clones would have its addresses", hint="start other runs")
    async with AsyncExitStack() as failed:
        with service.counting_refusals():
            places = [_enter(service, run, guest, count, failed) for _ in range(count)]
        for ticket, _ in places:
            await ticket.turn
        with snapshots.passing() as folder:
            async with run.alone:
                kept = await keep(run, exchange, folder)
            guests = await live.clones(service.spawner, guest.wanted, folder, count)
        for (_, held), one in zip(places, guests, strict=True):
            held.push_async_callback(one.process.stop, 0)
        origin = service.supply.origin(guest)
        if origin is not None and not snapshots.is_current(origin):
            raise NotForkableError(f"{origin.manifest.name}, which the machine stands on, was made anew", hint="start the run again")
        clones = []
        for (ticket, held), one in zip(places, guests, strict=True):
            service.supply.note(one, origin)
            clones.append(_adopt(service, run, kept, one, ticket, held))
            failed.push_async_callback(service.forget, clones[-1].id)
        for clone, one in zip(clones, guests, strict=True):
            await _let_go(clone, one)
        failed.pop_all()
    log.info("run %s: forked into %s", run.id, ", ".join(clone.id for clone in clones))
    return clones


def _enter(service: Service, run: Run, guest: Guest, count: int, failed: AsyncExitStack) -> tuple[Ticket, AsyncExitStack]:
    """A clone's place among the machines, and what gives it back unless that is taken from it."""
    memory, place = guest.wanted.machine.memory, service.place(run)
    tenant = place.tenant if place else None
    if tenant is not None:
        tenant.check(memory)
    ticket = service.admission.enter(memory, guest.wanted.machine.cpus)
    held = AsyncExitStack()
    held.callback(service.admission.leave, ticket)
    failed.push_async_exit(held)
    if tenant is not None:
        service.admission.charge(ticket, tenant)
    if not ticket.covered:
        wait = service.admission.typical_wait_s(memory)
        raise BusyError(
            f"there is no room for {count} machines of {memory >> 20} MiB now", hint=f"try again in {wait} s", retry_after_s=wait
        )
    return ticket, held


def _adopt(service: Service, run: Run, kept: Kept, guest: Guest, ticket: Ticket, held: AsyncExitStack) -> Run:
    """Take a clone among the runs, which has what is `held` from then on; it stands still yet."""
    clone = clone_of(run, guest.wanted.machine)
    for event in kept.events:
        clone.replay(event)
    exchange = go_on_from(kept.moment, guest, clone, clone=True)
    service.adopt(clone, exchange.guest, ticket, lambda _: go_on(exchange, clone, service.config))
    held.pop_all()
    return clone


async def _let_go(clone: Run, guest: Guest) -> None:
    try:
        await guest.process.resume()
    except MayflyError as error:  # the clone sees that its machine is gone
        log.warning("run %s: its machine does not go on: %s", clone.id, error)
        await guest.process.stop(0)
