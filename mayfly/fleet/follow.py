"""A run that a gateway follows, and what its client types on the way to the host that has it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from mayfly.errors import HostError, MayflyError, NotRunningError, RequestError, RunEndedError, StdinEndedError
from mayfly.fleet.buckets import Bucket
from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import FullError, NobodyError, SilenceError, UnreadableError
from mayfly.fleet.message import PIECE, Answer, Input, Registered, Size, decode, encode
from mayfly.fleet.mirror import Mirror
from mayfly.fleet.tasks import Spawn
from mayfly.fleet.typed import KeptStdin, Typed
from mayfly.fleet.wire import error_of
from mayfly.runs.run import Run

log = logging.getLogger(__name__)
_T = TypeVar("_T")
RETRY_S = 0.5
LOOK_S = 5.0
"""From one look for what was typed at other gateways to the next: one may die before it told a
host.
"""
KEPT_INPUT = ""
"""In the place of a gateway's name: input that all gateways know."""
INPUT_S = 30.0
UNREAD_TRIES = 20
"""Answers of a run's host that cannot be read, RETRY_S apart, until it is asked no more."""


class Follow:
    """A run that this gateway follows.

    Attributes:
        number: its work's in the stream, if this gateway put it there; -1: another one did.
        work: what a host was handed directly, for another one to begin it anew.
        handed_to: that host, which may die before it says that it has begun.
        known: set when the run is accepted, or is not.
        revision: of its registration, while that says of no host that it has begun: 0 while there
            is none. None: all is registered, or was by another gateway.
        first: the host that began it first, and the delivery: to be registered.
        registering: held while that is done.
    """

    def __init__(self, run: Run, registered: Registered) -> None:
        self.mirror = Mirror(run)
        self.registered = registered
        self.known = asyncio.Event()
        self.revision: int | None = None
        self.first: tuple[str, int] | None = None
        self.registering = asyncio.Lock()
        self.heard_at = asyncio.get_running_loop().time()
        self.changed = asyncio.Event()
        self.number = 0
        self.work, self.handed_to = b"", ""
        self.then: Callable[[Run], None] | None = None
        self.owed = 0  # bytes that the host may be granted anew
        self.given_back = -1  # the delivery that was
        self.begun = asyncio.Event()
        self.typing: Typing | None = None

    @property
    def waits(self) -> bool:
        """Whether no host has it, as far as is known here."""
        return not self.mirror.host or self.given_back >= self.mirror.delivered

    def noted(self, registered: Registered) -> None:
        """It is registered so, maybe by another gateway."""
        if registered.given_back:
            self.given_back = max(self.given_back, registered.delivered)

    @property
    def run(self) -> Run:
        """The run."""
        return self.mirror.run

    @property
    def host(self) -> str:
        """Who has begun the run, or was handed it; empty if nobody was."""
        return self.mirror.host or self.handed_to

    @property
    def lang(self) -> tuple[str, str]:
        """Where it waits."""
        return self.registered.arch, self.registered.lang


