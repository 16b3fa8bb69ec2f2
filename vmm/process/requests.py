"""Answers the requests to a live vmm process (`protocol/control.py`), in its event loop."""

import os
import socket
from collections.abc import Callable, Sequence

from mayfly.errors import ConfigError, MayflyError
from mayfly.protocol.control import MAX_DESCRIPTORS, MESSAGE_LIMIT, Answer, Refused, Request, Send, Snapshot
from mayfly.protocol.report import pack, unpack
from mayfly.vmm.eventloop import READ, EventLoop
from mayfly.vmm.snapshot import FILES

CarryOut = Callable[[Request, Sequence[int]], Answer]
"""Does what is asked, with the descriptors. Raises MayflyError: it cannot, and nothing changed."""


def decode_request(data: bytes, descriptors: int) -> Request:
    """The request in a message with so many descriptors. Raises ConfigError if it is malformed."""
    try:
        request: Request = unpack(Request, data)
    except ValueError as caught:
        raise ConfigError(f"a malformed request to a machine: {caught}") from caught
    if descriptors != (wanted := len(FILES) if isinstance(request, Snapshot) else int(isinstance(request, Send))):
        raise ConfigError(f"a malformed request to a machine: it came with {descriptors} descriptors, not {wanted}")
    return request


def answer_next(control: socket.socket, carry_out: CarryOut) -> bool:
    """Receive, carry out and answer a request; false when the other end is gone or stuck.
    An empty message counts as the end, which it cannot be told from.
    """
    try:
        data, descriptors, flags, _ = socket.recv_fds(control, MESSAGE_LIMIT, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    if not data:
        return False
    try:
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
