"""What scheduling needs of others: functions as they are now, guests of them, who counts."""

from typing import Protocol, TypeVar

from mayfly.errors import MayflyError
from mayfly.functions.request import Request
from mayfly.functions.spec import FunctionSpec
from mayfly.guests.function import FunctionRequest, FunctionResponse
from mayfly.guests.start import StartKind


class Revision(Protocol):
    """A function as it is now. Guests of another `key` do not serve it."""

    @property
    def spec(self) -> FunctionSpec:
        """What it is."""

    @property
    def key(self) -> str:
        """Stands for all that is loaded in its guests."""

    @property
    def memory(self) -> int:
        """Bytes of a guest."""


R = TypeVar("R", bound=Revision)
R_contra = TypeVar("R_contra", bound=Revision, contravariant=True)
G = TypeVar("G")


class Watcher(Protocol):
    """Who is told of guests. Times are the event loop's; guests have numbers."""

    def guest_started(self, function: str, number: int, memory: int, began: float, ended: float) -> None:
        """A guest has started."""

    def guest_failed(self, function: str, error: MayflyError) -> None:
        """One could not be started."""

    def guest_evicted(self, function: str, number: int) -> None:
        """An idle one is ended for the room that it takes."""

    def eviction_over(self, number: int, began: float, ended: float) -> None:
        """That one is gone."""


class Machines(Protocol[R_contra, G]):
    """Where guests come from, and who speaks with them."""

    async def start(self, revision: R_contra) -> tuple[G, StartKind]:
        """A guest with the function loaded, and how it started."""

    async def ask(self, guest: G, asked: FunctionRequest, request: Request, timeout_s: float, every_s: float) -> tuple[G, FunctionResponse]:
        """Its answer to what is asked for `request`, and the guest then: another one if it was lost
        and had been saved, as it is every `every_s` seconds (0: never). At an error neither is of
        any more use.
        """

    async def stop(self, guest: G) -> None:
        """End it; it is gone when this returns."""

    def is_alive(self, guest: G) -> bool:
        """Whether it can be asked, as far as is known."""

    async def watch(self, guest: G) -> None:
        """Return when one that nobody asks cannot be asked any more. It is cancelled before the
        guest is asked again.
        """
