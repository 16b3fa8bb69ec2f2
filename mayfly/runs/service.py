"""The service behind both the HTTP server and `mayfly run`: takes snippets and runs them. No
HTTP.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mayfly.errors import (
    BusyError,
    MayflyError,
    NotInteractiveError,
    NotRunningError,
    RunEndedError,
    StoppingError,
    UnknownLanguageError,
    UnknownRunError,
)
from mayfly.guests.cgroups import Groups
from mayfly.guests.converse import BytesStdin, StdinSource
from mayfly.guests.job import Wanted
from mayfly.guests.spawner import GRACE_S, Spawner
from mayfly.guests.start import Guest
from mayfly.guests.zygote import Zygote
from mayfly.host.admission import DEFAULT_SHARE, Admission, Tenant, Ticket
from mayfly.host.config import Config
from mayfly.host.keys import ApiKey
from mayfly.host.memory import available_memory
from mayfly.host.networks import Networks
from mayfly.host.observer import Observer
from mayfly.host.plan import Plan, make_plan
from mayfly.host.pool import Idle
from mayfly.host.snippet import Snippet, Terminal
from mayfly.host.supply import Supply
from mayfly.images.store import Images, InstalledImage, targeted
from mayfly.protocol.conversation import Conversation
from mayfly.protocol.phases import Phase
from mayfly.runs.bases import Bases
from mayfly.runs.execute import do_cases, do_once, execute
from mayfly.runs.kept import Runs
from mayfly.runs.repeats import Repeat, Repeats
from mayfly.runs.run import Elsewhere, Run
from mayfly.runs.runner import CallBack, Health, Order, call_nobody
from mayfly.runs.stdin import LiveStdin
from mayfly.runs.work import Work, make_lasting, make_run, named_in
from mayfly.snapshots import store as snapshots
from mayfly.snapshots.making import save
from mayfly.snapshots.store import Snapshot

log = logging.getLogger(__name__)
COPIES_WORTH_S = 2.0
"""Cases that take longer than this in one guest are spread over copies of it."""


class Service:
    """Runs snippets. `sockets`: the folder for output sockets, or None for none. `grace_s`
    is how long a machine that is done may take to report its exits before it is killed. Machines
    get control `groups` of their own, if there are any.

    Use it as `async with Service(...)`: on leaving, every run is ended and every machine, socket
    and the zygote is gone.
    """

    def __init__(
        self,
        config: Config,
        zygote: Callable[[], Zygote],
        *,
        sockets: Path | None = None,
        grace_s: float = GRACE_S,
        observer: Observer | None = None,
        groups: Groups | None = None,
    ) -> None:
        self.config = config
        self.images = Images(config.languages)
        self.spawner = Spawner(zygote, groups)
        self.admission = Admission(config.memory_budget or int(available_memory() * DEFAULT_SHARE), config.queue, config.threads)
        self.networks = Networks(config)
        self.observer = observer or Observer()
        self.supply = Supply(self.spawner, config, self.admission, self.observer, lasting=sockets is not None)
        self.bases = Bases(config, self.networks, self.spawner, self.supply)
        self.stopping = False
        self.grace_s = grace_s
        self.runs = Runs(config, sockets)
        self._repeats = Repeats(self.runs)
        self.work: dict[str, Work] = {}  # of the runs whose machine is not gone yet
        self.call_back: CallBack = call_nobody
        self.home = str(config.socket.absolute()) if sockets is not None else ""

    async def __aenter__(self) -> "Service":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def warm_up(self, languages: Iterable[str] = ()) -> None:
        """Start what the first run would wait for, and make what the runs of `languages` start
        from. What killed creators of snapshots have left is removed.

        Raises:
            MayflyError: it cannot serve at all.
        """
        self.spawner.warm_up()
        snapshots.sweep()
        for name in languages:
            self.bases.expect(self.images.find(name))

    def installed(self) -> list[InstalledImage]:
        """The images whose languages can be run."""
        return self.images.installed()

    def find_image(self, language: str, path: Path | None = None, target: str = "") -> InstalledImage:
        """The image of a language; without one that for the extension of `path`. Its programs are
        compiled to the `target`, if there is one.

        Raises:
            UnknownLanguageError: there is none.
        """
        return self.images.for_file(path, target) if path and not language else self.images.find(targeted(language, target))

    def image_for(self, snippet: Snippet) -> InstalledImage:
        """The image that a snippet asks for.

        Raises:
            UnknownLanguageError: there is none.
        """
        if snippet.architecture not in ("", self.images.arch):
            hint = f"leave architecture out, or say {self.images.arch}"
            raise UnknownLanguageError(f"machines here are {self.images.arch}, not {snippet.architecture}", hint=hint)
        return self.images.find(targeted(snippet.language or self.images.default(), snippet.target))

    def check_ready(self) -> None:
        """See that runs are taken.

        Raises:
            StoppingError: no more.
        """
        if self.stopping:
            raise StoppingError("the server is stopping", hint="try again when it is back")

    def health(self) -> Health:
        """What it has to do."""
        admission = self.admission
        return Health(waiting=admission.waiting, idle=len(self.supply.pool), memory_used=admission.used, memory_budget=admission.budget)

    def start(
        self,
        snippet: Snippet,
        image: InstalledImage | None = None,
        stdin: StdinSource | None = None,
        publish: bool = True,
        snapshot: Snapshot | None = None,
        tenant: Tenant | None = None,
        then: Callable[[Run], None] | None = None,
        run_id: str = "",
    ) -> Run:
        """Accept a snippet, or refuse it at once; what happens to it later is in the run. Its
        output socket (if `publish`) listens when this returns. It runs in a machine restored from
        `snapshot`, or from the one that the snippet names, which is read now. It is `tenant`'s,
        within that one's limits. `then` is told of the run when it is over and its machine gone.
        Without `run_id` it gets an id.

        Raises:
            RequestError, SnapshotError: the snippet cannot be run so, or there is no room.
            StoppingError, HostError: this host serves nobody now.
        """
        self.check_ready()
        image = image or self.image_for(snippet)
        snapshot = snapshot or named_in(snippet, image)
        with self.counting_refusals(), contextlib.ExitStack() as taken:
            network = None
            if snippet.network:
                network = self.networks.lease()
                taken.callback(self.networks.give_back, network)
            plan = make_plan(snippet, image, self.config, network)
            live = LiveStdin(snippet.stdin) if snippet.interactive and stdin is None else None
            run = make_run(snippet, image, plan, owner=tenant.name if tenant else "", stdin=live, run_id=run_id)
            if tenant is not None:
                tenant.check(plan.wanted.machine.memory)
            idle = self.supply.idle(plan.wanted) if snapshot is None else None
            ticket = idle.ticket if idle else self.admission.enter(plan.wanted.machine.memory, plan.wanted.machine.cpus)
            taken.callback(self.admission.leave, ticket)
            if tenant is not None:
                self.admission.charge(ticket, tenant)
            if idle:
                taken.callback(self.spawner.stop, idle.guest.process, 0)  # if the run never came to it
            lasting = make_lasting(self, run, plan.wanted, taken, stdin)
            self.runs.add(run, publish=publish)
            work = self.work[run.id] = Work(held=taken.pop_all(), place=ticket, lasting=lasting)
        if snippet.cases:
            copy, worth_s = partial(self._copies, run=run, beside=ticket), self.config.here(COPIES_WORTH_S)
            do = partial(do_cases, plan=plan, run=run, snippet=snippet, copy=copy, worth_s=worth_s)
        else:
            do = partial(do_once, plan=plan, run=run, stdin=stdin or live or BytesStdin(snippet.stdin), config=self.config)

        async def carry_out() -> None:
            await ticket.turn
            run.booting()
            await execute(self._machine(plan, run, idle, snapshot), do, run, self.grace_s, lasting)

        self.take_up(run, work, carry_out(), plan.wanted, then)
        return run

    def adopt(
        self, run: Run, guest: Guest, ticket: Ticket, do: Callable[[Guest], Awaitable[None]], then: Callable[[Run], None] | None = None
    ) -> None:
        """Take a run that comes in the middle of its program, with its guest, whose place is
        `ticket`; the caller lets the guest go on. `then` is as of `start`.

        Raises:
            HostError: there is no place for its output socket.
        """

        async def there() -> Guest:
            return guest

        with contextlib.ExitStack() as held:
            lasting = make_lasting(self, run, guest.wanted, held)
            self.runs.add(run, publish=True)
            held.callback(self.admission.leave, ticket)
            if network := guest.wanted.machine.network:
                held.callback(self.networks.give_back, network)
            work = self.work[run.id] = Work(held=held.pop_all(), place=ticket, guests=(guest,), lasting=lasting)
        self.take_up(run, work, execute(there(), do, run, self.grace_s, lasting), guest.wanted, then)

    def have_again(self, run: Run, guest: Guest, ticket: Ticket) -> None:
        """Have the machine of a run here again that was elsewhere, where it is `released` from."""
        work = self.work[run.id]
        if work.lasting is not None:
            work.held.callback(work.lasting.close)
        work.held.callback(self.admission.leave, ticket)
        if network := guest.wanted.machine.network:
            work.held.callback(self.networks.give_back, network)
        work.place, work.guests = ticket, (guest,)

    def now(self, run: Run, guest: Guest) -> None:
        """The run has another guest than before."""
        self.work[run.id].guests = (guest,)

    async def leave_saves(self, run: Run) -> None:
        """Forget what is saved of a run that goes elsewhere, so that it never goes on here. Raises
        HostError: that cannot be removed.
        """
        if (work := self.work.get(run.id)) and work.lasting:
            await work.lasting.leave()

    def take_up(
        self, run: Run, work: Work, doing: Coroutine[Any, Any, None], wanted: Wanted | None, then: Callable[[Run], None] | None = None
    ) -> None:
        """Have a run under way, whose end is seen to. `wanted` was its machine, if others may want
        such a one.
        """
        work.task = asyncio.create_task(doing, name=f"run {run.id}")
        work.task.add_done_callback(lambda task: self._over(run, task, wanted, then))

    async def begin(self, order: Order) -> Run:
        """As `start`."""

        def over(run: Run) -> None:
            if order.then is not None:
                order.then(run)
            if order.call:
                self.call_back(run, order.call, lambda _: None)

        image = order.image or self.image_for(order.snippet)
        snapshot = await asyncio.to_thread(named_in, order.snippet, image) if order.snippet.snapshot else None
        run = self.start(order.snippet, image, None, order.publish, snapshot, order.tenant, over, order.run_id)
        run.about = order.about
        if order.repeat is not None:
            self._repeats.remember(order.repeat, run)
        return run

    async def repeated(self, repeat: Repeat) -> Run | None:
        """The run that the same request began before, if it did.

        Raises:
            KeyReusedError: another request came with this key.
        """
        return self._repeats.find(repeat)

    async def find(self, run_id: str, owner: str | None = None) -> Run:
        """As `get`."""
        return self.get(run_id, owner)

    @property
    def shared_keys(self) -> Sequence[ApiKey]:
        """None: a host's keys are kept on it."""
        return ()

    @property
    def under_way(self) -> int:
        """How many runs have not ended."""
        return self.runs.under_way

    def get(self, run_id: str, owner: str | None = None) -> Run:
        """The run with that id, whose owner is `owner` if that is said.

        Raises:
            UnknownRunError: there is none, or it is no longer kept.
        """
        return self.runs.get(run_id, owner)

    async def save(self, run_id: str, name: str) -> Snapshot:
        """Save the machine of a run as the snapshot `name`; the run goes on.

        Raises:
            UnknownRunError: there is no such run.
            RunEndedError: it has no machine, or the machine ended before it was saved.
            ConfigError, SnapshotError: it cannot be saved so.
        """
        run = self.get(run_id)
        async with run.alone:
            guests = self._guests(run)
            if not guests or run.done.is_set():
                raise RunEndedError("the run has no machine", hint="save it while it is running")
            guest = guests[0]
            try:
                return await save(guest, self.supply.origin(guest), name=name, run=run.id)
            except MayflyError as error:
                if run.done.is_set():
                    raise RunEndedError("the run ended before its machine was saved") from error
                raise

    async def signal(self, run: Run, number: int) -> None:
        """Send a signal to every process of the run's present step, in copies of its guest too.

        Raises:
            RunEndedError: the run is over.
            NotRunningError: no step is under way.
        """
        await self._tell(run, lambda there: there.signal(number), lambda conversation: conversation.signal(number))

    async def resize(self, run: Run, size: Terminal) -> None:
        """Give the terminal of the run's program another size.

        Raises:
            NotInteractiveError: it has no terminal.
            RunEndedError, NotRunningError: as `signal`.
        """
        if not run.has_terminal:
            raise NotInteractiveError("the run has no terminal", hint='start the run with "tty": {"columns": …, "rows": …}')
        columns, rows = size.columns, size.rows
        await self._tell(run, lambda there: there.resize(columns, rows), lambda conversation: conversation.resize(columns, rows))

    async def _tell(self, run: Run, there: Callable[[Elsewhere], Awaitable[None]], here: Callable[[Conversation], bytes]) -> None:
        """Send a frame to each step that is under way, or tell the server to which the run went."""
        await run.going.wait()
        if run.elsewhere is not None and not run.done.is_set():
            await there(run.elsewhere)
            return
        guests = [guest for guest in self._guests(run) if guest.conversation.phase is Phase.STEP]
        if run.done.is_set():
            raise RunEndedError("the run is over")
        if not guests:
            raise NotRunningError("no program of the run is running now", hint="wait for the event of its stage")
        await asyncio.gather(*(guest.process.write(here(guest.conversation)) for guest in guests))

    def _guests(self, run: Run) -> tuple[Guest, ...]:
        work = self.work.get(run.id)
        return work.guests if work else ()

    def place(self, run: Run) -> Ticket | None:
        """The place of the run's machine among all; None if it has none."""
        work = self.work.get(run.id)
        return work.place if work else None

    def output_socket(self, run: Run) -> Path:
        """The path of a run's output socket."""
        return self.runs.output(run).path

    async def settled(self, run: Run) -> None:
        """Wait until the run is over and its machine gone."""
        if work := self.work.get(run.id):
            await asyncio.wait([work.task])

    async def end(self, run: Run, reason: str) -> None:
        """End a run that is under way; its machine is gone when this returns, unless it went
        elsewhere and the server there does not answer. Does nothing for one that is over.
        """
        if run.moving is not None:
            await run.moving.give_way()
        if run.elsewhere is not None and not run.done.is_set():
            await run.elsewhere.cancel(reason)
        await self._end(run, reason)

    async def _end(self, run: Run, reason: str) -> None:
        run.fail(RunEndedError(reason))
        if work := self.work.get(run.id):
            work.task.cancel()
            await asyncio.wait([work.task])

    async def leave(self, run: Run) -> None:
        """End what is left here of a run that went elsewhere, where it goes on."""
        await self._end(run, _stopping(run))

    async def forget(self, run_id: str) -> None:
        """End a run if it is under way, and keep nothing of it. An unknown id is fine."""
        try:
            run = self.runs.get(run_id)
        except UnknownRunError:
            return
        await self.end(run, "the run was deleted")
        self.runs.drop(run)

    async def drain(self, within_s: float) -> None:
        """Take no more runs, and wait until all have ended, or `within_s` has passed."""
        self.stopping = True
        tasks = [self.work[run.id].task for run in self.runs if run.id in self.work and run.elsewhere is None]
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)

    async def close(self) -> None:
        """End everything."""
        self.stopping = True
        await asyncio.gather(*(run.moving.give_way() for run in self.runs if run.moving is not None))
        for run in self.runs:
            if run.moving is not None:
                run.moving.abandon()
        await asyncio.gather(*(self._end(run, _stopping(run)) for run in self.runs))
        await self.runs.close()
        await self.supply.close()
        await self.spawner.close()

    @contextlib.contextmanager
    def counting_refusals(self) -> Iterator[None]:
        """Have a refusal for lack of room counted."""
        try:
            yield
        except BusyError:
            self.observer.refused()
            raise

    async def _machine(self, plan: Plan, run: Run, idle: Idle | None, snapshot: Snapshot | None) -> Guest:
        guest = idle.guest if idle else await self.supply.get(plan.wanted, snapshot)
        self.observer.started(guest.kind, run.language)
        run.started(guest.kind, guest.hello)
        self.now(run, guest)
        return guest

    @contextlib.asynccontextmanager
    async def _copies(self, guest: Guest, most: int, *, run: Run, beside: Ticket) -> AsyncIterator[list[Guest]]:
        """Copies of the run's guest, which are its own too until they are gone."""
        async with self.supply.copies(guest, most, beside=beside) as copies:
            work = self.work[run.id]
            work.guests = (guest, *copies)
            try:
                yield copies
            finally:
                work.guests = (guest,)

    def release(self, run: Run) -> None:
        """Give back what a run took of this host: its machine is gone."""
        if work := self.work.get(run.id):
            work.guests, work.place = (), None
            work.held.close()

    def _over(self, run: Run, task: asyncio.Task[None], wanted: Wanted | None, then: Callable[[Run], None] | None) -> None:
        """The run's task has ended and its machine is gone: what it held is free, and from here on
        it is only kept.
        """
        self.release(run)
        run.exchange = None
        del self.work[run.id]
        if not task.cancelled() and task.exception() is not None:
            log.error("run %s", run.id, exc_info=task.exception())
        run.fail(RunEndedError("the run was ended"))
        log.info("run %s: %s %s %s", run.id, run.language, *run.verdict())
        self.observer.ended(run.verdict().status, run.phases)
        if not self.stopping and wanted is not None:
            self.supply.run_over(wanted)
        self.runs.keep(run)
        if then is not None:
            then(run)


def _stopping(run: Run) -> str:
    where = f"; the run goes on at {run.elsewhere.to}" if run.elsewhere is not None else ""
    return f"the server is stopping{where}"
