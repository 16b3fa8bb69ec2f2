"""A live machine is moved: every byte of memory, count and line is there, and none twice.

Tiny guests on the real /dev/kvm; source and destination are two vmm processes of one host.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mayfly.guests.job import Wanted
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import Guest
from mayfly.images.store import Images
from mayfly.snapshots import moving
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.process.zygote import Zygote
from mayfly.vmm.snapshot import MEMORY, PAGES
from tests.kit import tiny
from tests.kit.api_fakes import install_toys
from tests.kit.moving_kit import EACH_LINE, Lines, cold, counting, move

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

MEMORY_BYTES = 24 * MIB
PAGES_WRITTEN = 1024


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wanted:
    """A machine that counts through 4 MiB."""
    install_toys(monkeypatch, tmp_path / "data")
    kernel = tiny.build(tmp_path, counting(PAGES_WRITTEN))
    machine = MachineConfig(kernel=str(kernel), memory=MEMORY_BYTES, channel=Channel.SERIAL)
    return Wanted(image=Images().find("toy"), machine=machine, timeout_s=60.0)


def play(script: Callable[[Spawner], Awaitable[None]]) -> None:
    """Run a script with a spawner that ends with it."""

    async def whole() -> None:
        spawner = Spawner(Zygote.start)
        try:
            await script(spawner)
        finally:
            await spawner.close()

    asyncio.run(whole())


async def saved(guest: Guest, folder: Path) -> tuple[bytes, bytes]:
    """All memory of a machine that stands still."""
    folder.mkdir()
    await guest.process.snapshot(folder, go_on=True, timeout_s=60)
    return (folder / MEMORY).read_bytes(), (folder / PAGES).read_bytes()


def test_a_guest_is_moved_while_it_runs(wanted: Wanted, tmp_path: Path) -> None:
    rounds: list[moving.Round] = []

    async def script(spawner: Spawner) -> None:
        lines = Lines()
        guest = await cold(spawner, wanted)
        await lines.more(guest.process, 100)
        moved = await move(spawner, guest, wanted, progress=rounds.append)
        assert await saved(guest, tmp_path / "there") == await saved(moved, tmp_path / "here")
        await lines.rest(guest, spawner)
        await moved.process.resume()
        await lines.more(moved.process, 100)
        assert lines.seen == list(range(EACH_LINE, EACH_LINE * (len(lines.seen) + 1), EACH_LINE))

    play(script)
    print(rounds)
