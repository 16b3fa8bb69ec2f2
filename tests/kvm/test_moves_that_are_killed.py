"""A run that moves between two `mayfly serve` with a real machine loses one of the servers, or of
the machines, at each moment of the handover that counts: never do both go on, and one does as long
as there is one that can.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from mayfly.client.results import StdoutEvent
from tests.kit.gate import Gate
from tests.kit.served_hosts import ROOT, ServedHost
from tests.kvm.test_moved_between_servers import in_time, servers, to_the_end, under_way

__all__ = ["servers"]
pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]
MOMENTS = ("READY", "COMMIT", "RUNNING")
"""Messages that are under way: at COMMIT the source has given the machine up, and the destination
does not know it; at RUNNING the destination has let it go on.
"""
at_each = pytest.mark.parametrize("moment", MOMENTS)


@asynccontextmanager
async def held(run_id: str, here: ServedHost, there: ServedHost, moment: str) -> AsyncIterator[tuple[Gate, "asyncio.Task[object]"]]:
    """The run's move, held at that message."""
    async with Gate.begin(there.port, moment) as gate:
        moving = asyncio.create_task(asyncio.to_thread(here.move, run_id, there, port=gate.port))
        reached = asyncio.create_task(gate.reached.wait())
        await asyncio.wait([moving, reached], return_when=asyncio.FIRST_COMPLETED)
        assert reached.done(), await moving
        yield gate, moving
        gate.open()


@contextmanager
def restarted(server: int) -> Iterator[None]:
    """Kill a server, and start it again as it was."""
    command = Path(f"/proc/{server}/cmdline").read_text().split("\0")[:-1]
    environment = dict(entry.split("=", 1) for entry in Path(f"/proc/{server}/environ").read_text().split("\0")[:-1])
    os.kill(server, signal.SIGKILL)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as again:
        assert again.stderr
        assert any("listening" in line for line in again.stderr), "the server does not start again"
        try:
            yield
        finally:
            again.terminate()
            again.stderr.read()


async def none_left(host: ServedHost) -> None:
    while host.machines():
        await asyncio.sleep(0.05)


@at_each
def test_the_machine_there_is_killed(servers: list[ServedHost], moment: str) -> None:
    """It is the only one once RUNNING is under way: the run is over then, at both."""
    here, there = servers

    async def scenario() -> None:
        async with under_way(here) as (run, following):
            async with held(run.id, here, there, moment) as (gate, moving):
                os.kill(there.machines()[0], signal.SIGKILL)
                await none_left(there)
                gate.open()
                if moment != "RUNNING":
                    with pytest.raises(AssertionError, match=r"goes on|ended|lost"):
                        await moving
                    await to_the_end(run, following)
                else:
                    await moving
                    result = await run.result()
                    assert (result.status, result.error and result.error.code) == ("error", "guest_failed")
            await none_left(here)

    in_time(scenario())


@at_each
def test_the_server_there_is_killed(servers: list[ServedHost], moment: str) -> None:
    """Once COMMIT is under way the source waits until it knows: the server that is started again
    has no such machine.
    """
    here, there = servers

    async def scenario() -> None:
        async with under_way(here) as (run, following), held(run.id, here, there, moment) as (_, moving):
            before = len(following.out)
            with restarted(there.server):
                with pytest.raises(AssertionError, match="move"):
                    await moving
                assert len(following.out) >= before
                await to_the_end(run, following)

    in_time(scenario())


@at_each
def test_the_server_here_is_killed(servers: list[ServedHost], moment: str) -> None:
    """Its machine there is ended, unless COMMIT has come."""
    here, there = servers

    async def scenario() -> None:
        async with here.client() as client:
            async with client.start(b"go!!", language="py", interactive=True, detach=True) as run:
                await anext(event async for event in run if isinstance(event, StdoutEvent))
            async with held(run.id, here, there, moment) as (gate, moving):
                (machine,) = there.machines()
                os.kill(here.server, signal.SIGKILL)
                if moment == "RUNNING":
                    gate.open()
                with pytest.raises(AssertionError):
                    await moving
                if moment == "RUNNING":
                    assert there.machines() == [machine]
                else:
                    await none_left(there)

    in_time(scenario())


@at_each
def test_the_machine_here_is_killed(servers: list[ServedHost], moment: str) -> None:
    """It stands still since all of it was sent, and is not missed."""
    here, there = servers

    async def scenario() -> None:
        async with under_way(here) as (run, following), held(run.id, here, there, moment) as (gate, moving):
            os.kill(here.machines()[0], signal.SIGKILL)
            await none_left(here)
            gate.open()
            await moving
            await to_the_end(run, following)

    in_time(scenario())
