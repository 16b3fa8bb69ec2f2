"""The channel over a virtio console's port."""

import socket
from collections.abc import Callable

from mayfly.protocol.words import PORT_NAME
from mayfly.vmm.channels.end import SocketEnd
from mayfly.vmm.devices.virtio.console import Console
from mayfly.vmm.eventloop import READ, WRITE, EventLoop


class VirtioChannel:
    """Bytes go straight between socket and guest's buffers. Makes `channel` non-blocking."""

    data_accesses = 0  # No exit carries the channel's own bytes

    def __init__(self, channel: socket.socket, loop: EventLoop, *, closed: Callable[[], None]) -> None:
        self._end = SocketEnd(channel, loop, closed)
        self._reading, self._writing = True, False
        self.console = Console(PORT_NAME, sink=self._send, on_room=self._resume)
        self._watch()

    def _watch(self) -> None:
        self._end.watch((READ if self._reading else 0) | (WRITE if self._writing else 0), self._pump)

    def _resume(self) -> None:
        self._reading = True
        self._watch()

    def _pump(self) -> None:
        if self._writing:
            self._writing = False
            self.console.port.resume()
        if self._reading:
            try:
                count = self.console.port.receive(lambda views: self._end.socket.recvmsg_into(views)[0])
            except BlockingIOError:
                pass
            except ConnectionError:
                self._end.hang_up()
            else:
                self._reading = count is not None
                if count == 0:
                    self._end.hang_up()
        self._watch()

    def _send(self, views: list[memoryview]) -> int:
        size = sum(map(len, views))
        try:
            sent = self._end.socket.sendmsg(views)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            self._end.hang_up()
            return size
        if sent < size:
            self._writing = True
            self._watch()
        return sent
