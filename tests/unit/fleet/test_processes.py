"""A fleet of processes, as it is run: hosts and gateways that are killed."""

import asyncio
import collections
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mayfly.errors import FleetError
from mayfly.fleet.engine import Engine
from mayfly.fleet.local import Member
from mayfly.fleet.operate import wish
from mayfly.fleet.server import LocalServer
from tests.kit.api_fakes import ROOT, install_toys
from tests.kit.fleet_kit import QUICK, server_folder
from tests.kit.functions_kit import let_toys_load_functions
from tests.unit.fleet.test_calls import SECRET, called, receiver
from tests.unit.fleet.test_fleet import events, output, run, start

PROGRAM = (sys.executable, "-m", "tests.kit.fake_mayfly", "-")


class Processes:
    """The processes of a fleet, and clients of its gateways."""

    def __init__(self, folder: Path, server: LocalServer) -> None:
        self.folder = folder
        self.server = server
        self.members: dict[str, Member] = {}

    def begin(self, name: str, *command: str) -> None:
        socket = self.folder / name / "api.sock"
        common = [
            "--socket",
            str(socket),
            "--name",
            name,
            "--time-factor",
            "1",
            "--ack-wait",
            "6",
            "--memory-budget",
            "512M",
            "--wall",
            "200",
        ]
        self.members[name] = Member([*PROGRAM, *command, *common], self.folder / f"{name}.log")

    def host(self, name: str, *more: str) -> None:
        self.begin(name, "serve", "--join", self.server.url, "--cold", *more)

    def gateway(self, name: str, *more: str) -> None:
        self.begin(name, "gateway", self.server.url, *more)

    def client(self, name: str) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(path=str(self.folder / name / "api.sock"), limit=0)
        return aiohttp.ClientSession("http://mayfly", connector=connector)

    def kill(self, name: str) -> None:
        """kill -9, with all that the process has started."""
        os.killpg(self.members[name].process.pid, signal.SIGKILL)
        self.members.pop(name).process.wait()

    def command(self, *words: str) -> str:
        done = subprocess.run([*PROGRAM, "fleet", *words, "--fleet", self.server.url], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Processes]:
    install_toys(monkeypatch, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FAKE_QUICK", json.dumps(QUICK))
    monkeypatch.chdir(ROOT)
    with server_folder() as folder, LocalServer(folder / "nats") as server:
        processes = Processes(folder, server)
        yield processes
        for member in reversed(processes.members.values()):  # hosts while gateways are there
            member.stop()


async def until_languages(client: aiohttp.ClientSession, count: int = 3) -> None:
    async with asyncio.timeout(30):
        while True:
            async with client.get("/languages") as answer:
                if len((await answer.json())["languages"]) == count:
                    return
            await asyncio.sleep(0.05)


def test_who_is_killed_takes_no_run_along(fleet: Processes, tmp_path: Path) -> None:
    fleet.gateway("g1")
    fleet.gateway("g2")
    fleet.host("h1")
    for member in fleet.members.values():
        member.wait_until_ready()
    log, gate = tmp_path / "log", tmp_path / "gate"
    source = f"echo begun >> {log}; echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo end"

    async def scenario() -> None:
        async with fleet.client("g1") as one, fleet.client("g2") as two:
            await until_languages(one)
            await until_languages(two)
            run_id = await start(one, source)
            while not log.exists():
                await asyncio.sleep(0.02)
            fleet.host("h2")
            await asyncio.to_thread(fleet.members["h2"].wait_until_ready)
            following = asyncio.create_task(events(two, run_id))
            fleet.kill("h1")
            while len(log.read_text().split()) < 2:
                await asyncio.sleep(0.02)
            fleet.kill("g1")
            gate.touch()
            seen = await following
            assert output(seen).endswith("begun\nend\n")
            assert seen[-1]["event"] == "done"
            async with two.get(f"/runs/{run_id}") as answer:
                found: dict[str, Any] = await answer.json()
            assert (found["status"], found["steps"][1]["stdout"]) == ("ok", "begun\nend\n")
            assert len(log.read_text().split()) == 2

    asyncio.run(asyncio.wait_for(scenario(), 240))


def test_what_was_typed_at_a_gateway_that_is_killed_comes_to_the_next_host(fleet: Processes) -> None:
    fleet.gateway("g1")
    fleet.gateway("g2")
    fleet.host("h1")
    for member in fleet.members.values():
        member.wait_until_ready()

    async def scenario() -> None:
        async with fleet.client("g1") as one, fleet.client("g2") as two:
            await until_languages(one)
            run_id = await start(one, "cat; echo end", interactive=True)
            for client, data in ((one, b"1"), (two, b"2"), (one, b"3")):
                async with client.post(f"/runs/{run_id}/stdin", data=data) as answer:
                    assert answer.status == 204
            fleet.kill("g1")  # whether or not it has told the host
            fleet.host("h2")
            await asyncio.to_thread(fleet.members["h2"].wait_until_ready)
            fleet.kill("h1")
            async with two.post(f"/runs/{run_id}/stdin?eof=true", data=b"4\n") as answer:
                assert answer.status == 204
            seen = await events(two, run_id)
            assert (output(seen).endswith("1234\nend\n"), seen[-1]["event"]) == (True, "done"), seen

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_host_that_hangs_has_its_runs_done_by_others(fleet: Processes, tmp_path: Path) -> None:
    """What it brings when it goes on is not their result."""
    fleet.gateway("g1")
    fleet.host("h1")
    for member in fleet.members.values():
        member.wait_until_ready()
    log, gate = tmp_path / "log", tmp_path / "gate"
    source = f"echo $$ >> {log}; echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo $$"

    def begun() -> list[str]:
        return log.read_text().split() if log.exists() else []

    async def scenario() -> None:
        async with fleet.client("g1") as one:
            await until_languages(one)
            ids = [await start(one, source) for _ in range(2)]
            while len(begun()) < 2:
                await asyncio.sleep(0.02)
            fleet.host("h2")
            await asyncio.to_thread(fleet.members["h2"].wait_until_ready)
            hanging = fleet.members["h1"].process
            hanging.send_signal(signal.SIGSTOP)
            try:
                while len(begun()) < 4:
                    await asyncio.sleep(0.05)
                gate.touch()
                followed = [await events(one, run_id) for run_id in ids]
            finally:
                hanging.send_signal(signal.SIGCONT)
            while await sample(one, "mayfly_fleet_running"):
                await asyncio.sleep(0.1)
            for run_id, seen in zip(ids, followed, strict=True):
                assert [event["attempt"] for event in seen if event["event"] == "attempt"] == [2]
                async with one.get(f"/runs/{run_id}") as answer:
                    found: dict[str, Any] = await answer.json()
                assert found["status"] == "ok"
                assert found["steps"][1]["stdout"].split()[1] in begun()[2:]
            assert len(begun()) == 4

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_who_is_killed_takes_no_call_and_no_answer_along(fleet: Processes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    let_toys_load_functions(tmp_path)
    code = tmp_path / "echo.toy"
    code.write_text("true")
    (tmp_path / "echo.yaml").write_text("{name: echo, language: toy, code: echo.toy, timeout_s: 60}")
    for name in ("g1", "g2"):
        fleet.gateway(name, "--callback-hosts", "127.0.0.1")
    fleet.host("h1")
    for member in fleet.members.values():
        member.wait_until_ready()
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with receiver() as taker, fleet.client("g1") as one, fleet.client("g2") as two:
            await until_languages(one)
            await until_languages(two)
            create = [*PROGRAM, "function", "create", str(tmp_path / "echo.yaml"), "--fleet", fleet.server.url]
            await asyncio.to_thread(subprocess.run, create, cwd=ROOT, check=True, capture_output=True)
            for client in (one, two):
                while (await ask(client, "/functions/echo", b"x"))[0] != 200:
                    await asyncio.sleep(0.1)
            source = f"while [ ! -e {gate} ]; do sleep 0.05; done; echo end"
            run_id = await start(one, source, callback_url=taker.url, callback_secret=SECRET)
            status, found = await ask(one, "/functions/echo?async", b"!sleep 1")
            assert status == 202
            fleet.kill("g1")
            gate.touch()
            assert (await called(taker))["id"] == run_id
            place = f"/functions/echo/requests/{json.loads(found)['id']}"
            async with two.get(place, params={"wait": "true"}) as answer:
                assert answer.status == 200
            asked = asyncio.create_task(ask(two, "/functions/echo", b"!sleep 60"))
            while await sample(two, "mayfly_fleet_running") < 1:
                await asyncio.sleep(0.1)
            fleet.host("h2")
            await asyncio.to_thread(fleet.members["h2"].wait_until_ready)
            fleet.kill("h1")
            status, found = await asked
            assert (status, json.loads(found)["error"]["code"]) == (502, "function_crashed")
            assert await ask(two, "/functions/echo", b"on") == (200, b"on")

    asyncio.run(asyncio.wait_for(scenario(), 240))


async def ask(client: aiohttp.ClientSession, path: str, payload: bytes) -> tuple[int, bytes]:
    async with client.post(path, data=payload) as answer:
        return answer.status, await answer.read()


UP = """
import functools
import sys
from mayfly.cli.main import cli
from mayfly.fleet import local

serve, program = local.serve_locally, (sys.executable, "-m", "tests.kit.fake_mayfly", "-")
local.serve_locally = lambda *where, **how: serve(*where, **{**how, "of_hosts": ("--time-factor", "1"), "program": program})
place = sys.argv[1]
cli(["fleet", "up", "--local", "2", "--port", "0", "--socket", f"{place}/up/api.sock", "--folder", f"{place}/fleet"])
"""


def test_a_whole_fleet_comes_up_on_one_machine_and_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FAKE_QUICK", json.dumps(QUICK))
    monkeypatch.chdir(ROOT)
    with server_folder() as folder:
        socket = folder / "up" / "api.sock"
        with subprocess.Popen([sys.executable, "-c", UP, str(folder)], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            url = process.stderr.readline().rpartition(" ")[2].strip()
            assert "2 hosts" in process.stderr.readline()

            async def scenario() -> None:
                connector = aiohttp.UnixConnector(path=str(socket))
                async with aiohttp.ClientSession("http://mayfly", connector=connector) as client:
                    await until_languages(client)
                    assert (await run(client, "echo up"))["steps"][1]["stdout"] == "up\n"

            asyncio.run(asyncio.wait_for(scenario(), 60))
            top = [*PROGRAM, "fleet", "top", "--times", "2", "--every", "0", "--fleet", url]
            shown = subprocess.run(top, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
            assert [line.partition("  ")[2] for line in shown if "hosts," in line] == ["2 hosts, 0 runs"] * 2
            assert [line.split()[0] for line in shown if " serving " in line] == ["host-1", "host-2"] * 2
            process.send_signal(signal.SIGHUP)  # as its terminal does that is closed
            assert process.stderr.read() == "fleet: stopping\n"
            assert process.wait(60) == 0
        assert not socket.exists()


def test_what_another_process_has_said_before_makes_none_ready(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("listening at another time\n")
    with pytest.raises(FleetError, match="not this time"):
        Member(["sh", "-c", "echo not this time"], log).wait_until_ready()
    assert log.read_text() == "listening at another time\nnot this time\n"


FIRST, SECOND = 300, 200
"""Runs while hosts come and go as they should, and while members are killed."""
AT_ONCE = 24
MOST = 4
"""Runs that a host has at a time: its memory allows no more."""
INTERACTIVE, CANCELLED, REPEATED, STREAMED = 20, 10, 20, 60


async def all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do them, some at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(work: Coroutine[Any, Any, None]) -> None:
        async with room:
            await work

    await asyncio.gather(*map(one, works))


async def sample(client: aiohttp.ClientSession, name: str, of: str = "") -> float:
    """The sum of a metric, over what has a label."""
    async with client.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")) and of in line)


@pytest.mark.timeout(600)
def test_five_hundred_runs_whoever_comes_and_goes(fleet: Processes, tmp_path: Path) -> None:
    for gateway in ("g1", "g2"):
        fleet.gateway(gateway, "--queue", "400")
    for name in ("h1", "h2", "h3"):
        fleet.host(name)
    for member in fleet.members.values():
        member.wait_until_ready()
    log = tmp_path / "log"
    log.touch()

    def source(number: int) -> str:
        return f"echo {number} >> {log}; echo {number}"

    gate = tmp_path / "gate"

    def slow(number: int) -> str:
        return f"echo {number} >> {log}; while [ ! -e {gate} ]; do sleep 0.05; done; sleep 0.2; echo {number}"

    lost: dict[str, float] = {}  # metrics of members that are killed then

    def executed() -> collections.Counter[int]:
        return collections.Counter(map(int, log.read_text().split()))

    async def while_hosts_come_and_go(clients: Sequence[aiohttp.ClientSession]) -> None:
        """Each run is carried out once."""

        def client(number: int) -> aiohttp.ClientSession:
            return clients[number % 2]

        async def plain(number: int) -> None:
            assert (await run(client(number), source(number)))["steps"][1]["stdout"] == f"{number}\n"

        async def streamed(number: int) -> None:
            run_id = await start(client(number), source(number))
            seen = await events(client(number + 1), run_id)  # of the other gateway
            assert (output(seen), seen[-1]["event"]) == (f"{number}\n", "done")

        async def interactive(number: int) -> None:
            run_id = await start(client(number), f"{source(number)}; cat", interactive=True)
            async with client(number + 1).post(f"/runs/{run_id}/stdin?eof=true", data=b"typed\n") as answer:
                assert answer.status == 204, await answer.text()
            assert output(await events(client(number), run_id)) == f"{number}\ntyped\n"

        async def cancelled(number: int) -> None:
            run_id = await start(client(number), f"{source(number)}; sleep 600")
            while number not in executed():
                await asyncio.sleep(0.05)
            async with client(number + 1).delete(f"/runs/{run_id}") as answer:
                assert answer.status == 204

        async def repeated(number: int) -> None:
            asked = (run(client(number + again), source(number), key=f"key-{number}") for again in range(3))
            assert len({found["id"] for found in await asyncio.gather(*asked)}) == 1

        kinds = [interactive] * INTERACTIVE + [cancelled] * CANCELLED + [repeated] * REPEATED + [streamed] * STREAMED
        kinds += [plain] * (FIRST - len(kinds))
        random.Random(18).shuffle(kinds)
        work = asyncio.create_task(all_of(kind(number) for number, kind in enumerate(kinds)))
        while len(executed()) < FIRST // 4:
            await asyncio.sleep(0.05)
        assert await asyncio.to_thread(fleet.command, "drain", "h1", "--wait", "60") == ""
        fleet.host("h4")
        while len(executed()) < FIRST // 2:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(fleet.command, "undrain", "h1")
        await work
        assert executed() == dict.fromkeys(range(FIRST), 1)
        async with asyncio.timeout(30):  # a run is over before its machine is gone, and counted then
            while await sample(clients[0], "mayfly_runs_total") < FIRST:
                await asyncio.sleep(0.2)
        assert await sample(clients[0], "mayfly_runs_total") == FIRST
        assert sum([await sample(each, "mayfly_fleet_accepted") for each in clients]) == FIRST

    async def while_members_are_killed(clients: list[aiohttp.ClientSession]) -> None:
        """Each run has one result, and is carried out at least once."""
        second: list[asyncio.Event] = [asyncio.Event() for _ in range(SECOND)]

        async def stubborn(number: int) -> None:
            """As a client that repeats its request until it is answered, at any gateway."""
            for _ in range(200):
                try:
                    found = await asyncio.wait_for(run(clients[number % len(clients)], slow(number), key=f"key-{number}"), 60)
                except (aiohttp.ClientError, AssertionError, TimeoutError, OSError, RuntimeError):  # its client is closed
                    await asyncio.sleep(0.1)
                    continue
                assert found["steps"][1]["stdout"] == f"{number}\n"
                second[number - FIRST].set()
                return
            raise AssertionError(f"the run {number} has no result")

        async def until_done(count: int) -> None:
            while sum(done.is_set() for done in second) < count:
                await asyncio.sleep(0.05)

        work = asyncio.create_task(all_of(stubborn(number) for number in range(FIRST, FIRST + SECOND)))
        while sum(number >= FIRST for number in executed()) <= 3 * MOST:  # each of four hosts has some
            await asyncio.sleep(0.05)
        lost["mayfly_runs_total"] = await sample(clients[0], "mayfly_runs_total", 'host="h2"')
        fleet.kill("h2")
        gate.touch()
        await until_done(SECOND // 4)
        await asyncio.to_thread(fleet.server.stop, signal.SIGKILL)
        await asyncio.to_thread(fleet.server.start)
        await until_done(SECOND // 2)
        lost["mayfly_fleet_accepted"] = await sample(clients[1], "mayfly_fleet_accepted")
        fleet.kill("g2")
        await clients.pop().close()
        await work
        counts = executed()
        assert set(counts) == set(range(FIRST + SECOND))
        again = sum(counts.values()) - len(counts)
        assert 0 < again < SECOND // 2, "what the killed host had is done again, and little besides"
        for name in ("mayfly_fleet_followed", "mayfly_fleet_running"):
            async with asyncio.timeout(30):
                while await sample(clients[0], name):
                    await asyncio.sleep(0.2)
        for name, expected in (("mayfly_runs_total", sum(counts.values())), ("mayfly_fleet_accepted", len(counts))):
            told = lost[name] + await sample(clients[0], name)  # who was killed may have counted more meanwhile
            assert abs(expected - told) <= AT_ONCE, name

    async def all_wish(names: Sequence[str], *, drain: bool) -> None:
        async with Engine.connect((fleet.server.url,), "operator") as engine:
            for name in names:
                await wish(engine, name, drain=drain)

    async def no_more_than_may_wait(client: aiohttp.ClientSession) -> None:
        names = [name for name in fleet.members if name.startswith("h")]
        await all_wish(names, drain=True)
        fleet.gateway("g3", "--queue", "1")
        await asyncio.to_thread(fleet.members["g3"].wait_until_ready)
        async with fleet.client("g3") as strict:
            await until_languages(strict)
            waiting: list[str] = []
            while len(waiting) <= len(names):
                async with strict.post("/start", json={"language": "toy", "source": "echo waited"}) as answer:
                    if answer.status == 429:
                        assert answer.headers["Retry-After"] == "1"
                        break
                    waiting.append((await answer.json())["id"])
            assert 0 < len(waiting) <= len(names)
            async with strict.delete(f"/runs/{waiting.pop()}") as answer:
                assert answer.status == 204
            listed = {host["name"]: host for host in json.loads(await asyncio.to_thread(fleet.command, "list", "--json"))}
            assert {name: host["draining"] for name, host in listed.items()} == dict.fromkeys(names, True)
            await all_wish(names, drain=False)
            for run_id in waiting:
                assert output(await events(client, run_id)) == "waited\n"

    async def nothing_is_left() -> None:
        """No work, call or charge; for an hour registered runs, each with its result."""
        async with Engine.connect((fleet.server.url,), "operator") as engine:
            names = (await engine._api("STREAM.NAMES", {}))["streams"]
            found = {name: (await engine._api(f"STREAM.INFO.{name}", {"subjects_filter": ">"}))["state"] for name in names}
            assert {name for name, state in found.items() if state["messages"]} <= {"KV_runs", "KV_results", "KV_fleet"}
            registered, stored = (
                {words[2] for subject in found[name]["subjects"] if len(words := subject.split(".")) == 3}
                for name in ("KV_runs", "KV_results")
            )
            assert registered <= stored

    async def scenario() -> None:
        async with fleet.client("g1") as one:
            async with fleet.client("g2") as two:
                clients = [one, two]
                for client in clients:
                    await until_languages(client)
                await while_hosts_come_and_go(clients)
                await while_members_are_killed(clients)
            await no_more_than_may_wait(one)
            await nothing_is_left()

    asyncio.run(asyncio.wait_for(scenario(), 580))
