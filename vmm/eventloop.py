"""The one event loop of a vmm process: descriptors, events that vCPU threads trigger, and timers."""

import contextlib
import heapq
import itertools
import os
import selectors
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class HasFileno(Protocol):
    """A socket, a file."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...


class EventLoop:
    """Calls back when a descriptor is ready. All methods belong to the loop's thread, but for `stop` and the triggers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._selector.close)
        self._running = True
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self.stop = self.add_event(self._leave)
        """Make `run` return, from any thread."""

    def watch(self, file: HasFileno, events: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `file` is ready for `events` (READ, WRITE or both); 0 stops watching it."""
        known = file.fileno() in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(file.fileno())
        elif known:
            self._selector.modify(file.fileno(), events, callback)
        else:
            self._selector.register(file.fileno(), events, callback)

    def add_eventfd(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` after writes to the eventfd, once for many. The loop owns the descriptor from now on."""

        def ready() -> None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
            callback()

        self._stack.callback(os.close, fd)
        self._selector.register(fd, READ, ready)

    def add_event(self, callback: Callable[[], None]) -> Callable[[], None]:
        """A trigger that any thread may call to have `callback` called in the loop, once for many triggers."""
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.add_eventfd(fd, callback)
        return lambda: os.eventfd_write(fd, 1)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` once, when `delay_s` seconds have passed."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_numbers), callback))

    def run(self) -> None:
        """Wait and call back until `stop`."""
        while self._running:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, _ in self._selector.select(timeout):
                key.data()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()

    def _leave(self) -> None:
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()
