"""Runs that move between two servers in one process: whatever is lost and whoever fails, one
machine runs at a time, and readers and writers at the source see no byte less or twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from mayfly.errors import HostError, MayflyError, MoveError, NotMovableError, RunEndedError
from mayfly.host.snippet import Snippet
from mayfly.runs.moves.desk import Moves, follow
from mayfly.runs.moves.messages import Fits, Message
from mayfly.runs.record import Reader
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from mayfly.schema import replace
from tests.kit.api_fakes import factory, install_toys, open_descriptors, small_config
from tests.kit.road import Cut, MemoryLink, Road, cancelled_at
from tests.kit.scale import patience
from tests.kit.toy_moves import PACE_S, TIMES, ToyMachines, ToyProcess, World, counted, play_toys

RUNNING = 11
"""Messages on the connection of a move that goes well, to RUNNING, or one more or less."""

MUCH = 500_000
"""Bytes of input, far from the limit of output, in which a program repeats it."""


class Stage:
    """Two servers, and the roads from the first to the second, and back."""

    def __init__(self, here: Service, there: Service, world: World, cuts: Iterator[Cut | None], cuts_back: Iterator[Cut | None]) -> None:
        self.here, self.there, self.world = here, there, world
        self.machines_here, self.machines_there = ToyMachines(here, world), ToyMachines(there, world)
        self.moves_here, self.moves_there = Moves(here, self.machines_here, TIMES), Moves(there, self.machines_there, TIMES)
        self.road, self.road_back = Road(self.moves_there, cuts), Road(self.moves_here, cuts_back)
        for service in (here, there):
            play_toys(service, world)

    def start(self, count: int = 300, **options: Any) -> Run:
        return self.here.start(Snippet(language="py", source=b"%d" % count, **options))

    async def move(self, run: Run) -> Any:
        return await follow(self.moves_here.begin(run, self.road.connect, to="there"))

    async def move_back(self, run: Run) -> Any:
        return await follow(self.moves_there.begin(self.there.get(run.id), self.road_back.connect, to="here"))


Scenario = Callable[[Stage], Awaitable[Any]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    install_toys(monkeypatch, tmp_path)

    def call(scenario: Scenario, cuts: tuple[Cut | None, ...] = (), seed: int = 0, cuts_back: tuple[Cut | None, ...] = ()) -> Any:
        async def whole() -> Any:
            world = World(seed)
            config = small_config(tmp_path, run_wall_s=patience(60))
            async with Service(config, factory()) as here, Service(config, factory()) as there:
                stage = Stage(here, there, world, iter(cuts), iter(cuts_back))
                try:
                    return await asyncio.wait_for(scenario(stage), patience(60))
                finally:
                    await stage.road.close()
                    await stage.road_back.close()

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
        (identity,) = stage.world.identities  # where it goes on, and only once
        assert (len(identity.entropy), identity.hostname, identity.network) == (64, "", "")

    for seed in range(3):
        play(scenario, seed=seed)


def test_what_a_program_says_last_comes_over_a_slow_connection(play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(link: MemoryLink, message: Message) -> None:
        await asyncio.sleep(5 * PACE_S)  # in which the program says something
        link.wire.carry(link, message)

    monkeypatch.setattr(MemoryLink, "send", send)

    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        await until(run, 50)
        await stage.move(run)
        with StdinWriter(run.stdin) as writer:
            await writer.write(b"quit")
        await run.done.wait()
        assert run.to_json()["status"] == "ok"
        assert read_all(run) == read_all(stage.there.get(run.id))

    for seed in range(3):
        play(scenario, seed=seed)


def test_a_program_that_has_no_checkpoint_is_not_stopped_for_one(play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the destination says."""

    async def send(link: MemoryLink, message: Message) -> None:
        await real(link, replace(message, portable=True) if isinstance(message, Fits) else message)

    real = MemoryLink.send
    monkeypatch.setattr(MemoryLink, "send", send)

    async def scenario(stage: Stage) -> None:
        run = stage.start()
        await until(run, 100)
        with pytest.raises(MoveError, match="sent Fits"):
            await stage.move(run)
        await run.done.wait()
        assert (counted(read_all(run)[0]), read_all(run)[1]) == (300, "")

    play(scenario)


