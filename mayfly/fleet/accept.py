"""How a gateway accepts runs: each is registered once, and then stored by the stream before its
client hears of it.
"""

import asyncio
import contextlib
import hashlib
import logging
import secrets
import weakref

from mayfly.errors import BodyTooLargeError, BusyError, FleetError, UnknownRunError
from mayfly.fleet.accounts import Accounts
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.calls import Calls
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import FullError, NobodyError, SilenceError, TooLargeError
from mayfly.fleet.follow import Follow
from mayfly.fleet.follows import Follows
from mayfly.fleet.message import Registered, Taken, Work, decode, encode, id_of, name_of, queue_of
from mayfly.fleet.mirror import head_of
from mayfly.fleet.queues import Queues
from mayfly.fleet.results import Results
from mayfly.fleet.roll import Roll
from mayfly.fleet.steps import step
from mayfly.fleet.typed import KeptStdin
from mayfly.fleet.verdicts import Verdicts
from mayfly.fleet.watch import Watch
from mayfly.host.config import Config
from mayfly.host.plan import make_plan
from mayfly.host.snippet import Snippet
from mayfly.runs.repeats import Repeat
from mayfly.runs.run import Run
from mayfly.runs.runner import Order
from mayfly.schema import replace

log = logging.getLogger(__name__)


