"""What an operator does, with a played engine."""

import asyncio
from types import SimpleNamespace
from typing import Any

from mayfly.fleet.message import Beat, encode
from mayfly.fleet.operate import wait_until_idle


def test_who_waits_is_cancelled_though_it_happens_just_then() -> None:
    """As every wait of the fleet's: `asyncio.wait_for` of Python 3.11 forgets it."""

    async def scenario() -> None:
        hears: list[Any] = []

        async def listen(subject: str, hear: Any) -> None:
            hears.append(hear)

        engine: Any = SimpleNamespace(listen=listen)
        waiting = asyncio.create_task(wait_until_idle(engine, "h1", 60))
        await asyncio.sleep(0.01)
        beat = Beat(about="", memory_used=0, memory_budget=0, running=0, waiting=0, idle=0, draining=True)
        hears[0](SimpleNamespace(data=encode(beat)))
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    asyncio.run(scenario())
