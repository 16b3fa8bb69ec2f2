"""Runs that name the snapshot from which they start."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.errors import SnapshotNotFoundError, UnprocessableError
from mayfly.guests.start import StartKind
from mayfly.host.snippet import Snippet
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.snapshots import store
from tests.kit.api_fakes import factory, install_toys, small_config
from tests.kit.named_snapshots import make_snapshot


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Service]:
    install_toys(monkeypatch, tmp_path)
    return lambda: Service(small_config(tmp_path), factory(), sockets=None)


def test_a_run_starts_from_the_snapshot_that_it_names(serving: Callable[[], Service]) -> None:
    async def scenario() -> None:
        async with serving() as service:
            await make_snapshot(service, "ours")
            kinds = []
            for name in ("", "ours"):
                run = service.start(Snippet(language="toy", source=b"true", snapshot=name))
                await run.done.wait()
                assert run.verdict().exit_status == 0, run.outcome.error
                kinds.append(run.start)
            assert kinds == [StartKind.COLD, StartKind.RESTORED]

    asyncio.run(scenario())


@pytest.mark.parametrize(("name", "language"), [("theirs", "toy"), ("ours", "py"), ("../ours", "toy"), ("@f.0123456789ab", "toy")])
def test_a_snapshot_that_is_not_there(serving: Callable[[], Service], name: str, language: str) -> None:
    async def scenario() -> None:
        async with serving() as service:
            await make_snapshot(service, "ours")
            with pytest.raises(SnapshotNotFoundError, match="no snapshot") as caught:
                service.start(Snippet(language=language, source=b"", snapshot=name))
            assert caught.value.hint == ("there are: ours, toy" if language == "toy" else "mayfly snapshot create")
            assert not list(service.runs)

    asyncio.run(scenario())


def test_a_snapshot_of_another_image_of_the_language(serving: Callable[[], Service]) -> None:
    """It is refused at once: a machine of this image could not go on from it."""

    async def scenario() -> None:
        async with serving() as service:
            made = await make_snapshot(service, "ours")
            older = replace(made.manifest, version="0.9", initramfs_digest="sha256:0")
            (made.folder / store.MANIFEST).write_text(older.to_json())
            with pytest.raises(SnapshotNotFoundError, match="no snapshot 'ours' of toy") as caught:
                service.start(Snippet(language="toy", source=b"true", snapshot="ours"))
            assert caught.value.hint == "there are: toy"

    asyncio.run(scenario())


def test_a_network_that_the_snapshot_lacks_is_refused(serving: Callable[[], Service], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving() as service:
            await make_snapshot(service, "ours")
            monkeypatch.setattr(service.networks, "lease", lambda: pytest.fail("it is refused before it has one"))
            with pytest.raises(UnprocessableError, match="ours has no network"):
                service.start(Snippet(language="toy", source=b"true", snapshot="ours", network=True))
            assert not list(service.runs)

    asyncio.run(scenario())


def test_a_snapshot_that_was_altered_is_refused(serving: Callable[[], Service]) -> None:
    async def scenario() -> None:
        async with serving() as service:
            made = await make_snapshot(service, "ours")
            (made.folder / "memory").write_bytes(b"x" * 8192)
            run = service.start(Snippet(language="toy", source=b"true", snapshot="ours"))
            await run.done.wait()
            assert run.outcome.error is not None
            assert run.outcome.error.code == "snapshot_failed"
            store.remove("ours")

    asyncio.run(scenario())
