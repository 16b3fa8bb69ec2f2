"""The cache of blobs and prepared layers: who uses it, and what may go from it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mayfly.errors import ImageError
from mayfly.files import remove_tree, storing
from mayfly.images.manifest import load
from mayfly.images.store import image_folders
from mayfly.paths import cache_dir


@contextlib.contextmanager
def using_cache(*, alone: bool = False) -> Iterator[None]:
    """Say that the cache is in use: by a build, or `alone` by what removes from it.

    Raises:
        ImageError: something else uses it now, and it was to be alone.
        HostError: the disk is full, or the cache's folder may not be written to.
    """
    with storing(cache_dir()):
        cache_dir().mkdir(parents=True, exist_ok=True)
        fd = os.open(cache_dir() / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        yield
    except BlockingIOError as error:
        raise ImageError("a build is using the cache", hint="try again when it is over") from error
    finally:
        os.close(fd)


def prune_cache() -> list[tuple[Path, int]]:
    """Remove what no installed image was made of, and what killed builds left: paths and sizes in
    bytes. What was prepared is kept.

    Raises:
        ImageError: a build is using the cache.
    """
    used = set()
    for folder in image_folders():
        with contextlib.suppress(ImageError):  # a broken image needs nothing
            manifest = load(folder)
            source = manifest.source
            packages = [package.digest for package in manifest.packages]
            used |= {digest.partition(":")[2] for digest in (source.manifest_digest, source.config_digest, *source.layers, *packages)}
    removed = []
    with using_cache(alone=True), storing(cache_dir()):
        left = [
            *cache_dir().glob("blobs/sha*/*"),
            *cache_dir().glob("blobs/tags/*"),
            *cache_dir().glob("blobs/documents/*"),
            *cache_dir().glob("prepare.*/*"),
        ]
        for path in sorted(left):
            if path.name not in used:
                removed.append((path, path.stat().st_size))
                path.unlink()
        for folder in cache_dir().glob("prepare.*"):
            remove_tree(folder)
    return removed
