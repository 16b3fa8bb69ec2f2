"""The channel over a UART."""

import contextlib
import socket
import threading
from collections.abc import Callable

from mayfly.vmm.channels.carrier import Carrier
from mayfly.vmm.devices.serial import Serial
from mayfly.vmm.eventloop import EventLoop


class SerialChannel(Carrier):
    """Reads the socket while the UART has room, the UART while the socket has, under `lock`."""

    def __init__(
        self, channel: socket.socket, loop: EventLoop, lock: threading.Lock, *, interrupt: Callable[[], None], closed: Callable[[], None]
    ) -> None:
        super().__init__(channel, loop, closed)
        self._lock = lock
        self.serial = Serial(interrupt, on_output=loop.add_event(self._pump), on_room=loop.add_event(self._resume))
        self._watch()

    def _resume(self) -> None:
        self._reading = True
        self._pump()

    def _pump(self) -> None:
        try:
            self._send()
            self._receive()
        except (ConnectionError, EOFError):
            self._hang_up()
        self._watch()

    def _send(self) -> None:
        """What the socket does not take stays in the UART, whose state a snapshot holds."""
        self._writing = False
        while True:
            with self._lock:
                output = self.serial.output
            if not output:
                return
            self._first_word()
            try:
                sent = self._socket.send(output)
            except BlockingIOError:
                self._writing = True
                return
            with self._lock:
                self.serial.take(sent)

    def _receive(self) -> None:
        with self._lock:
            room = self.serial.room
        self._reading = self._reading and bool(room)
        if self._reading:
            with contextlib.suppress(BlockingIOError):
                data = self._socket.recv(room)
                if not data:
                    raise EOFError
                with self._lock:
                    self.serial.receive(data)
