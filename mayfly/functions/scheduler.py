"""Which guest answers which request, within the host's memory.

A request takes an idle guest of its function; else one is started for it, for which idle guests of
other functions may have to end, least recently used first; else it waits in its function's queue,
first come, first served, until its time is over. A guest has one request at a time. A guest that
has served a tenant serves only that tenant, and only ever its own function.

Everything happens in the event loop, as one of these: a request comes or leaves, a guest has
started, answered, ended, or was not asked for some time, memory is free again. Each leads to
`_dispatch`, which looks at one function's queue from its head. What a guest goes through meanwhile
is in lifecycle.py.
"""

import asyncio
import itertools
from typing import Generic

from mayfly.errors import FunctionFailedError, MayflyError, StoppingError, UnknownFunctionError
from mayfly.functions.desk import Desk, Instance, State, exhausted, queue_full, surplus
from mayfly.functions.lifecycle import Lifecycle
from mayfly.functions.needs import G, Machines, R, Watcher
from mayfly.functions.request import Request
from mayfly.host.admission import Admission

RETRY_S = 60.0
"""After a guest that was to be ready failed, until the next one is started ahead of requests."""


class Scheduler(Generic[R, G]):
    """Requests of all functions, and the guests that answer them.

    Args:
        machines: starts guests, asks and ends them.
        admission: the budget, shared with runs.
        watcher: is told what happens.
        factor: what times are multiplied by on this host.
    """

    def __init__(self, machines: Machines[R, G], admission: Admission, watcher: Watcher, factor: float = 1.0) -> None:
        self._guests: Lifecycle[R, G] = Lifecycle(machines, admission, watcher, self, factor)
        self._admission = admission
        self._factor = factor
        self._desks: dict[str, Desk[R, G]] = {}
        self._open: set[Request] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._stopping = False
        self._closed = False
        admission.reclaimers.append(self._reclaim)
        admission.on_room.append(self.fill)

    @property
    def under_way(self) -> int:
        """Requests that wait or are with a guest."""
        return len(self._open)

    def request(self, request_id: str) -> Request | None:
        """The request of that id, if it waits or is with a guest."""
        return next((request for request in self._open if request.id == request_id), None)

    def waiting(self, name: str) -> int:
        """How many requests wait for a guest of the function."""
        desk = self._desks.get(name)
        return len(desk.queue) if desk else 0

    def guests(self, name: str) -> dict[str, int]:
        """How many guests the function has, by state."""
        desk = self._desks.get(name)
        return {state.value: sum(1 for _ in desk.of(state)) if desk else 0 for state in State}

    def enter(self, request: Request, revision: R, wait_s: float | None = None) -> None:
        """Take a request; its `answer` comes in time. It waits at most `wait_s`, or what its
        function says, for a guest to be started for it.

        Raises:
            StoppingError: no more are taken.
            HostError: a guest of it does not fit into the budget at any time.
            QueueFullError: as many wait for the function as may.
            ResourceExhaustedError: none may wait, and it would have to.
        """
        if self._stopping:
            raise StoppingError("the server is stopping", hint="try again when it is back")
        spec = revision.spec
        self._admission.check(revision.memory, spec.vcpus)
        request.queued_at = asyncio.get_running_loop().time()
        request.deadline = request.queued_at + self._factor * (spec.queue_s if wait_s is None else min(wait_s, spec.queue_s))
        desk = self.expect(revision)
        desk.queue.append(request)
        self._open.add(request)
        self._quiet.clear()
        request.answer.add_done_callback(lambda _: self._over(request))
        self._dispatch(desk)
        if request.kind is not None or request.answer.done():
            return
        if len(desk.queue) - desk.covered > spec.queue:
            full = queue_full(desk, self._guests.typical_s) if spec.queue else exhausted(desk, self._admission, self._guests.typical_s)
            self.withdraw(request, full)
            raise full
        self._bound(desk, request)

    def _bound(self, desk: Desk[R, G], request: Request) -> None:
        """See that the request does not wait beyond its time."""
        request.expiry = asyncio.get_running_loop().call_at(request.deadline, self._expire, desk)

    def expect(self, revision: R) -> Desk[R, G]:
        """The function's desk, which works with this revision of it from now on."""
        name = revision.spec.name
        desk = self._desks.get(name)
        if desk is None:
            desk = self._desks[name] = Desk(revision)
        elif desk.revision is not revision or desk.removed:
            desk.revision, desk.removed, desk.fill_after = revision, False, 0.0
            self._end_outdated(desk)
        return desk

    def forget(self, name: str) -> None:
        """The function is no more. Its guests end, those in use when nobody waits for one any more;
        none is started.
        """
        desk = self._desks.get(name)
        if desk is not None:
            desk.removed = True
            for instance in list(desk.of(State.IDLE)):
                self._guests.end(instance)
            self._close_desk(desk)

    def _close_desk(self, desk: Desk[R, G]) -> None:
        """Let go of a removed function's desk when its last guest is gone; who waits in vain is
        told.
        """
        if desk.removed and not desk.instances:
            name = desk.revision.spec.name
            desk.fail_all(UnknownFunctionError(f"the function {name!r} was removed", hint="create it again"))
            if self._desks.get(name) is desk:
                del self._desks[name]

    def withdraw(self, request: Request, error: MayflyError | None = None) -> None:
        """Take a request out of its queue: it fails with `error`, or nobody wants it any more.
        Nothing happens to one that a guest has.
        """
        desk = self._desks.get(request.function)
        if desk is not None and request in desk.queue:
            desk.queue.remove(request)
            if error is None:
                request.answer.cancel()
            else:
                request.fail(error)
            self._trim(desk)

    def fill(self) -> None:
        """Start guests of functions that want some to be ready, as far as there is room."""
        if self._stopping:
            return
        now = asyncio.get_running_loop().time()
        for desk in list(self._desks.values()):
            spec = desk.revision.spec
            if now < desk.fill_after:
                continue
            while not desk.removed and desk.lasting < spec.min_guests and len(desk.instances) < spec.concurrency_limit:
                ticket = self._admission.enter_idle(desk.revision.memory, spec.vcpus)
                if ticket is None:
                    return
                ticket.of_run = False
                self._guests.begin(desk, ticket)

    def _over(self, request: Request) -> None:
        """A request has its answer, or its error."""
        self._open.discard(request)
        if request.expiry is not None:
            request.expiry.cancel()
        if not self._open:
            self._quiet.set()

    # What is done for a queue

    def _dispatch(self, desk: Desk[R, G]) -> None:
        """Do for each request that waits what can be done for it now, from the head on."""
        starting = sum(instance.is_current for instance in desk.of(State.STARTING))
        ending, idle = (sum(1 for _ in desk.of(state)) for state in (State.ENDING, State.IDLE))
        limit = desk.revision.spec.concurrency_limit
        most = starting + ending + idle + max(0, limit - len(desk.instances))  # more requests than that can only wait
        for request in list(itertools.islice(desk.queue, most)):
            if instance := self._idle_for(desk, request):
                desk.queue.remove(request)
                self._guests.hand_over(instance, request)
            elif starting:
                starting -= 1
            elif len(desk.instances) < limit:
                if desk.removed or not self._start(desk):
                    break
            elif ending:
                ending -= 1
            elif victim := next(desk.of(State.IDLE), None):  # another tenant's
                self._guests.end(victim)
            else:
                break
        self._trim(desk)
        self._expire(desk)
        self._close_desk(desk)

    def _idle_for(self, desk: Desk[R, G], request: Request) -> Instance[R, G] | None:
        """The guest that the request takes: rather one of its tenant's, and of those the one used
        last, so that the others come to their end.
        """
        able = [instance for instance in desk.instances if instance.may_serve(request) and self._guests.is_alive(instance)]
        own = [instance for instance in able if instance.tenant is not None]
        best = own or able
        return best[-1] if best else None

    def _start(self, desk: Desk[R, G]) -> bool:
        """Begin to start a guest, as soon as there is memory; false if that cannot be."""
        try:
            ticket = self._admission.enter(desk.revision.memory, desk.revision.spec.vcpus, of_run=False)
        except MayflyError as error:  # the function was changed to one that is too large
            desk.fail_all(error)
            return False
        self._guests.begin(desk, ticket)
        return True

    # What a guest's lifecycle tells

    def start_failed(self, instance: Instance[R, G], error: MayflyError) -> None:
        """Tell whoever waits. What cannot get better fails all of them."""
        desk = instance.desk
        desk.fill_after = asyncio.get_running_loop().time() + RETRY_S
        if isinstance(error, FunctionFailedError | UnknownFunctionError):
            desk.fail_all(error)
        elif desk.queue:
            desk.queue.popleft().fail(error)

    def handed_back(self, instance: Instance[R, G], request: Request) -> None:
        """The request is first in the queue again."""
        request.kind = None
        instance.desk.queue.appendleft(request)
        self._bound(instance.desk, request)

    def ended_idle(self, instance: Instance[R, G]) -> None:
        """Do not start another at once where it never answered anything."""
        if not instance.served:
            instance.desk.fill_after = asyncio.get_running_loop().time() + RETRY_S

    def gone(self, instance: Instance[R, G]) -> None:
        """Give its place to who waits."""
        if not self._closed:
            self._dispatch(instance.desk)

    def settle(self, instance: Instance[R, G]) -> None:
        """Find out what becomes of a guest that has nothing to do now."""
        desk, loop = instance.desk, asyncio.get_running_loop()
        instance.state = State.IDLE
        instance.used_at = loop.time()
        desk.instances.remove(instance)
        desk.instances.append(instance)
        if self._closed or not instance.is_current or not self._guests.is_alive(instance):
            self._guests.end(instance)
            return
        first = self._admission.first_waiting
        next_own = desk.queue[0].queued_at if desk.queue else float("inf")
        paid_off = not desk.queue or loop.time() >= instance.paid_off_at
        if first is not None and not desk.awaits(first) and first.entered_at < next_own and paid_off:
            self._admission.press()  # who waits for memory was there before the next request
        if instance.state is State.IDLE:
            self._dispatch(desk)
        if instance.state is State.IDLE and desk.removed:
            self._guests.end(instance)
        if instance.state is State.IDLE:
            self._admission.press()
        if instance.state is State.IDLE:
            instance.rested = True
            instance.expiry = loop.call_later(self._factor * desk.revision.spec.keep_alive_s, self._keep_or_end, instance)
            self._guests.watch(instance)

    def _keep_or_end(self, instance: Instance[R, G]) -> None:
        """A guest was not asked for a long time."""
        instance.expiry = None
        if instance.state is State.IDLE and instance.desk.lasting > instance.desk.revision.spec.min_guests:
            self._guests.end(instance)

    # What is lacking

    def _expire(self, desk: Desk[R, G]) -> None:
        """Fail the requests whose time is over, but for those that a guest is surely coming for."""
        now = asyncio.get_running_loop().time()
        late = [request for request in itertools.islice(desk.queue, desk.covered, None) if request.deadline <= now]
        if late:
            error = exhausted(desk, self._admission, self._guests.typical_s)
            for request in late:
                desk.queue.remove(request)
                request.fail(error)
            self._trim(desk)

    def _trim(self, desk: Desk[R, G]) -> None:
        """Give up guests that wait for memory and are wanted by nobody any more. The others wait as
        long as the requests that are theirs now: a busy function is not always the first.
        """
        waiting = [instance for instance in desk.of(State.STARTING) if not instance.granted]
        uncovered = list(itertools.islice(desk.queue, desk.coming, desk.coming + len(waiting)))
        for instance, request in zip(waiting, uncovered, strict=False):
            self._admission.date(instance.ticket, request.queued_at)
        for instance in waiting[len(uncovered) :]:
            self._guests.cancel(instance)

    @property
    def reclaimable(self) -> int:
        """Bytes of idle guests, which others' room would be made of."""
        return sum(instance.revision.memory for desk in self._desks.values() for instance in desk.of(State.IDLE))

    def _reclaim(self, missing: int) -> int:
        """End idle guests, as many as it takes; the bytes that they give back with those that are
        ending already. Guests that are to stay ready come last.
        """
        freed = self._guests.leaving
        idle = sorted((instance for desk in self._desks.values() for instance in desk.of(State.IDLE)), key=lambda each: each.used_at)
        for instance in itertools.chain(surplus(idle), idle):
            if freed >= missing:
                break
            if instance.state is State.IDLE:
                freed += instance.revision.memory
                self._guests.evict(instance)
        return freed

    def _end_outdated(self, desk: Desk[R, G]) -> None:
        for instance in list(desk.of(State.IDLE)):
            if not instance.is_current:
                self._guests.end(instance)
        for instance in list(desk.of(State.STARTING)):
            if not instance.is_current:
                self._guests.cancel(instance)

    async def drain(self, within_s: float) -> None:
        """Take no more requests, and wait until all are answered, or `within_s` has passed."""
        self._stopping = True
        try:
            async with asyncio.timeout(within_s):
                await self._quiet.wait()
        except TimeoutError:
            pass

    async def close(self) -> None:
        """Fail what is under way and end every guest; all are gone when it returns."""
        if self._closed:
            return
        self._stopping = self._closed = True
        self._admission.reclaimers.remove(self._reclaim)
        self._admission.on_room.remove(self.fill)
        for desk in self._desks.values():
            desk.fail_all(StoppingError("the server stopped before there was a guest for the request"))
        await self._guests.end_all()
        self._desks.clear()
