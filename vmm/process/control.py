"""Requests to a live vmm process over its control socket, and their answers.

The socket is one end of a SOCK_SEQPACKET pair, handed over when the process is forked; it has no
path. A message is a tagged JSON object (`report.pack`). Each request has one answer, in order:

    {"type":"pause"}                                       {"type":"done"}
    {"type":"resume"}                                      {"type":"done"}
    {"type":"snapshot","go_on":true}, four descriptors     {"type":"saved","memory_bytes":4096}
    {"type":"stats"}                                       {"type":"figures","paused":false,...}
    {"type":"prefault"}                                    {"type":"done"}
    what cannot be done, or is malformed                   {"type":"refused","error":{...}}

A request that is refused has changed nothing.
"""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from mayfly.errors import ConfigError, GuestError, MayflyError
from mayfly.schema import Record
from mayfly.vmm.eventloop import READ, EventLoop
from mayfly.vmm.process.report import Count, Counts, pack, unpack
from mayfly.vmm.snapshot import FILES

MESSAGE_LIMIT = 128 << 10
MAX_DESCRIPTORS = 8


class Pause(Record, tag="pause", frozen=True, kw_only=True):
    """Stop the vCPUs until `Resume`; devices go on. A machine that is paused stays so."""


class Resume(Record, tag="resume", frozen=True, kw_only=True):
    """Let the vCPUs go on; a machine that runs goes on running."""


class Snapshot(Record, tag="snapshot", frozen=True, kw_only=True):
    """Write a snapshot to the descriptors that come along, in the order of `snapshot.FILES`.

    With `go_on` the machine stays as it was, running or paused; else it ends as `End.SAVED`.
    """

    go_on: bool


class Stats(Record, tag="stats", frozen=True, kw_only=True):
    """Tell what has been counted."""


class Prefault(Record, tag="prefault", frozen=True, kw_only=True):
    """Map for the restored guest what it will touch soon; answered before that is done."""


Request = Pause | Resume | Snapshot | Stats | Prefault


class Done(Record, tag="done", frozen=True, kw_only=True):
    """It is done."""


class Saved(Record, tag="saved", frozen=True, kw_only=True):
    """The snapshot is written, with so many bytes of memory."""

    memory_bytes: Count


class Figures(Record, tag="figures", frozen=True, kw_only=True):
    """What a machine has counted so far: `exits` as `report.Ended` has them."""

    paused: bool
    exits: Counts


class Refused(Record, tag="refused", frozen=True, kw_only=True):
    """It was not done."""

    error: MayflyError


Answer = Done | Saved | Figures | Refused


def send_request(control: socket.socket, request: Request, descriptors: Sequence[int] = ()) -> None:
    """Send a request and duplicates of descriptors. Raises OSError: no reader."""
    socket.send_fds(control, [pack(request)], descriptors)


def decode_request(data: bytes, descriptors: int) -> Request:
    """The request in a message with so many descriptors. Raises ConfigError if it is malformed."""
    try:
        request: Request = unpack(Request, data)
    except ValueError as caught:
        raise ConfigError(f"a malformed request to a machine: {caught}") from caught
    if descriptors != (wanted := len(FILES) if isinstance(request, Snapshot) else 0):
        raise ConfigError(f"a malformed request to a machine: it came with {descriptors} descriptors, not {wanted}")
    return request


def decode_answer(data: bytes) -> Answer:
    """The answer in a message, which a guest may have made up. Raises ValueError."""
    answer: Answer = unpack(Answer, data)
    return answer


@contextlib.contextmanager
def snapshot_files(folder: Path) -> Iterator[list[int]]:
    """New files in `folder`, open for writing: the vmm process may open none. Raises OSError."""
    with contextlib.ExitStack() as opened:
        descriptors = []
        for name in FILES:
            descriptors.append(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            opened.callback(os.close, descriptors[-1])
        yield descriptors


class Commanded(Protocol):
    """What a machine can be asked for; see the requests."""

    def pause(self) -> None:
        """See `Pause`."""

    def resume(self) -> None:
        """See `Resume`."""

    def snapshot(self, descriptors: Sequence[int], *, go_on: bool) -> int:
        """See `Snapshot`; the bytes of memory written."""

    def figures(self) -> Figures:
        """See `Stats`."""

    def pre_fault(self) -> None:
        """See `Prefault`."""


def carry_out(request: Request, machine: Commanded, descriptors: Sequence[int]) -> Answer:
    """Do what is asked."""
    match request:
        case Pause():
            machine.pause()
        case Resume():
            machine.resume()
        case Snapshot(go_on=go_on):
            return Saved(memory_bytes=machine.snapshot(descriptors, go_on=go_on))
        case Stats():
            return machine.figures()
        case Prefault():
            machine.pre_fault()
    return Done()


def answer_next(control: socket.socket, machine: Commanded) -> bool:
    """Receive, carry out and answer a request; false when the other end is gone or stuck.

    An empty message counts as the end, which it cannot be told from.
    """
    try:
        data, descriptors, flags, _ = socket.recv_fds(control, MESSAGE_LIMIT, MAX_DESCRIPTORS)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    if not data:
        return False
    try:
        for fd in descriptors:
            os.set_inheritable(fd, False)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ConfigError(f"a request to a machine has more than {MESSAGE_LIMIT} bytes or {MAX_DESCRIPTORS} descriptors")
        answer = carry_out(decode_request(data, len(descriptors)), machine, descriptors)
    except MayflyError as caught:
        answer = Refused(error=caught)
    finally:
        for fd in descriptors:
            os.close(fd)
    try:
        control.send(pack(answer))
    except OSError:
        return False
    return True


class ControlServer:
    """The process's side, in its event loop; closing the other end does not stop the machine.

    Makes `control` non-blocking; the caller closes it.
    """

    def __init__(self, control: socket.socket, loop: EventLoop, machine: Commanded) -> None:
        control.setblocking(False)
        self._control, self._loop, self._machine = control, loop, machine
        loop.watch(control, READ, self._serve)

    def _serve(self) -> None:
        if not answer_next(self._control, self._machine):
            self._loop.watch(self._control, 0, self._serve)


def accept(data: bytes) -> Answer:
    """The answer in a message; raises what it refuses with, or GuestError: ended, or malformed."""
    if not data:
        raise GuestError("the machine has ended")
    try:
        answer = decode_answer(data)
    except ValueError as caught:
        raise GuestError(f"the machine's answer is malformed: {caught}") from caught
    if isinstance(answer, Refused):
        raise answer.error
    return answer
