"""What all carriers share: the monitor's end of the channel's socket."""

import abc
import socket
from collections.abc import Callable

from mayfly.vmm.eventloop import READ, WRITE, EventLoop


class Carrier(abc.ABC):
    """Moves bytes between the channel's socket, which it makes non-blocking, and the guest.

    `_watch` has `_pump` called when the socket is ready for what is wanted of it (`_reading`,
    `_writing`). `closed` is called once, when the other end is closed, even while nothing is.
    `on_first_word` is called once, before the first bytes that the guest sends go out.
    """

    def __init__(self, channel: socket.socket, loop: EventLoop, closed: Callable[[], None]) -> None:
        channel.setblocking(False)
        self._socket, self._loop, self._closed = channel, loop, closed
        self._reading, self._writing, self._ended = True, False, False
        self.on_first_word: Callable[[], None] | None = None

    def _watch(self) -> None:
        if not self._ended:
            self._loop.watch(self._socket, (READ if self._reading else 0) | (WRITE if self._writing else 0), self._pump, self._hang_up)

    def _hang_up(self) -> None:
        if not self._ended:
            self._ended = True
            self._loop.watch(self._socket, 0, self._hang_up)
            self._closed()

    def _first_word(self) -> None:
        if self.on_first_word is not None:
            call, self.on_first_word = self.on_first_word, None
            call()

    @abc.abstractmethod
    def _pump(self) -> None:
        """Move what can be moved, then `_watch`."""
