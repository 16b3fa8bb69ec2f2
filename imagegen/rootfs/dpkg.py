"""Debian's packages in an image, as dpkg's database has them."""

import re
import stat
from collections.abc import Mapping
from typing import NamedTuple

from mayfly.imagegen.rootfs.spools import Spools
from mayfly.imagegen.rootfs.tree import Node, Tree
from mayfly.units import MIB

MAX_TEXT = 16 * MIB
"""Of a file of dpkg's, read whole."""
STATUS = b"var/lib/dpkg/status"
INFO = b"var/lib/dpkg/info"
KEYRINGS = ("usr/share/keyrings/debian-archive-keyring.pgp", "usr/share/keyrings/debian-archive-keyring.gpg")
"""Of the keys that Debian's archive is signed with, the newer name first."""
_FIELD = re.compile(r"^(Package|Version|Status|Architecture): (.{1,200})$", re.MULTILINE)

_RELEASE = re.compile(r"^(ID|VERSION_CODENAME)=\"?([a-z0-9._-]{1,40})\"?$", re.MULTILINE)


class Distribution(NamedTuple):
    """A system's short name, `debian`, and its suite, `trixie`; empty where it does not say."""

    name: str
    suite: str


class Installed(NamedTuple):
    """A package that is installed: its version, and the paths of what it brought."""

    version: str
    paths: tuple[bytes, ...]


def installed(tree: Tree, spools: Spools) -> dict[str, Installed]:
    """The packages that an image's database says are installed, by name; none where it has no
    database.
    """
    listed = _lists(tree, spools)
    found = {}
    for paragraph in _text(tree.find(STATUS), spools).decode("utf-8", "replace").split("\n\n"):
        fields = dict(_FIELD.findall(paragraph))
        name = fields.get("Package", "")
        if name and fields.get("Version") and fields.get("Status", "").endswith(" installed"):
            paths = listed.get(name) or listed.get(f"{name}:{fields.get('Architecture', '')}", ())
            found[name] = Installed(fields["Version"], paths)
    return found


def left(tree: Tree, packages: Mapping[str, Installed]) -> dict[str, str]:
    """The versions of those packages of which a file is still in the tree, by name."""
    return {name: package.version for name, package in sorted(packages.items()) if any(_is_file(tree, path) for path in package.paths)}


def distribution(tree: Tree, spools: Spools) -> Distribution:
    """The system that the image is one of (os-release(5))."""
    for path in (b"etc/os-release", b"usr/lib/os-release"):
        found = dict(_RELEASE.findall(_text(tree.find(path), spools).decode("utf-8", "replace")))
        if "ID" in found:
            return Distribution(found["ID"], found.get("VERSION_CODENAME", ""))
    return Distribution("", "")


def keyring(tree: Tree, spools: Spools) -> bytes:
    """The keyring that the image's own apt goes by; empty if it has none."""
    return next((found for name in KEYRINGS if (found := _text(tree.find(name.encode()), spools))), b"")


def _lists(tree: Tree, spools: Spools) -> dict[str, tuple[bytes, ...]]:
    """The paths of each package's files, by the name of the list (`NAME` or `NAME:ARCH`)."""
    info = tree.find(INFO)
    if info is None:
        return {}
    lists = {
        name.removesuffix(b".list").decode("utf-8", "replace"): node for name, node in info.children.items() if name.endswith(b".list")
    }
    return {name: tuple(_text(node, spools).splitlines()) for name, node in lists.items()}


def _text(node: Node | None, spools: Spools) -> bytes:
    if node is None or not stat.S_ISREG(node.inode.mode) or node.inode.size > MAX_TEXT:
        return b""
    return spools.read(node.inode.content)


def _is_file(tree: Tree, path: bytes) -> bool:
    node = tree.find(path)
    return node is not None and not node.is_dir
