"""The agent behind a channel, for tests: frames in, frames out, with a deadline on every wait; and
as an ordinary process.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, TypeVar

import pytest

from mayfly.host.config import DEFAULT_EMULATED_FACTOR
from mayfly.protocol import frames as p
from mayfly.vmm import arch
from tests.kit.agent_groups import remove_left

ROOT = Path(__file__).parent.parent.parent
PATH_ENV = (("PATH", "/usr/local/bin:/usr/bin:/bin"),)
UID = 61_184 + os.getpid() % 4_096
"""Whom steps run as when the tests are root's: nobody else's number, not that of tests that run
beside these either, since a step may kill all that its user runs.
"""
FACTOR = DEFAULT_EMULATED_FACTOR if arch.cpu.host_is_emulated() else 1.0
"""How much longer everything may take on this host, as the server's limits have it."""
PATIENCE_S = 30.0 * FACTOR
_M = TypeVar("_M", bound=p.Message)


def build_agent() -> Path:
    """Build the agent if its sources have changed; the path of the executable."""
    subprocess.run([ROOT / "agent" / "build.sh"], check=True, stdout=subprocess.DEVNULL)
    return ROOT / "imagegen" / "agents" / f"mayfly-agent.{os.uname().machine}"


def shell(script: str, name: str = "run", **limits: object) -> p.Step:
    """A step that runs a shell script."""
    return p.Step(name, ("sh", "-c", script), **{"wall_ms": int(20_000 * FACTOR), **limits})  # type: ignore[arg-type]


class AgentChannel:
    """The host's end of an agent's channel."""

    patience_s = PATIENCE_S

    def __init__(self, channel: socket.socket) -> None:
        self.socket = channel
        self.reader = p.FrameReader(p.FROM_AGENT)
        self.waiting: list[p.Frame] = []

    def send(self, *messages: p.Message, run: int = 1) -> None:
        """Send messages of one run."""
        self.send_bytes(b"".join(p.encode_frame(message, run) for message in messages))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.settimeout(self.patience_s)
        self.socket.sendall(data)

    def receive(self) -> p.Frame:
        """The next frame; EOFError when the agent has closed its end, TimeoutError when it is not
        patient any more.
        """
        end = time.monotonic() + self.patience_s
        while not self.waiting:
            self.socket.settimeout(max(0.001, end - time.monotonic()))
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.waiting += self.reader.feed(data)
            assert not self.reader.dropped
        return self.waiting.pop(0)

    def expect(self, kind: type[_M], run: int = 1) -> _M:
        """The next frame, which must be of this kind and run."""
        frame = self.receive()
        assert frame.run == run, frame
        assert isinstance(frame.message, kind), frame
        return frame.message

    def until(self, kind: type[p.Message]) -> Iterator[p.Message]:
        """All messages up to the first one of this kind, and that."""
        while True:
            message = self.receive().message
            yield message
            if isinstance(message, kind):
                return

    def start(self, *steps: p.Step, files: Sequence[tuple[str, bytes]] = (), run: int = 1, mode: int = 0o644) -> None:
        """Send START, the files and BEGIN."""
        self.send(p.Start(PATH_ENV, steps, tuple(p.FileEntry(path, mode, len(data)) for path, data in files)), run=run)
        for index, (_, data) in enumerate(files):
            for at in range(0, len(data), p.MAX_FILE_CHUNK):
                self.send(p.File(index, at, data[at : at + p.MAX_FILE_CHUNK]), run=run)
        self.send(p.Begin(), run=run)

    def result(self) -> "Result":
        """What the run does up to its DONE."""
        return Result(list(self.until(p.Done)))


class AgentProcess(AgentChannel):
    """A running agent and our end of its channel."""

    def __init__(self, executable: Path, work: Path, prefix: Sequence[str] = (), *, uid: int = UID) -> None:
        work.mkdir(parents=True, exist_ok=True)
        work.chmod(0o755)
        self.work = work
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        with theirs:
            command = [*prefix, str(executable), "--fd", str(theirs.fileno()), "--work", str(work), "--uid", str(uid)]
            remove_left()
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        try:
            assert self.process.wait(PATIENCE_S) == 0
        finally:
            self.process.kill()
            self.process.wait()


class Result:
    """The messages of one run, sorted."""

    def __init__(self, messages: list[p.Message]) -> None:
        self.messages = messages
        self.stdout = b"".join(message.data for message in messages if isinstance(message, p.Stdout))
        self.stderr = b"".join(message.data for message in messages if isinstance(message, p.Stderr))
        self.exits = [message for message in messages if isinstance(message, p.Exit)]
        self.stages = [message.name for message in messages if isinstance(message, p.Stage)]
        self.errors = [message for message in messages if isinstance(message, p.Error)]

    @property
    def exit(self) -> p.Exit:
        """The only EXIT."""
        assert len(self.exits) == 1, self.messages
        return self.exits[0]


def processes_of(uid: int = UID) -> list[str]:
    """The command lines of a user's living processes."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and folder.stat().st_uid == uid and "State:\tZ" not in (folder / "status").read_text():
                found.append((folder / "cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture(scope="session")
def executable() -> Path:
    return build_agent()


WITHOUT_CGROUPS = ("unshare", "-m", "sh", "-c", 'umount -t cgroup2 -a; exec "$@"', "sh")


# Only root can hide the cgroups; others get none anyway.
@pytest.fixture(params=["cgroups", "no cgroups"] if os.geteuid() == 0 else ["as the host has it"])
def agent(request: pytest.FixtureRequest, executable: Path) -> Iterator[AgentProcess]:
    """An agent that has said HELLO; with cgroups as far as this host gives them, and as where it
    gives none.
    """
    with greeted(executable, WITHOUT_CGROUPS if request.param == "no cgroups" else ()) as process:
        yield process


@contextlib.contextmanager
def greeted(executable: Path, prefix: Sequence[str] = (), *, uid: int = UID) -> Iterator[AgentProcess]:
    """An agent that has said HELLO, and whose steps run as `uid`."""
    # Not pytest's own folder: it is private, again and again whenever another pytest starts, and
    # steps run as another user.
    with tempfile.TemporaryDirectory() as folder, AgentProcess(executable, Path(folder) / "work", prefix, uid=uid) as process:
        Path(folder).chmod(0o755)
        hello = process.expect(p.Hello, run=0)
        assert (hello.version, hello.arch, hello.end_marker) == (p.PROTOCOL_VERSION, os.uname().machine, "")
        assert hello.boot_us > 0
        yield process
