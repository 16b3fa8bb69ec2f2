"""The image that a run's machine began with, where the destination has none of that digest: the
source sends it, and the destination keeps it for that run alone. No other run starts from it.
"""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from mayfly.errors import ImageError, MoveError
from mayfly.images.manifest import Manifest
from mayfly.images.store import InstalledImage
from mayfly.runs.moves.link import ImageSent, Link
from mayfly.runs.moves.messages import MAX_PAGES, Image, Pages

MANIFEST = "manifest.json"
EACH_TOLD = 16 << 20


async def send(link: Link, image: InstalledImage, tell: Callable[[ImageSent], None]) -> None:
    """Send an image; `tell` is told of each EACH_TOLD bytes, and of the end.

    Raises:
        ImageError: it is gone, or cannot be read.
        ServerLostError: the connection is lost.
    """
    try:
        manifest = (image.folder / MANIFEST).read_bytes()
        with image.initramfs.open("rb") as file:
            await link.send(Image(manifest=manifest))
            sent = told = 0
            while piece := await asyncio.to_thread(file.read, MAX_PAGES):
                await link.send(Pages(data=piece))
                sent += len(piece)
                if sent >= told + EACH_TOLD or sent == image.manifest.initramfs_size:
                    tell(ImageSent(bytes=sent, size=image.manifest.initramfs_size))
                    told = sent
    except OSError as error:
        raise ImageError(f"{image.folder}: {error.strerror}", hint="build the image again, and start the run again") from error
    await link.send(Pages(data=b""))


async def receive(link: Link, folder: Path, digest: str, most: int) -> InstalledImage:
    """Take the image whose initramfs has that digest, and `most` bytes at most, into an empty
    folder.

    Raises:
        MoveError: what comes is another one, or none.
        ImageError: its manifest is none, or there is no room for it.
        ServerLostError: the connection is lost.
    """
    message = await link.receive()
    if not isinstance(message, Image):
        raise MoveError(f"the source sent {type(message).__name__} in place of an image")
    manifest = Manifest.from_json(message.manifest.decode(errors="replace"), "the image that the source sent")
    found, size = hashlib.sha256(), 0
    try:
        (folder / MANIFEST).write_bytes(message.manifest)
        with (folder / "initramfs").open("wb") as file:
            while data := await _piece(link):
                size += len(data)
                if size > most:
                    raise MoveError(f"the source sent an image of more than {most} bytes, which its machine has")
                found.update(data)
                await asyncio.to_thread(file.write, data)
    except OSError as error:
        raise ImageError(f"{folder}: {error.strerror}", hint="make room on the disk, or look at its permissions") from error
    came = f"sha256:{found.hexdigest()}"
    if not came == digest == manifest.initramfs_digest or size != manifest.initramfs_size:
        raise MoveError(f"the source sent the image {came} of {size} bytes, not {digest}", hint="build the image again there")
    return InstalledImage(folder, manifest)


async def _piece(link: Link) -> bytes:
    message = await link.receive()
    if not isinstance(message, Pages):
        raise MoveError(f"the source sent {type(message).__name__} in the middle of an image")
    return message.data
