"""The zygote: a warm, single-threaded process that forks one vmm process per machine.

It holds no KVM descriptor (KVM binds a VM to the address space that made it), and has neither
asyncio nor aiohttp. Its client is `guests/zygote.py`.

A machine that cannot be forked is reaped all the same, and its report says why. When
either end of the pair is closed, or the client dies, the zygote ends; when the zygote ends, so do
its machines.
"""

import contextlib
import errno
import gc
import os
import resource
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from mayfly.errors import HostError, MayflyError
from mayfly.protocol.report import End, Ended, pack, unpack
from mayfly.protocol.spawning import DESCRIPTORS, GROUPS, MESSAGE_LIMIT, NOBODY, NOT_FORKED, Reaped, Signal, Spawn
from mayfly.schema import msgspec
from mayfly.vmm.kvm.prctl import prctl
from mayfly.vmm.kvm.system import fork
from mayfly.vmm.process.spares import Ends, Spares
from mayfly.vmm.process.turns import Turns
from mayfly.vmm.sandbox.descriptors import STANDARD_STREAMS, close_others
from mayfly.vmm.signals import DEFAULT, handle

if TYPE_CHECKING:
    from mayfly.vmm.sandbox.namespaces import Cell

OOM_SCORE = 500
"""Of a zygote and the machines that it forks: where memory runs out, they end before their server
(proc_pid_oom_score_adj(5)). Of the two the machines do, which have more memory.
"""
LIMITS = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 1024}
"""Of each of its processes; a machine of 64 virtual CPUs has some 300 descriptors, and its passt
two for each connection.
"""
MOST_SPARES = 16
"""Machines that stand by, each with some 4 MiB."""
AGAIN_S = 1.0
"""Between the start of a machine that tries to make lacking namespaces, and the next that does."""


def main(control_fd: int, client: int, *, spares: int = MOST_SPARES) -> None:
    """The zygote process: fork, reap, report, until the client is gone. At most so many `spares`
    stand by.
    """
    from mayfly.vmm.sandbox.namespaces import Making  # not in its client, where it would take 2 ms

    making = Making()
    load()
    prctl("PR_SET_PDEATHSIG", signal.SIGKILL)
    if os.getppid() != client:
        return
    # What the client inherited without close-on-exec, or had open when it forked this process.
    cell = making.finish()
    close_others([*STANDARD_STREAMS, control_fd, *cell.descriptors.values()])
    confine()
    with socket.socket(fileno=control_fd) as control:
        _Server(control, cell, spares).serve()
    signal.set_wakeup_fd(-1)


def confine() -> None:
    """Give up, for this process and all that it forks, what no machine needs. Nobody else of this
    user may trace it, which would be as good as being it.
    """
    with contextlib.suppress(OSError):  # its client is to end earlier still
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)  # pathlib would take 120 KiB in each machine
        os.write(score, str(OOM_SCORE).encode())
        os.close(score)
    for limit, most in LIMITS.items():
        _, usual = resource.getrlimit(limit)
        most = most if usual == resource.RLIM_INFINITY else min(most, usual)
        resource.setrlimit(limit, (most, most))
    prctl("PR_SET_NO_NEW_PRIVS", 1)
    prctl("PR_SET_DUMPABLE", 0)


def load() -> None:
    """Import what machines need, and have ready what all of them make alike, decoders and the
    processor that guests see: only processes that fork them do that.
    """
    from mayfly.vmm.arch import state
    from mayfly.vmm.process.child import DECODED
    from mayfly.vmm.sandbox import landlock, seccomp

    for kind in DECODED:
        msgspec.json.Decoder(kind)
    with contextlib.suppress(MayflyError):  # machines will say why there is no KVM
        state.prepare()
    with contextlib.suppress(OSError):
        landlock.abi()
    seccomp.first(connects=False)
    seccomp.second()