def test_a_writer_at_the_source_goes_on_writing(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        said = b"".join(b"[%d]" % number for number in range(500))
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

    for seed in range(3):
        play(scenario, seed=seed)


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("at", range(RUNNING + 4))
def test_the_connection_is_lost_at_any_message(play: Callable[..., Any], at: int, arrives: bool) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(300)
        await until(run, 100)
        moved = await moved_or_not(stage, run)
        names = stage.road.wires[0].names
        if names[-1] != "Commit" or not arrives:  # else the destination reads COMMIT or the question first
            assert moved == ("Commit" in names[:-1])
        assert moved == (run.elsewhere is not None)
        await run.done.wait()
        assert counted(read_all(run)[0]) == 300
        assert run.to_json()["status"] == "ok"

    play(scenario, cuts=(Cut(at, arrives), Cut(0, False), Cut(1, True), Cut(3, True), None), seed=at)


async def moved_or_not(stage: Stage, run: Run) -> bool:
    try:
        await stage.move(run)
    except MayflyError:
        return False
    return True


@pytest.mark.parametrize("at", range(RUNNING + 1))
def test_a_move_is_cancelled_at_any_message(play: Callable[..., Any], at: int) -> None:
    """It is taken back, or says that it is too late for that and goes on."""

    async def scenario(stage: Stage) -> None:
        run = stage.start(300)
        await until(run, 100)
        going = stage.moves_here.begin(run, stage.road.connect, to="there")
        assert await cancelled_at(going, stage.road, at) == (run.elsewhere is None)
        await run.done.wait()
        assert counted(read_all(run)[0]) == 300
        assert run.to_json()["status"] == "ok"
        await stage.road.close()
        await asyncio.gather(*(service.settled(run) for service in (stage.here, stage.there)))
        assert (stage.here.admission.used, stage.there.admission.used) == (0, 0)
        assert not stage.world.running

    for seed in range(3):
        play(scenario, seed=seed)


async def being_sent(stage: Stage) -> tuple[Run, "asyncio.Task[bool]"]:
    """A run whose machine is being sent, without an end."""
    stage.machines_here.endless = True
    run = stage.start(-1, interactive=True)
    await until(run, 100)
    moving = asyncio.create_task(moved_or_not(stage, run))
    while stage.road.log.count("Pages") < 2:
        await asyncio.sleep(0)
    return run, moving


@pytest.mark.parametrize("fails", ["send_rounds", "send_last"])
def test_a_source_that_cannot_send_keeps_the_run(play: Callable[..., Any], fails: str) -> None:
    async def scenario(stage: Stage) -> None:
        stage.machines_here.fails = fails
        run = stage.start()
        await until(run, 100)
        assert not await moved_or_not(stage, run)
        await run.done.wait()
        assert counted(read_all(run)[0]) == 300
        await stage.road.close()
        assert stage.there.admission.used == 0
        assert not stage.there.runs.under_way

    play(scenario)


@pytest.mark.parametrize("fails", ["receive", "death"])
def test_a_destination_that_cannot_make_the_machine_says_so(play: Callable[..., Any], fails: str) -> None:
    async def scenario(stage: Stage) -> None:
        stage.machines_there.fails = fails
        run = stage.start()
        await until(run, 100)
        assert not await moved_or_not(stage, run)
        assert "Broken" in stage.road.log
        await run.done.wait()
        assert counted(read_all(run)[0]) == 300
        await stage.road.close()
        assert stage.there.admission.used == 0

    play(scenario)


def test_the_machine_at_the_source_dies_while_it_is_sent(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run, moving = await being_sent(stage)
        stage.world.made[0].kill()
        await run.done.wait()
        assert run.to_json()["error"]["code"] == "guest_failed"
        moving.cancel()
        await asyncio.wait([moving])
        await stage.road.close()
        assert stage.there.admission.used == 0

    play(scenario)


def test_a_run_that_is_ended_while_it_is_sent_is_nowhere(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run, moving = await being_sent(stage)
        await stage.here.forget(run.id)
        await asyncio.wait([moving])
        await stage.road.close()
        assert not stage.world.running
        assert (stage.here.admission.used, stage.there.admission.used) == (0, 0)

    play(scenario)


def test_signals_and_the_end_go_where_the_run_is(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        await until(run, 100)
        await stage.move(run)
        await stage.here.signal(run, 10)
        while "<10>" not in read_all(run)[1]:
            await run.record.changed()
        await stage.here.forget(run.id)
        there = stage.there.get(run.id)
        await there.done.wait()
        assert there.to_json()["error"]["code"] == "run_ended"
        assert not stage.world.running

    play(scenario)


def test_a_source_that_stops_leaves_the_run_there(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        await until(run, 100)
        await stage.move(run)
        await stage.here.close()
        assert "goes on at there" in run.to_json()["error"]["message"]
        there = stage.there.get(run.id)
        assert not there.done.is_set()
        with StdinWriter(there.stdin) as writer:
            await writer.write(b"quit")
        await there.done.wait()
        assert there.to_json()["status"] == "ok"
        assert counted(read_all(there)[0]) > 10

    play(scenario)


def test_a_destination_that_is_lost_takes_its_runs_with_it(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        await until(run, 100)
        await stage.move(run)
        stage.world.made[-1].kill()
        stage.road.there = Moves(stage.there, stage.machines_there, TIMES)  # as after a restart: it knows of nothing
        await stage.road.close()
        await run.done.wait()
        assert run.to_json()["error"]["code"] in ("move_failed", "guest_failed")
        counted(read_all(run)[0])

    play(scenario)


def test_a_destination_that_is_lost_after_commit_gives_the_run_back(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        def restart() -> None:
            stage.world.made[-1].kill()
            stage.road.there = Moves(stage.there, stage.machines_there, TIMES)

        stage.road.lost.append(restart)
        run = stage.start()
        await until(run, 100)
        assert not await moved_or_not(stage, run)
        assert "Unknown" in stage.road.log
        await run.done.wait()
        assert counted(read_all(run)[0]) == 300
        assert run.elsewhere is None

    play(scenario, cuts=(Cut("Commit", arrives=True), None))


def test_a_question_that_comes_while_the_machine_is_ended_leaves_nothing_of_it(
    play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(stage: Stage) -> None:
        real, ending = ToyProcess.stop, asyncio.Event()

        async def stop(process: ToyProcess, grace_s: float = 0) -> Any:
            if process is stage.machines_there.last and not ending.is_set():
                ending.set()
                await asyncio.Event().wait()
            return await real(process, grace_s)

        monkeypatch.setattr(ToyProcess, "stop", stop)
        run = stage.start()
        await until(run, 100)
        moving = asyncio.create_task(moved_or_not(stage, run))
        await ending.wait()
        (incoming,) = stage.moves_there._incoming.values()
        assert await incoming.never()
        assert stage.there.admission.used == 0
        assert not await moving
        await run.done.wait()

    play(scenario, cuts=(Cut("Ready", arrives=False),))


def test_a_destination_that_cannot_keep_the_run_gives_it_back(play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(stage: Stage) -> None:
        def add(*_: Any, **__: Any) -> None:
            raise HostError("no descriptors")

        monkeypatch.setattr(stage.there.runs, "add", add)
        run = stage.start()
        await until(run, 100)
        assert not await moved_or_not(stage, run)
        assert stage.road.log[stage.road.log.index("Commit") + 1] == "Broken"
        await run.done.wait()
        await stage.road.close()
        assert stage.there.admission.used == 0
        assert counted(read_all(run)[0]) == 300

    play(scenario)


@pytest.mark.parametrize("first", range(RUNNING, RUNNING + 12, 3))
def test_a_connection_that_is_lost_again_and_again_loses_no_input(play: Callable[..., Any], first: int) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        said = b"".join(b"[%d]" % number for number in range(600))
        await until(run, 50)
        moving = asyncio.create_task(stage.move(run))
        with StdinWriter(run.stdin) as writer:
            for at in range(0, len(said), 13):
                await writer.write(said[at : at + 13])
                await asyncio.sleep(0)
            await writer.write(b"quit")
        await moving
        await run.done.wait()
        out, err = read_all(run)
        assert err == said.decode() + "quit"
        counted(out)

    cuts = (Cut(first, arrives=True), Cut(4, arrives=False), Cut(6, arrives=True), Cut(3, arrives=False), None)
    play(scenario, cuts=cuts, seed=first)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_comes_back_again_and_again(play: Callable[..., Any], seed: int) -> None:
    """Who reads and writes where it began notices nothing, nor who reads where it was meanwhile."""

    async def scenario(stage: Stage) -> None:
        run = stage.start(1 << 30, interactive=True)  # in spite of all that is written to it
        said, enough = bytearray(), asyncio.Event()

        async def write() -> None:
            with StdinWriter(run.stdin) as writer:
                while not enough.is_set():
                    if len(said) > MUCH:
                        await enough.wait()
                    words = b"".join(b"[%d]" % number for number in range(len(said), len(said) + 9))
                    await writer.write(words)
                    said.extend(words)
                    await asyncio.sleep(0)
                await writer.write(b"quit")

        await until(run, 50)
        writing = asyncio.create_task(write())
        for _ in range(3):
            await stage.move(run)
            there = stage.there.get(run.id)
            assert stage.here.admission.used == 0
            size = len(there.record.output(0)[0])
            await until(there, size + 50)
            await stage.move_back(run)
            assert run.result().moved_to is UNSET
            assert there.result().moved_to == "here"
            assert stage.there.admission.used == 0
            await until(run, len(run.record.output(0)[0]) + 50)
        enough.set()
        await writing
        await stage.here.settled(run)
        out, err = read_all(run)
        assert err == said.decode() + "quit"
        counted(out)
        assert run.to_json()["status"] == "ok"
        await there.done.wait()
        assert there.record.output(0) == run.record.output(0)
        assert there.record.end == run.record.end
        assert stage.here.admission.used == 0
        assert not stage.here.work

    play(scenario, seed=seed)


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("at", range(RUNNING + 4))
def test_the_connection_is_lost_at_any_message_on_the_way_back(play: Callable[..., Any], at: int, arrives: bool) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        said = b"".join(b"[%d]" % number for number in range(200))
        await until(run, 50)
        await stage.move(run)
        with StdinWriter(run.stdin) as writer:
            await writer.write(said[:100])
            moving = asyncio.create_task(stage.move_back(run))
            for place in range(100, len(said), 10):
                await writer.write(said[place : place + 10])
                await asyncio.sleep(0)
            await asyncio.wait([moving])
            assert (run.elsewhere is None) == (moving.exception() is None)
            await writer.write(b"quit")
        await stage.here.settled(run)
        out, err = read_all(run)
        assert err == said.decode() + "quit"
        counted(out)
        assert run.to_json()["status"] == "ok"

    play(scenario, cuts_back=(Cut(at, arrives), Cut(0, False), Cut(1, True), Cut(3, True), None), seed=at)


def test_a_run_that_is_ended_while_it_comes_back_is_nowhere(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        stage.machines_there.endless = True
        run = stage.start(-1, interactive=True)
        await until(run, 50)
        await stage.move(run)
        moving = asyncio.create_task(stage.move_back(run))
        while stage.road_back.log.count("Pages") < 2:
            await asyncio.sleep(0)
        await stage.here.forget(run.id)
        await asyncio.wait([moving])
        await stage.road_back.close()
        assert not stage.world.running
        assert (stage.here.admission.used, stage.there.admission.used) == (0, 0)

    play(scenario)


def test_signals_and_the_end_go_to_a_run_that_came_back(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        await until(run, 50)
        await stage.move(run)
        await stage.move_back(run)
        there = stage.there.get(run.id)
        await stage.there.signal(there, 10)
        await stage.here.signal(run, 12)
        while not all(word in read_all(there)[1] for word in ("<10>", "<12>")):
            await there.record.changed()
        await stage.there.forget(there.id)
        assert run.to_json()["error"]["code"] == "run_ended"
        assert not stage.world.running

    play(scenario)


def test_a_run_that_was_there_before_comes_back_by_the_way_it_went_alone(play: Callable[..., Any]) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(-1, interactive=True)
        await until(run, 50)
        await stage.move(run)
        stage.moves_there._incoming.clear()  # as if it had come from somewhere else
        with pytest.raises(NotMovableError, match="comes back from there alone"):
            await stage.move_back(run)
        with StdinWriter(run.stdin) as writer:
            await writer.write(b"quit")
        await stage.here.settled(run)
        with pytest.raises(RunEndedError):
            await stage.move_back(run)

    play(scenario)
