"""Run an image's prepare steps in a machine, once, and bring home what they made, as a tar: one
more layer of the image.

A step named VERSION_STEP is the compiler's: what it says becomes the file VERSION_FILE of the
layer.

The machine is a guest like any other: what it sends is bounded, and becomes a layer, which is read
like one from a registry.
"""

import contextlib
import json
import os
import platform
import socket
import stat
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mayfly.errors import BootError, ConsoleTailError, GuestError, HostError, ImageError, MayflyError
from mayfly.files import atomic_write
from mayfly.imagegen.progress import Progress
from mayfly.imagegen.rootfs.layers import Limits
from mayfly.images.manifest import Manifest, load
from mayfly.paths import kernel_path
from mayfly.protocol.frames import (
    FROM_AGENT,
    PROTOCOL_VERSION,
    Begin,
    Collect,
    Collected,
    Done,
    Error,
    Exit,
    ExitHow,
    FileEntry,
    FrameReader,
    Hello,
    Limit,
    Message,
    Stage,
    Start,
    Stderr,
    Stdout,
    Step,
    encode_frame,
)
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.probe import probe
from mayfly.vmm.process.zygote import Zygote

BOOT_S = 180.0
"""An emulated host unpacks a large image for a minute."""
STEP_S = 3600.0
"""For a prepare step that states no `wall_s`."""
SILENCE_S = 120.0
"""Between two pieces of what is collected."""
MAX_CPUS = 8
OUTPUT_KEPT = 8 << 10
"""Bytes of the steps' output for the message if one fails."""
PERMISSIONS = 0o777
VERSION_STEP = "version"
VERSION_FILE = "mayfly/version"
VERSION_KEPT = 4 << 10
BLOCK = 512
_RUN = 1
_REPORT = 1 << 20


def why_not(arch: str) -> str:
    """Why no machine of this architecture can run here; empty if one can."""
    if arch != platform.machine():
        return f"this host's processor is of another architecture than {arch}"
    found = probe()
    if not found.usable:
        return found.reason
    return "" if kernel_path(arch).exists() else f"there is no {kernel_path(arch)} yet (make kernel)"


def prepare(folder: Path, collect: Sequence[str], out: Path, limits: Limits, progress: Progress) -> None:
    """Boot the image in `folder`, run the steps of its manifest, and write what lies beneath the
    paths `collect` to the tar `out`.

    Raises:
        HostError: no machine can run here.
        ImageError: a step failed, or what it made passes a limit.
        BootError, GuestError: the machine came to a bad end.
    """
    manifest = load(folder)
    if reason := why_not(manifest.arch):
        raise HostError(
            f"{folder}: the image is to be prepared in a machine, and none can run here: {reason}",
            hint="on a host without KVM give --prepare-with scripts/with-kvm, which takes its time in an emulated one",
        )
    config = MachineConfig(
        kernel=str(kernel_path(manifest.arch)),
        initrd=str(folder / "initramfs"),
        memory=manifest.memory,
        cpus=min(len(os.sched_getaffinity(0)), MAX_CPUS),
        channel=Channel.VIRTIO,
    )
    with atomic_write(out) as file, _machine(config) as channel:
        converse(Conversation(channel), manifest, collect, file, limits, progress)


@contextlib.contextmanager
def _machine(config: MachineConfig) -> Iterator[socket.socket]:
    """A machine's channel. An error that is raised with it gets the machine's own account of its
    end.
    """
    ours, theirs = socket.socketpair()
    report, report_end = os.pipe()
    with ours, theirs, os.fdopen(report, "rb") as lines, os.fdopen(report_end, "wb") as line_end:
        zygote = Zygote.start()
        try:
            zygote.spawn(_RUN, config, theirs.fileno(), report_end)
            zygote.receive()  # forked: it has its own copies of both
            theirs.close()
            line_end.close()
            yield ours
        except (MayflyError, EOFError) as error:
            for end in (theirs, line_end, ours):  # at the end of its channel the vmm process ends too, and says how
                end.close()
            raise _explained(error, lines) from error
        finally:
            zygote.close()


def _explained(error: MayflyError | EOFError, report: BinaryIO) -> MayflyError:
    """The error to tell: the vmm process's own where it has one, else `error` with the end of what
    the guest's console showed.
    """
    ended: dict[str, Any] = next((line for line in map(json.loads, report.read(_REPORT).splitlines()) if line.get("event") == "ended"), {})
    if ended.get("error"):
        return GuestError(str(ended["error"]["message"]), hint=str(ended["error"]["hint"]), console=str(ended.get("console", "")))
    if isinstance(error, EOFError):
        return HostError("the process that makes machines died", hint="see `mayfly doctor`")
    if isinstance(error, ConsoleTailError):
        error.console = str(ended.get("console", ""))
    return error


