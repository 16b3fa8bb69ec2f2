"""How a gateway sees who is gone, and what has come to an end elsewhere."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mayfly.errors import FleetError, MayflyError, SnapshotError, SnapshotNotFoundError
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import FullError, NobodyError, SilenceError
from mayfly.fleet.follows import Follows
from mayfly.fleet.message import SNAPSHOT
from mayfly.fleet.mirror import ending_of
from mayfly.fleet.results import Results
from mayfly.fleet.roll import Roll
from mayfly.fleet.steps import step

log = logging.getLogger(__name__)
WATCH_S = 0.5
QUIET_S = 2.0
"""After so long without a word of a run it is looked for among the results."""
GONE_S = 15.0
"""After so long without the snapshot that it names a run is ended: one that is made anew is away
for a moment.
"""
SHOWN = 8
"""Hosts that an error names."""
MISSED = 3
"""Looks at a host that is not there, WATCH_S apart, before its runs are given to others: when a
server of the engine restarts, all hosts are away for a moment.
"""


class Watch:
    """Looks at hosts, runs and queues, again and again. `mend` makes a queue that is gone.

    Attributes:
        quorum: whether the engine can store anything.
        waiting: the runs that no host has begun, by architecture and language.
        given_back: how many runs were taken from hosts that are gone.
        beside: what else is looked at each time.
    """

    def __init__(self, engine: Engine, roll: Roll, follows: Follows, results: Results, mend: Callable[[str, str], Awaitable[None]]) -> None:
        self.quorum = True
        self.waiting: dict[tuple[str, str], int] = {}
        self.given_back = 0
        self._engine, self._roll, self._follows, self._results = engine, roll, follows, results
        self._mend = mend
        self._missing: dict[str, int] = {}
        self._silent: dict[str, int] = {}
        self._without: dict[str, float] = {}  # since when no host has the snapshot of runs that wait
        self._wrong: dict[str, str] = {}  # of each look, if its last one failed
        self.beside: list[Callable[[], Awaitable[None]]] = []

    async def watch(self) -> None:
        """See who is gone, and what has come to an end elsewhere."""
        await asyncio.gather(self._watch_servers(), self._watch_fleet())

    async def look_at_servers(self) -> None:
        """See whether the engine can store anything now."""
        quorum = await self._engine.quorum()
        if quorum and self._results.refused:
            try:
                await self._results.try_one()
            except SilenceError as error:
                log.warning("fleet: the servers store nothing: %s", error)
                quorum = False
        self.quorum = quorum

    async def _watch_servers(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await self._try(self.look_at_servers)

    async def _watch_fleet(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            self._roll.expire()
            if not self._engine.connected:
                continue
            own = (self._look_at_hosts, self._look_for_results, self._count_waiting, self._look_for_snapshots)
            await asyncio.gather(*map(self._try, (*own, *self.beside)))

    async def _try(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look once. What goes wrong concerns no other look, and is said once until it is well."""
        name = getattr(look, "__qualname__", repr(look))
        try:
            await look()
        except Exception as error:  # whatever it is, the next look may see more
            what = repr(error)
            if self._wrong.get(name) != what:
                expected = isinstance(error, FullError | NobodyError | SilenceError | MayflyError)
                log.warning("fleet: %s: %s", name, what, exc_info=None if expected else error)
            self._wrong[name] = what
        else:
            self._wrong.pop(name, None)

    async def _look_at_hosts(self) -> None:
        """Give to others what hosts have that are gone: nobody listens in their name."""
        hosts = {follow.host for follow in self._follows} - {""}
        self._missing = {host: count for host, count in self._missing.items() if host in hosts}
        self._silent = {host: count for host, count in self._silent.items() if host in hosts}
        await asyncio.gather(*(self._look_at(host) for host in hosts))

    async def _look_at(self, host: str) -> None:
        try:
            await self._engine.ask(f"ping.{host}", b"", 1)
        except NobodyError:
            self._missing[host] = self._missing.get(host, 0) + 1
        except SilenceError:  # it hangs, unless the engine does: the stream gives its work to others in time
            self._silent[host] = self._silent.get(host, 0) + 1 if self.quorum else 0
        else:
            self._missing.pop(host, None)
            self._silent.pop(host, None)
        is_gone, hangs = self._missing.get(host, 0) >= MISSED, self._silent.get(host, 0) >= MISSED
        for follow in self._follows:
            mirror = follow.mirror
            lost = (is_gone or hangs) if follow.work else (is_gone and follow.given_back < mirror.delivered)
            if follow.host == host and lost:
                follow.given_back = mirror.delivered
                if not (mirror.ack or follow.work):  # the stream gives it to others in time
                    continue
                told = step("give_back", follow.run.id, attempt=mirror.attempts, host=host)
                await self._follows.give_back(follow)
                self.given_back += 1
                log.warning("run %s: the host %s is gone; another one begins it anew", follow.run.id, host, extra=told)

    async def _look_for_results(self) -> None:
        now = asyncio.get_running_loop().time()
        quiet = [follow for follow in self._follows if now - follow.heard_at > QUIET_S and follow.known.is_set()]
        await asyncio.gather(*(self._follows.look_for(follow) for follow in quiet))

    async def _look_for_snapshots(self) -> None:
        """End the runs that wait for a snapshot which no host has or can fetch, or from which none
        can go on, while a host is there that might.
        """
        now, there = asyncio.get_running_loop().time(), self._roll.fitting()
        known = {host.about.arch for host in self._roll if host.about}  # of others nobody says what they have
        waiting = [
            follow
            for follow in self._follows
            if follow.lang[0] in known and follow.lang[1].startswith(f"{SNAPSHOT}-") and follow.lang not in there
            if follow.waits and follow.known.is_set()
        ]
        self._without = {follow.run.id: self._without.get(follow.run.id, now) for follow in waiting}
        for follow in waiting:
            if now - self._without[follow.run.id] < GONE_S:
                continue
            error: MayflyError = SnapshotNotFoundError("no host has the run's snapshot any more", hint="mayfly snapshot create")
            if unfit := self._roll.unfit(*follow.lang):
                what = f"no host can go on from the run's snapshot, whose machine does not fit to {', '.join(unfit[:SHOWN])}"
                error = SnapshotError(what, hint="make it on a host of their kind, or add hosts of its own kind")
            await self._follows.decide(follow, follow.registered, follow.run, ending_of(follow.run, "", error))
            if follow.number > 0:
                await self._engine.take_back(follow.registered.arch, follow.number)

    async def _count_waiting(self) -> None:
        needed = {follow.lang for follow in self._follows if not follow.mirror.host}
        for arch, lang in needed | set(self.waiting):
            try:
                count = (await self._engine.load(arch, lang)).waiting
            except FleetError as error:  # an operator has removed it, maybe
                log.warning("fleet: the queue %s of %s is lacking: %s", lang, arch, error)
                count = 0
                if (arch, lang) in needed:
                    await self._mend(arch, lang)
            if count:
                self.waiting[arch, lang] = count
            else:
                self.waiting.pop((arch, lang), None)
