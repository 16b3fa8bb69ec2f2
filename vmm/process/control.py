"""Requests to a live vmm process over its control socket, and their answers.

The socket is one end of a SOCK_SEQPACKET pair, handed over when the process is forked; it has no
path. A message is a tagged JSON object (`report.pack`). Each request has one answer, in order. One
that is refused, as it cannot be carried out or is malformed, has changed nothing.
"""

import os
import socket
from collections.abc import Callable, Sequence

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
    """Let vCPUs and devices go on; a machine that runs goes on running. It is sent no more."""


class Snapshot(Record, tag="snapshot", frozen=True, kw_only=True):
    """Write a snapshot to the descriptors that come along, in the order of `snapshot.FILES`.

    With `go_on` the machine stays as it was, running or paused; else it ends as `End.SAVED`.
    """

    go_on: bool


class Track(Record, tag="track", frozen=True, kw_only=True):
    """Get ready for `Send`, whose receiver holds the first `held` layers that the machine began
    with. What was sent before counts no more.
    """

    held: Count


class Send(Record, tag="send", frozen=True, kw_only=True):
    """Write a round (`snapshot.stream`) to the descriptor that comes along: the pages that differ
    from the layers, then those that were written since the last round. It is answered when that
    begins, and the descriptor is closed when it has ended.

    With `last` vCPUs and devices stand still first, until `Resume`, and the state comes behind.
    """

    last: bool


class Stats(Record, tag="stats", frozen=True, kw_only=True):
    """Tell what has been counted."""


class Prefault(Record, tag="prefault", frozen=True, kw_only=True):
    """Map for the restored guest what it will touch soon; answered before that is done."""


Request = Pause | Resume | Snapshot | Track | Send | Stats | Prefault


class Done(Record, tag="done", frozen=True, kw_only=True):
    """It is done; a snapshot with so many bytes of memory."""

    memory_bytes: Count = 0


class Tracking(Record, tag="tracking", frozen=True, kw_only=True):
    """The machine can send rounds; without `live` the last one alone, as this kernel does not tell
    which pages are written.
    """

    live: bool


class Figures(Record, tag="figures", frozen=True, kw_only=True):
    """What a machine has counted so far: `exits` as `report.Ended` has them."""

    paused: bool
    exits: Counts


class Refused(Record, tag="refused", frozen=True, kw_only=True):
    """It was not done."""

    error: MayflyError


Answer = Done | Tracking | Figures | Refused


def decode_request(data: bytes, descriptors: int) -> Request:
    """The request in a message with so many descriptors. Raises ConfigError if it is malformed."""
    try:
        request: Request = unpack(Request, data)
    except ValueError as caught:
        raise ConfigError(f"a malformed request to a machine: {caught}") from caught
    if descriptors != (wanted := len(FILES) if isinstance(request, Snapshot) else int(isinstance(request, Send))):
        raise ConfigError(f"a malformed request to a machine: it came with {descriptors} descriptors, not {wanted}")
    return request


CarryOut = Callable[[Request, Sequence[int]], Answer]
"""Does what is asked, with the descriptors. Raises MayflyError: it cannot, and nothing changed."""


def answer_next(control: socket.socket, carry_out: CarryOut) -> bool:
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
        answer = carry_out(decode_request(data, len(descriptors)), descriptors)
    except MayflyError as caught:
        answer = Refused(error=caught)
    finally:
        for fd in descriptors:
            os.close(fd)
    try:
        return control.send(pack(answer)) > 0
    except OSError:
        return False


def serve(control: socket.socket, loop: EventLoop, carry_out: CarryOut) -> None:
    """Answer requests in the event loop. `control` becomes non-blocking; the caller closes it."""

    def serve_next() -> None:
        if not answer_next(control, carry_out):
            loop.watch(control, 0, serve_next)
            loop.go_on()  # to see the channel's end: nobody can ask for more

    control.setblocking(False)
    loop.watch(control, READ, serve_next)
    loop.keep(control)


def accept(data: bytes) -> Answer:
    """The answer in a message; raises what it refuses with, or GuestError: ended, or malformed."""
    if not data:
        raise GuestError("the machine has ended")
    try:
        answer: Answer = unpack(Answer, data)
    except ValueError as caught:
        raise GuestError(f"the machine's answer is malformed: {caught}") from caught
    if isinstance(answer, Refused):
        raise answer.error
    return answer
