"""A run moves between two `mayfly serve`, and back, by `mayfly move` over TCP and with keys; either
of them, and either machine, is killed amid a move. The machine is a real one: a tiny guest plays
the agent.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mayfly.client.asynchronous import AsyncRun
from mayfly.client.results import StdoutEvent
from mayfly.errors import UnknownRunError
from mayfly.images.store import Images
from mayfly.protocol import frames as p
from tests.kit import tiny
from tests.kit.api_fakes import MARKER, install_toys
from tests.kit.scale import patience
from tests.kit.served_hosts import Following, ServedHost, serving
from tests.kvm.test_moved_run import CYCLE, playing

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

SLOW = ("--limit", "500")
"""A move with this takes long: 9 kB are sent of this machine while it runs."""
either = pytest.mark.parametrize(
    "killed", [lambda host: host.server, lambda host: (host.machines() or host.made())[0]], ids=["server", "machine"]
)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[ServedHost]]:
    install_toys(monkeypatch, tmp_path)
    hello = p.Hello(p.PROTOCOL_VERSION, "toy", Images().arch, 1, MARKER)
    kernel = tiny.build(tmp_path, playing(tmp_path, hello))
    flags = ["--cold", "--kernel", str(kernel), "--channel", "serial", "--time-factor", "1", "--interactive-wall-s", "600"]
    with ExitStack() as opened:
        yield [opened.enter_context(serving(*flags)) for _ in range(2)]


def in_time(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, patience(90)))


@asynccontextmanager
async def under_way(host: ServedHost) -> AsyncIterator[tuple[AsyncRun, Following]]:
    """A run that has printed for a while."""
    async with (
        host.client() as client,
        client.start(b"go!!", language="py", interactive=True) as run,
        Following.begin(run) as following,
    ):
        await following.lines(3 * CYCLE)
        yield run, following


async def to_the_end(run: AsyncRun, following: Following) -> None:
    """Let the run end, and see that no line is missing or came twice."""
    await following.lines(3 * CYCLE)
    await run.send(b"quit")
    result = await run.result()
    assert result.status == "ok", result
    numbers = [int(line) for line in following.out.split()]
    assert numbers == [index % CYCLE for index in range(len(numbers))]


def test_a_run_moves_to_another_server_and_back(servers: list[ServedHost]) -> None:
    here, there = servers

    async def scenario() -> None:
        async with under_way(here) as (run, following):
            for source, destination in ((here, there), (there, here), (here, there)):
                await asyncio.to_thread(source.move, run.id, destination)
                await following.lines(3 * CYCLE)
            await to_the_end(run, following)

    in_time(scenario())


@either
def test_a_run_goes_on_when_what_takes_it_is_killed(servers: list[ServedHost], killed: Callable[[ServedHost], int]) -> None:
    """Amid the move, the server there or the machine that is being made in it."""
    here, there = servers

    async def scenario() -> None:
        async with under_way(here) as (run, following):
            moving = await amid_a_move(run, here, there)
            os.kill(killed(there), signal.SIGKILL)
            with pytest.raises(AssertionError):
                await moving
            await to_the_end(run, following)

    in_time(scenario())


@either
def test_nothing_is_left_there_of_a_run_that_is_lost(servers: list[ServedHost], killed: Callable[[ServedHost], int]) -> None:
    """Amid the move its server is killed, or its machine."""
    here, there = servers

    async def scenario() -> None:
        async with here.client() as client, there.client() as others:
            async with client.start(b"go!!", language="py", interactive=True, detach=True) as run:
                await anext(event async for event in run if isinstance(event, StdoutEvent))
            moving = await amid_a_move(run, here, there)
            os.kill(killed(here), signal.SIGKILL)
            with pytest.raises(AssertionError):
                await moving
            while there.made():
                await asyncio.sleep(0.05)
            with pytest.raises(UnknownRunError):
                await others.get(run.id).state()

    in_time(scenario())


async def amid_a_move(run: AsyncRun, here: ServedHost, there: ServedHost) -> "asyncio.Task[Any]":
    """Begin to move the run; a machine is being made for it then, and will be for long."""
    moving = asyncio.create_task(asyncio.to_thread(here.move, run.id, there, *SLOW))
    while not there.made():
        assert not moving.done(), await moving
        await asyncio.sleep(0.05)
    return moving
