"""The runs that a gateway follows: what hosts say of them, and how they end."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from functools import partial

import msgspec

from mayfly.errors import FleetError, HostError, MayflyError, RunEndedError, UnknownRunError
from mayfly.fleet.accounts import Accounts
from mayfly.fleet.buckets import Bucket, Entry
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.failures import NobodyError, RefusedError, SilenceError, UnreadableError
from mayfly.fleet.follow import Follow, Typing
from mayfly.fleet.message import (
    WINDOW,
    Answer,
    Attach,
    Begun,
    Cancel,
    Ending,
    Grant,
    Registered,
    Tail,
    ToGateway,
    ToHost,
    Told,
    decode,
    encode,
    id_of,
)
from mayfly.fleet.mirror import conclude, ending_of, make_run, restore, store
from mayfly.fleet.results import Results
from mayfly.fleet.steps import step
from mayfly.fleet.tasks import Tasks
from mayfly.fleet.typed import KEPT, Typed
from mayfly.fleet.wire import place
from mayfly.runs.kept import Runs
from mayfly.runs.run import Run

log = logging.getLogger(__name__)
BRIEF_S = 0.05
LOOK_S, LONGEST_LOOK_S = 0.1, 2.0
"""From one look for who has begun a run to the next."""


def about_of(registered: Registered) -> str:
    """Where in the registry lies what a run is about, apart from that of other requests with its
    id.
    """
    return f"about.{registered.head.id}.{registered.token}"


def too_much_typed() -> HostError:
    """Another host cannot begin a run, as it would lack input."""
    return HostError(f"the host of the run is gone, and more than {KEPT} bytes were typed", hint="start it again")


class Follows:
    """The runs that are followed, and in `kept` those that have ended too."""

    def __init__(self, engine: Engine, registry: Bucket, results: Results, accounts: Accounts, kept: Runs) -> None:
        self.kept = kept
        self._engine, self._registry, self._results, self._accounts = engine, registry, results, accounts
        self._by_id: dict[str, Follow] = {}
        self._tasks = Tasks()
        self.spawn = self._tasks.spawn

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Follow]:
        return iter(list(self._by_id.values()))

    def get(self, run_id: str) -> Follow | None:
        """How the run is followed, if it is."""
        return self._by_id.get(run_id)

    def begin(self, follow: Follow) -> None:
        """Follow a run that is to be accepted."""
        self._by_id[follow.run.id] = follow

    def drop(self, follow: Follow) -> None:
        """Follow it no more: it was not accepted."""
        follow.known.set()
        if self._by_id.get(follow.run.id) is follow:
            del self._by_id[follow.run.id]

    async def close(self) -> None:
        """Follow nothing any more. The runs go on."""
        for follow in self:
            follow.run.dismiss(0)
        await self._tasks.close()
        await self.kept.close()

    def keep(self, follow: Follow, *, publish: bool = False) -> None:
        """Follow a run that is accepted, with an output socket of its own if it is to `publish`."""
        run = follow.run
        self.kept.add(run, publish=publish)
        self._by_id[run.id] = follow
        follow.known.set()
        if follow.registered.head.interactive:
            follow.typing = Typing(self._engine, self._registry, follow, partial(self.look_for, follow))
            follow.typing.begin(self.spawn)

    async def fetch(self, run_id: str) -> None:
        """Get a run of another gateway, if there is one."""
        stored, entry = await asyncio.gather(self._results.get(run_id), self._registry.get(run_id))
        if self.knows(run_id):
            return
        if stored is not None:
            run = restore(stored)
            self.kept.add(run)
            self.kept.keep(run)
        elif entry is not None:
            registered = decode(entry.value, type=Registered)
            run = await self._make(registered)
            if self.knows(run_id):
                return
            follow = Follow(run, registered)
            follow.number = -1
            self.keep(follow)
            if registered.host:
                self.begun(follow, registered.host, Begun(token=registered.token, delivered=registered.delivered, ack=""))
                follow.noted(registered)
                await self.attach(follow)
            else:
                self.spawn(self._look_for_host(follow), f"look for the host of {run_id}")

    async def note_about(self, registered: Registered, about: bytes) -> None:
        """Keep what a run is about, for as long as its registration from now on. Raises
        SilenceError.
        """
        if about:
            await self._registry.put(about_of(registered), about)

    async def renew(self, registered: Registered, entry: Entry) -> None:
        """Keep what is registered of a run for as long from now on. Raises SilenceError."""
        await self.note_about(registered, await self.about(registered))
        await self._registry.update(registered.head.id, entry.value, entry.revision)  # if not, it was written meanwhile
        await self.keep_typed(registered)
        if registered.charged:
            await self._accounts.renew(registered.head.owner)

    async def about(self, registered: Registered) -> bytes:
        """What a run is about, also where gateways of the version before keep it. Raises
        SilenceError.
        """
        if not registered.has_about:
            return b""
        entry = await self._registry.get(about_of(registered)) or await self._registry.get(f"about.{registered.head.id}")
        return entry.value if entry is not None else b""

    async def keep_typed(self, registered: Registered) -> bool:
        """Keep what was typed for a run for as long from now on. False: another host would lack
        some of it. Raises SilenceError.
        """
        if not registered.head.interactive:
            return True
        typed = Typed(self._registry, registered)
        await typed.look(renew=True)
        return not typed.closed

    async def unregister(self, registered: Registered) -> bool:
        """Have a run be registered no more; False: what is registered is another one."""
        if registered.has_about:
            await self._registry.delete(about_of(registered))
        if registered.head.interactive:
            await Typed(self._registry, registered).forget()
        run_id = registered.head.id
        if (entry := await self._registry.get(run_id)) is not None:
            if decode(entry.value, type=Registered).token != registered.token:
                return False
            await self._registry.delete(run_id)
        return True

    async def _make(self, registered: Registered) -> Run:
        """The run as it is registered."""
        run = make_run(registered.head)
        run.about = await self.about(registered)
        return run

    async def _look_for_host(self, follow: Follow) -> None:
        """Find out soon which host begins a run of another gateway; later it is looked for as all
        runs are.
        """
        wait_s = LOOK_S
        while wait_s < LONGEST_LOOK_S and not follow.begun.is_set() and not follow.run.done.is_set():
            await asyncio.sleep(wait_s)
            await self.look_for(follow)
            wait_s *= 2

    async def find(self, run_id: str, owner: str | None = None) -> Run:
        """The run with that id, begun at whichever gateway.

        Raises:
            UnknownRunError: there is none, or it is no longer kept.
            FleetError: it is not known here, and the engine does not answer.
        """
        with contextlib.suppress(UnknownRunError):
            return self.kept.get(run_id, owner)
        if len(run_id) == 32 and run_id.isalnum() and run_id.isascii():
            try:
                await self.fetch(run_id)
            except (NobodyError, SilenceError) as error:
                raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again") from error
        return self.kept.get(run_id, owner)

    async def host_of(self, run_id: str) -> str:
        """The host that has begun a run, if one has: it may not have told this gateway yet."""
        entry = await self._registry.get(run_id)
        return decode(entry.value, type=Registered).host if entry else ""

    def knows(self, run_id: str) -> bool:
        """Whether the run is known here, under way or not."""
        try:
            self.kept.get(run_id)
        except UnknownRunError:
            return False
        return True

    def heard(self, message: Message) -> None:
        """A host says something of a run."""
        _, _, host, run_id = message.subject.split(".")
        follow = self._by_id.get(run_id)
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
            self.begun(follow, host, said)
            return
        if not mirror.belongs(host, said.delivered):
            return
        if not self.take(follow, said):
            self.spawn(self.attach(follow), f"attach {run_id}")
            return
        follow.owed += said.cost if isinstance(said, Told) else len(said.data)
        if follow.owed >= WINDOW // 4:
            count, follow.owed = follow.owed, 0
            self.spawn(self.say(follow, Grant(gateway=self._engine.name, count=count)), f"grant {run_id}")

    @staticmethod
    def take(follow: Follow, said: Told | Tail) -> bool:
        """Take what a host says of its run. False: something before it is lacking."""
        mirror = follow.mirror
        fits = mirror.told(said) if isinstance(said, Told) else mirror.take_tail(said)
        if mirror.unreadable and not follow.changed.is_set():
            log.error("run %s: what the host %s says cannot be read: %s", follow.run.id, mirror.host, mirror.unreadable)
        if mirror.unreadable or mirror.ending is not None:
            follow.changed.set()
        return fits

    def begun(self, follow: Follow, host: str, message: Begun) -> None:
        """A host says that it has begun: what clients have typed so far goes there."""
        if message.token != follow.registered.token:
            return
        if follow.mirror.moved(host, message):
            follow.given_back = -1  # whoever it came from may have been taken for gone
            told = step("move", follow.run.id, attempt=follow.mirror.attempts, host=host, moved_from=message.moved_from)
            log.info("run %s: goes on at host %s, where it moved from %s", follow.run.id, host, message.moved_from, extra=told)
            self.spawn(self.attach(follow), f"attach {follow.run.id}")
            return
        if not follow.mirror.begun(host, message):
            return
        told = step("begin", follow.run.id, attempt=follow.mirror.attempts, host=host)
        log.info("run %s: attempt %d, at host %s", follow.run.id, follow.mirror.attempts, host, extra=told)
        follow.changed.clear()
        follow.begun.set()
        if follow.typing is None:
            return
        if follow.typing.for_one_attempt:
            follow.typing.end()
            self.spawn(self.give_up(follow.registered, too_much_typed()), f"give up {follow.run.id}")
        else:
            follow.typing.begin(self.spawn)

    async def say(self, follow: Follow, message: ToHost) -> None:
        """Tell the host that has the run, if one has."""
        if follow.mirror.host:
            await self._engine.send(f"host.{follow.mirror.host}.{follow.run.id}", encode(message))

    async def attach(self, follow: Follow) -> None:
        """Have the host send what is lacking."""
        await self.say(follow, self._attaching(follow))

    def _attaching(self, follow: Follow) -> Attach:
        follow.owed = 0
        return Attach(gateway=self._engine.name, after=place(follow.mirror.position), tail=follow.mirror.tail)

    def attach_all(self) -> None:
        """Have all hosts send what is lacking: the engine was away."""
        for follow in self._by_id.values():
            self.spawn(self.attach(follow), f"attach {follow.run.id}")

    async def give_back(self, follow: Follow) -> None:
        """Have another host begin a run anew.

        Raises:
            SilenceError, FullError: not now.
        """
        if not follow.work:
            await self._engine.give_back(follow.mirror.ack)
            return
        work, follow.work = follow.work, b""
        arch, lang = follow.lang
        try:
            follow.number = await self._engine.put(arch, lang, work, id_of(follow.run.id, follow.registered.token))
        except BaseException:
            follow.work = work
            raise

    async def give_up(self, registered: Registered, error: MayflyError) -> None:
        """A run has no result but an error."""
        follow = self._by_id.get(registered.head.id)
        run = follow.run if follow else await self._make(registered)
        await self.decide(follow, registered, run, ending_of(run, "", error))

    async def decide(self, follow: Follow | None, registered: Registered, run: Run, ending: Ending) -> None:
        """Store the run with this end, unless it has a result: then that is the end. If the servers
        refuse that, and nobody else can know the run, it is lost.
        """
        run_id = registered.head.id
        try:
            stored = await self._results.create(run_id, store(registered.head, run, ending))
        except RefusedError as error:
            if follow is None or self._is_known(follow):
                raise
            await self._lose(follow, error)
            return
        if stored and registered.charged:
            await self._accounts.give_back(registered.head.owner, run_id)
        if follow is not None and stored:
            self._conclude(follow, ending)
        elif follow is not None:
            await self.look_up(follow)
        if follow is None or self._is_known(follow):
            await self._engine.send(f"over.{run_id}", b"")

    @staticmethod
    def _is_known(follow: Follow) -> bool:
        """Whether others can know of the run."""
        return follow.revision != 0 or follow.registering.locked()

    async def _lose(self, follow: Follow, error: Exception) -> None:
        """A run that only this gateway knows ends without being stored."""
        problem = FleetError(f"the fleet's servers do not store the result: {error}", hint="try again later, or see to their disks")
        self._conclude(follow, ending_of(follow.run, follow.host, problem))
        if follow.registered.charged:
            await self._accounts.give_back(follow.registered.head.owner, follow.run.id)

    async def register(self, follow: Follow) -> None:
        """Register what only this gateway knows: the run, and the host that began it first.

        Raises:
            SilenceError: not now.
        """
        async with follow.registering:
            while follow.revision == 0 or (follow.revision and follow.first is not None):
                host, delivered = follow.first or ("", 0)
                await self.note_about(follow.registered, follow.run.about)
                registered = msgspec.structs.replace(follow.registered, host=host, delivered=delivered, attempts=int(bool(host)))
                revision = await self._registry.update(follow.run.id, encode(registered), follow.revision)
                if revision or follow.revision:  # if not: another gateway has registered a host, or the run was deleted
                    follow.revision = None if host else revision
                    continue
                entry = await self._registry.get(follow.run.id)  # a try whose answer was lost may have come before
                found = decode(entry.value, type=Registered) if entry is not None else None
                if entry is None or found is None or found.token != follow.registered.token:
                    break
                follow.revision = None if found.host else entry.revision
            else:
                return
            follow.revision = None
            error = HostError("the run was lost before it was registered", hint="try again, with an Idempotency-Key")
            await self.give_up(follow.registered, error)

    async def register_soon(self, follow: Follow) -> None:
        """The same of a run that has not ended within BRIEF_S: who else had to know of it finds the
        result instead.
        """
        wait_s = BRIEF_S
        while not follow.run.done.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await follow.run.done.wait()
                return
            try:
                await self.register(follow)
                return
            except SilenceError as error:
                log.warning("fleet: the run %s is registered later: %s", follow.run.id, error)
                wait_s = 1.0

    def heard_over(self, run_id: str) -> None:
        """A gateway has stored a run's result, or removed it."""
        follow = self._by_id.get(run_id)
        if follow is not None and follow.known.is_set():
            self.spawn(self.look_for(follow), f"look for {follow.run.id}")

    async def look_up(self, follow: Follow) -> None:
        """End a run as the fleet has its result, if there is one."""
        data = await self._results.get(follow.run.id)
        if data is not None and not follow.run.done.is_set():
            try:
                found = restore(data)
            except UnreadableError as error:
                problem = FleetError(
                    f"the run is over, and its result cannot be read here: {error}", hint="ask a gateway of a later version"
                )
                self._conclude(follow, ending_of(follow.run, follow.mirror.host, problem))
                return
            follow.mirror.catch_up(found)
            await self.say(follow, Cancel())  # whoever ended it may not have known of the host
            self._conclude(follow, ending_of(found, follow.mirror.host))

    def _conclude(self, follow: Follow, ending: Ending) -> None:
        run = follow.run
        if self._by_id.get(run.id) is not follow or run.done.is_set():
            return
        del self._by_id[run.id]
        conclude(run, ending)
        follow.changed.set()
        if follow.typing is not None:
            follow.typing.end()
        status, code = run.verdict()
        told = step("end", run.id, attempt=follow.mirror.attempts, host=ending.host, status=status, exit_status=code)
        log.info("run %s: %s %s %s on %s", run.id, run.language, status, code, ending.host or "no host", extra=told)
        self.kept.keep(run)
        if follow.then is not None:
            follow.then(run)

    async def look_for(self, follow: Follow) -> None:
        """Find out what became of a run of which nothing has been heard."""
        follow.heard_at = asyncio.get_running_loop().time()
        if follow.revision == 0:  # else it would seem to be deleted
            await self.register(follow)
        await self.look_up(follow)
        if follow.run.done.is_set():
            return
        entry = await self._registry.get(follow.run.id)
        if entry is None:
            await self.say(follow, Cancel())  # whoever deleted it may not have known of the host
            self._conclude(follow, ending_of(follow.run, follow.mirror.host, RunEndedError("the run was deleted")))
            return
        registered = decode(entry.value, type=Registered)
        mirror = follow.mirror
        moved_from = mirror.host if registered.delivered == mirror.delivered else ""
        if registered.host and (follow.number < 0 or moved_from):  # the host may be another one by now
            begun = Begun(token=registered.token, delivered=registered.delivered, ack="", moved_from=moved_from)
            self.begun(follow, registered.host, begun)
        follow.noted(registered)
        if not (follow.work and follow.host and await self._is_lost(follow)):
            await self.attach(follow)

    async def _is_lost(self, follow: Follow) -> bool:
        """Have another host begin a run that was handed to one which knows nothing of it: it may
        have died, and be back already. Whether that was so.
        """
        host = follow.host
        try:
            answer = await self._engine.ask(f"host.{host}.{follow.run.id}", encode(self._attaching(follow)))
            knows_nothing = (said := decode(answer, type=Answer)).error is not None and not said.moved
        except (NobodyError, SilenceError):  # that concerns all that the host has
            return False
        if not knows_nothing or self._tasks.named(f"store {follow.run.id}"):
            return False
        await self.look_up(follow)  # it may have ended just now
        if follow.run.done.is_set() or not follow.work or follow.host != host:
            return False
        told = step("give_back", follow.run.id, attempt=follow.mirror.attempts, host=host)
        await self.give_back(follow)
        log.warning("run %s: the host %s knows nothing of it; another one begins it anew", follow.run.id, host, extra=told)
        return True
