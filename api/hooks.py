"""Webhooks: a run's result goes to the address that its request named, signed as Standard Webhooks
1.0.0 has it (https://www.standardwebhooks.com).

A hook is delivered when its run is over, and holds nothing but the result's bytes. Redirects are
not followed. Which addresses may be called is checked where a connection is made, so that a name
cannot have one address when it is checked and another one when it is called.
"""

import asyncio
import base64
import collections
import errno
import hashlib
import hmac
import logging
import random
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from mayfly import __version__
from mayfly.api.requests import Callback
from mayfly.errors import BusyError, UnprocessableError
from mayfly.host.addresses import Targets
from mayfly.units import MIB

log = logging.getLogger(__name__)
DELAYS_S = (1.0, 5.0, 25.0, 125.0)
"""Before the second attempt, the third one, and so on; each up to a quarter longer."""
ATTEMPT_S = 10.0
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


class Hooks:
    """The deliveries of one server, which go on in the background until `close`."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_owner: collections.Counter[str] = collections.Counter()
        self._bytes = 0
        self._room = asyncio.Semaphore(AT_A_TIME)
        self._closing = asyncio.Event()

    def check(self, callback: Callback, owner: str) -> None:
        """Refuse what cannot be delivered.

        Raises:
            UnprocessableError: the URL may not be called, or the secret is none.
            BusyError: too many results wait for their delivery.
        """
        try:
            url = URL(callback.url)
        except ValueError as error:
            raise UnprocessableError(f"callback_url: {error}"[:200], hint="give an http or https URL") from error
        plain = all("!" <= letter <= "~" for letter in callback.url)
        if not plain or url.scheme not in ("http", "https") or not url.host or url.user is not None or url.password is not None:
            raise UnprocessableError(
                f"callback_url: {callback.url[:80]!r} cannot be called", hint="give an http or https URL without a user"
            )
        numeric = ":" in url.host or url.host.replace(".", "").isdigit()
        if numeric and not self._targets.allows(url.host, url.host):
            raise UnprocessableError(
                f"callback_url: {url.host} may not be called",
                hint="name a host of the public Internet, or have the operator add it to callback_hosts",
            )
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
                    ok, outcome = await self._attempt(callback, message)
                if ok or delay_s is None or await self._ends_within(delay_s * random.uniform(1, 1.25)):  # noqa: S311  # no secret
                    return
        finally:
            told(Delivered(ok=ok, outcome=outcome, attempts=attempts))

    async def _ends_within(self, seconds: float) -> bool:
        """Wait, unless the server ends: then say so at once."""
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _attempt(self, callback: Callback, message: Message) -> tuple[bool, str]:
        headers = {"Content-Type": "application/json", "User-Agent": f"mayfly/{__version__}"}
        if callback.secret:
            now = int(time.time())
            signature = sign(callback.secret, message.id, now, message.body)
            headers |= {"webhook-id": message.id, "webhook-timestamp": str(now), "webhook-signature": signature}
        url = URL(callback.url)
        timeout = aiohttp.ClientTimeout(total=ATTEMPT_S)
        connector = aiohttp.TCPConnector(use_dns_cache=False, socket_factory=self._factory(url.host or ""))
        jar = aiohttp.DummyCookieJar()
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar, auto_decompress=False) as client,
                client.request(message.method, url, data=message.body, headers=headers, allow_redirects=False) as answer,
            ):
                return 200 <= answer.status < 300, str(answer.status)
        except TimeoutError:
            return False, f"no answer in {ATTEMPT_S:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return False, f"{type(error).__name__}: {error}"[:200]

    def _factory(self, host: str) -> Any:
        """Makes a socket for an address of `host`, if that may be called."""

        def make(info: tuple[Any, ...]) -> socket.socket:
            family, kind, protocol, _, address = info
            if not self._targets.allows(host, str(address[0])):
                raise PermissionError(errno.EACCES, f"{address[0]} may not be called")
            return socket.socket(family, kind, protocol)

        return make

    async def close(self) -> None:
        """End all deliveries; attempts that are under way have CLOSE_S."""
        self._closing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
