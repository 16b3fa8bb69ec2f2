"""The channel over a TCP connection to the guest's agent."""

import contextlib
import os
import socket
from collections.abc import Callable

from mayfly.vmm.channels.end import SocketEnd
from mayfly.vmm.eventloop import READ, WRITE, EventLoop

TOKEN_BYTES = 32
BLOCK = 1 << 16


class TcpChannel:
    """Shows the agent a token first, which proves that this host connects.

    Makes `channel` non-blocking. `connect` begins to connect a socket to the agent; `closed` is
    called when the other end has closed the channel, `failed` when there is no connection.
    """

    data_accesses = 0  # No exit carries the channel's own bytes

    def __init__(
        self,
        channel: socket.socket,
        loop: EventLoop,
        *,
        connect: Callable[[socket.socket], None],
        closed: Callable[[], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self.token = os.urandom(TOKEN_BYTES).hex()
        self._connect, self._closed, self._failed, self._loop = connect, closed, failed, loop
        self._end = SocketEnd(channel, loop, self._hang_up)
        self._connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._to_guest = _Stream(channel, self._connection, self.token.encode())
        self._from_guest = _Stream(self._connection, channel)
        self._end.watch(0, self._pump)

    def open(self) -> None:
        """The guest has come to the network: connect."""
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._connect(self._connection)
        except OSError as error:
            self._failed(error)
            return
        self._loop.watch(self._connection, WRITE, self._arrive)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _arrive(self) -> None:
        if number := self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._loop.watch(self._connection, 0, self._arrive)
            self._failed(OSError(number, os.strerror(number)))
        else:
            self._pump()

    def _pump(self) -> None:
        there, back = self._to_guest, self._from_guest
        back.move()
        there.move()
        self._loop.watch(self._connection, back.wants_read | there.wants_write, self._pump)
        self._end.watch(there.wants_read | back.wants_write, self._pump)
        if there.ended:
            self._end.hang_up()

    def _hang_up(self) -> None:
        self._loop.watch(self._connection, 0, self._pump)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._closed()


class _Stream:
    """One direction between two sockets; `unsent` is at most BLOCK bytes."""

    def __init__(self, source: socket.socket, target: socket.socket, unsent: bytes = b"") -> None:
        self._source, self._target, self.unsent = source, target, unsent
        self.ended = False

    @property
    def wants_read(self) -> int:
        return 0 if self.ended or self.unsent else READ

    @property
    def wants_write(self) -> int:
        return WRITE if self.unsent else 0

    def move(self) -> None:
        try:
            with contextlib.suppress(BlockingIOError):
                if not self.unsent and not self.ended:
                    self.unsent = self._source.recv(BLOCK)
                    if not self.unsent:
                        self.ended = True
                        self._target.shutdown(socket.SHUT_WR)
                if self.unsent:
                    self.unsent = self.unsent[self._target.send(self.unsent) :]
        except OSError:
            self.ended, self.unsent = True, b""
            with contextlib.suppress(OSError):
                self._target.shutdown(socket.SHUT_WR)
