"""Functions of real guests: created, restored, evicted for each other, and ended alone."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly import paths
from mayfly.errors import FunctionCrashedError, FunctionFailedError, FunctionTimeoutError
from mayfly.functions.answer import Answer
from mayfly.functions.service import Functions
from mayfly.functions.spec import FunctionSpec
from mayfly.host.config import Config
from mayfly.images import manifest
from mayfly.runs.service import Service
from mayfly.snapshots import store as snapshots
from mayfly.units import MIB
from mayfly.vmm.process.zygote import Zygote
from tests.kit import toy
from tests.kit.scale import patience, time_factor

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

NAMES = ("one", "two", "three")


@pytest.fixture
def language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder with this host's kernel and the toy language, which loads functions; the file
    of one.
    """
    kernel = paths.data_dir() / "kernel"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    paths.data_dir().mkdir(parents=True)
    (paths.data_dir() / "kernel").symlink_to(kernel)
    shim = tmp_path / "shim"
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-o", shim, Path(__file__).with_name("shim.c")], check=True)
    steps = (manifest.LanguageStep(name="build", argv=("sh", "-n", "handler.toy")), manifest.LanguageStep(name="function", argv=("shim",)))
    loading = manifest.Function(files={}, steps=steps, source_file="handler.toy", entry="handle")
    toy.build(programs={"shim": shim.read_bytes()}, function=loading)
    code = tmp_path / "code.toy"
    code.write_text("true\n")
    yield code


@pytest.mark.aarch64
def test_three_functions_in_the_room_of_two(language: Path, no_leaks: None) -> None:
    config = Config(kernel=paths.kernel_path(toy.MACHINE), memory_budget=200 * MIB, time_factor=time_factor())

    def spec(name: str, **fields: float) -> FunctionSpec:
        return FunctionSpec(name=name, language="toy", code=str(language), queue_s=120, **fields)  # type: ignore[arg-type]

    async def scenario(functions: Functions) -> None:
        for name in NAMES:
            await functions.create(spec(name))
        language.write_text("if\n")
        with pytest.raises(FunctionFailedError) as caught:
            await functions.create(spec("bad"))
        assert "syntax error" in caught.value.output
        assert len(snapshots.children("toy")) == 3

        async def ask(name: str, payload: bytes = b"x") -> Answer:
            return await functions.invoke(name, payload, "text/plain")

        starts = [(await ask(name)).start for name in ("one", "one", "two", "one", "three", "one", "two")]
        assert starts == ["restored", "warm", "restored", "warm", "restored", "warm", "restored"]  # each time the one used longest ago goes
        assert [functions.figures(name).evicted for name in NAMES] == [0, 1, 1]
        first = (await ask("one", b"who")).payload.split()
        with pytest.raises(FunctionCrashedError, match="exited with 3"):
            await ask("one", b"exit")
        other = await ask("one", b"who")
        assert other.start == "restored"
        assert first[0] != other.payload.split()[0]
        assert first[2] != other.payload.split()[2]
        assert other.log == b"1\n"
        language.write_text("true # and quick\n")
        await functions.create(spec("two", timeout_s=1))
        with pytest.raises(FunctionTimeoutError):
            await ask("two", b"hang")
        several = await asyncio.gather(*(ask(name, f"{name} {number}".encode()) for number in range(5) for name in NAMES))
        assert [answer.payload.decode() for answer in several] == [f"{name} {number}" for number in range(5) for name in NAMES]
        assert {answer.content_type for answer in several} == {"text/plain"}

    async def whole() -> None:
        async with Service(config, Zygote.start) as service:
            functions = Functions(
                config, service.spawner, service.admission, service.supply, service.images, service.networks, service.observer
            )
            async with functions:
                await asyncio.wait_for(scenario(functions), patience(150))
            assert service.admission.used == 0

    asyncio.run(whole())
