"""What a gateway answers to hosts: whether one may go on with a run, and whether what it did is the
run's result.
"""

import asyncio
import contextlib
import logging

from mayfly.errors import HostError
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.failures import FullError, NobodyError, SilenceError, UnreadableError
from mayfly.fleet.follow import Follow
from mayfly.fleet.follows import Follows, too_much_typed
from mayfly.fleet.judging import GATEWAYS, judge, reply
from mayfly.fleet.message import Begin, Begun, Claim, Found, Registered, Seek, Settle, ToGateway, Verdict, decode, encode
from mayfly.fleet.mirror import ending_of
from mayfly.fleet.results import Results
from mayfly.fleet.roll import Roll
from mayfly.fleet.wire import error_of, wire

log = logging.getLogger(__name__)
ATTEMPTS = 3
"""Hosts that begin a run before it is given up."""
AGAIN_S = 0.5
SETTLE_S = 15.0
"""For what is lacking of a record when its run has ended."""


class Verdicts:
    """Answers hosts, from the registry of runs and their results."""

    def __init__(self, engine: Engine, registry: Bucket, results: Results, follows: Follows, roll: Roll) -> None:
        self._engine, self._registry, self._results, self._follows = engine, registry, results, follows
        self._roll = roll

    async def listen(self) -> None:
        """Answer from now on."""
        engine, spawn = self._engine, self._follows.spawn
        await judge(engine, spawn, "", begin=self._heard_begin, settle=self._heard_settle)
        await engine.listen(f"gw.{engine.name}.*.*", self._heard)
        await engine.listen("seek.*.*", lambda message: spawn(self._find_room(message), "find room"), queue=GATEWAYS)

    def _heard(self, message: Message) -> None:
        """A host says something of a run that it knows from this gateway; with `reply` it has
        begun, and asks whether that is right.
        """
        self._follows.heard(message)
        if message.reply:
            reply(self._engine, self._follows.spawn, message, self._may_go_on)

    async def _may_go_on(self, message: Message) -> str | Verdict | None:
        """A host has begun a run that may be known here better than in the registry."""
        _, _, host, run_id = message.subject.split(".")
        said = decode(message.data, type=ToGateway)
        if not isinstance(said, Begun):
            return None
        asked = Begin(token=said.token, delivered=said.delivered, moved_from=said.moved_from, goes_on=said.goes_on)
        follow = self._follows.get(run_id)
        if follow is None:
            return await self._may_begin(host, run_id, asked)
        await follow.known.wait()
        fresh = follow.revision is not None and follow.first is None and not follow.run.done.is_set()
        if not fresh or self._follows.get(run_id) is not follow or asked.token != follow.registered.token:
            await self._follows.register(follow)
            return await self._may_begin(host, run_id, asked)
        follow.first = host, asked.delivered
        self._follows.spawn(self._follows.register_soon(follow), f"register who has {run_id}")
        return Verdict(verdict="go", attempt=1)

    async def _heard_begin(self, message: Message) -> str | Verdict | None:
        """A host has been given a run: whether it may go on with it."""
        _, host, run_id = message.subject.split(".")
        return await self._begin(host, run_id, decode(message.data, type=Begin))

    async def _begin(self, host: str, run_id: str, asked: Begin) -> str | Verdict | None:
        follow = self._follows.get(run_id)
        if follow is not None and follow.revision == 0:  # it is known here alone
            await self._follows.register(follow)
        return await self._may_begin(host, run_id, asked)

    async def _may_begin(self, host: str, run_id: str, asked: Begin) -> str | Verdict | None:
        """The same, as the registry and the results have it."""
        for _ in range(5):
            stored, entry = await asyncio.gather(self._results.has(run_id), self._registry.get(run_id))
            if not stored and entry is None and not await self._registry.bar(run_id):
                entry = await self._registry.get(run_id)  # it may have been registered just now
            if stored or entry is None:
                return "done"
            registered = decode(entry.value, type=Registered)
            if registered.token != asked.token or asked.delivered < registered.delivered:
                return "done"
            if (host, asked.delivered) == (registered.host, registered.delivered):
                if asked.renew:
                    await self._follows.renew(registered, entry)
                return Verdict(verdict="go", attempt=registered.attempts)
            if asked.renew:  # it is on its way between two hosts
                return Verdict(verdict="go", attempt=registered.attempts)
            moved = bool(asked.moved_from) and (asked.moved_from, asked.delivered) == (registered.host, registered.delivered)
            anew = not (moved or (asked.goes_on and host == registered.host))
            registered.host, registered.delivered, registered.given_back = host, asked.delivered, False
            registered.attempts += anew
            if registered.attempts > ATTEMPTS:
                error = HostError(f"{ATTEMPTS} hosts began the run, and none ended it", hint="look at the hosts' logs")
                await self._follows.give_up(registered, error)
                return "done"
            if registered.attempts > 1 and anew and not await self._follows.keep_typed(registered):
                await self._follows.give_up(registered, too_much_typed())
                return "done"
            await self._follows.note_about(registered, await self._follows.about(registered))
            if await self._registry.update(run_id, encode(registered), entry.revision):
                stored, entry = await asyncio.gather(self._results.has(run_id), self._registry.get(run_id))
                if stored or entry is None:  # who ended it meanwhile did not know of this host
                    return "done"
                return Verdict(verdict="go", attempt=registered.attempts)
        return None

    async def _find_room(self, message: Message) -> None:
        """A host would give a run away: say which others could have it."""
        _, host, run_id = message.subject.split(".")
        entry = await self._registry.get(run_id)
        registered = decode(entry.value, type=Registered) if entry else None
        found = Found(hosts=[])
        if registered is not None and registered.token == decode(message.data, type=Seek).token:
            found = Found(hosts=self._roll.others(host, registered.arch, registered.head.image), host=registered.host)
        await self._engine.send(message.reply_to(host), encode(found))

    async def _heard_settle(self, message: Message) -> str | None:
        """A host has ended a run: whether that is its result."""
        _, _, host, run_id = message.subject.split(".")
        try:
            said = decode(message.data, type=Settle)
        except UnreadableError as error:
            claim = decode(message.data, type=Claim)
            return await self._fail(host, run_id, claim.token, claim.delivered, str(error))
        return await self._settle(host, run_id, said)

    async def _fail(self, host: str, run_id: str, token: str, delivered: int, why: str) -> str | None:
        """What a host says of its run cannot be read: it was an attempt, and others are to try."""
        await self._begin(host, run_id, Begin(token=token, delivered=delivered))
        hint = "bring gateways and hosts to the same version"
        error = HostError(f"what the host {host} says of the run cannot be read: {why}", hint=hint)
        return await self._settle(host, run_id, Settle(token=token, delivered=delivered, error=wire(error), final=False))

    async def ended(self, follow: Follow, host: str, said: Settle) -> None:
        """A host that was handed a run has ended it: store that, if no other has it since."""
        while not follow.run.done.is_set():
            try:
                if await self._settle(host, follow.run.id, said) is not None:
                    return
            except (FullError, NobodyError, SilenceError) as error:
                log.warning("fleet: the run %s is stored later: %s", follow.run.id, error)
            await asyncio.sleep(AGAIN_S)

    async def _settle(self, host: str, run_id: str, said: Settle) -> str | None:
        if self._follows.get(run_id) is None:
            try:
                await self._follows.fetch(run_id)
            except UnreadableError:
                return "done" if await self._results.has(run_id) else None
        follow = self._follows.get(run_id)
        if follow is None or follow.registered.token != said.token:
            return "done"
        await follow.known.wait()
        mirror, error = follow.mirror, error_of(said.error)
        if error is not None:
            await self._follows.register(follow)
            entry = await self._registry.get(run_id)
            registered = decode(entry.value, type=Registered) if entry else None
            if registered is not None and said.delivered < max(mirror.delivered, registered.delivered):
                return "done"  # another host has it since
            lost = not said.delivered and follow.number < 0  # who handed it over is gone, and alone had the work
            if not (said.final or lost) and (registered is None or registered.attempts < ATTEMPTS or error.code == "run_ended"):
                if follow.work:
                    await self._follows.give_back(follow)
                follow.given_back = mirror.delivered
                if registered is not None and entry is not None and (registered.host, registered.delivered) == (host, said.delivered):
                    registered.given_back = True
                    await self._registry.update(run_id, encode(registered), entry.revision)  # if not, another one has begun
                return "again"
            await self._follows.decide(follow, follow.registered, follow.run, ending_of(follow.run, host, error))
            return "done"
        if (host, said.delivered) != (mirror.host, mirror.delivered):
            if said.delivered < mirror.delivered:
                return "done"
            if said.delivered == mirror.delivered:  # it has moved there
                await self._follows.look_for(follow)
            self._follows.begun(follow, host, Begun(token=said.token, delivered=said.delivered, ack=""))
            here = mirror.belongs(host, said.delivered) and all([self._follows.take(follow, each) for each in said.said])
            if not here or mirror.ending is None:
                await self._follows.attach(follow)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await follow.changed.wait()
        if follow.run.done.is_set():
            return "done"
        if not mirror.belongs(host, said.delivered):
            return None
        if mirror.unreadable:
            return await self._fail(host, run_id, said.token, said.delivered, mirror.unreadable)
        if mirror.ending is None:
            return None
        await self._follows.decide(follow, follow.registered, follow.run, mirror.ending)
        return "done"
