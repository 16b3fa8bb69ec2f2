"""Functions through a server process and all its gateways: created and removed while it runs, 500
requests with checked answers, three functions in room for two, crashes among them, and its end.
Guests are ordinary processes.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.cli.asking import ask
from mayfly.client import AsyncClient
from mayfly.errors import FunctionCrashedError, FunctionTimeoutError
from mayfly.units import MIB
from tests.kit.api_fakes import ROOT
from tests.kit.functions_kit import install_echo
from tests.kit.scale import patience

NAMES = ("one", "two", "three")
SPEC = "- {{name: {name}, language: toy, code: {name}.toy, timeout_s: 1, queue: 200, queue_s: 60}}\n"
BUDGET = 256 * MIB
"""Two guests of the toy language."""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "tests.kit.fake_mayfly", "-", *map(str, arguments)]


class Host:
    """A user's folders, and the server that they have."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self.folder = folder
        self.socket = socket
        self.statistics = folder / "statistics.json"
        self.server: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.options = ("--time-factor", "1", "--kernel", folder / "vmlinux")

    def run(self, *arguments: str | Path, status: int = 0) -> str:
        """What a command prints."""
        done = subprocess.run(
            command(*arguments), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    def function(self, *arguments: str | Path, status: int = 0) -> str:
        """What `mayfly function` prints, of a command that knows the server."""
        return self.run("function", *arguments, "--socket", self.socket, *self.options, status=status)

    def create(self, *names: str) -> str:
        """Create functions."""
        for name in names:
            (self.folder / f"{name}.toy").write_text("true")
        file = self.folder / "functions.yaml"
        file.write_text("".join(SPEC.format(name=name) for name in names))
        return self.function("create", file)

    def serve(self) -> None:
        """Start the server, and wait until it listens."""
        options = ["--memory-budget", str(BUDGET), "--function-listen", "127.0.0.1:0", "--function-statistics", str(self.statistics)]
        self.server = subprocess.Popen(
            command("serve", "--socket", self.socket, *self.options, *options),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.server.stderr
        for line in self.server.stderr:
            if found := re.search(rb"listening .*frames at 127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                return
        pytest.fail("the server did not come up")

    def close(self) -> None:
        """End the server."""
        if self.server is not None:
            if self.server.poll() is None:
                self.server.terminate()
            self.server.wait(patience(60))
            assert self.server.stderr
            self.server.stderr.close()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    install_echo(monkeypatch, tmp_path)
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        found = Host(tmp_path, Path(name) / "x" / "api.sock")
        yield found
        found.close()


async def over_http(host: Host) -> None:
    """200 requests, ten at a time, and amid them a crash and a time-out of each function."""
    async with AsyncClient(host.socket) as client:
        gate = asyncio.Semaphore(10)

        async def one(name: str, payload: Any) -> None:
            async with gate:
                found = await client.invoke(name, payload)
                assert (found.status, found.json()) == ("ok", payload)

        async def bad(name: str, deed: bytes, kind: type[Exception]) -> None:
            async with gate:
                with pytest.raises(kind):
                    await client.invoke(name, deed)

        for part in range(2):
            for name in NAMES:
                work = [one(name, {"of": name, "part": part, "number": number}) for number in range(32 if part else 34)]
                work[10:10] = [bad(name, b"!exit 3", FunctionCrashedError)]
                if part:
                    work[20:20] = [bad(name, b"!hang", FunctionTimeoutError)]
                await asyncio.gather(*work)
        found = await client.invoke("two", b"!raise it")
        assert (found.status, found.json()["message"]) == ("exception", "it")
        assert (await client.invoke("two", b"x")).payload == b"x"


def requests_file(path: Path, count: int) -> list[Any]:
    """A file of requests to all functions; the payloads, by line."""
    payloads = [{"line": number, "of": NAMES[number * len(NAMES) // count]} for number in range(count)]
    lines = [
        {"time": number, "user_id": number % 7, "function": payload["of"], "payload": payload} for number, payload in enumerate(payloads)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return payloads


def over_frames(host: Host) -> None:
    """150 requests by SnapFaaS's client."""
    path = host.folder / "frames.json"
    payloads = requests_file(path, 150)
    client = [sys.executable, "-m", "tests.kit.snapfaas_client", f"127.0.0.1:{host.port}", str(path)]
    done = subprocess.run(client, cwd=ROOT, capture_output=True, text=True, check=True)
    answers = [json.loads(json.loads(line)) for line in done.stdout.splitlines()]
    assert sorted(answers, key=lambda answer: int(answer["line"])) == payloads


def from_file(host: Host) -> None:
    """150 requests of a file, and two lines that are none."""
    path = host.folder / "requests.jsonl"
    payloads = requests_file(path, 150)
    path.write_text(path.read_text() + "{\n" + '{"function": "one"}\n')
    out = host.function("invoke", "--file", path, status=1)
    answers = sorted((json.loads(line) for line in out.splitlines()), key=lambda answer: int(answer["line"]))
    assert [answer["payload"] for answer in answers] == payloads
    assert {answer["status"] for answer in answers} == {"ok"}
    assert len({answer["id"] for answer in answers}) == 150


async def while_it_stops(host: Host) -> None:
    """What is under way at SIGTERM is answered, and nothing more is taken."""
    assert host.server is not None
    async with AsyncClient(host.socket, patience_s=0) as client:
        slow = asyncio.create_task(client.invoke("one", b"!sleep 0.5"))
        while not (await asyncio.to_thread(ask, host.socket, "GET", "/functions/one"))["figures"]["guests"].get("in_use"):
            pass
        host.server.send_signal(signal.SIGTERM)
        assert (await slow).payload == b"!sleep 0.5"


@pytest.mark.slow
def test_500_requests_through_every_gateway(host: Host) -> None:
    host.create("one")
    host.serve()
    assert host.create("two", "three").count("toy") == 2
    assert [function["name"] for function in json.loads(host.run("function", "list", "--json"))] == sorted(NAMES)
    asyncio.run(asyncio.wait_for(over_http(host), patience(120)))
    over_frames(host)
    from_file(host)
    assert json.loads(host.function("invoke", "one", "--data", '{"a": 1}')) == {"a": 1}
    asyncio.run(asyncio.wait_for(while_it_stops(host), patience(60)))
    assert host.server is not None
    assert host.server.wait(patience(60)) == 0
    assert list(host.socket.parent.rglob("*")) == []
    statistics = json.loads(host.statistics.read_text())
    assert statistics["number of requests completed"] >= 500
    assert statistics["number of evictions"] > 0
    assert statistics["number of vms created"] == len(statistics["vm memory sizes"])
    host.function("rm", "two")
    assert [function["name"] for function in json.loads(host.run("function", "list", "--json"))] == ["one", "three"]
    assert "no function" not in host.run("function", "inspect", "one")
    host.run("function", "inspect", "two", status=1)


def test_without_a_server_a_guest_is_started_for_it(host: Host) -> None:
    host.create("one")
    assert json.loads(host.function("invoke", "one", "--data", "[1]")) == [1]
    host.function("logs", "one", status=1)
