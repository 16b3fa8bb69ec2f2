"""The client for programs without asyncio: `AsyncClient` on an event loop in a thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

from mayfly.client.asynchronous import AsyncAttachment, AsyncClient, AsyncRun
from mayfly.client.results import FunctionList, FunctionResult, LanguageInfo, Result, RunClientEvent
from mayfly.client.submission import Content, RunOptions

_T = TypeVar("_T")


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mayfly client", daemon=True)
        self._thread.start()

    def wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`; it is cancelled if the caller is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def each(self, source: AsyncIterator[_T]) -> Iterator[_T]:
        """What `source` gives, one by one."""
        try:
            while True:
                try:
                    yield self.wait(anext(source))  # type: ignore[arg-type]  # a coroutine, of a generator
                except StopAsyncIteration:
                    return
        finally:
            self.wait(source.aclose())  # type: ignore[attr-defined]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """As `AsyncClient`; it may be used from several threads."""

    def __init__(
        self, address: str | Path | None = None, *, key: str | None = None, patience_s: float = 60.0, certificates: Path | None = None
    ) -> None:
        self._client = AsyncClient(address, key=key, patience_s=patience_s, certificates=certificates)
        self._loop = _Loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._loop.wait(self._client.close())
        self._loop.close()

    def run(self, source: Content | None = None, **options: Unpack[RunOptions]) -> Result:
        """As `AsyncClient.run`."""
        return self._loop.wait(self._client.run(source, **options))

    @contextmanager
    def start(self, source: Content | None = None, *, detach: bool = False, **options: Unpack[RunOptions]) -> Iterator["BlockingRun"]:
        """As `AsyncClient.start`."""
        context = self._client.start(source, detach=detach, **options)
        run = self._loop.wait(context.__aenter__())
        try:
            yield BlockingRun(self._loop, run)
        finally:
            self._loop.wait(context.__aexit__(None, None, None))

    def get(self, run_id: str) -> "BlockingRun":
        """As `AsyncClient.get`."""
        return BlockingRun(self._loop, self._client.get(run_id))

    def languages(self) -> tuple[LanguageInfo, ...]:
        """As `AsyncClient.languages`."""
        return self._loop.wait(self._client.languages())

    def functions(self) -> FunctionList:
        """As `AsyncClient.functions`."""
        return self._loop.wait(self._client.functions())

    def invoke(self, name: str, payload: Any = b"", content_type: str = "") -> FunctionResult:
        """As `AsyncClient.invoke`."""
        return self._loop.wait(self._client.invoke(name, payload, content_type))


class BlockingRun:
    """As `AsyncRun`: `for event in run` gives what happens."""

    def __init__(self, loop: _Loop, run: AsyncRun) -> None:
        self._loop = loop
        self._run = run

    @property
    def id(self) -> str:
        """What the server calls it."""
        return self._run.id

    def __iter__(self) -> Iterator[RunClientEvent]:
        return self._loop.each(aiter(self._run))

    def result(self) -> Result:
        """As `AsyncRun.result`."""
        return self._loop.wait(self._run.result())

    def state(self) -> Result:
        """As `AsyncRun.state`."""
        return self._loop.wait(self._run.state())

    def cancel(self) -> None:
        """As `AsyncRun.cancel`."""
        self._loop.wait(self._run.cancel())

    def send(self, data: Content, *, end: bool = False) -> None:
        """As `AsyncRun.send`."""
        self._loop.wait(self._run.send(data, end=end))

    def checkpoint(self) -> bytes:
        """As `AsyncRun.checkpoint`."""
        return self._loop.wait(self._run.checkpoint())

    def signal(self, signal: str | int) -> None:
        """As `AsyncRun.signal`."""
        self._loop.wait(self._run.signal(signal))

    @contextmanager
    def attach(self) -> Iterator["Attachment"]:
        """As `AsyncRun.attach`."""
        context = self._run.attach()
        attachment = self._loop.wait(context.__aenter__())
        try:
            yield Attachment(self._loop, attachment)
        finally:
            self._loop.wait(context.__aexit__(None, None, None))


class Attachment:
    """As `AsyncAttachment`."""

    def __init__(self, loop: _Loop, attachment: AsyncAttachment) -> None:
        self._loop = loop
        self._attachment = attachment

    def __iter__(self) -> Iterator[RunClientEvent]:
        return self._loop.each(aiter(self._attachment))

    def send(self, data: Content) -> None:
        """As `AsyncAttachment.send`."""
        self._loop.wait(self._attachment.send(data))

    def send_eof(self) -> None:
        """As `AsyncAttachment.send_eof`."""
        self._loop.wait(self._attachment.send_eof())

    def signal(self, signal: str | int) -> None:
        """As `AsyncAttachment.signal`."""
        self._loop.wait(self._attachment.signal(signal))

    def resize(self, columns: int, rows: int) -> None:
        """As `AsyncAttachment.resize`."""
        self._loop.wait(self._attachment.resize(columns, rows))
