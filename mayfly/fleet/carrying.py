"""The runs that a host of a fleet has: each goes on if a gateway says that this is right, is told
to whoever follows it, and is brought to an end that a gateway has stored.
"""

import asyncio
import collections
import contextlib
import logging
from collections.abc import Callable, Sequence

from mayfly.errors import HostError, MayflyError, RequestError, RunEndedError, UnprocessableError, to_wire
from mayfly.fleet.engine import Delivery, Engine, Message
from mayfly.fleet.failures import NobodyError, SilenceError, TooLargeError
from mayfly.fleet.feed import Feed
from mayfly.fleet.message import (
    ANY,
    Answer,
    Attach,
    Begin,
    Begun,
    Cancel,
    Grant,
    Input,
    Settle,
    Signal,
    Size,
    Tail,
    Take,
    Taken,
    ToGateway,
    ToHost,
    Told,
    Verdict,
    Work,
    decode,
    encode,
)
from mayfly.fleet.mirror import ending_of
from mayfly.fleet.steps import step
from mayfly.fleet.tasks import Spawn
from mayfly.fleet.wire import wire
from mayfly.host.snippet import Terminal
from mayfly.images.store import InstalledImage
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from mayfly.schema import replace

log = logging.getLogger(__name__)
LATER_S = 0.25
"""Until work that was given back is given out again: else it would come back at once."""
ASK_S = 2.0
"""For the gateway that took a run to say whether it may begin; then any gateway is asked."""
SETTLE_S = 20.0
BRIEF_S = 0.02
"""A run that is awaited and ends within this is told of once, whole."""
GONE = 1000
"""Runs that moved away of which that is remembered."""
ELSEWHERE = (
    "kvm_failed",
    "kvm_unavailable",
    "host_failed",
    "network_failed",
    "zygote_lost",
    "boot_failed",
    "stopping",
    "image_broken",
    "move_failed",
    "snapshot_failed",
)
"""Codes of errors that are this host's: other hosts may do better."""


class Active:
    """A run that this host has, or work that waits for its image."""

    def __init__(self, work: Work, delivery: Delivery) -> None:
        self.work = work
        self.delivery = delivery
        self.run: Run | None = None
        self.feeds: dict[str, Feed] = {}
        self.tail: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.unwanted = False
        self.received: dict[str, int] = {}
        self.writing = asyncio.Lock()
        self.given_away = False
        self.attempt = 0  # of the run, once it is known
        self.too_large = ""  # why something that happened in it cannot be told


