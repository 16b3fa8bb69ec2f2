"""Move bytes between the channel's socket and the device that carries it. Their meaning is the business of the socket's other end."""

import contextlib
import socket
import threading
from collections.abc import Callable

from vmm.devices.serial import Serial
from vmm.devices.virtio.console import Console
from vmm.eventloop import READ, WRITE, EventLoop

PORT_NAME = "mayfly.channel"


class SerialChannel:
    """The channel over a UART. Reads the socket only as far as the UART has room, takes the guest's bytes only as fast as the socket does.

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
    """The channel over a virtio console's port. Bytes go straight between the socket and the guest's buffers.

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
