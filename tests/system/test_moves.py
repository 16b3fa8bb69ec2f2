"""A program in a Linux guest moves between two servers of one host, while one client reads what it
prints every 10 ms and another writes to it: each line is there once and in its order, and its clock
never goes back.
"""

import asyncio
import itertools
import json
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mayfly import paths
from mayfly.guests.zygote import Zygote
from mayfly.host.config import Config
from mayfly.host.snippet import Snippet
from mayfly.protocol.frames import Stderr, Stdout
from mayfly.runs.forks import fork
from mayfly.runs.moves.desk import Moves, follow
from mayfly.runs.moves.machines import HostMachines
from mayfly.runs.moves.outgoing import Moved
from mayfly.runs.record import Reader
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from tests.kit.road import Road
from tests.kit.scale import FULL, time_factor

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

DATA = paths.data_dir()
"""Of this host, whatever other tests' fixtures have put in its place."""
BEFORE = 20
"""Lines that are read before a move, and again behind it."""

SHELL = """
ticks() {
    n=0
    while :; do
        read up rest </proc/uptime
        echo "$n ${up%.*}${up#*.}0 0"
        n=$((n + 1))
        sleep 0.01
    done
}
ticks &
n=0
while read line; do
    case $line in
    who) read id </proc/sys/kernel/random/boot_id; read name </proc/sys/kernel/hostname; read rest </proc/sys/kernel/random/uuid
        line="$id $name $rest $(date +%s)" ;;
    esac
    echo "$n $line" >&2
    n=$((n + 1))
done
kill $!
"""
RUST = """
use std::io::BufRead;
use std::time::{Duration, Instant, SystemTime};
fn main() {
    std::thread::spawn(|| {
        let began = Instant::now();
        for n in 0.. {
            let day = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            println!("{n} {} {}", began.elapsed().as_millis(), day.as_millis());
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    for (n, line) in std::io::stdin().lock().lines().enumerate() {
        eprintln!("{n} {}", line.unwrap());
    }
}
"""
GO = """
package main

import (
    "bufio"
    "fmt"
    "os"
    "time"
)

func main() {
    go func() {
        began := time.Now()
        for n := 0; ; n++ {
            fmt.Println(n, time.Since(began).Milliseconds(), time.Now().UnixMilli())
            time.Sleep(10 * time.Millisecond)
        }
    }()
    lines := bufio.NewScanner(os.Stdin)
    for n := 0; lines.Scan(); n++ {
        fmt.Fprintln(os.Stderr, n, lines.Text())
    }
}
"""


class Client:
    """Reads a run, and writes a line to it whenever the one before has come back."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.out, self.err = bytearray(), bytearray()
        self.at: list[float] = []
        self.stop = asyncio.Event()
        self.said: list[str] = []
        self._more = asyncio.Condition()

    async def read(self) -> None:
        reader = Reader(self.run.record)
        more = True
        while more:
            more = await reader.wait()
            for event in iter(reader.take, None):
                if isinstance(event, Stdout):
                    self.at += [time.monotonic()] * event.data.count(b"\n")
                    self.out += event.data
                elif isinstance(event, Stderr):
                    self.err += event.data
            async with self._more:
                self._more.notify_all()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with self._more:
            await self._more.wait_for(lambda: reached() or self.run.done.is_set())
        assert reached(), self.run.to_json()

    async def ticks(self, count: int) -> None:
        wanted = len(self.at) + count
        await self.until(lambda: len(self.at) >= wanted)

    async def write(self) -> None:
        with StdinWriter(self.run.stdin) as writer:
            while not self.stop.is_set():
                await self.say(writer, f"line {len(self.said)}")
            writer.end()

    async def say(self, writer: StdinWriter, line: str) -> None:
        await writer.write(f"{line}\n".encode())
        self.said.append(line)
        await self.until(lambda: self.err.count(b"\n") == len(self.said))

    def check(self) -> list[tuple[int, int]]:
        """That no line is missing or came twice; the guest's two clocks, in ms, as of each tick."""
        assert self.err.decode() == "".join(f"{number} {line}\n" for number, line in enumerate(self.said))
        ticks = [tuple(map(int, line.split())) for line in self.out.decode().splitlines()[:-1]]  # the last may be cut by the end
        assert [tick[0] for tick in ticks] == list(range(len(ticks)))
        clocks = [(tick[1], tick[2]) for tick in ticks]
        assert all(earlier <= later for (earlier, _), (later, _) in itertools.pairwise(clocks)), "the monotonic clock went back"
        return clocks


