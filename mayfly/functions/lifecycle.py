"""What a guest of a function goes through, from the wish for one to its end.

    STARTING ──> IDLE <──> IN_USE
        └─────────┴──────────┴──> ENDING

Each change but IDLE's is made here, and whoever schedules is told when there is something to
decide. Whatever happens to a guest, `gone` is the last thing that is told of it.
"""

import asyncio
import itertools
import logging
from typing import Generic, Protocol

from mayfly.errors import BusyError, HostError, MayflyError, ResourceExhaustedError, StoppingError
from mayfly.functions.desk import Desk, Instance, State
from mayfly.functions.needs import G, Machines, R, Watcher
from mayfly.functions.request import Request
from mayfly.guests.function import FunctionRequest
from mayfly.guests.start import StartKind
from mayfly.host.admission import Admission, Ticket

log = logging.getLogger(__name__)
PAYS_OFF = 4.0
"""A guest goes on with its function's requests for so many times as its start took, though others
wait for its memory, and a quarter of its queue's time at most. Else functions that share too little
of it would do nothing but start.
"""


class Decider(Protocol[R, G]):
    """Who decides what becomes of guests."""

    def settle(self, instance: Instance[R, G]) -> None:
        """It has nothing to do now."""

    def start_failed(self, instance: Instance[R, G], error: MayflyError) -> None:
        """It could not be started; `gone` follows."""

    def handed_back(self, instance: Instance[R, G], request: Request) -> None:
        """It had ended before it was asked; `gone` follows."""

    def ended_idle(self, instance: Instance[R, G]) -> None:
        """It ended by itself while nobody used it; `gone` follows."""

    def gone(self, instance: Instance[R, G]) -> None:
        """It is no more, or never was, and its memory is given back."""


