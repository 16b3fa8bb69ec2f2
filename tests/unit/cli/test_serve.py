"""`mayfly serve` as a process: how it begins, how it ends, what it leaves. Machines are ordinary
processes.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.kit.api_fakes import ROOT, gone, install_toys


class Server(subprocess.Popen[bytes]):
    """`said` is what it has said on standard error until it was ready."""

    said = b""


Serve = Callable[..., Server]


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        yield Path(name) / "x" / "api.sock"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Path) -> Iterator[Serve]:
    """Start servers; they are waited for until they listen or end, and ended with the test."""
    install_toys(monkeypatch, tmp_path)
    started = []

    def start(*args: str, wait_for: bytes = b"listening") -> Server:
        command = [sys.executable, "-m", "tests.kit.fake_mayfly", "-", "serve", "--socket", str(path), "--time-factor", "1", *args]
        process = Server(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, start_new_session=True)
        started.append(process)
        assert process.stderr
        for line in process.stderr:
            process.said += line
            if wait_for in line or b"  " in line:
                break
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        assert process.stderr
        process.stderr.close()


def call(path: Path, method: str, url: str, body: bytes | None = None) -> tuple[int, Any]:
    async def ask() -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(path))) as client,
            client.request(method, f"http://mayfly{url}", data=body) as answer,
        ):
            return answer.status, await answer.json()

    return asyncio.run(asyncio.wait_for(ask(), 30))


def first_line(output: str) -> tuple[socket.socket, bytes]:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(output)
    connection.settimeout(30)
    line = b""
    while not line.endswith(b"\n"):
        line += connection.recv(1)
    return connection, line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_its_runs_and_removes_its_sockets(serve: Serve, path: Path, number: int) -> None:
    server = serve("--language", "toy", "--drain-s", "0")
    status, started = call(path, "POST", "/start?output=events", b"echo $$; exec sleep 60")
    assert status == 201
    connection = socket.socket(socket.AF_UNIX)
    with connection:
        connection.connect(started["output_socket"])
        with connection.makefile() as lines:
            pid = next(int(event["data"]) for event in map(json.loads, lines) if event["event"] == "stdout")
            server.send_signal(number)
            rest = [json.loads(line) for line in lines]
    assert [event["event"] for event in rest] == ["error", "done"]
    assert rest[0]["error"]["message"] == "the server is stopping"
    assert server.wait(60) == 0
    assert list(path.parent.rglob("*")) == []
    assert gone(pid)


@pytest.mark.parametrize("patient", [True, False])
def test_what_is_under_way_may_end_unless_it_is_told_twice(serve: Serve, path: Path, tmp_path: Path, patient: bool) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    server = serve("--language", "toy", "--drain-s", "60")
    _, started = call(path, "POST", "/start", f"echo begun; read -r line <{go}; echo $line".encode())
    connection, _ = first_line(started["output_socket"])
    with connection:
        server.send_signal(signal.SIGTERM)
        while call(path, "GET", "/readyz")[0] == 200:
            pass
        assert call(path, "GET", "/healthz")[1]["status"] == "draining"
        status, answer = call(path, "POST", "/start", b"true")
        assert (status, answer["error"]["code"]) == (503, "stopping")
        assert server.poll() is None
        if patient:
            go.write_text("ended\n")
        else:
            server.send_signal(signal.SIGTERM)
        assert b"".join(iter(lambda: connection.recv(4096), b"")) == (b"ended\n" if patient else b"")
    assert server.wait(60) == 0
    assert list(path.parent.rglob("*")) == []


def test_runs_that_do_not_end_in_time_are_ended(serve: Serve, path: Path) -> None:
    server = serve("--language", "toy", "--drain-s", "0.2")
    _, started = call(path, "POST", "/start?output=events", b"echo begun; exec sleep 60")
    connection = socket.socket(socket.AF_UNIX)
    with connection:
        connection.connect(started["output_socket"])
        with connection.makefile() as lines:
            next(line for line in lines if "begun" in line)
            server.send_signal(signal.SIGTERM)
            assert [json.loads(line)["event"] for line in lines] == ["error", "done"]
    assert server.wait(60) == 0


def test_keys_are_made_and_taken_back_while_it_serves(serve: Serve, path: Path) -> None:
    server = serve("--language", "toy", "--listen", "127.0.0.1:0", wait_for=b"make a key")
    url = re.search(r"http://127.0.0.1:\d+", server.said.decode())
    assert url

    def key(*args: str) -> str:
        command = [sys.executable, "-m", "mayfly.cli.main", "key", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def ask(token: str) -> int:
        request = urllib.request.Request(f"{url[0]}/languages", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    token = key("create", "site", "--rate", "60/min", "--concurrency", "4", "--memory", "1G", "--readers", "9").strip()
    assert ask(token) == 200
    assert ask(token[:-1]) == 401
    listed = json.loads(key("list", "--json"))
    assert [[item[name] for name in ("name", "rate", "concurrency", "memory", "readers")] for item in listed] == [
        ["site", 60, 4, 1 << 30, 9]
    ]
    assert "hash" not in listed[0]
    assert "60 runs/min, 4 at a time, 1024 MiB" in key("list")
    key("revoke", "site")
    assert ask(token) == 401
    assert key("list") == ""


def test_a_killed_server_leaves_a_socket_that_the_next_one_replaces(serve: Serve, path: Path) -> None:
    first = serve()
    _, started = call(path, "POST", "/start?language=toy", b"echo $$; exec sleep 60")
    connection, line = first_line(started["output_socket"])
    connection.close()
    first.kill()
    first.wait(60)
    assert path.exists()
    assert Path(started["output_socket"]).exists()
    assert gone(int(line)), "its machine outlived it"
    serve()
    assert call(path, "GET", "/healthz")[0] == 200
    assert not Path(started["output_socket"]).exists()


def test_a_live_server_is_left_alone(serve: Serve, path: Path) -> None:
    serve()
    second = serve()
    assert second.wait(60) == 1
    assert call(path, "GET", "/healthz")[0] == 200


def test_an_unknown_language_is_said_at_once(serve: Serve, path: Path) -> None:
    assert serve("--language", "cobol").wait(60) == 1
    assert not path.exists()
