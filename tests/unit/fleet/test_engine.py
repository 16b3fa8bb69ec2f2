"""A connection to the fleet's engine, whose client is played."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mayfly.fleet.engine import Engine


class Client:
    """Answers one request, with `answer`."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def jetstream(self, timeout: float) -> None:
        pass

    async def request(self, subject: str, data: bytes, timeout: float) -> Any:
        return await asyncio.wait_for(self.answer, timeout)


@pytest.mark.parametrize("fails", [False, True])
def test_who_is_cancelled_when_the_answer_comes_is_cancelled(fails: bool) -> None:
    async def scenario() -> None:
        client: Any = Client()
        asked = asyncio.create_task(Engine(client, "h1").ask("somebody", b""))
        await asyncio.sleep(0)
        if fails:
            client.answer.set_exception(TimeoutError())
        else:
            client.answer.set_result(SimpleNamespace(data=b"answer"))
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()

    asyncio.run(scenario())


def test_who_was_cancelled_before_may_still_ask() -> None:
    """While it cleans up."""

    async def scenario() -> None:
        client: Any = Client()
        heard = b""

        async def work() -> None:
            nonlocal heard
            try:
                await asyncio.Event().wait()
            finally:
                heard = await Engine(client, "h1").ask("somebody", b"")

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        client.answer.set_result(SimpleNamespace(data=b"answer"))
        await asyncio.wait([task])
        assert heard == b"answer"
        assert task.cancelled()

    asyncio.run(scenario())
