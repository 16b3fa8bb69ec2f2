"""Saving a guest that goes on: what is written is whole, or was never there."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mayfly.errors import HostError
from mayfly.guests.meanwhile import whole
from mayfly.snapshots import live
from mayfly.units import MIB
from mayfly.vmm.snapshot import FILES
from tests.kit.scale import patience


async def nothing(*_: Any, **__: Any) -> None:
    """Stands for what the machine does."""


def test_whoever_is_cancelled_while_the_last_is_written_closes_nothing_before_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None
) -> None:
    """Another file would have the descriptors by then."""
    writing, may_write = threading.Event(), threading.Event()
    real = live.SnapshotFolder.finish

    def finish(self: live.SnapshotFolder) -> int:
        writing.set()
        assert may_write.wait(patience(10))
        return real(self)

    monkeypatch.setattr(live.SnapshotFolder, "finish", finish)
    monkeypatch.setattr(live, "send_pages", nothing)
    monkeypatch.setattr(live, "send_round", nothing)
    machine = SimpleNamespace(network=None, memory=64 * MIB, restore=())
    guest: Any = SimpleNamespace(wanted=SimpleNamespace(machine=machine, timeout_s=patience(10)), process=SimpleNamespace(resume=nothing))

    async def scenario() -> None:
        saving = asyncio.create_task(live.save(guest, tmp_path))
        await asyncio.to_thread(writing.wait)
        saving.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not saving.done()
        may_write.set()
        await asyncio.wait([saving])
        assert saving.cancelled()
        assert {path.name for path in tmp_path.iterdir()} == set(FILES)

    asyncio.run(asyncio.wait_for(scenario(), patience(20)))


def test_a_machine_does_not_stand_still_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None) -> None:
    calls = []

    async def hang(*_: Any, **__: Any) -> None:
        calls.append("stands still")
        await asyncio.Event().wait()

    async def resume() -> None:
        calls.append("goes on")

    monkeypatch.setattr(live, "send_pages", nothing)
    monkeypatch.setattr(live, "send_round", hang)
    machine = SimpleNamespace(network=None, memory=MIB, restore=())
    guest: Any = SimpleNamespace(wanted=SimpleNamespace(machine=machine, timeout_s=0.01), process=SimpleNamespace(resume=resume))
    with pytest.raises(HostError, match="stood still"):
        asyncio.run(asyncio.wait_for(live.save(guest, tmp_path), patience(10)))
    assert calls == ["stands still", "goes on"]


def test_what_is_done_whole_gives_what_it_gives() -> None:
    assert asyncio.run(whole(lambda: 3)) == 3
