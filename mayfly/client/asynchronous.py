"""The client for asyncio. It needs aiohttp and nothing of the server."""

import asyncio
import io
import json
import os
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack
from urllib.parse import quote

import aiohttp
import msgspec

from mayfly import paths
from mayfly.client.results import (
    DoneEvent,
    FunctionList,
    FunctionResult,
    LanguageInfo,
    Result,
    RunClientEvent,
    decode_event,
    error_of,
)
from mayfly.client.submission import Content, RunOptions, body
from mayfly.errors import BusyError, ConfigError, MayflyError, ServerLostError

CONNECT_S = 10.0
IDLE_S = 5.0
"""A connection is used again within this time: a server closes one that is idle for longer."""
MAX_LINE = 64 << 20
"""Bytes of one event: the last one holds all output of a run."""
MAX_PIECE = 1 << 20
"""Bytes that are sent at once. More would keep the event loop busy, and aiohttp warns of it."""
RETRY_S = 0.2
FUNCTION_ERROR = "X-Mayfly-Function-Error"
"""Header of an answer that is a function's own failure, not the server's."""
NOT_OURS = "is the address a Mayfly server's?"
_T = TypeVar("_T")


class AsyncClient:
    """A client of one server; any number of runs at a time.

    Args:
        address: `https://host:port`, `http://host:port`, or the path of the server's Unix socket.
            By default MAYFLY_URL, or else the socket where `mayfly serve` listens.
        key: the API key, wanted over TCP. By default MAYFLY_KEY.
        patience_s: for so long a request is sent again that a busy server (429) refuses, each time
            after the pause that it asks for. 0: never.
        certificates: a file with the certificates that are trusted over TLS; by default the
            system's.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(
        self, address: str | Path | None = None, *, key: str | None = None, patience_s: float = 60.0, certificates: Path | None = None
    ) -> None:
        found = str(address or os.environ.get("MAYFLY_URL") or paths.runtime_dir() / "api.sock")
        self.patience_s = patience_s
        self._key = os.environ.get("MAYFLY_KEY", "") if key is None else key
        self._socket = ""
        if found.startswith(("http://", "https://")):
            self._base = found.rstrip("/")
        elif "://" not in found and found.removeprefix("unix:"):
            self._socket, self._base = found.removeprefix("unix:"), "http://mayfly"
        else:
            raise ConfigError(
                f"{found[:200]!r} is no server's address", hint="give http://host:port, https://host:port, or a socket's path"
            )
        self._certificates = certificates
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. A run that `run` waits for ends with them."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def run(self, source: Content | None = None, **options: Unpack[RunOptions]) -> Result:
        """Run a snippet, and give its result. If the caller is cancelled, the run is ended.

        Raises:
            BusyError: the server has no room, for longer than `patience_s`.
            MayflyError: the server refuses it; how a run ends raises nothing.
            ServerLostError: the server cannot be reached, or went away.
        """
        return await self._ask("POST", "/run", Result, body(source, options))

    @asynccontextmanager
    async def start(
        self, source: Content | None = None, *, detach: bool = False, **options: Unpack[RunOptions]
    ) -> AsyncIterator["AsyncRun"]:
        """Start a run and give it, to follow it while it is under way. On leaving, it is ended if
        it is not over; with `detach` it goes on.

        Raises:
            MayflyError: as `run`.
        """
        # The key lets the request be sent again after a lost connection without a second run.
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        started = await self._ask("POST", "/start", _Started, body(source, options), headers=headers)
        found = AsyncRun(self, started.id)
        try:
            yield found
        finally:
            if not detach and not found.over:
                await found.cancel()

    def get(self, run_id: str) -> "AsyncRun":
        """A run that was started elsewhere; whether it exists shows at its first use."""
        return AsyncRun(self, run_id)

    async def languages(self) -> tuple[LanguageInfo, ...]:
        """What the server can run.

        Raises:
            MayflyError: as `run`.
        """
        return (await self._ask("GET", "/languages", _Languages)).languages

    async def functions(self) -> FunctionList:
        """The server's functions, and what it has counted of them.

        Raises:
            MayflyError: as `run`.
        """
        return await self._ask("GET", "/functions", FunctionList)

    async def invoke(self, name: str, payload: Any = b"", content_type: str = "") -> FunctionResult:
        """Have the function `name` answer a request.

        Args:
            name: the function.
            payload: bytes and text as they are, anything else as JSON.
            content_type: what the function is told that they are. By default JSON for what was
                encoded, text for text, and `application/octet-stream` for bytes.

        Raises:
            BusyError: the server has no room, for longer than `patience_s`.
            MayflyError: the request was refused, or its guest failed. An exception of the function
                is an answer and raises nothing.
            ServerLostError: the server cannot be reached, or went away.
        """
        data, kind = _payload(payload)
        headers = {"Content-Type": content_type or kind}
        answer, text = await self._exchange("POST", f"/functions/{quote(name, safe='')}", data=data, headers=headers)
        return FunctionResult(
            request_id=answer.get("X-Mayfly-Request-Id", ""),
            status=answer.get(FUNCTION_ERROR, "ok"),
            content_type=answer.get("Content-Type", ""),
            payload=text,
            start=answer.get("X-Mayfly-Start", ""),
            duration_s=_seconds(answer.get("X-Mayfly-Duration")),
            queued_s=_seconds(answer.get("X-Mayfly-Queued")),
        )

    async def _ask(
        self,
        method: str,
        path: str,
        kind: type[_T],
        content: Any = None,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] = {},
    ) -> _T:
        """The answer to a request, decoded as `kind`; None for an answer without a body."""
        _, text = await self._exchange(method, path, content, data=data, headers=headers)
        try:
            return msgspec.json.decode(text or b"null", type=kind)
        except msgspec.DecodeError as error:
            raise self._not_ours(error) from error

    async def _exchange(
        self,
        method: str,
        path: str,
        content: Any = None,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] = {},
    ) -> tuple[Mapping[str, str], bytes]:
        """The answer's headers and its body; asked for again where the server is busy."""
        patience = _Patience(self.patience_s)
        again = "Idempotency-Key" in headers
        while True:
            try:
                async with self._open(method, path, content, data, headers) as answer:
                    return answer.headers, await answer.read()
            except ServerLostError:
                if not again:
                    raise
                again = False
            except BusyError as error:
                await patience.wait(error)

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, content: Any = None, data: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that is no error, while its body comes and is decoded."""
        if content is not None:
            data, headers = json.dumps(content).encode(), {**headers, "Content-Type": "application/json"}
        sent = io.BytesIO(data) if data is not None and len(data) > MAX_PIECE else data
        try:
            async with self._http().request(method, self._base + path, data=sent, headers=headers) as answer:
                if answer.status >= 400 and FUNCTION_ERROR not in answer.headers:
                    raise _refusal(answer, await answer.read())
                yield answer
        except msgspec.DecodeError as error:
            raise self._not_ours(error) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self.lost(error) from error

    def lost(self, error: BaseException) -> ServerLostError:
        """What a failed connection means."""
        return ServerLostError(f"{self._name}: {str(error) or type(error).__name__}", hint="is 'mayfly serve' running there?")

    def _not_ours(self, error: msgspec.DecodeError) -> ServerLostError:
        return ServerLostError(f"{self._name}: not Mayfly's answer: {error}", hint=NOT_OURS)

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._socket:
                connector = aiohttp.UnixConnector(self._socket, limit=0, keepalive_timeout=IDLE_S)
            else:
                trusted = ssl.create_default_context(cafile=self._certificates) if self._base.startswith("https:") else True
                connector = aiohttp.TCPConnector(ssl=trusted, limit=0, keepalive_timeout=IDLE_S)
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S)
            self._session = aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout, read_bufsize=MAX_LINE)
        return self._session

    @property
    def _name(self) -> str:
        return self._socket or self._base


class AsyncRun:
    """A run on a server. `async for event in run` gives what happens, from its beginning to its
    `DoneEvent`; several readers may do that side by side.
    """

    def __init__(self, client: AsyncClient, run_id: str) -> None:
        self.id = run_id
        self.over = False
        self._client = client

    async def __aiter__(self) -> AsyncIterator[RunClientEvent]:
        """The events, across lost connections.

        Raises:
            ServerLostError: the server does not come back within the client's patience.
            UnknownRunError: the run is no longer kept.
        """
        last, patience = "", _Patience(self._client.patience_s)
        while True:
            try:
                async for name, event in self._events(last, patience):
                    last = name or last
                    if isinstance(event, DoneEvent):
                        self.over = True  # first: a reader may go no further
                        yield event
                        return
                    if event is not None:
                        yield event
            except (BusyError, ServerLostError) as error:
                await patience.wait(error)

    async def _events(self, after: str, patience: "_Patience") -> AsyncIterator[tuple[str, RunClientEvent | None]]:
        """The events that one connection brings; a ServerLostError is behind them."""
        headers = {"Accept": "application/jsonl", **({"Last-Event-ID": after} if after else {})}
        async with self._client._open("GET", f"/runs/{self.id}/events", headers=headers) as answer:
            silent = patience.now()
            try:
                while line := await answer.content.readuntil(b"\n"):
                    if line.strip():
                        yield decode_event(line)
                        patience.renew()
            finally:
                if patience.now() > silent + RETRY_S:  # it was there, whatever the run had to say
                    patience.renew()
        raise self._client.lost(EOFError(f"the events of run {self.id} ended before it"))

    async def result(self) -> Result:
        """The result, when the run is over.

        Raises:
            MayflyError: as `AsyncClient.run`.
        """
        async for _ in self:
            pass
        return await self.state()

    async def state(self) -> Result:
        """How far the run is.

        Raises:
            MayflyError: as `AsyncClient.run`.
        """
        return await self._client._ask("GET", f"/runs/{self.id}", Result)

    async def cancel(self) -> None:
        """End the run; the server keeps nothing of it.

        Raises:
            MayflyError: as `AsyncClient.run`.
        """
        self.over = True
        await self._client._ask("DELETE", f"/runs/{self.id}", type(None))

    async def send(self, data: Content, *, end: bool = False) -> None:
        """Give standard input of an interactive run more bytes; with `end` they are the last.

        Raises:
            MayflyError: the run takes none, or as `AsyncClient.run`.
        """
        query = "?eof=true" if end else ""
        await self._client._ask("POST", f"/runs/{self.id}/stdin{query}", type(None), data=_bytes(data))

    async def signal(self, signal: str | int) -> None:
        """Send the running step's processes a signal: `"INT"` or its number.

        Raises:
            MayflyError: as `AsyncClient.run`.
        """
        await self._client._ask("POST", f"/runs/{self.id}/signal", type(None), {"signal": signal})

    async def checkpoint(self) -> bytes:
        """Stop the run's program, which is WebAssembly, and give its state: the source of another
        run, of the language wasm.

        Raises:
            MayflyError: it cannot be stopped so, or as `AsyncClient.run`.
        """
        return (await self._client._exchange("POST", f"/runs/{self.id}/checkpoint"))[1]

    @asynccontextmanager
    async def attach(self) -> AsyncIterator["AsyncAttachment"]:
        """Both directions over one connection, for a terminal.

        Raises:
            MayflyError: as `AsyncClient.run`.
        """
        client = self._client
        try:
            async with client._http().ws_connect(f"{client._base}/runs/{self.id}/attach", max_msg_size=MAX_LINE, heartbeat=20) as socket:
                yield AsyncAttachment(socket)
        except aiohttp.WSServerHandshakeError as error:
            raise ServerLostError(f"cannot attach to run {self.id}: {error.status} {error.message}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise client.lost(error) from error


class AsyncAttachment:
    """An attached run: iterate over its events, and send it input."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def __aiter__(self) -> AsyncIterator[RunClientEvent]:
        """The events, from the run's beginning.

        Raises:
            MayflyError: the server refuses what was sent.
        """
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            refusal = msgspec.json.decode(message.data)
            if refusal.get("type") == "error":
                raise error_of(refusal.get("error", refusal))
            _, event = decode_event(message.data)
            if event is not None:
                yield event

    async def send(self, data: Content) -> None:
        """Bytes for standard input."""
        await self._socket.send_bytes(_bytes(data))

    async def send_eof(self) -> None:
        """The end of standard input."""
        await self._socket.send_json({"type": "eof"})

    async def signal(self, signal: str | int) -> None:
        """As `AsyncRun.signal`."""
        await self._socket.send_json({"type": "signal", "signal": signal})

    async def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size."""
        await self._socket.send_json({"type": "resize", "columns": columns, "rows": rows})


class _Patience:
    """How long a server that is busy or lost is asked again: `seconds` since it last answered."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def now(self) -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()

    def renew(self) -> None:
        """It has answered."""
        self._until = self.now() + self._seconds

    async def wait(self, error: BusyError | ServerLostError) -> None:
        """Wait before the next attempt; raises `error` if that would be too late."""
        pause_s = error.retry_after_s if isinstance(error, BusyError) else RETRY_S
        if self.now() + pause_s > self._until:
            raise error
        await asyncio.sleep(pause_s)


class _Started(msgspec.Struct):
    id: str


class _Languages(msgspec.Struct):
    languages: tuple[LanguageInfo, ...]


def _payload(payload: Any) -> tuple[bytes, str]:
    """A request's payload and its type."""
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload), "application/octet-stream"
    if isinstance(payload, str):
        return payload.encode(), "text/plain; charset=utf-8"
    return msgspec.json.encode(payload), "application/json"


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _refusal(answer: aiohttp.ClientResponse, text: bytes) -> MayflyError:
    """The error in an answer."""
    try:
        fields = msgspec.json.decode(text)["error"]
        return error_of(fields)
    except (msgspec.DecodeError, KeyError, TypeError):
        return ServerLostError(f"{answer.method} {answer.url.path}: {answer.status} {answer.reason}", hint=NOT_OURS)


def _bytes(data: Content) -> bytes:
    return data.encode() if isinstance(data, str) else data
