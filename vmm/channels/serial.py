"""The channel over a UART."""

import contextlib
import socket
import threading
from collections.abc import Callable

from mayfly.vmm.channels.end import SocketEnd
from mayfly.vmm.devices.serial import Serial
from mayfly.vmm.eventloop import READ, WRITE, EventLoop


class SerialChannel:
    """Reads the socket while the UART has room, and the UART while the socket has.

    Makes `channel` non-blocking. `lock` is held around every use of the UART.
    """

    def __init__(
        self, channel: socket.socket, loop: EventLoop, lock: threading.Lock, *, interrupt: Callable[[], None], closed: Callable[[], None]
    ) -> None:
        self._end = SocketEnd(channel, loop, closed)
        self._lock = lock
        self._unsent = b""
        self._reading = True
        self.serial = Serial(interrupt, on_output=loop.add_event(self._pump), on_room=loop.add_event(self._resume))
        self._watch()

    @property
    def data_accesses(self) -> int:
        """Exits that carried the channel's own bytes."""
        return self.serial.data_accesses

    def _watch(self) -> None:
        self._end.watch((READ if self._reading else 0) | (WRITE if self._unsent else 0), self._pump)

    def _resume(self) -> None:
        self._reading = True
        self._pump()

    def _pump(self) -> None:
        try:
            self._send()
            self._receive()
        except (ConnectionError, EOFError):
            self._end.hang_up()
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
                self._unsent = self._unsent[self._end.socket.send(self._unsent) :]

    def _receive(self) -> None:
        if not self._reading:
            return
        with self._lock:
            room = self.serial.room
        if not room:
            self._reading = False
            return
        with contextlib.suppress(BlockingIOError):
            data = self._end.socket.recv(room)
            if not data:
                raise EOFError
            with self._lock:
                self.serial.receive(data)
