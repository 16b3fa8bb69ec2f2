"""Clones over HTTP and by the command."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from mayfly.cli.main import cli
from mayfly.units import MIB
from tests.kit.api_fakes import install_toys
from tests.kit.api_server import Served, make_key, serving
from tests.kit.toy_moves import World, play_toys, save_toys


def test_a_run_is_forked_over_http_and_by_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    world = World()
    save_toys(monkeypatch, world)

    async def scenario(served: Served) -> None:
        play_toys(served.service, world)
        async with served.client(make_key("tenant", concurrency=3)) as client, served.client(make_key("other")) as other:
            async with client.post("/start", json={"language": "py", "source": "-1", "interactive": True}) as answer:
                run = (await answer.json())["id"]
            found = served.service.get(run)
            while len(found.record.output(0)[0]) < 50:
                await found.record.changed()
            assert (await fork(other, run, 1))[0] == 404
            assert (await fork(client, run, 0))[0] == 422
            status, forked = await fork(client, run, 2)
            assert status == 201
            assert [clone["output_socket"] for clone in forked["clones"]] == [None, None]
            async with client.get(f"/runs/{forked['clones'][0]['id']}") as answer:
                assert (await answer.json())["forked_from"] == run
            status, refused = await fork(client, run, 1)
            assert (status, refused["error"]["code"]) == (429, "key_limit")
        command = ["fork", run, "--count", "1", "--socket", str(served.service.config.socket)]
        said = await asyncio.to_thread(CliRunner().invoke, cli, [*command, "--json"])
        assert said.exit_code != 0, "the run's key pays, whoever asks"
        await served.service.forget(forked["clones"][1]["id"])
        said = await asyncio.to_thread(CliRunner().invoke, cli, [*command, "--json"])
        assert said.exit_code == 0, said.output
        (clone,) = json.loads(said.output)["clones"]
        assert Path(clone["output_socket"]).is_socket()
        for one in (run, clone["id"], forked["clones"][0]["id"]):
            async with served.operator.post(f"/runs/{one}/stdin", data=b"quit") as answer:
                assert answer.status == 204
            await served.service.get(one).done.wait()
        status, refused = await fork(served.operator, run, 1)
        assert (status, refused["error"]["code"]) == (410, "run_ended")

    serving(tmp_path, scenario, memory_budget=1024 * MIB)


async def fork(client: aiohttp.ClientSession, run: str, count: int) -> tuple[int, Any]:
    async with client.post(f"/runs/{run}/fork", json={"count": count}) as answer:
        return answer.status, await answer.json()
