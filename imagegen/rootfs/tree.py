"""The merged file system of an image, in memory: names, metadata and where contents lie. Knows
nothing of tars or of the host's files.

Every path is resolved within the tree: symbolic links are followed as a process would that has the
tree as its root, so `..` and absolute targets end at the root at worst.
"""

import dataclasses
import stat
from collections.abc import Iterator

from mayfly.errors import LayerError

MAX_SYMLINKS = 40
"""As Linux' MAXSYMLINKS."""
MAX_NAME = 255
MAX_PATH = 4095
"""As Linux' NAME_MAX, and PATH_MAX without its NUL."""
MAX_DEPTH = 256
BYTES_PER_NAME = 256
"""What paths and link targets may take together, for each name that a tree may have."""
STEPS_PER_NAME = 64
"""How many components of paths may be looked up, for each name that a tree may have."""


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """Contents that lie in spool number `spool`: `size` bytes at `offset`.

    Of a sparse file only those of `pieces`, (offset in the file, size), lie there, one behind the
    other; all others are 0.
    """

    spool: int
    offset: int
    size: int
    pieces: tuple[tuple[int, int], ...] | None = None


Content = bytes | Extent


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Inode:
    """What hard links share. `mode` has the type bits too. `content` is a file's contents or a
    symbolic link's target.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    content: Content = b""

    @property
    def size(self) -> int:
        """Bytes of contents."""
        return self.content.size if isinstance(self.content, Extent) else len(self.content)


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """A name in a directory. `layer` is the layer that wrote it last; `children` is for directories
    only.
    """

    inode: Inode
    layer: int = 0
    children: dict[bytes, "Node"] = dataclasses.field(default_factory=dict)

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.inode.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.inode.mode)


def new_dir(layer: int = 0) -> Node:
    """A directory of root's, as made for a parent that no layer mentions."""
    return Node(inode=Inode(mode=stat.S_IFDIR | 0o755), layer=layer)


def split(path: bytes) -> list[bytes]:
    """The components of a path below the root; a leading slash, doubled ones and `.` count for
    nothing, and `a/..` neither (as containerd and Docker clean names).

    Raises:
        LayerError: it leads above the root, or a component is too long, or there are too many.
    """
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                raise LayerError(f"path {show(path)} leads above the root by '..'", hint="do not use the image: no honest tool writes such")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    if len(parts) > MAX_DEPTH or any(len(part) > MAX_NAME for part in parts):
        raise LayerError(f"path {show(path)} is deeper than {MAX_DEPTH} or has a name longer than {MAX_NAME} bytes")
    return parts


def show(path: bytes) -> str:
    """A path for a message: short and printable."""
    text = path[:120].decode("utf-8", "backslashreplace")
    return repr(text + ("…" if len(path) > 120 else ""))


