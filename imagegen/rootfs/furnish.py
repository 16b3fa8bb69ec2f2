"""Add to an image's tree what the guest needs beside the toolchain."""

import stat

from mayfly.imagegen.rootfs.spools import Spools
from mayfly.imagegen.rootfs.tree import Inode, Tree
from mayfly.units import MIB

RUNNER = 1000
"""User and group id of who runs snippets in the guest."""
MOUNT_POINTS = ((b"proc", 0o555), (b"sys", 0o555), (b"dev", 0o755), (b"run", 0o755), (b"mayfly", 0o755), (b"tmp", 0o1777))
MAX_TEXT = 4 * MIB
"""passwd and group are read whole."""


def furnish(tree: Tree, spools: Spools, agent: bytes, runtime: bytes = b"") -> None:
    """Add what the guest needs beside the toolchain: the agent, mount points, the user that
    snippets run as, /etc/hosts, the runtime for WebAssembly if the language wants it. The rest of
    the tree is read-only to that user.
    """
    _forbid_writing(tree)
    for path, mode in MOUNT_POINTS:
        if path != b"tmp":
            tree.root.children.pop(path, None)
        tree.put(path, Inode(mode=stat.S_IFDIR | mode))
    tree.put(b"work", Inode(mode=stat.S_IFDIR | 0o755, uid=RUNNER, gid=RUNNER))
    tree.put(b"init", Inode(mode=stat.S_IFREG | 0o755, content=agent))
    if runtime:
        tree.put(b"usr/bin/mayfly-wasm", Inode(mode=stat.S_IFREG | 0o755, content=runtime))
    _add_user(tree, spools, b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", b"runner:x:%d:%d::/work:/bin/sh\n" % (RUNNER, RUNNER))
    _add_user(tree, spools, b"etc/group", b"root:x:0:\n", b"runner:x:%d:\n" % RUNNER)
    hosts = b"127.0.0.1 localhost\n::1 localhost\n"
    tree.put(b"etc/hosts", Inode(mode=stat.S_IFREG | 0o644, content=hosts))


def _forbid_writing(tree: Tree) -> None:
    """Leave the runner nothing to write to, but all that it could read and execute: a guest may
    serve several runs, and the agent renews only the places that it mounts.
    """
    for inode in (node.inode for node in tree.nodes() if not node.is_symlink):
        rights = inode.mode >> (6 if inode.uid == RUNNER else 3 if inode.gid == RUNNER else 0)
        inode.mode = inode.mode & ~0o007 | rights & 0o005
        if RUNNER in (inode.uid, inode.gid):
            inode.mode &= ~(stat.S_ISUID | stat.S_ISGID)  # as chown(2) does, or it would run as root
        inode.uid, inode.gid = (0 if owner == RUNNER else owner for owner in (inode.uid, inode.gid))


def _add_user(tree: Tree, spools: Spools, path: bytes, initial: bytes, line: bytes) -> None:
    """Add the runner's line to a database of users or groups. Who had its id or its name goes: the
    home of Ubuntu's user 1000 is not there for a snippet.
    """
    node = tree.find(path)
    text = initial
    if node is not None and stat.S_ISREG(node.inode.mode) and node.inode.size <= MAX_TEXT:
        text = spools.read(node.inode.content)
    name, _, number, *_ = line.rstrip(b"\n").split(b":")
    kept = [known for known in text.splitlines(keepends=True) if not _is_of(known.rstrip(b"\n").split(b":"), name, number)]
    if kept and not kept[-1].endswith(b"\n"):
        kept.append(b"\n")
    tree.put(path, Inode(mode=stat.S_IFREG | 0o644, content=b"".join(kept) + line))


def _is_of(fields: list[bytes], name: bytes, number: bytes) -> bool:
    return fields[0] == name or fields[2:3] == [number]
