"""How a host that is drained gives requests to functions to other hosts: those that no guest has
through the stream, at once, and those that last with their guest's machine. And how it takes those
of others.

    A, which is drained                         B
    Other(Given)           ── link ──>          it has a guest of the function start, as for any
                           <── Fits ──          request, and makes room in its place
    Pages, Other(Rest)     ── link ──>          the machine is there, and stands still
    (it stands still)      <── Ready ──
    asks a gateway to have the move registered: from that moment on the request is B's
    Commit                 ── link ──>          it goes on, and brings the answer to a gateway

The gateway decides alone. While it does not answer A asks again, and both machines stand still. B
asks it whether the move is registered if the connection is lost meanwhile: if it is not, it never
will be.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from mayfly.errors import MayflyError, MoveError, NotMovableError, ServerLostError
from mayfly.fleet.engine import Delivery, Engine
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.functions.messages import Asked, Given, Rest
from mayfly.fleet.links import HostLink
from mayfly.fleet.message import Begin, Found, Seek, Verdict, decode, encode
from mayfly.fleet.tasks import Spawn
from mayfly.functions.lasting import Lasting
from mayfly.functions.request import Arrival, Piece
from mayfly.functions.service import Functions
from mayfly.guests.function import Moment
from mayfly.guests.meanwhile import to_its_end, while_alive
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest
from mayfly.runs.moves.link import Times, close_quietly, within
from mayfly.runs.moves.messages import MAX_PAGES, Broken, Commit, Fits, Message, Other, Pages, Ready, error_of, problem_of
from mayfly.schema import decode as from_json
from mayfly.snapshots import moving

log = logging.getLogger(__name__)
LONG_S = 3.0
"""Requests that end within this time of a drain are not moved."""
AGAIN_S = 2.0
"""Until it is tried again to move what could not be; then for twice as long each time."""
LONGEST_AGAIN_S = 30.0
GUEST_S = 60.0
"""For the other host to have a guest of the function, whose place the request takes."""
LATER_S = 0.25
TRIES = 100
"""Questions whose request it is, where the host that had it is silent, until it is given up."""
_M = TypeVar("_M", bound=Message)


class UnderWay(NamedTuple):
    """A request that a host has."""

    asked: Asked
    delivery: Delivery


class Requests:
    """Gives the requests away that a host has `under_way`, and takes others', which `answer` sees
    to: it gives why one stays where it is, if it does. `connect` begins a connection to a host.
    """

    def __init__(
        self,
        functions: Functions,
        engine: Engine,
        spawner: Spawner,
        *,
        times: Times,
        under_way: Callable[[], list[UnderWay]],
        answer: Callable[[Given, "Coming"], Awaitable[MayflyError | None]],
        connect: Callable[[str], HostLink],
        spawn: Spawn,
    ) -> None:
        self._functions, self._engine, self._spawner, self._times = functions, engine, spawner, times
        self._under_way, self._answer, self._connect, self._spawn = under_way, answer, connect, spawn
        self._draining: asyncio.Task[None] | None = None
        self._limit_bytes_s = 0
        self._misfits: set[tuple[str, str]] = set()  # requests and hosts that they do not fit to

    # Giving

    def drain(self, wanted: bool, limit_bytes_s: int = 0) -> None:
        """Begin to give requests away, or stop that. So many bytes of them are sent a second, 0: no
        limit.
        """
        self._limit_bytes_s = limit_bytes_s
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        if wanted:
            self._misfits.clear()
            for asked, _ in self._under_way():
                self._functions.turn_away(asked.id)
            self._draining = self._spawn(self._drain(), "drain functions")

    async def _drain(self) -> None:
        await asyncio.sleep(LONG_S)
        wait_s = AGAIN_S
        while True:
            for one in self._under_way():
                if (going := self._functions.going(one.asked.id)) is not None:
                    await self._move(one, going)
            await asyncio.sleep(wait_s)
            wait_s = min(LONGEST_AGAIN_S, 2 * wait_s)

    async def _move(self, one: UnderWay, going: Lasting) -> None:
        """Move a request to the first host that takes it, if one does."""
        request_id = one.asked.id
        try:
            hosts = (await self._seek(Seek(token=one.asked.token), request_id)).hosts
        except (NobodyError, SilenceError) as error:
            log.info("request %s: no gateway knows where it could go: %r", request_id, error)
            return
        for host in hosts:
            if (request_id, host) in self._misfits:
                continue
            link = self._connect(host)
            try:
                async with going.alone:
                    await self._give(one, going, host, link)
            except MayflyError as error:
                log.info("request %s: host %s does not take it: %s", request_id, host, error)
                if isinstance(error, NotMovableError):
                    self._misfits.add((request_id, host))
            else:
                log.info("request %s: moved from host %s to %s", request_id, self._engine.name, host)
                return
            finally:
                await close_quietly(link)

    async def _seek(self, question: Seek, request_id: str) -> Found:
        """The hosts that may have room for a request, or the one that it moved to. Raises
        NobodyError, SilenceError: no gateway answers.
        """
        return decode(await self._engine.ask(f"fn.seek.{self._engine.name}.{request_id}", encode(question)), type=Found)

    async def _give(self, one: UnderWay, going: Lasting, host: str, link: HostLink) -> None:
        """Give a request to the host.

        Raises:
            MayflyError: it goes on here, or is over.
        """
        guest, asking, times = going.asking.guest, going.asking, self._times
        machine = msgspec.json.encode(await asyncio.to_thread(moving.offer, guest))
        asked = msgspec.structs.replace(one.asked, payload=b"")  # which the machine has
        given = Given(move=secrets.token_hex(8), asked=asked, delivered=one.delivery.delivered, ack=one.delivery.ack, machine=machine)
        await link.send(Other(data=encode(given)))
        async with within(GUEST_S, "the host had no guest"):
            fits = expect(Fits, await link.receive())

        async def write(data: bytes) -> None:
            for at in range(0, len(data), MAX_PAGES):
                await link.send(Pages(data=data[at : at + MAX_PAGES]))

        await moving.send_rounds(guest, write, held=fits.held, limit_bytes_s=self._limit_bytes_s or None)
        async with going.still():
            try:
                await moving.send_last(guest, write)
                rest = Rest(moment=await asking.at_rest(), log=going.request.log)
                await link.send(Other(data=encode(rest)))
                async with within(times.ready_s, "the machine was not there"):
                    expect(Ready, await link.receive())
                moved = await to_its_end(self._let_go(one, going, host, given.move))
            except MayflyError as error:
                with contextlib.suppress(ServerLostError):
                    await link.send(Broken(error=problem_of(error)))
                raise
            finally:
                if not going.request.answer.cancelled():
                    with contextlib.suppress(MayflyError):  # it has ended, which its channel tells
                        await guest.process.resume()
        if moved:
            with contextlib.suppress(ServerLostError):  # the other host asks the gateway then
                await link.send(Commit())

    async def _let_go(self, one: UnderWay, going: Lasting, host: str, move: str) -> bool:
        """Have the request registered as that host's, and be done with it. False: it was this
        host's no more.

        Raises:
            MoveError: it stays this host's.
        """
        question = encode(Begin(token=one.asked.token, delivered=one.delivery.delivered, moved_to=host, move=move))
        place = f"fn.begin.{self._engine.name}.{one.asked.id}"
        while True:
            with contextlib.suppress(NobodyError, SilenceError):
                verdict = decode(await self._engine.ask(place, question), type=Verdict).verdict
                if verdict in ("moved", "done"):
                    going.go(host)
                    return verdict == "moved"
                if verdict != "later":
                    raise MoveError("the other host has let go of it, or no gateway registers the move")
            await asyncio.sleep(LATER_S)

    # Taking

    async def take(self, first: Other, link: HostLink) -> None:
        """Take what another host gives, which has begun so."""
        try:
            given = decode(first.data, type=Given)
            coming = Coming(given, link, self._spawner, self._times, self._is_ours)
            error = await self._answer(given, coming)
            if error is not None:
                await link.send(Broken(error=problem_of(error)))
        finally:
            await close_quietly(link)

    async def _is_ours(self, given: Given) -> bool:
        """Whether a request that came is registered as this host's; if not, it never will be."""
        question = Seek(token=given.asked.token, move=given.move)
        for _ in range(TRIES):
            with contextlib.suppress(NobodyError, SilenceError):
                return (await self._seek(question, given.asked.id)).host == self._engine.name
            await asyncio.sleep(LATER_S)
        return False


