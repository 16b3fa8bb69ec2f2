"""`mayfly serve` is killed, and the next one goes on with what the first had saved of its runs. The
machine is a real one: a tiny guest plays the agent.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mayfly import paths
from mayfly.client.asynchronous import AsyncClient, AsyncRun
from mayfly.client.results import RestoredEvent, StdoutEvent
from mayfly.images.store import Images
from mayfly.protocol import frames as p
from mayfly.runs import saves
from tests.kit import tiny
from tests.kit.api_fakes import MARKER, install_toys
from tests.kit.scale import patience
from tests.kvm.test_moved_run import CYCLE, playing

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]


@contextmanager
def serving(socket: Path, kernel: Path) -> "Iterator[subprocess.Popen[str]]":
    """A server of this user, which listens."""
    flags = ["--cold", "--channel", "serial", "--time-factor", "1", "--run-wall-s", "600"]
    command = [sys.executable, "-m", "mayfly.cli.main", "serve", "--socket", str(socket), "--kernel", str(kernel), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = []
            while "listening" not in (line := server.stderr.readline()):
                said.append(line)
                assert line, said
            yield server
        finally:
            server.terminate()


async def numbers(run: AsyncRun) -> AsyncIterator[int | None]:
    """What the program says, from the beginning on; None where it goes on from a save."""
    part = b""
    async for event in run:
        if isinstance(event, RestoredEvent):
            yield None
        elif isinstance(event, StdoutEvent):
            *lines, part = (part + event.data).split(b"\n")
            for line in lines:
                yield int(line)


async def read(run: AsyncRun, count: int) -> int:
    """Read so many numbers behind the last place where it went on; how often that was."""
    restored = seen = 0
    async for number in numbers(run):
        if number is None:
            restored, seen = restored + 1, 0
        else:
            seen += 1
        if restored and seen == count:
            break
    return restored


def test_a_run_outlasts_a_server_that_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    hello = p.Hello(p.PROTOCOL_VERSION, "toy", Images().arch, 1, MARKER)
    kernel = tiny.build(tmp_path, playing(tmp_path, hello))
    socket = tmp_path / "api.sock"

    async def first(server: "subprocess.Popen[str]") -> str:
        async with AsyncClient(socket) as client, client.start(b"go!!", language="py", checkpoint_every_s=1, detach=True) as run:
            while not (saves.folder_of(run.id) / saves.RUN).exists():
                await asyncio.sleep(0.05)
            os.kill(server.pid, signal.SIGKILL)
            return run.id

    async def second(run_id: str) -> None:
        async with AsyncClient(socket) as client:
            run = client.get(run_id)
            assert await read(run, 3 * CYCLE) == 1
            whole, now = [], 0
            async for number in numbers(run):
                whole += [number] if number is not None else []
                now += number is None or now > 0
                if now == 3 * CYCLE:
                    break
            assert whole == [index % CYCLE for index in range(len(whole))]
            await run.cancel()

    with serving(socket, kernel) as server:
        run_id = asyncio.run(asyncio.wait_for(first(server), patience(60)))
    with serving(socket, kernel):
        asyncio.run(asyncio.wait_for(second(run_id), patience(60)))
    assert not list(paths.saved_runs_dir().iterdir())