class Typing:
    """What clients type for a followed run at this gateway: it is kept, and taken to the host that
    has the run, with what was typed at others. `look` finds which host that is when the run moves.
    """

    def __init__(self, engine: Engine, bucket: Bucket, follow: Follow, look: Callable[[], Awaitable[None]]) -> None:
        stdin = follow.run.stdin
        assert isinstance(stdin, KeptStdin)  # noqa: S101 (runs of gateways are made with it)
        self._engine, self._follow, self._stdin, self._look = engine, follow, stdin, look
        self._typed = Typed(bucket, follow.registered)
        self._read: bytes | None = None  # and not kept yet
        self._unkept = 0  # bytes that went to a host, and are kept nowhere
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def for_one_attempt(self) -> bool:
        """Whether a host has got what another one would lack."""
        return self._unkept > 0

    def begin(self, spawn: Spawn) -> None:
        """Take it to the host that has begun the run, from the first byte on."""
        self.end()
        self._tasks = [spawn(self._carry(), f"input {self._follow.run.id}")]
        if self._follow.run.has_terminal and self._follow.begun.is_set():
            self._tasks.append(spawn(self._resize(), f"resize {self._follow.run.id}"))

    def end(self) -> None:
        """Take it nowhere any more."""
        for task in self._tasks:
            task.cancel()

    async def resized(self, size: Size) -> None:
        """Keep the size that the terminal has got."""
        await _until_kept(partial(self._typed.keep_size, size))

    async def _resize(self) -> None:
        """Give the terminal the size that it had last, once there is a program that has it."""
        if (size := await _until_kept(self._typed.size)) is not None:
            while isinstance(error_of((await self._say(size)).error), NotRunningError):
                await asyncio.sleep(RETRY_S)

    async def _carry(self) -> None:
        try:
            await self._carry_kept()
            await self._carry_unkept()
        except MayflyError as error:
            self._stdin.refuse(error)
        except UnreadableError as error:
            problem = f"what was typed cannot be read: {error}"
            self._stdin.refuse(HostError(problem, hint="bring all gateways to the same version"))

    async def _carry_kept(self) -> None:
        """Return when no more is kept.

        Raises:
            StdinEndedError: the end has come.
            MayflyError: the host takes no more, and no other one will.
        """
        typed, sent, takes = self._typed, 0, self._follow.begun.is_set()
        await _until_kept(typed.look)
        if self._read is not None:  # whoever was about to keep it may have come as far as that
            await self._keep(self._read)
        while True:
            while takes and (sent < len(typed.data) or typed.ended):
                data = bytes(typed.data[sent : sent + PIECE])
                ends = typed.ended and sent + len(data) == len(typed.data)
                answer = await self._say(Input(gateway=KEPT_INPUT, offset=sent, data=data, end=ends))
                if (error := error_of(answer.error)) is not None:
                    log.warning("run %s: its host takes no more of what is typed: %s", self._follow.run.id, error)
                if isinstance(error, RequestError) and sent:  # another attempt has begun there, which lacks what came before
                    sent = 0
                    continue
                if error is not None and not isinstance(error, (RunEndedError, StdinEndedError)):
                    raise error
                sent += len(data)
                takes = error is None and not ends
            if typed.ended:
                raise StdinEndedError("the run's standard input is at its end", hint="nothing more can be sent")
            if typed.closed:
                return
            try:
                async with asyncio.timeout(LOOK_S):
                    data = await self._next()
            except TimeoutError:
                await _until_kept(typed.look)
            else:
                await self._keep(data)

    async def _keep(self, data: bytes) -> None:
        if await _until_kept(partial(self._typed.add, data)):
            self._settled(data)

    async def _carry_unkept(self) -> None:
        """Raises MayflyError: the host takes no more."""
        await self._follow.begun.wait()
        while True:
            data = await self._next()
            answer = await self._say(Input(gateway=self._typed.name, offset=self._unkept, data=data, end=not data))
            if (error := error_of(answer.error)) is not None:
                raise error
            self._unkept += len(data)
            self._settled(data)
            if not data:
                return

    async def _next(self) -> bytes:
        if self._read is None:
            self._read = await self._stdin.read(PIECE)
        return self._read

    def _settled(self, data: bytes) -> None:
        self._read = None
        self._stdin.settled(data)

    async def _say(self, message: Input | Size) -> Answer:
        """Say it to the host that has the run, until that answers. Raises HostError: in a way that
        cannot be understood.
        """
        follow, unread = self._follow, 0
        while True:
            host = follow.mirror.host
            try:
                answer = decode(await self._engine.ask(f"host.{host}.{follow.run.id}", encode(message), INPUT_S), type=Answer)
                if not answer.moved:
                    return answer
                if follow.mirror.host == host:
                    await self._look()
            except UnreadableError as error:  # this one comes at once
                unread += 1
                if unread >= UNREAD_TRIES:
                    log.error("run %s: nothing more of what is typed goes to the host %s: %s", follow.run.id, host, error)
                    hint = "bring hosts and gateways to the same version"
                    raise HostError(f"the host's answer cannot be read: {error}", hint=hint) from error
            except SilenceError:
                continue
            except NobodyError:
                pass
            if follow.mirror.host == host:
                await asyncio.sleep(RETRY_S)


async def _until_kept(work: Callable[[], Awaitable[_T]]) -> _T:
    """Do what the engine cannot do now as soon as it can. Raises UnreadableError."""
    while True:
        try:
            return await work()
        except UnreadableError:
            raise
        except (FullError, NobodyError, SilenceError) as error:
            log.warning("fleet: what was typed is kept later: %s", error)
            await asyncio.sleep(RETRY_S)
