"""TLS handshakes of connections that come in: so many at a time, each within a time.

asyncio's own servers hold every connection that begins one, and whoever says nothing costs them a
TLS object and a descriptor until its time is up. Besides, asyncio keeps a buffer for each
connection, whose size is no parameter.
"""

import asyncio
import asyncio.sslproto
import ssl
from collections.abc import Callable

MOST = 256
"""Under way at a time. When one more begins, the oldest ends: who means it is through by then."""
WITHIN_S = 10.0
BUFFER = 16 * 1024
"""Bytes that are read at a time, as many as a record of TLS holds (RFC 8446, 5.1)."""
asyncio.sslproto.SSLProtocol.max_size = BUFFER  # of 256 KiB, and they stay: most of what an idle connection took


class Handshakes:
    """Those of one server. Use `factory` as the protocol factory of a server without TLS."""

    def __init__(self) -> None:
        self._under_way: dict[asyncio.Task[None], None] = {}  # the oldest first

    def factory(self, tls: ssl.SSLContext, then: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Makes protocols for connections that begin with a handshake; `then` makes what takes over
        behind it, as if the connection came in at that moment.
        """
        return lambda: _Accepted(lambda transport: self._begin(transport, tls, then))

    def _begin(self, transport: asyncio.Transport, tls: ssl.SSLContext, then: Callable[[], asyncio.Protocol]) -> None:
        if len(self._under_way) >= MOST:
            oldest = next(iter(self._under_way))
            del self._under_way[oldest]
            oldest.cancel()
        task = asyncio.create_task(_shake(transport, tls, then), name="TLS handshake")
        self._under_way[task] = None
        task.add_done_callback(lambda task: self._under_way.pop(task, None))

    async def close(self) -> None:
        """End those that are under way."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Accepted(asyncio.Protocol):
    """A connection until its handshake begins."""

    def __init__(self, begin: Callable[[asyncio.Transport], None]) -> None:
        self._begin = begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a stream's is one)
        transport.pause_reading()  # what comes is for the handshake
        self._begin(transport)


class _Early(asyncio.Protocol):
    """Keeps what comes behind a handshake before its task goes on (Python 3.11 hands it out at
    once).
    """

    def __init__(self) -> None:
        self.data = bytearray()

    def data_received(self, data: bytes) -> None:
        self.data += data


async def _shake(transport: asyncio.Transport, tls: ssl.SSLContext, then: Callable[[], asyncio.Protocol]) -> None:
    early = _Early()
    loop = asyncio.get_running_loop()
    try:
        secure = await loop.start_tls(transport, early, tls, server_side=True, ssl_handshake_timeout=WITHIN_S)
    except BaseException as error:
        transport.abort()
        if not isinstance(error, OSError):  # which says that it is no TLS, or came to no end in time
            raise
        return
    if secure is None or secure.is_closing():
        return
    protocol = then()
    secure.set_protocol(protocol)
    protocol.connection_made(secure)
    if early.data and not secure.is_closing():
        protocol.data_received(bytes(early.data))
