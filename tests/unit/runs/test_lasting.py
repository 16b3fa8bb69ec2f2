"""Runs that outlast their machines, which are toys: each goes on from its last save, readers are
told, and nothing that was saved is left behind.
"""

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest

from mayfly import files
from mayfly.errors import GuestError, UnprocessableError
from mayfly.files import clear
from mayfly.guests.converse import BytesStdin
from mayfly.host.snippet import MAX_OF_A_SAVE, Case, Mode, Snippet, Terminal
from mayfly.protocol.frames import Stage, Stdout
from mayfly.runs import saves
from mayfly.runs.lasting import Lasting
from mayfly.runs.record import MAX_RESTORED, Restored
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.snapshots import live
from tests.kit.lasting_kit import Servers, begun, check_end, left, restored, save, until, until_restored
from tests.kit.toy_moves import World, lose_toys_while_saved


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Servers:
    return Servers(tmp_path, monkeypatch)


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
