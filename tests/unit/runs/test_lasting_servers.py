"""Runs that outlast their servers: the next one at that socket goes on with them."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from mayfly.api.events import find_position
from mayfly.host.admission import Tenant
from mayfly.host.snippet import Snippet
from mayfly.runs import saves
from mayfly.runs.described import Happened
from mayfly.runs.left import go_on
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.units import MIB
from tests.kit.lasting_kit import Servers, begun, check_end, leave, left, restored, save, save_when_it_runs, until, until_restored
from tests.kit.toy_moves import World


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Servers:
    return Servers(tmp_path, monkeypatch)


def test_a_run_outlasts_its_server(serve: Servers, tmp_path: Path) -> None:
    aside = tmp_path / "aside"

    async def first(service: Service, world: World) -> tuple[str, Any, Any]:
        run = await begun(service)
        at, out = await save(service, run), run.record.output(1)[0]
        await leave(service, run, aside)
        await until(run, len(out) + 100)
        return run.id, at, run.record.end

    run_id, at, beyond = serve(first)
    assert left() == []
    shutil.copytree(aside, saves.folder_of(run_id))

    async def second(service: Service, world: World) -> None:
        go_on(service)
        run = service.get(run_id)
        assert run.record.lives == (at,)
        assert find_position(f"{beyond.span}-{beyond.offset}", run.record) == at
        assert find_position(f"{at.span}-{at.offset}", run.record) == at
        await save_when_it_runs(service, run)
        await check_end(service, world, run)
        (event,) = restored(run)
        assert (event.mark.position, event.repeats) == (at, False)
        assert service.output_socket(run).exists()
        end = run.record.end
        assert find_position(f"{end.span}-{end.offset}.1", run.record) == end

    serve(second)
    assert left() == []


def test_only_the_server_at_the_same_socket_goes_on(serve: Servers, tmp_path: Path) -> None:
    aside = tmp_path / "aside"

    async def first(service: Service, world: World) -> str:
        run = await begun(service)
        await save(service, run)
        await leave(service, run, aside)
        go_on(service)  # it has the run itself
        assert len(list(service.runs)) == 1
        return run.id

    run_id = serve(first)
    shutil.copytree(aside, saves.folder_of(run_id))

    async def other(service: Service, world: World) -> None:
        go_on(service)
        assert not list(service.runs)
        assert run_id in left()
        saves.write(saves.folder_of(run_id), replace(saves.read(run_id), socket=""))  # as `mayfly run` has none
        go_on(service)
        assert left() == []

    serve(other, socket=tmp_path / "other.sock")


@pytest.mark.parametrize("what", ["garbage", "events", "image"])
def test_what_cannot_go_on_says_so_and_leaves_nothing(serve: Servers, tmp_path: Path, what: str) -> None:
    aside = tmp_path / "aside"

    async def first(service: Service, world: World) -> str:
        run = await begun(service)
        await save(service, run)
        await leave(service, run, aside)
        return run.id

    run_id = serve(first)
    shutil.copytree(aside, saves.folder_of(run_id))
    if what == "garbage":
        (saves.folder_of(run_id) / saves.RUN).write_bytes(b"\x81")
    elif what == "events":
        saves.write(saves.folder_of(run_id), replace(saves.read(run_id), events=(Happened(type=99, payload=b""),)))
    else:
        saves.write(saves.folder_of(run_id), replace(saves.read(run_id), image="sha256:other"))

    async def second(service: Service, world: World) -> None:
        go_on(service)
        found = list(service.runs)
        if what != "image":
            assert not found
        else:
            (run,) = found
            await service.settled(run)
            assert run.to_json()["error"]["code"] == "snapshot_failed"
            assert service.admission.used == 0
        assert left() == []

    serve(second)


def test_a_run_goes_on_only_so_often_in_all(serve: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However often it is saved in between."""
    for module in ("lasting", "left"):
        monkeypatch.setattr(f"mayfly.runs.{module}.MAX_RESTORED", 5)
    aside = tmp_path / "aside"

    async def scenario(service: Service, world: World) -> str:
        run = await begun(service)
        for number in range(6):
            await until_restored(run, number)
            while run.exchange is None:
                await asyncio.sleep(0)
            await until(run, len(run.record.output(1)[0]) + 20)
            await save(service, run)
            if number == 5:
                await leave(service, run, aside)
            world.made[-1].die()
        await service.settled(run)
        assert run.to_json()["error"]["code"] == "guest_failed"
        assert len(restored(run)) == 5
        return run.id

    run_id = serve(scenario)
    shutil.copytree(aside, saves.folder_of(run_id))

    async def second(service: Service, world: World) -> None:
        go_on(service)
        assert not list(service.runs)
        assert left() == []

    serve(second)


def test_a_run_that_is_taken_back_waits_for_room_and_is_its_keys(serve: Servers, tmp_path: Path) -> None:
    aside = tmp_path / "aside"

    async def first(service: Service, world: World) -> str:
        run = service.start(Snippet(language="toy", source=b"-1", checkpoint_every_s=1000), publish=True, tenant=Tenant("key"))
        await until(run, 100)
        await save(service, run)
        await leave(service, run, aside)
        return run.id

    run_id = serve(first)
    shutil.copytree(aside, saves.folder_of(run_id))

    async def second(service: Service, world: World) -> None:
        other = service.start(Snippet(language="toy", source=b"-1"))
        tenant = Tenant("key", concurrency=1)
        go_on(service, {"key": tenant}.get)
        run = service.get(run_id)
        while not service.admission.first_waiting:
            await asyncio.sleep(0)
        assert not run.done.is_set()
        await service.forget(other.id)
        while run.exchange is None:
            await asyncio.sleep(0)
        assert (tenant.runs, tenant.memory_used) == (1, service.admission.used)
        await until(run, len(run.record.output(1)[0]) + 100)
        await check_end(service, world, run)
        assert (tenant.runs, tenant.memory_used) == (0, 0)

    serve(second, queue=0, memory_budget=128 * MIB)


def test_only_what_has_an_id_is_a_saved_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = paths.saved_runs_dir()
    folder.mkdir(parents=True)
    for name in ("...", ".lock", "other", f".{'0' * 32}.lock", "0" * 31):
        (folder / name).touch()
    assert list(saves.left()) == ["0" * 32]
