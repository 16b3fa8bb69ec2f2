"""vmm processes as asyncio sees them: spawned by the zygote, a channel to read and write, a report
at the end, a clean-up in every case.

Spawner    ── owns ──> the zygote (restarted if it died) and every process that is not yet reaped
VmmProcess ── owns ──> its end of the channel and of the report pipe
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import mayfly.errors
from mayfly.errors import HostError, MayflyError
from mayfly.vmm.config import PRE_FAULT, SAVE, MachineConfig
from mayfly.vmm.process.zygote import Forked, Reaped, ZygoteLostError

log = logging.getLogger(__name__)

READ_SIZE = 64 * 1024
REPORT_LINE = 1 << 20
"""Longest line of a report: the console's 64 KiB, escaped, and some more."""
GRACE_S = 1.5
"""A vmm process ends by itself within a second of its channel's end; then it is killed."""
SAVED = "saved"
"""The reason of a machine's end, when it was saved (mayfly.vmm.machine.End)."""
REAP_S = 10.0
"""A killed process that is not reaped after this long is given up (it hangs in the kernel)."""


class Zygote(Protocol):
    """What this module needs of mayfly.vmm.process.zygote.Zygote."""

    def spawn(self, machine: int, config: MachineConfig, channel: int, report: int) -> None:
        """Fork a vmm process that gets both descriptors; the caller closes its copies."""

    def signal(self, machine: int, number: int) -> None:
        """Send the process of a machine a signal; one that is gone already is fine."""

    def fileno(self) -> int:
        """Readable when `receive` has something."""
        ...

    def receive(self) -> Forked | Reaped:
        """The next message; EOFError when the zygote is dead."""
        ...

    def close(self) -> None:
        """End the zygote."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a vmm process ended, in its own words; all empty if it could not say."""

    reason: str = ""
    error: MayflyError | None = None
    console: str = ""
    exits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    phases: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Spawner:
    """The asyncio side of the zygote. `start` makes one; it is made at the first machine, and again
    after it has died.
    """

    def __init__(self, start: Callable[[], Zygote]) -> None:
        self._start = start
        self._zygote: Zygote | None = None
        self._numbers = itertools.count(1)
        self._machines: dict[int, VmmProcess] = {}
        self._stopping: set[asyncio.Task[Ended]] = set()

    def warm_up(self) -> None:
        """Start the zygote now.

        Raises:
            HostError: it cannot be started.
        """
        if self._zygote is None:
            self._zygote = self._start()
            asyncio.get_running_loop().add_reader(self._zygote.fileno(), self._receive)

    async def spawn(self, config: MachineConfig) -> "VmmProcess":
        """Ask for a machine; whether it comes up shows on its channel and in its report.

        Raises:
            HostError: the zygote cannot be started, or died over this.
        """
        self.warm_up()
        assert self._zygote is not None  # noqa: S101 (warm_up has set it)
        number = next(self._numbers)
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            try:
                channel, channel_end = socket.socketpair()
                ours.callback(channel.close)
                theirs.callback(channel_end.close)
                report, report_end = os.pipe()
                ours.callback(os.close, report)
                theirs.callback(os.close, report_end)
            except OSError as error:
                raise HostError(
                    f"there are no descriptors for another machine: {error.strerror}", hint="raise the limit of open files (ulimit -n)"
                ) from error
            try:
                self._zygote.spawn(number, config, channel_end.fileno(), report_end)
            except (OSError, EOFError, ZygoteLostError) as error:
                self._lost(error)
                raise HostError(f"the zygote died: {error}", hint="try again: it is started anew for the next run") from error
            ours.pop_all()
        machine = VmmProcess(number, self, channel, report)
        self._machines[number] = machine
        try:
            await asyncio.shield(machine.opened)
        except asyncio.CancelledError:
            self.stop(machine, 0)
            raise
        return machine

    def signal(self, machine: int, number: int) -> None:
        """Send a machine's process, if it still has one, SIGKILL or one of the signals of
        mayfly.vmm.config.
        """
        if self._zygote is not None and machine in self._machines:
            try:
                self._zygote.signal(machine, number)
            except (OSError, ZygoteLostError) as error:
                self._lost(error)

    def stop(self, machine: "VmmProcess", grace_s: float) -> "asyncio.Task[Ended]":
        """Begin to end a machine, once; the task goes on even if whoever awaits it is cancelled."""
        if machine.stopping is None:
            machine.stopping = asyncio.create_task(machine.shut(grace_s), name=f"stop machine {machine.number}")
            self._stopping.add(machine.stopping)
            machine.stopping.add_done_callback(self._stopping.discard)
        return machine.stopping

    async def close(self) -> None:
        """End every machine and the zygote; all processes are gone when it returns."""
        for machine in list(self._machines.values()):
            self.stop(machine, 0)
        while self._stopping:
            await asyncio.wait(self._stopping)
        if self._zygote is not None:
            asyncio.get_running_loop().remove_reader(self._zygote.fileno())
            self._zygote.close()
            self._zygote = None

    def _receive(self) -> None:
        assert self._zygote is not None  # noqa: S101 (its descriptor is watched only while it is there)
        try:
            message = self._zygote.receive()
        except (OSError, EOFError) as error:
            self._lost(error)
            return
        if isinstance(message, Reaped):
            self._reaped(message.machine)

    def _reaped(self, number: int) -> None:
        machine = self._machines.pop(number, None)
        if machine is not None:
            machine.reaped.set()

    def _lost(self, error: BaseException) -> None:
        """The zygote is dead, and its machines with it: they are its children and end when it
        does.
        """
        if self._zygote is None:
            return
        log.error("the zygote died (%s); its %d machines end with it", error or type(error).__name__, len(self._machines))
        asyncio.get_running_loop().remove_reader(self._zygote.fileno())
        with contextlib.suppress(OSError):
            self._zygote.close()
        self._zygote = None
        for number in list(self._machines):
            self._machines[number].orphaned = True
            self._reaped(number)


