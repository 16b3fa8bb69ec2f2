"""What a machine gives back at its end."""

from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar


class Closable(Protocol):
    """What is closed once."""

    def close(self) -> object:
        """Give it back."""


_Owned = TypeVar("_Owned", bound=Closable)


class Resources:
    """Gives back what it was told of, the last one first, as a context manager and by `close`.

    contextlib.ExitStack does the same with an eighth of all of Python's instructions that a
    restored machine carries out.
    """

    def __init__(self) -> None:
        self._owed: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def callback(self, give_back: Callable[..., object], *arguments: Any) -> None:
        """Have `give_back` called with these arguments."""
        self._owed.append((give_back, arguments))

    def own(self, owned: _Owned) -> _Owned:
        """Have `owned` closed; it is returned."""
        self._owed.append((owned.close, ()))
        return owned

    def keep(self) -> "Resources":
        """Another one, which gives all this back in its place."""
        kept = Resources()
        kept._owed, self._owed = self._owed, kept._owed
        return kept

    def close(self) -> None:
        """Give all back, also what comes behind something that fails."""
        while self._owed:
            give_back, arguments = self._owed.pop()
            try:
                give_back(*arguments)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
