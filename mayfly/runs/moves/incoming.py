"""The destination's side of a move: see whether the run fits, take its machine, wait for COMMIT,
let it go on; then pass its events to the source, and what the source's clients send to it.

Until COMMIT has been read, every loss ends the machine here, and the run goes on where it was.
"""

import asyncio
import contextlib
import logging

from mayfly.errors import MayflyError, MoveError, ServerLostError, UnknownRunError
from mayfly.guests.converse import Exchange
from mayfly.guests.job import Job, Wanted
from mayfly.guests.meanwhile import first, while_alive
from mayfly.guests.start import Guest
from mayfly.host.admission import Tenant
from mayfly.runs.carried import MAX_STATE, go_on_anew
from mayfly.runs.described import make_run, replay
from mayfly.runs.execute import go_on
from mayfly.runs.moments import go_on_from
from mayfly.runs.moves.followed import Followed
from mayfly.runs.moves.handover import DESTINATION, Destination, Input
from mayfly.runs.moves.link import Link, Machines, Times, within
from mayfly.runs.moves.messages import (
    Broken,
    Commit,
    Events,
    Fits,
    Handed,
    Misfits,
    Offer,
    Pages,
    Ready,
    problem_of,
)
from mayfly.runs.moves.relay import Relay
from mayfly.runs.moves.room import Room
from mayfly.runs.record import Position, Reader
from mayfly.runs.result import RunState
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.schema import replace

log = logging.getLogger(__name__)
AHEAD = 8
"""Messages of the machine that wait for whoever makes it."""


