"""A thread for what would keep the event loop, made ahead, as the sandbox forbids new threads."""

from collections.abc import Callable
from queue import SimpleQueue

from mayfly.errors import HostError
from mayfly.vmm.threads import Thread


class Worker(Thread):
    """Does one piece of work after another. `do` and `finish` are for the event loop's thread."""

    def __init__(self) -> None:
        super().__init__()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def start(self) -> None:
        """Start the thread. Raises HostError: there is none."""
        try:
            super().start()
        except RuntimeError as error:
            raise HostError(f"no thread for a machine: {error}", hint="raise this service's limits of processes and memory") from error

    def do(self, work: Callable[[], None]) -> None:
        """Have the thread call `work`, which raises nothing, when it has done what was before."""
        self._work.put(work)

    def finish(self) -> None:
        """Wait until all is done, and end the thread if it runs."""
        self._work.put(None)
        self.join()

    def run(self) -> None:
        """Thread body."""
        while work := self._work.get():
            work()
