"""A host in a fleet: pulls runs while it has room, carries them out with the service that it has
anyway, and tells gateways of them.

A run that this host cannot carry out is given back, so that another host does. What a program does
is a result, whatever it is.
"""

import asyncio
import contextlib
import hashlib
import logging
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from mayfly import __version__
from mayfly.errors import BusyError, HostError, MayflyError, RequestError, SnapshotError, StoppingError, UnknownLanguageError
from mayfly.fleet.buckets import RENEW_S
from mayfly.fleet.carrying import ELSEWHERE, LATER_S, Active, Carrying
from mayfly.fleet.catalog import Ask, Offers
from mayfly.fleet.engine import MOST_UNREAD, Delivery, Engine, Message
from mayfly.fleet.failing import Failing
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.fetch import Fetches
from mayfly.fleet.functions.host import HostFunctions
from mayfly.fleet.functions.messages import CREATING
from mayfly.fleet.held import Failed, held
from mayfly.fleet.leaving import Leaving
from mayfly.fleet.message import About, Answer, Beat, Claim, Held, Wish, Work, decode, encode, name_of, queue_of, token_of
from mayfly.fleet.presence import claim_name
from mayfly.fleet.tasks import Tasks
from mayfly.functions.service import Functions
from mayfly.host.metrics import Metrics
from mayfly.host.plan import want_machine
from mayfly.host.snippet import Snippet
from mayfly.images.store import InstalledImage
from mayfly.runs.moves.link import Machines, Times
from mayfly.runs.service import Service
from mayfly.snapshots.making import find_base

