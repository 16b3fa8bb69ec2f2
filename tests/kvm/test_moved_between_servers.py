"""A run moves between two `mayfly serve`, and back, by `mayfly move` over TCP and with keys. The
machine is a real one: a tiny guest plays the agent.
"""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest

from mayfly.images.store import Images
from mayfly.protocol import frames as p
from tests.kit import tiny
from tests.kit.api_fakes import MARKER, install_toys
from tests.kit.scale import patience
from tests.kit.served_hosts import Following, ServedHost, serving
from tests.kvm.test_moved_run import CYCLE, playing

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]


def test_a_run_moves_to_another_server_and_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    hello = p.Hello(p.PROTOCOL_VERSION, "toy", Images().arch, 1, MARKER)
    kernel = tiny.build(tmp_path, playing(tmp_path, hello))

    async def scenario(here: ServedHost, there: ServedHost) -> None:
        async with (
            here.client() as client,
            client.start(b"go!!", language="py", interactive=True) as run,
            Following.begin(run) as following,
        ):
            await following.lines(3 * CYCLE)
            for source, destination in ((here, there), (there, here), (here, there)):
                await asyncio.to_thread(source.move, run.id, destination)
                await following.lines(3 * CYCLE)
            await run.send(b"quit")
            result = await run.result()
        assert result.status == "ok", result
        numbers = [int(line) for line in following.out.split()]
        assert numbers == [index % CYCLE for index in range(len(numbers))]

    flags = ["--cold", "--kernel", str(kernel), "--channel", "serial", "--time-factor", "1", "--interactive-wall-s", "600"]
    with ExitStack() as opened:
        servers = [opened.enter_context(serving(*flags)) for _ in range(2)]
        asyncio.run(asyncio.wait_for(scenario(*servers), patience(90)))
