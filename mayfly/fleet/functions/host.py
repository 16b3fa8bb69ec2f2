"""Functions on a host of a fleet: it asks for requests to those that it can answer, asks before it
begins one, and brings the answer to a gateway.

What the fleet calls by one name is here a function of its own for each time that it was changed, so
that the host's own functions stay beside it, and requests to what it was before are answered.
"""

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from mayfly.errors import (
    BusyError,
    HostError,
    MayflyError,
    StoppingError,
    UnknownFunctionError,
    UnknownLanguageError,
)
from mayfly.fleet.engine import Delivery, Engine, Message
from mayfly.fleet.failing import Failing
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.fetch import Fetches
from mayfly.fleet.functions.leaving import Coming, Requests, UnderWay
from mayfly.fleet.functions.messages import CREATING, Answered, Asked, CodeAsk, FleetFunction, Given, Question, Stored, queue_of, sent
from mayfly.fleet.links import HostLink
from mayfly.fleet.message import ANY, Begin, Verdict, decode, encode
from mayfly.fleet.shared import Done, readable
from mayfly.fleet.tasks import Spawn
from mayfly.fleet.wire import error_of, wire
from mayfly.functions import store
from mayfly.functions.answer import Invocation
from mayfly.functions.service import Functions
from mayfly.guests.spawner import Spawner
from mayfly.host.admission import Tenant
from mayfly.images.store import InstalledImage
from mayfly.runs.moves.link import Times

log = logging.getLogger(__name__)
PULLS = 4
"""That wait for requests to one function, at most."""
EXPIRES_S = 5.0
LATER_S = 0.25
WARM, LOADED, KNOWN, FETCH = 0, 2, 4, 8
"""Priorities: hosts with an idle guest of a function are served first, then those that had one, and
last those that must fetch its image.
"""
CODE_S = 20.0
BEGIN_TRIES = 100
INSTALLS = 20
"""Tries to install a function, LATER_S apart."""
SETTLE_S = 20.0
OWNER = "fleet."
"""Of functions that a fleet has put here; no API key is called so."""
ELSEWHERE = ("kvm_failed", "kvm_unavailable", "host_failed", "network_failed", "zygote_lost", "boot_failed", "stopping", "image_broken")
"""Codes of errors with which a guest did not come up here; others may do better."""


