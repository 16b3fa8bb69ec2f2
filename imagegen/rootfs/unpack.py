"""Write an image's tree into a folder of the host, for a look inside. Every path is resolved
beneath the folder, and no link followed.
"""

import contextlib
import errno
import gzip
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard

from mayfly.errors import HostError, ImageError
from mayfly.files import making
from mayfly.imagegen.rootfs.cpio import Entry, read_cpio
from mayfly.imagegen.rootfs.spools import ZSTD_WINDOW
from mayfly.imagegen.rootfs.tree import MAX_PATH, show, split
from mayfly.images.manifest import load

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SAME_FILE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
PERMISSIONS = 0o777


def unpack(image: Path, folder: Path) -> int:
    """Unpack the image in the folder `image` into `folder`, which is empty or not there; the number
    of entries.

    Owners and setuid bits are left out: what is unpacked is the caller's.

    Raises:
        ImageError: the image is broken, or has a path that leads elsewhere.
        HostError: the folder cannot be written to, or holds something.
    """
    manifest = load(image)
    count = 0
    try:
        with making(folder) as part, _reader(image / "initramfs", manifest.compression) as read, _Writer(part) as writer:
            size = 0
            for entry in read_cpio(read):
                count, size = count + 1, size + (entry.size if stat.S_ISREG(entry.mode) else 0)
                if count > manifest.entries or size > manifest.unpacked_size:
                    raise ImageError(f"{image} has more in it than its manifest says", hint="do not use it")
                writer.write(entry)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise HostError(f"{image} cannot be unpacked into {folder}: {error}", hint="is there room, and is the image whole?") from error
    return count


@contextlib.contextmanager
def _reader(path: Path, compression: str) -> Iterator[Callable[[int], bytes]]:
    with path.open("rb") as file:
        match compression:
            case "zstd":
                yield zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).stream_reader(file).read
            case "gzip":
                yield gzip.GzipFile(fileobj=file).read
            case "lz4":
                try:
                    process = subprocess.Popen(["lz4", "-dc"], stdin=file, stdout=subprocess.PIPE)
                except OSError as error:
                    raise HostError(f"lz4 cannot be started: {error.strerror}", hint="apt-get install lz4") from error
                with process:
                    assert process.stdout is not None  # noqa: S101 (it is a pipe)
                    yield process.stdout.read
            case _:
                yield file.read


class _Writer:
    """Makes entries beneath a folder. Folders get their modes at the end: some may not be written
    to.
    """

    def __init__(self, folder: Path) -> None:
        self._root = os.open(folder, _FOLDER)
        self._first_names: dict[int, bytes] = {}
        self._modes: list[tuple[bytes, int]] = []

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for path, mode in reversed(self._modes):
                    with self._parent(path) as (parent, name):
                        os.chmod(name, mode, dir_fd=parent)
        finally:
            os.close(self._root)

    @contextlib.contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """A descriptor of the folder that `path` is in, and its name there."""
        if not (parts := split(path)):
            raise ImageError(f"the image's {show(path)} names nothing", hint="do not use it")
        *folders, name = parts
        parent = os.dup(self._root)
        try:
            for part in folders:
                inner = os.open(part, _FOLDER, dir_fd=parent)
                os.close(parent)
                parent = inner
            yield parent, name
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise ImageError(f"the image's {show(path)} leads through something that is not a folder", hint="do not use it") from error
            raise
        finally:
            os.close(parent)

    def write(self, entry: Entry) -> None:
        """Make one entry. Devices are passed over; our own archives have none."""
        mode = entry.mode & PERMISSIONS
        with self._parent(entry.path) as (parent, name):
            if stat.S_ISDIR(entry.mode):
                os.mkdir(name, 0o700, dir_fd=parent)
                self._modes.append((entry.path, mode))
            elif stat.S_ISLNK(entry.mode):
                if entry.size > MAX_PATH:
                    raise ImageError(f"the image's link {show(entry.path)} has a target of {entry.size} bytes", hint="do not use it")
                os.symlink(b"".join(entry.chunks), name, dir_fd=parent)
            elif stat.S_ISFIFO(entry.mode):
                os.mkfifo(name, mode, dir_fd=parent)
            elif stat.S_ISREG(entry.mode):
                self._write_file(entry, mode, parent, name)

    def _write_file(self, entry: Entry, mode: int, parent: int, name: bytes) -> None:
        first = self._first_names.get(entry.ino) if entry.links > 1 else None
        if first is None:
            self._first_names[entry.ino] = entry.path
            fd = os.open(name, _NEW_FILE, mode, dir_fd=parent)
        else:
            with self._parent(first) as (other, other_name):
                os.link(other_name, name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
            if not entry.size:
                return
            fd = os.open(name, _SAME_FILE, dir_fd=parent)
        with os.fdopen(fd, "wb") as file:
            for chunk in entry.chunks:
                file.write(chunk)
            os.fchmod(fd, mode)
