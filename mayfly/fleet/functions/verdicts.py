"""What a gateway answers to hosts that were given requests to functions: whether one may begin, and
whether what it brings is the request's result.
"""

import asyncio
from collections.abc import Callable

from mayfly.errors import FunctionCrashedError, MayflyError, StoppingError
from mayfly.fleet.accounts import Accounts
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.failures import UnreadableError
from mayfly.fleet.functions.messages import Answered, Pending, Result, failed, place_of
from mayfly.fleet.judging import GATEWAYS, judge
from mayfly.fleet.message import Begin, Claim, Found, Seek, decode, encode
from mayfly.fleet.results import Results
from mayfly.fleet.tasks import Spawn
from mayfly.fleet.wire import error_of, wire

MOST_REFUSED = 8
"""Moves of a request that are known not to have come; its host tries one at a time."""
ATTEMPTS = 3
"""Hosts that could not begin a request before it fails."""


class FunctionVerdicts:
    """Answers hosts, from the registry and the results. `begun` is told of a request that a host
    has begun, or has given back; `others` are the hosts that could have one of a host's; `spawn`
    has work done beside.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Bucket,
        results: Results,
        accounts: Accounts,
        *,
        spawn: Spawn,
        begun: Callable[[str, bool], None],
        others: Callable[[str, Pending], list[str]],
    ) -> None:
        self._engine, self._registry, self._results, self._accounts = engine, registry, results, accounts
        self._spawn, self._begun, self._others = spawn, begun, others

    async def listen(self) -> None:
        """Answer hosts from now on."""
        await self._engine.listen("fn.seek.*.*", lambda message: self._spawn(self._find_room(message), "find room"), queue=GATEWAYS)
        await judge(self._engine, self._spawn, "fn.", begin=self._may_begin, settle=self._settle)

    async def fail(self, request_id: str, pending: Pending, error: MayflyError) -> None:
        """Store an error as a request's result, unless it has one."""
        await self._decide(request_id, pending, failed(pending.function, pending.owner, error))

    async def give_up(self, request_id: str, pending: Pending, error: MayflyError) -> bool:
        """Store an error as the result of a request that no host has begun, and let none begin it.
        False: one has begun. `pending` is as what it was registered.
        """
        place = place_of(request_id)
        while (entry := await self._registry.get(place)) is not None:
            pending = decode(entry.value, type=Pending)
            if pending.host:
                return False
            pending.token = ""  # which no host has
            if await self._registry.update(place, encode(pending), entry.revision):
                break
        await self.fail(request_id, pending, error)
        return True

    async def _decide(self, request_id: str, pending: Pending, result: Result) -> None:
        """Store a request's result, unless it has one."""
        place = place_of(request_id)
        if await self._results.create(place, encode(result)) and pending.charged:
            await self._accounts.give_back(pending.owner, place)
        await self._engine.send(f"over.{place}", b"")

    async def _may_begin(self, message: Message) -> str:
        """A host was given a request: whether it may begin, as the only one."""
        _, _, host, request_id = message.subject.split(".")
        asked, place = decode(message.data, type=Begin), place_of(request_id)
        stored, entry = await asyncio.gather(self._results.has(place), self._registry.get(place))
        if stored or entry is None:
            return "done"
        pending = decode(entry.value, type=Pending)
        if pending.token != asked.token or asked.delivered < pending.delivered:
            return "done"
        if asked.renew and pending.host != host:  # it is on its way between two hosts
            return "done"
        if asked.moved_to:
            return await self._move(host, asked, pending, place, entry.revision)
        if pending.host:
            if (host, asked.delivered) == (pending.host, pending.delivered):
                if asked.renew:
                    await self._registry.update(place, entry.value, entry.revision)  # if not, it was written meanwhile
                    if pending.charged:
                        await self._accounts.renew(pending.owner)
                return "go"
            error = FunctionCrashedError(
                f"the host {pending.host} began the request, and did not answer", hint="what it did may have had effects"
            )
            await self.fail(request_id, pending, error)
            return "done"
        pending.host, pending.delivered = host, asked.delivered
        if not await self._registry.update(place, encode(pending), entry.revision):
            return "later"
        self._begun(request_id, True)
        return "go"

    async def _move(self, host: str, asked: Begin, pending: Pending, place: str, revision: int) -> str:
        """A host gives a request that it has begun to another one."""
        if asked.move == pending.move:
            return "moved"
        if (host, asked.delivered) != (pending.host, pending.delivered):
            return "done"
        if asked.move in pending.refused:
            return "go"
        pending.host, pending.move = asked.moved_to, asked.move
        return "moved" if await self._registry.update(place, encode(pending), revision) else "later"

    async def _find_room(self, message: Message) -> None:
        """A host would give a request away, or asks whether one has come to it: if not, it never
        will.
        """
        _, _, host, request_id = message.subject.split(".")
        asked, place, found = decode(message.data, type=Seek), place_of(request_id), Found(hosts=[])
        while (entry := await self._registry.get(place)) is not None:
            pending = decode(entry.value, type=Pending)
            if pending.token != asked.token:
                break
            if not asked.move:
                found = Found(hosts=self._others(host, pending))
            elif asked.move == pending.move:
                found = Found(hosts=[], host=pending.host)
            elif asked.move not in pending.refused:
                pending.refused = (*pending.refused, asked.move)[-MOST_REFUSED:]
                if not await self._registry.update(place, encode(pending), entry.revision):
                    continue
            break
        await self._engine.send(message.reply_to(host), encode(found))

    async def _settle(self, message: Message) -> str:
        """A host is done with a request: whether that is its result."""
        _, _, _, host, request_id = message.subject.split(".")
        place = place_of(request_id)
        try:
            said = decode(message.data, type=Answered)
        except UnreadableError as unread:
            claim = decode(message.data, type=Claim)
            problem = FunctionCrashedError(f"what the host {host} answers cannot be read: {unread}", hint="bring all to the same version")
            said = Answered(token=claim.token, delivered=claim.delivered, error=wire(problem))
        entry = await self._registry.get(place)
        if entry is None:
            return "done"
        pending = decode(entry.value, type=Pending)
        if (pending.token, pending.host, pending.delivered) != (said.token, host, said.delivered):
            return "done"
        error = error_of(said.error)
        if said.again and error is not None and not await self._results.has(place):
            pending.host = ""
            pending.attempts += not isinstance(error, StoppingError)
            if pending.attempts < ATTEMPTS:
                again = await self._registry.update(place, encode(pending), entry.revision)
                if again:
                    self._begun(request_id, False)
                return "again" if again else "later"
        result = Result(function=pending.function, owner=pending.owner, answer=said.answer, error=said.error)
        await self._decide(request_id, pending, result)
        return "done"
