"""Programs in real guests move between two hosts, while a client reads what they print and writes
to them. One of the hosts makes the language's base, and the other one pulls it. Where this machine
cannot run guests both hosts are emulated ones.
"""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from scripts.debian.local_registry import serving as registry
from tests.kit.scale import FULL
from tests.kit.served_hosts import ROOT, Following, ServedHost, serving
from tests.system.test_moves import GO, RUST
from tests.system.test_wasm import need

pytestmark = [
    pytest.mark.skipif(not FULL, reason="only in the whole counts (make test-all)"),
    pytest.mark.slow,
    pytest.mark.timeout(7200),
]

WITH_KVM = [str(ROOT / "scripts/with-kvm"), "--memory", "5000"]
PATIENT = ("--time-factor", "20")  # the hosts share this machine with each other
TICKS = 20
"""Lines that are read before a move, and again behind it."""
PART = 150 << 20
"""What a move may send that leaves out the base: of both languages that has some 400 MiB."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[ServedHost]]:
    with ExitStack() as opened:
        flags = (*PATIENT, "--run-output", "16M")
        yield [opened.enter_context(serving(*flags, host=WITH_KVM, python="python")) for _ in range(2)]


class Tick(NamedTuple):
    """When a line was read (Unix time), and the guest's two clocks as of it, in ms."""

    read_s: float
    clock: int
    day: int


def check_clocks(ticks: list[Tick], pause_s: float) -> None:
    """See that the pause is in the guest's time of day, and not in its monotonic clock; print how
    long guest and reader missed a line.
    """
    first, last = ticks[0], ticks[-1]
    ahead_ms = (last.day - first.day) - (last.clock - first.clock)
    steps = [
        (later.clock - earlier.clock, later.day - earlier.day, later.read_s - earlier.read_s)
        for earlier, later in itertools.pairwise(ticks)
    ]
    gaps = [max(gap) for gap in zip(*steps, strict=True)]
    print(f"longest gap between lines: {gaps[0]} ms of the guest's clock, {gaps[1]} of its day, {1000 * gaps[2]:.0f} at the reader")
    behind = [1000 * tick.read_s - tick.day for tick in (first, last)]
    print(f"the day gained {ahead_ms} ms on the clock; it is {behind[0]:.0f} ms behind the reader's at first, {behind[1]:.0f} at last")
    assert ahead_ms > pause_s * 1000 / 2
    assert abs(behind[1]) < 60_000


def share_base(language: str, hosts: list[ServedHost]) -> None:
    """Make a base on the first host, and install it on the second one through a registry."""
    here, there = hosts
    with registry() as address:
        reference = f"$LOOPBACK:{address.rpartition(':')[2]}/bases/{language}:1"
        here.mayfly("snapshot", "create", language, *PATIENT)
        here.mayfly("snapshot", "push", language, reference, "--insecure")
        there.mayfly("snapshot", "pull", reference, "--insecure")


class Writing:
    """Writes a line to a run whenever the one before has come back, until told to stop."""

    def __init__(self, following: Following) -> None:
        self.following = following
        self.said: list[str] = []
        self.stop = False

    async def write(self) -> None:
        run = self.following.run
        while not self.stop:
            self.said.append(f"line {len(self.said)}")
            await run.send(f"{self.said[-1]}\n")
            await self.following.until(lambda: self.following.err.count(b"\n") == len(self.said))
        await run.send(b"", end=True)

    def check(self) -> Iterator[Tick]:
        """That no line is missing or came twice, and that the guest's clock did not go back."""
        assert self.following.err.decode() == "".join(f"{number} {line}\n" for number, line in enumerate(self.said))
        lines = self.following.out.decode().splitlines()[:-1]  # the last may be cut by the end
        numbers, clock, day = zip(*(map(int, line.split()) for line in lines), strict=True)
        assert numbers == tuple(range(len(lines)))
        assert all(earlier <= later for earlier, later in itertools.pairwise(clock))
        return map(Tick, self.following.at, clock, day)


@pytest.mark.parametrize(("language", "source"), [("rust", RUST), ("go", GO)])
def test_a_program_moves_to_another_host(hosts: list[ServedHost], language: str, source: str) -> None:
    need(language)
    share_base(language, hosts)
    here, there = hosts

    async def scenario() -> None:
        async with (
            here.client() as client,
            client.start(source, language=language, interactive=True) as run,
            Following.begin(run) as following,
        ):
            await following.lines(TICKS)
            writer = Writing(following)
            writing = asyncio.create_task(writer.write())
            await following.lines(TICKS)
            moved = await asyncio.to_thread(here.move, run.id, there)
            print(language, moved)
            await following.lines(TICKS)
            writer.stop = True
            await writing
            result = await run.result()
        assert (result.status, result.moved_to) == ("ok", moved["to"]), result
        assert moved["bytes"] < PART
        check_clocks(list(writer.check()), moved["pause_s"])

    asyncio.run(scenario())
