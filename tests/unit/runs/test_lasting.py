"""Runs that outlast their machines, which are toys, and their servers: each goes on from its last
save, readers are told, and nothing that was saved is left behind.
"""

import asyncio
import contextlib
import errno
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly import files, paths
from mayfly.api.events import find_position
from mayfly.errors import GuestError, HostError, MoveError, ServerLostError, UnprocessableError
from mayfly.files import clear
from mayfly.guests.converse import BytesStdin
from mayfly.host.admission import Tenant
from mayfly.host.snippet import MAX_OF_A_SAVE, Case, Mode, Snippet, Terminal
from mayfly.protocol.frames import Stage, Stdout
from mayfly.runs import saves
from mayfly.runs.described import Happened
from mayfly.runs.lasting import Lasting
from mayfly.runs.left import go_on
from mayfly.runs.moves.desk import Moves, follow
from mayfly.runs.record import MAX_RESTORED, Position, Reader, Restored
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.snapshots import live
from mayfly.units import MIB
from tests.kit.api_fakes import factory, install_toys, open_descriptors, small_config
from tests.kit.scale import patience
from tests.kit.toy_moves import TIMES, Cut, MemoryLink, Road, ToyMachines, World, counted, lose_toys_while_saved, play_toys, save_toys

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


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Servers:
    return Servers(tmp_path, monkeypatch)


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


def test_a_run_outlasts_its_machine(serve: Servers) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service)
        at = await save(service, run)
        assert left() == [f".{run.id}.lock", run.id]
        assert (saves.folder_of(run.id) / saves.RUN).stat().st_mode & 0o777 == 0o600  # it holds input and output
        await until(run, len(run.record.output(1)[0]) + 100)
        world.made[-1].die()
        await until_restored(run, 1)
        await check_end(service, world, run)
        (event,) = restored(run)
        assert (event.mark.position, event.repeats) == (at, True)
        assert left() == []
        assert service.admission.used == 0
        assert [process.alive for process in world.made] == [False, False]

    serve(scenario)


def test_a_save_that_is_whole_counts_though_the_machine_is_lost_then(serve: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(service: Service, world: World) -> None:
        lose_toys_while_saved(monkeypatch, world)
        run = await begun(service)
        await save(service, run)
        await until_restored(run, 1)
        await check_end(service, world, run)

    serve(scenario)


def test_a_save_that_is_cut_off_is_removed_beside_the_loop(serve: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    async def scenario(service: Service, world: World) -> None:
        run = await begun(service)

        def note(folder: Path) -> None:
            threads.append(threading.current_thread())
            clear(folder)

        async def fail(*_: object, **__: object) -> None:
            monkeypatch.setattr(files, "clear", note)
            raise GuestError("it is cut off")

        with monkeypatch.context() as patch:
            patch.setattr(live, "save", fail)
            with pytest.raises(GuestError, match="cut off"):
                await save(service, run)
        assert threads and threading.main_thread() not in threads
        assert left() == [f".{run.id}.lock"]
        await check_end(service, world, run)

    serve(scenario)


def test_each_save_takes_the_place_of_the_one_before(serve: Servers) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service)
        for _ in range(3):
            await save(service, run)
            assert left() == [f".{run.id}.lock", run.id]
            await until(run, len(run.record.output(1)[0]) + 50)
        world.made[-1].die()
        await until_restored(run, 1)
        await until(run, len(run.record.output(1)[0]) + 50)
        await save(service, run)
        await until(run, len(run.record.output(1)[0]) + 50)
        world.made[-1].die()
        await until_restored(run, 2)
        await check_end(service, world, run)
        assert len(restored(run)) == 2

    serve(scenario)


def test_a_machine_that_is_lost_again_and_again_is_given_up(serve: Servers) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service)
        await save(service, run)
        for number in range(MAX_OF_A_SAVE + 1):
            await until_restored(run, number)
            world.made[-1].die()
        await service.settled(run)
        assert run.to_json()["error"]["code"] == "guest_failed"
        assert len(restored(run)) == MAX_OF_A_SAVE
        assert left() == []

    serve(scenario)


