"""Write a tree as a newc cpio archive: the same bytes for the same tree, with an end marker that shows the guest that all of it arrived.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import dataclasses
import hashlib
import stat
from collections.abc import Callable, Iterator

from imagegen.tree import Content, Inode, Tree, show
from mayfly.errors import ImageError

END_MARKER = b"mayfly/end"
TRAILER = b"TRAILER!!!"
MAX_PATH = 4095
"""Linux skips entries with longer names or link targets without a word (init/initramfs.c)."""
MAX_FILE = 0xFFFF_FFFF
PAGE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What was written. `rounded_size` is what the contents take in a file system of 4 KiB pages."""

    entries: int
    unpacked_size: int
    rounded_size: int
    end_marker: str


def header(*, ino: int, mode: int, uid: int, gid: int, nlink: int, size: int, name: bytes) -> bytes:
    """An entry's header with its name, padded to four bytes. Times and device numbers are always 0."""
    fields = (ino, mode, uid, gid, nlink, 0, size, 0, 0, 0, 0, len(name) + 1, 0)
    raw = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    return raw + b"\0" * (-len(raw) % 4)


def write_cpio(tree: Tree, chunks: Callable[[Content], Iterator[bytes]], write: Callable[[bytes], object]) -> Summary:
    """Write `tree` through `write`; `chunks` gives the bytes of contents.

    Directories come before what is in them, names sorted. Hard links share an inode number, the last name carries the contents. Devices are
    left out: the guest has its own.

    Raises:
        ImageError: a path, a link target or a file is longer than the format or Linux takes.
    """
    entries = [(path, node.inode) for path, node in tree.walk() if not stat.S_ISCHR(node.inode.mode)]
    names: dict[int, int] = {}
    for _, inode in entries:
        names[id(inode)] = names.get(id(inode), 0) + 1
    left = dict(names)
    numbers: dict[int, int] = {}
    hasher = hashlib.sha256()
    unpacked = rounded = 0

    def put(data: bytes) -> None:
        hasher.update(data)
        write(data)

    for number, (path, inode) in enumerate(entries, start=1):
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
    last = header(ino=len(entries) + 1, mode=stat.S_IFREG | 0o444, uid=0, gid=0, nlink=1, size=len(marker), name=END_MARKER)
    write(last + marker.encode())
    write(header(ino=0, mode=0, uid=0, gid=0, nlink=1, size=0, name=TRAILER))
    return Summary(entries=len(entries) + 1, unpacked_size=unpacked + len(marker), rounded_size=rounded + PAGE, end_marker=marker)


def _put_contents(content: Content, chunks: Callable[[Content], Iterator[bytes]], put: Callable[[bytes], object]) -> None:
    size = 0
    for chunk in chunks(content):
        put(chunk)
        size += len(chunk)
    if padding := -size % 4:
        put(b"\0" * padding)


def _check(path: bytes, inode: Inode) -> None:
    if len(path) > MAX_PATH or (stat.S_ISLNK(inode.mode) and inode.size > MAX_PATH):
        raise ImageError(f"{show(path)} or its link target is longer than the {MAX_PATH} bytes that Linux takes")
    if inode.size > MAX_FILE:
        raise ImageError(f"{show(path)} has {inode.size} bytes; the newc format takes {MAX_FILE}", hint="prune it")
