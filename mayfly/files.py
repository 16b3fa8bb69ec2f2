"""Files and folders that are there whole or not at all, locks on them, and what they hash to.

hashlib, tempfile and shutil load large libraries, so the functions that want them import them: most
runs call none of these.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mayfly.errors import ConfigError, HostError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
PART, ASIDE = ".part", ".aside"
"""What .NAME ends in beside NAME: its next content while that is made, and its last one where the
two cannot change places at once.
"""


@contextlib.contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync and rename it over `path`, on failure
    remove it.

    The parent folder is made if need be. A reader sees the old file or the new one, never a part.
    """
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    sync(path.parent)


def stamp(path: Path | str) -> list[int]:
    """What is another once a file is: its inode, size and times. Raises OSError."""
    status = os.stat(path)  # noqa: PTH116 (for each run: half of what a Path costs)
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def file_digest(path: Path) -> str:
    """`sha256:` and the hexadecimal digest of the file's content."""
    import hashlib

    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries (a rename in it), last through a crash."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it."""
    import shutil

    shutil.rmtree(folder)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an error of the file system, while `path` is written, into one that says what to do.

    Raises:
        HostError: the disk is full or fails, or may not be written to.
    """
    try:
        yield
    except BlockingIOError:  # a lock that somebody holds
        raise
    except OSError as error:
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                hint = "free some room there: `imagegen prune` empties the cache of what no image needs, `imagegen rm` removes an image"
            case errno.EROFS | errno.EACCES | errno.EPERM | errno.ENOTDIR | errno.ENOENT:
                hint = "images go to $XDG_DATA_HOME, downloads to $XDG_CACHE_HOME: set them to folders that you may write to"
            case errno.EIO:
                hint = "the disk or its file system fails: see the kernel's log"
            case _:
                hint = ""
        raise HostError(f"{error.filename or path}: {error.strerror or error}", hint=hint) from error


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
def passing(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`, which is removed on leaving, with its lock."""
    try:
        with locked(folder, wait=False):
            part = _beside(folder, PART)
            part.mkdir(mode=0o700)
            try:
                yield part
            finally:
                clear(folder)
    finally:
        with contextlib.suppress(OSError):
            (folder.parent / f".{folder.name}.lock").unlink()


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """As `replacing`, for a folder of the user's, which is empty or not there.

    Raises:
        ConfigError: it holds something.
    """
    target = folder.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder", hint="give another one")
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
    import ctypes  # only here: `mayfly run` starts sooner without

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):  # 9p and the like cannot: two steps, with a moment between them
        raise HostError(f"cannot put {new} in the place of {old}: {os.strerror(number)}")
    old.rename(_beside(old, ASIDE))
    new.rename(old)


def remove_folder(folder: Path) -> None:
    """Remove a folder, in one step for those who look for it, with its lock."""
    with locked(folder):
        clear(folder)
        folder.rename(_beside(folder, ASIDE))
        clear(folder)
    with contextlib.suppress(OSError):
        (folder.parent / f".{folder.name}.lock").unlink()
