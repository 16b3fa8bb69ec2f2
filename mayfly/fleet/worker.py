"""A host in a fleet: pulls runs while it has room, carries them out with the service that it has
anyway, and tells gateways of them.

A run that this host cannot carry out is given back, so that another host does. What a program does
is a result, whatever it is.
"""

import asyncio
import collections
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

from mayfly import __version__
from mayfly.errors import (
    BusyError,
    FleetError,
    HostError,
    MayflyError,
    RequestError,
    RunEndedError,
    StoppingError,
    UnknownLanguageError,
    to_wire,
)
from mayfly.fleet.catalog import Ask, Offers
from mayfly.fleet.engine import Delivery, Engine, Message, NobodyError, SilenceError
from mayfly.fleet.feed import Feed
from mayfly.fleet.fetch import Fetches
from mayfly.fleet.functions.host import HostFunctions
from mayfly.fleet.functions.messages import CREATING
from mayfly.fleet.leaving import Leaving
from mayfly.fleet.message import (
    ANY,
    About,
    Answer,
    Attach,
    Beat,
    Begin,
    Begun,
    Cancel,
    Grant,
    Input,
    Settle,
    Signal,
    Size,
    ToGateway,
    ToHost,
    Verdict,
    Wish,
    Work,
    decode,
    encode,
    name_of,
    token_of,
    wire,
)
from mayfly.fleet.mirror import ending_of
from mayfly.functions.service import Functions
from mayfly.host.metrics import Metrics
from mayfly.host.plan import want_machine
from mayfly.host.snippet import Terminal
from mayfly.images.store import InstalledImage
from mayfly.runs.moves.link import Machines
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from mayfly.schema import replace
from mayfly.snapshots.making import find_base

log = logging.getLogger(__name__)
PULLS = 4
"""That wait for work in one language, at most."""
EXPIRES_S = 5.0
BEAT_S = 1.0
LOOK_S = 5.0
"""From one look at the installed images to the next."""
LATER_S = 0.25
"""Until work that was given back is given out again: else it would come back at once."""
CLOSE_S = 5.0
"""For giving back what is under way when the host stops."""
RUNS_PER_CPU = 4
GONE = 1000
"""Runs that moved away of which that is remembered."""
WARM, COLD, FETCH = 0, 4, 8
"""Priorities: hosts that have a language's base are served first, and last those that
must fetch its image.
"""
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
)
"""Codes of errors that are this host's: other hosts may do better."""


class Active:
    """A run that this host has."""

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


