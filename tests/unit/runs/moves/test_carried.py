"""Programs of WebAssembly that move without their machine: whatever is lost, the program goes on at
one place, and readers and writers at the source see no byte less or twice. Services, the real agent
and the runtime, as ordinary processes.
"""

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import MayflyError, NotMovableError
from mayfly.guests.start import Guest
from mayfly.host.snippet import Snippet
from mayfly.imagegen.languages import load_language, offered
from mayfly.images.store import InstalledImage
from mayfly.runs.carried import LANGUAGE, MAX_STATE, PROGRAM
from mayfly.runs.checkpoints import checkpoint
from mayfly.runs.described import Description
from mayfly.runs.moves.desk import Moves, follow
from mayfly.runs.moves.link import Place
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from mayfly.schema import replace
from mayfly.units import MIB
from tests.kit.agent_process import build_agent
from tests.kit.api_fakes import factory, install, install_toys, small_config
from tests.kit.road import Cut, Road, cancelled_at
from tests.kit.scale import FULL, patience
from tests.kit.toy_moves import TIMES, ToyMachines, World
from tests.kit.wasm import I32, Code, Module, build, program
from tests.unit.wasm.test_checkpoints import IOV, WORD, echo, write_number

C = Code

MESSAGES = 9
"""Of a move that goes well, to RUNNING, or one more."""
SAID = [b"one ", b"two ", b"three ", b"four"]


class Strangers(ToyMachines):
    """Machines that go on at no other server."""

    async def offer(self, guest: Guest) -> bytes:
        return b""

    async def look(self, run: Description, offer: bytes, image: InstalledImage | None) -> Place:
        return Place(misfits=("The machine is of another architecture.",))


class Stage:
    """Two servers, the road from the first to the second, and back."""

    def __init__(self, here: Service, there: Service, cuts: tuple[Cut | None, ...]) -> None:
        self.here, self.there = here, there
        self.moves_here, self.moves_there = (Moves(service, Strangers(service, World()), TIMES) for service in (here, there))
        self.road = Road(self.moves_there, iter(cuts))
        self.back = Road(self.moves_here, iter(()))

    def start(self, module: Module, **options: Any) -> Run:
        return self.here.start(Snippet(language="wasm", source=module.encoded(), **options))

    async def move(self, run: Run) -> Any:
        return await follow(self.moves_here.begin(run, self.road.connect, to="there"))


Play = Callable[..., None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None) -> Play:
    """Play a scenario with two services whose language `wasm` is what its file says."""
    install_toys(monkeypatch, tmp_path)
    language = load_language("wasm")
    argv = (str(build()), *language.steps[0].argv[1:])
    steps = (replace(language.steps[0], argv=argv),)
    install("wasm", ".wasm", steps, marker="", checkpoint=language.checkpoint, options=offered(language, "1.0"))
    executable = build_agent()

    def call(scenario: Callable[[Stage], Awaitable[None]], *cuts: Cut | None) -> None:
        async def whole() -> None:
            config = small_config(tmp_path)
            async with Service(config, factory(executable=executable)) as here, Service(config, factory(executable=executable)) as there:
                stage = Stage(here, there, cuts)
                try:
                    await asyncio.wait_for(scenario(stage), patience(60))
                finally:
                    await stage.road.close()
                    await stage.back.close()

        asyncio.run(whole())

    return call


async def until(run: Run, data: bytes) -> None:
    """Wait until the run's program has written this."""
    while run.record.output(0)[0] != data:
        assert not run.record.closed, run.record.output(0)
        await run.record.changed()


