"""What gateways and hosts do beside: tasks that end with whoever began them."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from mayfly.errors import FleetError
from mayfly.fleet.failures import NobodyError, SilenceError

log = logging.getLogger(__name__)
Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""Has work done beside, under a name."""


class Tasks:
    """Tasks that are under way. What goes wrong in one is logged, and concerns no other."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Have work done beside."""
        task = asyncio.create_task(work, name=name)
        self._under_way.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, NobodyError | SilenceError | FleetError):
                log.warning("fleet: %s: %s", task.get_name(), error or "nobody listens")
            else:
                log.error("%s", task.get_name(), exc_info=error)

    def named(self, prefix: str) -> "set[asyncio.Task[None]]":
        """Those whose names begin so."""
        return {task for task in self._under_way if task.get_name().startswith(prefix)}

    async def close(self) -> None:
        """End them all."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
