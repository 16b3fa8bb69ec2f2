"""Servers, one after another, whose runs outlast them; their machines are toys."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from mayfly.host.snippet import Snippet
from mayfly.runs import saves
from mayfly.runs.record import Position, Reader, Restored
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from tests.kit.api_fakes import factory, install_toys, open_descriptors, small_config
from tests.kit.scale import patience
from tests.kit.toy_moves import World, counted, play_toys, save_toys

Scenario = Callable[[Service, World], Awaitable[Any]]


class Servers:
    """Servers one after another, each with the same folders."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tmp_path = tmp_path
        self.world = World()
        self.sockets = tmp_path / "runs"
        self.sockets.mkdir()
        install_toys(monkeypatch, tmp_path)
        save_toys(monkeypatch, self.world)

    def __call__(self, scenario: Scenario, **changes: Any) -> Any:
        """Run a scenario with a server around it."""

        async def whole() -> Any:
            async with Service(small_config(self.tmp_path, **changes), factory(), sockets=self.sockets) as service:
                play_toys(service, self.world)
                return await asyncio.wait_for(scenario(service, self.world), patience(60))

        before = open_descriptors()
        result = asyncio.run(whole())
        assert open_descriptors() == before
        assert not self.world.running
        return result


def left() -> list[str]:
    """What is there of saved runs."""
    folder = paths.saved_runs_dir()
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


async def begun(service: Service, size: int = 100) -> Run:
    """A run that counts without end, and has begun to."""
    run = service.start(Snippet(language="toy", source=b"-1", checkpoint_every_s=1000), publish=True)
    await until(run, size)
    return run


async def until(run: Run, size: int) -> None:
    """Wait until its program has put out so many bytes."""
    while len(run.record.output(1)[0]) < size:
        await run.record.changed()


async def save(service: Service, run: Run) -> Position:
    """Save it now; where that was."""
    lasting = service.work[run.id].lasting
    assert lasting
    await lasting.save()
    assert lasting._saved
    return lasting._saved.mark.position


async def until_restored(run: Run, count: int) -> None:
    while len(restored(run)) < count:
        await run.record.changed()


def restored(run: Run) -> list[Restored]:
    events = iter(Reader(run.record).take, None)
    return [event for event in events if isinstance(event, Restored)]


async def check_end(service: Service, world: World, run: Run, machine: int = -1) -> None:
    """Have the program end, which is in that one of all machines; what it has put out is there
    once.
    """
    state = world.made[machine].state
    state["source"] = b"%d" % (state["n"] + 20)
    await service.settled(run)
    result = run.result()
    assert (result.status, result.error) == ("ok", None)
    assert [step.step for step in result.steps] == ["build", "run"]
    assert counted(result.steps[1].stdout or "") == state["n"]


async def leave(service: Service, run: Run, aside: Path) -> None:
    """Keep what a server leaves that is killed now."""
    shutil.copytree(saves.folder_of(run.id), aside)


async def save_when_it_runs(service: Service, run: Run) -> None:
    while run.exchange is None:
        await asyncio.sleep(0)
    await until(run, 300)
    await save(service, run)
    assert len(saves.read(run.id).lives) == 1


@contextlib.asynccontextmanager
async def another(tmp_path: Path, world: World) -> AsyncIterator[Service]:
    """Another server, which takes runs that move."""
    sockets = tmp_path / "there"
    sockets.mkdir()
    async with Service(small_config(tmp_path, socket=tmp_path / "there.sock"), factory(), sockets=sockets) as there:
        play_toys(there, world)
        yield there
