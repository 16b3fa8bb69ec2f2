"""A gateway: takes runs as a host's service does, and has the hosts of a fleet carry them out.

A run is accepted when it is registered and the stream has it on disk. It has one result, the first
that is stored. A gateway holds nothing else that would be missed: runs go on without it, and any
other gateway finds them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from mayfly.errors import (
    FleetError,
    NotInteractiveError,
    NotRunningError,
    RunEndedError,
    StoppingError,
    UnknownRunError,
    UnprocessableError,
)
from mayfly.fleet import calls
from mayfly.fleet.accept import Acceptance
from mayfly.fleet.accounts import Accounts
from mayfly.fleet.buckets import Buckets
from mayfly.fleet.calls import Calls
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.follows import Follows
from mayfly.fleet.functions.creating import Creating
from mayfly.fleet.functions.gateway import FleetFunctions
from mayfly.fleet.lists import Lists
from mayfly.fleet.message import About, Answer, Beat, Cancel, Registered, Signal, Size, ToHost, decode, encode, name_of, queue_of, token_of
from mayfly.fleet.mirror import ending_of
from mayfly.fleet.presence import claim_name
from mayfly.fleet.queues import Queues, Stale, sweep
from mayfly.fleet.results import Results
from mayfly.fleet.roll import Roll
from mayfly.fleet.verdicts import Verdicts
from mayfly.fleet.waiting import Waiting
from mayfly.fleet.watch import Watch
from mayfly.fleet.wire import error_of
from mayfly.host.config import Config
from mayfly.host.keys import ApiKey
from mayfly.host.snippet import Snippet, Terminal
from mayfly.images.store import InstalledImage, targeted
from mayfly.runs.kept import Runs
from mayfly.runs.repeats import Repeat
from mayfly.runs.run import Run
from mayfly.runs.runner import CallBack, Health, Order
from mayfly.snapshots.store import Snapshot

log = logging.getLogger(__name__)
MOVE_TRIES = 3
"""To find the host of a run that moves."""


class Gateway:
    """Takes runs for a fleet. `sockets` is the folder for output sockets, or None for none.

    Attributes:
        roll: the hosts.
        functions: the functions.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        buckets: Buckets,
        *,
        sockets: Path | None = None,
        replicas: int = 1,
        ack_wait_s: float = 5.0,
    ) -> None:
        self.config = config
        self.stopping = False
        self.roll = Roll(lambda name: self._follows.spawn(self._learn(name), f"about {name}"))
        self._engine = engine
        self._registry = registry = buckets.runs
        self._results = results = Results(buckets.results)
        self._accounts = Accounts(engine, buckets.accounts, registry, results)
        self._runs = Runs(config, sockets)
        self._follows = Follows(engine, registry, results, self._accounts, self._runs)
        self._verdicts = Verdicts(engine, registry, results, self._follows, self.roll)
        self._queues = Queues(engine, replicas=replicas, ack_wait_s=ack_wait_s)
        self._watch = Watch(engine, self.roll, self._follows, results, self._queues.mend)
        self._calls = Calls(engine, registry, results, self._follows, ack_wait_s=ack_wait_s)
        self._acceptance = Acceptance(
            config,
            engine,
            registry,
            results,
            self._accounts,
            self._follows,
            self._verdicts,
            self._calls,
            self._queues,
            self.roll,
            self._watch,
        )
        self._lists = lists = Lists(engine, buckets.fleet, self.roll, self._queues, self._follows.spawn)
        self.functions = FleetFunctions(
            engine,
            registry,
            results,
            self._accounts,
            self._queues,
            self.roll,
            lists.functions,
            here=config.here,
            check_ready=self.check_ready,
            spawn=self._follows.spawn,
        )
        self._creating = Creating(engine, buckets.fleet, self.roll, lists.functions, self.functions)
        self._closed = False

    # Its own life

    async def open(self) -> None:
        """Begin to listen, and learn which hosts there are.

        Raises:
            FleetError: the servers do not answer, or another member has this one's name.
        """
        engine = self._engine
        await claim_name(engine, self._follows.spawn)
        await engine.listen("beat.*", self._heard_beat)
        await self._verdicts.listen()
        await engine.listen("over.*", self._heard_over)
        await self._lists.listen(self._creating)
        await self.functions.listen()
        engine.on_return.append(self._follows.attach_all)
        self._watch.beside.append(self._lists.refresh)
        await self._lists.load()
        self._follows.spawn(self._watch.watch(), "watch the fleet")
        stale, waiting = Stale(engine, self.roll, self._queues), Waiting(engine, self._registry, self._follows, self.roll)
        self._follows.spawn(sweep(stale.look, "the queues are"), "sweep queues")
        self._follows.spawn(sweep(waiting.look, "the work that waits is"), "sweep work that waits")
        self._follows.spawn(self._begin_calls(), "begin calls")

    async def _begin_calls(self) -> None:
        await self._queues.ensure_soon(calls.KIND, calls.QUEUE)
        await self._calls.open()

    @property
    def call_back(self) -> CallBack:
        """Has somebody told of a run that is over."""
        return self._calls.call_back

    @call_back.setter
    def call_back(self, call: CallBack) -> None:
        self._calls.call_back = call

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
    def accepted(self) -> int:
        """How many runs this gateway has accepted."""
        return self._acceptance.accepted

    @property
    def refused(self) -> int:
        """How many it refused because too many waited."""
        return self._acceptance.refused

    @property
    def given_back(self) -> int:
        """How many runs this gateway took from hosts that were gone."""
        return self._watch.given_back

    def _heard_over(self, message: Message) -> None:
        run_id = message.subject.rpartition(".")[2]
        self._follows.heard_over(run_id)
        self._calls.over(run_id)
        self.functions.heard_over(run_id)

    # What is known of the fleet

    @property
    def shared_keys(self) -> Sequence[ApiKey]:
        """The API keys of the fleet."""
        return self._lists.keys.all

    def _heard_beat(self, message: Message) -> None:
        with contextlib.suppress(ValueError):
            self.roll.heard(message.subject.partition(".")[2], decode(message.data, type=Beat))

    async def _learn(self, name: str) -> None:
        about = decode(await self._engine.ask(f"about.{name}", b""), type=About)
        for image in self.roll.told(name, about):
            await self._queues.ensure(about.arch, token_of(name_of(image)))
        for held in about.snapshots:
            await self._queues.ensure(about.arch, queue_of(held.image, held.name))

    def installed(self) -> list[InstalledImage]:
        """The images of all hosts."""
        return self.roll.installed()

    def image_for(self, snippet: Snippet) -> InstalledImage:
        """The image that a snippet asks for.

        Raises:
            UnknownLanguageError, SnapshotNotFoundError: no host has it.
        """
        return self.roll.find(targeted(snippet.language, snippet.target), snippet.architecture, snippet.snapshot)

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
        return Health(
            waiting=waiting,
            idle=totals.idle,
            memory_used=totals.memory_used,
            memory_budget=totals.memory_budget,
            quorum=self._engine.connected and self._watch.quorum,
        )

    @property
    def under_way(self) -> int:
        """Runs that this gateway follows."""
        return len(self._follows)

    # Taking runs

    async def begin(self, order: Order) -> Run:
        """Accept a run. When this returns it is stored, and has a result some time, whatever
        dies meanwhile.

        Raises:
            RequestError: it cannot be run as it stands, or too many wait.
            StoppingError, FleetError: not now; with the same key it may be tried again.
        """
        if not self._watch.quorum:  # as it was known last
            await self._watch.look_at_servers()
        self.check_ready()
        if order.snippet.checkpoint_every_s:
            raise UnprocessableError("checkpoint_every_s is not for a fleet", hint="leave it out: a lost run begins again at another host")
        if order.snippet.snapshot and order.snippet.network:
            raise UnprocessableError("a fleet's snapshots are of machines without a network", hint="leave snapshot or network out")
        return await self._acceptance.begin(order)

    async def repeated(self, repeat: Repeat) -> Run | None:
        """The run that the same request began before, at any gateway.

        Raises:
            KeyReusedError: another request came with this key.
        """
        return await self._acceptance.repeated(repeat)

    async def find(self, run_id: str, owner: str | None = None) -> Run:
        """The run with that id, begun at whichever gateway.

        Raises:
            UnknownRunError: there is none, or it is no longer kept.
            FleetError: it is not known here, and the engine does not answer.
        """
        return await self._follows.find(run_id, owner)

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
        told = Size(columns=size.columns, rows=size.rows)
        await self._do(run, told)
        follow = self._follows.get(run.id)
        if follow is not None and follow.typing is not None:
            await follow.typing.resized(told)

    async def _do(self, run: Run, message: ToHost) -> None:
        follow = self._follows.get(run.id)
        if follow is None:
            raise RunEndedError("the run is over")
        if not follow.mirror.host:
            raise NotRunningError("no host has begun the run", hint="wait for the event of its stage")
        for _ in range(MOVE_TRIES):
            try:
                answer = decode(await self._engine.ask(f"host.{follow.mirror.host}.{run.id}", encode(message)), type=Answer)
                if not answer.moved:
                    break
                await self._follows.look_for(follow)
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
            hosts = {follow.mirror.host, await self._follows.host_of(run.id)} - {""}  # it may just have moved
        except (NobodyError, SilenceError) as error:
            raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again") from error
        for host in hosts:
            await self._engine.send(f"host.{host}.{run.id}", encode(Cancel()))
        if not hosts and follow.number > 0:
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
            if (entry := await self._registry.get(run_id)) is not None:
                await self._follows.unregister(decode(entry.value, type=Registered))
            await self._results.delete(run_id)
            await self._engine.send(f"over.{run_id}", b"")
        except (NobodyError, SilenceError) as error:
            raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again") from error
