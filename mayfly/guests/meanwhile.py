"""Work that comes to nothing when something beside it fails, such as a machine's process."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from mayfly.errors import GuestError
from mayfly.guests.spawner import VmmProcess

_T = TypeVar("_T")
log = logging.getLogger(__name__)


async def first(wanted: Coroutine[Any, Any, _T], beside: "asyncio.Task[Any]") -> _T:
    """What `wanted` gives, unless `beside` fails before that: then its error is raised."""
    task = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait([task, beside], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            beside.result()
        return await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


async def while_alive(process: VmmProcess, wanted: Coroutine[Any, Any, _T]) -> _T:
    """What `wanted` gives.

    Raises:
        GuestError: the process ended before that.
    """
    gone = asyncio.create_task(_gone(process))
    try:
        return await first(wanted, gone)
    finally:
        gone.cancel()
        await asyncio.wait([gone])


async def to_its_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Do it, and to its end even if the caller is cancelled, who would not know where it got to."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("what was cancelled meanwhile has failed: %s", error)
        raise


async def whole(work: Callable[[], _T]) -> _T:
    """Do it in a thread, and to its end even if the caller is cancelled: what it works on may be
    closed then.
    """
    return await to_its_end(asyncio.to_thread(work))


async def _gone(process: VmmProcess) -> None:
    await process.reaped.wait()
    raise GuestError("the machine ended before it could go on")