log = logging.getLogger(__name__)
PULLS = 4
"""That wait for work in one language, at most."""
EXPIRES_S = 5.0
BEAT_S = 1.0
LOOK_S = 5.0
"""From one look at the installed images to the next."""
CLOSE_S = 5.0
"""For giving back what is under way when the host stops."""
UNFIT_S = 600.0
"""For which a host asks for no runs from a snapshot that its machines cannot go on from."""
OF_SOME = ("network_failed", "move_failed")
"""Codes of errors that say nothing of other runs, which have no network or have not moved."""
RUNS_PER_CPU = 4
WARM, COLD, FETCH = 0, 4, 8
"""Priorities: hosts that have a language's base are served first, and last those that
must fetch its image.
"""


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
        self._tasks = tasks = Tasks()
        self._carrying = Carrying(service, engine, tasks.spawn, self._refill)
        self._carrying.ended = self._ended
        self._failing = Failing()
        self._pulling: dict[str, int] = {}
        self._images: dict[str, InstalledImage] = {}
        self._warm: dict[str, bool] = {}
        self._memory: dict[str, int] = {}
        self._snapshots: dict[str, Held] = {}
        self._unfit: dict[tuple[str, str], float] = {}  # until when, by snapshot and image
        self._failed: Failed = {}
        self._looking = threading.Lock()
        self._handed_of: set[str] = set()
        self._about = About(name=self._host, arch=service.images.arch, version=__version__, images=[])
        self._digest = ""
        self._fetches = Fetches(self._look, service.config.image_keys)
        self._own_functions = functions
        self._functions = HostFunctions(
            functions,
            engine,
            self._about.arch,
            fetches=self._fetches,
            failing=self._failing,
            room=self._room,
            spawn=tasks.spawn,
            over=self._refill,
            takes=lambda: self._takes,
            connect=lambda host: self._leaving.connect(host),
            spawner=service.spawner,
            times=Times().on(service.config),
        )
        self._offers = ""
        self._draining = False
        self._closed = False
        self._most = RUNS_PER_CPU * len(os.sched_getaffinity(0))
        self._leaving = Leaving(self._carrying, service, engine, self._functions.requests, machines)

    async def begin(self) -> None:
        """Be one of the fleet.

        Raises:
            FleetError: another member has this one's name.
        """
        name, engine = self._host, self._engine
        spawn = self._tasks.spawn
        await claim_name(engine, spawn)
        await self._carrying.listen()
        await engine.listen(f"about.{name}", lambda message: spawn(engine.send(message.reply, encode(self._about)), "about"))
        await engine.listen(f"measure.{name}", lambda message: spawn(engine.send(message.reply, self._metrics.text()), "measure"))
        await engine.listen(f"wish.{name}", lambda message: spawn(self._obey(message), "wish"))
        await self._functions.listen()
        await self._leaving.begin()
        await engine.listen_for_work(self._delivered)
        engine.on_return.append(self._returned)
        self._service.admission.on_room.append(self._refill)
        spawn(self._look_often(), "look")
        spawn(self._beat(), "beat")
        spawn(self._keep(), "keep work")
        spawn(self._renew(), "renew what is known")

    async def close(self) -> None:
        """Take no more. What was under way has been ended by the service, and is given back."""
        self._closed = True
        self._service.admission.on_room.remove(self._refill)
        await self._engine.hear_no_work()  # else what is given back may come here, and be lost for a while
        await self._fetches.close()
        if settling := self._tasks.named("settle"):
            await asyncio.wait(settling, timeout=CLOSE_S)
        for delivery in self._under_way:
            await self._engine.give_back(delivery.ack)
        self._carrying.close()
        await self._tasks.close()

    @property
    def _under_way(self) -> list[Delivery]:
        """All work that this host has."""
        return [*self._carrying.deliveries, *self._functions.under_way]

    @property
    def _takes(self) -> bool:
        return not (self._draining or self._closed or self._service.stopping) and self._engine.connected

    # Pulling

    def _look(self) -> None:
        """See what images and snapshots there are."""
        with self._looking:  # else an older look could put back what it saw
            self._look_now()

    def _look_now(self) -> None:
        images = {token_of(name_of(image)): image for image in self._service.installed()}
        warm = {lang: self._is_warm(image) for lang, image in images.items()}
        memory = {lang: self._memory_of(image) for lang, image in images.items()}
        manifests = [image.manifest.to_json().encode() for image in images.values()]
        found = held(images.values(), self._service.config, self._failed)
        self._warm, self._memory, self._images = warm, memory, images
        self._snapshots = {queue_of(one.image, one.name): one for one in found}
        arch = self._service.images.arch
        known = {**self._snapshots, **self._fetches.lacking_snapshots(self._snapshots)}
        unfit = [queue for queue, one in known.items() if self._is_unfit(one)]
        self._about = About(name=self._host, arch=arch, version=__version__, images=manifests, snapshots=found, unfit=unfit)
        self._digest = hashlib.sha256(encode(self._about)).hexdigest()[:16]

    def _memory_of(self, image: InstalledImage) -> int:
        return want_machine(image, self._service.config).machine.memory

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
        room = self._room()
        lacking = self._fetches.lacking(self._images)
        for lang, image in {**self._images, **lacking}.items():
            if lang in lacking and not self._fetches.may(lang):
                continue
            fit = room // (self._memory.get(lang) or self._memory_of(image))
            priority = FETCH if lang in lacking else (WARM if self._warm[lang] else COLD)
            priority += room < self._service.admission.budget // 2
            self._pull(lang, min(PULLS, fit, self._left(lang)), priority)
        lacking_snapshots = self._fetches.lacking_snapshots(self._snapshots)
        known = {**self._images, **lacking}
        for queue, one in {**self._snapshots, **lacking_snapshots}.items():
            lang = token_of(one.image)
            if not self._is_unfit(one) and lang in known and self._fetches.may(queue) and self._fetches.may(lang):
                priority = FETCH if queue in lacking_snapshots or lang in lacking else WARM
                priority += room < self._service.admission.budget // 2
                self._pull(queue, min(PULLS, room // self._memory_of(known[lang]), self._left(queue)), priority)
        self._functions.refill(self._images)

    def _left(self, queue: str) -> int:
        """How many more runs from there this host may have, if it has the memory."""
        left = self._most - len(self._carrying)
        if self._failing.is_well(queue):
            return left
        return min(left, self._failing.most(queue) - sum(_queue_of(active.work) == queue for active in self._carrying.active))

    def _pull(self, queue: str, most: int, priority: int) -> None:
        """Have so many pulls waiting there."""
        while self._pulling.get(queue, 0) < most:
            self._pulling[queue] = self._pulling.get(queue, 0) + 1
            pull = self._engine.pull(self._about.arch, queue, priority=priority, expires_s=EXPIRES_S)
            self._tasks.spawn(pull, f"pull {queue}")

    def _returned(self) -> None:
        """The connection is there again; pulls that waited are not."""
        self._pulling.clear()
        self._carrying.returned()
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
            self._leave_unread(delivery, error)
            return
        if self._carrying.has(work, delivery):
            return
        if self._leaves(work):  # it was asked for before that was known
            self._carrying.give_back(delivery)
        elif lacking := self._lacking(work):
            self._tasks.spawn(self._fetch(self._carrying.hold(work, delivery), lacking), f"fetch for {work.id}")
        else:
            self._start(work, delivery)
        self._refill()

    def _lacking(self, work: Work) -> list[str]:
        """What a run needs that the fleet offers and this host lacks."""
        lang, queue = token_of(work.snippet.language), _queue_of(work)
        lacking = [lang] if lang in self._fetches.lacking(self._images) else []
        return [*lacking, queue] if queue in self._fetches.lacking_snapshots(self._snapshots) else lacking

    def _key(self, work: Work) -> tuple[str, str]:
        """The digest of the snapshot that a run names, and that of the image it would have here."""
        queue = _queue_of(work)
        found = self._fetches.lacking_snapshots(self._snapshots).get(queue) or self._snapshots.get(queue)
        return self._key_of(found.digest if found else "", work.snippet.language)

    def _key_of(self, digest: str, image: str) -> tuple[str, str]:
        here = self._images.get(token_of(image))
        return digest, here.manifest.initramfs_digest if here else ""

    def _is_unfit(self, one: Held) -> bool:
        """Whether machines here are known to fail to go on from the snapshot."""
        return self._unfit.get(self._key_of(one.digest, one.image), 0) > time.monotonic()

    def _fits(self, work: Work) -> bool:
        """Whether machines here are not known to fail to go on from the run's snapshot."""
        return not work.snippet.snapshot or self._unfit.get(self._key(work), 0) <= time.monotonic()

    def _leaves(self, work: Work) -> bool:
        """Whether work is left to others, who may do better."""
        queue = _queue_of(work)
        fails = not self._failing.is_well(queue) and self._left(queue) <= 0
        return not self._fits(work) or self._failing.leaves(work.id) or fails

    def _ended(self, work: Work, error: MayflyError | None) -> None:
        """A run has ended here. Where it could not be carried out others may do better."""
        if work.snippet.snapshot and isinstance(error, SnapshotError):
            self._unfit[self._key(work)] = time.monotonic() + UNFIT_S
        elif error is not None and error.code in ELSEWHERE:
            self._failing.failed(_queue_of(work), work.id, error, counts=error.code not in OF_SOME)
        elif error is None:
            self._failing.done(_queue_of(work))

    def _leave_unread(self, delivery: Delivery, error: ValueError) -> None:
        """Leave a run that cannot be read to hosts of another version; without any, it ends."""
        if delivery.delivered >= MOST_UNREAD:
            with contextlib.suppress(ValueError):
                claim = decode(delivery.data, type=Claim)
                work = Work(id=claim.id, token=claim.token, gateway=claim.gateway, snippet=Snippet(language=""))
                problem = HostError(f"no host can read the run: {error}", hint="bring hosts and gateways to the same version")
                self._carrying.refuse(work, delivery, problem)
                return
        self._tasks.spawn(self._engine.leave(delivery, error), "leave work")

    async def _hear_handed(self) -> None:
        """Take work of all languages that are warm here directly, and of all snapshots."""
        warm = [*(lang for lang, warm in self._warm.items() if warm), *self._snapshots]
        for lang in [lang for lang in warm if lang not in self._handed_of]:
            self._handed_of.add(lang)
            await self._engine.listen_for_handed(self._about.arch, lang, self._handed)

    def _handed(self, delivery: Delivery) -> None:
        """A gateway hands over a run. It is for the stream to find a host if this one is half full
        with it: work may be waiting there.
        """
        try:
            work = decode(delivery.data, type=Work)
        except ValueError as error:
            log.error("fleet: a run that is handed over cannot be read: %s", error)
            self._carrying.give_back(delivery)
            return
        lang = token_of(work.snippet.language)
        fits = self._room() - self._memory.get(lang, 0) >= self._service.admission.budget // 2
        queue = _queue_of(work)
        warm = queue in self._snapshots if work.snippet.snapshot else self._warm.get(lang)
        current = warm and self._fits(work) and not self._lacking(work) and self._failing.is_well(queue)
        if fits and current and len(self._carrying) < self._most:
            self._start(work, delivery)
        else:
            self._carrying.give_back(delivery)

    async def _fetch(self, active: Active, lacking: Sequence[str]) -> None:
        """Begin a run when its image and snapshot are here."""
        snippet, wanted = active.work.snippet, self._key(active.work)[0]
        try:
            for what in lacking:
                await self._fetches.fetch(what)
            if _queue_of(active.work) in self._fetches.lacking_snapshots(self._snapshots):
                if (key := self._key(active.work))[0] == wanted:  # else another one was offered meanwhile
                    refused = any(Path(folder).name == snippet.snapshot for folder, _ in self._failed)  # it is of another kernel, say
                    self._unfit[key] = math.inf if refused else time.monotonic() + UNFIT_S
                raise HostError("what was fetched does not fit here")
        except MayflyError as error:
            if isinstance(error, SnapshotError) and error.__cause__ is None:  # else it may pass
                self._unfit[self._key(active.work)] = time.monotonic() + UNFIT_S
            await self._engine.give_back(active.delivery.ack, LATER_S)
            return
        finally:
            self._carrying.release(active)
        self._start(active.work, active.delivery)

    def _start(self, work: Work, delivery: Delivery) -> None:
        try:
            if not self._takes:
                raise StoppingError("this host takes no more runs")
            lang = token_of(work.snippet.language)
            if (image := self._images.get(lang)) is None:
                raise UnknownLanguageError(f"this host has no {work.snippet.language}")
            if self._memory.get(lang, 0) > self._room():
                raise BusyError("no room")
            self._carrying.begin(work, delivery, image)
        except (BusyError, StoppingError, HostError, SnapshotError, UnknownLanguageError) as error:
            log.debug("fleet: %s is given back: %s", work.id, error)
            self._carrying.give_back(delivery)
        except RequestError as error:
            self._carrying.refuse(work, delivery, error)

    async def _obey(self, message: Message) -> None:
        wish = decode(message.data, type=Wish)
        self._draining = wish.drain
        log.info("fleet: this host %s", "takes no more runs" if self._draining else "takes runs")
        await self._engine.send(message.reply, encode(Answer()))
        self._leaving.drain(self._draining, wish.limit_bytes_s)
        await self._send_beat()
        self._refill()

    # Beside

    async def _send_beat(self) -> None:
        health = self._service.health()
        beat = Beat(
            about=self._digest,
            memory_used=health.memory_used,
            memory_budget=health.memory_budget,
            running=len(self._under_way),
            waiting=health.waiting,
            idle=health.idle,
            draining=self._draining or self._service.stopping,
            fetching=self._fetches.progress,
        )
        await self._engine.send(f"beat.{self._host}", encode(beat))

    async def _beat(self) -> None:
        while True:
            try:
                await self._send_beat()
                self._refill()
            except Exception:  # whatever it is, a host that says nothing is taken for dead
                log.exception("fleet: beat")
            await asyncio.sleep(BEAT_S)

    async def _look_often(self) -> None:
        """Beside the beats: to read a new snapshot whole takes longer than a host may be silent."""
        while True:
            try:
                await asyncio.to_thread(self._look)
                await self._hear_handed()
                await self._hear_offers()
                await self._send_beat()
                self._refill()
            except Exception:  # whatever it is, the next look may see more
                log.exception("fleet: look")
            await asyncio.sleep(LOOK_S)

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
            for delivery in (*self._under_way, *self._functions.coming):
                await self._engine.still_busy(delivery.ack)

    async def _renew(self) -> None:
        """Have what is known of long runs and requests kept on."""
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._carrying.renew()
                await self._functions.renew()
            except Exception:  # whatever it is, the next time may do
                log.exception("fleet: renew")


def _queue_of(work: Work) -> str:
    return queue_of(work.snippet.language, work.snippet.snapshot)


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
