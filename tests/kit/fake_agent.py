"""An agent and its vmm process in one ordinary Python process:
`fake_agent.py CHANNEL_FD REPORT_FD CONTROL_FD END_MARKER FAULT`.

It runs the steps as plain programs in a temporary folder that stands for /work, with wall clock,
output limit and input against credit. FAULT is empty or names a way to misbehave. A function is not
run but played: it answers each request with the request, or does what the payload says (`played`).
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import pty
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mayfly.errors import ConfigError, NetworkError, SnapshotError
from mayfly.protocol import frames as p
from mayfly.protocol.control import Answer, Done, Figures, Pause, Request, Resume, Send, Snapshot, Stats, Track, Tracking
from mayfly.protocol.pages import Head, Kind
from mayfly.protocol.report import End, Ended, Line, Running, encode
from mayfly.units import PAGE
from mayfly.vmm.process.requests import answer_next
from mayfly.vmm.snapshot import STATE
from tests.kit.agent_groups import folder

CREDIT = 32 * 1024
ERRORS = {
    "vmm-error": ConfigError("no such user", hint="name another"),
    "no-tap": NetworkError("there is no tap", hint="make one"),
}
"""What the vmm process says of itself with these faults."""
VEOF = b"\x04"
"""What a user types at a terminal to end their input."""
PHASES = {"process": 0.001, "objects": 0.002}


class FakeAgent:
    def __init__(self, channel: socket.socket, fault: str, work: Path) -> None:
        self.channel, self.fault = channel, fault
        self.lock = threading.Lock()
        self.run = 0
        self.network = ""
        self.start = p.Start((), (), ())
        self.stdin: queue.Queue[bytes] = queue.Queue()
        self.child: subprocess.Popen[bytes] | None = None
        self.terminal = -1
        self.requests: queue.Queue[p.Request] = queue.Queue()
        self.body = b""
        self.loaded: int | None = None
        self.products = work / "products"
        self.work = work / "work"
        self.work.mkdir()
        if restored := os.environ.get("FAKE_RESTORE"):
            saved = json.loads(Path(restored.split()[-1], STATE).read_text())
            if saved["work"]:
                shutil.copytree(Path(saved["work"]) / "work", self.work, dirs_exist_ok=True, symlinks=True)
                self.start = p.Start((), (), (), keep=True)
            if saved["loaded"] is not None:
                self.run, self.loaded = 1, saved["loaded"]
                threading.Thread(target=self.go_on, args=(saved["loaded"],), daemon=True).start()

    def send(self, message: p.Message, run: int | None = None) -> None:
        with self.lock, contextlib.suppress(OSError):
            self.channel.sendall(p.encode_frame(message, self.run if run is None else run))

    def serve(self) -> None:
        marker = "0" * 64 if self.fault == "marker" else MARKER
        arch = "vax" if self.fault == "arch" else platform.machine()
        if self.fault == "mute":
            time.sleep(60)
        if self.fault in ("still-born", "no-tap"):
            return
        if self.fault == "incomplete":
            self.send(p.Error(p.ErrorCode.INCOMPLETE_ROOT, "no end marker"), run=0)
        frames = p.FrameReader(p.FROM_HOST)
        self.hello = p.Hello(99 if self.fault == "version" else p.PROTOCOL_VERSION, "fake", arch, 1234, marker)
        self.channel.sendall(b"console noise\xc0\xc0garbage\xc0")
        if not os.environ.get("FAKE_RESTORE"):
            self.send(self.hello, run=0)
        while data := self.channel.recv(65536):
            for frame in frames.feed(data):
                self.take(frame)
        if self.child is not None:
            self.child.kill()

    def take(self, frame: p.Frame) -> None:
        match frame.message:
            case p.Resumed():
                self.network = frame.message.network or self.network
                self.send(self.hello, run=0)
            case p.Moved(network=network):
                self.network = network or self.network
            case p.Start() as start:
                if start.from_products and self.start.keep:
                    shutil.rmtree(self.products, ignore_errors=True)
                    self.work.rename(self.products)
                self.run, self.start = frame.run, start
                shutil.rmtree(self.work, ignore_errors=True)
                if start.from_products:
                    shutil.copytree(self.products, self.work, symlinks=True)
                else:
                    self.work.mkdir()
                for entry in start.files:
                    (self.work / entry.path).parent.mkdir(parents=True, exist_ok=True)
                    (self.work / entry.path).write_bytes(b"")
            case p.File(index, offset, data):
                with (self.work / self.start.files[index].path).open("r+b") as file:
                    file.seek(offset)
                    file.write(data)
            case p.Begin():
                threading.Thread(target=self.steps, daemon=True).start()
            case p.Collect(patterns):
                self.collect(patterns)
            case p.Stdin(data):
                self.stdin.put(data)
            case p.StdinEof():
                self.stdin.put(b"")
            case p.Signal(number) if self.child is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.child.pid, number)
            case p.Resize(columns, rows) if self.terminal >= 0:
                self.resize(columns, rows)
            case p.Request(size=size, data=data) as request:
                self.body += data
                if len(self.body) == size:
                    self.requests.put(dataclasses.replace(request, data=self.body))
                    self.body = b""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def collect(self, patterns: Sequence[str]) -> None:
        found = {path for pattern in patterns for path in self.work.glob(pattern.removeprefix("/work/")) if path.is_file()}
        for index, path in enumerate(sorted(found)):
            name = f"/work/../{path.name}" if self.fault == "escape" else f"/work/{path.relative_to(self.work)}"
            head = p.FileEntry(name, path.stat().st_mode, path.stat().st_size)
            self.send(p.Collected(index, head, ends=True, last=False, data=path.read_bytes()))
        self.send(p.Collected(len(found), None, ends=False, last=True, data=b""))

    def steps(self) -> None:
        if self.fault == "refuse":
            self.send(p.Error(p.ErrorCode.START_REFUSED, "no reason"))
            return
        if self.fault == "disorder":
            self.send(p.Stdout(b"too early"))
            return
        for index, step in enumerate(self.start.steps):
            result = self.function(index, step) if step.function else self.step(index, step)
            self.send(result)
            if result.code or result.limit or result.how:
                break
        self.send(p.Done())

    def step(self, index: int, step: p.Step) -> p.Exit:
        began = time.monotonic()
        self.send(p.Stage(index, step.name))
        zeroing = step.argv == ("/init", "--zero-memory")  # what only a machine's agent can do
        argv = ["true"] if zeroing else list(step.argv)
        env = {"PATH": os.environ["PATH"], "FAKE_NETWORK": self.network, **dict(self.start.env), **dict(step.env)}
        try:
            child = self.spawn(argv, env, step)
        except OSError as error:
            return p.Exit(index, p.ExitHow.NOT_STARTED, error.errno or 0, p.Limit.NONE, 0, 0, 0, (False, False))
        self.child = child
        if self.fault == "vanish":
            os._exit(3)
        if step.stdin:
            threading.Thread(target=self.feed, args=(child,), daemon=True).start()
        elif child.stdin:
            child.stdin.close()
        cut = [False, False]
        outputs = [(child.stdout.fileno(), p.Stdout), (child.stderr.fileno(), p.Stderr)] if child.stdout and child.stderr else []
        pumps = [
            threading.Thread(target=self.pump, args=(fd, kind, step.output, cut, which))
            for which, (fd, kind) in enumerate(outputs or [(self.terminal, p.Stdout)])
        ]
        for pump in pumps:
            pump.start()
        limit = p.Limit.NONE
        try:
            child.wait(step.wall_ms / 1000 if step.wall_ms and self.fault != "endless" else None)
        except subprocess.TimeoutExpired:
            limit = p.Limit.WALL
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        status = child.wait()
        for pump in pumps:
            pump.join()
        how = p.ExitHow.SIGNALED if status < 0 else p.ExitHow.EXITED
        wall = round((time.monotonic() - began) * 1e6)
        return p.Exit(index, how, abs(status), limit, wall, 1000, 4096, (cut[0], cut[1]))

    def function(self, index: int, step: p.Step) -> p.Exit:
        """Load it, unless it is `false` or that is the fault, and play it to its end."""
        self.send(p.Stage(index, step.name))
        self.send(p.Stdout(b"loading\n"))
        if self.fault == "load-fails" or step.argv == ("false",):
            return p.Exit(index, p.ExitHow.EXITED, 1, p.Limit.NONE, 0, 0, 0, (False, False))
        self.loaded = index
        self.send(p.Loaded())
        return self.answer(index)

    def go_on(self, index: int) -> None:
        """Play a restored function to its end."""
        self.send(self.answer(index))
        self.send(p.Done())

    def answer(self, index: int) -> p.Exit:
        """Answer requests until one ends the function."""
        while (code := self.played(self.requests.get())) is None:
            pass
        self.loaded = None
        return p.Exit(index, p.ExitHow.EXITED, code, p.Limit.NONE, 0, 0, 0, (False, False))

    def played(self, request: p.Request) -> int | None:
        """Answer a request; the exit status if the function ends over it.

        A payload `!exit 3` ends it without an answer, `!answer-exit` after one; `!vanish` ends the
        machine; `!hang` gets no answer, `!twice` two, `!other` one to another request, `!long` more
        than was announced; `!raise TEXT` gets an exception, `!log TEXT` is printed, `!sleep 0.2`
        takes so long.
        """
        deed, _, rest = request.data.decode(errors="replace").partition(" ")
        began = time.monotonic()
        kind, content_type, data = p.ResponseKind.ANSWER, request.content_type, request.data
        match deed:
            case "!exit":
                return int(rest or 1)
            case "!vanish":
                os._exit(3)
            case "!hang":
                return None
            case "!raise":
                kind, content_type = p.ResponseKind.EXCEPTION, "application/json"
                data = json.dumps({"error": "ValueError", "message": rest, "trace": f"ValueError: {rest}\n"}).encode()
            case "!log":
                self.send(p.Stdout(rest.encode()))
                self.send(p.Stderr(rest.encode()))
            case "!sleep":
                time.sleep(float(rest))
        size = len(data) - 1 if deed == "!long" else len(data)
        number = request.id ^ 1 if deed == "!other" else request.id
        took = round((time.monotonic() - began) * 1e6)
        for _ in range(2 if deed == "!twice" else 1):
            for at in range(0, len(data) or 1, p.MAX_BODY_CHUNK):
                self.send(p.Response(number, kind, took, content_type, size, data[at : at + p.MAX_BODY_CHUNK]))
        return 0 if deed == "!answer-exit" else None

    def spawn(self, argv: list[str], env: dict[str, str], step: p.Step) -> "subprocess.Popen[bytes]":
        """The step's program, on pipes or at a terminal of its own."""
        if not step.columns:
            pipe = subprocess.PIPE
            return subprocess.Popen(argv, cwd=self.work, env=env, stdin=pipe, stdout=pipe, stderr=pipe, process_group=0)
        self.terminal, other = pty.openpty()
        self.resize(step.columns, step.rows)
        try:
            return subprocess.Popen(["setsid", "--ctty", *argv], cwd=self.work, env=env, stdin=other, stdout=other, stderr=other)
        finally:
            os.close(other)

    def pump(self, fd: int, kind: type[p.Stdout] | type[p.Stderr], limit: int, cut: list[bool], which: int) -> None:
        sent = 0
        while data := read(fd):
            keep = data if self.fault == "flood" or not limit else data[: limit - sent]
            cut[which] |= len(keep) < len(data)
            sent += len(keep)
            if keep:
                self.send(kind(keep))

    def feed(self, child: "subprocess.Popen[bytes]") -> None:
        fd = child.stdin.fileno() if child.stdin else self.terminal
        self.send(p.Credit(CREDIT))
        with contextlib.suppress(OSError):
            while data := self.stdin.get():
                os.write(fd, data)
                self.send(p.Credit(len(data)))
            if child.stdin:
                child.stdin.close()
            else:
                os.write(fd, VEOF)


