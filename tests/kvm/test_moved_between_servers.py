"""A run moves between two `mayfly serve`, and back, by `mayfly move` over TCP and with keys. The
machine is a real one: a tiny guest plays the agent.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mayfly.client.asynchronous import AsyncClient
from mayfly.client.results import StdoutEvent
from mayfly.images.store import Images
from mayfly.protocol import frames as p
from tests.kit import tiny
from tests.kit.api_fakes import MARKER, install_toys
from tests.kit.scale import patience
from tests.kvm.test_moved_run import CYCLE, playing

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A server that is told to move runs."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.port = process, port
        self.keys: dict[str, str] = self.line()

    def line(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server ended"
        return json.loads(line)

    def move(self, run_id: str, there: "Server") -> None:
        """Have `mayfly move` move the run."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([run_id, there.port, there.keys["moves"]]) + "\n")
        self.process.stdin.flush()
        status, *lines = self.line()
        assert (status, lines[-1]["event"]) == (0, "moved"), lines


@contextmanager
def serving(kernel: Path) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--kernel", str(kernel), "--channel", "serial", "--time-factor", "1", "--interactive-wall-s", "600"]
    command = [sys.executable, "-m", "tests.kit.served_host", str(port), *flags]
    environment = {**os.environ, "LOOPBACK": "127.0.0.1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Server(process, port)
        assert process.stdin is not None
        process.stdin.close()


def test_a_run_moves_to_another_server_and_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    hello = p.Hello(p.PROTOCOL_VERSION, "toy", Images().arch, 1, MARKER)
    kernel = tiny.build(tmp_path, playing(tmp_path, hello))
    out = bytearray()
    more = asyncio.Event()

    async def scenario(here: Server, there: Server) -> None:
        async with (
            AsyncClient(f"http://127.0.0.1:{here.port}", key=here.keys["client"]) as client,
            client.start(b"go!!", language="py", interactive=True) as run,
        ):

            async def read() -> None:
                async for event in run:
                    if isinstance(event, StdoutEvent):
                        out.extend(event.data)
                        more.set()

            async def some() -> None:
                wanted = len(out) + 3 * CYCLE
                while len(out) < wanted:
                    more.clear()
                    await more.wait()

            reading = asyncio.create_task(read())
            await some()
            for source, destination in ((here, there), (there, here), (here, there)):
                await asyncio.to_thread(source.move, run.id, destination)
                await some()
            await run.send(b"quit")
            await reading
            result = await run.state()
        assert result.status == "ok", result
        numbers = [int(line) for line in out.split()]
        assert numbers == [index % CYCLE for index in range(len(numbers))]

    with ExitStack() as opened:
        servers = [opened.enter_context(serving(kernel)) for _ in range(2)]
        asyncio.run(asyncio.wait_for(scenario(*servers), patience(90)))
