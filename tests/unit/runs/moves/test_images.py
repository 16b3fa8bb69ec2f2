"""A destination that lacks the image of a run's machine gets it from the source, for that run
alone.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly import paths
from mayfly.errors import ImageError, MayflyError
from mayfly.files import file_digest
from mayfly.images.store import InstalledImage
from mayfly.runs.carried import LANGUAGE
from mayfly.runs.moves import images
from mayfly.runs.moves.desk import follow
from mayfly.runs.moves.link import ImageSent
from mayfly.runs.stdin import StdinWriter
from mayfly.schema import replace
from tests.kit.api_fakes import install_toys
from tests.kit.road import Cut, Wire
from tests.kit.toy_moves import counted, with_content
from tests.unit.runs.moves.test_handing_over import Stage, play, read_all, until

__all__ = ["play"]  # a fixture

LARGE = 1 << 20


def left() -> list[Path]:
    """Folders of images that were sent."""
    return [path for path in paths.snapshots_dir().glob("*passing-*") if path.is_dir()]


@pytest.mark.parametrize("cut", [None, *(Cut(at, arrives) for at in (1, 2, 3, 5, 6) for arrives in (False, True))])
def test_an_image_that_is_lacking_is_sent_and_kept_for_the_run_alone(
    play: Callable[..., Any], cut: Cut | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "EACH_TOLD", 2 * LARGE)
    _, digest = with_content(bytes(2 * LARGE) + b"the end")

    async def scenario(stage: Stage) -> None:
        stage.machines_there.lacks = digest
        run = stage.start(-1, interactive=True)  # it must not be over before its image has come
        await until(run, 100)
        told: list[Any] = []
        going = stage.moves_here.begin(run, stage.road.connect, to="there", tell=told.append)
        await asyncio.gather(follow(going), return_exceptions=True)
        moved = run.elsewhere is not None
        assert moved == (cut is None)
        if moved:
            assert told[0] == ImageSent(bytes=2 * LARGE, size=2 * LARGE + 7)
            assert told[1] == ImageSent(bytes=2 * LARGE + 7, size=2 * LARGE + 7)
            (folder,) = left()
            assert file_digest(folder / "initramfs") == digest
        with StdinWriter(run.stdin) as writer:
            await writer.write(b"quit")
        await run.done.wait()
        assert run.to_json()["status"] == "ok"
        counted(read_all(run)[0])
        if moved:
            await stage.there.settled(stage.there.get(run.id))
        await stage.road.close()
        assert left() == []
        assert stage.there.admission.used == 0

    play(scenario, (cut,))


def test_an_image_is_sent_where_the_runtime_could_not_read_the_programs_checkpoint(play: Callable[..., Any]) -> None:
    image, digest = with_content(b"content")
    other = image._replace(manifest=replace(image.manifest, generator="imagegen 0.0"))

    async def scenario(stage: Stage) -> None:
        find = stage.there.images.find
        stage.there.images.find = lambda name: other if name == LANGUAGE else find(name)  # type: ignore[method-assign]
        stage.machines_there.lacks = digest
        run = stage.start(-1, interactive=True)
        run.checkpoint = "main.checkpoint"
        await until(run, 100)
        await stage.move(run)
        with StdinWriter(run.stdin) as writer:
            await writer.write(b"quit")
        await run.done.wait()
        assert (run.to_json()["status"], stage.road.log.count("Image")) == ("ok", 1)

    play(scenario)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda image: image.initramfs.write_bytes(b"other!!"), "sent the image sha256:"),
        (lambda image: image.initramfs.write_bytes(b"content and more"), "more than 7 bytes"),
        (lambda image: image.initramfs.write_bytes(b""), "of 0 bytes"),
        (lambda image: image.initramfs.unlink(), "No such file"),
        (lambda image: (image.folder / images.MANIFEST).write_text("{}"), "the image that the source sent"),
        (lambda image: (image.folder / images.MANIFEST).write_text(image.manifest.to_json()), "sent the image sha256:"),
    ],
)
def test_another_image_than_was_asked_for_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Callable[[InstalledImage], object], why: str
) -> None:
    install_toys(monkeypatch, tmp_path)
    image, digest = with_content(b"content")
    change(image)

    async def scenario() -> None:
        source, destination = Wire(None, [], []).ends
        folder = tmp_path / "taken"
        folder.mkdir()
        async with asyncio.TaskGroup() as group:
            group.create_task(images.send(source, image, lambda _: None))
            group.create_task(images.receive(destination, folder, digest, 7))

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(asyncio.wait_for(scenario(), 20))
    (error,) = caught.value.exceptions
    assert isinstance(error, MayflyError) and why in str(error)


def test_a_disk_that_is_full_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    image, digest = with_content(b"content")

    async def scenario() -> None:
        source, destination = Wire(None, [], []).ends
        folder = tmp_path / "taken"
        folder.mkdir()
        (folder / "initramfs").symlink_to("/dev/full")
        sending = asyncio.create_task(images.send(source, image, lambda _: None))
        with pytest.raises(ImageError, match="No space left on device") as caught:
            await images.receive(destination, folder, digest, 7)
        assert "make room" in caught.value.hint
        await sending

    asyncio.run(asyncio.wait_for(scenario(), 20))
