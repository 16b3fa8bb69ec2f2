"""Runs through a fleet: a run that was accepted has one result, whoever dies."""

import asyncio
import contextlib
import json
import logging
import platform
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mayfly.fleet.engine import Engine
from mayfly.fleet.failures import SilenceError
from tests.kit.api_fakes import install_toys
from tests.kit.fleet_kit import Fleet, Way, in_fleet, until

JSONL = {"Accept": "application/jsonl"}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)


def body(source: str, **more: Any) -> dict[str, Any]:
    return {"language": "toy", "source": source, **more}


async def run(client: aiohttp.ClientSession, source: str, key: str = "", **more: Any) -> dict[str, Any]:
    headers = {"Idempotency-Key": key} if key else {}
    async with client.post("/run", json=body(source, **more), headers=headers) as answer:
        found: dict[str, Any] = await answer.json()
        assert answer.status == 200, found
        return found


async def start(client: aiohttp.ClientSession, source: str, **more: Any) -> str:
    async with client.post("/start", json=body(source, **more)) as answer:
        found = await answer.json()
        assert answer.status == 201, found
        return str(found["id"])


async def get(client: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with client.get(path) as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def events(client: aiohttp.ClientSession, run_id: str, after: str = "") -> list[dict[str, Any]]:
    async with client.get(f"/runs/{run_id}/events", headers=JSONL, params={"after": after} if after else {}) as answer:
        assert answer.status == 200, await answer.text()
        return [json.loads(line) async for line in answer.content]


def output(found: list[dict[str, Any]]) -> str:
    return "".join(event["data"] for event in found if event["event"] == "stdout")


async def until_output(way: Way, run_id: str, text: str) -> None:
    """Wait until a run has put that out, as the gateway sees it."""

    async def look() -> None:
        while True:
            known = await way.runner.find(run_id)
            if text.encode() in known.record.output(1)[0]:
                return
            await asyncio.sleep(0.02)

    await asyncio.wait_for(look(), 30)


def test_a_run_and_all_that_belongs_to_it(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as one, fleet.gateway("g2") as two:
            found = await run(one.client, "echo out; echo err >&2; exit 3")
            assert (found["status"], found["exit_status"], found["steps"][1]["stdout"]) == ("failed", 3, "out\n")
            assert found["steps"][1]["stderr"] == "err\n"
            assert await get(two.client, f"/runs/{found['id']}") == found
            assert await events(two.client, found["id"]) == await events(one.client, found["id"])

            cases = [{"stdin": "1", "expected_stdout": "1"}, {"name": "second", "stdin": "2", "expected_stdout": "3"}]
            judged = await run(one.client, "cat", cases=cases)
            assert [case["verdict"] for case in judged["cases"]["results"]] == ["passed", "wrong_answer"]
            assert await get(two.client, f"/runs/{judged['id']}") == judged

            left = await run(one.client, "printf 123 > left.txt", collect=["*.txt"])
            assert list(left["files"]) == ["left.txt"]
            assert await get(two.client, f"/runs/{left['id']}") == left

            large = await run(one.client, "head -c 900000 /dev/zero | tr '\\0' x; head -c 900000 /dev/zero | tr '\\0' y >&2")
            assert (len(large["steps"][1]["stdout"]), len(large["steps"][1]["stderr"])) == (900_000, 900_000)
            assert await get(two.client, f"/runs/{large['id']}") == large

            async with one.client.post("/run", json=body("true", limits={"nonsense": {}})) as answer:
                assert answer.status == 422
            assert (await run(one.client, "true", architecture=platform.machine()))["status"] == "ok"
            other = "x86_64" if platform.machine() == "aarch64" else "aarch64"
            for client in (one.client, two.client):
                async with client.post("/run", json=body("true", architecture=other)) as answer:
                    assert (answer.status, (await answer.json())["error"]["code"]) == (404, "unknown_language")
            async with one.client.post("/run", json={"language": "cobol", "source": ""}) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (404, "unknown_language")
            async with two.client.delete(f"/runs/{found['id']}") as answer:
                assert answer.status == 204
            async with two.client.get(f"/runs/{found['id']}") as answer:
                assert answer.status == 404
            assert len((await get(one.client, "/languages"))["languages"]) == 3

    in_fleet(scenario)


def test_who_follows_a_run_may_talk_to_it_at_any_gateway(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        service = await fleet.add_host("h1")
        async with fleet.gateway("g1") as one, fleet.gateway("g2") as two:
            source = "trap 'echo signalled' USR1; while read line; do echo got $line; done; echo end"
            run_id = await start(one.client, source, interactive=True, stdin="first\n")
            following = asyncio.create_task(events(two.client, run_id))
            await until_output(one, run_id, "got first")
            async with one.client.post(f"/runs/{run_id}/stdin", data=b"second\n") as answer:
                assert answer.status == 204
            await until_output(two, run_id, "got second")
            async with two.client.post(f"/runs/{run_id}/stdin", data=b"third\n") as answer:
                assert answer.status == 204
            await until_output(one, run_id, "got third")
            middle = (await one.runner.find(run_id)).record.end
            async with two.client.post(f"/runs/{run_id}/signal", json={"signal": "USR1"}) as answer:
                assert answer.status == 204  # which ends the shell's `read` too
            seen = await following
            assert output(seen).splitlines()[:3] == ["got first", "got second", "got third"]
            assert seen[-1]["event"] == "done"
            rest = await events(one.client, run_id, f"{middle.span}-{middle.offset}")
            assert rest == await events(two.client, run_id, f"{middle.span}-{middle.offset}")
            assert output(rest) == "signalled\nend\n"

            counted = await start(one.client, "wc -c", interactive=True, stdin="12345")
            async with two.client.post(f"/runs/{counted}/stdin?eof=true", data=b"6" * 100_000) as answer:
                assert answer.status == 204
            assert output(await events(one.client, counted)).strip() == "100005"

            endless = await start(one.client, "echo begun; sleep 600")
            await until_output(two, endless, "begun")
            async with two.client.delete(f"/runs/{endless}") as answer:
                assert answer.status == 204
            await until(lambda: not service.under_way and not one.runner.under_way)
            assert one.runner.under_way == two.runner.under_way == 0

    in_fleet(scenario)


def test_a_request_that_is_repeated_begins_one_run(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        for name in ("h1", "h2"):
            await fleet.add_host(name)
        async with fleet.two_gateways() as (one, two):
            log = tmp_path / "log"
            source = f"echo $$ >> {log}; echo done"
            asked = [run(way.client, source, key=f"key-{number}") for number in range(6) for way in (one, two, one)]
            found = await asyncio.gather(*asked)
            assert len({each["id"] for each in found}) == 6
            assert {each["steps"][1]["stdout"] for each in found} == {"done\n"}
            assert len(log.read_text().split()) == 6
            headers = {"Idempotency-Key": "key-1"}
            async with two.client.post("/run", json=body("echo other"), headers=headers) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (422, "idempotency_key_reused")

    in_fleet(scenario)


def test_a_request_that_was_not_accepted_or_is_deleted_is_accepted_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stream may have the work of before, and keeps what it knows from being stored again."""
    stored = Engine.put

    async def put(engine: Engine, *what: Any) -> int:
        await stored(engine, *what)
        monkeypatch.setattr(Engine, "put", stored)
        raise SilenceError("no answer")

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            monkeypatch.setattr(Engine, "put", put)
            async with way.client.post("/run", json=body("echo one"), headers={"Idempotency-Key": "k"}) as answer:
                assert answer.status == 503, await answer.text()
            for _ in range(2):
                found = await run(way.client, "echo one", key="k")
                assert found["steps"][1]["stdout"] == "one\n"
                async with way.client.delete(f"/runs/{found['id']}") as answer:
                    assert answer.status == 204

    in_fleet(scenario)


def test_a_repeated_request_that_fails_leaves_what_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Engine.put

    async def put(engine: Engine, *what: Any) -> int:
        if engine.name == "g2":
            raise SilenceError("no answer")
        return await stored(engine, *what)

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.two_gateways() as (one, two):
            await fleet.remove_host("h1")
            monkeypatch.setattr(Engine, "put", put)
            headers = {"Idempotency-Key": "k"}
            async with one.client.post("/start", json=body("echo one"), headers=headers) as answer:
                assert answer.status == 201
                run_id = (await answer.json())["id"]
            async with two.client.post("/start", json=body("echo one"), headers=headers) as answer:
                assert answer.status == 503
            await fleet.add_host("h2")
            assert [event["status"] for event in await events(one.client, run_id) if event["event"] == "done"] == ["ok"]

    in_fleet(scenario)


def test_a_host_that_stops_gives_its_runs_back(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO, "mayfly.fleet")
    audit = tmp_path / "audit"

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1", audit_log=str(audit)) as way:
            gate = tmp_path / "gate"
            run_id = await start(way.client, f"echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo end")
            await until_output(way, run_id, "begun")
            await fleet.add_host("h2")
            await fleet.remove_host("h1")
            gate.touch()
            seen = await events(way.client, run_id)
            assert [event["attempt"] for event in seen if event["event"] == "attempt"] == [2]
            found = await get(way.client, f"/runs/{run_id}")
            assert (found["status"], found["steps"][1]["stdout"]) == ("ok", "begun\nend\n")
            lines = [json.loads(line) for line in audit.read_text().splitlines()]
            told = [one for one in lines if one.get("member") == "g1" and "attempt" in one]
            told = [one for one in told if one["action"] != "give_back"]  # as the gateway may see first that the host is gone
            assert {one["run"] for one in told} == {run_id}
            steps = dict.fromkeys((one["action"], one["attempt"], one["host"]) for one in told)  # hosts of this process say the same
            assert list(steps) == [("begin", 1, "h1"), ("begin", 2, "h2"), ("end", 2, "h2")]
            of_hosts = [one.step for one in caplog.records if one.name == "mayfly.fleet.carrying" and hasattr(one, "step")]
            assert [(one["action"], one["attempt"], one["host"]) for one in of_hosts] == [("begin", 1, "h1"), ("begin", 2, "h2")]

    in_fleet(scenario)


def test_raw_output_is_cut_off_when_another_host_begins(tmp_path: Path) -> None:
    """What was sent cannot be taken back, and nothing of another attempt follows it."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1") as way:
            gate = tmp_path / "gate"
            asked = body(f"echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo end", output="raw")
            async with way.client.post("/start", json=asked) as answer:
                started = await answer.json()
            reader, writer = await asyncio.open_unix_connection(started["output_socket"])
            assert await reader.readline() == b"begun\n"
            await fleet.add_host("h2")
            await fleet.remove_host("h1")
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()
            gate.touch()
            assert output(await events(way.client, started["id"])).endswith("begun\nend\n")

    in_fleet(scenario)


def test_a_run_waits_for_a_host(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.add_host("h1")
        async with fleet.gateway("g1", queue=2) as way:
            await fleet.remove_host("h1")
            waiting = [await start(way.client, "echo there") for _ in range(2)]
            async with way.client.post("/start", json=body("echo there")) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
            async with way.client.delete(f"/runs/{waiting[1]}") as answer:
                assert answer.status == 204
            await fleet.add_host("h2")
            assert output(await events(way.client, waiting[0])) == "there\n"

    in_fleet(scenario)


def test_a_server_that_is_killed_loses_no_run(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        for name in ("h1", "h2"):
            await fleet.add_host(name)
        async with fleet.gateway("g1") as way:
            log = tmp_path / "log"
            # it writes what it has given out a fifth of a second later
            running = [await start(way.client, f"sleep 0.5; echo {number} >> {log}; sleep 1; echo {number}") for number in range(4)]
            await until(lambda: log.exists() and len(log.read_text().split()) == 4)
            await asyncio.to_thread(fleet.server.stop, 9)
            async with way.client.post("/start", json=body("true")) as answer:
                assert answer.status == 503, await answer.text()
            assert (await get(way.client, "/healthz"))["quorum"] is False
            await asyncio.to_thread(fleet.server.start)
            for number, run_id in enumerate(running):
                assert output(await events(way.client, run_id)) == f"{number}\n"
            assert len(log.read_text().split()) == 4, "no run began twice"
            assert (await run(way.client, "echo after"))["status"] == "ok"
            assert (await get(way.client, "/healthz"))["quorum"] is True

    in_fleet(scenario, limit_s=90)
