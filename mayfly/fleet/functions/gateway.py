"""Functions at a gateway: a request goes to one host, through the stream, and has one result.

A host asks before it begins. From then on no other host does: what a function does may have effects
that must not happen twice. So a request whose host dies has begun, for all that anybody knows, and
fails.
"""

import asyncio
import collections
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence

from mayfly.errors import (
    FleetError,
    FunctionCrashedError,
    MayflyError,
    QueueFullError,
    ResourceExhaustedError,
    RunEndedError,
    StoppingError,
    UnknownFunctionError,
    UnknownRequestError,
)
from mayfly.fleet.accounts import Accounts
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import FullError, NobodyError, SilenceError, TooLargeError, UnreadableError
from mayfly.fleet.functions.messages import (
    Asked,
    FleetFunction,
    Pending,
    Question,
    Result,
    place_of,
    queue_of,
)
from mayfly.fleet.functions.verdicts import FunctionVerdicts
from mayfly.fleet.message import decode, encode, id_of
from mayfly.fleet.queues import Queues
from mayfly.fleet.results import Results
from mayfly.fleet.roll import Roll
from mayfly.fleet.shared import Done, Shared
from mayfly.fleet.tasks import Spawn
from mayfly.functions.answer import Answer, FunctionFigures, Invocation, LogLine
from mayfly.functions.request import check
from mayfly.functions.spec import FunctionSpec
from mayfly.functions.store import Function
from mayfly.host.admission import Tenant
from mayfly.host.snippet import MAX_OF_A_SAVE
from mayfly.schema import decode as from_json

log = logging.getLogger(__name__)
LOOK_S = 2.0
"""From one look for a result to the next, should nobody tell."""
ASK_S = 2.0
POLL_S = 0.2
CREATE_S = 600.0
"""For creating a function, and for a host to have room for that."""
LATE_S = 30.0
"""Over its own time, until a request that a host has begun has failed."""


def longest_s(spec: FunctionSpec) -> float:
    """Seconds that a request may take with all its guests: one that goes on from its saves takes
    more than its own time.
    """
    return spec.timeout_s * (1 + MAX_OF_A_SAVE if spec.checkpoint_every_s else 1)


class Waiting:
    """A request that this gateway took and waits for; `number` is its place in the stream."""

    def __init__(self, function: FleetFunction, asked: Asked, pending: Pending) -> None:
        self.function, self.asked, self.pending = function, asked, pending
        self.number = 0
        self.begun = False
        self.over = asyncio.Event()