class Told(NamedTuple):
    """How a move went, and how long the reader and the guest's clocks missed a tick, in ms."""

    moved: Moved
    reader_ms: float
    monotonic_ms: int
    wall_ms: int


async def move_one(source: str, language: str, *, based: bool) -> Told:
    """Start a program on one server, and move it to another while both clients are attached."""
    config = Config.load().scaled(time_factor())
    async with AsyncExitStack() as opened:
        here = await opened.enter_async_context(Service(config, Zygote.start))
        there = await opened.enter_async_context(Service(config, Zygote.start))
        if based:
            await here.bases.make(here.images.find(language))
        road = Road(Moves(there, HostMachines(there)), iter(()))
        opened.push_async_callback(road.close)
        run = here.start(Snippet(language=language, source=source.encode(), interactive=True))
        client = Client(run)
        reading = asyncio.create_task(client.read())
        await client.ticks(BEFORE)
        writing = asyncio.create_task(client.write())
        await client.ticks(BEFORE)
        began = time.monotonic()
        moved = await follow(Moves(here, HostMachines(here)).begin(run, road.connect, to="there"))
        await client.ticks(BEFORE)
        client.stop.set()
        await writing
        await reading
        clocks = client.check()
        assert run.to_json()["status"] == "ok", run.to_json()["error"]
        assert there.get(run.id).record.output(1) == run.record.output(1)
        gaps = [(later - earlier) * 1000 for earlier, later in itertools.pairwise(client.at) if later > began]
        steps = [(later[0] - earlier[0], later[1] - earlier[1]) for earlier, later in itertools.pairwise(clocks)]
        return Told(moved, max(gaps), max(step[0] for step in steps), max(step[1] for step in steps))


def tell(name: str, told: Told, based: bool) -> None:
    """Keep the figures in the file that MAYFLY_FIGURES names, if any."""
    print(name, told)
    if path := os.environ.get("MAYFLY_FIGURES"):
        figures: dict[str, Any] = {"what": name, "from_a_base": based, **told._asdict(), "load": os.getloadavg()[0]}
        with Path(path).open("a") as file:
            file.write(json.dumps({**figures, "moved": {name: getattr(told.moved, name) for name in told.moved.__struct_fields__}}) + "\n")


@pytest.mark.aarch64
@pytest.mark.usefixtures("toy_language")
def test_a_program_in_a_linux_guest_moves() -> None:
    tell("shell", asyncio.run(move_one(SHELL, "toy", based=False)), based=False)


@pytest.mark.skipif(not FULL, reason="only in the whole counts (make test-all)")
@pytest.mark.slow
@pytest.mark.parametrize(("language", "source"), [("rust", RUST), ("go", GO)])
def test_compiled_programs_move(monkeypatch: pytest.MonkeyPatch, language: str, source: str) -> None:
    """Only what differs from the base, which both servers have, is sent."""
    monkeypatch.setenv("XDG_DATA_HOME", str(DATA.parent))
    tell(language, asyncio.run(move_one(source, language, based=True)), based=True)


@pytest.mark.usefixtures("toy_language")
def test_a_clone_in_a_linux_guest_is_another_and_has_other_random_numbers() -> None:
    async def scenario() -> None:
        async with Service(Config.load().scaled(time_factor()), Zygote.start) as service:
            run = service.start(Snippet(language="toy", source=SHELL.encode(), interactive=True))
            first = Client(run)
            reading = [asyncio.create_task(first.read())]
            await first.ticks(1)
            clones = await fork(service, run, 2)
            clients = [first, *map(Client, clones)]
            reading += [asyncio.create_task(client.read()) for client in clients[1:]]
            for client in clients:
                with StdinWriter(client.run.stdin) as writer:
                    await client.say(writer, "who")
                    writer.end()
            await asyncio.gather(*reading)
            answers = [client.err.decode().split()[1:] for client in clients]
            assert [len(answer) for answer in answers] == [4] * 3
            for kind in range(3):  # boot id, host name, a random number
                assert len({answer[kind] for answer in answers}) == 3, answers
            assert all(abs(int(answer[3]) - time.time()) < 60 for answer in answers), answers

    asyncio.run(scenario())
