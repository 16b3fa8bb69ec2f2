"""`mayfly serve` as a process: how it begins, how it ends, what it leaves. Machines are ordinary
processes.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.kit.api_fakes import ROOT, gone, install_toys

Serve = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        yield Path(name) / "x" / "api.sock"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Path) -> Iterator[Serve]:
    """Start servers; they are waited for until they listen or end, and ended with the test."""
    install_toys(monkeypatch, tmp_path)
    started = []

    def start(*args: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tests.kit.fake_mayfly", "-", "serve", "--socket", str(path), "--time-factor", "1", *args]
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        assert process.stderr
        for line in process.stderr:
            if b"listening" in line or b"  " in line:
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
    server = serve("--language", "toy")
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