async def say(run: Run, words: list[bytes], *moving: Callable[[], Awaitable[Any]]) -> None:
    """Write words one by one, and hear each; what is `moving` is done from the middle on, with a
    word between, so that the program is under way when it moves again.
    """
    with StdinWriter(run.stdin) as writer:
        for place, word in enumerate(words):
            for move in moving[place - len(words) // 2 :][:1] if place >= len(words) // 2 else ():
                await move()
            await writer.write(word)
            await until(run, b"".join(words[: place + 1]))
        writer.end()
    await run.done.wait()


def test_the_languages_agree_on_the_programs_file() -> None:
    assert load_language(LANGUAGE).source_file == PROGRAM
    for name in ("wasm", "rust-wasm", "go-wasm", "c-wasm"):
        argv = load_language(name).steps[-1].argv
        assert PROGRAM in argv
        assert int(argv[argv.index("--most") + 1]) <= MAX_STATE


def test_a_program_goes_on_at_another_server_and_comes_back(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(echo(), interactive=True)

        async def there() -> None:
            await stage.move(run)
            assert run.result().moved_to == "there"
            assert stage.here.admission.used == 0

        async def back() -> None:
            copy = stage.there.get(run.id)
            stage.here.runs.drop(run)  # the same id comes again
            await follow(stage.moves_there.begin(copy, stage.back.connect, to="here"))

        await say(run, SAID, there, back)
        assert (run.record.output(0)[0], run.verdict().exit_status) == (b"".join(SAID), 0)
        assert [step.name for step in run.outcome.steps] == ["run"]
        assert stage.there.get(run.id).record.end == run.record.end

    play(scenario)


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("at", range(MESSAGES))
def test_the_connection_is_lost_at_any_message(play: Play, at: int, arrives: bool) -> None:
    if not FULL and (at + arrives) % 3:
        pytest.skip("a third of all")

    async def scenario(stage: Stage) -> None:
        run = stage.start(echo(), interactive=True)

        async def move() -> None:
            try:
                await stage.move(run)
            except MayflyError:
                assert run.elsewhere is None
            if run.elsewhere is not None:
                await until(stage.there.get(run.id), b"".join(SAID[:2]))

        await say(run, SAID, move)
        assert (run.record.output(0)[0], run.verdict().exit_status) == (b"".join(SAID), 0)

    play(scenario, Cut(at, arrives))


@pytest.mark.parametrize("at", range(MESSAGES))
def test_a_move_is_cancelled_at_any_message(play: Play, at: int) -> None:
    if not FULL and at % 3:
        pytest.skip("a third of all")

    async def scenario(stage: Stage) -> None:
        run = stage.start(echo(), interactive=True)

        async def move() -> None:
            going = stage.moves_here.begin(run, stage.road.connect, to="there")
            assert await cancelled_at(going, stage.road, at, 0.001) == (run.elsewhere is None)
            if run.elsewhere is not None:
                await until(stage.there.get(run.id), b"".join(SAID[:2]))

        await say(run, SAID, move)
        assert (run.record.output(0)[0], run.verdict().exit_status) == (b"".join(SAID), 0)

    play(scenario)


def computing(rounds: int) -> Module:
    """A program that counts to `rounds`, takes a while for each number, and writes it."""
    wait = C.i32(100_000) + C.set(1) + C.loop() + C.get(1) + C.i32(-1) + C.i32_add + C.tee(1) + C.br_if(0) + C.end
    step = C.get(0) + C.i32(1) + C.i32_add + C.set(0) + write_number(0)
    loop = C.loop() + wait + step + C.get(0) + C.i32(rounds) + C.i32_lt_s + C.br_if(0) + C.end
    data = {IOV: struct.pack("<II", WORD, 4)}
    return program(loop, locals=I32 * 2, imports=("fd_write",), data=data)


def test_a_program_that_computes_goes_on(play: Play) -> None:
    rounds = 1000

    async def scenario(stage: Stage) -> None:
        run = stage.start(computing(rounds))
        while not run.record.output(0)[0]:
            await run.record.changed()
        with contextlib.suppress(MayflyError):  # it was quicker
            await stage.move(run)
        await run.done.wait()
        assert run.record.output(0)[0] == struct.pack(f"<{rounds}I", *range(1, rounds + 1))
        assert run.verdict().exit_status == 0

    play(scenario)


def test_no_input_is_lost_that_is_under_way(play: Play) -> None:
    wait = C.i32(20_000) + C.set(0) + C.loop() + C.get(0) + C.i32(-1) + C.i32_add + C.tee(0) + C.br_if(0) + C.end
    data = b"".join(b"%7d\n" % number for number in range(30_000))

    async def scenario(stage: Stage) -> None:
        run = stage.start(echo(before=wait, locals=I32), stdin=data[:100_000], interactive=True)
        while not run.record.output(0)[0]:
            await run.record.changed()

        async def write() -> None:
            with StdinWriter(run.stdin) as writer:
                await writer.write(data[100_000:])
                writer.end()

        await asyncio.gather(stage.move(run), write())
        await run.done.wait()
        assert (run.record.output(0)[0], run.verdict().exit_status) == (data, 0)

    play(scenario)


def test_a_server_that_cannot_run_it_says_what_it_lacks(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        run = stage.start(echo(), interactive=True)
        stage.there.images._languages = ("py",)

        async def refused() -> None:
            with pytest.raises(NotMovableError) as caught:
                await stage.move(run)
            assert "another architecture" in caught.value.message
            assert "'wasm'" in caught.value.message

        await say(run, SAID, refused)
        assert (run.record.output(0)[0], run.verdict().exit_status) == (b"".join(SAID), 0)

    play(scenario)


def test_a_server_whose_runtime_is_another_one_does_not_take_it(play: Play) -> None:
    """It could not read the checkpoint, and says so before the program is stopped."""

    async def scenario(stage: Stage) -> None:
        run = stage.start(echo(), interactive=True)
        image = stage.there.images.find(LANGUAGE)
        other = image._replace(manifest=replace(image.manifest, generator="imagegen 0.0"))
        stage.there.images.find = lambda name: other  # type: ignore[method-assign]

        async def refused() -> None:
            with pytest.raises(NotMovableError, match=r"the image of wasm there is of imagegen 0\.0, the program's own of"):
                await stage.move(run)

        await say(run, SAID, refused)
        assert (run.record.output(0)[0], run.verdict().exit_status) == (b"".join(SAID), 0)

    play(scenario)


def test_a_program_has_as_much_memory_where_it_goes(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        stage.here.config = replace(stage.here.config, memory=200 * MIB)
        run = stage.start(echo(), interactive=True)
        had: list[tuple[int, int]] = []

        async def there() -> None:
            await stage.move(run)
            exchange = stage.there.get(run.id).exchange
            assert exchange is not None
            had.append((exchange.guest.wanted.machine.memory, stage.there.admission.used))

        await say(run, SAID, there)
        assert had == [(200 * MIB, 200 * MIB)]

    play(scenario)


def test_a_moved_program_can_be_stopped_and_ended(play: Play) -> None:
    async def scenario(stage: Stage) -> None:
        first, second = (stage.start(echo(), interactive=True, stdin=b"x") for _ in range(2))
        for run in (first, second):
            await until(run, b"x")
            await stage.move(run)
        state = await checkpoint(stage.there, stage.there.get(first.id))
        assert state.startswith(b"MAYFLYWC")
        await stage.here.end(second, "enough")
        await asyncio.gather(*(stage.there.get(run.id).done.wait() for run in (first, second)))
        assert stage.there.admission.used == 0

    play(scenario)
