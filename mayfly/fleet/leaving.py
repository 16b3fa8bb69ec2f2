"""How a host that is drained gives its long runs to other hosts, with their machines
(docs/moves.md), and how it takes those of others.

The run's machine moves first. Then the other host is told which work of the fleet that run is, and
says in the registry and to the gateways that it has it; the record goes on there from the same
position, and input from the same byte. Until then this host follows the run as any server does
whose run has moved, so nothing is lost if the other one never says so.
"""

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any

from mayfly.errors import HostError, MayflyError, NotMovableError, UnknownRunError, to_wire
from mayfly.fleet.carrying import Active, Carrying
from mayfly.fleet.engine import Engine, Message
from mayfly.fleet.failures import NobodyError, SilenceError, UnreadableError
from mayfly.fleet.functions.leaving import Requests
from mayfly.fleet.links import HostLink, Links
from mayfly.fleet.message import Answer, Found, Seek, Take, decode, encode
from mayfly.fleet.wire import error_of
from mayfly.host.snippet import Snippet
from mayfly.runs.moves.desk import Moves, follow
from mayfly.runs.moves.link import Link, Machines
from mayfly.runs.moves.machines import HostMachines
from mayfly.runs.moves.messages import Other
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from mayfly.schema import replace

log = logging.getLogger(__name__)
LONG_S = 3.0
"""Runs that end within this time of a drain are not moved."""
AGAIN_S = 2.0
"""Until it is tried again to move what could not be: room comes and goes."""
INPUT_S = 10.0
"""For the other host to have all input that came here; then more of it is taken here for a while.
"""
TAKE_TRIES = 5
"""Questions without an answer whether the other host takes the work, until a gateway is asked."""


