"""Standard input that stays open: bytes come in their order, and no more than ROOM of them wait."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mayfly.errors import RunEndedError, StdinEndedError, StdinTakenError
from mayfly.runs.stdin import ROOM, LiveStdin, StdinWriter

Scenario = Callable[[LiveStdin], Awaitable[None]]


def play(scenario: Scenario, first: bytes = b"") -> None:
    asyncio.run(asyncio.wait_for(scenario(LiveStdin(first)), 30))


async def turns(count: int = 10) -> None:
    """Let all others go on as far as they can."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_is_written_follows_the_first_bytes() -> None:
    async def scenario(stdin: LiveStdin) -> None:
        with StdinWriter(stdin) as writer:
            await writer.write(b"second")
            writer.end()
        assert [await stdin.read(3) for _ in range(5)] == [b"fir", b"st", b"sec", b"ond", b""]

    play(scenario, b"first")


def test_a_reader_waits_for_a_writer() -> None:
    async def scenario(stdin: LiveStdin) -> None:
        reading = asyncio.create_task(stdin.read(100))
        await turns()
        assert not reading.done()
        with StdinWriter(stdin) as writer:
            await writer.write(b"")
            await turns()
            assert not reading.done()
            await writer.write(b"x")
        assert await reading == b"x"

    play(scenario)


def test_a_writer_waits_for_the_reader() -> None:
    data = bytes(range(256)) * 1024 * 2

    async def scenario(stdin: LiveStdin) -> None:
        with StdinWriter(stdin) as writer:
            writing = asyncio.create_task(writer.write(data))
            found = b""
            while len(found) < len(data):
                await turns()
                assert len(stdin._waiting) <= ROOM
                assert writing.done() == (len(data) - len(found) <= ROOM)
                found += await stdin.read(10_000)
            await writing
        assert found == data

    play(scenario)


def test_only_one_writes_until_it_goes() -> None:
    async def scenario(stdin: LiveStdin) -> None:
        with StdinWriter(stdin) as idle, StdinWriter(stdin) as second:
            with StdinWriter(stdin) as first:
                await first.write(b"a")
                with pytest.raises(StdinTakenError):
                    await second.write(b"b")
                with pytest.raises(StdinTakenError):
                    second.end()
                await first.write(b"c")
            await second.write(b"d")
            with pytest.raises(StdinTakenError):
                await idle.write(b"e")
        assert await stdin.read(10) == b"acd"

    play(scenario)


def test_nothing_is_written_behind_the_end() -> None:
    async def scenario(stdin: LiveStdin) -> None:
        with StdinWriter(stdin) as writer:
            writer.end()
            with pytest.raises(StdinEndedError):
                await writer.write(b"x")
        assert await stdin.read(10) == b""

    play(scenario)


def test_the_end_of_the_run_frees_who_waits() -> None:
    async def scenario(stdin: LiveStdin) -> None:
        with StdinWriter(stdin) as writer:
            writing = asyncio.create_task(writer.write(bytes(ROOM + 1)))
            await turns()
            stdin.close()
            with pytest.raises(RunEndedError):
                await writing
            with pytest.raises(RunEndedError):
                writer.end()
        assert not stdin._waiting

    play(scenario)


def test_who_is_cancelled_holds_nothing() -> None:
    async def scenario(stdin: LiveStdin) -> None:
        async def write() -> None:
            with StdinWriter(stdin) as writer:
                await writer.write(bytes(2 * ROOM))

        writing = asyncio.create_task(write())
        await turns()
        writing.cancel()
        await asyncio.wait([writing])
        assert await stdin.read(2 * ROOM) == bytes(ROOM)
        with StdinWriter(stdin) as writer:
            await writer.write(b"x")
        assert await stdin.read(1) == b"x"

    play(scenario)
