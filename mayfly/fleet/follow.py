"""A run that a gateway follows, and what its client types on the way to the host that has it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import NobodyError, SilenceError, UnreadableError
from mayfly.fleet.message import PIECE, Answer, Input, Registered, ToHost, decode, encode
from mayfly.fleet.mirror import Mirror
from mayfly.runs.run import Run

log = logging.getLogger(__name__)
RETRY_S = 0.5
REPLAYED = 256 * 1024
"""Bytes of input that are kept for another attempt; a run that got more has only one."""
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
        self.given_back = 0  # the delivery that was
        self.begun = asyncio.Event()
        self.typing: asyncio.Task[None] | None = None
        self.typed = bytearray()  # since `typed_from` bytes of it
        self.typed_from = 0

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


async def forward(engine: Engine, follow: Follow, look: Callable[[], Awaitable[None]]) -> None:
    """Take what a client writes to the run's standard input to the host that has it, from the
    beginning. If the run moves from there to another, it goes on there; `look` finds which.
    """
    await follow.begun.wait()
    run, sent, ended = follow.run, 0, False
    while not run.done.is_set() and not ended:
        known = sent - follow.typed_from
        if known < len(follow.typed):
            data = bytes(follow.typed[known : known + PIECE])
        else:
            data = await run.stdin.read(PIECE)
            ended = not data
            follow.typed += data
        answer = await _ask_until_answered(engine, follow, Input(gateway=engine.name, offset=sent, data=data, end=ended), look)
        if answer is None or answer.error is not None:
            return
        sent += len(data)
        if len(follow.typed) > REPLAYED:
            follow.typed_from += len(follow.typed)
            follow.typed.clear()


async def _ask_until_answered(engine: Engine, follow: Follow, message: ToHost, look: Callable[[], Awaitable[None]]) -> Answer | None:
    unread = 0
    while not follow.run.done.is_set():
        host = follow.mirror.host
        try:
            answer = decode(await engine.ask(f"host.{host}.{follow.run.id}", encode(message), INPUT_S), type=Answer)
            if not answer.moved:
                return answer
            if follow.mirror.host == host:
                await look()
        except UnreadableError as error:  # this one comes at once
            unread += 1
            if unread >= UNREAD_TRIES:
                log.error("run %s: no more input goes to the host %s: %s", follow.run.id, host, error)
                return None
        except SilenceError:
            continue
        except NobodyError:
            pass
        if follow.mirror.host == host:
            await asyncio.sleep(RETRY_S)
    return None
