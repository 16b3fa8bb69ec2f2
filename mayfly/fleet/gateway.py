"""A gateway: takes runs as a host's service does, and has the hosts of a fleet carry them out.

A run is accepted when it is registered and the stream has it on disk. It has one result, the first
that is stored. A gateway holds nothing else that would be missed: runs go on without it, and any
other gateway finds them.
"""

import asyncio
import contextlib
import hashlib
import logging
import secrets
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from mayfly.errors import (
    BodyTooLargeError,
    BusyError,
    FleetError,
    HostError,
    MayflyError,
    NotInteractiveError,
    NotRunningError,
    RunEndedError,
    StoppingError,
    UnknownRunError,
    UnprocessableError,
)
from mayfly.fleet.engine import Bucket, Engine, FullError, Message, NobodyError, SilenceError, TooLargeError
from mayfly.fleet.message import (
    ANY,
    PIECE,
    WINDOW,
    About,
    Answer,
    Attach,
    Beat,
    Begin,
    Begun,
    Cancel,
    Ending,
    Grant,
    Input,
    Registered,
    Settle,
    Signal,
    Size,
    Tail,
    ToGateway,
    ToHost,
    Told,
    Verdict,
    Work,
    decode,
    encode,
    error_of,
    place,
    token_of,
)
from mayfly.fleet.mirror import Mirror, conclude, ending_of, head_of, make_run, restore, store
from mayfly.fleet.results import Results
from mayfly.fleet.roll import Roll
from mayfly.fleet.worker import name_of
from mayfly.host.admission import Tenant
from mayfly.host.config import Config
from mayfly.host.plan import make_plan
from mayfly.host.snippet import Snippet, Terminal
from mayfly.images.store import InstalledImage
from mayfly.runs.kept import Runs
from mayfly.runs.output import OutputSocket
from mayfly.runs.repeats import Repeat
from mayfly.runs.run import Run
from mayfly.runs.runner import Health
from mayfly.runs.stdin import LiveStdin
from mayfly.schema import replace
from mayfly.snapshots.store import Snapshot

log = logging.getLogger(__name__)
ATTEMPTS = 3
"""Hosts that begin a run before it is given up."""
WATCH_S = 0.5
QUIET_S = 2.0
"""After so long without a word of a run it is looked for among the results."""
MISSED = 3
"""Looks at a host that is not there, WATCH_S apart, before its runs are given to others: when a
server of the engine restarts, all hosts are away for a moment.
"""
SETTLE_S = 15.0
"""For what is lacking of a record when its run has ended."""
REPLAYED = 256 * 1024
"""Bytes of input that are kept for another attempt; a run that got more has only one."""
INPUT_S = 30.0


class Follow:
    """A run that this gateway follows. `number` is its work's in the stream, if it put it there;
    `tenant` pays `memory` for it.
    """

    def __init__(self, run: Run, registered: Registered) -> None:
        self.mirror = Mirror(run)
        self.registered = registered
        self.heard_at = asyncio.get_running_loop().time()
        self.changed = asyncio.Event()
        self.number = 0
        self.tenant: Tenant | None = None
        self.memory = 0
        self.then: Callable[[Run], None] | None = None
        self.owed = 0  # bytes that the host may be granted anew
        self.given_back = 0  # the delivery that was
        self.begun = asyncio.Event()
        self.typing: asyncio.Task[None] | None = None
        self.typed = bytearray()  # since `typed_from` bytes of it
        self.typed_from = 0

    @property
    def run(self) -> Run:
        """The run."""
        return self.mirror.run

    @property
    def lang(self) -> tuple[str, str]:
        """Where it waits."""
        return self.registered.arch, self.registered.lang


