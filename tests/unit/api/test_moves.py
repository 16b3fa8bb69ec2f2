"""Runs move between two servers over HTTP: the routes, who may use them, the lines, the command."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner

from mayfly.api.moves import MoveBody, connect_to
from mayfly.cli.main import cli
from mayfly.errors import ServerLostError
from mayfly.runs.moves.link import Times
from tests.kit.api_fakes import install_toys, small_config
from tests.kit.api_server import Served, make_key, serving_two
from tests.kit.scale import patience
from tests.kit.toy_moves import ToyMachines, World, counted, play_toys


class Two(NamedTuple):
    """Two servers, with toys for machines."""

    here: Served
    there: Served
    world: World

    async def start(self, client: aiohttp.ClientSession | None = None, *, there: bool = False) -> str:
        """Start a program that counts until it is told to quit."""
        body = {"language": "py", "source": "-1", "interactive": True}
        server = self.there if there else self.here
        async with (client or server.operator).post("/start", json=body) as answer:
            assert answer.status == 201, await answer.text()
            run = str((await answer.json())["id"])
        found = server.service.get(run)
        while len(found.record.output(0)[0]) < 100:
            await found.record.changed()
        return run

    async def move(self, run: str, **body: Any) -> tuple[int, list[dict[str, Any]]]:
        async with self.here.operator.post(f"/runs/{run}/move", json={"to": self.there.url, **body}) as answer:
            return answer.status, [json.loads(line) async for line in answer.content]

    async def quit(self, server: Served, run: str) -> str:
        """Tell the program to quit, through this server; its output as that has it."""
        async with server.operator.post(f"/runs/{run}/stdin", data=b"quit") as answer:
            assert answer.status == 204, await answer.text()
        return await self.output(server, run)

    async def output(self, server: Served, run: str) -> str:
        await server.service.get(run).done.wait()
        async with server.operator.get(f"/runs/{run}") as answer:
            result = await answer.json()
        assert result["status"] == "ok", result["error"]
        return str(result["steps"][-1]["stdout"])


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    install_toys(monkeypatch, tmp_path)

    def call(scenario: Callable[[Two], Awaitable[Any]]) -> Any:
        world = World()

        async def whole(here: Served, there: Served) -> Any:
            for served in (here, there):
                play_toys(served.service, world)
            return await scenario(Two(here, there, world))

        return serving_two(tmp_path, whole, lambda service: ToyMachines(service, world))

    return call


def test_a_run_is_moved_and_read_at_both_servers(play: Callable[..., Any]) -> None:
    async def scenario(two: Two) -> None:
        run = await two.start()
        reading = asyncio.create_task(read_events(two.here.operator, run))
        status, lines = await two.move(run, key=make_key("mover", moves=True))
        assert (status, [line["event"] for line in lines]) == (200, ["round", "round", "moved"])
        assert (lines[-1]["run"], lines[-1]["to"], lines[-1]["rounds"]) == (run, two.there.url, 2)
        out = await two.quit(two.here, run)
        assert counted(out) > 10
        assert await two.output(two.there, run) == out
        events = await reading
        assert "".join(event.get("data", "") for event in events if event["event"] == "stdout") == out
        async with two.here.operator.get(f"/runs/{run}") as answer:
            assert (await answer.json())["moved_to"] == two.there.url
        async with two.there.operator.get(f"/runs/{run}/events?format=jsonl&after={events[-2]['id']}") as answer:
            assert [json.loads(line) async for line in answer.content] == events[-1:]

    play(scenario)


async def read_events(client: aiohttp.ClientSession, run: str) -> list[dict[str, Any]]:
    async with client.get(f"/runs/{run}/events?format=jsonl") as answer:
        return [json.loads(line) async for line in answer.content]


def test_who_may(play: Callable[..., Any]) -> None:
    async def scenario(two: Two) -> None:
        run = await two.start()
        for key in ("", make_key("tenant")):
            status, lines = await two.move(run, key=key)
            assert (status, lines[0]["error"]["code"]) == (503, "server_lost")
            assert "--moves" in lines[0]["error"]["hint"]
        async with two.here.client(make_key("mover", moves=True)) as client:
            async with client.post(f"/runs/{run}/move", json={"to": two.there.url}) as answer:
                assert answer.status == 403
            async with client.get("/moves") as answer:
                assert answer.status == 400  # not a WebSocket
        async with two.here.operator.delete(f"/runs/{run}") as answer:
            assert answer.status == 204

    play(scenario)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"to": "ftp://x"}, 422, "invalid_value"),
        ({"to": ""}, 422, "invalid_value"),
        ({"to": "http://127.0.0.1:9"}, 503, "server_lost"),
        ({"to": "/nowhere.sock"}, 503, "server_lost"),
        ({"to": "https://x", "certificates": "/nowhere"}, 422, "invalid_value"),
    ],
)
def test_an_address_that_is_none(play: Callable[..., Any], body: dict[str, str], status: int, code: str) -> None:
    async def scenario(two: Two) -> None:
        run = await two.start()
        async with two.here.operator.post(f"/runs/{run}/move", json=body) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
        async with two.here.operator.post("/drain", json=body) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
        assert not two.here.service.stopping

    play(scenario)


def test_all_that_does_not_fit_is_said(play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(self: ToyMachines, *_: object) -> Any:
        from mayfly.runs.moves.link import Place

        return Place(misfits=("One thing.", "Another thing."))

    monkeypatch.setattr(ToyMachines, "look", look)

    async def scenario(two: Two) -> None:
        run = await two.start()
        status, lines = await two.move(run, key=make_key("mover", moves=True))
        assert (status, lines[0]["error"]["code"]) == (409, "not_movable")
        assert "One thing.; Another thing." in lines[0]["error"]["message"]
        assert counted(await two.quit(two.here, run)) > 10

    play(scenario)


def test_a_server_without_room_says_so(play: Callable[..., Any]) -> None:
    """It has room for four machines, and four runs."""

    async def scenario(two: Two) -> None:
        others = [await two.start(there=True) for _ in range(4)]
        run = await two.start()
        key = make_key("mover", moves=True)
        status, lines = await two.move(run, key=key)
        assert (status, lines[0]["error"]["code"]) == (409, "not_movable")
        assert "there is no room for a machine of 128 MiB now" in lines[0]["error"]["message"]
        await two.quit(two.there, others.pop())
        assert (await two.move(run, key=key))[0] == 200
        for server, one in ((two.here, run), *((two.there, other) for other in others)):
            await two.quit(server, one)

    play(scenario)


def test_the_limits_of_a_key_hold_at_the_destination(play: Callable[..., Any]) -> None:
    """A run that moves is one of its key's runs there, though none that begins there."""

    async def scenario(two: Two) -> None:
        token, mover = make_key("tenant", concurrency=2, rate=3), make_key("mover", moves=True)
        async with two.here.client(token) as client, two.there.client(token) as client_there:
            runs = [await two.start(client), await two.start(client)]
            others = [await two.start(client_there, there=True)]
            assert (await two.move(runs[0], key=mover))[0] == 200
            status, lines = await two.move(runs[1], key=mover)
            assert (status, lines[0]["error"]["code"]) == (409, "not_movable")
            assert "2 runs of this key are under way" in lines[0]["error"]["message"]
            body = {"language": "py", "source": "1"}
            async with client_there.post("/start", json=body) as answer:
                assert answer.status == 429
            counted(await two.quit(two.there, others.pop()))
            assert (await two.move(runs[1], key=mover))[0] == 200
            for run in runs:
                counted(await two.quit(two.here, run))
                await two.there.service.settled(two.there.service.get(run))
            for _ in range(2):  # of 3 that may begin in a minute, one did
                async with client_there.post("/run", json=body) as answer:
                    assert answer.status == 200, await answer.text()

    play(scenario)


