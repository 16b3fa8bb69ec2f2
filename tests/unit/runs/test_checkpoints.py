"""A run's program is stopped and goes on in another run: the service, the real agent and the
runtime, as ordinary processes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import MayflyError, NotCheckpointableError, NotRunningError, RunEndedError
from mayfly.host.snippet import Snippet
from mayfly.imagegen.languages import load_language, offered
from mayfly.runs.carried import HEAD, MAX_STATE
from mayfly.runs.checkpoints import checkpoint
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.units import MIB
from tests.kit.agent_process import build_agent
from tests.kit.api_fakes import factory, install, install_toys, small_config
from tests.kit.wasm import I32, Code, Module, build, section, text
from tests.unit.wasm.test_checkpoints import counter, echo, held_echo, released

C = Code
PATIENCE_S = 120


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None) -> Callable[[Callable[[Service], Awaitable[None]]], None]:
    """Run a scenario against a service whose language `wasm` is what its file says."""
    install_toys(monkeypatch, tmp_path)
    language = load_language("wasm")
    argv = (str(build()), *language.steps[0].argv[1:])
    steps = (replace(language.steps[0], argv=argv),)
    install("wasm", ".wasm", steps, marker="", checkpoint=language.checkpoint, options=offered(language, "1.0"))
    executable = build_agent()

    def call(scenario: Callable[[Service], Awaitable[None]], **config: Any) -> None:
        async def whole() -> None:
            async with Service(small_config(tmp_path, **config), factory(executable=executable)) as service:
                await asyncio.wait_for(scenario(service), PATIENCE_S)

        asyncio.run(whole())

    return call


def written(run: Run) -> bytes:
    """What a run's program has written so far."""
    return run.record.output(0)[0]


async def until_written(run: Run, data: bytes) -> None:
    """Wait until a run's program has written this."""
    async with asyncio.timeout(PATIENCE_S):
        while not written(run).startswith(data):
            assert not run.record.closed, run.record.output(0)
            await run.record.changed()


def test_a_program_goes_on_in_another_run(serve: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        first = service.start(Snippet(language="wasm", source=echo().encoded(), stdin=b"before ", interactive=True))
        await until_written(first, b"before ")
        state = await checkpoint(service, first)
        assert first.verdict().exit_status == 75
        second = service.start(Snippet(language="wasm", source=state, stdin=b"and after"))
        await service.settled(second)
        assert (written(second), second.verdict().exit_status) == (b"and after", 0)
        with pytest.raises(RunEndedError):
            await checkpoint(service, second)

    serve(scenario)


def large_echo(pages: int) -> Module:
    """As `echo`, but when it has read for the first time it fills its memory, and looks at all of
    it each further time.
    """
    value = C.get(0) + C.i32(4096) + C.i32_div_s
    each = C.get(0) + C.i32(4) + C.i32_add + C.tee(0) + C.i32(pages << 16) + C.i32_lt_s + C.br_if(0) + C.end
    fill = C.loop() + C.get(0) + value + C.store() + each
    look = C.loop() + C.get(0) + C.load() + value + C.i32_eq + C.i32_eqz + C.when() + C.unreachable + C.end + each
    first = C.i32(1 << 16) + C.tee(0) + C.load() + C.i32_eqz
    return echo(before=first + C.when() + fill + C.otherwise + look + C.end, pages=pages, locals=I32)


def test_a_program_with_128_mib_of_memory_goes_on(serve: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        first = service.start(Snippet(language="wasm", source=large_echo(2048).encoded(), stdin=b"before ", interactive=True))
        await until_written(first, b"before ")
        state = await checkpoint(service, first)
        assert len(state) < MAX_STATE
        second = service.start(Snippet(language="wasm", source=state, stdin=b"and after"))
        await service.settled(second)
        assert (written(second), second.verdict().exit_status) == (b"and after", 0), second.record.output(0)

    serve(scenario, memory=400 * MIB)


def test_a_program_without_a_checkpoint_is_not_stopped(serve: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        run = service.start(Snippet(language="real", source=b"cat", stdin=b"all", interactive=False))
        with pytest.raises(NotCheckpointableError):
            await checkpoint(service, run)
        await service.settled(run)
        assert run.record.output(1)[0] == b"all"

    serve(scenario)


def test_a_state_may_be_larger_than_what_comes_back_from_a_run(serve: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        run = service.start(Snippet(language="wasm", source=echo().encoded(), stdin=b"x", interactive=True, collect=("main.wasm",)))
        await until_written(run, b"x")
        assert len(await checkpoint(service, run)) > 100
        assert run.files is not None and isinstance(run.files.error, MayflyError)

    serve(scenario, collect_bytes=100)


NUMBERS = b"".join(b"%7d\n" % number for number in range(25_000))


@pytest.mark.parametrize("interactive", [False, True])
def test_no_input_is_lost(serve: Callable[..., None], interactive: bool) -> None:
    """Some was read, some waits in the program's pipe, in the agent, on the way, and here."""

    async def scenario(service: Service) -> None:
        first = service.start(Snippet(language="wasm", source=held_echo().encoded(), stdin=NUMBERS, interactive=interactive))
        await until_written(first, NUMBERS[:1000])
        state = await checkpoint(service, first)
        assert (written(first), HEAD.unpack_from(state)[3]) == (NUMBERS[:1000], not interactive)
        assert state.endswith(NUMBERS[1000:])
        second = service.start(Snippet(language="wasm", source=released(state), stdin=b"and more"))
        await service.settled(second)
        assert written(second) == NUMBERS[1000:] + (b"and more" if interactive else b"")

    serve(scenario)


def test_a_program_goes_on_whose_input_does_not_fit(serve: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        async def stopped(run: Run) -> None:
            while True:
                try:
                    await checkpoint(service, run)
                except NotRunningError:  # it begins to go on here
                    await asyncio.sleep(0.01)

        stdin = bytes(MAX_STATE)
        source = held_echo().encoded() + section(0, text("more than it reads") + bytes(4000))
        run = service.start(Snippet(language="wasm", source=source, stdin=stdin, interactive=True))
        await until_written(run, bytes(1000))
        for _ in range(2):
            with pytest.raises(NotCheckpointableError, match="bytes"):
                await stopped(run)
        assert (written(run), run.done.is_set()) == (bytes(1000), False)
        await service.end(run, "enough")

    serve(scenario)


def test_a_program_that_is_not_stopped_leaves_nothing(serve: Callable[..., None]) -> None:
    async def scenario(service: Service) -> None:
        run = service.start(Snippet(language="wasm", source=counter(3).encoded()))
        await service.settled(run)
        assert (len(written(run)), run.record.output(0)[1], run.verdict().exit_status) == (12, b"", 0)
        assert run.files is None

    serve(scenario)
