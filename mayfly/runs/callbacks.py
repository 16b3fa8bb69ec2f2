"""Callbacks: results go to the addresses that their requests named, several times if that fails,
and signed as Standard Webhooks 1.0.0 has it (https://www.standardwebhooks.com).

A result is delivered when its run is over. What waits here holds nothing but the result's bytes.
"""

import abc
import asyncio
import base64
import collections
import hashlib
import hmac
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from mayfly.errors import BusyError, UnprocessableError
from mayfly.units import MIB

DELAYS_S = (1.0, 5.0, 25.0, 125.0)
"""Before the second attempt, the third one, and so on; each up to a quarter longer."""
CLOSE_S = 3.0
"""For deliveries that are under way when the server ends."""
MOST = 256
"""Results that wait for their delivery."""
MOST_OF_ONE = 64
"""Of the same key."""
MOST_BYTES = 64 * MIB
AT_A_TIME = 16
PREFIX = "whsec_"
ENDED = "the server ended"
TOO_MANY = "too many results wait for their callbacks"


class Callback(NamedTuple):
    """Where a result goes, and the secret that signs it; empty where a contract of others has
    none.
    """

    url: str
    secret: str


class Message(NamedTuple):
    """What is delivered: JSON, with an id that tells a receiver whether it has it already."""

    id: str
    body: bytes
    method: str = "POST"


class Delivered(NamedTuple):
    """How a delivery ended: with an HTTP status, or an error's words, after some attempts."""

    ok: bool
    outcome: str
    attempts: int

    @property
    def is_final(self) -> bool:
        """Whether it need not be tried by another server."""
        return self.outcome not in (ENDED, TOO_MANY)


def sign(secret: str, message: str, timestamp: int, body: bytes) -> str:
    """The value of the header `webhook-signature`."""
    key = _key(secret)
    digest = hmac.new(key, f"{message}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _key(secret: str) -> bytes:
    """The bytes that a secret stands for: base64 behind `whsec_`, else its own."""
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True) if secret.startswith(PREFIX) else secret.encode()


def signature(callback: Callback, message: Message) -> dict[str, str]:
    """The headers that sign a message, sent now; none without a secret."""
    if not callback.secret:
        return {}
    now = int(time.time())
    signed = sign(callback.secret, message.id, now, message.body)
    return {"webhook-id": message.id, "webhook-timestamp": str(now), "webhook-signature": signed}


class Callbacks(abc.ABC):
    """The deliveries of one server, which go on in the background until `close`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_owner: collections.Counter[str] = collections.Counter()
        self._bytes = 0
        self._room = asyncio.Semaphore(AT_A_TIME)
        self._closing = asyncio.Event()

    @abc.abstractmethod
    async def attempt(self, callback: Callback, message: Message) -> tuple[bool, str]:
        """Deliver a message, once; whether that worked, and what the receiver or an error said."""

    def check(self, callback: Callback, owner: str) -> None:
        """Refuse what cannot be delivered.

        Raises:
            UnprocessableError: the secret is none.
            BusyError: too many results wait for their delivery.
        """
        try:
            _key(callback.secret)
        except ValueError as error:
            raise UnprocessableError("callback_secret: behind whsec_ comes base64", hint="or give any text without whsec_") from error
        if len(self._tasks) >= MOST or self._by_owner[owner] >= MOST_OF_ONE:
            raise BusyError(TOO_MANY, hint="see that callback_url answers with 2xx", retry_after_s=10)

    def send(self, callback: Callback, message: Message, owner: str, told: Callable[[Delivered], None]) -> None:
        """Deliver a message; `told` hears what became of it."""
        size = len(message.body)
        if len(self._tasks) >= MOST or self._bytes + size > MOST_BYTES:
            told(Delivered(ok=False, outcome=TOO_MANY, attempts=0))
            return
        self._bytes += size
        self._by_owner[owner] += 1
        task = asyncio.create_task(self._deliver(callback, message, told), name=f"callback {message.id}")
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._bytes -= size
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]

        task.add_done_callback(over)

    async def _deliver(self, callback: Callback, message: Message, told: Callable[[Delivered], None]) -> None:
        ok, outcome, attempts = False, ENDED, 0
        try:
            for delay_s in (*DELAYS_S, None):
                async with self._room:
                    attempts += 1
                    ok, outcome = await self.attempt(callback, message)
                if ok or delay_s is None or await self._ends_within(delay_s * random.uniform(1, 1.25)):  # noqa: S311  # no secret
                    return
        finally:
            told(Delivered(ok=ok, outcome=outcome, attempts=attempts))

    async def _ends_within(self, seconds: float) -> bool:
        """Wait, unless the server ends: then say so at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End all deliveries; attempts that are under way have CLOSE_S."""
        self._closing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
