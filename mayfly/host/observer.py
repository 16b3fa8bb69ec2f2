"""Who is told what a host does."""

from collections.abc import Mapping


class Observer:
    """Is told what happens; this one forgets it."""

    def started(self, kind: str, language: str) -> None:
        """A run got its machine: cold, restored or warm."""

    def ended(self, status: str, phases: Mapping[str, float]) -> None:
        """A run is over; `phases` in seconds."""

    def refused(self) -> None:
        """A run was refused, as there was no room."""

    def evicted(self) -> None:
        """An idle machine was ended to make room."""

    def function_answered(self, function: str, status: str, start: str, phases: Mapping[str, float]) -> None:
        """A request to a function is over: ok, exception, or an error's code. `start` is how its
        guest had started, empty if it got none; `phases` in seconds.
        """

    def function_guest(self, function: str, what: str) -> None:
        """A guest of a function was created, could not be (failed), or is evicted."""