class Tree:
    """A file system in memory. `limit` bounds the names that are made in it, and with them the
    bytes of their paths and the work of looking them up.
    """

    def __init__(self, limit: int = 250_000) -> None:
        self.root = new_dir()
        self.limit = limit
        self._made = 0
        self._bytes = 0
        self._steps = 0

    def directory(self, parts: list[bytes], *, layer: int | None = None) -> Node | None:
        """The directory at `parts`, every symbolic link on the way followed; missing ones are made
        if `layer` is given, else None.

        Raises:
            LayerError: something on the way is neither a directory nor a link to one, or links go
                in circles.
        """
        return self._directory(parts, layer)[0]

    def _directory(self, parts: list[bytes], layer: int | None) -> tuple[Node | None, int]:
        """As `directory`, with the length of the directory's own path and its slash."""
        todo = list(reversed(parts))
        trail = [(self.root, 0)]
        followed = 0
        self._charge(len(parts))
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            parent, length = trail[-1]
            child = parent.children.get(part)
            if child is None:
                if layer is None:
                    return None, 0
                child = self._insert(parent, length, part, new_dir(layer))
            if child.is_symlink:
                followed += 1
                target = child.inode.content
                if followed > MAX_SYMLINKS or not isinstance(target, bytes):
                    raise LayerError(f"path {show(b'/'.join(parts))} leads through more than {MAX_SYMLINKS} symbolic links")
                if target.startswith(b"/"):
                    trail = [(self.root, 0)]
                names = target.split(b"/")
                self._charge(len(names))
                todo.extend(reversed(names))
                continue
            if not child.is_dir:
                if layer is None:
                    return None, 0
                raise LayerError(f"path {show(b'/'.join(parts))} goes through {show(part)}, which is not a directory")
            trail.append((child, length + len(part) + 1))
            if len(trail) > MAX_DEPTH:
                raise LayerError(f"path {show(b'/'.join(parts))} leads deeper than {MAX_DEPTH} directories")
        return trail[-1]

    def find(self, path: bytes) -> Node | None:
        """What is at `path`; links on the way are followed, one at its end is not."""
        parts = split(path)
        if not parts:
            return self.root
        parent = self.directory(parts[:-1])
        return None if parent is None else parent.children.get(parts[-1])

    def remove(self, path: bytes) -> Node | None:
        """Take away what is at `path`, found as by `find`, and give it."""
        parts = split(path)
        parent = self.directory(parts[:-1])
        return None if parent is None else parent.children.pop(parts[-1], None)

    def put(self, path: bytes, inode: Inode, *, layer: int = 0) -> Node:
        """Write `inode` at `path`. A directory over a directory keeps what is in it; everything
        else replaces what was there.

        Raises:
            LayerError: the path is unsafe, or would replace the root, or there are too many names.
        """
        parts = split(path)
        is_dir = stat.S_ISDIR(inode.mode)
        if not parts:
            if not is_dir:
                raise LayerError("the layer replaces the root by something that is not a directory")
            self.root.inode = inode
            return self.root
        parent, length = self._directory(parts[:-1], layer)
        assert parent is not None  # noqa: S101 (made where it was missing)
        old = parent.children.get(parts[-1])
        if old is not None and old.is_dir and is_dir:
            old.inode, old.layer = inode, layer
            return old
        return self._insert(parent, length, parts[-1], Node(inode=inode, layer=layer))

    def _insert(self, parent: Node, length: int, name: bytes, node: Node) -> Node:
        """Put a name into a directory whose path has `length` bytes with its slash."""
        if length + len(name) > MAX_PATH:
            raise LayerError(f"the path of {show(name)} has {length + len(name)} bytes; Linux takes {MAX_PATH}")
        self._made += name not in parent.children
        if self._made > self.limit:
            raise LayerError(f"the image has more than {self.limit} names", hint="if that is right for this image, raise --max-entries")
        self._bytes += length + len(name) + (node.inode.size if node.is_symlink else 0)
        if self._bytes > self.limit * BYTES_PER_NAME:
            raise LayerError(
                f"the image's paths and links have more than {self.limit * BYTES_PER_NAME} bytes",
                hint="if that is right for this image, raise --max-entries",
            )
        parent.children[name] = node
        return node

    def _charge(self, steps: int) -> None:
        """Count work, so that a small layer cannot cost hours."""
        self._steps += steps
        if self._steps > self.limit * STEPS_PER_NAME:
            raise LayerError(
                f"the image's paths lead through more than {self.limit * STEPS_PER_NAME} directories and links",
                hint="if that is right for this image, raise --max-entries",
            )

    def strip_lower(self, node: Node, layer: int) -> None:
        """Remove from a directory what layers below `layer` have put there, at any depth; what
        `layer` itself has written stays.

        Depth is bounded by MAX_DEPTH, as every directory was made through `directory`.
        """
        self._charge(len(node.children))
        for name, child in list(node.children.items()):
            self.strip_lower(child, layer)
            if child.layer != layer and not child.children:
                del node.children[name]

    def nodes(self) -> Iterator[Node]:
        """Every node below the root, in no order that counts."""
        todo = [self.root]
        while todo:
            children = todo.pop().children.values()
            yield from children
            todo.extend(child for child in children if child.children)

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every name below the root with its node, a directory before what is in it, names sorted
        as bytes. One path is in memory at a time.
        """
        stack = [(b"", iter(sorted(self.root.children.items())))]
        while stack:
            prefix, entries = stack[-1]
            name, node = next(entries, (None, None))
            if name is None or node is None:
                stack.pop()
                continue
            path = prefix + name
            yield path, node
            if node.children:
                stack.append((path + b"/", iter(sorted(node.children.items()))))