@pytest.mark.parametrize("saved", [False, True])
def test_what_ends_otherwise_does_not_go_on(serve: Servers, saved: bool) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service)
        if saved:
            await save(service, run)
            world.made[-1].kill()  # as a machine that says why it ends
        else:
            world.made[-1].die()
        await service.settled(run)
        assert run.to_json()["error"]["code"] == "guest_failed"
        other = await begun(service)
        await save(service, other)
        await service.forget(other.id)
        assert left() == []

    serve(scenario)


def test_a_run_ends_though_its_save_hears_of_no_cancellation(serve: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = asyncio.Event()

    async def hang(self: Lasting) -> None:
        saving.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr(Lasting, "save", hang)

    async def scenario(service: Service, world: World) -> None:
        run = service.start(Snippet(language="toy", source=b"-1", checkpoint_every_s=1), publish=True)
        await saving.wait()
        await until(run, 100)
        await check_end(service, world, run)

    serve(scenario)


async def leave(service: Service, run: Run, aside: Path) -> None:
    """Keep what a server leaves that is killed now."""
    shutil.copytree(saves.folder_of(run.id), aside)


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


async def save_when_it_runs(service: Service, run: Run) -> None:
    while run.exchange is None:
        await asyncio.sleep(0)
    await until(run, 300)
    await save(service, run)
    assert len(saves.read(run.id).lives) == 1


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


@contextlib.asynccontextmanager
async def another(tmp_path: Path, world: World) -> AsyncIterator[Service]:
    """Another server, which takes runs that move."""
    sockets = tmp_path / "there"
    sockets.mkdir()
    async with Service(small_config(tmp_path, socket=tmp_path / "there.sock"), factory(), sockets=sockets) as there:
        play_toys(there, world)
        yield there


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


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cases": (Case(),)}, "cases"),
        ({"network": True}, "network"),
        ({"interactive": True}, "standard input"),
        ({"tty": Terminal(columns=80, rows=24)}, "standard input"),
    ],
)
def test_what_no_save_holds_is_refused_by_name(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UnprocessableError, match=says):
        Snippet(source=b"", checkpoint_every_s=5, **fields)


@pytest.mark.parametrize("every_s", [float("nan"), 1e-300, -1.0])
def test_no_machine_is_saved_all_the_time(every_s: float) -> None:
    with pytest.raises(UnprocessableError, match="at least 1"):
        Snippet(source=b"", checkpoint_every_s=every_s)


def test_input_that_is_a_clients_is_refused(serve: Servers) -> None:
    async def scenario(service: Service, world: World) -> None:
        with pytest.raises(UnprocessableError, match="belongs to a client"):
            service.start(Snippet(language="toy", source=b"1", checkpoint_every_s=5), stdin=BytesStdin(b""))
        assert service.admission.used == 0
        assert left() == []

    serve(scenario)


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


def test_a_record_has_room_for_as_many_lives_as_there_may_be() -> None:
    run = Run(language="toy", version="1", mode=Mode.RAW, step_names=("build",) * 255)
    for number in range(MAX_RESTORED):
        run.note(Stage(254, "run"))
        run.note(Stdout(b"%d," % number))
        mark = run.record.mark()
        assert run.record.may_go_back(mark)
        run.replay(Restored("lost", mark, 0, repeats=False))
    assert run.record.output(254)[0] == b"".join(b"%d," % number for number in range(MAX_RESTORED))
    assert not run.record.may_go_back(run.record.mark())


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


def test_only_what_has_an_id_is_a_saved_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = paths.saved_runs_dir()
    folder.mkdir(parents=True)
    for name in ("...", ".lock", "other", f".{'0' * 32}.lock", "0" * 31):
        (folder / name).touch()
    assert list(saves.left()) == ["0" * 32]


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
