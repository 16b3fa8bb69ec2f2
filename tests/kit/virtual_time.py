"""An event loop whose time is the test's: timers fire when the test says that time has passed, and
nothing waits.
"""

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any

TURNS = 40
"""Of the loop, for what follows from one event without time passing."""


class _Selector(selectors.BaseSelector):
    """Never waits."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return self._real.select(0)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """`settle` lets happen what can without time passing; `advance` lets time pass."""

    def __init__(self) -> None:
        super().__init__(selector=_Selector())
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time
    """So that the loop can stand for the module `time`."""

    def settle(self, turns: int = TURNS) -> None:
        for _ in range(turns):
            self.call_soon(self.stop)
            self.run_forever()

    def advance(self, seconds: float) -> None:
        self.settle()
        self.now += seconds
        self.settle()
