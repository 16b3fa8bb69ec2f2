"""The folder of built images: each is replaced as a whole, so that nobody ever sees half of one."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mayfly.errors import ImageError
from mayfly.files import remove_tree, sync
from mayfly.images.manifest import load
from mayfly.paths import cache_dir, data_dir

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
PART, ASIDE = ".part", ".aside"
"""What .NAME ends in beside NAME: its next content while that is made, and its last one where the
two cannot change places at once.
"""


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the folder's lock, so that two who make the same go one after the other. The lock's file
    stays.

    Raises:
        BlockingIOError: somebody holds it, and this one is not to wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder.parent / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; on success it takes its place at once, on failure it is
    removed.

    Call it with the lock held: what a killed build has left is removed first.
    """
    clear(folder)
    part = _beside(folder, PART)
    part.mkdir(mode=0o700)
    try:
        yield part
        part.chmod(0o755)
        sync(part)
        _swap(part, folder)
        sync(folder.parent)
    finally:
        with contextlib.suppress(OSError):
            clear(folder)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """As `replacing`, for a folder of the user's, which is empty or not there.

    Raises:
        ImageError: it holds something.
    """
    target = folder.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ImageError(f"{folder} is not an empty folder", hint="give another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        yield part


def clear(folder: Path) -> None:
    """Remove what is beside `folder` of it. Call it with the lock held."""
    for path in (_beside(folder, PART), _beside(folder, ASIDE)):
        if path.exists():
            remove_tree(path)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}{suffix}")


def _swap(new: Path, old: Path) -> None:
    """Put `new` where `old` is, in one step where the file system can (renameat2(2),
    RENAME_EXCHANGE); what was there is beside then.
    """
    if not old.exists():
        new.rename(old)
        return
    import ctypes  # only here: `mayfly run`, which reads the store, starts sooner without

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):  # 9p and the like cannot: two steps, with a moment between them
        raise ImageError(f"cannot put {new} in the place of {old}: {os.strerror(number)}")
    old.rename(_beside(old, ASIDE))
    new.rename(old)


def image_folders() -> list[Path]:
    """The folders of all images, sorted by language and architecture."""
    root = data_dir() / "images"
    return sorted(path.parent for path in root.glob("*/[!.]*/manifest.json"))


@contextlib.contextmanager
def using_cache(*, alone: bool = False) -> Iterator[None]:
    """Say that the cache is in use: by a build, or `alone` by what removes from it.

    Raises:
        ImageError: something else uses it now, and it was to be alone.
    """
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
            source = load(folder).source
            used |= {digest.removeprefix("sha256:") for digest in (source.manifest_digest, source.config_digest, *source.layers)}
    removed = []
    with using_cache(alone=True):
        left = [*cache_dir().glob("blobs/sha256/*"), *cache_dir().glob("blobs/tags/*"), *cache_dir().glob("prepare.*/*")]
        for path in sorted(left):
            if path.name not in used:
                removed.append((path, path.stat().st_size))
                path.unlink()
        for folder in cache_dir().glob("prepare.*"):
            remove_tree(folder)
    return removed


def remove(folder: Path) -> None:
    """Remove an image, in one step for those who look for it."""
    with locked(folder):
        clear(folder)
        folder.rename(_beside(folder, ASIDE))
        clear(folder)
    with contextlib.suppress(OSError):
        (folder.parent / f".{folder.name}.lock").unlink()
        folder.parent.rmdir()
