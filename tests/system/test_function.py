"""A function in real guests: loaded, asked, saved, and going on in copies that differ."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from mayfly import paths
from mayfly.errors import FunctionCrashedError, FunctionTimeoutError
from mayfly.guests.function import FunctionRequest, ask, load
from mayfly.guests.job import Job
from mayfly.guests.outcome import Outcome
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest, StartKind, start
from mayfly.host.config import Config
from mayfly.host.plan import want_machine
from mayfly.images.store import Images
from mayfly.protocol import frames as p
from mayfly.schema import replace
from mayfly.vmm.process.zygote import Zygote
from tests.kit import toy
from tests.kit.agent_process import PATIENCE_S

pytestmark = [pytest.mark.system, pytest.mark.timeout(900), pytest.mark.usefixtures("toy_language")]

FUNCTION = p.Step("function", ("./shim",), output=1000, function=True)
PATIENT_S = max(120.0, 2 * PATIENCE_S)


async def asked(guest: Guest, payload: bytes, timeout_s: float = PATIENT_S) -> tuple[bytes, bytes]:
    """What the function answers, and what it prints over it."""
    log = Outcome(("function",), kept=1000)
    response = await ask(guest, FunctionRequest(id=len(payload), content_type="a/b", payload=payload), log, timeout_s)
    assert (response.kind, response.content_type, response.guest_us) == ("answer", "a/b", 1)
    return response.payload, log.tail


@pytest.mark.aarch64
def test_a_function_is_loaded_once_and_goes_on_in_copies(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-o", shim, Path(__file__).with_name("shim.c")], check=True)
    content = shim.read_bytes()
    loaded = p.Start((), (FUNCTION,), (p.FileEntry("shim", 0o755, len(content)),))
    image = Images().find("toy")
    wanted = want_machine(image, Config(kernel=paths.kernel_path(toy.MACHINE)))
    saved = tmp_path / "saved"
    saved.mkdir()

    async def whole() -> None:
        spawner = Spawner(Zygote.start)
        try:
            guest = await start(spawner, wanted.to_be_saved())
            await load(guest, Job(start=loaded, files=(content,), deadline_s=PATIENT_S, rate=1e5), Outcome(("function",)))
            assert await asked(guest, b"x") == (b"x", b"1\n")
            await guest.process.snapshot(saved, timeout_s=PATIENT_S)
            await guest.process.stop()
            again = replace(wanted.restored_from([saved]), loaded=loaded)
            copies = [await start(spawner, again) for _ in range(2)]
            assert {copy.kind for copy in copies} == {StartKind.RESTORED}
            who = [(await asked(copy, b"who"))[0].split() for copy in copies]
            assert len({drawn for drawn, _, _ in who}) == len({name for _, _, name in who}) == 2
            assert all(int(resumed) >= 1 for _, resumed, _ in who)
            large = bytes(range(256)) * (p.MAX_BODY // 256)
            assert await asked(copies[0], large) == (large, b"3\n")
            with pytest.raises(FunctionTimeoutError):
                await asked(copies[0], b"hang", 1.0)
            assert await asked(copies[1], b"") == (b"", b"3\n")
            with pytest.raises(FunctionCrashedError, match="exited with 3"):
                await asked(copies[1], b"exit")
        finally:
            await spawner.close()

    asyncio.run(asyncio.wait_for(whole(), 800))
