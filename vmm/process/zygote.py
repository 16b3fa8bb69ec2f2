"""The zygote: a warm, single-threaded process that forks one vmm process per machine, and its
client.

It holds no KVM descriptor (KVM binds a VM to the address space that made it), and has neither
asyncio nor aiohttp. The two sides talk over a SOCK_SEQPACKET pair, one JSON object a message:

    client -> zygote   {"spawn": machine, "config": JSON text} with two descriptors (channel,
    report);
                       {"signal": number, "machine": machine}
    zygote -> client   {"forked": machine, "pid": n}; {"reaped": machine, "status": n}

When either end of the pair is closed, or the client dies, the zygote ends; when the zygote ends, so
do its machines.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import mayfly
from mayfly.errors import HostError
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.kvm import prctl

MESSAGE_LIMIT = 64 * 1024
CONTROL_FD = 3
"""Of a zygote that is another Python, its end of the pair."""
START = "import sys; from mayfly.vmm.process.zygote import main; main(int(sys.argv[1]), int(sys.argv[2]))"


class Forked(NamedTuple):
    """The vmm process of `machine` exists."""

    machine: int
    pid: int


class Reaped(NamedTuple):
    """The vmm process of `machine` is gone; `status` is its exit code, or minus the signal that
    ended it.
    """

    machine: int
    status: int


class Zygote:
    """The client's side. Owns the zygote process. No method waits for long; `receive` waits for a
    message.
    """

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid, self._control = pid, control

    @classmethod
    def start(cls) -> Self:
        """Start a zygote. It is ready when the first `Forked` arrives; requests may be sent before.

        Raises:
            HostError: it cannot be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # -P: a folder named like one of our packages in the working directory must not be
            # imported.
            command = [sys.executable, "-P", "-c", START, str(CONTROL_FD), str(os.getpid())]
            path = os.pathsep.join(filter(None, [str(Path(mayfly.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
            files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL_FD)]
            try:
                pid = os.posix_spawn(sys.executable, command, {**os.environ, "PYTHONPATH": path}, file_actions=files, setsid=True)
            except OSError as error:
                ours.close()
                raise HostError(f"the zygote cannot be started: {error}", hint="see `mayfly doctor`") from error
        return cls(pid, ours)

    @classmethod
    def fork(cls) -> Self:
        """Start a zygote as a copy of this process, which must have a single thread: quicker than a
        new Python that imports anew.
        """
        _load()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ours.close()
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_RDWR), 0)
                main(theirs.detach(), client)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        return cls(pid, ours)

    def fileno(self) -> int:
        """Readable when `receive` has something."""
        return self._control.fileno()

    def spawn(self, machine: int, config: MachineConfig, channel: int, report: int) -> None:
        """Ask for a machine: `Forked` and, in the end, `Reaped` will come for it.

        The two descriptors are duplicated into the vmm process; the caller keeps and closes its
        own.

        Raises:
            HostError: the zygote is gone.
        """
        self._send({"spawn": machine, "config": config.to_json()}, [channel, report])

    def signal(self, machine: int, number: int) -> None:
        """Send the vmm process of `machine` a signal, SIGKILL or one of mayfly.vmm.config; nothing
        happens if it is gone already.
        """
        with contextlib.suppress(HostError):
            self._send({"signal": number, "machine": machine}, [])

    def _send(self, message: dict[str, Any], fds: list[int]) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], fds)
        except OSError as error:
            raise HostError(f"the zygote is gone: {error.strerror}", hint="it is started again with the next run") from error

    def receive(self) -> Forked | Reaped:
        """The next message.

        Raises:
            EOFError: the zygote is gone, and all its machines with it.
        """
        try:
            data = self._control.recv(MESSAGE_LIMIT)
        except ConnectionError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        message = json.loads(data)
        if "forked" in message:
            return Forked(machine=message["forked"], pid=message["pid"])
        return Reaped(machine=message["reaped"], status=message["status"])

    def close(self) -> None:
        """End the zygote and its machines, and wait for it."""
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def main(control_fd: int, client: int) -> None:
    """The zygote process: fork, reap, report, until the client is gone."""
    run_process = _load()
    prctl.end_with_parent(signal.SIGKILL)
    if os.getppid() != client:
        return
    with socket.socket(fileno=control_fd) as control:
        _Server(control, run_process).serve()
    signal.set_wakeup_fd(-1)


def _load() -> Callable[[MachineConfig, socket.socket, int, float], None]:
    """Import what machines need: only processes that fork them do that."""
    from mayfly.vmm.process.child import run_process

    return run_process


class _Server:
    def __init__(self, control: socket.socket, run_process: Callable[[MachineConfig, socket.socket, int, float], None]) -> None:
        self._control = control
        self._run_process = run_process
        self._machines: dict[int, int] = {}
        self._wakeup, wakeup = socket.socketpair()
        for end in (self._wakeup, wakeup):
            end.setblocking(False)
        self._wakeup_writer = wakeup
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        gc.enable()  # a client that forks this may do without; machines may run for long
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wakeup, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._wakeup.fileno() in ready:
                self._wakeup.recv(4096)
                self._reap()
            if self._control.fileno() in ready and not self._take_request():
                return

    def _take_request(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, MESSAGE_LIMIT, 2)
        except ConnectionError:  # the client went without having read everything
            return False
        if not data:
            return False
        message = json.loads(data)
        if "signal" in message:
            for pid, machine in self._machines.items():
                if machine == message["machine"]:
                    os.kill(pid, message["signal"])
            return True
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            self._become_machine(message["config"], fds, began)
        for fd in fds:
            os.close(fd)
        self._machines[pid] = message["spawn"]
        self._say({"forked": message["spawn"], "pid": pid})
        return True

    def _become_machine(self, config: str, fds: list[int], began: float) -> None:
        """In the child: everything up to its exit."""
        status = 1
        try:
            prctl.end_with_parent(signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self._control, self._wakeup, self._wakeup_writer):
                end.close()
            channel, report = fds
            self._run_process(MachineConfig.from_json(config), socket.socket(fileno=channel), report, began)
            status = 0
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while self._machines:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._say({"reaped": self._machines.pop(pid), "status": os.waitstatus_to_exitcode(status)})

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the end of the client shows at the next receive
            self._control.send(json.dumps(message).encode())
