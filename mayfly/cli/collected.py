"""`mayfly run --collect`: the files that a program left, in a folder of the user's.

Their names are checked (runs/files.py), but a folder may hold links from before. So each component
is opened by itself and never through a link, and a file is put in the place of what is there, not
written into it: nothing outside of the folder changes.
"""

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

from mayfly.errors import HostError
from mayfly.runs.files import Left

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def untar(data: bytes) -> dict[str, Left]:
    """The files in a server's tar; it has nothing but files.

    Raises:
        HostError: it is not one.
    """
    import tarfile  # only here: files of this process's own runs need none

    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return {entry.name: Left(entry.mode, file.read()) for entry in archive if (file := archive.extractfile(entry))}
    except tarfile.TarError as error:
        raise HostError(f"the server's files are no tar: {error}") from error


def write_files(files: Mapping[str, Left], folder: Path) -> None:
    """Write files beneath `folder`, which is made if need be; executable ones are executable.

    Raises:
        HostError: one cannot be written; those before it are there.
    """
    with contextlib.ExitStack() as opened:
        name = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            root = os.open(folder, _FOLDER)  # a link that the user names is meant
            opened.callback(os.close, root)
            for name, left in files.items():
                _write(root, name, left)
        except OSError as error:
            hint = "a folder, a link or a file of this name may be in its way: use another folder, and see that it has room"
            raise HostError(f"{folder / name}: cannot be written: {error.strerror or error}", hint=hint) from error


def _write(root: int, name: str, left: Left) -> None:
    *parents, last = name.split("/")
    with contextlib.ExitStack() as opened:
        at = root
        for parent in parents:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, dir_fd=at)
            at = os.open(parent, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            opened.callback(os.close, at)
        part = f".{os.urandom(8).hex()}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(part, flags, 0o755 if left.mode & 0o100 else 0o644, dir_fd=at)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(left.data)
            os.rename(part, last, src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            os.unlink(part, dir_fd=at)
            raise
