"""A server of functions as its user has it, and requests to it through every gateway: HTTP, frames
and files, with crashes and time-outs between them. Each function answers with its payload, or does
what bytes say: `!exit N`, `!hang`, `!raise TEXT`, `!sleep SECONDS`.
"""

import asyncio
import base64
import collections
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mayfly.cli.asking import ask
from mayfly.client import AsyncClient
from mayfly.errors import FunctionCrashedError, FunctionTimeoutError
from tests.kit.api_fakes import ROOT
from tests.kit.scale import patience

HTTP, FRAMES, FILE = 150, 200, 150
"""Requests over each gateway that are answered with `ok`."""


class Host:
    """A user's folder and the server that they have.

    Args:
        folder: for files.
        socket: the server's.
        program: the command `mayfly`.
        options: of each command that may start guests.

    Attributes:
        sent: how many requests ended how, by the status that a log has for it.
        answered: payloads by the request's id, where that is known.
    """

    def __init__(self, folder: Path, socket: Path, program: Sequence[str], options: Sequence[str | Path]) -> None:
        self.folder = folder
        self.socket = socket
        self.statistics = folder / "server.stat"
        self.log = folder / "functions.log"
        self.server: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.sent: collections.Counter[str] = collections.Counter()
        self.answered: dict[str, Any] = {}
        self._program = program
        self._options = options
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(self, *arguments: str | Path, status: int = 0) -> str:
        """What a command prints."""
        command = [*self._program, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout

    def function(self, *arguments: str | Path, status: int = 0) -> str:
        """What `mayfly function` prints, of a command that knows the server."""
        return self.run("function", *arguments, "--socket", self.socket, *self._options, status=status)

    def serve(self, *options: str) -> None:
        """Start the server, after the one before, and wait until it listens."""
        self.close()
        files = ["--function-statistics", str(self.statistics), "--function-log", str(self.log)]
        arguments = ["serve", "--socket", self.socket, *self._options, "--function-listen", "127.0.0.1:0", *files, *options]
        command = [*self._program, *map(str, arguments)]
        self.server = subprocess.Popen(command, cwd=ROOT, env=self._environment, stderr=subprocess.PIPE, start_new_session=True)
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

    def check_records(self) -> None:
        """After the server's end: statistics and log count what was sent, and nothing else."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        assert collections.Counter(line["status"] for line in lines) == self.sent
        assert len({line["request"] for line in lines}) == len(lines)
        assert self.answered.keys() <= {line["request"] for line in lines}
        for line in lines:
            times = [line[name] for name in ("queued_s", "started_s", "sent_s", "answered_s")]
            assert times == sorted(times), line
        found = json.loads(self.statistics.read_text())
        completed = self.sent["ok"] + self.sent["exception"]
        assert found["number of requests completed"] == completed
        assert found["number of requests dropped"] == self.sent.total() - completed
        assert found["number of responses that failed to be read"] == self.sent.total() - completed
        assert sum(map(len, found["request/response timestamps"].values())) == 2 * completed
        assert found["number of vms created"] == len(found["vm memory sizes"]) == len(found["boot timestamps"])
        assert found["number of evictions"] == len(found["eviction timestamps"])


async def over_http(host: Host, names: Sequence[str], *, crashing: Sequence[str], hanging: Sequence[str]) -> None:
    """HTTP requests to one function after the other, many at a time, and amid them a crash of some
    functions and a time-out of some.
    """
    async with AsyncClient(host.socket) as client:
        gate = asyncio.Semaphore(40)

        async def one(name: str, payload: Any) -> None:
            async with gate:
                found = await client.invoke(name, payload)
                assert (found.status, found.json()) == ("ok", payload)
                host.answered[found.request_id] = payload
            host.sent["ok"] += 1

        async def bad(name: str, deed: bytes, kind: type[FunctionCrashedError | FunctionTimeoutError]) -> None:
            async with gate:
                with pytest.raises(kind):
                    await client.invoke(name, deed)
            host.sent[kind.code] += 1

        work = []
        for name in names:
            each = [one(name, {"of": name, "number": number}) for number in range(HTTP // len(names))]
            each[20:20] = [bad(name, b"!hang", FunctionTimeoutError)] if name in hanging else []
            each[10:10] = [bad(name, b"!exit 3", FunctionCrashedError)] if name in crashing else []
            work += each
        await asyncio.gather(*work)
        for name in names:
            found = await client.invoke(name, b"!raise it")
            assert (found.status, found.json()["message"]) == ("exception", "it")
            host.sent["exception"] += 1


def requests_file(path: Path, names: Sequence[str], count: int) -> list[Any]:
    """A file of requests to all functions; the payloads, by line."""
    payloads = [{"line": number, "of": names[number * len(names) // count]} for number in range(count)]
    lines = [
        {"time": number, "user_id": number % 7, "function": payload["of"], "payload": payload} for number, payload in enumerate(payloads)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return payloads


def over_frames(host: Host, names: Sequence[str]) -> None:
    """Requests by SnapFaaS's client."""
    path = host.folder / "frames.json"
    payloads = requests_file(path, names, FRAMES)
    client = [sys.executable, "-m", "tests.kit.snapfaas_client", f"127.0.0.1:{host.port}", str(path)]
    done = subprocess.run(client, cwd=ROOT, capture_output=True, text=True, check=True)
    answers = [json.loads(json.loads(line)) for line in done.stdout.splitlines()]
    assert sorted(answers, key=lambda answer: int(answer["line"])) == payloads
    host.sent["ok"] += FRAMES


def from_file(host: Host, names: Sequence[str]) -> None:
    """Requests of a file, and two lines that are none."""
    path = host.folder / "requests.jsonl"
    payloads = requests_file(path, names, FILE)
    path.write_text(path.read_text() + "{\n" + '{"function": "one"}\n')
    answers = [json.loads(line) for line in host.function("invoke", "--file", path, status=1).splitlines()]
    answers.sort(key=lambda answer: int(answer["line"]))
    assert {answer["status"] for answer in answers} == {"ok"}
    assert [_content(answer["payload"]) for answer in answers] == payloads
    assert len({answer["id"] for answer in answers}) == FILE
    host.answered |= {answer["id"]: payload for answer, payload in zip(answers, payloads, strict=True)}
    host.sent["ok"] += FILE


def _content(payload: Any) -> Any:
    """The JSON of an answer whose function does not say that it is some."""
    return json.loads(base64.b64decode(payload["base64"])) if "base64" in payload else payload


async def while_it_stops(host: Host, name: str) -> None:
    """What is under way at SIGTERM is answered, and the server ends then, leaving nothing."""
    assert host.server is not None
    async with AsyncClient(host.socket, patience_s=0) as client:
        slow = asyncio.create_task(client.invoke(name, b"!sleep 0.5"))
        while not (await asyncio.to_thread(ask, host.socket, "GET", f"/functions/{name}"))["figures"]["guests"].get("in_use"):
            pass
        host.server.send_signal(signal.SIGTERM)
        assert (await slow).payload == b"!sleep 0.5"
    host.sent["ok"] += 1
    assert await asyncio.to_thread(host.server.wait, patience(60)) == 0
    assert list(host.socket.parent.rglob("*")) == []
