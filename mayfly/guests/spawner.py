"""vmm processes as asyncio sees them: spawned by the zygote, a channel to read and write, requests
to the live machine, a report at the end, a clean-up in every case.

Spawner    ── owns ──> the zygote (restarted if it died) and every process that is not yet reaped
VmmProcess ── owns ──> its ends of the channel, of the report pipe and of the control socket
"""

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import signal
import socket
import sys
import termios
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mayfly.errors import GuestError, HostError, MayflyError, SnapshotError, ZygoteLostError
from mayfly.guests.cgroups import Groups
from mayfly.guests.told import told
from mayfly.guests.zygote import Zygote
from mayfly.protocol import control, report
from mayfly.protocol.report import End, Ended
from mayfly.schema import replace
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.snapshot import FILES

log = logging.getLogger(__name__)

READ_AHEAD = 64 * 1024
READ_SIZE = 8 * 1024
"""Bytes of a channel that are taken in one turn of the loop: any guest may send them as frames of
one byte of output each, which take some 10 ms.
"""
GRACE_S = 1.5
"""A vmm process ends by itself within a second of its channel's end; then it is killed."""
REAP_S = 10.0
"""A killed process that is not reaped after this long is given up (it hangs in the kernel)."""
EMPTYING_S = (0.001, 0.01, 0.1, 1.0, 5.0)
"""Between looks whether processes that were killed have left their control group."""
FLUSH_TICK_S = 0.001
"""Between two looks whether a vmm process has taken what was sent."""
ARRIVING_BUFFER = 1 << 20
"""Bytes that the channel of a machine that arrives may hold, as far as the host lets it."""
REFUSED = "the machine's process asked for a system call that its sandbox forbids, and was ended (SIGSYS)"
REFUSED_HINT = "its guest may have taken it over; if not, report this (where audit is on, `dmesg | grep type=1326` names the call)"
ANSWER_S = 10.0
"""A vmm process answers requests within this time, except for snapshots."""


