"""Move bytes between the channel's socket and the device that carries it. Their meaning is the
business of the socket's other end.
"""

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable

from mayfly.vmm.devices.serial import Serial
from mayfly.vmm.devices.virtio.console import Console
from mayfly.vmm.eventloop import READ, WRITE, EventLoop

PORT_NAME = "mayfly.channel"
TOKEN_BYTES = 32
BLOCK = 1 << 16


class SerialChannel:
    """The channel over a UART. Reads the socket only as far as the UART has room, takes the guest's
    bytes only as fast as the socket does.

    Args:
        channel: a connected stream socket; made non-blocking.
        lock: held around every use of the UART.
        interrupt: raises the UART's line.
        closed: called when the other end has closed the socket.
    """

    def __init__(
        self, channel: socket.socket, loop: EventLoop, lock: threading.Lock, *, interrupt: Callable[[], None], closed: Callable[[], None]
    ) -> None:
        channel.setblocking(False)
        self._socket, self._loop, self._lock, self._closed = channel, loop, lock, closed
        self._unsent = b""
        self._reading = True
        self.serial = Serial(interrupt, on_output=loop.add_event(self._pump), on_room=loop.add_event(self._resume))
        self._watch()

    @property
    def data_accesses(self) -> int:
        """Exits that carried the channel's own bytes."""
        return self.serial.data_accesses

    def _watch(self) -> None:
        self._loop.watch(self._socket, (READ if self._reading else 0) | (WRITE if self._unsent else 0), self._pump)

    def _resume(self) -> None:
        self._reading = True
        self._pump()

    def _pump(self) -> None:
        try:
            self._send()
            self._receive()
        except (ConnectionError, EOFError):
            self._loop.watch(self._socket, 0, self._pump)
            self._closed()
            return
        self._watch()

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                if not self._unsent:
                    with self._lock:
                        self._unsent = self.serial.take()
                if not self._unsent:
                    return
                self._unsent = self._unsent[self._socket.send(self._unsent) :]

    def _receive(self) -> None:
        if not self._reading:
            return
        with self._lock:
            room = self.serial.room
        if not room:
            self._reading = False
            return
        with contextlib.suppress(BlockingIOError):
            data = self._socket.recv(room)
            if not data:
                raise EOFError
            with self._lock:
                self.serial.receive(data)


class VirtioChannel:
    """The channel over a virtio console's port. Bytes go straight between the socket and the
    guest's buffers.

    Args:
        channel: a connected stream socket; made non-blocking.
        closed: called when the other end has closed the socket.
    """

    data_accesses = 0
    """No exit carries the channel's own bytes."""

    def __init__(self, channel: socket.socket, loop: EventLoop, *, closed: Callable[[], None]) -> None:
        channel.setblocking(False)
        self._socket, self._loop, self._closed = channel, loop, closed
        self._reading, self._writing = True, False
        self.console = Console(PORT_NAME, sink=self._send, on_room=self._resume)
        self._watch()

    def _watch(self) -> None:
        self._loop.watch(self._socket, (READ if self._reading else 0) | (WRITE if self._writing else 0), self._pump)

    def _resume(self) -> None:
        self._reading = True
        self._watch()

    def _pump(self) -> None:
        if self._writing:
            self._writing = False
            self.console.port.resume()
        if self._reading:
            try:
                count = self.console.port.receive(lambda views: self._socket.recvmsg_into(views)[0])
            except BlockingIOError:
                pass
            except ConnectionError:
                self._hang_up()
            else:
                self._reading = count is not None
                if count == 0:
                    self._hang_up()
        self._watch()

    def _send(self, views: list[memoryview]) -> int:
        size = sum(map(len, views))
        try:
            sent = self._socket.sendmsg(views)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            self._hang_up()
            return size
        if sent < size:
            self._writing = True
            self._watch()
        return sent

    def _hang_up(self) -> None:
        self._reading = self._writing = False
        self._closed()


class TcpChannel:
    """The channel over a TCP connection to the guest's agent, which has to be shown the token
    first.

    Args:
        channel: a connected stream socket; made non-blocking.
        connect: begins to connect a socket to the agent.
        closed: called when the channel's other end has closed the socket.
        failed: called with the reason when there is no connection to be had.
    """

    data_accesses = 0
    """No exit carries the channel's own bytes."""

    def __init__(
        self,
        channel: socket.socket,
        loop: EventLoop,
        *,
        connect: Callable[[socket.socket], None],
        closed: Callable[[], None],
        failed: Callable[[OSError], None],
    ) -> None:
        channel.setblocking(False)
        self.token = os.urandom(TOKEN_BYTES).hex()
        self._connect, self._closed, self._failed = connect, closed, failed
        self._channel, self._loop = channel, loop
        self._connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._to_guest = _Stream(channel, self._connection, self.token.encode())
        self._from_guest = _Stream(self._connection, channel)
        loop.watch(channel, select.EPOLLRDHUP, self._hang_up)

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
        self._from_guest.move()
        self._to_guest.move()
        if self._to_guest.ended:
            self._hang_up()
            return
        there, back = self._to_guest, self._from_guest
        self._loop.watch(self._channel, there.wants_read | back.wants_write, self._pump)
        self._loop.watch(self._connection, back.wants_read | there.wants_write, self._pump)

    def _hang_up(self) -> None:
        self._loop.watch(self._channel, 0, self._pump)
        self._loop.watch(self._connection, 0, self._pump)
        self._closed()


class _Stream:
    """One direction between two sockets.

    Attributes:
        unsent: what was read and has not found room yet, at most BLOCK bytes.
        ended: nothing will move any more.
    """

    def __init__(self, source: socket.socket, target: socket.socket, unsent: bytes = b"") -> None:
        self._source, self._target, self.unsent = source, target, unsent
        self.ended = False

    @property
    def wants_read(self) -> int:
        """READ, if the source is waited for."""
        return 0 if self.ended or self.unsent else READ

    @property
    def wants_write(self) -> int:
        """WRITE, if the target is."""
        return WRITE if self.unsent else 0

    def move(self) -> None:
        """Move what is there, as far as there is room, for one block at most."""
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
