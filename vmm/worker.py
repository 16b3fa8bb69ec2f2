"""A thread for what would keep the event loop, made ahead, as the sandbox forbids new threads."""

import _thread
from collections.abc import Callable
from queue import SimpleQueue

from mayfly.errors import HostError


class Worker:
    """Does one piece of work after another. `do` and `finish` are for the event loop's thread.

    Its thread is none of threading's, with which few machines would do anything more.
    """

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._running = _thread.allocate_lock()

    def start(self) -> None:
        """Start the thread, and wait until it runs: the sandbox forbids later what only starting
        takes. Raises HostError: there is none.
        """
        begun = _thread.allocate_lock()
        begun.acquire()
        self._running.acquire()
        try:
            _thread.start_new_thread(self._run, (begun,))
        except RuntimeError as error:
            self._running.release()
            raise HostError(f"no thread for a machine: {error}", hint="raise this service's limits of processes and memory") from error
        begun.acquire()

    def do(self, work: Callable[[], None]) -> None:
        """Have the thread call `work`, which raises nothing, when it has done what was before."""
        self._work.put(work)

    def finish(self) -> None:
        """Wait until all is done, and end the thread if it runs."""
        self._work.put(None)
        with self._running:
            pass

    def _run(self, begun: _thread.LockType) -> None:
        begun.release()
        try:
            while work := self._work.get():
                work()
        finally:
            self._running.release()
