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
from collections.abc import Callable
from pathlib import Path

from mayfly.errors import (
    BodyTooLargeError,
    BusyError,
    FleetError,
    NotInteractiveError,
    NotRunningError,
    RunEndedError,
    StoppingError,
    UnknownRunError,
    UnprocessableError,
)
from mayfly.fleet.engine import Bucket, Engine, FullError, Message, NobodyError, SilenceError, TooLargeError
from mayfly.fleet.follow import Follow
from mayfly.fleet.follows import Follows
from mayfly.fleet.message import (
    About,
    Answer,
    Beat,
    Cancel,
    Registered,
    Signal,
    Size,
    ToHost,
    Work,
    decode,
    encode,
    error_of,
    token_of,
)
from mayfly.fleet.mirror import ending_of, head_of
from mayfly.fleet.results import Results
from mayfly.fleet.roll import Roll
from mayfly.fleet.verdicts import Verdicts
from mayfly.fleet.watch import Watch
from mayfly.fleet.worker import name_of
from mayfly.host.admission import Tenant
from mayfly.host.config import Config
from mayfly.host.plan import make_plan
from mayfly.host.snippet import Snippet, Terminal
from mayfly.images.store import InstalledImage
from mayfly.runs.kept import Runs
from mayfly.runs.repeats import Repeat
from mayfly.runs.run import Run
from mayfly.runs.runner import Health
from mayfly.runs.stdin import LiveStdin
from mayfly.schema import replace
from mayfly.snapshots.store import Snapshot

log = logging.getLogger(__name__)


class Gateway:
    """Takes runs for a fleet. `sockets` is the folder for output sockets, or None for none.

    Attributes:
        roll: the hosts.
        accepted, refused: how many runs were, by this gateway.
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
        self.roll = Roll(lambda name: self._follows.spawn(self._learn(name), f"about {name}"))
        self._engine = engine
        self._registry = registry
        self._results = results
        self._replicas = replicas
        self._ack_wait_s = ack_wait_s
        self._runs = Runs(config, sockets)
        self._follows = Follows(engine, registry, results, self._runs)
        self._verdicts = Verdicts(engine, registry, results, self._follows)
        self._watch = Watch(engine, self.roll, self._follows)
        self._consumers: set[tuple[str, str]] = set()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._closed = False
        self.accepted = self.refused = 0

    # Its own life

    async def open(self) -> None:
        """Begin to listen, and learn which hosts there are."""
        name, engine = self._engine.name, self._engine
        await engine.listen("beat.*", self._heard_beat)
        await engine.listen(f"gw.{name}.*.*", self._follows.heard)
        await self._verdicts.listen()
        await engine.listen("over.*", self._follows.heard_over)
        engine.on_return.append(self._follows.attach_all)
        self._follows.spawn(self._watch.watch(), "watch the fleet")

    async def drain(self, within_s: float) -> None:
        """Take no more runs, and wait until those that are followed have ended."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._follows:
                    await next(iter(self._follows)).run.done.wait()
                    await asyncio.sleep(0)

    async def close(self) -> None:
        """Follow nothing any more. The runs go on."""
        self.stopping = self._closed = True
        await self._follows.close()

    @property
    def given_back(self) -> int:
        """How many runs this gateway took from hosts that were gone."""
        return self._watch.given_back

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
        if not self._engine.connected or not self._watch.quorum:
            raise FleetError("the fleet's servers cannot be reached, or most of them are gone", hint="try again, with the same key")

    def health(self) -> Health:
        """What the fleet has to do."""
        totals = self.roll.totals()
        waiting = totals.waiting + sum(self._watch.waiting.values())
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
        self._follows.begin(follow)
        try:
            return await self._accept(follow, snippet, image, publish, repeat)
        except BaseException as error:
            self._follows.drop(follow)
            if isinstance(error, NobodyError | SilenceError):
                raise FleetError(
                    f"the fleet's servers do not answer: {error or 'nobody is there'}", hint="try again, with the same Idempotency-Key"
                ) from error
            raise

    def _check_room(self, arch: str, lang: str) -> None:
        """Raises BusyError: as many runs wait already as may."""
        hosts = sum(bool(host.about and host.about.arch == arch) for host in self.roll)
        ours = sum(follow.lang == (arch, lang) and not follow.mirror.host for follow in self._follows)
        waiting = max(ours, self._watch.waiting.get((arch, lang), 0))
        if waiting >= self.config.queue * max(1, hosts):
            self.refused += 1
            raise BusyError(f"{waiting} runs are waiting already", hint="try again in 1 s", retry_after_s=1)

    async def _accept(self, follow: Follow, snippet: Snippet, image: InstalledImage, publish: bool, repeat: Repeat | None) -> Run:
        run, registered = follow.run, follow.registered
        await self._ensure(registered.arch, registered.lang)
        before = None
        if not await self._registry.create(run.id, encode(registered)):
            before = await self._accepted_before(follow, repeat)
            if before is not None and (before.host or self._follows.knows(run.id)):
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
        self._follows.keep(follow, publish=publish)
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
        self._follows.drop(follow)
        return await self.find(follow.run.id)

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
            if not (registered.host or self._follows.knows(run_id) or await self._results.has(run_id)):
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
                await self._follows.fetch(run_id)
            except (NobodyError, SilenceError) as error:
                raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again") from error
        return self._runs.get(run_id, owner)

    # What clients do with runs

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
            await self._follows.decide(follow, follow.registered, run, ending)
        except (NobodyError, SilenceError) as error:
            raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again") from error
        if follow.mirror.host:
            await self._follows.say(follow, Cancel())
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


def _id_of(repeat: Repeat) -> str:
    """The id of the run that a repeated request begins, the same at all gateways."""
    return hashlib.sha256(f"{repeat.owner}\n{repeat.key}".encode()).hexdigest()[:32]
