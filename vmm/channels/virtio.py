"""The channel over a virtio console's port."""

import socket
from collections.abc import Callable

from mayfly.vmm.channels.carrier import Carrier
from mayfly.vmm.config import CHANNEL_PORT_NAME
from mayfly.vmm.devices.virtio.console import Console
from mayfly.vmm.eventloop import EventLoop


class VirtioChannel(Carrier):
    """Bytes go straight between socket and guest's buffers."""

    def __init__(self, channel: socket.socket, loop: EventLoop, *, closed: Callable[[], None]) -> None:
        super().__init__(channel, loop, closed)
        self.console = Console(CHANNEL_PORT_NAME, sink=self._send, on_room=self._resume)
        self._watch()

    def _resume(self) -> None:
        self._reading = True
        self._watch()

    def _pump(self) -> None:
        if self._writing:
            self._writing = False
            self.console.resume()
        if self._reading:
            try:
                count = self.console.receive(lambda views: self._socket.recvmsg_into(views)[0])
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
        self._first_word()
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
