"""What takes runs: a host's own service, or a gateway to many hosts. Whoever has runs to begin or
to follow needs to know no more.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from mayfly.host.admission import Tenant
from mayfly.host.config import Config
from mayfly.host.keys import ApiKey
from mayfly.host.snippet import Snippet, Terminal
from mayfly.images.store import InstalledImage
from mayfly.runs.repeats import Repeat
from mayfly.runs.run import Run
from mayfly.schema import Record, msgspec
from mayfly.snapshots.store import Snapshot


class Health(Record, frozen=True, kw_only=True):
    """Runs that wait for room, machines that wait for a run, bytes of memory of all machines; in a
    fleet also whether most of its servers are there, so that runs can be stored.
    """

    waiting: int
    idle: int
    memory_used: int
    memory_budget: int
    quorum: bool | msgspec.UnsetType = msgspec.UNSET


CallBack = Callable[[Run, bytes, Callable[[bool], None]], None]
"""Has somebody told of a run that is over, as the bytes say, and then says whether that is done, or
is to be tried again elsewhere.
"""


def call_nobody(_: Run, __: bytes, told: Callable[[bool], None]) -> None:
    """Tell nobody."""
    told(True)


class Order(NamedTuple):
    """A run that is to begin. Its output socket (if `publish`) listens when it has begun. It is
    `tenant`'s, within that one's limits. `then` is told of the run when it is over, if this server
    is still there; the `call` is made in any case. The same `repeat` finds it again. Of one that is
    `awaited` nobody hears before it is over, not even its id. What it is `about` is kept with it.
    Without `run_id` it gets an id.
    """

    snippet: Snippet
    image: InstalledImage
    publish: bool = False
    tenant: Tenant | None = None
    then: Callable[[Run], None] | None = None
    repeat: Repeat | None = None
    call: bytes = b""
    awaited: bool = False
    about: bytes = b""
    run_id: str = ""


class Runner(Protocol):
    """Takes snippets, and knows the runs that came of them. `call_back` is used for those that have
    a `call`.
    """

    call_back: CallBack

    @property
    def config(self) -> Config:
        """The limits of its runs, and how long it keeps them."""

    @property
    def shared_keys(self) -> Sequence[ApiKey]:
        """API keys that it knows of itself, besides those that are kept on this machine."""

    @property
    def stopping(self) -> bool:
        """Whether it takes no more runs."""

    @property
    def under_way(self) -> int:
        """How many runs have not ended."""

    def installed(self) -> list[InstalledImage]:
        """The images whose languages can be run."""

    def image_for(self, snippet: Snippet) -> InstalledImage:
        """The image that a snippet asks for.

        Raises:
            UnknownLanguageError: there is none.
        """

    def check_ready(self) -> None:
        """See that runs are taken.

        Raises:
            StoppingError: not now.
        """

    def health(self) -> Health:
        """What it has to do."""

    async def begin(self, order: Order) -> Run:
        """Accept a run: from here on it has a result, whatever happens.

        Raises:
            RequestError: the snippet cannot be run as it stands, or there is no room.
            StoppingError, HostError: nobody is served now.
        """

    async def repeated(self, repeat: Repeat) -> Run | None:
        """The run that the same request began before, if it did.

        Raises:
            KeyReusedError: another request came with this key.
        """

    async def find(self, run_id: str, owner: str | None = None) -> Run:
        """The run with that id, whose owner is `owner` if that is said.

        Raises:
            UnknownRunError: there is none, or it is no longer kept.
        """

    async def signal(self, run: Run, number: int) -> None:
        """Send a signal to every process of the run's present step.

        Raises:
            RunEndedError: the run is over.
            NotRunningError: no step is under way.
        """

    async def resize(self, run: Run, size: Terminal) -> None:
        """Give the terminal of the run's program another size.

        Raises:
            NotInteractiveError: it has no terminal.
            RunEndedError, NotRunningError: as `signal`.
        """

    async def save(self, run_id: str, name: str) -> Snapshot:
        """Save the machine of a run as the snapshot `name`; the run goes on.

        Raises:
            MayflyError: it cannot be saved.
        """

    def output_socket(self, run: Run) -> Path:
        """The path of a run's output socket."""

    async def end(self, run: Run, reason: str) -> None:
        """End a run that is under way. Does nothing for one that is over."""

    async def forget(self, run_id: str) -> None:
        """End a run if it is under way, and keep nothing of it. An unknown id is fine."""

    async def drain(self, within_s: float) -> None:
        """Take no more runs, and wait until all have ended, or `within_s` has passed."""

    async def close(self) -> None:
        """End everything."""
