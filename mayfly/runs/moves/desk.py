"""The moves of one server: runs that it gives away, and runs that it takes."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable

from mayfly.errors import MayflyError, MoveError, NotMovableError
from mayfly.guests.converse import Exchange
from mayfly.host.admission import Tenant
from mayfly.runs.moments import check_live
from mayfly.runs.moves.handover import Destination
from mayfly.runs.moves.incoming import Incoming
from mayfly.runs.moves.link import Connect, ImageSent, Link, Machines, Round, Times, close_quietly, within
from mayfly.runs.moves.messages import Ask, Message, Offer, Unknown
from mayfly.runs.moves.outgoing import Moved, Outgoing
from mayfly.runs.record import Position
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.schema import Record

log = logging.getLogger(__name__)
AT_A_TIME = 2
"""Runs that a drain moves at a time."""


class Stayed(Record, frozen=True, kw_only=True):
    """A run that a drain could not move, and why."""

    run: str
    error: MayflyError


class Went(Record, frozen=True, kw_only=True):
    """A run that a drain has moved."""

    run: str
    moved: Moved


class Moves:
    """Moves of `service`'s runs. `tenant_of` knows here who the owner of a run that comes is."""

    def __init__(
        self,
        service: Service,
        machines: Machines,
        times: Times | None = None,
        *,
        tenant_of: Callable[[str], Tenant | None] = lambda _: None,
    ) -> None:
        self._service = service
        self._machines = machines
        self.times = times or Times().on(service.config)
        self._tenant_of = tenant_of
        self._incoming: dict[str, Incoming] = {}

    def begin(
        self, run: Run, connect: Connect, *, to: str, limit_bytes_s: int = 0, tell: Callable[[Round | ImageSent], None] = lambda _: None
    ) -> Outgoing:
        """Prepare to move a run to the server `to`.

        Raises:
            RunEndedError, NotRunningError: it has no machine that could be moved.
            NotMovableError: it cannot be moved at all.
        """
        exchange = check_movable(run)
        came = [incoming for incoming in self._incoming.values() if incoming.run_id == run.id and incoming.relay is not None]
        return Outgoing(
            run,
            exchange,
            connect,
            self._machines,
            to=to,
            came=came[-1].move if came else None,
            relay=came[-1].relay if came else None,
            limit_bytes_s=limit_bytes_s,
            tell=tell,
            forget=lambda: self._service.leave_saves(run),
            freed=lambda: self._service.release(run),
            times=self.times,
        )

    async def drain(self, connect: Connect, *, to: str, limit_bytes_s: int = 0) -> AsyncGenerator[Went | Stayed, None]:
        """Take no more runs, and move those that are under way; yields what becomes of each. Those
        that stay go on here. When the caller stops, the moves that can be are taken back.
        """
        self._service.stopping = True
        room = asyncio.Semaphore(AT_A_TIME)

        async def move(run: Run) -> Went | Stayed:
            async with room:
                try:
                    going = self.begin(run, connect, to=to, limit_bytes_s=limit_bytes_s)
                    return Went(run=run.id, moved=await follow(going))
                except MayflyError as error:
                    return Stayed(run=run.id, error=error)

        moves = [asyncio.create_task(move(run)) for run in self._service.runs if not run.done.is_set() and run.elsewhere is None]
        try:
            for done in asyncio.as_completed(moves):
                yield await done
        finally:
            for task in moves:
                task.cancel()
            await asyncio.gather(*moves, return_exceptions=True)

    async def serve(self, link: Link, first: Message | None = None) -> None:
        """Serve a connection of another server, to its end; `first` is what came over it already.

        Raises:
            MayflyError: the connection was lost, or the other server broke the protocol.
        """
        try:
            async with within(self.times.answer_s, "the other server said nothing"):
                message = first or await link.receive()
            match message:
                case Offer():
                    await self._take(message, link)
                case Ask(move=move, span=span, offset=offset, holds=holds):
                    incoming = self._incoming.get(move)
                    if incoming is None and holds:
                        await self._never(move)
                    if incoming is None or await incoming.never():
                        await link.send(Unknown())
                    else:
                        await incoming.follow(link, Position(span, offset))
                case _:
                    raise MoveError(f"the other server began with {type(message).__name__}")
        finally:
            await close_quietly(link)

    async def _never(self, move: str) -> None:
        """End what goes on here from a save that an earlier server made after the move: its source
        lets its own machine go on.
        """
        for run in [run for run in self._service.runs if run.came == move]:
            await self._service.forget(run.id)

    def came(self, run_id: str) -> Incoming | None:
        """How a run came that goes on here; None if none did."""
        for incoming in self._incoming.values():
            if incoming.run_id == run_id and incoming.state is Destination.RUNNING:
                return incoming
        return None

    async def _take(self, offer: Offer, link: Link) -> None:
        for move, known in list(self._incoming.items()):  # those whose runs are no longer kept
            if known.is_past:
                del self._incoming[move]
        if offer.move in self._incoming:
            raise MoveError("the other server offered the same move twice")
        self._incoming[offer.move] = incoming = Incoming(offer, self._service, self._machines, self.times, self._tenant_of(offer.run.owner))
        log.info("run %s: offered by another server", offer.run.id)
        await incoming.serve(link)


def check_movable(run: Run) -> Exchange:
    """The conversation of a run that can be moved now. Raises as Moves.begin."""
    return check_live(run, "moved", NotMovableError)


async def follow(going: Outgoing) -> Moved:
    """Carry a move out. If the caller is cancelled, the move is taken back, unless it is too late;
    either way it has ended then, or goes on by itself.
    """
    task = going.begin()
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise
        await going.give_way()
        raise
