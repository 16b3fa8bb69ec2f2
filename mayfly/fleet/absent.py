"""Functions at a gateway: there are none. They are a host's, and asked there."""

from mayfly.errors import UnknownFunctionError, UnknownRequestError
from mayfly.functions.answer import Answer, FunctionFigures, Invocation, LogLine
from mayfly.functions.store import Function


class NoFunctions:
    """No functions."""

    under_way = 0

    def all(self) -> list[Function]:
        """None."""
        return []

    def find(self, name: str) -> Function:
        """Raises UnknownFunctionError."""
        raise self._none(name)

    def figures(self, name: str) -> FunctionFigures:
        """Raises UnknownFunctionError."""
        raise self._none(name)

    def logs(self, name: str, last: int = 100) -> list[LogLine]:
        """Raises UnknownFunctionError."""
        raise self._none(name)

    @staticmethod
    def _none(name: str) -> UnknownFunctionError:
        return UnknownFunctionError(f"no function {name[:64]!r}: a gateway serves none", hint="ask the server of a host that has it")

    async def invoke(self, asked: Invocation) -> Answer:
        """Raises UnknownFunctionError."""
        raise self._none(asked.function)

    def submit(self, asked: Invocation) -> str:
        """Raises UnknownFunctionError."""
        raise self._none(asked.function)

    def result(self, request_id: str, *, function: str = "", owner: str | None = None) -> Answer | None:
        """Raises UnknownRequestError."""
        raise UnknownRequestError(f"no request {request_id[:64]!r}")

    async def settled(self, request_id: str) -> None:
        """Nothing is under way."""

    async def drain(self, within_s: float) -> None:
        """Nothing is under way."""

    async def close(self) -> None:
        """Nothing is under way."""
