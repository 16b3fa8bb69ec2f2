"""The runs that a service knows: those under way, and those that have ended, which are kept for a
while with their output sockets.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from mayfly.errors import UnknownRunError
from mayfly.host.config import Config
from mayfly.runs.output import OutputSocket
from mayfly.runs.run import Run


class Runs:
    """Runs by their ids. One that has ended is dropped when the ended ones are over a limit of
    number, bytes or time, the oldest first (`keep_runs`, `keep_bytes`, `keep_s`). `sockets` is the
    folder for output sockets, or None for none.
    """

    def __init__(self, config: Config, sockets: Path | None) -> None:
        self._config = config
        self._sockets = sockets
        self._runs: dict[str, Run] = {}
        self._ended: dict[str, Run] = {}  # the oldest first
        self._bytes = 0  # of their records
        self._outputs: dict[str, OutputSocket] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._expiry: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    @property
    def under_way(self) -> int:
        """How many have not ended."""
        return len(self._runs) - len(self._ended)

    def add(self, run: Run, *, publish: bool = False) -> None:
        """Take a run that begins; if it is to `publish`, with an output socket, which listens when
        this returns, and is closed when the run is dropped.
        """
        self._runs[run.id] = run
        if publish and self._sockets is not None:
            self.output(run)

    def get(self, run_id: str, owner: str | None = None) -> Run:
        """The run with that id, whose owner is `owner` if that is said.

        Raises:
            UnknownRunError: there is none, or it is no longer kept.
        """
        run = self._runs.get(run_id)
        if run is None or (owner is not None and run.owner != owner):
            hint = f"an ended run is kept for {self._config.keep_s:g} s"
            raise UnknownRunError(f"no run {run_id[:64]!r}", hint=hint)
        return run

    def output(self, run: Run) -> OutputSocket:
        """The run's output socket, which is made if it has none."""
        if run.id not in self._outputs:
            assert self._sockets is not None  # noqa: S101 (it is asked for only where there are sockets)
            self._outputs[run.id] = OutputSocket(self._sockets / f"{run.id}.sock", run.record, run.mode)
        return self._outputs[run.id]

    def keep(self, run: Run) -> None:
        """Keep a run that has ended, as long as the limits allow."""
        self._ended[run.id] = run
        self._bytes += run.kept_bytes
        self._expire()

    def _expire(self) -> None:
        """Drop what is over the limits; come back when the next one's time is up."""
        self._cancel_expiry()
        loop = asyncio.get_running_loop()
        while self._ended:
            oldest = next(iter(self._ended.values()))
            over = self._bytes > self._config.keep_bytes or len(self._ended) > self._config.keep_runs
            until = oldest.ended_at + self._config.keep_s
            if not over and loop.time() < until:
                self._expiry = loop.call_at(until, self._expire)
                break
            self.drop(oldest)

    def _cancel_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def drop(self, run: Run) -> None:
        """Keep nothing of a run that has ended."""
        self._runs.pop(run.id, None)
        if self._ended.pop(run.id, None) is not None:
            self._bytes -= run.kept_bytes
        run.dismiss()
        output = self._outputs.pop(run.id, None)
        if output is not None:
            with contextlib.suppress(OSError):
                output.path.unlink()
            closing = asyncio.create_task(output.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Drop all runs, which must have ended; their output sockets are closed when it returns."""
        for run in self:
            self.drop(run)
        self._cancel_expiry()
        if self._closing:
            await asyncio.wait(self._closing)