class _Server:
    def __init__(self, control: socket.socket, cell: "Cell", most_spares: int) -> None:
        self._control, self._cell = control, cell
        self._made_at = time.monotonic()
        self._machines: dict[int, int] = {}
        self._turns = Turns()
        self._spares = Spares(most_spares)
        self._unsaid: deque[bytes] = deque()
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        gc.enable()  # a client that forks this may do without; machines may run for long
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        while True:
            poller.register(self._control, select.POLLIN | (select.POLLOUT if self._unsaid else 0))
            ready = dict(poller.poll(self._spares.wait_ms))
            if not ready:
                self._spares.make(self._fork_spare, may_begin=self._turns.one_is_free())
            self._spares.look()
            if self._wakeup.fileno() in ready:
                self._wakeup.recv(4096)
                self._reap()
            if self._control.fileno() in ready:
                self._say()
                if ready[self._control.fileno()] & ~select.POLLOUT and not self._take_request():
                    self._end_spares()
                    return

    def _take_request(self) -> bool:
        """Carry out one message; errors concern only its machine. False: the client is gone."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._control, MESSAGE_LIMIT, DESCRIPTORS + GROUPS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:  # the client went without having read everything
            return False
        except OSError:  # no memory for it now; it is still there
            return True
        if not data:
            return False
        machine = NOBODY
        try:
            message: Spawn | Signal = unpack(Spawn | Signal, data)
            if isinstance(message, Signal):
                self._signal(message)
            else:
                machine = message.machine
                if flags & socket.MSG_CTRUNC:  # there was no room in this process's table
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                self._start(message, fds)
        except (OSError, MemoryError) as error:
            hint = "raise this service's limits of processes, memory and descriptors, or run fewer machines at a time"
            self._refuse(machine, fds, HostError(f"no process for the machine: {error}", hint=hint))
        except (ValueError, TypeError, LookupError) as error:
            self._refuse(machine, fds, HostError(f"the zygote was asked for something impossible: {error!r}", hint="report this"))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _signal(self, message: Signal) -> None:
        for pid, machine in self._machines.items():
            if machine == message.machine:
                with contextlib.suppress(OSError):
                    os.kill(pid, message.number)

    def _start(self, message: Spawn, fds: list[int]) -> None:
        from mayfly.vmm.process.child import run_process

        began = time.monotonic()
        if self._cell.lacking and began - self._made_at >= AGAIN_S:
            self._complete_cell()
        config, ends = bytes(message.config), Ends(*fds)
        pid = self._spares.hand_over(config, ends, began)
        if pid is None:

            def live() -> None:
                run_process(config, ends, began, self._cell, self._turns.of(message.machine))

            try:
                pid = self._fork(live)
            except OSError:
                if not self._end_spares():
                    raise
                pid = self._fork(live)  # which had what it lacked
        self._machines[pid] = message.machine

    def _fork_spare(self, config: bytes, link: socket.socket) -> int:
        from mayfly.vmm.process.child import run_spare

        return self._fork(lambda: run_spare(config, link, self._cell, self._turns.of(os.getpid())))

    def _end_spares(self) -> bool:
        """End and reap all; whether there was one."""
        ended = self._spares.drop_all()
        for pid in ended:
            os.waitpid(pid, 0)
        return bool(ended)

    def _fork(self, live: Callable[[], None]) -> int:
        """Fork a vmm process, which does this and exits; its number."""
        pid = fork()
        if pid:
            return pid
        status = 1
        try:
            prctl("PR_SET_PDEATHSIG", signal.SIGKILL)
            prctl("PR_SET_DUMPABLE", 1)  # so that its files in /proc are its user's, until it drops its privileges
            signal.set_wakeup_fd(-1)
            handle(signal.SIGCHLD, DEFAULT)
            live()  # which closes the descriptors
            status = 0
        finally:
            os._exit(status)

    def _complete_cell(self) -> None:
        """Make the cell again: what it lacks may have been lacking for a moment, as processes and
        memory are. Machines that run stay in the old one.
        """
        from mayfly.vmm.sandbox.namespaces import Making

        cell = Making().finish()
        if len(cell.lacking) < len(self._cell.lacking):
            cell, self._cell = self._cell, cell
            self._spares.drop_all()  # they are in the old one
        cell.close()
        self._made_at = time.monotonic()

    def _refuse(self, machine: int, fds: list[int], error: MayflyError) -> None:
        from mayfly.vmm.process.child import say

        if len(fds) >= DESCRIPTORS:
            with contextlib.suppress(OSError):
                say(fds[1], Ended(reason=End.ERROR, error=error))
        self._say(Reaped(machine=machine, status=NOT_FORKED))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._machines:
                self._say(Reaped(machine=self._machines.pop(pid), status=os.waitstatus_to_exitcode(status)))
            else:
                self._spares.forget(pid)

    def _say(self, message: Reaped | None = None) -> None:
        """Send what is unsaid, and `message` behind it; what finds no room waits until it does."""
        if message is not None:
            self._unsaid.append(pack(message))
        try:
            while self._unsaid:
                self._control.send(self._unsaid[0], socket.MSG_DONTWAIT)
                self._unsaid.popleft()
        except ConnectionError:  # the end of the client shows at the next receive
            self._unsaid.clear()
        except OSError:  # no room, or no memory, now
            pass
