"""Runs that are saved, and move: what was saved never goes on beside them."""

import asyncio
import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.errors import HostError, MoveError, ServerLostError
from mayfly.runs import saves
from mayfly.runs.left import go_on
from mayfly.runs.moves.desk import Moves, follow
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from tests.kit.api_fakes import factory, small_config
from tests.kit.lasting_kit import Servers, another, begun, check_end, leave, left, save, until, until_restored
from tests.kit.road import Cut, MemoryLink, Road
from tests.kit.toy_moves import TIMES, ToyMachines, World, play_toys


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Servers:
    return Servers(tmp_path, monkeypatch)


def test_a_run_that_moves_leaves_nothing_that_could_go_on_here(serve: Servers, tmp_path: Path) -> None:
    async def scenario(service: Service, world: World) -> None:
        async with another(tmp_path, world) as there:
            road = Road(Moves(there, ToyMachines(there, world), TIMES), iter(()))
            run = await begun(service)
            await save(service, run)
            dropped: list[bool] = []
            real = service.leave_saves

            async def leave_saves(run: Run) -> None:
                assert "Commit" not in road.log
                await real(run)
                dropped.append(saves.folder_of(run.id).exists())

            service.leave_saves = leave_saves  # type: ignore[method-assign]
            await follow(Moves(service, ToyMachines(service, world), TIMES).begin(run, road.connect, to="there"))
            assert dropped == [False]
            assert there.get(run.id).checkpoint_every_s == 1000
            await check_end(service, world, run)
            await road.close()

    serve(scenario)


def test_a_run_whose_save_cannot_be_removed_does_not_move(serve: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next server here would go on with it, while it runs there."""
    faults = [OSError(errno.EIO, "Input/output error"), None]

    def drop(run_id: str, real: Callable[[str], None] = saves.drop) -> None:
        if faults and (fault := faults.pop(0)):
            raise fault
        real(run_id)

    monkeypatch.setattr(saves, "drop", drop)

    async def scenario(service: Service, world: World) -> None:
        async with another(tmp_path, world) as there:
            road = Road(Moves(there, ToyMachines(there, world), TIMES), iter(()))
            run = await begun(service)
            await save(service, run)
            moves = Moves(service, ToyMachines(service, world), TIMES)
            with pytest.raises(HostError, match=r"it stays here: .*Input/output error"):
                await follow(moves.begin(run, road.connect, to="there"))
            assert "Ready" in road.log
            assert "Commit" not in road.log
            assert run.elsewhere is None
            assert saves.folder_of(run.id).exists()
            await until(run, len(run.record.output(1)[0]) + 100)
            await follow(moves.begin(run, road.connect, to="there"))
            assert not saves.folder_of(run.id).exists()
            await check_end(service, world, run)
            await road.close()

    serve(scenario)


def test_what_a_lost_destination_saved_does_not_go_on_beside_the_source(serve: Servers, tmp_path: Path) -> None:
    """It is killed after COMMIT, before the source knows that it has read it."""
    aside = tmp_path / "aside"

    restarted: list[bool] = []

    async def scenario(service: Service, world: World) -> None:
        run = await begun(service)
        async with another(tmp_path, world) as there:
            road = Road(Moves(there, ToyMachines(there, world), TIMES), iter((Cut("Running", arrives=False),)))

            async def connect() -> MemoryLink:
                if "Commit" in road.log and not restarted:
                    raise ServerLostError("there is no server")
                return await road.connect()

            moving = asyncio.ensure_future(follow(Moves(service, ToyMachines(service, world), TIMES).begin(run, connect, to="there")))
            while not any(one.id == run.id for one in there.runs):
                await asyncio.sleep(0)
            come = there.get(run.id)
            await until(come, len(come.record.output(1)[0]) + 100)
            await save(there, come)
            await leave(there, come, aside)
        shutil.rmtree(tmp_path / "there")
        shutil.copytree(aside, saves.folder_of(run.id))
        async with another(tmp_path, world) as there:
            go_on(there)
            come = there.get(run.id)
            await until(come, 100)
            road.there = Moves(there, ToyMachines(there, world), TIMES)
            restarted.append(True)
            with pytest.raises(MoveError, match="it goes on here"):
                await moving
            assert not list(there.runs)
            assert "Unknown" in road.log
            assert left() == []
            await check_end(service, world, run, 0)
            await road.close()

    serve(scenario)


def test_a_run_is_ended_at_once_while_its_move_does_not_come_to_an_end(serve: Servers, tmp_path: Path) -> None:
    async def scenario(service: Service, world: World) -> None:
        async with Service(small_config(tmp_path, socket=tmp_path / "there.sock"), factory()) as there:
            play_toys(there, world)
            road = Road(Moves(there, ToyMachines(there, world), TIMES), iter((Cut("Commit", arrives=False),)))
            run = await begun(service)
            await save(service, run)
            moving = asyncio.create_task(follow(Moves(service, ToyMachines(service, world), TIMES).begin(run, road.connect, to="there")))
            while "Ready" not in road.log:
                await asyncio.sleep(0)
            road.closed = True  # it asks and asks
            while "Commit" not in road.log:
                await asyncio.sleep(0)
            assert run.alone.locked()
            await service._end(run, "it was deleted")
            assert run.alone.locked()
            assert left() == []
            moving.cancel()
            await road.close()
            await asyncio.wait([moving])

    serve(scenario)


def test_a_run_that_comes_back_is_saved_again_and_outlasts_its_machine(serve: Servers, tmp_path: Path) -> None:
    async def scenario(service: Service, world: World) -> None:
        async with Service(small_config(tmp_path, socket=tmp_path / "there.sock"), factory()) as there:
            play_toys(there, world)
            here, other = (Moves(one, ToyMachines(one, world), TIMES) for one in (service, there))
            road, back = Road(other, iter(())), Road(here, iter(()))
            run = await begun(service)
            await save(service, run)
            await follow(here.begin(run, road.connect, to="there"))
            await follow(other.begin(there.get(run.id), back.connect, to="here"))
            await until(run, len(run.record.output(1)[0]) + 100)
            await save(service, run)
            world.made[-1].die()
            await until_restored(run, 1)
            await check_end(service, world, run)
            assert left() == []
            await road.close()
            await back.close()

    serve(scenario)