class Acceptance:
    """Accepts runs.

    Attributes:
        accepted, refused: how many it has, and how many not because too many waited.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        registry: Bucket,
        results: Results,
        accounts: Accounts,
        follows: Follows,
        verdicts: Verdicts,
        calls: Calls,
        queues: Queues,
        roll: Roll,
        watch: Watch,
    ) -> None:
        self._config, self._engine, self._registry, self._results = config, engine, registry, results
        self._verdicts, self._calls = verdicts, calls
        self._accounts, self._follows, self._queues, self._roll, self._watch = accounts, follows, queues, roll, watch
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self.accepted = self.refused = 0

    async def begin(self, order: Order) -> Run:
        """Accept a run. When this returns it is stored, and has a result some time, whatever
        dies meanwhile.

        Raises:
            RequestError: it cannot be run as it stands, or too many wait.
            StoppingError, FleetError: not now; with the same key it may be tried again.
        """
        if order.repeat is None:
            return await self._begin(order)
        async with self._locks.setdefault(_id_of(order.repeat), asyncio.Lock()):
            return await self.repeated(order.repeat) or await self._begin(order)

    async def _begin(self, order: Order) -> Run:
        snippet, image, tenant, repeat = order.snippet, order.image, order.tenant, order.repeat
        plan = make_plan(snippet, image, self._config)
        arch, lang = image.manifest.arch, queue_of(name_of(image), snippet.snapshot)
        self._check_room(arch, lang)
        run = Run(
            language=image.manifest.language,
            version=image.manifest.version,
            mode=snippet.output,
            step_names=plan.step_names,
            owner=tenant.name if tenant else "",
            cases=snippet.cases,
            stop_at_first_failure=snippet.stop_at_first_failure,
            stdin=KeptStdin() if snippet.interactive else None,
            has_terminal=snippet.tty is not None,
            run_id=_id_of(repeat) if repeat else order.run_id,
        )
        run.about = order.about
        registered = Registered(
            head=head_of(run, interactive=snippet.interactive, stop_at_first_failure=snippet.stop_at_first_failure),
            token=secrets.token_hex(16),
            gateway=self._engine.name,
            arch=arch,
            lang=lang,
            digest=repeat.digest if repeat else b"",
            has_about=bool(order.about),
        )
        follow = Follow(run, registered)
        follow.then = order.then
        if repeat is None:  # else the run may be followed already, as another gateway has accepted it
            self._follows.begin(follow)
        try:
            if tenant is not None:
                registered.charged = await self._accounts.take(tenant, run.id, plan.wanted.machine.memory)
            return await self._accept(follow, order)
        except BaseException as error:
            self._follows.drop(follow)
            if registered.charged and order.awaited:  # its client may have gone while a host was asked
                self._follows.spawn(self._accounts.give_back(run.owner, run.id), f"give back {run.id}")
            if isinstance(error, NobodyError | SilenceError):
                raise FleetError(
                    f"the fleet's servers do not answer: {error or 'nobody is there'}", hint="try again, with the same Idempotency-Key"
                ) from error
            raise

    def _check_room(self, arch: str, lang: str) -> None:
        """Raises BusyError: as many runs wait already as may."""
        hosts = sum(bool(host.about and host.about.arch == arch) for host in self._roll)
        ours = sum(follow.lang == (arch, lang) and not follow.mirror.host for follow in self._follows)
        waiting = max(ours, self._watch.waiting.get((arch, lang), 0))
        if waiting >= self._config.queue * max(1, hosts):
            self.refused += 1
            raise BusyError(f"{waiting} runs are waiting already", hint="try again in 1 s", retry_after_s=1)

    async def _accept(self, follow: Follow, order: Order) -> Run:
        run, registered, repeat = follow.run, follow.registered, order.repeat
        taken = Taken()
        try:
            for kept in (encode(registered), run.about):
                self._engine.check_size(kept)  # it may be registered only later
            await self._queues.ensure(registered.arch, registered.lang)
            snippet = replace(order.snippet, language=name_of(order.image))
            if order.awaited:  # who else would have to know of it finds its result, or it is registered soon
                follow.revision = 0
                taken = await self._hand(follow, snippet)
            elif repeat is None and not order.call:
                follow.revision, follow.number = await self._store(run, registered, snippet)
            else:
                before = None
                await self._follows.note_about(registered, run.about)
                if not (revision := await self._registry.create(run.id, encode(registered))):
                    await self._follows.unregister(registered)  # as what is registered is another one, only what this is about
                    before = await self._accepted_before(follow, repeat)
                    if before.host or self._follows.knows(run.id) or await self._results.has(run.id):
                        return await self._join(follow)
                else:
                    self._follows.begin(follow)
                stored = before or registered
                if order.call:  # before the work: a run that is carried out has its call
                    await self._calls.put(run.id, order.call, stored.token)
                number = await self._queue(stored, snippet)
                if before is not None:  # whoever registered it may not have come as far as this
                    return await self._join(follow)
                follow.revision, follow.number = revision, number
        except TooLargeError as error:
            await self._unregister(registered)
            raise BodyTooLargeError(f"the run has {error}", hint="send less source, input or files") from error
        except FullError as error:
            await self._unregister(registered)
            raise BusyError(f"the fleet's queue is full: {error}", hint="try again in 5 s", retry_after_s=5) from error
        except (NobodyError, SilenceError):
            with contextlib.suppress(NobodyError, SilenceError):  # if the work was stored after all, no host may begin it
                await self._unregister(registered)
            raise
        self._follows.keep(follow, publish=order.publish)
        if taken.ended is not None:
            self._follows.spawn(self._verdicts.ended(follow, taken.host, taken.ended), f"store {run.id}")
        elif order.awaited:
            self._follows.spawn(self._follows.register_soon(follow), f"register {run.id}")
        self.accepted += 1
        told = step("accept", run.id, language=run.language, architecture=registered.arch)
        log.info("run %s: accepted by %s for %s on %s", run.id, self._engine.name, run.language, registered.arch, extra=told)
        return run

    async def _hand(self, follow: Follow, snippet: Snippet) -> Taken:
        """Have a host that has much room begin a run that nobody else can know, or queue it. If the
        host dies within the time that it may be silent, another one begins the run anew.
        """
        registered = follow.registered
        work = encode(_work_of(registered, snippet, awaited=True))
        try:
            answer = await self._engine.hand(registered.arch, registered.lang, work, self._queues.ack_wait_s)
            taken = decode(answer, type=Taken)
            if taken.host and (taken.ended is None or taken.ended.token == registered.token):
                follow.work, follow.handed_to = work, taken.host
                return taken
        except NobodyError:
            pass
        except SilenceError:
            if not self._engine.connected:
                raise
        follow.number = await self._engine.put(registered.arch, registered.lang, work, id_of(follow.run.id, registered.token))
        return Taken()

    async def _queue(self, registered: Registered, snippet: Snippet) -> int:
        work = encode(_work_of(registered, snippet))
        return await self._engine.put(registered.arch, registered.lang, work, id_of(registered.head.id, registered.token))

    async def _store(self, run: Run, registered: Registered, snippet: Snippet) -> tuple[int, int]:
        """Register a run that nobody else can know, and queue it meanwhile: each waits for the
        servers' disks. A host that is given the run before it is registered asks this gateway, or
        sees to it that it cannot be registered any more.
        """
        both = self._registry.update(registered.head.id, encode(registered), 0), self._queue(registered, snippet)
        noting = self._follows.note_about(registered, run.about)
        revision, number, noted = await asyncio.gather(*both, noting, return_exceptions=True)
        if isinstance(number, BaseException):
            raise number
        if isinstance(revision, BaseException):
            raise revision
        if isinstance(noted, BaseException):
            raise noted
        if not revision:
            raise SilenceError("the run was not registered in time")
        return revision, number

    async def _unregister(self, registered: Registered) -> None:
        """The run is not accepted. One that another gateway has registered under this id may be."""
        if await self._follows.unregister(registered) and registered.charged:
            await self._accounts.give_back(registered.head.owner, registered.head.id)

    async def _accepted_before(self, follow: Follow, repeat: Repeat | None) -> Registered:
        """As what the run was registered when the same request came before, here or elsewhere.

        Raises:
            KeyReusedError: another request came with this key.
        """
        entry = await self._registry.get(follow.run.id)
        if entry is None or repeat is None:
            raise FleetError(f"the id {follow.run.id} is taken", hint="try again")
        registered = decode(entry.value, type=Registered)
        repeat.check(registered.digest)
        return registered

    async def _join(self, follow: Follow) -> Run:
        """Follow the run that another gateway has accepted, in place of this one."""
        self._follows.drop(follow)
        return await self._follows.find(follow.run.id)

    async def repeated(self, repeat: Repeat) -> Run | None:
        """The run that the same request began before, at any gateway.

        Raises:
            KeyReusedError: another request came with this key.
        """
        run_id = _id_of(repeat)
        try:
            entry = await self._registry.get(run_id)
            if entry is None:
                return None
            registered = decode(entry.value, type=Registered)
            repeat.check(registered.digest)
            if not (registered.host or self._follows.knows(run_id) or await self._results.has(run_id)):
                return None  # it may not be stored yet, and is stored again
        except SilenceError as error:
            raise FleetError(f"the fleet's servers do not answer: {error}", hint="try again, with the same Idempotency-Key") from error
        with contextlib.suppress(UnknownRunError):
            return await self._follows.find(run_id)
        return None


def _work_of(registered: Registered, snippet: Snippet, *, awaited: bool = False) -> Work:
    return Work(id=registered.head.id, token=registered.token, gateway=registered.gateway, snippet=snippet, awaited=awaited)


def _id_of(repeat: Repeat) -> str:
    """The id of the run that a repeated request begins, the same at all gateways."""
    return hashlib.sha256(f"{repeat.owner}\n{repeat.key}".encode()).hexdigest()[:32]