class Carrying:
    """The runs that a host has. `over` is called when it has one less.

    Attributes:
        ended: called with a run that has ended here while this host goes on, and its error.
    """

    def __init__(self, service: Service, engine: Engine, spawn: Spawn, over: Callable[[], None]) -> None:
        self.spawn = spawn
        self.ended: Callable[[Work, MayflyError | None], None] = lambda _, __: None
        self._service, self._engine, self._over = service, engine, over
        self._host = engine.name
        self._active: dict[str, Active] = {}
        self._gone: collections.deque[str] = collections.deque(maxlen=GONE)

    async def listen(self) -> None:
        """Hear what gateways say from now on."""
        await self._engine.listen(f"host.{self._host}.*", self._hear)

    def close(self) -> None:
        """Tell nothing any more."""
        for active in self._active.values():
            for feed in active.feeds.values():
                feed.close()

    def __len__(self) -> int:
        return len(self._active)

    @property
    def active(self) -> list[Active]:
        """The runs that this host has."""
        return list(self._active.values())

    @property
    def deliveries(self) -> list[Delivery]:
        """Their work, which is to be given back if it is not done."""
        return [active.delivery for active in self._active.values()]

    # The beginning

    def has(self, work: Work, delivery: Delivery) -> bool:
        """Whether work that was given out is here: the fleet heard too long nothing of it."""
        active = self._active.get(work.id)
        if active is None:
            return False
        if active.work.token != work.token:  # what came before is not wanted, and ends
            self.give_back(delivery)
            return True
        active.delivery = delivery
        if active.run is not None:
            self.spawn(self._say_goes_on(active), f"{work.id} goes on")
        return True

    def give_back(self, delivery: Delivery) -> None:
        """Let others have work that is not begun here."""
        if delivery.reply:
            self.spawn(self._engine.send(delivery.reply, encode(Taken())), "give back")
        else:
            self.spawn(self._engine.give_back(delivery.ack, LATER_S), "give back")

    def hold(self, work: Work, delivery: Delivery) -> Active:
        """Have work that cannot begin yet."""
        self._active[work.id] = active = Active(work, delivery)
        return active

    def release(self, active: Active) -> None:
        """Have it no more."""
        self._active.pop(active.work.id, None)

    def begin(self, work: Work, delivery: Delivery, image: InstalledImage) -> None:
        """Begin a run.

        Raises:
            MayflyError: as `Service.start`; it is not here then.
        """
        active = Active(work, delivery)
        active.run = run = self._service.start(work.snippet, image, publish=False, run_id=work.id)
        self._active[work.id] = active
        if delivery.delivered <= (not work.awaited):  # nobody else can have begun; otherwise a gateway says which attempt it is
            self._note_begun(active, 1)
        self.spawn(self._open(active, run), f"open {work.id}")
        self.spawn(self._see_to_end(active, run), f"settle {work.id}")

    def _note_begun(self, active: Active, attempt: int) -> None:
        """Log once that the run has begun here."""
        if attempt and not active.attempt:
            active.attempt = attempt
            told = step("begin", active.work.id, attempt=attempt, host=self._host)
            log.info("run %s: host %s has begun, attempt %d", active.work.id, self._host, attempt, extra=told)

    def refuse(self, work: Work, delivery: Delivery, error: MayflyError) -> None:
        """No host can carry the run out."""
        active = self.hold(work, delivery)
        active.tail.set_result(b"")
        self.spawn(self._settle(active, error, final=True), f"settle {work.id}")

    def _begun(self, active: Active, *, goes_on: bool = False) -> Begun:
        return Begun(token=active.work.token, delivered=active.delivery.delivered, ack=active.delivery.ack, goes_on=goes_on)

    async def _open(self, active: Active, run: Run) -> None:
        """Tell the gateway of the run that this host has it, unless it is over before that matters
        to anybody.
        """
        if active.work.awaited:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BRIEF_S):
                    await run.done.wait()
        if not (active.work.awaited and run.done.is_set()):
            await self._take(active)
            await self._say_begun(active)

    async def _take(self, active: Active, ended: Settle | None = None) -> None:
        """Answer the gateway that has handed the run over, if that was not done."""
        if reply := active.delivery.reply:
            active.delivery = active.delivery._replace(reply="")
            await self._engine.send(reply, encode(Taken(host=self._host, ended=ended)))

    async def _say_begun(self, active: Active) -> None:
        """Say that this host has the run, and ask whether that is right; meanwhile its machine
        starts.
        """
        self._feed(active, active.work.gateway).begin()  # which says something after this
        await self._ask_its_gateway(active)

    async def _say_goes_on(self, active: Active) -> None:
        """Say to all who follow the run that it was given out to this host once more."""
        others = active.feeds.keys() - {active.work.gateway}
        telling = (self._tell(active, gateway, self._begun(active, goes_on=True)) for gateway in others)
        await asyncio.gather(self._ask_its_gateway(active, goes_on=True), *telling)

    async def _ask_its_gateway(self, active: Active, *, goes_on: bool = False) -> None:
        """Ask the gateway that took the run whether this host is to have it, or any other one."""
        begun = self._begun(active, goes_on=goes_on)
        try:
            answer = await self._engine.ask(self._place(active, active.work.gateway), encode(begun), ASK_S)
        except (NobodyError, SilenceError):
            await self._ask_whether_right(active, goes_on=goes_on)
            return
        said = decode(answer, type=Verdict)
        match said.verdict:
            case "go":
                self._note_begun(active, said.attempt)
            case "done":
                await self._drop(active)
            case "later":
                await self._ask_whether_right(active, goes_on=goes_on)

    def returned(self) -> None:
        """The connection is there again; what gateways said meanwhile is lost."""
        for active in self._active.values():
            if active.run is not None:
                self.spawn(self._ask_its_gateway(active), f"ask about {active.work.id}")

    async def _ask_whether_right(self, active: Active, moved_from: str = "", *, goes_on: bool = False, renew: bool = False) -> bool:
        """Ask any gateway; False, and the run is ended, if it is not to go on here."""
        work = active.work
        for _ in range(3):
            asked = Begin(token=work.token, delivered=active.delivery.delivered, moved_from=moved_from, goes_on=goes_on, renew=renew)
            question = encode(asked)
            try:
                answer = await self._engine.ask(f"begin.{self._host}.{work.id}", question)
            except (NobodyError, SilenceError):
                await asyncio.sleep(LATER_S)
                continue
            said = decode(answer, type=Verdict)
            if said.verdict == "done":
                await self._drop(active)
            elif said.verdict == "go" and moved_from:
                active.attempt = said.attempt
            elif said.verdict == "go":
                self._note_begun(active, said.attempt)
            if said.verdict != "later":
                return said.verdict != "done"
            await asyncio.sleep(LATER_S)
        return True

    async def renew(self) -> None:
        """Have what is known of runs that last kept on."""
        for active in self.active:
            if active.run is not None and not active.run.done.is_set():
                await self._ask_whether_right(active, renew=True)

    async def _drop(self, active: Active) -> None:
        """The fleet has a result of the run already, or does not want one."""
        active.unwanted = True
        if active.run is not None and not active.run.done.is_set():
            await self._service.end(active.run, "the run was ended")

    # What gateways hear

    def _feed(self, active: Active, gateway: str) -> Feed:
        if gateway not in active.feeds:
            assert active.run is not None  # noqa: S101 (only then it is asked for)

            async def send(message: ToGateway) -> None:
                await self._tell(active, gateway, message)

            active.feeds[gateway] = Feed(active.run, send, active.tail, lambda: active.delivery.delivered)
        return active.feeds[gateway]

    def _place(self, active: Active, gateway: str) -> str:
        return f"gw.{gateway}.{self._host}.{active.work.id}"

    async def _tell(self, active: Active, gateway: str, message: ToGateway) -> None:
        data = encode(message)
        try:
            self._engine.check_size(data)
        except TooLargeError as error:
            active.too_large = str(error)
            return
        await self._engine.send(self._place(active, gateway), data)

    # Runs that move

    async def let_go(self, active: Active) -> None:
        """Another host has the run."""
        active.given_away = True
        for feed in active.feeds.values():
            feed.close()
        self.release(active)
        self._gone.append(active.work.id)
        if active.run is not None:
            await self._service.leave(active.run)
            self._service.runs.drop(active.run)

    async def adopt(self, take: Take, run: Run, host: str) -> None:
        """Have a run that moved here from `host`."""
        work = take.work
        if work.id in self._active:
            return
        active = self.hold(work, Delivery(b"", take.ack, take.delivered))
        active.run, active.received = run, dict(take.received)
        self.spawn(self._see_to_end(active, run), f"settle {run.id}")
        right = await self._ask_whether_right(active, moved_from=host)
        told = step("move", run.id, attempt=active.attempt, host=self._host, moved_from=host)
        log.info("run %s: host %s has it from %s, attempt %d", run.id, self._host, host, active.attempt, extra=told)
        if right:
            begun = replace(self._begun(active), moved_from=host)
            for gateway in {work.gateway, *take.gateways}:
                await self._tell(active, gateway, begun)

    # The end

    async def _see_to_end(self, active: Active, run: Run) -> None:
        """Bring a run to its end, which clients need not wait for its machine to go."""
        await run.done.wait()
        if active.given_away:
            return
        error = run.outcome.error
        stopped = self._service.stopping and isinstance(error, RunEndedError)
        elsewhere = error is not None and (stopped or error.code in ELSEWHERE)
        if not stopped:
            self.ended(active.work, error)
        tail = encode(ending_of(run, self._host))
        if not active.tail.done():
            active.tail.set_result(tail)
        said: list[Told | Tail] = []
        if not active.feeds and elsewhere:
            await self._take(active)
            await self._say_begun(active)  # it counts as an attempt
        elif not active.feeds:
            said = Feed.whole(run, tail, active.delivery.delivered)
        await self._settle(active, error if elsewhere else None, final=not elsewhere, said=said)

    async def _settle(self, active: Active, error: MayflyError | None, *, final: bool, said: Sequence[Told | Tail] = ()) -> None:
        """Bring the result to a gateway, until one has it."""
        work, run = active.work, active.run
        gateway, wait_s = work.gateway, 0.1
        ended = Settle(token=work.token, delivered=0, said=said) if active.delivery.reply and said else None
        await self._take(active, ended)
        verdict = "done" if active.unwanted or ended else ""
        while not verdict:
            if active.too_large:
                hint = "print less, or have run_output lowered"
                error, final, said = UnprocessableError(f"what a case put out cannot be told: {active.too_large}", hint=hint), True, ()
            message = Settle(token=work.token, delivered=active.delivery.delivered, error=wire(error), final=final, said=said)
            try:
                answer = await self._engine.ask(f"settle.{gateway}.{self._host}.{work.id}", encode(message), SETTLE_S)
                verdict = decode(answer, type=Verdict).verdict
                if verdict == "later":
                    verdict = ""
                    await asyncio.sleep(wait_s)
            except NobodyError:
                if gateway == ANY:
                    await asyncio.sleep(wait_s)
                gateway = ANY
            except SilenceError:
                await asyncio.sleep(wait_s)
            wait_s = min(2, 2 * wait_s)
        if run is not None and (verdict == "again" or active.unwanted):
            await self._service.settled(run)
            self._service.runs.drop(run)  # one of its id may come to this host
        if verdict == "again":
            await self._engine.give_back(active.delivery.ack, 0 if self._service.stopping else LATER_S)
        else:
            await self._engine.done(active.delivery.ack)
        for feed in active.feeds.values():
            feed.close()
        self.release(active)
        asyncio.get_running_loop().call_soon(self._over)  # what was said goes out first

    # What gateways say

    def _hear(self, message: Message) -> None:
        run_id = message.subject.rpartition(".")[2]
        active = self._active.get(run_id)
        try:
            said = decode(message.data, type=ToHost)
        except ValueError as error:
            log.error("fleet: a gateway's message cannot be read: %s", error)
            if message.reply:
                unread = Answer(error=to_wire(HostError(f"the host cannot read this: {error}", hint="bring all to the same version")))
                self.spawn(self._engine.send(message.reply, encode(unread)), "answer")
            return
        if active is None or active.run is None:
            if message.reply:
                over = Answer(error=to_wire(RunEndedError("the run is over")), moved=run_id in self._gone)
                self.spawn(self._engine.send(message.reply, encode(over)), "answer")
            return
        match said:
            case Attach():
                self._feed(active, said.gateway).attach(said)
                if message.reply:
                    self.spawn(self._engine.send(message.reply, encode(Answer())), "answer")
            case Grant():
                if said.gateway in active.feeds:
                    active.feeds[said.gateway].grant(said.count)
            case Cancel():
                self.spawn(self._drop(active), "cancel")
            case Input() | Signal() | Size():
                self.spawn(self._answer(active, active.run, said, message.reply), "answer")

    async def _answer(self, active: Active, run: Run, said: Input | Signal | Size, reply: str) -> None:
        answer = Answer()
        try:
            match said:
                case Input():
                    await self._write(active, run, said)
                case Signal():
                    await self._service.signal(run, said.number)
                case Size():
                    await self._service.resize(run, Terminal(columns=said.columns, rows=said.rows))
        except MayflyError as error:
            answer = Answer(error=to_wire(error), moved=active.given_away)
        if reply:
            await self._engine.send(reply, encode(answer))

    async def _write(self, active: Active, run: Run, said: Input) -> None:
        """Give the program input, once, however often it comes."""
        async with active.writing:
            if active.given_away:
                raise RunEndedError("the run goes on at another host")
            known = active.received.get(said.gateway, 0)
            if said.offset > known:
                raise RequestError("input is lacking")
            with StdinWriter(run.stdin) as writer:
                await writer.write(said.data[known - said.offset :])
                active.received[said.gateway] = max(known, said.offset + len(said.data))
                if said.end:
                    writer.end()
