"""Conversations with the real agent, as an ordinary process."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.guests.converse import BytesStdin, collect, converse
from mayfly.guests.job import Job, Wanted
from mayfly.guests.outcome import Outcome, Verdict
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest, start
from mayfly.images.store import Images
from mayfly.protocol import frames as p
from mayfly.units import MIB
from mayfly.vmm.config import MachineConfig
from tests.kit.agent_process import PATH_ENV, build_agent, shell
from tests.kit.api_fakes import factory, install_toys, open_descriptors

Scenario = Callable[[Guest], Awaitable[Any]]


@pytest.fixture
def greet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Scenario], Any]:
    """Run a scenario with a guest that has said HELLO, and check that no descriptor is left."""
    install_toys(monkeypatch, tmp_path)
    executable = build_agent()

    async def whole(scenario: Scenario) -> Any:
        spawner = Spawner(factory(executable=executable))
        try:
            wanted = Wanted(image=Images().find("real"), machine=MachineConfig(kernel="k", memory=64 * MIB), timeout_s=30.0)
            return await asyncio.wait_for(scenario(await start(spawner, wanted)), 60)
        finally:
            await spawner.close()

    def call(scenario: Scenario) -> Any:
        before = open_descriptors()
        result = asyncio.run(whole(scenario))
        assert open_descriptors() == before
        return result

    return call


def job(step: p.Step, **files: bytes) -> Job:
    entries = tuple(p.FileEntry(name, 0o644, len(data)) for name, data in files.items())
    return Job(start=p.Start(PATH_ENV, (step,), entries), files=tuple(files.values()), deadline_s=50.0, rate=1e6)


async def run(guest: Guest, wanted: Job, stdin: bytes = b"") -> tuple[Verdict, bytes]:
    outcome = Outcome(wanted.step_names, kept=100)
    await converse(guest, wanted, outcome, BytesStdin(stdin))
    return outcome.verdict(), outcome.tail


def test_three_runs_in_one_conversation(greet: Callable[[Scenario], Any]) -> None:
    """One fails, one is killed by a limit, and none sees anything of those before it."""

    async def scenario(guest: Guest) -> list[tuple[Verdict, bytes]]:
        jobs = [
            job(shell("cat; cat here; touch left; exit 3", output=100, stdin=True), here=b"first"),
            job(shell("ls; echo before; sleep 60", output=100, wall_ms=300)),
            job(shell("ls; cat; cat here", output=100, stdin=True), here=b"third"),
        ]
        return [await run(guest, wanted, b"in ") for wanted in jobs]

    first, second, third = greet(scenario)
    assert first == (("failed", 3), b"in first")
    assert second == (("limit", 124), b"before\n")
    assert third == (("ok", 0), b"here\nin third")


def test_a_run_whose_input_nobody_reads_leaves_none_for_the_next(greet: Callable[[Scenario], Any]) -> None:
    async def scenario(guest: Guest) -> list[tuple[Verdict, bytes]]:
        unread = await run(guest, job(shell("exit 0", stdin=True)), b"x" * 200_000)
        return [unread, await run(guest, job(shell("wc -c", stdin=True, output=100)), b"y" * 100_000)]

    unread, counted = greet(scenario)
    assert unread[0].exit_status == 0
    assert counted == (("ok", 0), b"100000\n")


def test_what_a_run_left_is_collected_before_the_next(greet: Callable[[Scenario], Any]) -> None:
    found: list[p.Collected] = []

    async def scenario(guest: Guest) -> None:
        work = await run(guest, job(shell("pwd; mkdir d; head -c 100000 /dev/zero >d/zeros; : >d/a", output=1000)))
        folder = f"{work[1].decode().strip()}/d"
        await collect(guest, [folder], found.append, entries=3, size=100_000, deadline_s=50.0, rate=1e6)
        assert (await run(guest, job(shell("ls", output=100)))) == (("ok", 0), b"")

    greet(scenario)
    heads = [(Path(piece.head.path).name, piece.head.size) for piece in found if piece.head]
    assert heads == [("d", 0), ("a", 0), ("zeros", 100_000)]
    assert sum(len(piece.data) for piece in found) == 100_000
    assert found[-1].last
