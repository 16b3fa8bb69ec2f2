"""Merge an image's layers into one tree.

OCI image-spec, layer.md: whiteouts (`.wh.NAME`), opaque whiteouts (`.wh..wh..opq`), hard links
within the merged tree.
"""

import functools
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mayfly.errors import LayerError
from mayfly.imagegen.rootfs.spools import Layer, Limits, Spools
from mayfly.imagegen.rootfs.tar import Kind, Member, read_members
from mayfly.imagegen.rootfs.tree import Content, Extent, Inode, Node, Tree, show, split

LAYERS_AT_ONCE = 4
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


def add_layer(tree: Tree, number: int, layer: Layer, spools: Spools, limits: Limits, *, as_dpkg: bool = False) -> None:
    """Unpack one layer and merge it into `tree` as number `number` (1, 2, …). As dpkg does it, a
    link to a directory stays where the layer has a directory.

    Raises:
        LayerError: it is damaged, unsafe or over a limit.
    """
    _add(tree, number, layer, spools, spools.add(layer, limits), limits, as_dpkg=as_dpkg)


def _add(tree: Tree, number: int, layer: Layer, spools: Spools, spool: int, limits: Limits, *, as_dpkg: bool = False) -> None:
    try:
        read_at = functools.partial(spools.read_at, spool)
        holes = apply_layer(tree, number, read_at, spools.size(spool), spool, limits.entries, as_dpkg=as_dpkg)
        spools.count_holes(holes, limits)
    except LayerError as error:
        raise LayerError(f"layer {layer.digest}: {error.message}", hint=error.hint) from error


def apply_layer(
    tree: Tree, number: int, read_at: Callable[[int, int], bytes], total: int, spool: int, max_members: int, *, as_dpkg: bool = False
) -> int:
    """Apply the tar of `total` bytes that `read_at` reads to `tree`, as layer `number` (1, 2, …);
    its contents are in `spool`. Gives the bytes of its sparse files that are not in the tar.

    Raises:
        LayerError: the tar is damaged or unsafe, or has more than `max_members` members.
    """
    holes = 0
    for member in read_members(read_at, total, max_members):
        if as_dpkg and member.kind is Kind.DIRECTORY and tree.directory(split(member.name)) is not None:
            continue
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
