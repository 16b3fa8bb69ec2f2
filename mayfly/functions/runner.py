"""What answers requests to functions: a host's own, or those of a fleet."""

from typing import Protocol

from mayfly.functions.answer import Answer, FunctionFigures, Invocation, LogLine
from mayfly.functions.store import Function


class FunctionRunner(Protocol):
    """Functions, as gateways ask them; `Functions` says more of each."""

    @property
    def under_way(self) -> int:
        """Requests that wait or are with a guest."""

    def all(self) -> list[Function]:
        """All functions, by name."""

    def find(self, name: str) -> Function:
        """The function `name`. Raises UnknownFunctionError."""

    async def figures(self, name: str) -> FunctionFigures:
        """What the function has done. Raises UnknownFunctionError."""

    async def logs(self, name: str, last: int = 100) -> list[LogLine]:
        """The last lines that the function printed. Raises UnknownFunctionError."""

    async def invoke(self, asked: Invocation) -> Answer:
        """Ask the function, and wait for its answer. Raises MayflyError."""

    async def submit(self, asked: Invocation) -> str:
        """Ask the function; `result` has the answer under the id that this returns."""

    async def result(self, request_id: str, *, function: str = "", owner: str | None = None) -> Answer | None:
        """The answer to a request that was submitted; None while it is under way."""

    async def settled(self, request_id: str) -> None:
        """Wait until a request that was submitted is over."""

    async def drain(self, within_s: float) -> None:
        """Take no more requests, and wait until all are answered, or `within_s` has passed."""

    async def close(self) -> None:
        """Fail what is under way."""
