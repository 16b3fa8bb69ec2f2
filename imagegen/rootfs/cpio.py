"""Write a tree as a newc cpio archive, the same bytes for the same tree, its end marked so that a
guest sees it is whole; and read one.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import dataclasses
import hashlib
import stat
from collections import Counter
from collections.abc import Callable, Iterator

from mayfly.errors import ImageError
from mayfly.imagegen.rootfs.tree import Content, Inode, Tree, show

END_MARKER = b"mayfly/end"
TRAILER = b"TRAILER!!!"
MAX_PATH = 4095
"""Linux skips entries with longer names or link targets without a word (init/initramfs.c)."""
MAX_FILE = 0xFFFF_FFFF
PAGE = 4096
MAGIC = b"070701"
HEADER_SIZE = 110
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What was written. `rounded_size` is what the contents take in a file system of 4 KiB
    pages.
    """

    entries: int
    unpacked_size: int
    rounded_size: int
    end_marker: str


def header(*, ino: int, mode: int, uid: int, gid: int, nlink: int, size: int, name: bytes) -> bytes:
    """An entry's header with its name, padded to four bytes. Times and device numbers are always
    0.
    """
    fields = (ino, mode, uid, gid, nlink, 0, size, 0, 0, 0, 0, len(name) + 1, 0)
    raw = MAGIC + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return raw + b"\0" * (-len(raw) % 4)


def write_cpio(tree: Tree, chunks: Callable[[Content], Iterator[bytes]], write: Callable[[bytes], object]) -> Summary:
    """Write `tree` through `write`; `chunks` gives the bytes of contents.

    Directories come before what is in them, names sorted. Hard links share an inode number, the
    last name carries the contents. Devices are left out: the guest has its own.

    Raises:
        ImageError: a path, a link target or a file is longer than the format or Linux takes.
    """
    names = Counter(id(node.inode) for node in tree.nodes())
    left = names.copy()
    numbers: dict[int, int] = {}
    hasher = hashlib.sha256()
    unpacked = rounded = number = 0

    def put(data: bytes) -> None:
        hasher.update(data)
        write(data)

    for path, node in tree.walk():
        inode = node.inode
        if stat.S_ISCHR(inode.mode):
            continue
        number += 1
        _check(path, inode)
        if not stat.S_ISREG(inode.mode):
            size = inode.size if stat.S_ISLNK(inode.mode) else 0
            links = 2 if stat.S_ISDIR(inode.mode) else 1
            put(header(ino=number, mode=inode.mode, uid=inode.uid, gid=inode.gid, nlink=links, size=size, name=path))
            if size:
                _put_contents(inode.content, chunks, put)
            continue
        key = id(inode)
        left[key] -= 1
        size = 0 if left[key] else inode.size
        ino = numbers.setdefault(key, number)
        put(header(ino=ino, mode=inode.mode, uid=inode.uid, gid=inode.gid, nlink=names[key], size=size, name=path))
        if size:
            _put_contents(inode.content, chunks, put)
            unpacked += size
            rounded += -(-size // PAGE) * PAGE
    marker = hasher.hexdigest()
    last = header(ino=number + 1, mode=stat.S_IFREG | 0o444, uid=0, gid=0, nlink=1, size=len(marker), name=END_MARKER)
    write(last + marker.encode())
    write(header(ino=0, mode=0, uid=0, gid=0, nlink=1, size=0, name=TRAILER))
    return Summary(entries=number + 1, unpacked_size=unpacked + len(marker), rounded_size=rounded + PAGE, end_marker=marker)


def _put_contents(content: Content, chunks: Callable[[Content], Iterator[bytes]], put: Callable[[bytes], object]) -> None:
    size = 0
    for chunk in chunks(content):
        put(chunk)
        size += len(chunk)
    if padding := -size % 4:
        put(b"\0" * padding)


def _check(path: bytes, inode: Inode) -> None:
    if path == TRAILER:
        raise ImageError(f"the image has a file {show(path)}, which means the end of an initramfs to Linux", hint="prune it")
    if len(path) > MAX_PATH or (stat.S_ISLNK(inode.mode) and inode.size > MAX_PATH):
        raise ImageError(f"{show(path)} or its link target is longer than the {MAX_PATH} bytes that Linux takes")
    if inode.size > MAX_FILE:
        raise ImageError(f"{show(path)} has {inode.size} bytes; the newc format takes {MAX_FILE}", hint="prune it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of an archive that is read. Hard links share `ino`, one has the contents. `chunks`
    lasts until the next entry.
    """

    path: bytes
    mode: int
    ino: int
    links: int
    size: int
    chunks: Iterator[bytes]


def read_cpio(read: Callable[[int], bytes]) -> Iterator[Entry]:
    """The entries of the archive that `read` (at most so many bytes, fewer only at the end) gives.

    Raises:
        ImageError: it is not a newc archive, or is cut short.
    """

    def exactly(size: int) -> bytes:
        data = read(size)
        if len(data) != size:
            raise ImageError("the archive ends in the middle of an entry", hint="build the image again")
        return data

    def contents(size: int) -> Iterator[bytes]:
        for at in range(0, size, CHUNK):
            yield exactly(min(CHUNK, size - at))
        exactly(-size % 4)

    while True:
        head = exactly(HEADER_SIZE)
        try:
            ino, mode, _, _, links, _, size, _, _, _, _, name_size, _ = (int(head[at : at + 8], 16) for at in range(6, HEADER_SIZE, 8))
        except ValueError as error:
            raise ImageError("the archive has a malformed header", hint="build the image again") from error
        if head[:6] != MAGIC or not 1 <= name_size <= MAX_PATH + 1:
            raise ImageError("the archive has a malformed header", hint="build the image again")
        path = exactly(name_size + -(HEADER_SIZE + name_size) % 4)[: name_size - 1]
        if path == TRAILER:
            return
        chunks = contents(size)
        yield Entry(path=path, mode=mode, ino=ino, links=links, size=size, chunks=chunks)
        for _ in chunks:
            pass