class Worker:
    """The adapter between a service and the fleet. `engine` is connected under the host's name."""

    def __init__(
        self,
        service: Service,
        functions: Functions,
        metrics: Metrics,
        engine: Engine,
        *,
        ack_wait_s: float,
        machines: Machines | None = None,
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._engine = engine
        self._host = engine.name
        self._ack_wait_s = ack_wait_s
        self._active: dict[str, Active] = {}
        self._pulling: dict[str, int] = {}
        self._images: dict[str, InstalledImage] = {}
        self._warm: dict[str, bool] = {}
        self._about = About(name=self._host, arch=service.images.arch, version=__version__, images=[])
        self._digest = ""
        self._fetches = Fetches(self._look)
        self._own_functions = functions
        self._functions = HostFunctions(functions, engine, self._about.arch, room=self._room, spawn=self.spawn, over=self._refill)
        self._offers = ""
        self._draining = False
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._most = RUNS_PER_CPU * len(os.sched_getaffinity(0))
        self._gone: collections.deque[str] = collections.deque(maxlen=GONE)
        self._leaving = Leaving(self, service, engine, machines)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Do something beside."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s", task.get_name(), exc_info=task.exception())

    async def begin(self) -> None:
        """Be one of the fleet.

        Raises:
            FleetError: another host has this one's name.
        """
        name, engine = self._host, self._engine
        with contextlib.suppress(NobodyError, SilenceError):
            await engine.ask(f"ping.{name}", b"", 1)
            raise FleetError(f"the fleet has a host {name!r} already", hint="give this one another --name")
        await engine.listen(f"host.{name}.*", self._hear)
        await engine.listen(f"ping.{name}", lambda message: self.spawn(engine.send(message.reply, b""), "pong"))
        await engine.listen(f"about.{name}", lambda message: self.spawn(engine.send(message.reply, encode(self._about)), "about"))
        await engine.listen(f"measure.{name}", lambda message: self.spawn(engine.send(message.reply, self._metrics.text()), "measure"))
        await engine.listen(f"wish.{name}", lambda message: self.spawn(self._obey(message), "wish"))
        await self._functions.listen()
        await self._leaving.begin()
        await engine.listen_for_work(self._delivered)
        engine.on_return.append(self._returned)
        self._service.admission.on_room.append(self._refill)
        self.spawn(self._beat(), "beat")
        self.spawn(self._keep(), "keep work")

    async def close(self) -> None:
        """Take no more. What was under way has been ended by the service, and is given back."""
        self._closed = True
        self._service.admission.on_room.remove(self._refill)
        await self._fetches.close()
        settling = {task for task in self._tasks if task.get_name().startswith("settle")}
        if settling:
            await asyncio.wait(settling, timeout=CLOSE_S)
        for delivery in (*(active.delivery for active in self._active.values()), *self._functions.under_way):
            await self._engine.give_back(delivery.ack)
        for active in self._active.values():
            for feed in active.feeds.values():
                feed.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _takes(self) -> bool:
        return not (self._draining or self._closed or self._service.stopping) and self._engine.connected

    # Pulling

    def _look(self) -> None:
        """See what images there are."""
        self._images = {token_of(name_of(image)): image for image in self._service.installed()}
        self._warm = {lang: self._is_warm(image) for lang, image in self._images.items()}
        manifests = [image.manifest.to_json().encode() for image in self._images.values()]
        self._about = About(name=self._host, arch=self._service.images.arch, version=__version__, images=manifests)
        self._digest = hashlib.sha256(encode(self._about)).hexdigest()[:16]

    def _is_warm(self, image: InstalledImage) -> bool:
        config = self._service.config
        return config.cold or find_base(want_machine(image, config)) is not None

    def _room(self) -> int:
        """Bytes of memory that a run can have now."""
        admission = self._service.admission
        idle = self._service.supply.pool.reclaimable + self._own_functions.reclaimable
        return 0 if admission.waiting else admission.budget - admission.used + idle

    def _refill(self) -> None:
        """Have as many pulls waiting as there is room for."""
        if not self._takes:
            return
        room, left = self._room(), self._most - len(self._active)
        lacking = self._fetches.lacking(self._images)
        for lang, image in {**self._images, **lacking}.items():
            if lang in lacking and not self._fetches.may(lang):
                continue
            fit = room // want_machine(image, self._service.config).machine.memory
            priority = FETCH if lang in lacking else (WARM if self._warm[lang] else COLD)
            priority += room < self._service.admission.budget // 2
            while self._pulling.get(lang, 0) < min(PULLS, fit, left):
                self._pulling[lang] = self._pulling.get(lang, 0) + 1
                pull = self._engine.pull(self._about.arch, lang, priority=priority, expires_s=EXPIRES_S)
                self.spawn(pull, f"pull {lang}")
        self._functions.refill(self._images)

    def _returned(self) -> None:
        """The connection is there again; pulls that waited are not."""
        self._pulling.clear()
        self._functions.returned()
        self._refill()

    def _delivered(self, lang: str, delivery: Delivery | None) -> None:
        if lang.startswith(CREATING):
            self._functions.delivered(lang, delivery, takes=self._takes)
        else:
            self._pulling[lang] = max(0, self._pulling.get(lang, 0) - 1)
        if delivery is None:
            asyncio.get_running_loop().call_later(LATER_S, self._refill)
            return
        if lang.startswith(CREATING):
            return
        try:
            work = decode(delivery.data, type=Work)
        except ValueError as error:
            log.error("fleet: a run cannot be read, and is left to hosts of another version: %s", error)
            self.spawn(self._engine.give_back(delivery.ack, BEAT_S), "give back")
            return
        if (active := self._active.get(work.id)) is not None and active.work.token != work.token:
            self.spawn(self._engine.give_back(delivery.ack, LATER_S), "give back")  # what came before is not wanted, and ends
            return
        if active is not None:  # the fleet heard too long nothing of it
            active.delivery = delivery
            if active.run is not None:
                self.spawn(self._tell(active, active.work.gateway, self._begun(active, goes_on=True)), "begun")
            return
        if (lang := token_of(work.snippet.language)) in self._fetches.lacking(self._images):
            self._active[work.id] = active = Active(work, delivery)
            self.spawn(self._fetch(active, lang), f"fetch for {work.id}")
        else:
            self._start(work, delivery)
        self._refill()

    async def _fetch(self, active: Active, lang: str) -> None:
        """Begin a run when its image is here."""
        try:
            await self._fetches.fetch(lang)
        except MayflyError:
            await self._engine.give_back(active.delivery.ack, LATER_S)
            return
        finally:
            self._active.pop(active.work.id, None)
        self._start(active.work, active.delivery)

    def _start(self, work: Work, delivery: Delivery) -> None:
        service = self._service
        active = Active(work, delivery)
        try:
            if not self._takes:
                raise StoppingError("this host takes no more runs")
            image = service.image_for(work.snippet)
            if want_machine(image, service.config).machine.memory > self._room():
                raise BusyError("no room")
            active.run = service.start(work.snippet, image, publish=False, run_id=work.id, then=lambda _: self._over(active))
        except (BusyError, StoppingError, HostError, UnknownLanguageError) as error:
            log.debug("fleet: %s is given back: %s", work.id, error)
            self.spawn(self._engine.give_back(delivery.ack, LATER_S), "give back")
            return
        except RequestError as error:
            self._active[work.id] = active
            active.tail.set_result(b"")
            self.spawn(self._settle(active, error, final=True), f"settle {work.id}")
            return
        log.info("run %s: host %s has begun, delivery %d", work.id, self._host, delivery.delivered)
        self._active[work.id] = active
        self.spawn(self._open(active), f"open {work.id}")

    def _begun(self, active: Active, *, goes_on: bool = False) -> Begun:
        return Begun(token=active.work.token, delivered=active.delivery.delivered, ack=active.delivery.ack, goes_on=goes_on)

    async def _open(self, active: Active) -> None:
        """Tell the fleet that this host has the run, and ask whether that is right; meanwhile its
        machine starts.
        """
        work = active.work
        await self._tell(active, work.gateway, self._begun(active))
        self._feed(active, work.gateway).begin()
        await self._ask_whether_right(active)

    async def _ask_whether_right(self, active: Active, moved_from: str = "") -> bool:
        """Ask a gateway; False, and the run is ended, if it is not to go on here."""
        work = active.work
        for _ in range(3):
            question = encode(Begin(token=work.token, delivered=active.delivery.delivered, moved_from=moved_from))
            try:
                answer = await self._engine.ask(f"begin.{self._host}.{work.id}", question)
            except (NobodyError, SilenceError):
                await asyncio.sleep(LATER_S)
                continue
            verdict = decode(answer, type=Verdict).verdict
            if verdict == "done":
                await self._drop(active)
            if verdict != "later":
                return verdict != "done"
            await asyncio.sleep(LATER_S)
        return True

    async def _drop(self, active: Active) -> None:
        """The fleet has a result of the run already, or does not want one."""
        active.unwanted = True
        if active.run is not None:
            await self._service.end(active.run, "the run was ended")

    def _feed(self, active: Active, gateway: str) -> Feed:
        if gateway not in active.feeds:
            assert active.run is not None  # noqa: S101 (only then it is asked for)

            async def send(message: ToGateway) -> None:
                await self._tell(active, gateway, message)

            active.feeds[gateway] = Feed(active.run, send, active.tail, lambda: active.delivery.delivered)
        return active.feeds[gateway]

    async def _tell(self, active: Active, gateway: str, message: ToGateway) -> None:
        await self._engine.send(f"gw.{gateway}.{self._host}.{active.work.id}", encode(message))

    # Runs that move

    def active(self) -> list[Active]:
        """The runs that this host has."""
        return list(self._active.values())

    async def let_go(self, active: Active) -> None:
        """Another host has the run."""
        active.given_away = True
        for feed in active.feeds.values():
            feed.close()
        self._active.pop(active.work.id, None)
        self._gone.append(active.work.id)
        if active.run is not None:
            await self._service.leave(active.run)
            self._service.runs.drop(active.run)

    async def adopt(self, work: Work, delivery: Delivery, run: Run, host: str, gateways: Iterable[str]) -> None:
        """Have a run that moved here from `host`, in whose midst those gateways are."""
        if work.id in self._active:
            return
        self._active[work.id] = active = Active(work, delivery)
        active.run = run
        self.spawn(self._await_end(active, run), f"await {run.id}")
        log.info("run %s: host %s has it from %s, delivery %d", run.id, self._host, host, delivery.delivered)
        if await self._ask_whether_right(active, moved_from=host):
            begun = replace(self._begun(active), moved_from=host)
            for gateway in {work.gateway, *gateways}:
                await self._tell(active, gateway, begun)

    async def _await_end(self, active: Active, run: Run) -> None:
        await self._service.settled(run)
        self._over(active)

    # The end

    def _over(self, active: Active) -> None:
        """The service is done with a run."""
        run = active.run
        if active.given_away:
            return
        assert run is not None  # noqa: S101 (it was started)
        error = run.outcome.error
        stopped = self._service.stopping and isinstance(error, RunEndedError)
        elsewhere = error is not None and (stopped or error.code in ELSEWHERE)
        if not active.tail.done():
            active.tail.set_result(encode(ending_of(run, self._host)))
        self.spawn(self._settle(active, error if elsewhere else None, final=not elsewhere), f"settle {run.id}")

    async def _settle(self, active: Active, error: MayflyError | None, *, final: bool) -> None:
        """Bring the result to a gateway, until one has it."""
        work, run = active.work, active.run
        gateway, wait_s = work.gateway, 0.1
        verdict = "done" if active.unwanted else ""
        while not verdict:
            message = Settle(token=work.token, delivered=active.delivery.delivered, error=wire(error), final=final)
            try:
                answer = await self._engine.ask(f"settle.{gateway}.{self._host}.{work.id}", encode(message), 20)
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
        if verdict == "again":
            await self._engine.give_back(active.delivery.ack, 0 if self._service.stopping else LATER_S)
        else:
            await self._engine.done(active.delivery.ack)
        for feed in active.feeds.values():
            feed.close()
        self._active.pop(work.id, None)
        if run is not None and (verdict == "again" or active.unwanted):
            self._service.runs.drop(run)  # one of its id may come to this host
        self._refill()

    # What gateways say

    def _hear(self, message: Message) -> None:
        active = self._active.get(message.subject.rpartition(".")[2])
        try:
            said = decode(message.data, type=ToHost)
        except ValueError as error:
            log.error("fleet: a gateway's message cannot be read: %s", error)
            return
        if active is None or active.run is None:
            if message.reply:
                over = Answer(error=to_wire(RunEndedError("the run is over")), moved=message.subject.rpartition(".")[2] in self._gone)
                self.spawn(self._engine.send(message.reply, encode(over)), "answer")
            return
        match said:
            case Attach():
                self._feed(active, said.gateway).attach(said)
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
            answer = Answer(error=to_wire(error))
        if reply:
            await self._engine.send(reply, encode(answer))

    async def _write(self, active: Active, run: Run, said: Input) -> None:
        """Give the program input, once, however often it comes."""
        async with active.writing:
            known = active.received.get(said.gateway, 0)
            if said.offset > known:
                raise RequestError("input is lacking")
            with StdinWriter(run.stdin) as writer:
                await writer.write(said.data[known - said.offset :])
                active.received[said.gateway] = max(known, said.offset + len(said.data))
                if said.end:
                    writer.end()

    async def _obey(self, message: Message) -> None:
        self._draining = decode(message.data, type=Wish).drain
        log.info("fleet: this host %s", "takes no more runs" if self._draining else "takes runs")
        await self._engine.send(message.reply, encode(Answer()))
        self._leaving.drain(self._draining)
        await self._send_beat()
        self._refill()

    # Beside

    async def _send_beat(self) -> None:
        health = self._service.health()
        beat = Beat(
            about=self._digest,
            memory_used=health.memory_used,
            memory_budget=health.memory_budget,
            running=len(self._active) + len(self._functions.under_way),
            waiting=health.waiting,
            idle=health.idle,
            draining=self._draining or self._service.stopping,
            fetching=self._fetches.progress,
        )
        await self._engine.send(f"beat.{self._host}", encode(beat))

    async def _beat(self) -> None:
        looked_at = -LOOK_S
        while True:
            if (now := asyncio.get_running_loop().time()) - looked_at >= LOOK_S:
                looked_at = now
                await asyncio.to_thread(self._look)
                await self._hear_offers()
            await self._send_beat()
            self._refill()
            await asyncio.sleep(BEAT_S)

    async def _hear_offers(self) -> None:
        """Ask which images the fleet has in a registry."""
        asked = Ask(arch=self._about.arch, known=self._offers)
        with contextlib.suppress(NobodyError, SilenceError):
            told = decode(await self._engine.ask(f"offers.{self._host}", encode(asked), 2), type=Offers)
            self._offers = told.known
            if told.offers is not None:
                self._fetches.offered(told.offers)
            if told.functions is not None:
                self._functions.offered(told.functions)

    async def _keep(self) -> None:
        """Say of each run that it goes on."""
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            for delivery in (*(active.delivery for active in self._active.values()), *self._functions.under_way):
                await self._engine.still_busy(delivery.ack)


@contextlib.asynccontextmanager
async def joined(
    service: Service, functions: Functions, metrics: Metrics, engine: Engine, *, ack_wait_s: float, machines: Machines | None = None
) -> AsyncIterator[Worker]:
    """Be one of the fleet's hosts while the block is under way. `machines` are how its machines
    move, if not as usual.
    """
    worker = Worker(service, functions, metrics, engine, ack_wait_s=ack_wait_s, machines=machines)
    await worker.begin()
    try:
        yield worker
    finally:
        await worker.close()
