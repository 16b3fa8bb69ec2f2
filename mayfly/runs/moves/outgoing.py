"""The source's side of a move: offer the run, send its machine while it runs, pause it, send the
rest, give it up. handover.py says what may follow what; after COMMIT nothing here lets the machine
go on before the destination has said that it never will.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NoReturn

from mayfly.errors import MayflyError, MoveError, NotMovableError, RunEndedError, ServerLostError
from mayfly.guests.converse import Elsewhere, Exchange
from mayfly.protocol.phases import Phase
from mayfly.runs.carried import Carried, Then
from mayfly.runs.described import describe
from mayfly.runs.moments import Moment, hold, moment_of
from mayfly.runs.moves import images
from mayfly.runs.moves.followed import Followed, ask
from mayfly.runs.moves.handover import SOURCE, Input, Source
from mayfly.runs.moves.link import Connect, ImageSent, Link, Machines, Round, Times, close_quietly, within
from mayfly.runs.moves.messages import (
    MAX_PAGES,
    Broken,
    Commit,
    Fits,
    Handed,
    Lacks,
    Message,
    Misfits,
    Offer,
    Pages,
    Ready,
    Running,
    batches,
    error_of,
)
from mayfly.runs.moves.relay import Relay
from mayfly.runs.moves.room import beside
from mayfly.runs.record import Reader
from mayfly.runs.run import Run
from mayfly.schema import Record, replace

log = logging.getLogger(__name__)
WAIT_S = 10.0
"""For the end of a move that is past the point of no return."""


class Moved(Record, frozen=True, kw_only=True):
    """A run has moved: how long that took, how long its machine stood still meanwhile, in seconds,
    the rounds in which its memory was sent while it ran, and all bytes of the machine.
    """

    to: str
    total_s: float
    pause_s: float
    rounds: int
    bytes: int


class Outgoing:
    """The move of `run` to the server that `connect` connects to and whose name is `to`.

    It came here by the move `came`, if it did, and what its source sends comes by `relay`.
    `tell` is told of each round, and of the image before. `forget` is called before the machine is
    given up, which it is not if that raises a MayflyError, and `freed` when it is gone.
    """

    def __init__(
        self,
        run: Run,
        exchange: Exchange,
        connect: Connect,
        machines: Machines,
        *,
        to: str,
        came: str | None,
        relay: Relay | None,
        limit_bytes_s: int,
        tell: Callable[[Round | ImageSent], None],
        forget: Callable[[], Awaitable[None]],
        freed: Callable[[], None],
        times: Times,
    ) -> None:
        self.id = os.urandom(16).hex()
        self.state = Source.OFFERED
        self.to = to
        self._run = run
        self._exchange = exchange
        self._guest = exchange.guest
        self._connect = connect
        self._machines = machines
        self._limit_bytes_s = limit_bytes_s
        self._tell = tell
        self._forget = forget
        self._freed = freed
        self._times = times
        self._task: asyncio.Task[Moved] | None = None
        self._events = Reader(run.record)
        self._rounds = self._bytes = 0
        self._paused = self._cancelled = False
        self._held_at = self._paused_s = 0.0
        self._skip = self._taken = 0
        self._came, self._relay = came, relay
        self._back = False  # it goes where it came from
        self._held_relay: Relay | None = None
        self._carried: Carried | None = None  # the program, if that moves without its machine

    def begin(self) -> "asyncio.Task[Moved]":
        """Begin to move. The task's result is a Moved; it raises a MayflyError where the run goes
        on here, or nobody knows where.
        """
        self._task = asyncio.create_task(self._carry_out(), name=f"move run {self._run.id}")
        return self._task

    def cancel(self) -> bool:
        """Take the move back; false if it is too late for that."""
        if self._task is None or self.state in (Source.COMMITTED, Source.ASKING, Source.GIVEN):
            return False
        if not self._cancelled:  # a second time would disturb what lets the run go on
            self._cancelled = True
            self._task.cancel()
        return True

    def abandon(self) -> None:
        """As run.Moving."""
        if self._task is not None:
            self._task.cancel()

    async def give_way(self) -> None:
        """As run.Moving."""
        self.cancel()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=WAIT_S)

    def _step(self, happened: Input) -> None:
        """Take a step of the handover."""
        state = SOURCE[self.state, happened].state
        assert isinstance(state, Source)  # noqa: S101 (of this table)
        log.debug("move %s: %s -> %s", self.id, self.state.name, state.name)
        self.state = state

    async def _carry_out(self) -> Moved:
        begun = time.monotonic()
        self._run.moving = self
        try:
            async with self._run.alone:
                return await self._move(begun)
        finally:
            self._run.moving = None
            self._run.going.set()

    async def _move(self, begun: float) -> Moved:
        link = await self._connect()
        try:
            await self._prepare(link)
            await self._forget()
            self._step(Input.READY)
        except BaseException as error:
            await self._keep(error)
            raise
        finally:
            if self.state is not Source.COMMITTED:
                await close_quietly(link)
        await self._commit(link)
        return Moved(
            to=self.to,
            total_s=round(time.monotonic() - begun, 6),
            pause_s=round(self._paused_s, 6),
            rounds=self._rounds,
            bytes=self._bytes,
        )

    async def _keep(self, error: BaseException) -> None:
        """The run goes on here."""
        if self.state is not Source.KEPT:
            cuts = {asyncio.CancelledError: Input.CANCEL, ServerLostError: Input.CUT}
            self._step(next((cut for kind, cut in cuts.items() if isinstance(error, kind)), Input.FAULT))
        await self._go_on_here()

    async def _go_on_here(self) -> None:
        if self._paused:
            try:
                await self._guest.process.resume()
            except MayflyError as error:  # the run sees that its machine is gone
                log.warning("run %s: its machine does not go on: %s", self._run.id, error)
            self._paused = False
        if self._carried is not None:
            self._carried.decide(Then.HERE)  # be it stopped already, or later
        if self._held_relay is not None:
            self._held_relay.go_on()
            self._held_relay = None
        self._exchange.go_on()

    def _hand_over(self, elsewhere: Elsewhere) -> None:
        """The run goes on elsewhere."""
        if self._carried is not None:
            self._carried.decide(elsewhere)
        else:
            self._exchange.hand_over(elsewhere)

    async def _prepare(self, link: Link) -> None:
        """Bring the run as far as READY.

        Raises:
            NotMovableError: it does not fit there, or ended meanwhile.
            MayflyError: it cannot be moved.
        """
        wanted, machine = self._guest.wanted, await self._machines.offer(self._guest)
        image = wanted.image
        await link.send(
            Offer(
                move=self.id,
                run=describe(self._run, wanted.machine),
                machine=machine,
                came=self._came,
                generator=image.manifest.generator,
                room=beside(wanted),
            )
        )
        async with within(self._times.answer_s, "the destination did not answer"):
            answer = await link.receive()
        if isinstance(answer, Lacks) and answer.digest == image.manifest.initramfs_digest:
            await images.send(link, image, self._tell)
            async with within(self._times.ready_s, "the image was not there"):
                answer = await link.receive()
        match answer:
            case Fits(held=held, portable=portable, back=back) if self._run.checkpoint or not portable:
                self._back = back
                self._step(Input.FITS)
            case Misfits(reasons=reasons):
                self._step(Input.MISFITS)
                raise NotMovableError(f"the run does not fit to {self.to}: {'; '.join(reasons)}")
            case _:
                self._refuse(answer)
        work = self._copy_program(link) if portable else self._copy(link, held)
        copying = asyncio.create_task(work, name=f"send run {self._run.id}")
        hearing = asyncio.create_task(link.receive(), name=f"hear of run {self._run.id}")
        try:
            await asyncio.wait([copying, hearing], return_when=asyncio.FIRST_COMPLETED)
            if hearing.done():
                self._refuse(hearing.result())
            copying.result()
            self._step(Input.COPIED)
            async with within(self._times.ready_s, "the machine was not there"):
                answer = await hearing
        finally:
            for task in (copying, hearing):
                task.cancel()
            await asyncio.gather(copying, hearing, return_exceptions=True)
        if not isinstance(answer, Ready):
            self._refuse(answer)

    def _refuse(self, message: Message) -> NoReturn:
        """Raise what a message says that is none of those that may come."""
        if isinstance(message, Broken):
            self._step(Input.BROKEN)
            raise error_of(message.error)
        raise MoveError(f"the destination sent {type(message).__name__} where a move {self.state.value}")

    async def _copy(self, link: Link, held: int) -> None:
        """Send everything, first while the run goes on, then the rest of it."""
        write = partial(self._write, link)
        await self._send_events(link)
        await self._machines.send_rounds(self._guest, write, held=held, limit_bytes_s=self._limit_bytes_s, progress=self._round)
        await self._send_events(link)
        await self._hold()
        self._paused = True
        await self._machines.send_last(self._guest, write)
        if not await self._exchange.stand_still():
            raise NotMovableError("the run ended, or had not begun, when it was to be handed over", hint="move it while its program runs")
        await self._send_events(link)
        await self._hand(link, moment_of(self._exchange))

    async def _copy_program(self, link: Link) -> None:
        """Stop the program, and send its checkpoint: what the machine has besides stays behind."""
        run, conversation = self._run, self._guest.conversation
        await self._hold()
        if conversation.phase is not Phase.STEP or not run.outcome.built:
            raise NotMovableError("the program itself is not under way", hint="move the run while its program runs")
        moment = moment_of(self._exchange)
        run.carried = self._carried = Carried(run, moment.standing.plan())
        await self._guest.process.write(conversation.signal(signal.SIGUSR1))
        async with within(self._times.answer_s, "the program was not stopped"):
            state = await asyncio.shield(self._carried.state)
        if state is None:
            raise RunEndedError("the run ended before it was moved")
        await self._send_events(link)
        await self._write(link, state)
        start = self._carried.start(conversation.written).encode()
        standing = replace(moment.standing, start=start, step=0, packet=b"", skipping=False, sent=0, recent=b"")
        await self._hand(link, replace(moment, standing=standing))

    async def _write(self, link: Link, data: bytes) -> None:
        for at in range(0, len(data), MAX_PAGES):
            piece = data[at : at + MAX_PAGES]
            await link.send(Pages(data=piece))
            self._bytes += len(piece)

    async def _hold(self) -> None:
        self._held_at = time.monotonic()
        await hold(self._run, self._exchange, self._times.flush_s)
        if self._back and self._relay is not None:
            self._held_relay, self._taken = self._relay, self._relay.hold()

    async def _hand(self, link: Link, moment: Moment) -> None:
        """Send what the run is besides."""
        self._skip = len(moment.stdin)
        await link.send(Handed(moment=moment, phases=dict(self._run.phases), taken=self._taken))

    def _round(self, one: Round) -> None:
        self._rounds = one.number
        self._tell(one)

    async def _send_events(self, link: Link) -> None:
        """Send what the run's record has got since the last time."""
        for batch in batches(iter(self._events.take, None)):
            await link.send(batch)

    async def _commit(self, link: Link) -> None:
        """Give the machine up, and see to it that the destination has it."""
        taken = None
        try:
            await link.send(Commit())
            async with within(self._times.answer_s, "the destination did not answer"):
                answer = await link.receive()
            if isinstance(answer, Running):
                self._step(Input.RUNNING)
                taken = answer.taken
            elif isinstance(answer, Broken):
                self._step(Input.BROKEN)
            else:
                self._step(Input.CUT)
        except MayflyError as error:
            log.warning("move %s: lost after COMMIT: %s", self.id, error)
            self._step(Input.CUT)
        if self.state is Source.ASKING:
            await close_quietly(link)
            link, taken = await self._ask()
        if self.state is Source.KEPT or taken is None:
            await close_quietly(link)
            await self._go_on_here()
            raise MoveError(f"{self.to} could not take the run in the end; it goes on here", hint="look at that server's log")
        self._paused_s = time.monotonic() - self._held_at
        await self._give(link, taken)

    async def _ask(self) -> tuple[Link, int | None]:
        """Ask until it is known what became of the run.

        Raises:
            MoveError: that cannot be found out in time; the run is over here.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + max(self._times.lost_s, self._exchange.left_s)
        while True:
            try:
                link = await self._connect()
                try:
                    taken = await ask(link, self.id, self._run, self._times, holds=True)
                except BaseException:
                    await close_quietly(link)
                    raise
                self._step(Input.UNKNOWN if taken is None else Input.RUNNING)
                return link, taken
            except MayflyError as error:
                log.warning("move %s: asking what became of the run: %s", self.id, error)
                self._step(Input.CUT)
            if loop.time() > until:
                break
            await asyncio.sleep(self._times.again_s)
        hint = f"ask there for the run {self._run.id}"
        gone = MoveError(f"{self.to} does not answer; it is not known whether the run goes on there", hint=hint)
        self._hand_over(partial(_fail, gone))
        raise gone

    async def _give(self, link: Link, taken: int) -> None:
        """The destination runs it: free the machine here, and follow the run."""
        in_step = self._carried is not None or self._guest.conversation.phase is Phase.STEP
        followed = Followed(self._run, self.id, link, self._connect, to=self.to, skip=self._skip, in_step=in_step, times=self._times)
        if self._run.done.is_set() if self._carried else self._exchange.over:  # the run was ended here in the meantime
            await followed.end("the run was ended where it came from")
        else:
            self._run.elsewhere = followed
            self._hand_over(followed.follow)
        await self._guest.process.stop(0)
        self._freed()


async def _fail(error: MayflyError) -> None:
    raise error