class Conversation:
    """Messages over a channel, each awaited until `deadline`, a time of time.monotonic()."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._frames = FrameReader(FROM_AGENT)
        self._messages: list[Message] = []
        self.deadline = 0.0

    def allow(self, seconds: float) -> None:
        """Set the deadline so many seconds from now."""
        self.deadline = time.monotonic() + seconds

    def send(self, message: Message) -> None:
        """Send a message of the run."""
        self._channel.settimeout(max(0.001, self.deadline - time.monotonic()))
        with contextlib.suppress(ConnectionError):  # the next receive says so
            self._channel.sendall(encode_frame(message, _RUN))

    def receive(self) -> Message:
        """The next message of the run or of none.

        Raises:
            GuestError: the channel is at its end, or the deadline has passed.
        """
        while not self._messages:
            self._channel.settimeout(max(0.001, self.deadline - time.monotonic()))
            try:
                data = self._channel.recv(1 << 20)
            except TimeoutError as error:
                raise GuestError("the machine took too long", hint="a prepare step may state a larger wall_s") from error
            except ConnectionError:
                data = b""
            if not data:
                raise GuestError("the machine ended before its work was done", hint="its console tells more; it may lack memory")
            self._messages = [frame.message for frame in self._frames.feed(data) if frame.run in (0, _RUN)]
        return self._messages.pop(0)


def converse(agent: Conversation, manifest: Manifest, collect: Sequence[str], out: BinaryIO, limits: Limits, progress: Progress) -> None:
    """Hold the conversation with the machine's agent from HELLO to the last collected byte
    (agent/PROTOCOL.md).
    """
    agent.allow(BOOT_S)
    _check_hello(agent.receive(), manifest)
    steps = tuple(
        Step(name=step.name, argv=step.argv, cwd=step.cwd, env=tuple(step.env.items()), wall_ms=round((step.wall_s or STEP_S) * 1000))
        for step in manifest.steps
    )
    agent.allow(BOOT_S + sum(step.wall_ms for step in steps) / 1000)
    agent.send(Start(env=tuple(manifest.env.items()), steps=steps, files=()))
    agent.send(Begin())
    version = _watch(agent, steps, progress)
    if version:
        _put_file(out, VERSION_FILE, version)
    if collect:
        with progress.task("collecting what was prepared", None) as advance:
            for data in _collected(agent, collect, limits):
                out.write(data)
                advance(len(data))
    out.write(bytes(2 * BLOCK))


def _put_file(out: BinaryIO, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    out.write(member.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % BLOCK))


def _check_hello(message: Message, manifest: Manifest) -> None:
    match message:
        case Hello(version=version, arch=arch, end_marker=marker):
            if (version, arch, marker) != (PROTOCOL_VERSION, manifest.arch, manifest.end_marker):
                raise BootError("the agent in the machine is not that of the image", hint="build the agent again: make agent")
        case Error():
            raise BootError(f"the agent reports: {message.message or message.code.name}", hint="the image needs more memory to be prepared")
        case _:
            raise BootError(f"the agent began with {message.type.name}")


def _watch(agent: Conversation, steps: Sequence[Step], progress: Progress) -> bytes:
    """Follow the steps to DONE; what the version step said. Raises ImageError with the end of its
    output when one fails.
    """
    output = version = b""
    current = ""
    failed = ""
    while True:
        match agent.receive():
            case Stage(step=index, name=current):
                progress.say(f"prepare: {current}, step {index + 1} of {len(steps)}")
            case Stdout(data=data) | Stderr(data=data) as message:
                output = (output + data)[-OUTPUT_KEPT:]
                if isinstance(message, Stdout) and current == VERSION_STEP:
                    version = (version + data)[:VERSION_KEPT]
            case Exit() as ended:
                if (ended.how, ended.code, ended.limit) != (ExitHow.EXITED, 0, Limit.NONE):
                    failed = f"{ended.how.name.lower().replace('_', ' ')} {ended.code}, limit {ended.limit.name.lower()}"
            case Error() as error:
                raise GuestError(f"the agent reports: {error.message or error.code.name}")
            case Done():
                break
            case _:
                pass
    if failed:
        text = output.decode(errors="replace").rstrip()
        raise ImageError(f"a prepare step failed ({failed}); it said:\n{text}", hint="see `prepare` in the language's file")
    return version


def _collected(agent: Conversation, collect: Sequence[str], limits: Limits) -> Iterator[bytes]:
    """The answer to COLLECT as the pieces of a tar: all root's, of time 0, in the agent's order,
    which is that of the names.
    """
    entries = total = left = padding = 0
    agent.allow(SILENCE_S)
    agent.send(Collect(tuple(collect)))
    while not (piece := _piece(agent)).last:
        agent.allow(SILENCE_S)
        if piece.head is not None:
            member = _member(piece.head, collect)
            entries, total = entries + 1, total + member.size
            if left:
                raise GuestError(f"the agent sent {member.name[:200]!r} before the file in front of it had ended")
            if entries > limits.entries or total > limits.unpacked:
                raise ImageError(
                    f"more than {limits.entries} files or {limits.unpacked} bytes were prepared",
                    hint="if that is right for this image, raise --max-entries or --max-unpacked",
                )
            left, padding = member.size, -member.size % BLOCK
            yield member.tobuf(tarfile.PAX_FORMAT)
        left -= len(piece.data)
        if left < 0 or (piece.ends and left):
            raise GuestError("the agent sent a file of another size than it announced")
        yield piece.data
        if piece.ends:
            yield bytes(padding)


def _piece(agent: Conversation) -> Collected:
    match agent.receive():
        case Collected() as piece:
            return piece
        case Error() as error:
            raise ImageError(f"what was prepared cannot be collected: {error.message}", hint="see `collect` in the language's file")
        case message:
            raise GuestError(f"the agent sent {message.type.name} for what was prepared")


def _member(head: FileEntry, collect: Sequence[str]) -> tarfile.TarInfo:
    if not any(head.path == path or head.path.startswith(f"{path}/") for path in collect):
        raise GuestError(f"the agent sent {head.path[:200]!r}, which was not asked for")
    member = tarfile.TarInfo(head.path.removeprefix("/"))
    member.type = tarfile.DIRTYPE if stat.S_ISDIR(head.mode) else tarfile.REGTYPE
    member.mode, member.size = head.mode & PERMISSIONS, head.size
    return member