def test_a_client_that_goes_away_takes_the_move_back(play: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyMachines, "endless", True)

    async def scenario(two: Two) -> None:
        run = await two.start()
        body = {"to": two.there.url, "key": make_key("mover", moves=True)}
        async with two.here.operator.post(f"/runs/{run}/move", json=body) as answer:
            assert b"round" in await answer.content.readline()
        found = two.here.service.get(run)
        while found.moving is not None:
            await asyncio.sleep(0.01)
        assert counted(await two.quit(two.here, run)) > 10
        assert found.elsewhere is None

    play(scenario)


async def command(two: Two, *words: str) -> str:
    """What `mayfly` prints to standard output."""
    arguments = [*words, "--to", two.there.url, "--socket", str(two.here.service.config.socket)]
    runner, env = CliRunner(), {"MAYFLY_MOVE_KEY": make_key("mover", moves=True)}
    result = await asyncio.to_thread(runner.invoke, cli, arguments, env=env)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_says_where_the_run_goes_on(play: Callable[..., Any]) -> None:
    async def scenario(two: Two) -> None:
        run = await two.start()
        assert f"{run} goes on at {two.there.url}: " in await command(two, "move", run)
        assert counted(await two.quit(two.here, run)) > 10

    play(scenario)


def test_a_drain_moves_what_it_can(play: Callable[..., Any]) -> None:
    async def scenario(two: Two) -> None:
        runs = [await two.start() for _ in range(3)]
        printed = await command(two, "drain", "--json")
        lines = [json.loads(line) for line in printed.splitlines()]
        assert {line["run"] for line in lines if line["event"] == "moved"} == set(runs), lines
        assert lines[-1] == {"event": "drained", "moved": 3, "stayed": 0}
        async with two.here.operator.get("/readyz") as answer:
            assert answer.status == 503
        for run in runs:
            out = await two.quit(two.there, run)
            assert counted(out) > 10
            assert await two.output(two.here, run) == out

    play(scenario)


def test_a_server_that_says_nothing_any_more_is_lost(tmp_path: Path) -> None:
    silent = Times(silent_s=0.2)

    async def say_nothing(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        await socket.receive()  # the ping
        await socket.receive()
        return socket

    async def scenario() -> None:
        app = web.Application()
        app.router.add_get("/moves", say_nothing)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "socket")).start()
        link = await connect_to(MoveBody(to=str(tmp_path / "socket")), silent)()
        with pytest.raises(ServerLostError):
            await link.receive()
        await link.close()
        await runner.cleanup()

    asyncio.run(asyncio.wait_for(scenario(), patience(5)))


def test_a_slow_host_may_be_silent_for_longer(tmp_path: Path) -> None:
    times, slow = Times(), Times().on(small_config(tmp_path, time_factor=5.0))
    assert (slow.silent_s, slow.connect_s, slow.lost_s) == (5 * times.silent_s, 5 * times.connect_s, times.lost_s)


@pytest.mark.parametrize("command", ["move", "drain", "fork", "checkpoint"])
def test_a_command_for_a_server_has_no_flag_of_a_machine(command: str) -> None:
    said = CliRunner().invoke(cli, [command, "--help"])
    assert said.exit_code == 0
    assert "--socket" in said.output
    assert "--memory" not in said.output