class Incoming:
    """A run that another server offers; it is `tenant`'s, if its owner is known here."""

    def __init__(self, offer: Offer, service: Service, machines: Machines, times: Times, tenant: Tenant | None) -> None:
        self.state = Destination.OFFERED
        self.move, self.run_id = offer.move, offer.run.id
        self.link: Link | None = None
        self._offer = offer
        self._service = service
        self._machines = machines
        self._times = times
        self._room = Room(offer, service, machines, tenant)
        self._pages: asyncio.Queue[bytes] = asyncio.Queue(AHEAD)
        self._page = b""
        self._state = b""
        self._job: Job | None = None
        self._guest: Guest | None = None
        self.relay: Relay | None = None
        self._taking: asyncio.Task[bool] | None = None

    def _step(self, happened: Input) -> None:
        """Take a step of the handover."""
        state = DESTINATION[self.state, happened].state
        assert isinstance(state, Destination)  # noqa: S101 (of this table)
        log.debug("move %s: %s -> %s", self._offer.move, self.state.name, state.name)
        self.state = state

    @property
    def is_past(self) -> bool:
        """Whether nobody needs to know of it: it came to nothing, or the run is forgotten."""
        if self.state is not Destination.RUNNING:
            return self.state is Destination.DISCARDED
        try:
            self._service.get(self.run_id)
        except UnknownRunError:
            return True
        return False

    async def serve(self, link: Link) -> None:
        """Take the run over this connection, and pass on what happens to it until it is over.

        Raises:
            MayflyError: the connection was lost, or the run could not be taken.
        """
        self.link = link
        self._taking = asyncio.create_task(self._take(link), name=f"take run {self.run_id}")
        try:
            taken = await asyncio.shield(self._taking)
        except asyncio.CancelledError:
            if self.state is not Destination.RUNNING:
                self._taking.cancel()
            await asyncio.wait([self._taking])
            raise
        if taken:
            await self.follow(link, None)

    async def never(self) -> bool:
        """The source asks over another connection: whether the run goes on here. If it does not by
        now, it never will.
        """
        self._step(Input.ASK)
        if self.state is Destination.RUNNING:
            return False
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait([self._taking])
        return True

    async def follow(self, link: Link, after: Position | None) -> None:
        """Say that the run goes on here, and pass on what happens behind `after`, or since it came.

        Raises:
            MayflyError: the connection was lost.
        """
        if self.relay is not None:
            await self.relay.serve(link, after)

    async def _take(self, link: Link) -> bool:
        """Take the run; whether it goes on here. Raises what went wrong."""
        try:
            if reasons := await self._room.prepare(link):
                self._step(Input.MISFITS)
                await link.send(Misfits(reasons=tuple(reasons)))
                return False
            self._step(Input.FITS)
            room = self._room
            await link.send(Fits(held=room.place.held, portable=room.portable is not None, back=room.back is not None))
            run, handed = await self._receive(link)
            exchange = self._go_on_with(run, handed)
            self._step(Input.COPIED)
            await link.send(Ready())
            await self._commit(link)
            await self._run(run, handed, exchange)
        except BaseException as error:
            if self.state not in (Destination.RUNNING, Destination.DISCARDED):
                self._step(Input.CUT if isinstance(error, ServerLostError | asyncio.CancelledError) else Input.FAULT)
                if isinstance(error, MayflyError) and not isinstance(error, ServerLostError):
                    with contextlib.suppress(ServerLostError):
                        await link.send(Broken(error=problem_of(error)))
            raise
        finally:
            if self.state is not Destination.RUNNING:
                await self._discard()
        return True

    async def _discard(self) -> None:
        try:
            if self._guest is not None:
                await self._guest.process.stop(0)
        finally:  # also when the source asks meanwhile, which cancels this
            self._room.give_up()

    async def _read(self, most: int) -> bytes:
        """Bytes of the machine, for whoever makes it."""
        if not self._page:
            self._page = await self._pages.get()
            if not self._page:
                self._pages.put_nowait(b"")  # it stays at its end
        piece, self._page = self._page[:most], self._page[most:]
        return piece

    async def _receive(self, link: Link) -> tuple[Run, Handed]:
        """Take the machine and what happened in the run.

        Raises:
            MayflyError: the connection was lost, or the machine cannot be made.
        """
        about, machine, room = self._offer.run, self._offer.machine, self._room
        if room.portable is None:
            receiving = self._machines.receive(about, machine, self._read, held=room.place.held, network=room.network, image=room.image)
        else:
            image = room.portable.image.manifest
            about = replace(about, language=image.language, version=image.version)
            receiving = self._receive_program(room.portable)
        run = make_run(about)
        run.state = RunState.RUNNING
        making = asyncio.create_task(receiving, name=f"make the machine of run {self.run_id}")
        try:
            while True:
                message = await first(link.receive(), making)
                match message:
                    case Pages(data=data):
                        if data:
                            await first(self._pages.put(data), making)
                    case Events(events=events):
                        for sent in events:
                            replay(run, sent)
                    case Handed():
                        await first(self._pages.put(b""), making)
                        async with within(self._times.ready_s, "the machine was not there"):
                            self._guest = await making
                        return run, message
                    case _:
                        raise MoveError(f"the source sent {type(message).__name__} before all of the machine was there")
        finally:
            if not making.done():
                making.cancel()
                await asyncio.wait([making])
            if self._guest is None and not making.cancelled() and not making.exception():
                self._guest = making.result()

    async def _receive_program(self, wanted: Wanted) -> Guest:
        """Take a program's checkpoint; the guest in which it is to go on.

        Raises:
            MayflyError: it is too large, or there is no guest.
        """
        self._guest = guest = await self._service.supply.get(wanted)
        state = bytearray()
        while piece := await self._read(MAX_STATE):
            state += piece
            if len(state) > MAX_STATE:
                raise MoveError(f"the program's checkpoint has more than {MAX_STATE} bytes")
        self._state = bytes(state)
        return guest

    def _go_on_with(self, run: Run, handed: Handed) -> Exchange:
        """The run's conversation, which does not go on yet.

        Raises:
            MayflyError: it cannot stand so.
        """
        assert self._guest is not None  # noqa: S101 (_receive has set it)
        if self._room.portable is None:
            exchange = go_on_from(handed.moment, self._guest, run)
            self._guest = exchange.guest
        else:
            exchange, self._job = go_on_anew(handed.moment, self._state, self._guest, run)
        run.phases.update(handed.phases)
        return exchange

    async def _commit(self, link: Link) -> None:
        """Wait for COMMIT, with a machine that is still there when it has come.

        Raises:
            MayflyError: the connection was lost, or the machine.
        """
        assert self._guest is not None  # noqa: S101 (_receive has set it)
        message = await while_alive(self._guest.process, link.receive())
        if not isinstance(message, Commit):
            raise MoveError(f"the source sent {type(message).__name__} in place of COMMIT")
        if self._room.portable is None:
            await self._guest.process.stats()  # one that ended a moment ago does not answer, and the source has another

    async def _run(self, run: Run, handed: Handed, exchange: Exchange) -> None:
        """Take the run among those of this server, and let it go on.

        Raises:
            MayflyError: it cannot be taken; it is the source's still.
        """
        if self._room.back is not None:
            run = self._have_again(run, handed, self._room.back)
        else:
            self._adopt(run, exchange)
        run.came = self.move
        self._step(Input.COMMIT)  # from here on the run is here, whatever happens
        guest = self._guest
        assert guest is not None  # noqa: S101 (it is there since READY)
        if self._room.portable is not None:
            return
        try:
            await guest.process.resume()
        except MayflyError as error:  # the run sees that its machine is gone
            log.warning("run %s: its machine does not go on: %s", run.id, error)
            await guest.process.stop(0)

    def _adopt(self, run: Run, exchange: Exchange) -> None:
        guest, ticket, service = self._guest, self._room.ticket, self._service
        assert guest is not None and ticket is not None  # noqa: S101 (they are there since READY)
        self.relay = relay = Relay(run, service)

        def over(_: Run) -> None:
            relay.close()
            self._room.kept.close()

        try:
            service.adopt(run, guest, ticket, lambda _: go_on(exchange, run, service.config, self._job), over)
        except BaseException:
            relay.close()
            raise

    def _have_again(self, come: Run, handed: Handed, away: Followed) -> Run:
        """Have the run that was here before go on with what came, and give it: its readers and
        writers here notice nothing.
        """
        guest, ticket, service = self._guest, self._room.ticket, self._service
        assert guest is not None and ticket is not None  # noqa: S101 (they are there since READY)
        run = service.get(come.id)
        if run.done.is_set() or run.elsewhere is not away or not come.record.has(run.record.end):
            raise MoveError("the run was ended where it comes back to", hint="look at that server's log")
        rest_of_it = Reader(come.record, after=run.record.end)
        while (event := rest_of_it.take()) is not None:
            run.replay(event)

        async def work() -> None:
            try:
                await go_on(exchange, run, service.config, self._job)
            finally:
                relay.close()
                self._room.kept.close()

        rest = away.come_back(work, handed.taken)
        moment = replace(handed.moment, stdin=handed.moment.stdin + rest)
        exchange = self._go_on_with(run, replace(handed, moment=moment))
        service.have_again(run, guest, ticket)
        self.relay = relay = Relay(run, service)
        return run
