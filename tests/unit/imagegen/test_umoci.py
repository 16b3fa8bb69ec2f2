"""Our merged tree is what umoci unpacks: names, types, modes, owners, link targets, contents, entry
by entry.
"""

import gzip
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from mayfly.imagegen.oci.documents import resolve
from mayfly.imagegen.oci.layout import LayoutSource
from mayfly.imagegen.oci.reference import LayoutReference
from mayfly.imagegen.rootfs.layers import merge
from mayfly.imagegen.rootfs.spools import Layer, Limits, Spools
from tests.kit.imagegen_kit import LayoutMaker, directory, hard_link, member, pax, symlink, tar
from tests.kit.scale import FULL

pytestmark = [
    pytest.mark.skipif(shutil.which("umoci") is None, reason="there is no umoci here: apt-get install umoci"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files their owners"),
    pytest.mark.timeout(900),
]
ROOT = Path(__file__).parents[3]
LOWER = tar(
    directory(b"./"),
    directory(b"usr/lib", mode=0o755),
    member(b"usr/lib/kept", b"lower", mode=0o640, uid=7, gid=8),
    member(b"usr/lib/replaced", b"lower"),
    member(b"usr/lib/gone", b"lower"),
    directory(b"usr/hidden", uid=1000),
    member(b"usr/hidden/a", b"lower"),
    member(b"usr/hidden/b/c", b"lower"),
    directory(b"usr/file-then-folder"),
    member(b"usr/file-then-folder/x", b"lower"),
    symlink(b"lib", b"usr/lib"),
    symlink(b"usr/out", b"../../../../etc"),
    directory(b"etc"),
    member(b"bin/su", b"program", mode=0o4755),
    directory(b"tmp", mode=0o1777),
    member(b"pipe", kind=b"6", mode=0o600),
)
UPPER = tar(
    member(b"usr/lib/replaced", b"upper", mode=0o600),
    member(b"usr/lib/.wh.gone"),
    directory(b"usr/hidden", uid=1000),
    member(b"usr/hidden/.wh..wh..opq"),
    member(b"usr/hidden/new", b"upper"),
    member(b"usr/file-then-folder", b"now a file"),
    member(b"lib/through-a-link", b"upper"),
    member(b"usr/out/beneath", b"stays in the tree"),
    hard_link(b"usr/lib/again", b"usr/lib/kept"),
    pax({b"path": b"usr/" + b"long" * 60}),
    member(b"short", b"long name"),
    member(b"usr/odd \xff\n name", b"bytes"),
    pax({b"GNU.sparse.map": b"100,3,900,2", b"GNU.sparse.size": b"1000", b"GNU.sparse.numblocks": b"2", b"GNU.sparse.name": b"usr/holes"}),
    member(b"usr/GNUSparseFile.0/holes", b"abcde"),
    pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9000", b"GNU.sparse.name": b"usr/more"}),
    member(b"usr/GNUSparseFile.0/more", b"1\n4096\n4\n".ljust(512, b"\0") + b"here"),
)

Tree = dict[bytes, tuple[int, int, int, str]]


def _ours(layout: Path, spool: Path) -> Tree:
    """Name -> mode with type, owner, group, and what it holds."""
    source = LayoutSource(LayoutReference(path=layout))
    image = resolve(source, "x86_64")
    layers = [
        Layer(path=source.blob(found), digest=found.digest, diff_id=diff_id)
        for found, diff_id in zip(image.layers, image.config.diff_ids, strict=True)
    ]
    with Spools(spool) as spools:
        tree = merge(layers, spools, Limits())
        return {
            path: (node.inode.mode, node.inode.uid, node.inode.gid, _digest(spools.read(node.inode.content))) for path, node in tree.walk()
        }


def _umoci(layout: Path, work: Path) -> Tree:
    """The same of umoci's unpacking. It reads neither nested indexes nor zstd: it gets the same
    image as one manifest of gzip layers.
    """
    source = LayoutSource(LayoutReference(path=layout))
    image = resolve(source, "x86_64")
    maker = LayoutMaker(work / "plain")
    layers = []
    for found in image.layers:
        data = source.blob(found).read_bytes()
        unpacked = (
            zstandard.ZstdDecompressor().decompressobj().decompress(data) if data[:4] == b"\x28\xb5\x2f\xfd" else gzip.decompress(data)
        )
        layers.append(
            (maker.blob(gzip.compress(unpacked, 1), "application/vnd.oci.image.layer.v1.tar+gzip"), f"sha256:{_digest(unpacked)}")
        )
    maker.finish(maker.image(layers))
    subprocess.run(["umoci", "unpack", "--image", f"{work}/plain:latest", work / "bundle"], check=True, capture_output=True, text=True)
    root = os.fsencode(work / "bundle" / "rootfs")
    found_here: Tree = {}
    for top, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(top, name)  # noqa: PTH118 (names are bytes)
            status = os.lstat(path)
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)  # noqa: PTH115 (as above)
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            found_here[path[len(root) + 1 :]] = (status.st_mode, status.st_uid, status.st_gid, _digest(content))
    return found_here


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _compare(layout: Path, work: Path) -> int:
    ours, theirs = _ours(layout, work), _umoci(layout, work)
    assert sorted(ours) == sorted(theirs)
    assert {path: (entry, theirs[path]) for path, entry in ours.items() if entry != theirs[path]} == {}
    return len(ours)


def test_an_image_with_everything_odd(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "layout")
    layout = maker.finish(maker.image([maker.layer(LOWER), maker.layer(UPPER, "zstd")]))
    assert _compare(layout, tmp_path) == 21


if FULL:

    @pytest.mark.slow
    @pytest.mark.parametrize(("language", "kind"), [("rust", "debian"), ("rust", "docker"), ("go", "docker")])
    def test_a_reference_image(language: str, kind: str, tmp_path: Path) -> None:
        layout = tmp_path / "layout"
        reference = [sys.executable, "-m", "scripts.debian.reference_image", language, str(layout), "--layout", kind]
        subprocess.run(reference, cwd=ROOT, check=True)
        assert _compare(layout, tmp_path) > 3000
        shutil.rmtree(tmp_path)
