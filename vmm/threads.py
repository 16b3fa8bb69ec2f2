"""A thread of a machine. One of `threading` would cost each machine some fifty pages."""

import _thread


class Thread:
    """A thread, which does `run` once it is started, and keeps nobody from ending the process."""

    def __init__(self) -> None:
        self.ident = 0  # while it does `run`, for pthread_kill(3)
        self._running = _thread.allocate_lock()

    def run(self) -> None:
        """What the thread does."""

    def start(self) -> None:
        """Start it, and wait until it runs: the sandbox forbids later what only starting takes.
        Raises RuntimeError: there is none.
        """
        begun = _thread.allocate_lock()
        begun.acquire()
        self._running.acquire()
        try:
            _thread.start_new_thread(self._body, (begun,))
        except BaseException:
            self._running.release()
            raise
        begun.acquire()

    def _body(self, begun: _thread.LockType) -> None:
        self.ident = _thread.get_ident()  # here, as what `run` does may have to be interrupted before `start` goes on
        begun.release()
        try:
            self.run()
        finally:
            self.ident = 0
            self._running.release()

    def is_alive(self) -> bool:
        """Whether it has been started, and has not ended."""
        return self._running.locked()

    def join(self, patience_s: float = -1) -> None:
        """Wait until it has ended, or for so long. One that was not started has."""
        if self._running.acquire(timeout=patience_s):
            self._running.release()
