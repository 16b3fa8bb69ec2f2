"""Calls when runs are over: work for gateways, stored before the run is, so that another one makes
the call if the one that took the run is gone.

A gateway that has a call says so to the stream until it is made. Somebody may be called twice, as
whoever made a call can die before it says so; the call's id is the same then.
"""

import asyncio
import contextlib
import logging

import msgspec

from mayfly.errors import MayflyError, UnknownRunError
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Delivery, Engine
from mayfly.fleet.failures import NobodyError, SilenceError
from mayfly.fleet.follows import Follows
from mayfly.fleet.message import decode, encode
from mayfly.fleet.results import Results
from mayfly.runs.runner import CallBack, call_nobody

log = logging.getLogger(__name__)
KIND, QUEUE = "calls", "all"
"""Where they wait, as runs do for an architecture and a language."""
PULLS = 2
MOST = 500
"""That one gateway has at a time."""
EXPIRES_S = 5.0
LOOK_S = 2.0
"""From one look for a run's result to the next, should nobody tell."""
AGAIN_S = 1.0


class Call(msgspec.Struct, kw_only=True):
    """Who is to be told of a run, as `call_back` understands it."""

    run: str
    about: bytes


class Calls:
    """The calls that one gateway makes, by `call_back`."""

    def __init__(self, engine: Engine, registry: Bucket, results: Results, follows: Follows, *, ack_wait_s: float) -> None:
        self.call_back: CallBack = call_nobody
        self._engine, self._registry, self._results, self._follows = engine, registry, results, follows
        self._ack_wait_s = ack_wait_s
        self._pulling = self._held = 0
        self._over: dict[str, asyncio.Event] = {}

    async def open(self) -> None:
        """Ask for calls from now on."""
        await self._engine.listen_for_work(self._delivered)
        self._engine.on_return.append(self._returned)
        self._refill()

    async def put(self, run_id: str, about: bytes, token: str) -> None:
        """Have somebody told when the run is over, or found not to exist; once for each `token`.

        Raises:
            FullError, TooLargeError: it cannot be stored.
            SilenceError, NobodyError: it may be stored or not.
        """
        await self._engine.put(KIND, QUEUE, encode(Call(run=run_id, about=about)), f"call {run_id} {token}")

    def over(self, run_id: str) -> None:
        """A run has its result."""
        if run_id in self._over:
            self._over[run_id].set()

    def _refill(self) -> None:
        while self._pulling < PULLS and self._held < MOST:
            self._pulling += 1
            self._follows.spawn(self._engine.pull(KIND, QUEUE, priority=0, expires_s=EXPIRES_S), "pull calls")

    def _returned(self) -> None:
        """The connection is there again; pulls that waited are not."""
        self._pulling = 0
        self._refill()

    def _delivered(self, _: str, delivery: Delivery | None) -> None:
        self._pulling = max(0, self._pulling - 1)
        if delivery is None:
            asyncio.get_running_loop().call_later(AGAIN_S / 4, self._refill)
            return
        try:
            call = decode(delivery.data, type=Call)
        except ValueError as error:
            self._follows.spawn(self._engine.leave(delivery, error), "leave call")
        else:
            self._held += 1
            self._follows.spawn(self._make(call, delivery), f"call for {call.run}")
        self._refill()

    async def _make(self, call: Call, delivery: Delivery) -> None:
        keeping = self._follows.spawn(self._keep(delivery), "keep call")
        made = False
        try:
            made = await self._tell(call)
        except (MayflyError, NobodyError, SilenceError) as error:
            log.warning("fleet: the call for %s is made later: %s", call.run, error)
        finally:
            keeping.cancel()
            self._held -= 1
            if made:
                await self._engine.done(delivery.ack)
            else:
                await self._engine.give_back(delivery.ack, AGAIN_S)
            self._refill()

    async def _tell(self, call: Call) -> bool:
        """Wait until the run is over, and make the call; whether it was."""
        over = self._over.setdefault(call.run, asyncio.Event())
        try:
            while not await self._results.has(call.run):
                if await self._registry.get(call.run) is None:
                    return True  # it was not accepted, or was deleted
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await over.wait()
        finally:
            self._over.pop(call.run, None)
        try:
            run = await self._follows.find(call.run)
        except UnknownRunError:
            return True
        await run.done.wait()
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.call_back(run, call.about, lambda made: None if told.done() else told.set_result(made))
        return await told

    async def _keep(self, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            await self._engine.still_busy(delivery.ack)
