"""Starts fake agents quickly, as the zygote starts machines: a process that has loaded all that
they need forks one for each message that comes over its socket. They end with it, and it ends with
whoever holds the other end of the socket.
"""

import atexit
import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

from mayfly.errors import HostError
from mayfly.protocol.report import End, Ended, encode, pack
from mayfly.protocol.spawning import NOT_FORKED, Reaped
from mayfly.vmm.config import MachineConfig
from tests.kit.api_fakes import MARKER, ROOT, FakeZygote

MESSAGE = 8192


def begin_nursery(control: socket.socket) -> subprocess.Popen[bytes]:
    """A nursery in a process of its own, whose end of the socket that is."""
    with control:
        command = [sys.executable, "-m", "tests.kit.fake_nursery", str(control.fileno())]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, pass_fds=[control.fileno()], env=env, cwd=ROOT, start_new_session=True)


@functools.cache
def mother() -> socket.socket:
    """To a nursery that forks others, as long as this process is there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = begin_nursery(theirs)

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def nursed() -> "ForkingZygote":
    """A zygote that has nothing to wait for when it begins, and whose machines have not either."""
    return ForkingZygote(is_forked=True)


class ForkingZygote(FakeZygote):
    """A zygote whose machines are forks of a nursery, which has a process of its own, or
    `is_forked`.
    """

    def __init__(self, fault: str = "", executable: Path | None = None, *, is_forked: bool = False) -> None:
        super().__init__(fault, executable)
        self._talk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._nursery: subprocess.Popen[bytes] | None = None
        if is_forked:
            with theirs:
                socket.send_fds(mother(), [json.dumps({"nursery": True}).encode()], [theirs.fileno()])
        else:
            self._nursery = begin_nursery(theirs)
        self._hearing = threading.Thread(target=self._hear)
        self._hearing.start()

    def spawn(self, machine: int, config: MachineConfig, channel: int, report: int, control: int, *group: int) -> None:
        if self._control.fileno() < 0 or self._server.fileno() < 0:
            raise BrokenPipeError("the zygote is dead")
        restore = " ".join(layer.folder for layer in config.restore)
        wanted = {"machine": machine, "marker": MARKER, "fault": self.fault, "restore": restore}
        self.configs.append(config)
        socket.send_fds(self._talk, [json.dumps(wanted).encode()], [channel, report, control])

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._talk.recv(MESSAGE):
                self._server.send(pack(Reaped(**json.loads(data))))
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # the nursery is gone

    def kill(self, machine: int) -> None:
        with contextlib.suppress(OSError):
            self._talk.send(json.dumps({"kill": machine}).encode())

    def close(self) -> None:
        self._talk.shutdown(socket.SHUT_RDWR)
        if self._nursery is not None:
            self._nursery.wait()
        self._hearing.join()
        self._talk.close()
        super().close()


def kill_session(session: int) -> None:
    """Kill an agent and all that it has started."""
    with contextlib.suppress(OSError):
        os.kill(session, signal.SIGKILL)
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)


class Nursery:
    """The process of a nursery."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.ready = selectors.DefaultSelector()
        self.by_machine: dict[int, int] = {}
        self.watched: dict[int, tuple[int, int]] = {}

    def serve(self) -> None:
        """Fork agents until the socket is at its end."""
        self.ready.register(self.control, selectors.EVENT_READ)
        while True:
            for key, _ in self.ready.select():
                if key.fd != self.control.fileno():
                    self.reap(key.fd)
                    continue
                data, fds, _, _ = socket.recv_fds(self.control, MESSAGE, 3)
                if not data:
                    for process in self.by_machine.values():
                        kill_session(process)
                    return
                wanted = json.loads(data)
                if "kill" in wanted:
                    if wanted["kill"] in self.by_machine:
                        kill_session(self.by_machine[wanted["kill"]])
                elif "nursery" in wanted:
                    self.fork_nursery(fds[0])
                else:
                    try:
                        self.fork(wanted, fds)
                    except (OSError, MemoryError) as error:
                        self.refuse(int(wanted["machine"]), fds, error)

    def fork_nursery(self, control: int) -> None:
        """Fork one like this, whose end of its socket that is."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
        if os.fork():
            os.close(control)
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        self.ready.close()
        self.control.close()
        try:
            Nursery(socket.socket(fileno=control)).serve()
        finally:
            os._exit(0)

    def refuse(self, machine: int, fds: list[int], error: Exception) -> None:
        """As the zygote does where it cannot fork."""
        with contextlib.suppress(OSError):
            os.write(fds[1], encode(Ended(reason=End.ERROR, error=HostError(f"no process for the machine: {error}"))))
        for fd in fds:
            os.close(fd)
        self.control.send(json.dumps({"machine": machine, "status": NOT_FORKED}).encode())

    def fork(self, wanted: dict[str, str], fds: list[int]) -> None:
        """Fork an agent."""
        machine = int(wanted["machine"])
        process = os.fork()
        if process == 0:
            from tests.kit import fake_agent

            try:
                os.setsid()
                self.ready.close()
                self.control.close()
                for fd in self.watched:
                    os.close(fd)
                os.environ["FAKE_RESTORE"] = wanted["restore"]
                fake_agent.MARKER = wanted["marker"]
                fake_agent.main(fds[0], fds[1], fds[2], wanted["fault"])
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(0)
        for fd in fds:
            os.close(fd)
        watched = os.pidfd_open(process)
        self.by_machine[machine] = process
        self.watched[watched] = machine, process
        self.ready.register(watched, selectors.EVENT_READ)

    def reap(self, watched: int) -> None:
        """An agent has ended."""
        machine, process = self.watched.pop(watched)
        self.ready.unregister(watched)
        os.close(watched)
        del self.by_machine[machine]
        kill_session(process)  # a machine's programs end with it
        _, status = os.waitpid(process, 0)
        with contextlib.suppress(OSError):
            self.control.send(json.dumps({"machine": machine, "status": os.waitstatus_to_exitcode(status)}).encode())


if __name__ == "__main__":
    from tests.kit import fake_agent  # noqa: F401 (before the first fork)

    Nursery(socket.socket(fileno=int(sys.argv[1]))).serve()
