"""Read packages' archives: members with the place of their contents, in the spool that all share.
Whoever made a package is as hostile as a layer's maker: names are checked, links refused, sizes
bounded before anything is unpacked.
"""

import dataclasses
import functools
import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from mayfly.errors import LayerError
from mayfly.imagegen.rootfs.spools import CHUNK, PACKED_CHUNK, RATIO_GRACE, Limits, Spools, gunzip, unzstd
from mayfly.imagegen.rootfs.tar import Kind, read_members
from mayfly.imagegen.rootfs.tree import Extent, show

ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OverflowError, ValueError)
"""What zipfile raises for a zip that is not one, is damaged, encrypted or packed in a rare way."""
XZ_MEMORY = 256 << 20
"""What unpacking may take; Debian's packages take 64 MiB at most."""
_AR = b"!<arch>\n"
_AR_MEMBER = struct.Struct("16s32x10s2s")
"""Name, (time, owner, group, mode,) size, magic."""
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
            _check_ratio(sum(member.file_size for member in members), path.stat().st_size, limits)
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


def read_tgz(path: Path, spools: Spools, limits: Limits) -> Iterator[Packed]:
    """The files of a tar that gzip packed, without the one folder that they are all in.

    Raises:
        LayerError: it is damaged or unsafe, or over a limit.
    """
    try:
        where = spools.append(_bounded(path, limits), limits)
    except (zlib.error, EOFError) as error:
        raise LayerError(f"it is damaged: {error}") from error
    read_at = functools.partial(_read_within, spools, where)
    for member in read_members(read_at, where.size, limits.entries):
        if member.kind is Kind.DIRECTORY:
            continue
        if member.kind is not Kind.FILE or member.pieces is not None:
            raise LayerError(f"its member {show(member.name)} is a {member.kind.value}, not a plain file", hint="do not use the package")
        name = safe_name(member.name.decode("utf-8", "surrogateescape").removeprefix("./")).partition("/")[2]
        if name:
            content = Extent(where.spool, where.offset + member.offset, member.size)
            yield Packed(name=safe_name(name), executable=bool(member.mode & _EXECUTABLE), content=content)


def unpack_deb(file: BinaryIO) -> Iterator[bytes]:
    """The tar of a Debian package's files (deb(5)), as pieces.

    Raises:
        LayerError: it is damaged, or packed in a way that is not known.
    """
    try:
        if file.read(len(_AR)) != _AR:
            raise EOFError("not an archive of ar")
        while True:
            name, size, magic = _AR_MEMBER.unpack(file.read(_AR_MEMBER.size))
            left = int(size)
            if magic != b"`\n" or left < 0:
                raise EOFError("not a member of ar")
            pieces = _of(file, left)
            match name.strip(b" /"):
                case b"data.tar.xz":
                    return (yield from unxz(pieces))
                case b"data.tar.zst":
                    return (yield from unzstd(pieces))
                case b"data.tar.gz":
                    return (yield from gunzip(pieces))
                case b"data.tar":
                    return (yield from pieces)
            file.seek(left + left % 2, io.SEEK_CUR)
    except (struct.error, ValueError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise LayerError(f"it is damaged: {error}") from error


def _of(file: BinaryIO, left: int) -> Iterator[bytes]:
    while left:
        data = file.read(min(left, PACKED_CHUNK))
        if not data:
            raise EOFError(f"it ends {left} bytes early")
        left -= len(data)
        yield data


def unxz(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack xz. Raises EOFError where it ends early, LZMAError."""
    inflater = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    for chunk in chunks:
        yield inflater.decompress(chunk, CHUNK)
        while not inflater.needs_input and not inflater.eof:
            yield inflater.decompress(b"", CHUNK)
        if inflater.eof:
            return
    raise EOFError("the xz stream ends early")


def _bounded(path: Path, limits: Limits) -> Iterator[bytes]:
    size = 0
    packed = path.stat().st_size
    with path.open("rb") as file:
        for piece in gunzip(iter(functools.partial(file.read, PACKED_CHUNK), b"")):
            size += len(piece)
            _check_ratio(size, packed, limits)
            yield piece


def _check_ratio(size: int, packed: int, limits: Limits) -> None:
    if size > RATIO_GRACE and size > limits.ratio * packed:
        raise LayerError(f"it unpacks to more than {limits.ratio} times its size", hint="if that is right, raise --max-ratio")


def _read_within(spools: Spools, where: Extent, at: int, size: int) -> bytes:
    return spools.read_at(where.spool, where.offset + at, min(size, where.size - at))


def _pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    left = member.file_size
    with archive.open(member) as file:
        while data := file.read(CHUNK):
            left -= len(data)
            yield data
    if left:
        raise EOFError(f"{member.filename} ends {left} bytes early")