class Lifecycle(Generic[R, G]):
    """Starts guests, has them answer, and ends them.

    Attributes:
        instances: all that there are.
        leaving: bytes of guests that are being ended.
        typical_s: what a request takes, by the latest ones.
    """

    def __init__(self, machines: Machines[R, G], admission: Admission, watcher: Watcher, decider: Decider[R, G], factor: float) -> None:
        self.instances: set[Instance[R, G]] = set()
        self.leaving = 0
        self.typical_s = 1.0
        self._machines = machines
        self._admission = admission
        self._watcher = watcher
        self._decider = decider
        self._factor = factor
        self._numbers = itertools.count(1)

    def is_alive(self, instance: Instance[R, G]) -> bool:
        """Whether it can be asked, as far as is known."""
        return instance.guest is not None and self._machines.is_alive(instance.guest)

    def begin(self, desk: Desk[R, G], ticket: Ticket) -> None:
        """Start a guest as soon as its ticket is granted."""
        instance = Instance(next(self._numbers), desk, ticket)
        desk.instances.append(instance)
        self.instances.add(instance)
        instance.task = asyncio.create_task(self._bring_up(instance), name=f"start a guest of {desk.revision.spec.name}")
        # A task that is cancelled before its first step runs no handler of its own.
        instance.task.add_done_callback(lambda task: self._drop(instance) if task.cancelled() else None)

    async def _bring_up(self, instance: Instance[R, G]) -> None:
        """Start the guest when it is its turn."""
        name, clock = instance.revision.spec.name, asyncio.get_running_loop().time
        error: MayflyError | None = None
        try:
            await instance.ticket.turn
            began = clock()
            instance.guest, instance.kind = await self._machines.start(instance.revision)
            ended = clock()
            most = self._factor * instance.revision.spec.queue_s / 4
            instance.paid_off_at = ended + min(PAYS_OFF * (ended - began), most)
            self._watcher.guest_started(name, instance.number, instance.revision.memory, began, ended)
        except BusyError as busy:
            error = ResourceExhaustedError(busy.message, hint=busy.hint, resource="networks", retry_after_s=busy.retry_after_s)
        except MayflyError as failed:
            error = failed
        except Exception as fault:
            log.exception("start a guest of %s", name)
            error = _fault(fault)
        if error is not None:
            self._watcher.guest_failed(name, error)
            self._decider.start_failed(instance, error)
            self._drop(instance)
            return
        instance.task = None
        self._decider.settle(instance)

    def hand_over(self, instance: Instance[R, G], request: Request) -> None:
        """Have an idle guest answer the request."""
        for timer in (instance.expiry, request.expiry):
            if timer is not None:
                timer.cancel()
        instance.state = State.IN_USE
        instance.tenant = request.tenant
        kind = StartKind.WARM if instance.served or instance.rested else instance.kind
        instance.served += 1
        request.taken(kind, instance.number)
        name = f"request {request.id} to {request.function}"
        instance.task = asyncio.create_task(self._serve(instance, request), name=name)
        instance.task.add_done_callback(lambda task: self._break_off(instance, request) if task.cancelled() else None)

    def _break_off(self, instance: Instance[R, G], request: Request) -> None:
        request.fail(StoppingError("the server stopped before the function answered"))
        self.end(instance)

    async def _serve(self, instance: Instance[R, G], request: Request) -> None:
        assert instance.guest is not None  # noqa: S101 (it has started)
        error: MayflyError
        try:
            if instance.watch is not None:
                instance.watch.cancel()
                await asyncio.wait([instance.watch])
                if not self.is_alive(instance):
                    self._decider.handed_back(instance, request)
                    self.end(instance)
                    return
            asked = FunctionRequest(id=instance.served, content_type=request.content_type, payload=request.payload)
            request.sent()
            spec = instance.desk.revision.spec
            timeout_s, every_s = spec.timeout_s * self._factor, spec.checkpoint_every_s * self._factor
            instance.guest, response = await self._machines.ask(instance.guest, asked, request, timeout_s, every_s)
        except MayflyError as caught:
            error = caught
        except Exception as fault:
            log.exception("request %s to %s", request.id, request.function)
            error = _fault(fault)
        else:
            request.answered(response)
            self.typical_s = 0.8 * self.typical_s + 0.2 * (request.answered_at - request.sent_at)
            instance.task = None
            self._decider.settle(instance)
            return
        request.fail(error)
        self.end(instance)

    def watch(self, instance: Instance[R, G]) -> None:
        """Notice, until it is asked, that an idle guest ends by itself."""
        name = f"watch a guest of {instance.revision.spec.name}"
        instance.watch = asyncio.create_task(self._look_after(instance), name=name)

    async def _look_after(self, instance: Instance[R, G]) -> None:
        assert instance.guest is not None  # noqa: S101 (it has started)
        await self._machines.watch(instance.guest)
        if instance.state is State.IDLE:
            log.info("a guest of %s ended by itself", instance.revision.spec.name)
            self._decider.ended_idle(instance)
            self.end(instance)

    def cancel(self, instance: Instance[R, G]) -> None:
        """Give up a guest that is starting."""
        instance.state = State.ENDING
        if instance.task is not None:
            instance.task.cancel()

    def evict(self, instance: Instance[R, G]) -> None:
        """End an idle guest for the room that it takes."""
        instance.evicted_at = asyncio.get_running_loop().time()
        self._watcher.guest_evicted(instance.desk.revision.spec.name, instance.number)
        self.end(instance)

    def end(self, instance: Instance[R, G]) -> None:
        """End a guest that has started."""
        if instance.expiry is not None:
            instance.expiry.cancel()
        instance.state = State.ENDING
        self.leaving += instance.revision.memory
        instance.task = asyncio.create_task(self._stop(instance), name=f"end a guest of {instance.revision.spec.name}")

    async def _stop(self, instance: Instance[R, G]) -> None:
        assert instance.guest is not None  # noqa: S101 (it has started)
        if instance.watch is not None:
            instance.watch.cancel()
        try:
            await self._machines.stop(instance.guest)
        finally:
            if instance.evicted_at:
                self._watcher.eviction_over(instance.number, instance.evicted_at, asyncio.get_running_loop().time())
            self.leaving -= instance.revision.memory
            self._drop(instance)

    def _drop(self, instance: Instance[R, G]) -> None:
        """The guest is gone, or never was."""
        instance.state = State.ENDING
        instance.task = None
        instance.desk.instances.remove(instance)
        self.instances.discard(instance)
        self._admission.leave(instance.ticket)
        self._decider.gone(instance)

    async def end_all(self) -> None:
        """End every guest, whatever it does; all are gone when it returns."""
        while self.instances:
            for instance in list(self.instances):
                if instance.state is State.IDLE:
                    self.end(instance)
                elif instance.task is not None and instance.state is not State.ENDING:
                    instance.task.cancel()
            await asyncio.wait([instance.task for instance in self.instances if instance.task is not None])


def _fault(fault: Exception) -> HostError:
    """What is said of an error that nobody expected."""
    return HostError(f"a fault of ours: {type(fault).__name__}", hint="see the server's log, and report it")