class FleetFunctions:
    """The functions of a fleet, as one gateway asks them. `here` scales a time to this machine,
    `check_ready` raises if nothing is taken now, `spawn` has work done beside.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Bucket,
        results: Results,
        accounts: Accounts,
        queues: Queues,
        roll: Roll,
        shared: Shared[FleetFunction],
        *,
        here: Callable[[float], float],
        check_ready: Callable[[], None],
        spawn: Spawn,
    ) -> None:
        self._engine, self._registry, self._results = engine, registry, results
        self._accounts, self._queues, self._roll, self._shared = accounts, queues, roll, shared
        self._here, self._check_ready, self._spawn = here, check_ready, spawn
        self._waiting: dict[str, Waiting] = {}
        self._verdicts = FunctionVerdicts(engine, registry, results, accounts, spawn=spawn, begun=self._begun, others=self._others)
        self._quiet = asyncio.Event()
        self._stopping = False

    async def listen(self) -> None:
        """Answer hosts from now on."""
        await self._verdicts.listen()

    def _begun(self, request_id: str, has_begun: bool) -> None:
        if (waiting := self._waiting.get(request_id)) is not None:
            waiting.begun = has_begun

    def _others(self, host: str, pending: Pending) -> list[str]:
        """The hosts that could have a request of the host."""
        try:
            language = self._find(pending.function).function.spec.language
        except UnknownFunctionError:
            return []
        return self._roll.others(host, pending.arch, language)

    # What there is

    @property
    def under_way(self) -> int:
        """Requests that this gateway waits for."""
        return len(self._waiting)

    def all(self) -> list[Function]:
        """All functions, by name."""
        return sorted((each.function for each in self._shared.all), key=lambda function: function.name)

    def find(self, name: str) -> Function:
        """The function `name`. Raises UnknownFunctionError."""
        return self._find(name).function

    def _find(self, name: str) -> FleetFunction:
        for each in self._shared.all:
            if each.function.name == name:
                return each
        raise UnknownFunctionError(f"the fleet has no function {name[:64]!r}", hint="mayfly function create FILE --fleet URL")

    async def _ask_hosts(self, question: Question) -> list[bytes]:
        """What hosts say that have the function."""

        async def ask(host: str) -> bytes:
            with contextlib.suppress(NobodyError, SilenceError):
                return decode(await self._engine.ask(f"fn.ask.{host}", encode(question), ASK_S), type=Done).data
            return b""

        return [data for data in await asyncio.gather(*(ask(host.name) for host in self._roll)) if data]

    async def figures(self, name: str) -> FunctionFigures:
        """What the function has done on all hosts. Raises UnknownFunctionError."""
        function = self._find(name)
        parts = [from_json(FunctionFigures, data) for data in await self._ask_hosts(Question(local=function.local.name))]
        waiting = sum(one.function.key == function.key and not one.begun for one in self._waiting.values())
        return add_up(parts, waiting)

    async def logs(self, name: str, last: int = 100) -> list[LogLine]:
        """The last lines that the function printed, wherever. Raises UnknownFunctionError."""
        function = self._find(name)
        answers = await self._ask_hosts(Question(local=function.local.name, last=last))
        lines = [line for data in answers for line in from_json(list[LogLine], data)]
        return sorted(lines, key=lambda line: line.at)[-last:] if last > 0 else []

    # Asking

    async def invoke(self, asked: Invocation) -> Answer:
        """Ask the function, and wait for its answer; if nobody waits any longer, and no host has
        begun, it is not asked.

        Raises:
            MayflyError: as a host's own functions; FleetError: it is not known what became of it.
        """
        waiting = await self._accept(asked)
        try:
            result = await self.wait(waiting)
        except asyncio.CancelledError:
            self._spawn(self._withdraw(waiting), f"withdraw {waiting.asked.id}")
            raise
        return result.get(waiting.asked.id)

    async def submit(self, asked: Invocation) -> str:
        """Ask the function; `result` has the answer under the id that this returns, at any gateway.
        Raises as `invoke`, what is known at once.
        """
        waiting = await self._accept(asked)
        self._spawn(self._see_through(waiting), f"request {waiting.asked.id}")
        return waiting.asked.id

    async def _see_through(self, waiting: Waiting) -> None:
        await self.wait(waiting)

    async def _accept(self, asked: Invocation) -> Waiting:
        check(asked)
        self._check_ready()
        if self._stopping:
            raise StoppingError("the server is stopping", hint="try again at another gateway")
        function = self._find(asked.function)
        spec = function.function.spec
        hosts = sum(bool(host.about and host.about.arch == function.arch) for host in self._roll)
        before = sum(one.function.key == function.key and not one.begun for one in self._waiting.values())
        if before >= spec.queue + spec.concurrency_limit * max(1, hosts):
            raise QueueFullError(f"{before} requests wait for {spec.name} already", hint="try again in 1 s, or raise its queue")
        request = Asked(
            id=asked.request_id or secrets.token_hex(16),
            token=secrets.token_hex(16),
            gateway=self._engine.name,
            key=function.key,
            payload=asked.payload,
            content_type=asked.content_type,
            received=asked.received or time.time(),
            wait_s=asked.wait_s,
            owner=asked.owner,
        )
        return await self.put(function, request, queue_of(spec.name), asked.tenant)

    async def put(self, function: FleetFunction, request: Asked, queue: str, tenant: Tenant | None = None) -> Waiting:
        """Have a host do a request. When this returns it is stored.

        Raises:
            KeyLimitError: its key has reached a limit.
            FleetError: nothing can be stored, or it is not known whether it is.
        """
        name, token = function.function.name, request.token
        pending = Pending(token=token, function=name, arch=function.arch, lang=queue, owner=request.owner)
        waiting = self._waiting[request.id] = Waiting(function, request, pending)
        place = place_of(request.id)
        try:
            if tenant is not None:
                pending.charged = await self._accounts.take(tenant, place, function.memory)
            await self._queues.ensure(function.arch, queue)
            if not await self._registry.create(place, encode(pending)):
                raise FleetError(f"the id {request.id} is taken", hint="try again")
            waiting.number = await self._engine.put(function.arch, queue, encode(request), id_of(place, token))
        except (NobodyError, SilenceError, FullError, TooLargeError) as error:
            self._forget(waiting)
            with contextlib.suppress(NobodyError, SilenceError):  # if it was stored after all, no host may begin it
                await self._registry.delete(place)
                if pending.charged:
                    await self._accounts.give_back(pending.owner, place)
            raise FleetError(f"the fleet's servers do not take the request: {error}", hint="try again") from error
        except BaseException:
            self._forget(waiting)
            raise
        return waiting

    async def remove_queue(self, function: FleetFunction) -> None:
        """No requests come to the function any more. Raises SilenceError, FleetError."""
        await self._queues.remove(function.arch, queue_of(function.name))

    def _forget(self, waiting: Waiting) -> None:
        self._waiting.pop(waiting.asked.id, None)
        if not self._waiting:
            self._quiet.set()

    async def wait(self, waiting: Waiting) -> Result:
        """What comes of a request. One that no host begins in time, or whose host is silent for too
        long, fails.
        """
        spec, asked = waiting.function.function.spec, waiting.asked
        now = asyncio.get_running_loop().time
        queue_s, own_s = (CREATE_S, CREATE_S) if asked.creates else (spec.queue_s, longest_s(spec))
        begin_by = now() + self._here(min(queue_s, queue_s if asked.wait_s is None else asked.wait_s))
        end_by = begin_by + self._here(own_s) + LATE_S
        try:
            while True:
                until = end_by if waiting.begun else begin_by
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(LOOK_S, max(0.01, until - now()))):
                        await waiting.over.wait()
                waiting.over.clear()
                try:
                    if (data := await self._results.get(place_of(asked.id))) is not None:
                        return decode(data, type=Result)
                    if now() >= until:
                        await self._look_at(waiting)
                except UnreadableError as error:
                    raise FleetError(f"the answer cannot be read here: {error}", hint="ask a gateway of a later version") from error
                except (NobodyError, SilenceError) as error:
                    log.warning("fleet: nothing is known of the request %s: %s", asked.id, error)
                    await asyncio.sleep(0.5)
        finally:
            self._forget(waiting)

    async def _look_at(self, waiting: Waiting) -> None:
        """The time of a request is over: see whether a host has begun it."""
        name, request_id, pending = waiting.function.function.name, waiting.asked.id, waiting.pending
        if waiting.begun:
            entry = await self._registry.get(place_of(request_id))
            pending = decode(entry.value, type=Pending) if entry else pending
            await self._verdicts.fail(
                request_id, pending, FunctionCrashedError("the request's host is silent", hint="look at the hosts' logs")
            )
            return
        hint = "try again in 1 s, or add hosts"
        error = ResourceExhaustedError(f"no host had room for {name} in time", hint=hint, resource="memory")
        waiting.begun = not await self._give_up(waiting, error)

    async def _withdraw(self, waiting: Waiting) -> None:
        """Nobody waits for the request: unless a host has begun, it is not done."""
        await self._give_up(waiting, RunEndedError("the client went away"))

    async def _give_up(self, waiting: Waiting, error: MayflyError) -> bool:
        """End a request with an error, unless a host has begun it."""
        given_up = await self._verdicts.give_up(waiting.asked.id, waiting.pending, error)
        if given_up:
            await self._engine.take_back(waiting.function.arch, waiting.number)
        return given_up

    def heard_over(self, place: str) -> None:
        """A request, or a run, has its result."""
        if (waiting := self._waiting.get(place.removeprefix("f-"))) is not None:
            waiting.over.set()

    async def result(self, request_id: str, *, function: str = "", owner: str | None = None) -> Answer | None:
        """The answer to a request that was submitted at any gateway; None while it is under way.

        Raises:
            UnknownRequestError: there is none, it is not to `function`, not `owner`'s, or it is no
                longer kept.
            MayflyError: that with which it failed.
        """
        found: Result | Pending | None = None
        if len(request_id) == 32 and request_id.isalnum() and request_id.isascii():
            try:
                if (data := await self._results.get(place_of(request_id))) is not None:
                    found = decode(data, type=Result)
                elif (entry := await self._registry.get(place_of(request_id))) is not None:
                    found = decode(entry.value, type=Pending)
            except (NobodyError, SilenceError) as error:
                raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again") from error
        if found is None or (function and found.function != function) or (owner is not None and found.owner != owner):
            raise UnknownRequestError(f"no request {request_id[:64]!r}", hint="an answer is kept for an hour")
        return found.get(request_id) if isinstance(found, Result) else None

    async def settled(self, request_id: str) -> None:
        """Wait until a request that was submitted is over. An unknown one is."""
        with contextlib.suppress(UnknownRequestError):
            while await self._is_under_way(request_id):
                await asyncio.sleep(POLL_S)

    async def _is_under_way(self, request_id: str) -> bool:
        try:
            return await self.result(request_id) is None
        except UnknownRequestError:
            raise
        except MayflyError:
            return False

    # The end

    async def drain(self, within_s: float) -> None:
        """Take no more requests, and wait until all are answered, or `within_s` has passed."""
        self._stopping = True
        if self._waiting:
            self._quiet.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._quiet.wait()

    async def close(self) -> None:
        """Take no more. Requests go on without this gateway."""
        self._stopping = True


def add_up(parts: Sequence[FunctionFigures], waiting: int) -> FunctionFigures:
    """The figures of several hosts together, where so many requests wait for a host besides."""

    def maps(name: str) -> dict[str, int]:
        total: collections.Counter[str] = collections.Counter()
        for part in parts:
            total.update(getattr(part, name))
        return dict(total)

    sums = {name: sum(getattr(part, name) for part in parts) for name in ("requests", "ok", "exceptions", "created", "evicted", "waiting")}
    sums["waiting"] += waiting
    return FunctionFigures(**sums, failures=maps("failures"), starts=maps("starts"), guests=maps("guests"))
