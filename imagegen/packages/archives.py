"""Read packages' archives: members with the place of their contents, in the spool that all share.
Whoever made a package is as hostile as a layer's maker: names are checked, links refused, sizes
bounded before anything is unpacked.
"""

import dataclasses
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from mayfly.errors import LayerError
from mayfly.imagegen.rootfs.spools import CHUNK, RATIO_GRACE, Limits, Spools
from mayfly.imagegen.rootfs.tree import Extent, show

ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OverflowError, ValueError)
"""What zipfile raises for a zip that is not one, is damaged, encrypted or packed in a rare way."""
_EXECUTABLE = 0o111


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """A file of a package: its name below the package's folder, which is safe, whether it may be
    executed, and its contents.
    """

    name: str
    executable: bool
    content: Extent | bytes


def safe_name(name: str) -> str:
    """A member's name, as given. Raises LayerError: it is not one of a file below the folder that
    it is unpacked to.
    """
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name or "\\" in name:
        raise LayerError(f"its member {show(name.encode(errors='surrogatepass'))} leads elsewhere", hint="do not use the package")
    return name


def read_zip(path: Path, spools: Spools, limits: Limits) -> Iterator[Packed]:
    """The files of a zip.

    Raises:
        LayerError: it is damaged or unsafe, or over a limit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > limits.entries:
                raise LayerError(f"it has more than {limits.entries} members", hint="if that is right, raise --max-entries")
            size = sum(member.file_size for member in members)
            if size > RATIO_GRACE and size > limits.ratio * path.stat().st_size:
                raise LayerError(f"it unpacks to more than {limits.ratio} times its size", hint="if that is right, raise --max-ratio")
            for member in members:
                safe_name(member.filename)
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise LayerError(f"its member {member.filename!r} is a link", hint="do not use the package")
            where = spools.append((piece for member in members for piece in _pieces(archive, member)), limits)
    except ARCHIVE_ERRORS as error:
        raise LayerError(f"it is damaged: {error}") from error
    at = where.offset
    for member in members:
        executable = bool(member.external_attr >> 16 & _EXECUTABLE)
        yield Packed(name=member.filename, executable=executable, content=Extent(where.spool, at, member.file_size))
        at += member.file_size


def _pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    left = member.file_size
    with archive.open(member) as file:
        while data := file.read(CHUNK):
            left -= len(data)
            yield data
    if left:
        raise EOFError(f"{member.filename} ends {left} bytes early")
