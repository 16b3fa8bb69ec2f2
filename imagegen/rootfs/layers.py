"""Merge an image's layers into one tree. Layers are unpacked into unnamed temporary files; no
member ever becomes a file of the host's.

OCI image-spec, layer.md: whiteouts (`.wh.NAME`), opaque whiteouts (`.wh..wh..opq`), hard links
within the merged tree.
"""

import contextlib
import dataclasses
import functools
import os
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, BinaryIO, Self, cast

import zstandard

from mayfly.errors import LayerError
from mayfly.files import storing
from mayfly.imagegen.digests import hasher_for, spell
from mayfly.imagegen.rootfs.tar import BLOCK, Kind, Member, is_tar, read_members
from mayfly.imagegen.rootfs.tree import Content, Extent, Inode, Node, Tree, show, split
from mayfly.units import MIB

CHUNK = 1 << 20
PACKED_CHUNK = 64 << 10
LAYERS_AT_ONCE = 4
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
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."

_TYPE_BITS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.DEVICE: stat.S_IFCHR,
}


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
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (owned by this object, closed in __exit__)
        with self._lock:
            self._files.append(file)
            spool = len(self._files) - 1
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


def merge(layers: list[Layer], spools: Spools, limits: Limits, progress: Callable[[int], None] = lambda _: None) -> Tree:
    """Unpack the layers, some at a time, and merge them, lowest first. `progress` is called with
    the index of each layer when it is done.

    Raises:
        LayerError: a layer is damaged, unsafe or over a limit.
    """
    tree = Tree(limits.entries)
    pool = ThreadPoolExecutor(LAYERS_AT_ONCE)
    try:
        unpacked = [pool.submit(spools.add, layer, limits) for layer in layers]
        for number, (layer, spool) in enumerate(zip(layers, unpacked, strict=True), start=1):
            _add(tree, number, layer, spools, spool.result(), limits)
            progress(number - 1)
    except BaseException:
        spools.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return tree


def add_layer(tree: Tree, number: int, layer: Layer, spools: Spools, limits: Limits) -> None:
    """Unpack one layer and merge it into `tree` as number `number` (1, 2, …).

    Raises:
        LayerError: it is damaged, unsafe or over a limit.
    """
    _add(tree, number, layer, spools, spools.add(layer, limits), limits)


def _add(tree: Tree, number: int, layer: Layer, spools: Spools, spool: int, limits: Limits) -> None:
    try:
        read_at = functools.partial(spools.read_at, spool)
        holes = apply_layer(tree, number, read_at, spools.size(spool), spool, limits.entries)
        spools.count_holes(holes, limits)
    except LayerError as error:
        raise LayerError(f"layer {layer.digest}: {error.message}", hint=error.hint) from error


def apply_layer(tree: Tree, number: int, read_at: Callable[[int, int], bytes], total: int, spool: int, max_members: int) -> int:
    """Apply the tar of `total` bytes that `read_at` reads to `tree`, as layer `number` (1, 2, …);
    its contents are in `spool`. Gives the bytes of its sparse files that are not in the tar.

    Raises:
        LayerError: the tar is damaged or unsafe, or has more than `max_members` members.
    """
    holes = 0
    for member in read_members(read_at, total, max_members):
        _apply(tree, number, member, spool)
        if member.pieces is not None:
            holes += member.size - sum(size for _, size in member.pieces)
    return holes


def _apply(tree: Tree, number: int, member: Member, spool: int) -> None:
    parts = split(member.name)
    base = parts[-1] if parts else b""
    if base.startswith(_WHITEOUT):
        _white_out(tree, number, parts)
        return
    if any(part.startswith(_AUFS) for part in parts):
        return  # AUFS' own records (.wh..wh.plnk/…), left in old layers
    if member.kind is Kind.HARD_LINK:
        _hard_link(tree, number, member)
        return
    content: Content = b""
    if member.kind is Kind.FILE:
        content = Extent(spool, member.offset, member.size, member.pieces)
    elif member.kind is Kind.SYMLINK:
        if not member.link:
            raise LayerError(f"symbolic link {show(member.name)} has no target")
        content = member.link
    inode = Inode(mode=_TYPE_BITS[member.kind] | member.mode, uid=member.uid, gid=member.gid, content=content)
    tree.put(member.name, inode, layer=number)


def _white_out(tree: Tree, number: int, parts: list[bytes]) -> None:
    """Hide what lower layers have. What this layer wrote itself stays, in whichever order its
    members come (layer.md, Whiteouts).
    """
    name = parts[-1]
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in (b"", b".", b".."):
        raise LayerError(f"whiteout {show(b'/'.join(parts))} names nothing that can be removed")
    parent = tree.directory(parts[:-1])
    if parent is None:
        return
    if name == _OPAQUE:
        tree.strip_lower(parent, number)
        return
    if name.startswith(_AUFS):
        return
    node = parent.children.get(hidden)
    if node is None:
        return
    tree.strip_lower(node, number)
    if node.layer != number and not node.children:
        del parent.children[hidden]


def _hard_link(tree: Tree, number: int, member: Member) -> None:
    target = tree.find(member.link)
    if target is None:
        raise LayerError(f"hard link {show(member.name)} is to {show(member.link)}, which is not there (yet)")
    if target.is_dir:
        raise LayerError(f"hard link {show(member.name)} is to {show(member.link)}, which is a directory")
    placed: Node = tree.put(member.name, target.inode, layer=number)
    placed.layer = number


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
            return _gunzip(chunks)
        case "zstd":
            return _unzstd(chunks)
        case _:
            return chunks


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
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


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
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
