"""The folder of built images: each is replaced as a whole, so that nobody ever sees half of one."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mayfly.errors import ImageError
from mayfly.files import sync_dir
from mayfly.paths import data_dir

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_PART = ".part"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the image folder's lock, so that two builds of one image go one after the other. The lock's file stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder.parent / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; on success it takes its place at once, on failure it is removed.

    Call it with the lock held: left-overs of killed builds are removed first.
    """
    for old in folder.parent.glob(f".{folder.name}.*{_PART}"):
        shutil.rmtree(old)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_PART, dir=folder.parent))
    try:
        yield part
        part.chmod(0o755)
        sync_dir(part)
        _swap(part, folder)
        sync_dir(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _swap(new: Path, old: Path) -> None:
    """Put `new` where `old` is, and the other way round, in one step where the file system can (renameat2(2), RENAME_EXCHANGE)."""
    if not old.exists():
        new.rename(old)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):  # 9p and the like cannot: two steps, with a moment between them
        raise ImageError(f"cannot put {new} in the place of {old}: {os.strerror(number)}")
    aside = new.with_name(f"{new.name.removesuffix(_PART)}.old{_PART}")
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)


def image_folders() -> list[Path]:
    """The folders of all images, sorted by language and architecture."""
    root = data_dir() / "images"
    return sorted(path.parent for path in root.glob("*/[!.]*/manifest.json"))


def remove(folder: Path) -> None:
    """Remove an image, in one step for those who look for it."""
    with locked(folder):
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_PART, dir=folder.parent))
        folder.rename(part / "image")
        shutil.rmtree(part)
    with contextlib.suppress(OSError):
        (folder.parent / f".{folder.name}.lock").unlink()
        folder.parent.rmdir()