class HostFunctions:
    """The adapter between a host's functions and the fleet. `fetches` brings images that lack,
    `failing` knows what fails here, `room` gives the bytes that a guest can have now; `spawn` has
    work done beside, `over` is called when a request is. `takes` says whether this host takes more,
    `connect` begins a connection to another one.

    Attributes:
        requests: gives requests to other hosts, and takes theirs.
    """

    def __init__(
        self,
        functions: Functions,
        engine: Engine,
        arch: str,
        *,
        fetches: Fetches,
        failing: Failing,
        room: Callable[[], int],
        spawn: Spawn,
        over: Callable[[], None],
        takes: Callable[[], bool],
        connect: Callable[[str], HostLink],
        spawner: Spawner,
        times: Times,
    ) -> None:
        self._functions, self._engine, self._arch, self._room, self._spawn, self._over = functions, engine, arch, room, spawn, over
        self._fetches, self._failing, self._takes = fetches, failing, takes
        self.requests = Requests(
            functions,
            engine,
            spawner,
            times=times,
            under_way=lambda: list(self._active.values()),
            answer=self._go_on,
            connect=connect,
            spawn=spawn,
        )
        self._images: Mapping[str, InstalledImage] = {}
        self._offered: Sequence[FleetFunction] = ()
        self._pulling: dict[str, int] = {}
        self._active: dict[str, UnderWay] = {}
        self._coming: dict[str, UnderWay] = {}
        self._making: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def listen(self) -> None:
        """Answer gateways from now on."""
        await self._engine.listen(f"fn.ask.{self._engine.name}", lambda message: self._spawn(self._tell(message), "tell of a function"))

    def offered(self, functions: Sequence[FleetFunction]) -> None:
        """The fleet has these functions; what this host has of others is removed."""
        self._offered = readable(functions, lambda each: each.function)
        self._spawn(self._tidy(), "remove functions")

    async def _tidy(self) -> None:
        wanted = {each.key for each in self._offered} | {request.key for request, _ in (*self._active.values(), *self._coming.values())}
        for function in await asyncio.to_thread(store.installed):
            if function.owner == OWNER and function.name.rpartition("_")[2] not in wanted:
                with contextlib.suppress(MayflyError):
                    await self._functions.remove(function.name)

    @property
    def under_way(self) -> list[Delivery]:
        """The requests that this host has."""
        return [delivery for _, delivery in self._active.values()]

    @property
    def coming(self) -> list[Delivery]:
        """Those that come from other hosts, whose they still are."""
        return [delivery for _, delivery in self._coming.values()]

    async def renew(self) -> None:
        """Have what is known of requests that last kept on."""
        for asked, delivery in list(self._active.values()):
            with contextlib.suppress(NobodyError, SilenceError):
                question = encode(Begin(token=asked.token, delivered=delivery.delivered, renew=True))
                await self._engine.ask(f"fn.begin.{self._engine.name}.{asked.id}", question)

    # Pulling

    def refill(self, images: Mapping[str, InstalledImage]) -> None:
        """Have as many pulls waiting as requests can be answered."""
        self._images = images
        lacking = {lang: image for lang, image in self._fetches.lacking(images).items() if self._fetches.may(lang)}
        room = self._room()
        here, languages = (
            [image for image in each.values() if image.manifest.function is not None] for each in (images, {**images, **lacking})
        )
        if languages:
            self._ask(CREATING, min(1, self._failing.most(CREATING)) - len(self._active), KNOWN if here else FETCH)
        for each in self._offered:
            spec = each.function.spec
            if each.arch != self._arch or not any(image.answers(spec.language) for image in languages):
                continue
            local, active = each.local.name, sum(request.key == each.key for request, _ in self._active.values())
            idle = self._functions.idle(local)
            fit = idle + room // max(1, each.memory)
            priority = WARM if idle > active else LOADED if self._functions.has(local) else KNOWN
            if not any(image.answers(spec.language) for image in here):
                priority = FETCH
            queue = queue_of(spec.name)
            self._ask(queue, min(PULLS, fit, min(spec.concurrency_limit, self._failing.most(queue)) - active), priority)

    def _ask(self, queue: str, most: int, priority: int) -> None:
        while self._pulling.get(queue, 0) < most:
            self._pulling[queue] = self._pulling.get(queue, 0) + 1
            self._spawn(self._engine.pull(self._arch, queue, priority=priority, expires_s=EXPIRES_S), f"pull {queue}")

    def returned(self) -> None:
        """The connection is there again; pulls that waited are not."""
        self._pulling.clear()

    def delivered(self, queue: str, delivery: Delivery | None, *, takes: bool) -> None:
        """A pull has ended, with a request or without one."""
        self._pulling[queue] = max(0, self._pulling.get(queue, 0) - 1)
        if delivery is None:
            return
        if not takes or not self._failing.most(queue):
            self._spawn(self._engine.give_back(delivery.ack, LATER_S), "give back")
            return
        try:
            asked = decode(delivery.data, type=Asked)
        except ValueError as error:
            self._spawn(self._engine.leave(delivery, error), "leave request")
            return
        for known in (self._active, self._coming):
            if asked.id in known:  # the fleet heard too long nothing of it
                known[asked.id] = UnderWay(asked, known[asked.id].delivery._replace(ack=delivery.ack))
                return
        if self._failing.leaves(asked.id):
            self._spawn(self._engine.give_back(delivery.ack, LATER_S), "give back")
            return
        self._active[asked.id] = UnderWay(asked, delivery)
        self._spawn(self._do(queue, asked, delivery), f"settle {asked.id}")

    # Doing

    async def _do(self, queue: str, asked: Asked, delivery: Delivery) -> None:
        try:
            if may := await self._may_begin(asked, delivery):
                if (said := await self._answer(asked)) is not None:
                    self._note(queue, asked, said)
                    await self._settle(asked, said)
            else:
                await self._be_done(asked, "again" if may is None else "done")
        finally:
            self._active.pop(asked.id, None)
            self._over()

    def _note(self, queue: str, asked: Asked, said: Answered) -> None:
        """A request was answered, or could not be for want of this host."""
        error = error_of(said.error)
        if error is None:
            self._failing.done(queue)
        elif said.again and not isinstance(error, BusyError | StoppingError):
            self._failing.failed(queue, asked.id, error)

    async def _go_on(self, given: Given, coming: Coming) -> MayflyError | None:
        """Answer a request that comes from another host; why it stays there, if it does."""
        asked = given.asked
        if not self._takes() or asked.id in self._active or asked.id in self._coming:
            return StoppingError("the host takes no more requests", hint="try another one")
        self._coming[asked.id] = UnderWay(asked, Delivery(b"", given.ack, given.delivered))

        def ours() -> None:
            self._active[asked.id] = self._coming.pop(asked.id)

        coming.on_ours = ours
        try:
            said = await self._answer(asked, coming)
            if not coming.ours:
                return error_of(said.error) if said else None
            if said is not None:
                await self._settle(asked, said)
        finally:
            self._coming.pop(asked.id, None)
            if coming.ours:
                self._active.pop(asked.id, None)
            self._over()
        return None

    async def _be_done(self, asked: Asked, verdict: str) -> None:
        """Acknowledge a request's work, or have others do it again."""
        ack = self._active[asked.id].delivery.ack
        if verdict == "again":
            await self._engine.give_back(ack, LATER_S)
        else:
            await self._engine.done(ack)

    async def _may_begin(self, asked: Asked, delivery: Delivery) -> bool | None:
        """Whether a gateway says so. None: none can say, for too long; others may have it."""
        question = encode(Begin(token=asked.token, delivered=delivery.delivered))
        for _ in range(BEGIN_TRIES):
            with contextlib.suppress(NobodyError, SilenceError):
                answer = await self._engine.ask(f"fn.begin.{self._engine.name}.{asked.id}", question)
                verdict = decode(answer, type=Verdict).verdict
                if verdict != "later":
                    return verdict == "go"
            await asyncio.sleep(LATER_S)
        return None

    async def _answer(self, asked: Asked, coming: Coming | None = None) -> Answered | None:
        """What this host can say to the request, which may be `coming`; None: another host does."""
        said = Answered(token=asked.token, delivered=0)
        try:
            local = await self._have(asked.key, creates=asked.creates)
        except (UnknownLanguageError, HostError, BusyError, NobodyError, SilenceError) as error:
            problem = error if isinstance(error, MayflyError) else HostError(f"the function cannot be had: {error}")
            return Answered(token=asked.token, delivered=0, error=wire(problem), again=True)
        except MayflyError as error:
            return Answered(token=asked.token, delivered=0, error=wire(error))
        if asked.creates:
            return said
        tenant = Tenant(asked.owner) if asked.owner else None
        invocation = Invocation(
            function=local,
            payload=asked.payload,
            content_type=asked.content_type,
            tenant=tenant,
            received=asked.received,
            wait_s=asked.wait_s,
            request_id=asked.id,
        )
        found, has_begun = await self._functions.attempt(invocation, coming.arrival if coming else None)
        if found is None:
            return None
        if isinstance(found, MayflyError):
            said.error = wire(found)
            said.again = not has_begun and (isinstance(found, BusyError | StoppingError) or found.code in ELSEWHERE)
        else:
            said.answer = sent(found)
        return said

    async def _have(self, key: str, *, creates: bool) -> str:
        """The local name of the function, which is fetched from a gateway if need be. One that is
        being created is built and loaded besides.

        Raises:
            MayflyError: it cannot be had.
            NobodyError, SilenceError: no gateway answers.
        """
        known = next((each.local.name for each in self._offered if each.key == key), "")
        if known and self._functions.has(known):
            return known
        async with self._making.setdefault(key, asyncio.Lock()):
            data = await self._engine.ask(f"fn.code.{self._engine.name}", encode(CodeAsk(key=key)), CODE_S)
            done = decode(data, type=Done)
            if (problem := error_of(done.error)) is not None:
                raise problem
            stored = decode(done.data, type=Stored)
            local, code = stored.function.local, dict(stored.code)
            if stored.function.key != key or store.digest(code) != local.code_digest:
                raise HostError(f"the function {local.name} is not what its digest says", hint="create it again")
            await self._have_image(local.spec.language)
            for tries_left in reversed(range(INSTALLS)):
                if self._functions.has(local.name):
                    break
                try:
                    await self._functions.install(msgspec.structs.replace(local, owner=OWNER), code, try_out=creates)
                except BusyError:  # another host on this machine may install it
                    if not tries_left:
                        raise
                    await asyncio.sleep(LATER_S)
            return local.name

    async def _have_image(self, language: str) -> None:
        """Fetch the image that a function needs, if this host lacks it.

        Raises:
            MayflyError: it cannot be had now.
        """
        if any(image.answers(language) for image in self._images.values()):
            return
        for lang, image in self._fetches.lacking(self._images).items():
            if image.answers(language):
                await self._fetches.fetch(lang)
                return

    async def _settle(self, asked: Asked, said: Answered) -> None:
        """Bring what came of it to a gateway, until one has it, and do as that one says."""
        said.delivered = self._active[asked.id].delivery.delivered
        gateway, wait_s, message = asked.gateway, 0.1, encode(said)
        while True:
            try:
                answer = await self._engine.ask(f"fn.settle.{gateway}.{self._engine.name}.{asked.id}", message, SETTLE_S)
                if (verdict := decode(answer, type=Verdict).verdict) != "later":
                    break
            except NobodyError:
                gateway = ANY
            except SilenceError:
                pass
            await asyncio.sleep(wait_s)
            wait_s = min(2, 2 * wait_s)
        await self._be_done(asked, verdict)

    # What gateways ask

    async def _tell(self, message: Message) -> None:
        question, done = decode(message.data, type=Question), Done()
        with contextlib.suppress(UnknownFunctionError):
            found: Any = (
                await self._functions.logs(question.local, question.last)
                if question.last
                else await self._functions.figures(question.local)
            )
            done.data = msgspec.json.encode(found)
        await self._engine.send(message.reply, encode(done))
