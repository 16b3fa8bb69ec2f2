"""The channel over a TCP connection to the guest's agent."""

import contextlib
import os
import socket
from collections.abc import Callable

from mayfly.vmm.channels.carrier import Carrier
from mayfly.vmm.eventloop import READ, WRITE, EventLoop

BLOCK = 1 << 16


class TcpChannel(Carrier):
    """Shows the agent `token` first, which proves that this host connects.
    `connect` begins to connect a socket to it; `failed` is called if that does not work.
    """

    def __init__(
        self,
        channel: socket.socket,
        loop: EventLoop,
        token: str,
        *,
        connect: Callable[[socket.socket], None],
        closed: Callable[[], None],
        failed: Callable[[OSError], None],
    ) -> None:
        super().__init__(channel, loop, closed)
        self._connect, self._failed = connect, failed
        self._connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._to_guest = _Stream(channel, self._connection, token.encode())
        self._from_guest = _Stream(self._connection, channel)
        self._reading = False
        self._watch()

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
        self._loop.watch(self._connection, (READ if back.wants_read else 0) | (WRITE if there.unsent else 0), self._pump)
        self._reading, self._writing = there.wants_read, bool(back.unsent)
        self._watch()
        if there.ended:
            self._hang_up()

    def _hang_up(self) -> None:
        self._loop.watch(self._connection, 0, self._pump)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        super()._hang_up()


class _Stream:
    """One direction between two sockets; `unsent` is at most BLOCK bytes."""

    def __init__(self, source: socket.socket, target: socket.socket, unsent: bytes = b"") -> None:
        self._source, self._target, self.unsent = source, target, unsent
        self.ended = False

    @property
    def wants_read(self) -> bool:
        return not self.ended and not self.unsent

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
