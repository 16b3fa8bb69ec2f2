"""The event loop of a vmm process: descriptors, events that vCPU threads trigger, and timers."""

import functools
import heapq
import itertools
import os
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from mayfly.vmm.resources import Resources

if TYPE_CHECKING:
    from _typeshed import HasFileno

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
_HUNG_UP = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP


def eventfd() -> int:
    """A new one, to be written to by `os.eventfd_write`."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


class EventLoop:
    """Calls back when a descriptor is ready. For its own thread, but for `stop` and triggers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._poll: Callable[[float | None], list[tuple[int, int]]] = self._epoll.poll
        self._stack = Resources()
        self._stack.callback(self._epoll.close)
        self._watched: dict[int, tuple[int, Callable[[], None], Callable[[], None] | None]] = {}
        self._running = True
        self._kept: list[int] = []
        self._still: select.epoll | None = None
        self._ready: list[tuple[int, int]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self.stop = self.add_event(self._leave)  # Make `run` return, from any thread
        self._kept += self._watched

    def watch(self, file: "HasFileno", events: int, callback: Callable[[], None], hang_up: Callable[[], None] | None = None) -> None:
        """Call `callback` when `file` is ready for `events` (READ, WRITE); none stops watching.

        `hang_up`: also when the other end is closed, so that flow control does not hide an end.
        """
        fd = file.fileno()
        before, *_ = self._watched.pop(fd, (0,))
        if hang_up is not None:
            events |= select.EPOLLRDHUP
        if events:
            self._watched[fd] = events, callback, hang_up
        if events == before:
            return
        if not events:
            self._epoll.unregister(fd)
        elif before:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)

    def replace(self, file: "HasFileno", fd: int) -> None:
        """Let `file`, which nobody else has open, be what `fd` is, which is closed, and watch it as
        it was.
        """
        os.dup2(fd, file.fileno(), inheritable=False)  # what was open there is watched no more (epoll(7), Q6)
        os.close(fd)
        if file.fileno() in self._watched:
            self._epoll.register(file, self._watched[file.fileno()][0])

    def wait_by(self, wait: Callable[[int, float | None], list[tuple[int, int]]]) -> None:
        """From now on let `wait` wait for events of an epoll(7), with a timeout in seconds: it may
        take some of them upon itself.
        """
        self._poll = functools.partial(wait, self._epoll.fileno())

    def add_eventfd(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` after writes to the eventfd, once for many; the loop owns it now."""
        self._stack.callback(os.close, fd)
        # Edge-triggered, so that nobody has to read it: each write is an edge.
        self._watched[fd] = READ | select.EPOLLET, callback, None
        self._epoll.register(fd, READ | select.EPOLLET)

    def add_event(self, callback: Callable[[], None]) -> Callable[[], None]:
        """A trigger for any thread that has the loop call `callback`, once for many triggers."""
        fd = eventfd()
        self.add_eventfd(fd, callback)
        return lambda: os.eventfd_write(fd, 1)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` once, when `delay_s` seconds have passed."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_numbers), callback))

    def keep(self, file: "HasFileno") -> None:
        """Call back for `file`, which is watched for reading, even while all stands still."""
        self._kept.append(file.fileno())

    def stand_still(self) -> None:
        """From now on call back for nothing but `stop` and what `keep` names, until `go_on`."""
        if self._still is None:
            self._still = select.epoll()
            for fd in self._kept:
                self._still.register(fd, READ)

    def go_on(self) -> None:
        """End `stand_still`; what became ready meanwhile is called back for now."""
        if self._still is not None:
            self._still.close()
            self._still = None

    def run(self) -> None:
        """Wait and call back until `stop`."""
        while self._running:
            if self._still is not None:
                for fd, ready in self._still.poll():
                    self._call(fd, ready)
                continue
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            waiting = self._ready = self._ready or self._poll(timeout)
            while waiting and self._still is None:  # what is left, which may be edges, waits for `go_on`
                self._call(*waiting.pop(0))
            while self._timers and self._timers[0][0] <= time.monotonic() and self._still is None:
                heapq.heappop(self._timers)[2]()

    def _call(self, fd: int, ready: int) -> None:
        if fd in self._watched:  # unless a callback of this round has stopped that
            _, callback, hang_up = self._watched[fd]
            (hang_up if hang_up and ready & _HUNG_UP else callback)()

    def _leave(self) -> None:
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.go_on()
        self._stack.close()
