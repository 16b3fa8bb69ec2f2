"""Two hosts, one of each architecture: a program of WebAssembly moves from one to the other and
back, and both are hosts of one fleet. At least one of them is an emulated host.
"""

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path

import msgspec
import pytest

from mayfly.client.asynchronous import AsyncClient
from mayfly.fleet import catalog
from mayfly.fleet.catalog import ImageChange, make_offer
from mayfly.fleet.engine import Engine
from mayfly.fleet.local import Member
from mayfly.fleet.operate import look
from mayfly.fleet.server import LocalServer
from mayfly.imagegen.oci.artifact import export
from tests.kit import toy
from tests.kit.registry_kit import FakeRegistry
from tests.kit.scale import FULL
from tests.kit.served_hosts import Following, ServedHost, serving
from tests.kit.wasm import execute
from tests.kit.wasm_programs import SOURCES, compiled
from tests.system.test_two_hosts import WITH_KVM
from tests.system.test_wasm import need

pytestmark = [
    pytest.mark.skipif(not FULL, reason="only in the whole counts (make test-all)"),
    pytest.mark.slow,
    pytest.mark.timeout(7200),
]

ARCHES = (toy.MACHINE, "aarch64" if toy.MACHINE == "x86_64" else "x86_64")
"""This machine's first."""
COMMON = ("--time-factor", "20", "--ack-wait", "60")  # the hosts share this machine with each other
RUST = 'fn main() { println!("{}", std::env::consts::ARCH); }'


class Stage:
    """A fleet's server and gateway on this machine, and hosts, which end when `opened` does."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self._opened = opened
        self.server = opened.enter_context(LocalServer(folder / "nats", more="ping_interval: 30"))
        self._socket = folder / "api.sock"
        command = [sys.executable, "-m", "mayfly.cli.main", "gateway", self.server.url, "--name", "gateway"]
        gateway = Member([*command, "--socket", str(self._socket), *COMMON], folder / "gateway.log")
        opened.callback(gateway.stop)
        gateway.wait_until_ready()
        self.hosts = {arch: self.host(arch, arch) for arch in ARCHES}

    def host(self, name: str, arch: str) -> ServedHost:
        """Begin a host of the fleet."""
        join = ("--join", f"nats://$LOOPBACK:{self.server.port}", "--name", name)
        return self._opened.enter_context(serving("--cold", *COMMON, *join, host=[*WITH_KVM, "--arch", arch], python="python"))

    def client(self) -> AsyncClient:
        """A client of the gateway."""
        return AsyncClient(self._socket)

    async def until_hosts(self) -> None:
        """Wait until the fleet knows a host of each architecture."""
        async with self.engine() as engine:
            while {host.about.arch for host in await look(engine) if host.languages} != set(ARCHES):
                await asyncio.sleep(1)

    def engine(self) -> AbstractAsyncContextManager[Engine]:
        """An operator's connection."""
        return Engine.connect((self.server.url,), "operator")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    for language in ("rust", "wasm"):
        for arch in ARCHES:
            need(language, arch)
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name, ExitStack() as opened:
        stage = Stage(Path(name), opened)
        assert all(host.told for host in stage.hosts.values())
        asyncio.run(stage.until_hosts())
        yield stage


def test_a_program_moves_to_another_architecture_and_back(stage: Stage) -> None:
    """With a reader, a writer who waits for each answer, and a file."""
    module = compiled(SOURCES / "lines.rs")
    said: list[str] = []

    async def scenario() -> None:
        async def talk() -> None:
            while not moved.is_set():
                said.append(f"line {len(said)} of some words\n")
                await run.send(said[-1])
                await following.until(lambda: following.out.count(b"\n") == len(said))
            await run.send(b"", end=True)

        moved = asyncio.Event()
        async with (
            stage.hosts[ARCHES[0]].client() as client,
            client.start(module.read_bytes(), language="wasm", interactive=True) as run,
            Following.begin(run) as following,
        ):
            talking = asyncio.create_task(talk())
            here, there = stage.hosts.values()
            for source, destination in ((here, there), (there, here)):
                await following.lines(1)
                print(await asyncio.to_thread(source.move, run.id, destination))
            await following.lines(1)
            moved.set()
            await talking
            result = await run.result()
        assert result.status == "ok", result
        assert following.out == execute(module, stdin="".join(said).encode()).stdout

    asyncio.run(scenario())


def test_a_program_that_computes_moves_to_another_architecture_and_back(stage: Stage) -> None:
    """It never waits for anything, and each bit of its floats is printed."""
    module, arguments = compiled(SOURCES / "nbody.rs"), ("12000000",)

    async def scenario() -> None:
        async with (
            stage.hosts[ARCHES[0]].client() as client,
            client.start(module.read_bytes(), language="wasm", args=arguments, interactive=True) as run,
            Following.begin(run) as following,
        ):
            here, there = stage.hosts.values()
            for source, destination in ((here, there), (there, here)):
                await following.lines(1)
                print(await asyncio.to_thread(source.move, run.id, destination))
            result = await run.result()
        assert result.status == "ok", result
        assert following.out == execute(module, *arguments).stdout

    asyncio.run(scenario())


def test_each_architecture_has_its_runs_through_one_address(stage: Stage) -> None:
    async def scenario() -> None:
        async with stage.client() as client:
            found = await asyncio.gather(*(client.run(RUST, language="rust", architecture=arch) for arch in ARCHES))
        assert [each.stdout for each in found] == [f"{arch}\n" for arch in ARCHES]

    asyncio.run(scenario())


def test_an_image_that_a_host_lacks_is_pulled_by_its_digest(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    digest = export(toy.build(), tmp_path / "layout")

    async def scenario(registry: FakeRegistry) -> None:
        made = await asyncio.to_thread(make_offer, f"{registry.address}/test@{digest}")
        loopback = stage.hosts[ARCHES[0]].told["loopback"]
        made = msgspec.structs.replace(made, reference=f"{loopback}:{registry.port}/test@{digest}", insecure=True)
        async with stage.engine() as engine, stage.client() as client:
            await catalog.change(engine, ImageChange(add=made))
            while not any(each.language == "toy" for each in await client.languages()):
                await asyncio.sleep(0.5)
            asked = len(registry.requests)
            found = await asyncio.gather(*(client.run(f"echo pulled {number}", language="toy") for number in range(2)))
        assert [each.stdout for each in found] == ["pulled 0\n", "pulled 1\n"]
        blobs = [path for path, _ in registry.requests[asked:] if "/blobs/" in path]
        assert blobs and len(blobs) == len(set(blobs)), registry.requests

    with FakeRegistry(tmp_path / "layout") as registry:
        asyncio.run(scenario(registry))


def test_a_run_whose_host_is_killed_is_done_by_another(stage: Stage) -> None:
    """What was typed is typed again. The host that does it comes only then: no more than two run at
    a time.
    """
    module = compiled(SOURCES / "lines.rs")
    said = b"one\ntwo\nthree\n"

    async def scenario() -> None:
        async with (
            stage.client() as client,
            client.start(module.read_bytes(), language="wasm", architecture=ARCHES[0], interactive=True) as run,
            Following.begin(run) as following,
        ):
            await run.send(said)
            await following.lines(3)
            await asyncio.to_thread(stage.hosts[ARCHES[0]].kill)
            stage.hosts[ARCHES[0]] = stage.host("another", ARCHES[0])
            await following.lines(3)
            await run.send(b"", end=True)
            result = await run.result()
        assert (result.status, result.stdout) == ("ok", execute(module, stdin=said).stdout.decode()), result
        assert following.attempts == [2]

    asyncio.run(scenario())
