"""The client's side of the zygote (`vmm/process/zygote.py`), which forks vmm processes."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import mayfly
from mayfly.errors import ConfigError, HostError, ZygoteLostError
from mayfly.protocol.report import pack, unpack
from mayfly.protocol.spawning import MESSAGE_LIMIT, Reaped, Signal, Spawn
from mayfly.schema import msgspec
from mayfly.vmm.config import MachineConfig
from mayfly.vmm.process.zygote import load, main

CONTROL_FD = 3  # Of a zygote that is another Python, its end of the pair
START = "import sys; from mayfly.vmm.process.zygote import main; main(int(sys.argv[1]), int(sys.argv[2]))"
NEEDED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME")
"""Of its environment, which its machines can read: no key or password that the server was given."""


@contextlib.contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end and the zygote's, for starting it. The client's stays open if that works."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as failed:
            failed.callback(ours.close)
            yield ours, theirs
            failed.pop_all()
    except OSError as error:
        raise HostError(f"the zygote cannot be started: {error}", hint="see `mayfly doctor`") from error


class Zygote:
    """The client's side, which owns the zygote process. Only `receive` waits for long."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid, self._control = pid, control

    @classmethod
    def start(cls) -> Self:
        """Start a zygote; requests may be sent at once. Raises HostError."""
        # -P: a folder named like one of our packages in the working directory must not be imported.
        command = [sys.executable, "-P", "-c", START, str(CONTROL_FD), str(os.getpid())]
        path = os.pathsep.join(filter(None, [str(Path(mayfly.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        with _pair() as (ours, theirs):
            files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0), (os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL_FD)]
            environment = {name: os.environ[name] for name in NEEDED if name in os.environ} | {"PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"}
            pid = os.posix_spawn(sys.executable, command, environment, file_actions=files, setsid=True)
        return cls(pid, ours)

    @classmethod
    def fork(cls) -> Self:
        """Start a zygote as a copy of this single-threaded process, which saves the imports. It has
        no spares: such a process starts few machines, and ends soon.
        """
        load()
        client = os.getpid()
        with _pair() as (ours, theirs):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    ours.close()
                    os.setsid()
                    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
                    main(theirs.detach(), client, spares=0)
                    status = 0
                finally:
                    os._exit(status)
        return cls(pid, ours)

    def fileno(self) -> int:
        """Readable when `receive` has something."""
        return self._control.fileno()

    def spawn(self, machine: int, config: MachineConfig, channel: int, report: int, control: int, *group: int) -> None:
        """Ask for a machine, by a positive number: `Reaped` will come for it. Its process enters
        the control `group`, if there is one.

        The descriptors are duplicated into the vmm process; the caller keeps and closes its own.
        Raises ConfigError: it is too large. ZygoteLostError: the zygote is gone. HostError: it
        cannot be asked now; no other machine is affected.
        """
        self._send(Spawn(machine=machine, config=msgspec.Raw(msgspec.json.encode(config))), [channel, report, control, *group])

    def signal(self, machine: int, number: int) -> None:
        """Send the vmm process of `machine` a signal; nothing happens if it is gone already."""
        with contextlib.suppress(HostError):
            self._send(Signal(machine=machine, number=number), [])

    def _send(self, message: Spawn | Signal, fds: list[int]) -> None:
        data = pack(message)
        if len(data) > MESSAGE_LIMIT:
            raise ConfigError(f"the machine's configuration has {len(data)} bytes; {MESSAGE_LIMIT} is the most", hint="shorten it")
        try:
            socket.send_fds(self._control, [data], fds)
        except ConnectionError as error:
            raise ZygoteLostError(f"the zygote is gone: {error.strerror}", hint="it is started again with the next run") from error
        except OSError as error:
            raise HostError(f"the zygote cannot be asked for a machine: {error.strerror}", hint="try again when less is running") from error

    def receive(self) -> Reaped:
        """The next message. Raises EOFError: the zygote is gone, and all its machines with it."""
        try:
            data = self._control.recv(MESSAGE_LIMIT)
        except ConnectionError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        reaped: Reaped = unpack(Reaped, data)
        return reaped

    def close(self) -> None:
        """End the zygote and its machines, and wait for it."""
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