class VmmProcess:
    """The process of one machine. `read` and `write` are its channel; `stop` ends it."""

    def __init__(self, number: int, spawner: Spawner, channel: socket.socket, report: int) -> None:
        self.number = number
        self.reaped = asyncio.Event()
        self.orphaned = False
        self.stopping: asyncio.Task[Ended] | None = None
        self.phases: Mapping[str, float] = {}
        self.saved_bytes: int | None = None
        self._spawner = spawner
        self._ended = Ended()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._report: asyncio.Task[None]
        self.opened = asyncio.create_task(self._open(channel, report), name=f"open machine {number}")

    async def _open(self, channel: socket.socket, report: int) -> None:
        """Take over both descriptors."""
        loop = asyncio.get_running_loop()
        self._reader, self._writer = await asyncio.open_connection(sock=channel, limit=READ_SIZE)
        lines = asyncio.StreamReader(limit=REPORT_LINE)
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(report, "rb", buffering=0))
        self._report = asyncio.create_task(self._follow(lines, pipe), name=f"report of machine {self.number}")

    @property
    def alive(self) -> bool:
        """Whether its process has not reported its end."""
        return not self._report.done() and not self._ended.reason

    async def read(self) -> bytes:
        """The next bytes of the channel, empty at its end. Nothing is read ahead beyond 128 KiB."""
        try:
            return await self._reader.read(READ_SIZE)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> bool:
        """Send bytes, waiting while the guest is slower. False if the channel is at its end."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            return False
        return True

    def pre_fault(self) -> None:
        """Have a machine that was restored, and answers, map for its guest what that will touch
        soon.
        """
        self._spawner.signal(self.number, PRE_FAULT)

    async def save(self, timeout_s: float) -> int:
        """Write the machine's snapshot, which ends it; the bytes of memory written.

        Raises:
            MayflyError: it failed.
        """
        self._spawner.signal(self.number, SAVE)
        await asyncio.wait([self._report], timeout=timeout_s)
        ended = await self.stop()
        if ended.reason != SAVED or self.saved_bytes is None:
            raise ended.error or HostError(f"the machine was not saved within {timeout_s:g} s, or ended before")
        return self.saved_bytes

    async def stop(self, grace_s: float = GRACE_S) -> Ended:
        """End the machine: its channel is closed, then its process killed after `grace_s`. It is
        gone when this returns, and when whoever waits is cancelled, it goes all the same.
        """
        return await asyncio.shield(self._spawner.stop(self, grace_s))

    async def shut(self, grace_s: float) -> Ended:
        """Do what `stop` says; the spawner calls it, once."""
        await self.opened
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await asyncio.wait([self._report], timeout=grace_s)
        self._spawner.signal(self.number, signal.SIGKILL)
        try:
            async with asyncio.timeout(REAP_S):
                await self.reaped.wait()
                await self._report
        except TimeoutError:
            log.error("machine %d cannot be killed", self.number)
            self._report.cancel()
        if self.orphaned and self._ended.error is None:
            gone = HostError("the zygote died, and the machine with it", hint="try again: it is started anew for the next run")
            return dataclasses.replace(self._ended, error=gone)
        return self._ended

    async def _follow(self, lines: asyncio.StreamReader, pipe: asyncio.BaseTransport) -> None:
        """Read the report to its end; what is not as it should be is as good as absent, for the vmm
        process may be in a guest's hands.
        """
        try:
            while line := await lines.readline():
                self._note(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("machine %d: bad report: %s", self.number, error)
        finally:
            pipe.close()

    def _note(self, report: Mapping[str, Any]) -> None:
        phases = {str(name): float(seconds) for name, seconds in report.get("phases", {}).items()}
        if report["event"] == "running":
            self.phases = phases
        elif report["event"] == "saved":
            self.saved_bytes = int(report["memory"])
        elif report["event"] == "ended":
            self._ended = Ended(
                reason=str(report.get("reason", "")),
                error=_error(report.get("error")),
                console=str(report.get("console", "")),
                exits={str(name): int(count) for name, count in report.get("exits", {}).items()},
                phases=phases or self.phases,
            )


def _error(report: Mapping[str, Any] | None) -> MayflyError | None:
    """The error in a report, as an object of the class that it names where there is one."""
    if not report:
        return None
    kind = getattr(mayfly.errors, str(report.get("type")), HostError)
    if not issubclass(kind, MayflyError) or issubclass(kind, mayfly.errors.KvmError):
        kind = HostError  # KvmError's constructor wants the ioctl, which its message already names
    error: MayflyError = kind(str(report.get("message", "")), hint=str(report.get("hint", "")))
    return error
