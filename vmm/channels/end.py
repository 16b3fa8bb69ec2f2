"""The monitor's end of the channel's socket, which all carriers share."""

import socket
from collections.abc import Callable

from mayfly.vmm.eventloop import EventLoop


class SocketEnd:
    """Watches the socket for bytes while its carrier has room, and always for a hang-up.

    Makes `channel` non-blocking. `closed` is called once, when the other end is closed.
    """

    def __init__(self, channel: socket.socket, loop: EventLoop, closed: Callable[[], None]) -> None:
        channel.setblocking(False)
        self.socket = channel
        self._loop, self._closed = loop, closed
        self._ended = False

    def watch(self, events: int, pump: Callable[[], None]) -> None:
        """Call `pump` when the socket is ready for `events` (READ, WRITE, both or none)."""
        if not self._ended:
            self._loop.watch(self.socket, events, pump, self.hang_up)

    def hang_up(self) -> None:
        """The other end is closed."""
        if not self._ended:
            self._ended = True
            self._loop.watch(self.socket, 0, self.hang_up)
            self._closed()