@contextlib.contextmanager
def snapshot_files(folder: Path) -> Iterator[list[int]]:
    """New files in `folder`, open for writing: the vmm process may open none. Raises OSError."""
    with contextlib.ExitStack() as opened:
        descriptors = []
        for name in FILES:
            descriptors.append(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            opened.callback(os.close, descriptors[-1])
        yield descriptors


class Spawner:
    """The asyncio side of the zygote. `start` makes one; it is made at the first machine, and again
    after it has died. Each machine gets one of the control `groups`, if there are any.
    """

    def __init__(self, start: Callable[[], Zygote], groups: Groups | None = None) -> None:
        self._start = start
        self._groups = groups
        self._emptying: set[asyncio.Task[None]] = set()
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
            HostError: the zygote cannot be started, or died over this; the kernel refuses a control
                group.
        """
        self.warm_up()
        assert self._zygote is not None  # noqa: S101 (warm_up has set it)
        number = next(self._numbers)
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            try:
                channel, channel_end = socket.socketpair()
                ours.callback(channel.close)
                if config.arriving:
                    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ARRIVING_BUFFER)
                theirs.callback(channel_end.close)
                lines, lines_end = os.pipe()
                ours.callback(os.close, lines)
                theirs.callback(os.close, lines_end)
                commands, commands_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ours.callback(commands.close)
                theirs.callback(commands_end.close)
            except OSError as error:
                raise HostError(
                    f"there are no descriptors for another machine: {error.strerror}", hint="raise the limit of open files (ulimit -n)"
                ) from error
            group = []
            if self._groups is not None:
                group.append(self._groups.make(number, config))
                ours.callback(self._groups.remove, number)
                theirs.callback(os.close, group[0])
            try:
                self._zygote.spawn(number, told(config), channel_end.fileno(), lines_end, commands_end.fileno(), *group)
            except (OSError, EOFError, ZygoteLostError) as error:
                self._lost(error)
                raise HostError(f"the zygote died: {error}", hint="try again: it is started anew for the next run") from error
            ours.pop_all()
        machine = VmmProcess(number, self, channel, lines, commands)
        self._machines[number] = machine
        try:
            await asyncio.shield(machine.opened)
        except asyncio.CancelledError:
            self.stop(machine, 0)
            raise
        return machine

    def signal(self, machine: int, number: int) -> None:
        """Send a machine's process, if it still has one, a signal."""
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
        while self._emptying:
            await asyncio.wait(self._emptying)
        if self._zygote is not None:
            asyncio.get_running_loop().remove_reader(self._zygote.fileno())
            self._zygote.close()
            self._zygote = None

    def _receive(self) -> None:
        assert self._zygote is not None  # noqa: S101 (its descriptor is watched only while it is there)
        try:
            reaped = self._zygote.receive()
        except (OSError, EOFError) as error:
            self._lost(error)
            return
        self._reaped(reaped.machine, reaped.status)

    def _reaped(self, number: int, status: int) -> None:
        machine = self._machines.pop(number, None)
        if machine is not None:
            machine.refused = status == -signal.SIGSYS
            machine.reaped.set()
            if self._groups is not None and not self._groups.remove(number):
                emptying = asyncio.create_task(self._empty(self._groups, number), name=f"empty the group of machine {number}")
                self._emptying.add(emptying)
                emptying.add_done_callback(self._emptying.discard)

    async def _empty(self, groups: Groups, number: int) -> None:
        """Remove a machine's control group, in which its passt may be for a moment."""
        for wait_s in EMPTYING_S:
            await asyncio.sleep(wait_s)
            if groups.remove(number):
                return
        log.error("the control group of machine %d does not become empty", number)

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
            self._reaped(number, 0)


class VmmProcess:
    """The process of one machine. `read` and `write` are its channel; `stop` ends it.

    Attributes:
        phases: what its process has reported of its making, in seconds.
        reaped: set when its process is gone.
        reported: set when it has said that the machine is made, or has ended.
        lost: it was stopped, and its process had ended before that, without a word, and not by its
            sandbox.
    """

    def __init__(self, number: int, spawner: Spawner, channel: socket.socket, lines: int, commands: socket.socket) -> None:
        self.number = number
        self.reaped = asyncio.Event()
        self.reported = asyncio.Event()
        self.orphaned = self.refused = False
        self.lost = False
        self.stopping: asyncio.Task[Ended] | None = None
        self.phases: Mapping[str, float] = {}
        self._spawner = spawner
        self._ended = Ended(reason=End.VANISHED)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._report: asyncio.Task[None]
        self._commands = commands
        self._awaited: deque[asyncio.Future[control.Answer]] = deque()
        self.opened = asyncio.create_task(self._open(channel, lines), name=f"open machine {number}")

    async def _open(self, channel: socket.socket, report_end: int) -> None:
        """Take over the descriptors."""
        loop = asyncio.get_running_loop()
        self._commands.setblocking(False)
        loop.add_reader(self._commands, self._take_answer)
        self._reader, self._writer = await asyncio.open_connection(sock=channel, limit=READ_AHEAD)
        lines = asyncio.StreamReader(limit=report.MAX_LINE)
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(report_end, "rb", buffering=0))
        self._report = asyncio.create_task(self._follow(lines, pipe), name=f"report of machine {self.number}")

    @property
    def alive(self) -> bool:
        """Whether its process has not reported its end."""
        return not self._report.done() and self._ended.reason is End.VANISHED

    async def read(self) -> bytes:
        """The next bytes of the channel, at most READ_SIZE; empty at its end. All other tasks have
        their turn first. Nothing is read ahead beyond two times READ_AHEAD.
        """
        await asyncio.sleep(0)  # the next line does not wait while there are bytes
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

    async def flushed(self, timeout_s: float) -> bool:
        """Wait until the vmm process has taken all that was sent; false if it does not in time."""
        until = asyncio.get_running_loop().time() + timeout_s
        while self._writer.transport.get_write_buffer_size() or self._queued(termios.TIOCOUTQ):
            if asyncio.get_running_loop().time() > until:
                return False
            await asyncio.sleep(FLUSH_TICK_S)  # the kernel tells nobody when a peer has read
        return True

    async def rest(self) -> bytes:
        """What the channel still holds of a machine that stands still. Nobody may `read` now."""
        taken = bytearray()
        while True:
            reading = asyncio.ensure_future(self._reader.read(READ_SIZE))
            await asyncio.sleep(0)  # what is here already is taken in its first step
            if not reading.done() and not self._queued(termios.FIONREAD):
                reading.cancel()
                await asyncio.wait([reading])
                return bytes(taken)
            try:
                data = await reading
            except ConnectionError:
                data = b""
            if not data:
                return bytes(taken)
            taken += data

    def _queued(self, request: int) -> int:
        """Bytes that the channel's socket holds, in one direction; 0 if it is closed."""
        channel = self._writer.get_extra_info("socket")
        if channel is None or channel.fileno() < 0:
            return 0
        return int.from_bytes(fcntl.ioctl(channel.fileno(), request, bytes(4)), sys.byteorder)

    async def pause(self) -> None:
        """Have the vCPUs stand still until `resume`; what the devices hold goes on moving.

        Raises:
            MayflyError: the machine has ended, or does not answer.
        """
        await self._ask(control.Pause())

    async def resume(self) -> None:
        """Let vCPUs and devices go on; what `track` began is over.

        Raises:
            MayflyError: the machine has ended, or does not answer.
        """
        await self._ask(control.Resume())

    async def snapshot(self, folder: Path, *, go_on: bool = False, timeout_s: float) -> int:
        """Write a snapshot to new files in `folder`; the bytes of memory written.

        With `go_on` the machine goes on as it was; else it is gone when this returns.

        Raises:
            SnapshotError: it could not be written.
            MayflyError: the machine has ended, cannot be saved, or took too long.
        """
        try:
            with snapshot_files(folder) as descriptors:
                answer = await self._ask(control.Snapshot(go_on=go_on), descriptors, timeout_s)
        except OSError as error:
            raise SnapshotError(f"{folder}: {error.strerror}", hint="make room on the disk, or look at its permissions") from error
        if not isinstance(answer, control.Done):
            raise GuestError(f"the machine answered a snapshot with {answer}")
        if not go_on:
            await self.stop()
        return answer.memory_bytes

    async def comes_up(self) -> None:
        """Wait until the machine is made.

        Raises:
            MayflyError: why it was not.
        """
        await self.reported.wait()
        if not self.phases:
            raise (await self.stop()).error or GuestError("the machine ended before it was made")

    async def track(self, held: int) -> bool:
        """Get ready to send the machine to who holds the first `held` of its layers; whether it may
        run until the last round.

        Raises:
            MayflyError: the machine has ended, or cannot be sent.
        """
        answer = await self._ask(control.Track(held=held))
        return isinstance(answer, control.Tracking) and answer.live

    async def send_round(self, descriptor: int, *, last: bool) -> None:
        """Have a round written to a duplicate of `descriptor`, which is closed at its end. Before
        the `last` one vCPUs and devices stand still, until `resume`.

        Raises:
            MayflyError: the machine has ended, or is not ready for that.
        """
        await self._ask(control.Send(last=last), [descriptor])

    async def stats(self) -> control.Figures:
        """What the machine has counted so far.

        Raises:
            MayflyError: the machine has ended, or does not answer.
        """
        answer = await self._ask(control.Stats())
        if not isinstance(answer, control.Figures):
            raise GuestError(f"the machine answered a request for its figures with {answer}")
        return answer

    def pre_fault(self) -> None:
        """Have a restored machine map what its guest will touch soon. Nobody waits for it."""
        self._send(control.Prefault(), ())

    async def _ask(self, request: control.Request, descriptors: Sequence[int] = (), timeout_s: float = ANSWER_S) -> control.Answer:
        await self.opened
        try:
            async with asyncio.timeout(timeout_s):  # wait_for forgets a cancellation that comes with the answer (Python 3.11)
                return await self._send(request, descriptors)
        except TimeoutError as error:
            raise HostError(f"the machine did not answer within {timeout_s:g} s", hint="it is stopped, or this host is slow") from error
        except GuestError as error:
            raise (await self.stop()).error or error from error

    def _send(self, request: control.Request, descriptors: Sequence[int]) -> "asyncio.Future[control.Answer]":
        """Send a request; its answer, which comes after those to earlier requests."""
        answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody has to want it
        try:
            socket.send_fds(self._commands, [report.pack(request)], descriptors)
        except OSError as error:
            answer.set_exception(GuestError(f"the machine takes no requests: {error.strerror}"))
        else:
            self._awaited.append(answer)
        return answer

    def _take_answer(self) -> None:
        try:
            data = self._commands.recv(control.MESSAGE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
        elif not self._awaited:
            log.warning("machine %d answers what nobody asked", self.number)
            self._hang_up()
        else:
            _settle(self._awaited.popleft(), data)

    def _hang_up(self) -> None:
        """Close the control socket; there will be no more answers."""
        if self._commands.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._commands)
            self._commands.close()
        while self._awaited:
            _settle(self._awaited.popleft(), b"")

    async def stop(self, grace_s: float = GRACE_S) -> Ended:
        """End the machine: its channel is closed, then its process killed after `grace_s`. It is
        gone when this returns, and when whoever waits is cancelled, it goes all the same.
        """
        return await asyncio.shield(self._spawner.stop(self, grace_s))

    async def shut(self, grace_s: float) -> Ended:
        """Do what `stop` says; the spawner calls it, once."""
        await self.opened
        self._hang_up()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await asyncio.wait([self._report], timeout=grace_s)
        self.lost = self.orphaned or (self._report.done() and self._ended.reason is End.VANISHED)
        self._spawner.signal(self.number, signal.SIGKILL)
        try:
            async with asyncio.timeout(REAP_S):
                await self.reaped.wait()
                await self._report
        except TimeoutError:
            log.error("machine %d cannot be killed", self.number)
            self._report.cancel()
        self.lost = self.lost and not self.refused
        if self.refused and self._ended.error is None:
            return replace(self._ended, error=GuestError(REFUSED, hint=REFUSED_HINT))
        if self.orphaned and self._ended.error is None:
            gone = HostError("the zygote died, and the machine with it", hint="try again: it is started anew for the next run")
            return replace(self._ended, error=gone)
        return self._ended

    async def _follow(self, lines: asyncio.StreamReader, pipe: asyncio.BaseTransport) -> None:
        """Read the report to its end; what is not as it should be is as good as absent, for the vmm
        process may be in a guest's hands.
        """
        try:
            while line := await lines.readline():
                match report.decode(line):
                    case report.Running(phases=phases):
                        self.phases = phases
                        self.reported.set()
                    case Ended() as ended:
                        self._ended = ended
        except ValueError as error:
            log.warning("machine %d: bad report: %s", self.number, error)
        finally:
            self.reported.set()
            pipe.close()


def _settle(answer: "asyncio.Future[control.Answer]", data: bytes) -> None:
    """Give it the answer in a message; empty is the machine's end."""
    if answer.done():  # whoever waited for it has gone
        return
    try:
        answer.set_result(control.accept(data))
    except MayflyError as error:
        answer.set_exception(error)
