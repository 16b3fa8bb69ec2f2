"""Runs that move between two servers in one process: whatever is lost and whoever fails, one
machine runs at a time, and readers and writers at the source see no byte less or twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import MayflyError
from mayfly.host.snippet import Snippet
from mayfly.runs.moves.desk import Moves, follow
from mayfly.runs.record import Reader
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from tests.kit.api_fakes import factory, install_toys, open_descriptors, small_config
from tests.kit.scale import patience
from tests.kit.toy_moves import TIMES, Cut, Road, ToyMachines, World, counted, play_toys


class Stage:
    """Two servers, and the road from the first to the second."""

    def __init__(self, here: Service, there: Service, world: World, cuts: Iterator[Cut | None]) -> None:
        self.here, self.there, self.world = here, there, world
        self.machines_here, self.machines_there = ToyMachines(here, world), ToyMachines(there, world)
        self.moves_here, self.moves_there = Moves(here, self.machines_here, TIMES), Moves(there, self.machines_there, TIMES)
        self.road = Road(self.moves_there, cuts)
        for service in (here, there):
            play_toys(service, world)

    def start(self, count: int = 300, **options: Any) -> Run:
        return self.here.start(Snippet(language="py", source=b"%d" % count, **options))

    async def move(self, run: Run) -> Any:
        return await follow(self.moves_here.begin(run, self.road.connect, to="there"))


Scenario = Callable[[Stage], Awaitable[Any]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    install_toys(monkeypatch, tmp_path)

    def call(scenario: Scenario, cuts: tuple[Cut | None, ...] = (), seed: int = 0) -> Any:
        async def whole() -> Any:
            world = World(seed)
            async with (
                Service(small_config(tmp_path), factory()) as here,
                Service(small_config(tmp_path), factory()) as there,
            ):
                stage = Stage(here, there, world, iter(cuts))
                try:
                    return await asyncio.wait_for(scenario(stage), patience(60))
                finally:
                    await stage.road.close()

        before = open_descriptors()
        result = asyncio.run(whole())
        assert open_descriptors() == before
        return result

    return call


async def until(run: Run, size: int) -> None:
    """Wait until the program has put out so many bytes."""
    while len(run.record.output(0)[0]) < size:
        await run.record.changed()


def read_all(run: Run) -> tuple[str, str]:
    """A program's output, as a reader from the beginning gets it."""
    out, err = run.record.output(0)
    return out.decode(), err.decode()


def test_a_run_moves_and_its_reader_loses_nothing(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(400)
        reader, events = Reader(run.record), []
        await until(run, 200)
        moved = await stage.move(run)
        assert run.result().moved_to == "there"
        assert (moved.rounds, moved.to) == (2, "there")
        assert stage.here.admission.used == 0
        await run.done.wait()
        while (event := reader.take()) is not None:
            events.append(event)
        assert counted(read_all(run)[0]) == 400
        there = stage.there.get(run.id)
        assert there.record.output(0) == run.record.output(0)
        assert run.to_json()["status"] == there.to_json()["status"] == "ok"
        assert there.record.end == run.record.end

    for seed in range(5):
        play(scenario, seed=seed)


def test_a_writer_at_the_source_goes_on_writing(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        said = b"".join(b"[%d]" % number for number in range(2000))
        begun = asyncio.Event()

        async def write() -> None:
            with StdinWriter(run.stdin) as writer:
                for at in range(0, len(said), 7):
                    await writer.write(said[at : at + 7])
                    if at > 700:
                        begun.set()
                await writer.write(b"quit")

        writing = asyncio.create_task(write())
        await begun.wait()
        await stage.move(run)
        await writing
        await run.done.wait()
        out, err = read_all(run)
        assert err == said.decode() + "quit"
        counted(out)

    for seed in range(5):
        play(scenario, seed=seed)


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("at", range(14))
def test_the_connection_is_lost_at_any_message(play: Callable[..., Any], at: int, arrives: bool) -> None:
    async def scenario(stage: Stage) -> str:
        run = stage.start(300)
        await until(run, 100)
        try:
            await stage.move(run)
            how = "moved"
        except MayflyError:
            how = "stayed"
        await run.done.wait()
        assert counted(read_all(run)[0]) == 300
        assert run.to_json()["status"] == "ok"
        assert (how == "moved") == (run.elsewhere is not None)
        return how + ("" if "Commit" in stage.road.log else " early")

    how = play(scenario, cuts=(Cut(at, arrives), Cut(0, False), Cut(1, True), Cut(3, True), None), seed=at)
    assert how in ("moved", "stayed", "stayed early")
