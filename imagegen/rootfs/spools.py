"""Unpack layers into unnamed temporary files, within limits, and read contents back from them.
Nothing that is packed becomes a file of the host's.
"""

import contextlib
import dataclasses
import os
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, BinaryIO, Self, cast

import zstandard

from mayfly.errors import LayerError
from mayfly.files import storing
from mayfly.imagegen.digests import hasher_for, spell
from mayfly.imagegen.rootfs.tar import BLOCK, is_tar
from mayfly.imagegen.rootfs.tree import Content, Extent
from mayfly.units import MIB

CHUNK = 1 << 20
PACKED_CHUNK = 64 << 10
MAX_GZIP_MEMBERS = 250_000
"""Stargz layers have one for each file. Each costs a copy of what is left of its PACKED_CHUNK."""
GZIP_WINDOW = 31
"""zlib's wbits for a gzip header and a 32 KiB window."""
ZSTD_WINDOW = 128 * MIB
RATIO_GRACE = 64 * MIB
"""A layer that unpacks to less than this is not a bomb, whatever its ratio."""
_USTAR = slice(257, 262)
"""Where a tar's header has its magic."""
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a skippable frame (RFC 8878, 3.1.2)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How large an image may be: its names (and a layer's members), the bytes of its layers
    unpacked, and unpacked to packed bytes.
    """

    entries: int = 250_000
    unpacked: int = 8 << 30
    ratio: int = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer to merge: where its blob is, and what it and its tar must hash to. How it is
    compressed its first bytes say, for media types are often wrong.
    """

    path: Path
    digest: str
    diff_id: str


class Spools:
    """The unpacked tars, in unnamed files in `folder`. Gives the bytes of an Extent. A context
    manager that owns the files.

    `add` may run in several threads at once; `stop` makes them end soon.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[BinaryIO] = []
        self._lock = threading.Lock()
        self._stopped = False
        self._unpacked = 0
        self._shared: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in reversed(self._files):
            with contextlib.suppress(OSError):  # what could not be written when the disk was full
                file.close()

    def add(self, layer: Layer, limits: Limits) -> int:
        """Unpack a layer's blob into a new spool, checking both digests; return the spool's number.

        Raises:
            LayerError: a digest is wrong, the stream is damaged, or a limit is passed.
            HostError: the disk is full.
        """
        with storing(self._folder):
            return self._add(layer, limits)

    def _add(self, layer: Layer, limits: Limits) -> int:
        spool, file = self._open()
        packed, unpacked = hasher_for(layer.digest), hasher_for(layer.diff_id)
        packed_size = unpacked_size = 0
        try:
            with layer.path.open("rb") as blob, ThreadPoolExecutor(1) as hashing:
                hashed: Future[None] | None = None

                def source() -> Iterator[bytes]:
                    nonlocal packed_size
                    while chunk := blob.read(PACKED_CHUNK):
                        packed.update(chunk)
                        packed_size += len(chunk)
                        yield chunk

                head = blob.read(BLOCK)
                blob.seek(0)
                for chunk in _decompress(source(), _compression(layer, head)):
                    unpacked_size += len(chunk)
                    _check_size(layer, limits, packed_size, unpacked_size, self._count(len(chunk)))
                    if hashed is not None:
                        hashed.result()
                    hashed = hashing.submit(unpacked.update, chunk)  # while it is written, and the next one is unpacked
                    file.write(chunk)
            file.flush()
        except (zlib.error, zstandard.ZstdError, EOFError) as error:
            raise LayerError(f"layer {layer.digest} is damaged ({error}); read {packed_size} bytes, {spell(packed)}") from error
        for what, wanted, hasher in (("blob", layer.digest, packed), ("tar", layer.diff_id, unpacked)):
            if wanted != spell(hasher):
                raise LayerError(
                    f"layer {layer.digest}: its {what} hashes to {spell(hasher)}, not to {wanted}", hint="do not use the image"
                )
        return spool

    def _open(self) -> tuple[int, BinaryIO]:
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (owned by this object, closed in __exit__)
        with self._lock:
            self._files.append(file)
            return len(self._files) - 1, file

    def append(self, pieces: Iterable[bytes], limits: Limits) -> Extent:
        """Write the pieces, one behind the other, into the spool that all share who do so.

        Raises:
            LayerError: the limit on unpacked bytes is passed.
            HostError: the disk is full.
        """
        with storing(self._folder):
            if self._shared is None:
                self._shared, _ = self._open()
            file = self._files[self._shared]
            start = file.seek(0, os.SEEK_END)
            for piece in pieces:
                if self._count(len(piece)) > limits.unpacked:
                    hint = "if that is right for this image, raise --max-unpacked"
                    raise LayerError(f"layers and packages unpack to more than {limits.unpacked} bytes", hint=hint)
                file.write(piece)
            file.flush()
            return Extent(self._shared, start, file.tell() - start)

    def count_holes(self, size: int, limits: Limits) -> None:
        """Count bytes that sparse files have beyond those of their tar.

        Raises:
            LayerError: the limit is passed.
        """
        if size and self._count(size) > limits.unpacked:
            raise LayerError(
                f"the layers unpack to more than {limits.unpacked} bytes, with sparse files",
                hint="if that is right for this image, raise --max-unpacked",
            )

    def _count(self, size: int) -> int:
        """Count bytes that were unpacked; all so far."""
        with self._lock:
            if self._stopped:
                raise LayerError("unpacking was stopped")
            self._unpacked += size
            return self._unpacked

    def stop(self) -> None:
        """Let every `add` that is under way end with an error."""
        self._stopped = True

    def size(self, spool: int) -> int:
        """Bytes in a spool."""
        return os.fstat(self._files[spool].fileno()).st_size

    def read_at(self, spool: int, offset: int, size: int) -> bytes:
        """Bytes of a spool; fewer where it ends."""
        return os.pread(self._files[spool].fileno(), size, offset)

    def chunks(self, content: Content) -> Iterator[bytes]:
        """The contents, in pieces of at most CHUNK bytes."""
        if isinstance(content, bytes):
            yield content
            return
        at, offset = 0, content.offset
        pieces = ((0, content.size),) if content.pieces is None else content.pieces
        for start, size in (*pieces, (content.size, 0)):
            for hole in range(at, start, CHUNK):
                yield bytes(min(CHUNK, start - hole))
            yield from self._stored(content.spool, offset, offset + size)
            at, offset = start + size, offset + size

    def _stored(self, spool: int, offset: int, end: int) -> Iterator[bytes]:
        while offset < end:
            data = self.read_at(spool, offset, min(CHUNK, end - offset))
            if not data:
                raise LayerError(f"a spool ends at byte {offset}, contents were to reach {end}")
            yield data
            offset += len(data)

    def read(self, content: Content) -> bytes:
        """The contents as a whole; for small files only."""
        return b"".join(self.chunks(content))


def _compression(layer: Layer, head: bytes) -> str:
    """How a blob that begins with `head` is compressed: `gzip`, `zstd` or `none`."""
    if head[_USTAR].startswith(b"ustar"):
        return "none"
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50):
        return "zstd"
    if is_tar(head):
        return "none"
    raise LayerError(
        f"layer {layer.digest} is neither a tar nor one packed by gzip or zstd", hint="pack the image's layers by one of these"
    )


def _decompress(chunks: Iterator[bytes], compression: str) -> Iterator[bytes]:
    """Pieces of at most CHUNK bytes, so that a bomb is noticed before it has grown. Raises EOFError
    where the stream ends early.
    """
    match compression:
        case "gzip":
            return gunzip(chunks)
        case "zstd":
            return unzstd(chunks)
        case _:
            return chunks


def gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack gzip, all members of it. Raises EOFError where it ends early, zlib.error."""
    inflater = zlib.decompressobj(GZIP_WINDOW)
    members = 1
    for chunk in chunks:
        data = chunk
        while data:
            if inflater.eof:  # a further member: pigz and estargz write many
                inflater = zlib.decompressobj(GZIP_WINDOW)
                members += 1
                if members > MAX_GZIP_MEMBERS:
                    raise EOFError(f"more than {MAX_GZIP_MEMBERS} gzip members")
            yield inflater.decompress(data, CHUNK)
            data = inflater.unconsumed_tail or inflater.unused_data
    while not inflater.eof:
        rest = inflater.decompress(b"", CHUNK)
        if not rest:
            raise EOFError("the gzip stream ends early")
        yield rest


def unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack zstd, all frames of it. Raises ZstdError."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    reader = decompressor.stream_reader(cast("IO[bytes]", _Readable(chunks)), read_across_frames=True)
    while data := reader.read(CHUNK):
        yield data


class _Readable:
    """What zstandard's reader wants, over pieces. It cannot tell a cut stream from a whole one: the
    digests do.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            self._left = next(self._chunks, b"")
        data, self._left = (self._left, b"") if size < 0 else (self._left[:size], self._left[size:])
        return data


def _check_size(layer: Layer, limits: Limits, packed: int, unpacked: int, total: int) -> None:
    if total > limits.unpacked:
        raise LayerError(
            f"the layers unpack to more than {limits.unpacked} bytes at layer {layer.digest}",
            hint="if that is right for this image, raise --max-unpacked",
        )
    if unpacked > RATIO_GRACE and unpacked > limits.ratio * packed:
        raise LayerError(
            f"layer {layer.digest} unpacks to more than {limits.ratio} times its size",
            hint="if that is right for this image, raise --max-ratio",
        )