class Leaving:
    """Gives the runs away that a host is carrying out, and takes others' runs."""

    def __init__(self, carrying: Carrying, service: Service, engine: Engine, requests: Requests, machines: Machines | None = None) -> None:
        self._carrying = carrying
        self._service = service
        self._engine = engine
        self._requests = requests
        self._moves = Moves(service, machines or HostMachines(service))
        self._links = Links(engine, self._serve, carrying.spawn)
        self._draining: asyncio.Task[None] | None = None
        self._staying: set[str] = set()

    async def begin(self) -> None:
        """Take what other hosts give."""
        name = self._engine.name
        await self._engine.listen(f"move.{name}.*.*", self._links.heard)
        await self._engine.listen(f"take.{name}.*.*", lambda message: self._carrying.spawn(self._take(message), "take a run"))

    async def _serve(self, link: HostLink) -> None:
        try:
            first = await link.receive()
            if isinstance(first, Other):
                await self._requests.take(first, link)
            else:
                await self._moves.serve(link, first)
        except MayflyError as error:
            log.info("fleet: the connection of %s: %s", link.to, error)

    # Giving

    def drain(self, wanted: bool, limit_bytes_s: int = 0) -> None:
        """Begin to give runs away, or stop that. So many bytes of them are sent a second, 0: no
        limit.
        """
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        if wanted:
            self._draining = self._task(self._drain(limit_bytes_s))
        self._requests.drain(wanted, limit_bytes_s)

    def _task(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        return self._carrying.spawn(work, "drain")

    async def _drain(self, limit_bytes_s: int) -> None:
        await asyncio.sleep(LONG_S)
        while True:
            self._staying &= {active.work.id for active in self._carrying.active}
            for active in self._carrying.active:
                run = active.run
                if run is not None and not run.done.is_set() and run.elsewhere is None and run.id not in self._staying:
                    await self._move(active, run, limit_bytes_s)
            await asyncio.sleep(AGAIN_S)

    async def _move(self, active: Active, run: Run, limit_bytes_s: int) -> None:
        """Move a run to the first host that takes it, if one does."""
        try:
            hosts = (await self._seek(active, run)).hosts
        except (NobodyError, SilenceError) as error:
            log.info("run %s: no gateway knows where it could go: %r", run.id, error)
            return
        for host in hosts:
            try:
                going = self._moves.begin(run, partial(self._connect, host), to=host, limit_bytes_s=limit_bytes_s)
            except NotMovableError as error:
                self._stay(run, error.message)
                return
            except MayflyError:  # it has no machine yet, or none any more
                return
            try:
                moved = await follow(going)
            except MayflyError as error:
                log.info("run %s: host %s does not take it: %s", run.id, host, error)
            else:
                log.info("run %s: moved from host %s to %s, stood still for %.3f s", run.id, self._engine.name, host, moved.pause_s)
                self._carrying.spawn(self._hand_over(active, run, host), f"hand over {run.id}")
                return
            if run.done.is_set():
                return

    def _stay(self, run: Run, why: str) -> None:
        log.info("run %s: stays at host %s: %s", run.id, self._engine.name, why)
        self._staying.add(run.id)

    async def _seek(self, active: Active, run: Run) -> Found:
        """The hosts that may have room for a run, and the one that has it, as a gateway knows them.

        Raises:
            NobodyError, SilenceError: no gateway answers.
        """
        question = encode(Seek(token=active.work.token))
        return decode(await self._engine.ask(f"seek.{self._engine.name}.{run.id}", question), type=Found)

    def connect(self, host: str) -> HostLink:
        """A connection to another host."""
        return self._links.connect(host)

    async def _connect(self, host: str) -> Link:
        return self.connect(host)

    async def _hand_over(self, active: Active, run: Run, host: str) -> None:
        """The machine is there: tell the host which work that is, and be done with the run. Until
        it has answered no input is taken here, as it may be taken there by then.
        """
        while not run.done.is_set() and (away := run.elsewhere) is not None:
            try:
                async with asyncio.timeout(INPUT_S) as limit, active.writing:
                    await away.until_taken()
                    limit.reschedule(None)
                    if await self._give(active, run, host):
                        return
                    break
            except TimeoutError:
                await asyncio.sleep(AGAIN_S)
        log.warning("run %s: follows host %s to its end", run.id, host)

    async def _give(self, active: Active, run: Run, host: str) -> bool:
        """Have the other host take the work; whether it does. Only where it began is its source
        needed.
        """
        delivery, tries_left = active.delivery, TAKE_TRIES
        take = Take(
            work=replace(active.work, snippet=Snippet(language=active.work.snippet.language)),
            delivered=delivery.delivered,
            ack=delivery.ack,
            gateways=list(active.feeds),
            received=active.received,
            ended=run.is_interactive and run.stdin.ended,
        )
        while not run.done.is_set():
            try:
                if tries_left:
                    tries_left -= 1
                    answer = decode(await self._engine.ask(f"take.{host}.{self._engine.name}.{run.id}", encode(take)), type=Answer)
                    taken, why = answer.error is None, str(error_of(answer.error))
                else:
                    taken, why = (await self._seek(active, run)).host == host, "it does not answer"
            except (NobodyError, SilenceError):
                await asyncio.sleep(AGAIN_S)
                continue
            if taken:
                await self._carrying.let_go(active)
            else:
                log.warning("run %s: host %s has its machine, but: %s", run.id, host, why)
            return taken
        return False

    # Taking

    async def _take(self, message: Message) -> None:
        """A run that came from another host is the fleet's work."""
        _, _, host, run_id = message.subject.split(".")
        answer = Answer()
        try:
            said = decode(message.data, type=Take)
            run = self._service.get(run_id)
            incoming = self._moves.came(run_id)
            link = incoming.link if incoming is not None else None
            if incoming is None or said.work.id != run_id or not isinstance(link, HostLink) or link.to != host:
                raise UnknownRunError(f"no run {run_id} has moved here from the host {host}")
            if run.is_interactive and incoming.relay is not None:
                incoming.relay.let_others_write()
                if said.ended and not run.stdin.ended:
                    with StdinWriter(run.stdin) as writer:
                        writer.end()
            await self._carrying.adopt(said, run, host)
        except UnreadableError as error:
            unread = HostError(f"the host cannot read this: {error}", hint="bring all to the same version")
            answer = Answer(error=to_wire(unread))
        except MayflyError as error:
            answer = Answer(error=to_wire(error))
        await self._engine.send(message.reply, encode(answer))
