"""The archive: every field read back, the marker at its end, GNU cpio's opinion."""

import hashlib
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.errors import ImageError
from mayfly.imagegen.rootfs.cpio import MAX_FILE, Summary, write_cpio
from mayfly.imagegen.rootfs.tree import Content, Extent, Inode, Tree
from tests.kit.imagegen_kit import read_cpio


def _archive(tree: Tree) -> tuple[bytes, Summary]:
    pieces: list[bytes] = []

    def chunks(content: Content) -> Iterator[bytes]:
        assert isinstance(content, bytes)
        yield content

    summary = write_cpio(tree, chunks, pieces.append)
    return b"".join(pieces), summary


def _file(data: bytes, mode: int = 0o644) -> Inode:
    return Inode(mode=stat.S_IFREG | mode, uid=3, gid=4, content=data)


def _tree() -> Tree:
    tree = Tree()
    shared = _file(b"shared contents", 0o444)
    tree.put(b"z", _file(b"zz"))
    tree.put(b"a/one", shared)
    tree.put(b"a/b/two", shared)
    tree.put(b"a-", _file(b"", 0o4755))
    tree.put(b"a/three", shared)
    tree.put(b"link", Inode(mode=stat.S_IFLNK | 0o777, content=b"a/one"))
    tree.put(b"pipe", Inode(mode=stat.S_IFIFO | 0o600))
    tree.put(b"null", Inode(mode=stat.S_IFCHR | 0o666))
    return tree


def test_every_entry_reads_back() -> None:
    archive, summary = _archive(_tree())
    entries = read_cpio(archive)
    assert [entry.name for entry in entries] == [
        b"a", b"a/b", b"a/b/two", b"a/one", b"a/three", b"a-", b"link", b"pipe", b"z", b"mayfly/end", b"TRAILER!!!",
    ]  # fmt: skip
    by_name = {entry.name: entry for entry in entries}
    assert by_name[b"z"].data == b"zz"
    assert (by_name[b"z"].uid, by_name[b"z"].gid, by_name[b"z"].mode) == (3, 4, stat.S_IFREG | 0o644)
    assert by_name[b"a-"].mode == stat.S_IFREG | 0o4755
    assert by_name[b"link"].data == b"a/one"
    assert stat.S_ISFIFO(by_name[b"pipe"].mode)
    assert {entry.mtime for entry in entries} == {0}
    assert summary.entries == len(entries) - 1
    assert summary.unpacked_size == len(b"zz") + len(b"shared contents") + 64
    assert summary.rounded_size == 3 * 4096


def test_hard_links_share_a_number_and_the_last_has_the_contents() -> None:
    entries = read_cpio(_archive(_tree())[0])
    links = [entry for entry in entries if entry.name in (b"a/one", b"a/b/two", b"a/three")]
    assert len({entry.ino for entry in links}) == 1
    assert [entry.nlink for entry in links] == [3, 3, 3]
    assert [entry.data for entry in links] == [b"", b"", b"shared contents"]
    others = [entry.ino for entry in entries[:-1] if entry not in links]
    assert len(set(others)) == len(others)
    assert links[0].ino not in others


def test_the_end_marker_is_the_digest_of_all_before_it() -> None:
    archive, summary = _archive(_tree())
    marker = read_cpio(archive)[-2]
    assert marker.name == b"mayfly/end"
    assert marker.data.decode() == summary.end_marker == hashlib.sha256(archive[: marker.at]).hexdigest()


def test_directories_come_before_their_contents() -> None:
    tree = Tree()
    for path in (b"b/c", b"b-/c", b"b/c/d", b"a/\xff/x", b"a.x"):
        tree.put(path, Inode(mode=stat.S_IFDIR | 0o755))
    seen: set[bytes] = {b""}
    for entry in read_cpio(_archive(tree)[0])[:-2]:
        assert entry.name.rpartition(b"/")[0] in seen
        seen.add(entry.name)


def test_the_order_of_writing_does_not_show() -> None:
    one, other = Tree(), Tree()
    files = [(b"d/%d" % number, _file(b"x" * number)) for number in range(50)]
    for path, inode in files:
        one.put(path, inode)
    for path, inode in reversed(files):
        other.put(path, inode)
    assert _archive(one) == _archive(other)


def test_gnu_cpio_unpacks_it(tmp_path: Path) -> None:
    tree = _tree()
    tree.put(b"mayfly", Inode(mode=stat.S_IFDIR | 0o755))
    archive, _ = _archive(tree)
    result = subprocess.run(
        ["cpio", "-idm", "--quiet", "--no-preserve-owner"], input=archive, cwd=tmp_path, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a/one").read_bytes() == b"shared contents"
    assert (tmp_path / "a/one").stat().st_ino == (tmp_path / "a/b/two").stat().st_ino
    assert (tmp_path / "link").readlink() == Path("a/one")
    assert (tmp_path / "a-").stat().st_size == 0


@pytest.mark.parametrize(
    ("path", "inode"),
    [
        (b"/".join([b"d" * 200] * 25), _file(b"")),
        (b"l", Inode(mode=stat.S_IFLNK | 0o777, content=b"t" * 4096)),
        (b"f", Inode(mode=stat.S_IFREG | 0o644, content=Extent(0, 0, MAX_FILE + 1))),
        (b"TRAILER!!!", _file(b"")),
    ],
)
def test_what_linux_would_silently_skip_is_refused(path: bytes, inode: Inode) -> None:
    tree = Tree()
    with pytest.raises(ImageError):
        tree.put(path, inode)
        _archive(tree)
