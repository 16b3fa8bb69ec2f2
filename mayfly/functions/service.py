"""Functions as gateways and the command line see them: created, found, asked, removed."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mayfly.errors import (
    ForbiddenError,
    MayflyError,
    StoppingError,
    UnknownFunctionError,
    UnknownRequestError,
)
from mayfly.files import atomic_write
from mayfly.functions import store
from mayfly.functions.answer import Answer, FunctionFigures, Invocation, LogLine
from mayfly.functions.desk import State
from mayfly.functions.kept import Log, Results, outcome
from mayfly.functions.lasting import Lasting
from mayfly.functions.making import FunctionMachines, Revision, forget_snapshots, revise
from mayfly.functions.request import Arrival, Request, check
from mayfly.functions.revisions import Revisions
from mayfly.functions.scheduler import Scheduler
from mayfly.functions.spec import FunctionSpec
from mayfly.functions.stats import Statistics
from mayfly.functions.store import Function
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest
from mayfly.host.admission import Admission, Tenant
from mayfly.host.config import Config
from mayfly.host.logs import open_log
from mayfly.host.networks import Networks
from mayfly.host.observer import Observer
from mayfly.host.supply import Supply
from mayfly.images.store import Images

log = logging.getLogger(__name__)


class Functions:
    """The functions of one host. It uses what a service of runs has, and shares its memory budget;
    close it before that. As `async with Functions(...)`: on leaving, every request is over and
    every guest gone.

    A request whose client goes away is taken out of its queue; once a guest has it, the guest
    finishes it all the same, as what it does may have begun to have effects.
    """

    def __init__(
        self,
        config: Config,
        spawner: Spawner,
        admission: Admission,
        supply: Supply,
        images: Images,
        networks: Networks,
        observer: Observer | None = None,
        *,
        machines: FunctionMachines | None = None,
    ) -> None:
        self.config = config
        self._images = images
        self._networks = networks
        self._admission = admission
        self._machines = machines or FunctionMachines(config, spawner, supply, networks)
        self._statistics = Statistics(observer or Observer())
        self._scheduler: Scheduler[Revision, Guest] = Scheduler(self._machines, admission, self._statistics, config.here(1.0))
        self._results = Results(config)
        self._logs: dict[str, Log] = {}
        self._revisions = Revisions(config, images, networks)
        self._log = open_log(config.function_log)
        self._stopping = self._closed = False

    async def __aenter__(self) -> "Functions":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def find(self, name: str) -> Function:
        """The function `name`.

        Raises:
            UnknownFunctionError: there is none.
            HostError: it cannot be read.
        """
        return self._revisions.find(name)

    def all(self) -> list[Function]:
        """All functions, by name."""
        return store.installed()

    def begin(self) -> None:
        """Start guests of the functions that want some to be ready. What fails is logged."""
        for function in self.all():
            if function.spec.min_guests:
                try:
                    self._scheduler.expect(self._current(function.name))
                except MayflyError as error:
                    log.warning("the function %s: %s", function.name, error)
        self._scheduler.fill()

    async def create(self, spec: FunctionSpec, owner: str = "", *, again: bool = False) -> Function:
        """Build and load the function in a guest, keep a snapshot of that, and then the function,
        in the place of one of that name. The code is read from where `spec` says. With `again` the
        snapshot is made anew in any case. At an error nothing has changed.

        Raises:
            FunctionFailedError: it cannot be built or loaded.
            ForbiddenError: there is one of that name that is not the owner's.
            BusyError: somebody else creates it, or there is no room for a guest.
            MayflyError: its code, its language or this host do not do.
        """
        image = self._images.find(spec.language)
        how = image.manifest.function
        source_file = how.source_file if how else image.manifest.source_file
        code = await asyncio.to_thread(store.read_code, Path(spec.code), source_file)
        function = store.make_function(spec, code, owner)
        with store.claimed(spec.name):
            self._check_owner(spec.name, owner)
            revision = revise(function, image, self.config, self._networks)
            await self._try_out(revision, code, again=again)
            await asyncio.to_thread(store.save, function, code)
        await asyncio.to_thread(forget_snapshots, spec.name, but=revision.snapshot_name)
        if not self._stopping and (spec.min_guests or spec.name in self._revisions):
            self._scheduler.expect(self._current(spec.name))
            self._scheduler.fill()
        return function

    async def install(self, function: Function, code: Mapping[str, bytes], *, try_out: bool) -> None:
        """Keep a function that was created elsewhere; with `try_out` it is built and loaded first.

        Raises:
            FunctionFailedError: it cannot be built or loaded.
            BusyError: somebody else installs it, or there is no room for a guest.
            MayflyError: its language or this host do not do.
        """
        revision = revise(function, self._images.find(function.spec.language), self.config, self._networks)
        with store.claimed(function.name):
            if try_out:
                await self._try_out(revision, code)
            await asyncio.to_thread(store.save, function, code)

    async def _try_out(self, revision: Revision, code: Mapping[str, bytes], *, again: bool = False) -> None:
        """Build and load it in a guest, which is saved."""
        with self._place(revision) as turn:
            await turn
            await self._machines.try_out(revision, code, again=again)

    def has(self, name: str) -> bool:
        """Whether there is a function of that name."""
        return store.stamp(name) is not None

    def idle(self, name: str) -> int:
        """How many guests of the function wait for a request."""
        return self._scheduler.guests(name)[State.IDLE.value]

    @property
    def reclaimable(self) -> int:
        """Bytes of guests that would be ended for others."""
        return self._scheduler.reclaimable

    def _check_owner(self, name: str, owner: str) -> None:
        with contextlib.suppress(UnknownFunctionError):
            if owner and store.find(name).owner != owner:
                raise ForbiddenError(f"there is a function {name!r} already, which is not yours", hint="choose another name")

    @contextlib.contextmanager
    def _place(self, revision: Revision) -> Iterator["asyncio.Future[None]"]:
        """A place for a guest in the memory budget; what is given is done when it may start."""
        ticket = self._admission.enter(revision.memory, revision.spec.vcpus)
        try:
            yield ticket.turn
        finally:
            self._admission.leave(ticket)

    async def remove(self, name: str) -> None:
        """Remove the function and its snapshot. Requests that guests have, or can still have, are
        answered.

        Raises:
            UnknownFunctionError: there is none.
            BusyError: it is being created.
        """
        await asyncio.to_thread(store.remove, name)
        self._forget(name)
        await asyncio.to_thread(forget_snapshots, name)

    def _forget(self, name: str) -> None:
        self._revisions.forget(name)
        self._logs.pop(name, None)
        self._scheduler.forget(name)
        self._statistics.forget(name)

    async def invoke(self, asked: Invocation) -> Answer:
        """Ask the function, and wait for its answer.

        Raises:
            UnknownFunctionError: there is none of that name.
            BodyTooLargeError, UnprocessableError: payload or type cannot be sent.
            QueueFullError, ResourceExhaustedError, KeyLimitError: there is no room for it.
            FunctionCrashedError, FunctionTimeoutError: its guest did not survive it.
            FunctionFailedError: it cannot be built or loaded any more.
            StoppingError: the server stops.
            MayflyError: its guest did not come up.
        """
        request = self._enter(asked)
        try:
            return await asyncio.shield(request.answer)
        except asyncio.CancelledError:
            self._scheduler.withdraw(request)
            raise

    async def attempt(self, asked: Invocation, arrival: Arrival | None = None) -> tuple[Answer | MayflyError | None, bool]:
        """Ask the function as `invoke` does, or go on with a request whose machine comes by
        `arrival`: what came of it, and whether a guest was given the request. None: it went to
        another host.
        """
        try:
            request = self._enter(asked, arrival, movable=True)
        except MayflyError as error:
            return error, False
        await asyncio.wait([request.answer])
        if request.answer.cancelled():
            return None, True
        try:
            return request.answer.result(), True
        except MayflyError as error:
            return error, bool(request.sent_at)

    def going(self, request_id: str) -> Lasting | None:
        """What asks the guest of a request that may go elsewhere now."""
        return self._machines.going(request_id) if self._scheduler.request(request_id) else None

    def turn_away(self, request_id: str) -> None:
        """Have a request fail that no guest has been given: others are to do it."""
        if (request := self._scheduler.request(request_id)) is not None:
            self._scheduler.withdraw(request, StoppingError("the host takes no more requests", hint="try again"))

    async def submit(self, asked: Invocation) -> str:
        """Ask the function; `result` has the answer under the id that this returns.

        Raises:
            MayflyError: as `invoke`, what is known at once.
        """
        request = self._enter(asked)
        self._results.add(request)
        return request.id

    async def result(self, request_id: str, *, function: str = "", owner: str | None = None) -> Answer | None:
        """The answer to a request that was submitted; None while it is under way.

        Raises:
            UnknownRequestError: there is none, it is not to `function`, not `owner`'s, or it is no
                longer kept.
            MayflyError: that with which it failed.
        """
        answer = self._results.get(request_id, function=function, owner=owner).answer
        return answer.result() if answer.done() else None

    async def settled(self, request_id: str) -> None:
        """Wait until a request that was submitted is over. An unknown one is."""
        with contextlib.suppress(UnknownRequestError):
            await asyncio.wait([self._results.get(request_id).answer])

    async def logs(self, name: str, last: int = 100) -> list[LogLine]:
        """The last lines that the function printed.

        Raises:
            UnknownFunctionError: there is none.
        """
        self.find(name)
        kept = self._logs.get(name)
        return kept.lines(last) if kept else []

    async def figures(self, name: str) -> FunctionFigures:
        """What the function has done since the server began, and what it has now.

        Raises:
            UnknownFunctionError: there is none.
        """
        self.find(name)
        return self._statistics.figures(name, waiting=self._scheduler.waiting(name), guests=self._scheduler.guests(name))

    def statistics(self) -> dict[str, Any]:
        """What all functions have done, by SnapFaaS's names."""
        return self._statistics.to_json()

    @property
    def memory_budget(self) -> int:
        """Bytes that all machines of this host may have together."""
        return self._admission.budget

    @property
    def under_way(self) -> int:
        """Requests that wait or are with a guest."""
        return self._scheduler.under_way

    def _enter(self, asked: Invocation, arrival: Arrival | None = None, *, movable: bool = False) -> Request:
        name, tenant = asked.function, asked.tenant
        check(asked)
        revision = self._current(name)
        self._statistics.request_came(name)
        try:
            if tenant is not None:
                tenant.check(revision.memory)
            request = Request(asked)
            request.movable, request.arrival = movable, arrival
            self._scheduler.enter(request, revision, asked.wait_s)
        except MayflyError as error:
            self._statistics.request_refused(name, error)
            raise
        if tenant is not None:
            tenant.take(revision.memory)
        request.answer.add_done_callback(lambda _: self._over(request, tenant, revision.memory))
        return request

    def _over(self, request: Request, tenant: Tenant | None, memory: int) -> None:
        """A request has its answer, or its error."""
        if tenant is not None:
            tenant.give_back(memory)
        self._statistics.request_over(request)
        if request.log and request.function in self._revisions:
            self._logs.setdefault(request.function, Log()).add(request)
        status, _ = outcome(request)
        times = request.times()
        self._log.write(
            request=request.id,
            function=request.function,
            key=request.tenant or None,
            status=status,
            start=request.kind.value if request.kind else None,
            received=times.received,
            queued_s=times.queued_s,
            started_s=times.started_s,
            sent_s=times.sent_s,
            answered_s=times.answered_s,
            guest_us=times.guest_us,
        )

    def _current(self, name: str) -> Revision:
        """The function as it is now.

        Raises:
            MayflyError: there is none, or it cannot be used with its image.
        """
        try:
            return self._revisions.current(name)
        except UnknownFunctionError:
            self._forget(name)
            raise

    async def drain(self, within_s: float) -> None:
        """Take no more requests, and wait until all are answered, or `within_s` has passed."""
        self._stopping = True
        await self._scheduler.drain(within_s)

    async def close(self) -> None:
        """Fail what is under way, end every guest, write the statistics; once."""
        if self._closed:
            return
        self._stopping = self._closed = True
        await self._scheduler.close()
        self._results.close()
        await asyncio.sleep(0)  # what was failed now is counted by callbacks
        if self.config.function_statistics:
            try:
                with atomic_write(Path(self.config.function_statistics).expanduser()) as file:
                    file.write(json.dumps(self.statistics(), indent=1).encode() + b"\n")
            except OSError as error:
                log.error("%s: the statistics cannot be written: %s", self.config.function_statistics, error)
        self._log.close()