def read(fd: int) -> bytes:
    """Some output; a terminal whose programs have ended gives EIO."""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""


class FakeMachine:
    """Stands for a machine at the control socket. Only another fake restores its snapshots, which
    name the folder of an agent that was saved and went on.
    """

    def __init__(self, report: int, fault: str, work: Path, agent: FakeAgent) -> None:
        self.report, self.fault, self.work, self.agent = report, fault, work, agent
        self.paused = False
        self.ending = False

    def say(self, line: Line) -> None:
        os.write(self.report, encode(line))

    def serve(self, control: socket.socket) -> None:
        while answer_next(control, self.carry_out):
            if self.ending:
                self.say(Ended(reason=End.SAVED))
                os._exit(0)

    def carry_out(self, request: Request, descriptors: Sequence[int]) -> Answer:
        match request:
            case Pause() | Resume():
                self.paused = isinstance(request, Pause)
            case Snapshot(go_on=go_on):
                return Done(memory_bytes=self.snapshot(descriptors, go_on=go_on))
            case Track():
                return Tracking(live=False)
            case Send():
                self.send(descriptors[0])
            case Stats():
                return Figures(paused=self.paused, exits={"io": 3})
        return Done()

    def send(self, fd: int) -> None:
        """The last round: the page, and the state, of a snapshot."""
        if self.fault == "disk-full":
            raise SnapshotError("No space left on device")
        state = json.dumps({"work": str(self.work), "loaded": self.agent.loaded}).encode()
        page = Head(Kind.PAGES, 1, 1).pack() + b"x" * PAGE
        os.write(fd, page + Head(Kind.STATE, len(state), 0).pack() + state)

    def snapshot(self, descriptors: Sequence[int], *, go_on: bool) -> int:
        if self.fault == "disk-full":
            raise SnapshotError("No space left on device")
        run, layers = struct.pack("<QQ", 1, 1), len(os.environ["FAKE_RESTORE"].split())
        read = struct.pack("<QQ", 0, layers) if layers else b""
        state = json.dumps({"work": str(self.work) if go_on else "", "loaded": self.agent.loaded}).encode()
        for fd, data in zip(descriptors, (state, bytes(8192), run, read), strict=True):
            os.write(fd, data)
        self.ending = not go_on
        return 4096


def main(channel_fd: int, report: int, control_fd: int, fault: str) -> None:
    with (
        socket.socket(fileno=control_fd) as control,
        socket.socket(fileno=channel_fd) as channel,
        folder("fake") as work,
    ):
        agent = FakeAgent(channel, fault, Path(work))
        machine = FakeMachine(report, fault, Path(work), agent)
        machine.say(Running(phases=PHASES))
        threading.Thread(target=machine.serve, args=(control,), daemon=True).start()
        with contextlib.suppress(ConnectionError):
            agent.serve()
        if fault == "bad-report":
            os.write(report, b"{]\n")
        broken = ERRORS.get(fault)
        reason = End.ERROR if broken else End.CHANNEL_CLOSED
        machine.say(Ended(reason=reason, error=broken, console="last words\n", exits={"io": 3}, phases=PHASES))
    os._exit(0)


if __name__ == "__main__":
    MARKER = sys.argv[4]
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[5])