class Gateway:
    """Takes runs for a fleet. `sockets` is the folder for output sockets, or None for none.

    Attributes:
        roll: the hosts.
        accepted, refused, given_back: how many runs were, by this gateway.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        registry: Bucket,
        results: Results,
        *,
        sockets: Path | None = None,
        replicas: int = 1,
        ack_wait_s: float = 5.0,
    ) -> None:
        self.config = config
        self.stopping = False
        self.roll = Roll(lambda name: self._spawn(self._learn(name), f"about {name}"))
        self._engine = engine
        self._registry = registry
        self._results = results
        self._sockets = sockets
        self._replicas = replicas
        self._ack_wait_s = ack_wait_s
        self._runs = Runs(config)
        self._follows: dict[str, Follow] = {}
        self._waiting: dict[tuple[str, str], int] = {}
        self._consumers: set[tuple[str, str]] = set()
        self._missing: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._closed = False
        self._quorum = True
        self.accepted = self.refused = self.given_back = 0

    # Its own life

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, NobodyError | SilenceError | FleetError):
                log.warning("fleet: %s: %s", task.get_name(), error)
            else:
                log.error("%s", task.get_name(), exc_info=error)

    async def open(self) -> None:
        """Begin to listen, and learn which hosts there are."""
        name, engine = self._engine.name, self._engine
        await engine.listen("beat.*", self._heard_beat)
        await engine.listen(f"gw.{name}.*.*", self._heard)
        await engine.listen("begin.*.*", lambda message: self._reply(message, self._may_begin(message)), queue="gateways")
        await engine.listen(f"settle.{name}.*.*", lambda message: self._reply(message, self._settle(message)))
        await engine.listen(f"settle.{ANY}.*.*", lambda message: self._reply(message, self._settle(message)), queue="gateways")
        await engine.listen("over.*", self._heard_over)
        engine.on_return.append(self._attach_all)
        self._spawn(self._watch(), "watch the fleet")

    async def drain(self, within_s: float) -> None:
        """Take no more runs, and wait until those that are followed have ended."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._follows:
                    await next(iter(self._follows.values())).run.done.wait()
                    await asyncio.sleep(0)

    async def close(self) -> None:
        """Follow nothing any more. The runs go on."""
        self.stopping = self._closed = True
        for follow in list(self._follows.values()):
            follow.run.dismiss(0)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._runs.close()

    # What is known of the fleet

    def _heard_beat(self, message: Message) -> None:
        with contextlib.suppress(ValueError):
            self.roll.heard(message.subject.partition(".")[2], decode(message.data, type=Beat))

    async def _learn(self, name: str) -> None:
        about = decode(await self._engine.ask(f"about.{name}", b""), type=About)
        for image in self.roll.told(name, about):
            await self._ensure(about.arch, token_of(name_of(image)))

    async def _ensure(self, arch: str, lang: str) -> None:
        if (arch, lang) not in self._consumers:
            await self._engine.ensure_consumer(arch, lang, replicas=self._replicas, ack_wait_s=self._ack_wait_s)
            self._consumers.add((arch, lang))

    def installed(self) -> list[InstalledImage]:
        """The images of all hosts."""
        return self.roll.installed()

    def image_for(self, snippet: Snippet) -> InstalledImage:
        """The image that a snippet asks for.

        Raises:
            UnknownLanguageError: no host has it.
        """
        return self.roll.find(snippet.language, snippet.architecture)

    def check_ready(self) -> None:
        """See that runs are taken.

        Raises:
            StoppingError: no more.
            FleetError: the engine cannot store them.
        """
        if self.stopping:
            raise StoppingError("the server is stopping", hint="try again when it is back, or at another gateway")
        if not self._engine.connected or not self._quorum:
            raise FleetError("the fleet's servers cannot be reached, or most of them are gone", hint="try again, with the same key")

    def health(self) -> Health:
        """What the fleet has to do."""
        totals = self.roll.totals()
        waiting = totals.waiting + sum(self._waiting.values())
        return Health(waiting=waiting, idle=totals.idle, memory_used=totals.memory_used, memory_budget=totals.memory_budget)

    @property
    def under_way(self) -> int:
        """Runs that this gateway follows."""
        return len(self._follows)

    # Taking runs

    async def begin(
        self,
        snippet: Snippet,
        image: InstalledImage,
        *,
        publish: bool = False,
        tenant: Tenant | None = None,
        then: Callable[[Run], None] | None = None,
        repeat: Repeat | None = None,
    ) -> Run:
        """Accept a snippet. When this returns it is stored, and has a result some time, whatever
        dies meanwhile.

        Raises:
            RequestError: it cannot be run as it stands, or too many wait.
            StoppingError, FleetError: not now; with the same key it may be tried again.
        """
        self.check_ready()
        if repeat is None:
            return await self._begin(snippet, image, publish, tenant, then, None)
        async with self._locks.setdefault(_id_of(repeat), asyncio.Lock()):
            return await self.repeated(repeat) or await self._begin(snippet, image, publish, tenant, then, repeat)

    async def _begin(
        self,
        snippet: Snippet,
        image: InstalledImage,
        publish: bool,
        tenant: Tenant | None,
        then: Callable[[Run], None] | None,
        repeat: Repeat | None,
    ) -> Run:
        plan = make_plan(snippet, image, self.config)
        arch, lang = image.manifest.arch, token_of(name_of(image))
        memory = plan.wanted.machine.memory
        if tenant is not None:
            tenant.check(memory)
        self._check_room(arch, lang)
        run = Run(
            language=image.manifest.language,
            version=image.manifest.version,
            mode=snippet.output,
            step_names=plan.step_names,
            owner=tenant.name if tenant else "",
            cases=snippet.cases,
            stop_at_first_failure=snippet.stop_at_first_failure,
            stdin=LiveStdin() if snippet.interactive else None,
            has_terminal=snippet.tty is not None,
            run_id=_id_of(repeat) if repeat else "",
        )
        registered = Registered(
            head=head_of(run, interactive=snippet.interactive, stop_at_first_failure=snippet.stop_at_first_failure),
            token=secrets.token_hex(16),
            gateway=self._engine.name,
            arch=arch,
            lang=lang,
            digest=repeat.digest if repeat else b"",
        )
        follow = Follow(run, registered)
        follow.tenant, follow.memory, follow.then = tenant, memory, then
        if tenant is not None:
            tenant.take(memory)
        self._follows[run.id] = follow
        try:
            return await self._accept(follow, snippet, image, publish, repeat)
        except BaseException as error:
            if self._follows.get(run.id) is follow:
                del self._follows[run.id]
            if follow.tenant is not None:
                follow.tenant.give_back(memory)
            if isinstance(error, NobodyError | SilenceError):
                raise FleetError(
                    f"the fleet's servers do not answer: {error or 'nobody is there'}", hint="try again, with the same Idempotency-Key"
                ) from error
            raise

    def _check_room(self, arch: str, lang: str) -> None:
        """Raises BusyError: as many runs wait already as may."""
        hosts = sum(bool(host.about and host.about.arch == arch) for host in self.roll)
        ours = sum(follow.lang == (arch, lang) and not follow.mirror.host for follow in self._follows.values())
        waiting = max(ours, self._waiting.get((arch, lang), 0))
        if waiting >= self.config.queue * max(1, hosts):
            self.refused += 1
            raise BusyError(f"{waiting} runs are waiting already", hint="try again in 1 s", retry_after_s=1)

    async def _accept(self, follow: Follow, snippet: Snippet, image: InstalledImage, publish: bool, repeat: Repeat | None) -> Run:
        run, registered = follow.run, follow.registered
        await self._ensure(registered.arch, registered.lang)
        before = None
        if not await self._registry.create(run.id, encode(registered)):
            before = await self._accepted_before(follow, repeat)
            if before is not None and (before.host or self._knows(run.id)):
                return await self._join(follow)
        stored = before or registered
        work = Work(id=run.id, token=stored.token, gateway=stored.gateway, snippet=replace(snippet, language=name_of(image)))
        try:
            number = await self._engine.put(stored.arch, stored.lang, encode(work), run.id)
            if before is not None:  # whoever registered it may not have come as far as this
                return await self._join(follow)
            follow.number = number
        except TooLargeError as error:
            await self._registry.delete(run.id)
            raise BodyTooLargeError(f"the run has {error}", hint="send less source, input or files") from error
        except FullError as error:
            await self._registry.delete(run.id)
            raise BusyError(f"the fleet's queue is full: {error}", hint="try again in 5 s", retry_after_s=5) from error
        except (NobodyError, SilenceError):
            with contextlib.suppress(NobodyError, SilenceError):  # if the work was stored after all, no host may begin it
                await self._registry.delete(run.id)
            raise
        self._keep_following(follow, publish=publish)
        self.accepted += 1
        log.info("run %s: accepted by %s for %s on %s", run.id, self._engine.name, run.language, registered.arch)
        return run

    async def _accepted_before(self, follow: Follow, repeat: Repeat | None) -> Registered | None:
        """As what the run was registered when the same request came before, here or elsewhere.

        Raises:
            KeyReusedError: another request came with this key.
        """
        entry = await self._registry.get(follow.run.id)
        if entry is None or repeat is None:
            raise FleetError(f"the id {follow.run.id} is taken", hint="try again")
        registered = decode(entry.value, type=Registered)
        repeat.check(registered.digest)
        return registered

    async def _join(self, follow: Follow) -> Run:
        """Follow the run that another gateway has accepted, in place of this one."""
        del self._follows[follow.run.id]
        if follow.tenant is not None:
            follow.tenant.give_back(follow.memory)
            follow.tenant = None
        return await self.find(follow.run.id)

    def _keep_following(self, follow: Follow, *, publish: bool = False) -> None:
        run = follow.run
        output = None
        if publish and self._sockets is not None:
            output = OutputSocket(self._sockets / f"{run.id}.sock", run.record, run.mode)
        self._runs.add(run, output)
        self._follows[run.id] = follow
        if follow.registered.head.interactive:
            follow.typing = self._spawn(self._type(follow), f"input {run.id}")

    async def repeated(self, repeat: Repeat) -> Run | None:
        """The run that the same request began before, at any gateway.

        Raises:
            KeyReusedError: another request came with this key.
        """
        run_id = _id_of(repeat)
        try:
            entry = await self._registry.get(run_id)
            if entry is None:
                return None
            registered = decode(entry.value, type=Registered)
            repeat.check(registered.digest)
            if not (registered.host or self._knows(run_id) or await self._results.has(run_id)):
                return None  # it may not be stored yet, and is stored again
        except SilenceError as error:
            raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again, with the same Idempotency-Key") from error
        with contextlib.suppress(UnknownRunError):
            return await self.find(run_id)
        return None

    # Finding runs

    async def find(self, run_id: str, owner: str | None = None) -> Run:
        """The run with that id, begun at whichever gateway.

        Raises:
            UnknownRunError: there is none, or it is no longer kept.
            FleetError: it is not known here, and the engine does not answer.
        """
        with contextlib.suppress(UnknownRunError):
            return self._runs.get(run_id, owner)
        if len(run_id) == 32 and run_id.isalnum() and run_id.isascii():
            try:
                await self._fetch(run_id)
            except (NobodyError, SilenceError) as error:
                raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again") from error
        return self._runs.get(run_id, owner)

    async def _fetch(self, run_id: str) -> None:
        """Get a run of another gateway, if there is one."""
        stored, entry = await asyncio.gather(self._results.get(run_id), self._registry.get(run_id))
        if self._knows(run_id):
            return
        if stored is not None:
            run = restore(stored)
            self._runs.add(run, None)
            self._runs.keep(run)
        elif entry is not None:
            registered = decode(entry.value, type=Registered)
            follow = Follow(make_run(registered.head), registered)
            follow.number = -1
            self._keep_following(follow)
            if registered.host:
                self._begun(follow, registered.host, Begun(token=registered.token, delivered=registered.delivered, ack=""))
                await self._attach(follow)

    def _knows(self, run_id: str) -> bool:
        try:
            self._runs.get(run_id)
        except UnknownRunError:
            return False
        return True

    # What hosts say of runs

    def _heard(self, message: Message) -> None:
        _, _, host, run_id = message.subject.split(".")
        follow = self._follows.get(run_id)
        if follow is None:
            return
        try:
            said = decode(message.data, type=ToGateway)
        except ValueError as error:
            log.error("fleet: what %s says cannot be read: %s", host, error)
            return
        mirror = follow.mirror
        follow.heard_at = asyncio.get_running_loop().time()
        if isinstance(said, Begun):
            self._begun(follow, host, said)
            return
        if not mirror.belongs(host, said.delivered):
            return
        if not (mirror.told(said) if isinstance(said, Told) else mirror.take_tail(said)):
            self._spawn(self._attach(follow), f"attach {run_id}")
            return
        follow.owed += said.cost if isinstance(said, Told) else len(said.data)
        if follow.owed >= WINDOW // 4:
            count, follow.owed = follow.owed, 0
            self._spawn(self._say(follow, Grant(gateway=self._engine.name, count=count)), f"grant {run_id}")
        if isinstance(said, Tail) and mirror.ending is not None:
            follow.changed.set()

    def _begun(self, follow: Follow, host: str, message: Begun) -> None:
        """A host says that it has begun: what the client has typed so far goes there."""
        if message.token != follow.registered.token or not follow.mirror.begun(host, message):
            return
        follow.changed.clear()
        follow.begun.set()
        if follow.typing is None:
            return
        follow.typing.cancel()
        if follow.typed_from:
            error = HostError("the host of the run is gone, and too much input came to begin anew", hint="start it again")
            self._spawn(self._give_up(follow.registered, error), f"give up {follow.run.id}")
        else:
            follow.typing = self._spawn(self._type(follow), f"input {follow.run.id}")

    async def _say(self, follow: Follow, message: ToHost) -> None:
        if follow.mirror.host:
            await self._engine.send(f"host.{follow.mirror.host}.{follow.run.id}", encode(message))

    async def _attach(self, follow: Follow) -> None:
        """Have the host send what is lacking."""
        mirror = follow.mirror
        follow.owed = 0
        await self._say(follow, Attach(gateway=self._engine.name, after=place(mirror.position), tail=mirror.tail))

    def _attach_all(self) -> None:
        for follow in self._follows.values():
            self._spawn(self._attach(follow), f"attach {follow.run.id}")

    def _reply(self, message: Message, work: Coroutine[Any, Any, str | None]) -> None:
        """Answer a host with the verdict; with `later` if there is none now: it asks again."""

        async def answer() -> None:
            verdict = None
            try:
                verdict = await work
            except (NobodyError, SilenceError) as error:
                log.warning("fleet: %s has no verdict now: %s", message.subject, error)
            await self._engine.send(message.reply, encode(Verdict(verdict=verdict or "later")))

        self._spawn(answer(), f"answer {message.subject}")

    async def _may_begin(self, message: Message) -> str | None:
        """A host has been given a run: whether it may go on with it."""
        _, host, run_id = message.subject.split(".")
        asked = decode(message.data, type=Begin)
        for _ in range(5):
            stored, entry = await asyncio.gather(self._results.has(run_id), self._registry.get(run_id))
            if stored or entry is None:
                return "done"
            registered = decode(entry.value, type=Registered)
            if registered.token != asked.token or asked.delivered < registered.delivered:
                return "done"
            if (host, asked.delivered) == (registered.host, registered.delivered):
                return "go"
            registered.host, registered.delivered = host, asked.delivered
            registered.attempts += 1
            if registered.attempts > ATTEMPTS:
                error = HostError(f"{ATTEMPTS} hosts began the run, and none ended it", hint="look at the hosts' logs")
                await self._give_up(registered, error)
                return "done"
            if await self._registry.update(run_id, encode(registered), entry.revision):
                return "go"
        return None

    async def _give_up(self, registered: Registered, error: MayflyError) -> None:
        """A run has no result but an error."""
        follow = self._follows.get(registered.head.id)
        run = follow.run if follow else make_run(registered.head)
        await self._decide(follow, registered, run, ending_of(run, "", error))

    async def _settle(self, message: Message) -> str | None:
        """A host has ended a run: whether that is its result."""
        _, _, host, run_id = message.subject.split(".")
        said = decode(message.data, type=Settle)
        if run_id not in self._follows:
            await self._fetch(run_id)
        follow = self._follows.get(run_id)
        if follow is None or follow.registered.token != said.token:
            return "done"
        mirror, error = follow.mirror, error_of(said.error)
        if not said.final and error is not None:
            entry = await self._registry.get(run_id)
            registered = decode(entry.value, type=Registered) if entry else None
            if registered is None or registered.attempts < ATTEMPTS or error.code == "run_ended":
                return "again"
            await self._decide(follow, follow.registered, follow.run, ending_of(follow.run, host, error))
            return "done"
        if error is not None:
            await self._decide(follow, follow.registered, follow.run, ending_of(follow.run, host, error))
            return "done"
        if (host, said.delivered) != (mirror.host, mirror.delivered):
            if said.delivered < mirror.delivered:
                return "done"
            self._begun(follow, host, Begun(token=said.token, delivered=said.delivered, ack=""))
            await self._attach(follow)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(follow.changed.wait(), SETTLE_S)
        if follow.run.done.is_set():
            return "done"
        if mirror.ending is None or not mirror.belongs(host, said.delivered):
            return None
        await self._decide(follow, follow.registered, follow.run, mirror.ending)
        return "done"

    async def _decide(self, follow: Follow | None, registered: Registered, run: Run, ending: Ending) -> None:
        """Store the run with this end, unless it has a result: then that is the end."""
        run_id = registered.head.id
        stored = await self._results.create(run_id, store(registered.head, run, ending))
        if follow is not None and stored:
            self._conclude(follow, ending)
        elif follow is not None:
            await self._look_up(follow)
        await self._engine.send(f"over.{run_id}", b"")

    def _heard_over(self, message: Message) -> None:
        """A gateway has stored a run's result, or removed it."""
        follow = self._follows.get(message.subject.rpartition(".")[2])
        if follow is not None and follow.number:
            self._spawn(self._look_for(follow), f"look for {follow.run.id}")

    async def _look_up(self, follow: Follow) -> None:
        """End a run as the fleet has its result, if there is one."""
        data = await self._results.get(follow.run.id)
        if data is not None and not follow.run.done.is_set():
            found = restore(data)
            follow.mirror.catch_up(found)
            self._conclude(follow, ending_of(found, follow.mirror.host))

    def _conclude(self, follow: Follow, ending: Ending) -> None:
        run = follow.run
        if self._follows.pop(run.id, None) is None or run.done.is_set():
            return
        conclude(run, ending)
        follow.changed.set()
        if follow.typing is not None:
            follow.typing.cancel()
        if follow.tenant is not None:
            follow.tenant.give_back(follow.memory)
        log.info("run %s: %s %s %s on %s", run.id, run.language, *run.verdict(), ending.host or "no host")
        self._runs.keep(run)
        if follow.then is not None:
            follow.then(run)

    # What clients do with runs

    async def _type(self, follow: Follow) -> None:
        """Take what a client writes to the run's standard input to the host that has it, from the
        beginning.
        """
        await follow.begun.wait()
        run, host, sent, ended = follow.run, follow.mirror.host, 0, False
        while not run.done.is_set() and not ended:
            known = sent - follow.typed_from
            if known < len(follow.typed):
                data = bytes(follow.typed[known : known + PIECE])
            else:
                data = await run.stdin.read(PIECE)
                ended = not data
                follow.typed += data
            answer = await self._ask_until_answered(follow, host, Input(gateway=self._engine.name, offset=sent, data=data, end=ended))
            if answer is None or answer.error is not None:
                return
            sent += len(data)
            if len(follow.typed) > REPLAYED:
                follow.typed_from += len(follow.typed)
                follow.typed.clear()

    async def _ask_until_answered(self, follow: Follow, host: str, message: ToHost) -> Answer | None:
        while not follow.run.done.is_set() and follow.mirror.host == host:
            try:
                return decode(await self._engine.ask(f"host.{host}.{follow.run.id}", encode(message), INPUT_S), type=Answer)
            except NobodyError:
                await asyncio.sleep(WATCH_S)
            except SilenceError:
                continue
        return None

    async def signal(self, run: Run, number: int) -> None:
        """Send a signal to every process of the run's present step.

        Raises:
            RunEndedError: the run is over.
            NotRunningError: no step is under way.
        """
        await self._do(run, Signal(number=number))

    async def resize(self, run: Run, size: Terminal) -> None:
        """Give the terminal of the run's program another size.

        Raises:
            NotInteractiveError: it has no terminal.
            RunEndedError, NotRunningError: as `signal`.
        """
        if not run.has_terminal:
            raise NotInteractiveError("the run has no terminal", hint='start the run with "tty": {"columns": …, "rows": …}')
        await self._do(run, Size(columns=size.columns, rows=size.rows))

    async def _do(self, run: Run, message: ToHost) -> None:
        follow = self._follows.get(run.id)
        if follow is None:
            raise RunEndedError("the run is over")
        if not follow.mirror.host:
            raise NotRunningError("no host has begun the run", hint="wait for the event of its stage")
        try:
            answer = decode(await self._engine.ask(f"host.{follow.mirror.host}.{run.id}", encode(message)), type=Answer)
        except (NobodyError, SilenceError) as error:
            raise NotRunningError("the host of the run does not answer", hint="try again") from error
        if (problem := error_of(answer.error)) is not None:
            raise problem

    async def save(self, run_id: str, name: str) -> Snapshot:
        """Not here: a snapshot is a host's.

        Raises:
            UnprocessableError: always.
        """
        raise UnprocessableError("a gateway saves no machines", hint="ask the server of the host that has the run")

    def output_socket(self, run: Run) -> Path:
        """The path of a run's output socket."""
        return self._runs.output(run).path

    async def end(self, run: Run, reason: str) -> None:
        """End a run that is under way, wherever it is. Does nothing for one that is over."""
        follow = self._follows.get(run.id)
        if follow is None or self._closed:
            return
        ending = ending_of(run, follow.mirror.host, RunEndedError(reason))
        try:
            await self._decide(follow, follow.registered, run, ending)
        except (NobodyError, SilenceError) as error:
            raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again") from error
        if follow.mirror.host:
            await self._say(follow, Cancel())
        elif follow.number > 0:
            await self._engine.take_back(follow.registered.arch, follow.number)

    async def forget(self, run_id: str) -> None:
        """End a run if it is under way, and keep nothing of it. An unknown id is fine."""
        try:
            run = await self.find(run_id)
        except UnknownRunError:
            return
        await self.end(run, "the run was deleted")
        self._runs.drop(run)
        try:
            await self._registry.delete(run_id)
            await self._results.delete(run_id)
            await self._engine.send(f"over.{run_id}", b"")
        except (NobodyError, SilenceError) as error:
            raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again") from error

    # Watching

    async def _watch(self) -> None:
        """See who is gone, and what has come to an end elsewhere."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.roll.expire()
            self._quorum = await self._engine.quorum()
            if not self._engine.connected:
                continue
            await asyncio.gather(self._look_at_hosts(), self._look_for_results(), self._count_waiting(), return_exceptions=True)

    async def _look_at_hosts(self) -> None:
        """Give to others what hosts have that are gone: nobody listens in their name."""
        hosts = {follow.mirror.host for follow in self._follows.values() if follow.mirror.ack}
        self._missing = {host: count for host, count in self._missing.items() if host in hosts}
        await asyncio.gather(*(self._look_at(host) for host in hosts))

    async def _look_at(self, host: str) -> None:
        try:
            await self._engine.ask(f"ping.{host}", b"", 1)
        except NobodyError:
            self._missing[host] = self._missing.get(host, 0) + 1
        except SilenceError:  # it hangs, or the engine does: the stream gives its work to others in time
            return
        else:
            self._missing.pop(host, None)
        if self._missing.get(host, 0) < MISSED:
            return
        for follow in self._follows.values():
            mirror = follow.mirror
            if mirror.host == host and mirror.ack and follow.given_back < mirror.delivered:
                follow.given_back = mirror.delivered
                self.given_back += 1
                log.warning("run %s: the host %s is gone; another one begins it anew", follow.run.id, host)
                await self._engine.give_back(mirror.ack)

    async def _look_for_results(self) -> None:
        now = asyncio.get_running_loop().time()
        quiet = [follow for follow in self._follows.values() if now - follow.heard_at > QUIET_S and follow.number]
        await asyncio.gather(*(self._look_for(follow) for follow in quiet))

    async def _look_for(self, follow: Follow) -> None:
        follow.heard_at = asyncio.get_running_loop().time()
        await self._look_up(follow)
        if follow.run.done.is_set():
            return
        entry = await self._registry.get(follow.run.id)
        if entry is None:
            self._conclude(follow, ending_of(follow.run, follow.mirror.host, RunEndedError("the run was deleted")))
            return
        registered = decode(entry.value, type=Registered)
        if follow.number < 0 and registered.host:  # another gateway's: its host may be another one by now
            self._begun(follow, registered.host, Begun(token=registered.token, delivered=registered.delivered, ack=""))
        await self._attach(follow)

    async def _count_waiting(self) -> None:
        wanted = {follow.lang for follow in self._follows.values() if not follow.mirror.host} | set(self._waiting)
        for arch, lang in wanted:
            count = await self._engine.waiting(arch, lang)
            if count:
                self._waiting[arch, lang] = count
            else:
                self._waiting.pop((arch, lang), None)


def _id_of(repeat: Repeat) -> str:
    """The id of the run that a repeated request begins, the same at all gateways."""
    return hashlib.sha256(f"{repeat.owner}\n{repeat.key}".encode()).hexdigest()[:32]
