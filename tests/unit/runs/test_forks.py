"""Clones of runs, whose machines are toys: each goes on from the same moment by itself, and nothing
is left of those that cannot be.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import BusyError, KeyLimitError, MayflyError, NotForkableError, NotRunningError, RunEndedError
from mayfly.host.admission import Tenant
from mayfly.host.snippet import Case, Snippet
from mayfly.runs.forks import fork
from mayfly.runs.record import Reader
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from mayfly.snapshots import live
from mayfly.units import MIB
from tests.kit.api_fakes import factory, install_toys, open_descriptors, small_config
from tests.kit.scale import patience
from tests.kit.toy_moves import ToyProcess, World, counted, play_toys, save_toys

Scenario = Callable[[Service, World], Awaitable[Any]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    install_toys(monkeypatch, tmp_path)
    sockets = tmp_path / "runs"
    sockets.mkdir()

    def call(scenario: Scenario, seed: int = 0, **changes: Any) -> None:
        async def whole() -> None:
            world = World(seed)
            save_toys(monkeypatch, world)
            async with Service(small_config(tmp_path, **{"memory_budget": 1024 * MIB, **changes}), factory(), sockets=sockets) as service:
                play_toys(service, world)
                await asyncio.wait_for(scenario(service, world), patience(60))
            assert service.admission.used == 0
            assert not world.running

        before = open_descriptors()
        asyncio.run(whole())
        assert open_descriptors() == before
        assert list(sockets.iterdir()) == []
        assert [path.name for path in (tmp_path / "data/mayfly/snapshots").glob("*")] == []

    return call


async def begun(service: Service, count: int = -1, size: int = 100, **options: Any) -> Run:
    """A run that counts, and has begun to."""
    tenant = options.pop("tenant", None)
    run = service.start(Snippet(language="py", source=b"%d" % count, **options), tenant=tenant, publish=True)
    while len(run.record.output(0)[0]) < size:
        await run.record.changed()
    return run


async def say(run: Run, data: bytes) -> None:
    with StdinWriter(run.stdin) as writer:
        await writer.write(data)


@pytest.mark.parametrize("seed", range(3))
def test_clones_and_the_original_go_on_from_one_moment(play: Callable[..., Any], seed: int) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service, 300)
        clones = await fork(service, run, 3)
        assert len({run.id, *(clone.id for clone in clones)}) == 4
        assert service.output_socket(clones[0]).exists()
        for one in (run, *clones):
            await service.settled(one)
            result = one.result()
            assert (result.status, result.error) == ("ok", None)
            assert counted(one.record.output(0)[0].decode()) == 300
        assert {clone.result().forked_from for clone in clones} == {run.id}
        told = world.identities  # each clone that it is another, and the original nothing
        assert len(told) == len({each.entropy for each in told}) == len({each.boot_id for each in told}) == 3
        assert len({each.hostname for each in told} - {""}) == 3

    play(scenario, seed=seed)


def test_a_clones_record_begins_with_what_the_original_had(play: Callable[..., Any]) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service, -1, interactive=True)
        at = run.record.end
        (clone,) = await fork(service, run, 1)
        assert clone.record.has(at)
        readers = Reader(run.record), Reader(clone.record)
        first = [reader.take() for reader in readers]
        assert first[0] == first[1]
        for one in (run, clone):
            await say(one, b"quit")
            await service.settled(one)

    play(scenario)


def test_each_has_a_standard_input_of_its_own(play: Callable[..., Any]) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service, interactive=True, stdin=b"first,")
        await say(run, b"x" * 3000 + b",")
        clones = await fork(service, run, 2)
        for number, one in enumerate((run, *clones)):
            await say(one, b"%d," % number)
            await say(one, b"quit")
        for number, one in enumerate((run, *clones)):
            await service.settled(one)
            assert one.record.output(0)[1] == b"first," + b"x" * 3000 + b",%d,quit" % number

    play(scenario)


def test_signals_and_ends_reach_one_of_them(play: Callable[..., Any]) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service, interactive=True)
        going, ended = await fork(service, run, 2)
        await service.signal(going, 10)
        await service.forget(ended.id)
        while b"<10>" not in going.record.output(0)[1]:
            await going.record.changed()
        assert not run.done.is_set()
        assert b"<10>" not in run.record.output(0)[1]
        assert service.admission.used == 2 * 128 * MIB
        (again,) = await fork(service, going, 1)
        assert again.forked_from == going.id
        for one in (run, going, again):
            await say(one, b"quit")
            await service.settled(one)
            counted(one.record.output(0)[0].decode())

    play(scenario)


def test_a_key_pays_for_the_clones_of_its_run(play: Callable[..., Any]) -> None:
    async def scenario(service: Service, world: World) -> None:
        tenant = Tenant("key", concurrency=3)
        run = await begun(service, interactive=True, tenant=tenant)
        with pytest.raises(KeyLimitError):
            await fork(service, run, 3)
        assert (tenant.runs, tenant.memory_used) == (1, 128 * MIB)
        clones = await fork(service, run, 2)
        assert (tenant.runs, tenant.memory_used) == (3, 3 * 128 * MIB)
        assert {clone.owner for clone in clones} == {run.owner}
        for one in (run, *clones):
            await service.forget(one.id)
        assert (tenant.runs, tenant.memory_used) == (0, 0)

    play(scenario)


def test_there_must_be_room_for_all_of_them(play: Callable[..., Any]) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service, interactive=True)
        refused: list[None] = []
        service.observer.refused = lambda: refused.append(None)  # type: ignore[method-assign]
        with pytest.raises(BusyError, match="no room for 4 machines"):
            await fork(service, run, 4)
        assert len(refused) == 1
        assert service.admission.used == 128 * MIB
        assert len(world.made) == 1
        assert len(await fork(service, run, 3)) == 3

    play(scenario, memory_budget=512 * MIB)


def test_nothing_is_left_of_clones_one_of_which_does_not_come_up(play: Callable[..., Any]) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service, 200)
        world.clones_left = 2
        with pytest.raises(MayflyError, match="the clone failed"):
            await fork(service, run, 3)
        assert not any(process.alive for process in world.made[1:])
        assert service.admission.used == 128 * MIB
        await service.settled(run)
        assert counted(run.record.output(0)[0].decode()) == 200

    play(scenario)


def test_nothing_is_left_when_who_asked_goes_away_while_clones_are_made(play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service, 200)
        real, second = live.clone, asyncio.Event()

        async def clone(*args: Any) -> Any:
            if len(world.made) == 2:
                second.set()
                await asyncio.Event().wait()
            return await real(*args)

        monkeypatch.setattr(live, "clone", clone)
        await cancelled(asyncio.create_task(fork(service, run, 2)), second)
        assert not any(process.alive for process in world.made[1:])
        assert service.admission.used == 128 * MIB
        await service.settled(run)

    play(scenario)


def test_nothing_is_left_when_who_asked_goes_away_while_clones_are_let_go(
    play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(service: Service, world: World) -> None:
        run = await begun(service, 200)
        real, begun_to = ToyProcess.resume, asyncio.Event()

        async def resume(process: ToyProcess) -> None:
            if process.number == 3:
                begun_to.set()
                await asyncio.Event().wait()
            await real(process)

        monkeypatch.setattr(ToyProcess, "resume", resume)
        await cancelled(asyncio.create_task(fork(service, run, 3)), begun_to)
        assert list(service.runs) == [run]
        assert not any(process.alive for process in world.made[1:])
        assert service.admission.used == 128 * MIB
        await service.settled(run)

    play(scenario)


async def cancelled(task: "asyncio.Task[Any]", when: asyncio.Event) -> None:
    await when.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def test_what_cannot_be_cloned_is_refused(play: Callable[..., Any]) -> None:
    async def scenario(service: Service, world: World) -> None:
        waiting = service.start(Snippet(language="py", source=b"1"))
        with pytest.raises(NotRunningError):
            await fork(service, waiting, 1)
        await service.settled(waiting)
        with pytest.raises(RunEndedError):
            await fork(service, waiting, 1)
        cases = service.start(Snippet(language="toy", source=b"true", cases=(Case(),)))
        with pytest.raises(NotForkableError, match="cases"):
            await fork(service, cases, 1)
        await service.forget(cases.id)

    play(scenario)