class Coming:
    """A request that comes over `link`; what waits for its guest has `arrival`.

    Attributes:
        ours: whether it is this host's.
    """

    def __init__(self, given: Given, link: HostLink, spawner: Spawner, times: Times, is_ours: Callable[[Given], Awaitable[bool]]) -> None:
        self.ours = False
        self.on_ours: Callable[[], None] = lambda: None
        self._given, self._link, self._spawner, self._times, self._is_ours = given, link, spawner, times, is_ours
        self._page = b""

    @property
    def arrival(self) -> Arrival:
        """How its machine comes."""
        return self._come

    async def _come(self, guest: Guest) -> tuple[Guest, Moment, Sequence[Piece]]:
        offered = from_json(moving.Offer, self._given.machine)
        here = await asyncio.to_thread(moving.offer, guest)
        if reasons := moving.misfits(offered, here):
            raise NotMovableError(f"the request does not fit: {'; '.join(reasons)}")
        held = moving.held(offered, here)
        await guest.process.stop(0)
        await self._link.send(Fits(held=held))
        found = await moving.receive(self._spawner, moving.wanted_with(guest.wanted, held), self._read)
        try:
            rest = decode(expect(Other, await while_alive(found.process, self._link.receive())).data, type=Rest)
            rest.moment.conversation(arch=found.hello.arch, end_marker=found.hello.end_marker)  # whether it can go on
            await self._link.send(Ready())
            await self._wait_for_it(found)
        except BaseException:
            await found.process.stop(0)
            raise
        return found, rest.moment, rest.log

    async def _read(self, most: int) -> bytes:
        """Bytes of the machine."""
        if not self._page:
            self._page = expect(Pages, await self._link.receive()).data
        piece, self._page = self._page[:most], self._page[most:]
        return piece

    async def _wait_for_it(self, found: Guest) -> None:
        """Wait until the request is this host's.

        Raises:
            MayflyError: it is not, or its machine is lost.
        """
        try:
            message = await while_alive(found.process, self._link.receive())
        except MayflyError:
            if not await self._is_ours(self._given):
                raise
        else:
            expect(Commit, message)
        self.ours = True
        self.on_ours()


def expect(kind: type[_M], message: Message) -> _M:
    """The message, which is of that kind. Raises MayflyError: what it says instead."""
    if isinstance(message, kind):
        return message
    raise error_of(message.error) if isinstance(message, Broken) else MoveError(f"the other host sent {type(message).__name__}")
