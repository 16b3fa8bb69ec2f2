"""Hostile and odd layers, each with the right tree or a typed error; nothing else is ever the
outcome.
"""

import dataclasses
import gzip
import hashlib
import io
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from mayfly.errors import LayerError
from mayfly.imagegen.rootfs.layers import apply_layer, merge
from mayfly.imagegen.rootfs.spools import Layer, Limits, Spools
from mayfly.imagegen.rootfs.tree import Inode, Tree, new_dir, split
from tests.kit.imagegen_kit import BLOCK, digest, directory, hard_link, header, listing, member, merged, pax, symlink, tar
from tests.kit.scale import scaled

LONG = b"d/" * 90 + b"name"
FILE = "file 644"


def _signed(raw: bytes) -> bytes:
    """A member with the checksum that tars of the seventies have: of signed bytes."""
    block = raw[:148] + b" " * 8 + raw[156:BLOCK]
    return raw[:148] + b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block) + raw[156:]


def _signed_again(raw: bytes, at: int, field: bytes) -> bytes:
    """A header with a field changed and the checksum that it must have then."""
    block = raw[:148] + b" " * 8 + raw[156:at] + field + raw[at + len(field) :]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _sparse(records: dict[bytes, bytes], data: bytes) -> bytes:
    """A tar of one sparse file `a` of pax."""
    return tar(pax({b"GNU.sparse." + key: value for key, value in records.items()}), member(b"a", data))


_V1 = {b"major": b"1", b"minor": b"0"}

# what it shows -> layers, the tree that they give
GOOD: dict[str, tuple[list[bytes], dict[str, str]]] = {
    "a file": ([tar(member(b"a", b"x"))], {"a": f"{FILE} x"}),
    "an absolute name": ([tar(member(b"/etc/passwd", b"x"))], {"etc": "dir 755", "etc/passwd": f"{FILE} x"}),
    "a leading ./ and doubled slashes": ([tar(directory(b"./"), member(b".//a///b", b"x"))], {"a": "dir 755", "a/b": f"{FILE} x"}),
    "a missing parent": ([tar(member(b"a/b/c", b"x"))], {"a": "dir 755", "a/b": "dir 755", "a/b/c": f"{FILE} x"}),
    "a name twice: the last counts": ([tar(member(b"a", b"1"), member(b"a", b"2"))], {"a": f"{FILE} 2"}),
    "a file over a directory": ([tar(member(b"a/b", b"1")), tar(member(b"a", b"2"))], {"a": f"{FILE} 2"}),
    "a directory over a file": (
        [tar(member(b"a", b"1")), tar(directory(b"a"), member(b"a/b", b"2"))],
        {"a": "dir 755", "a/b": f"{FILE} 2"},
    ),
    "file, directory and back": ([tar(member(b"a", b"1")), tar(directory(b"a")), tar(member(b"a", b"3"))], {"a": f"{FILE} 3"}),
    "a directory again: its mode changes, its contents stay": (
        [tar(member(b"a/b", b"1")), tar(directory(b"a", mode=0o700))],
        {"a": "dir 700", "a/b": f"{FILE} 1"},
    ),
    "a symbolic link stays as it is": ([tar(symlink(b"a", b"../../etc/shadow"))], {"a": "-> ../../etc/shadow"}),
    "a symlinked parent": (
        [tar(directory(b"usr/lib"), symlink(b"lib", b"usr/lib")), tar(member(b"lib/x", b"1"))],
        {"lib": "-> usr/lib", "usr": "dir 755", "usr/lib": "dir 755", "usr/lib/x": f"{FILE} 1"},
    ),
    "a symlinked parent that points out of the tree stays in it": (
        [tar(symlink(b"out", b"../../../etc"), member(b"out/x", b"1"))],
        {"out": "-> ../../../etc", "etc": "dir 755", "etc/x": f"{FILE} 1"},
    ),
    "an absolute symlinked parent": (
        [tar(symlink(b"a/out", b"/b"), member(b"a/out/x", b"1"))],
        {"a": "dir 755", "a/out": "-> /b", "b": "dir 755", "b/x": f"{FILE} 1"},
    ),
    "a directory over a symbolic link replaces it": (
        [tar(directory(b"real"), symlink(b"a", b"real")), tar(directory(b"a"), member(b"a/x", b"1"))],
        {"a": "dir 755", "a/x": f"{FILE} 1", "real": "dir 755"},
    ),
    "a file over a symbolic link does not write through it": (
        [tar(member(b"real", b"1"), symlink(b"a", b"real")), tar(member(b"a", b"2"))],
        {"a": f"{FILE} 2", "real": f"{FILE} 1"},
    ),
    "a hard link": ([tar(member(b"a", b"1"), hard_link(b"b", b"a"))], {"a": f"{FILE} 1", "b": f"{FILE} 1"}),
    "a hard link to a lower layer's file": ([tar(member(b"a", b"1")), tar(hard_link(b"b", b"/a"))], {"a": f"{FILE} 1", "b": f"{FILE} 1"}),
    "a hard link to a symbolic link": ([tar(symlink(b"a", b"x"), hard_link(b"b", b"a"))], {"a": "-> x", "b": "-> x"}),
    "a hard link keeps its file when the other name is replaced": (
        [tar(member(b"a", b"1"), hard_link(b"b", b"a")), tar(member(b"a", b"2"))],
        {"a": f"{FILE} 2", "b": f"{FILE} 1"},
    ),
    "a hard link with a size in its header": (
        [tar(member(b"a", b"1"), header(b"b", b"1", link=b"a", size=1), member(b"c", b"3"))],
        {"a": f"{FILE} 1", "b": f"{FILE} 1", "c": f"{FILE} 3"},
    ),
    "a whiteout": ([tar(member(b"d/a", b"1"), member(b"d/b", b"2")), tar(member(b"d/.wh.a"))], {"d": "dir 755", "d/b": f"{FILE} 2"}),
    "a whiteout of a directory": ([tar(member(b"d/e/f", b"1")), tar(member(b"d/.wh.e"))], {"d": "dir 755"}),
    "a whiteout of what is not there": ([tar(member(b"a", b"1")), tar(member(b".wh.b"), member(b"x/y/.wh.z"))], {"a": f"{FILE} 1"}),
    "a whiteout spares its own layer, before and after": (
        [tar(member(b"a", b"1"), member(b"b", b"1")), tar(member(b"a", b"2"), member(b".wh.a"), member(b".wh.b"), member(b"b", b"2"))],
        {"a": f"{FILE} 2", "b": f"{FILE} 2"},
    ),
    "a whiteout through a symbolic link stays in the tree": (
        [tar(member(b"etc/a", b"1"), symlink(b"l", b"../../etc")), tar(member(b"l/.wh.a"))],
        {"etc": "dir 755", "l": "-> ../../etc"},
    ),
    "an opaque directory": (
        [tar(member(b"d/a", b"1"), member(b"d/e/f", b"1")), tar(directory(b"d"), member(b"d/.wh..wh..opq"), member(b"d/b", b"2"))],
        {"d": "dir 755", "d/b": f"{FILE} 2"},
    ),
    "an opaque directory, the marker last": (
        [tar(member(b"d/a", b"1"), member(b"d/e/f", b"1")), tar(member(b"d/e/g", b"2"), member(b"d/.wh..wh..opq"))],
        {"d": "dir 755", "d/e": "dir 755", "d/e/g": f"{FILE} 2"},
    ),
    "an opaque root": ([tar(member(b"a", b"1")), tar(member(b".wh..wh..opq"), member(b"b", b"2"))], {"b": f"{FILE} 2"}),
    "records of AUFS": ([tar(member(b".wh..wh.aufs", b"x"), member(b".wh..wh.plnk/1.2", b"x"), member(b"a"))], {"a": FILE}),
    "a file with .wh. inside its name": ([tar(member(b"a.wh.b", b"1"))], {"a.wh.b": f"{FILE} 1"}),
    "setuid and sticky bits": (
        [tar(member(b"su", b"1", mode=0o4755), directory(b"tmp", mode=0o1777))],
        {"su": "file 4755 1", "tmp": "dir 1777"},
    ),
    "a FIFO": ([tar(member(b"p", kind=b"6"))], {"p": "fifo 644"}),
    "device nodes": ([tar(member(b"null", kind=b"3"), member(b"sda", kind=b"4"))], {"null": "device 644", "sda": "device 644"}),
    "an old contiguous file": ([tar(member(b"a", b"1", kind=b"7"))], {"a": f"{FILE} 1"}),
    "a tar from before there were types": (
        [tar(member(b"d/", kind=b"\0", magic=bytes(8), mode=0o755), member(b"d/a", b"1", kind=b"\0", magic=bytes(8)))],
        {"d": "dir 755", "d/a": f"{FILE} 1"},
    ),
    "a ustar prefix": ([tar(member(b"b", b"1", prefix=b"a"))], {"a": "dir 755", "a/b": f"{FILE} 1"}),
    "a pax path and link": (
        [tar(pax({b"path": b"p"}), member(b"short", b"1"), pax({b"path": b"l", b"linkpath": b"target"}), symlink(b"x", b"y"))],
        {"l": "-> target", "p": f"{FILE} 1"},
    ),
    "a pax size": ([tar(pax({b"size": b"3"}), member(b"a", b"123", size=0), member(b"b"))], {"a": f"{FILE} 123", "b": FILE}),
    "a pax record taken back": ([tar(pax({b"path": b""}), member(b"a", b"1"))], {"a": f"{FILE} 1"}),
    "a global pax header": ([tar(pax({b"comment": b"x", b"path": b"no"}, kind=b"g"), member(b"a", b"1"))], {"a": f"{FILE} 1"}),
    "a GNU long name": (
        [tar(member(b"././@LongLink", b"long\0", kind=b"L"), member(b"short", b"1"))],
        {"long": f"{FILE} 1"},
    ),
    "a GNU long link": (
        [tar(member(b"././@LongLink", b"t" * 200 + b"\0", kind=b"K"), symlink(b"a", b"short"))],
        {"a": "-> " + "t" * 200},
    ),
    "a base-256 size": ([tar(header(b"a", size=b"\x80" + bytes(10) + b"\x01") + b"1" + bytes(511))], {"a": f"{FILE} 1"}),
    "a name that is not UTF-8": ([tar(member(b"\xff\xfe", b"1"))], {"\xff\xfe": f"{FILE} 1"}),
    "a newline and a tab in a name": ([tar(member(b"a\n\tb", b"1"))], {"a\n\tb": f"{FILE} 1"}),
    "no end-of-archive blocks": ([member(b"a", b"1")], {"a": f"{FILE} 1"}),
    "one end-of-archive block": ([member(b"a", b"1") + bytes(512)], {"a": f"{FILE} 1"}),
    "an empty layer": ([tar()], {}),
    "a .. within the tree": (
        [tar(member(b"a/x/../b", b"1"), hard_link(b"c", b"y/../a/b"))],
        {"a": "dir 755", "a/b": f"{FILE} 1", "c": f"{FILE} 1"},
    ),
    "garbage behind a number's NUL": ([tar(member(b"a", b"1", mode=b"000644\0x"))], {"a": f"{FILE} 1"}),
    "a hard link whose first name goes later": (
        [tar(member(b"bin/a", b"1"), hard_link(b"lib/a", b"bin/a")), tar(member(b"bin/.wh.a"), symlink(b"bin/a", b"../lib/a"))],
        {"bin": "dir 755", "bin/a": "-> ../lib/a", "lib": "dir 755", "lib/a": f"{FILE} 1"},
    ),
    "a checksum of signed bytes": ([tar(_signed(member(b"\xff\xfe", b"1")))], {"\xff\xfe": f"{FILE} 1"}),
    "a sparse file of pax 0.1": (
        [_sparse({b"map": b"1,2,4,1", b"size": b"6", b"name": b"b"}, b"xyz")],
        {"b": f"{FILE} \0xy\0z\0"},
    ),
    "a sparse file of nothing": ([_sparse({b"map": b"", b"size": b"2", b"major": b"0", b"minor": b"1"}, b"")], {"a": f"{FILE} \0\0"}),
    "a file behind a sparse one": (
        [tar(pax({b"GNU.sparse.map": b"0,1", b"GNU.sparse.size": b"600"}), member(b"a", b"x"), member(b"b", b"y"))],
        {"a": FILE + " x" + "\0" * 599, "b": f"{FILE} y"},
    ),
    "what follows the end is not read": ([tar(member(b"a", b"1")) + member(b"../b")], {"a": f"{FILE} 1"}),
}

# what it shows -> layers, a part of the error's message
BAD: dict[str, tuple[list[bytes], str]] = {
    "a parent path": ([tar(member(b"../a", b"x"))], "'..'"),
    "a parent path in the middle": ([tar(member(b"a/../../b", b"x"))], "'..'"),
    "a parent path in a pax record": ([tar(pax({b"path": b"../a"}), member(b"a", b"x"))], "'..'"),
    "a parent path in a GNU long name": ([tar(member(b"x", b"../a\0", kind=b"L"), member(b"a"))], "'..'"),
    "a hard link to outside": ([tar(hard_link(b"a", b"../../etc/shadow"))], "'..'"),
    "a hard link to an absolute path that the image lacks": ([tar(hard_link(b"a", b"/etc/shadow"))], "not there"),
    "a hard link to a later entry": ([tar(hard_link(b"a", b"b"), member(b"b"))], "not there"),
    "a hard link to itself": ([tar(hard_link(b"a", b"a"))], "not there"),
    "a hard link to a directory": ([tar(directory(b"d"), hard_link(b"a", b"d"))], "is a directory"),
    "a hard link to the root": ([tar(hard_link(b"a", b"/"))], "is a directory"),
    "a symbolic link to nothing": ([tar(symlink(b"a", b""))], "no target"),
    "symbolic links in a circle": ([tar(symlink(b"a", b"b"), symlink(b"b", b"a"), member(b"a/x"))], "symbolic links"),
    "a file as a parent": ([tar(member(b"a", b"1"), member(b"a/b", b"2"))], "not a directory"),
    "a FIFO as a parent": ([tar(member(b"a", kind=b"6"), member(b"a/b", b"2"))], "not a directory"),
    "a file in the root's place": ([tar(member(b"./", kind=b"2", link=b"x"))], "replaces the root"),
    "a whiteout of nothing": ([tar(member(b".wh."))], "names nothing"),
    "a whiteout of the parent": ([tar(member(b"d/.wh..."))], "names nothing"),
    "a whiteout of the directory itself": ([tar(member(b"d/a"), member(b"d/.wh.."))], "names nothing"),
    "a whiteout under a parent path": ([tar(member(b"../.wh.etc"))], "'..'"),
    "a NUL in a pax path": ([tar(pax({b"path": b"a\0b"}), member(b"a"))], "NUL"),
    "a NUL in a GNU long name": ([tar(member(b"x", b"a\0b", kind=b"L"), member(b"a"))], "NUL"),
    "a name of 256 bytes": ([tar(pax({b"path": b"n" * 256}), member(b"a"))], "longer than 255"),
    "a path of 5,000 bytes": ([tar(pax({b"path": b"ab/" * 1700}), member(b"a"))], "5100 bytes"),
    "a depth of 400": ([tar(pax({b"path": b"d/" * 400}), member(b"a"))], "deeper than 256"),
    "depth through symbolic links": (
        [
            tar(
                pax({b"path": b"d/" * 200}),
                directory(b"x"),
                pax({b"linkpath": b"d/" * 200}),
                symlink(b"l", b"x"),
                pax({b"path": b"l/" + b"e/" * 100}),
                member(b"a"),
            )
        ],
        "deeper than 256",
    ),
    "a wrong checksum": ([tar(header(b"a", checksum=b"000000\0 "))], "checksum"),
    "a checksum that is no number": ([tar(header(b"a", checksum=b"hello!\0 "))], "not a number"),
    "a negative base-256 size": ([tar(header(b"a", size=b"\xff" * 12))], "negative"),
    "a size of 2^90": ([tar(header(b"a", size=b"\x80" + b"\x7f" * 11))], "ends within"),
    "a size in letters": ([tar(header(b"a", size=b"zzz"))], "not a number"),
    "a size beyond the end": ([tar(header(b"a", size=4096))], "ends within"),
    "a negative pax size": ([tar(pax({b"size": b"-1"}), member(b"a"))], "not a number"),
    "a pax uid beyond 32 bits": ([tar(pax({b"uid": b"4294967296"}), member(b"a"))], "uid"),
    "a broken pax record": ([tar(member(b"x", b"99 path=a\n", kind=b"x"), member(b"a"))], "pax header"),
    "a pax record without a length": ([tar(member(b"x", b"path=a\n", kind=b"x"), member(b"a"))], "pax header"),
    "a pax record of length 0": ([tar(member(b"x", b"0 path=a\n", kind=b"x"), member(b"a"))], "pax header"),
    "a pax header of 2 MiB": ([tar(member(b"x", bytes(2 << 20), kind=b"x"), member(b"a"))], "extended header"),
    "a GNU long name of 2 MiB": ([tar(member(b"x", b"n" * (2 << 20), kind=b"L"), member(b"a"))], "extended header"),
    "pax headers that pile up": ([tar(*[pax({b"comment": b"x" * 300_000})] * 4, member(b"a"))], "extended headers of"),
    "empty pax headers that pile up": ([tar(*[member(b"x", kind=b"x")] * 3000, member(b"a"))], "extended headers of"),
    "global headers that pile up": ([tar(*[pax({b"comment": b"x" * 300_000}, kind=b"g")] * 4, member(b"a"))], "extended headers of"),
    "long names that pile up": ([tar(*[member(b"x", b"n" * 4000, kind=b"L")] * 300, member(b"a"))], "extended headers of"),
    "a long link that no path can be": ([tar(member(b"x", b"n" * 5000, kind=b"K"), symlink(b"a", b"x"))], "5000 bytes"),
    "a path longer than Linux', through links": (
        [
            tar(
                *(
                    one
                    for n in range(5)
                    for one in (
                        pax({b"path": b"l%d/" % n + b"/".join([b"n" * 250] * 4)}),
                        directory(b"x"),
                        pax({b"linkpath": b"l%d/" % n + b"/".join([b"n" * 250] * 4)}),
                        symlink(b"l%d" % (n + 1), b"x"),
                    )
                )
            )
        ],
        "Linux takes 4095",
    ),
    "a uid of -2^40": ([tar(pax({b"uid": b"-1099511627776"}), member(b"a"))], "uid"),
    "a pax header at the end": ([tar(pax({b"path": b"a"}))], "after an extended header"),
    "an old sparse file without its map": ([tar(member(b"a", b"1", kind=b"S"))], "map and contents differ"),
    "an old sparse file whose map does not end": ([_signed_again(header(b"a", b"S"), 482, b"\1") + b"\1" * 512 * 3], "does not end"),
    "an old sparse file of letters": ([_signed_again(header(b"a", b"S"), 386, b"letters")], "not a number"),
    "a sparse file of an unknown version": ([_sparse({b"major": b"2", b"minor": b"0", b"realsize": b"9"}, b"1")], "unknown version"),
    "a sparse file without its size": ([_sparse({b"map": b"0,1"}, b"1")], "not a number"),
    "a sparse file of a negative size": ([_sparse({b"map": b"0,1", b"size": b"-1"}, b"1")], "not a number"),
    "pieces that overlap": ([_sparse({b"map": b"0,4,3,4", b"size": b"9"}, b"12345678")], "out of its place"),
    "a piece behind the end": ([_sparse({b"map": b"8,4", b"size": b"9"}, b"1234")], "out of its place"),
    "half a piece": ([_sparse({b"map": b"0,4,8", b"size": b"9"}, b"1234")], "differ"),
    "more contents than pieces": ([_sparse({b"map": b"0,4", b"size": b"9"}, b"12345")], "differ"),
    "fewer contents than pieces": ([_sparse({b"map": b"0,4", b"size": b"9"}, b"123")], "differ"),
    "a sparse map of words": ([_sparse({b"map": b"a,b", b"size": b"9"}, b"1234")], "not a number"),
    "a sparse map of 10^30 pieces": ([_sparse({**_V1, b"realsize": b"9"}, b"1%030d\n" % 0)], "not a number|does not end"),
    "a sparse map that is cut": ([_sparse({**_V1, b"realsize": b"9"}, b"2\n0\n".ljust(512))], "does not end"),
    "a sparse file under a parent path": (
        [_sparse({b"map": b"", b"size": b"9", b"name": b"../a", b"major": b"0", b"minor": b"1"}, b"")],
        "'..'",
    ),
    "a volume's label": ([tar(member(b"a", kind=b"V"))], "type b'V'"),
    "a type that nobody knows": ([tar(member(b"a", kind=b"\xff"))], "type"),
    "half a header": ([member(b"a", b"1")[:700]], "ends within"),
    "half of the contents": ([header(b"a", size=5000) + bytes(1000)], "ends within"),
    "one byte too few": ([member(b"a", b"1") + b"x" * 511], "ends within a header"),
    "no tar at all": ([b"<html>not found</html>".ljust(1024)], "checksum"),
}


@pytest.mark.parametrize("what", GOOD)
def test_odd_layers_give_the_right_tree(what: str) -> None:
    layers, expected = GOOD[what]
    assert listing(merged(*layers), layers) == dict(sorted(expected.items()))


@pytest.mark.parametrize("what", BAD)
def test_bad_layers_give_a_typed_error(what: str) -> None:
    layers, message = BAD[what]
    with pytest.raises(LayerError, match=message.replace("(", r"\(")):
        merged(*layers)


def test_a_long_path_in_both_spellings() -> None:
    for style in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=style) as archive:
            info = tarfile.TarInfo(LONG.decode())
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        node = merged(buffer.getvalue()).find(LONG)
        assert node is not None
        assert node.inode.size == 3


@pytest.mark.parametrize("form", ["--format=gnu", *(f"--format=pax --sparse-version={version}" for version in ("0.0", "0.1", "1.0"))])
@pytest.mark.parametrize("pieces", [0, 1, 3, 30], ids=lambda count: f"{count} pieces")
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str, pieces: int) -> None:
    """More than 4 pieces, and more than 25, need further blocks in the old format."""
    with (tmp_path / "holes").open("wb") as file:
        for number in range(pieces):
            file.seek((2 * number + 1) << 16)
            file.write(bytes([number + 1]) * 4096)
        file.truncate((2 * pieces + 1) << 16)
    (tmp_path / "next").write_bytes(b"whole")
    command = ["tar", "-C", str(tmp_path), "-cf", "-", "--sparse", "--hole-detection=raw", *form.split(), "holes", "next"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    path = tmp_path / "blob"
    path.write_bytes(data)
    with Spools(tmp_path) as spools:
        tree = merge([Layer(path=path, digest=digest(data), diff_id=digest(data))], spools, Limits())
        for name in ("holes", "next"):
            node = tree.find(name.encode())
            assert node is not None
            assert node.inode.size == (tmp_path / name).stat().st_size
            assert spools.read(node.inode.content) == (tmp_path / name).read_bytes()


def test_holes_count_as_unpacked_bytes(tmp_path: Path) -> None:
    data = _sparse({b"map": b"0,1", b"size": b"1000000"}, b"x")
    with pytest.raises(LayerError, match="with sparse files"):
        _merge(tmp_path, _layer(tmp_path, data, data), Limits(unpacked=999_999))


def test_pieces_of_sparse_files_are_counted() -> None:
    part = _sparse({b"map": b",".join(b"%d,1" % (2 * number) for number in range(60)), b"size": b"200"}, b"x" * 60)[: -2 * BLOCK]
    with pytest.raises(LayerError, match="too many pieces"):
        merged(part * 2, limit=100)


def test_hard_links_share_an_inode() -> None:
    tree = merged(tar(member(b"a", b"1"), hard_link(b"b", b"a")))
    a, b = tree.find(b"a"), tree.find(b"b")
    assert a is not None
    assert b is not None
    assert a.inode is b.inode


def test_owners_are_kept() -> None:
    node = merged(tar(pax({b"uid": b"3000000000"}), member(b"a", uid=1, gid=7))).find(b"a")
    assert node is not None
    assert (node.inode.uid, node.inode.gid) == (3_000_000_000, 7)


def test_a_million_empty_files() -> None:
    """Too many by default; where the operator allows them, each is there."""
    count = scaled(1_000_000)
    block = member(b"%08d" % 0)
    empty = sum(block) - 8 * ord("0")

    def read_at(offset: int, size: int) -> bytes:
        """The header of one file, made when it is read: all of them would be half a gigabyte."""
        if offset >= count * BLOCK:
            return b""
        name = b"%08d" % (offset // BLOCK)
        checksum = b"%06o\0 " % (empty + sum(name) + 8 * ord(" ") - sum(block[148:156]))
        return name + block[8:148] + checksum + block[156:]

    tree = Tree(count)
    apply_layer(tree, 1, read_at, count * BLOCK, 0, count)
    assert len(tree.root.children) == count
    assert Limits().entries < 1_000_000
    with pytest.raises(LayerError, match="more than 1000 members") as caught:
        apply_layer(Tree(count), 1, read_at, count * BLOCK, 0, 1000)
    assert "--max-entries" in caught.value.hint


def test_ids_are_as_chown_takes_them() -> None:
    tree = merged(
        tar(
            pax({b"uid": b"-2", b"gid": b"-1"}), member(b"pax"), member(b"octal", uid=0o7777777), member(b"base", uid=b"\xff" * 7 + b"\xfe")
        )
    )
    ids = {path: (node.inode.uid, node.inode.gid) for path, node in tree.walk()}
    assert ids == {b"pax": (0xFFFF_FFFE, 0), b"octal": (0o7777777, 0), b"base": (0xFFFF_FFFE, 0)}


def test_pax_records_are_counted() -> None:
    """A megabyte has 170,000 of them: a layer of the size that is allowed could cost an hour."""
    records = pax({b"%d" % n: b"" for n in range(15)})
    assert merged(tar(*[records, member(b"a")] * 10), limit=10).find(b"a")
    with pytest.raises(LayerError, match="too many pax records"):
        merged(tar(*[records, records, member(b"a")] * 10), limit=10)


def test_paths_and_links_are_bounded_together() -> None:
    """The names of one deep directory cost a layer three bytes each, packed."""
    deep = b"/".join([b"n" * 250] * 15)
    with pytest.raises(LayerError, match="paths and links have more than 256000 bytes") as caught:
        merged(
            tar(
                pax({b"path": deep}),
                directory(b"x"),
                pax({b"linkpath": deep}),
                symlink(b"l", b"x"),
                *(member(b"l/%d" % n) for n in range(100)),
            ),
            limit=1000,
        )
    assert "--max-entries" in caught.value.hint
    with pytest.raises(LayerError, match="paths and links"):
        merged(tar(*(one for n in range(100) for one in (pax({b"linkpath": b"t/" * 2000}), symlink(b"%d" % n, b"x")))), limit=1000)


def test_work_is_bounded() -> None:
    chain = [symlink(b"l0", b"d"), *(symlink(b"l%d" % n, b"./" * 40 + b"l%d" % (n - 1)) for n in range(1, 39)), directory(b"d")]
    with pytest.raises(LayerError, match="lead through more than 64000"):
        merged(tar(*chain, *(member(b"l38/%d" % n) for n in range(500))), limit=1000)
    with pytest.raises(LayerError, match="lead through more than 64000"):
        merged(tar(*(member(b"%d" % n) for n in range(500)), *[member(b".wh..wh..opq")] * 400), limit=1000)


def test_a_walk_holds_one_path() -> None:
    """Of 5,000 names in a deep directory, whose paths together take 20 MB."""
    tree = Tree(1)
    node = tree.root
    for _ in range(16):
        node.children[b"n" * 250] = node = new_dir()
    node.children |= {b"%d" % n: new_dir() for n in range(5000)}
    tracemalloc.start()
    try:
        longest = max(len(path) for path, _ in tree.walk())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert longest > 4000
    assert peak < 2 << 20


def test_too_many_names_of_several_layers() -> None:
    names = [tar(*(member(b"%d/%d" % (layer, n)) for n in range(600))) for layer in range(2)]
    with pytest.raises(LayerError, match="more than 1000 names") as caught:
        merged(*names, limit=1000)
    assert "--max-entries" in caught.value.hint


def test_split_refuses_what_is_above() -> None:
    assert split(b"//a/./b/../c/") == [b"a", b"c"]
    with pytest.raises(LayerError):
        split(b"a/../..")


def test_put_never_follows_a_link_at_the_end() -> None:
    tree = Tree()
    tree.put(b"a", Inode(mode=0o120777, content=b"/b"))
    tree.put(b"a", Inode(mode=0o100644, content=b"new"))
    assert tree.find(b"b") is None


# --- blobs: compression, digests, limits ---


def _layer(tmp_path: Path, packed: bytes, data: bytes, **wrong: str) -> Layer:
    path = tmp_path / "blob"
    path.write_bytes(packed)
    return Layer(path=path, digest=wrong.get("digest", digest(packed)), diff_id=wrong.get("diff_id", digest(data)))


def _pack(data: bytes, compression: str) -> bytes:
    match compression:
        case "gzip":
            return gzip.compress(data)
        case "zstd":
            return zstandard.ZstdCompressor().compress(data)
        case "many gzip members":
            return b"".join(gzip.compress(data[at : at + 100]) for at in range(0, len(data), 100))
        case "many zstd frames":
            return b"".join(zstandard.ZstdCompressor().compress(data[at : at + 100]) for at in range(0, len(data), 100))
        case _:
            return data


def test_layers_are_unpacked_side_by_side_and_counted_together(tmp_path: Path) -> None:
    data = [tar(member(b"%d" % number, bytes(1 << 20)), member(b"same", b"%d" % number)) for number in range(8)]
    layers = []
    for number, one in enumerate(data):
        path = tmp_path / str(number)
        path.write_bytes(gzip.compress(one))
        layers.append(Layer(path=path, digest=digest(path.read_bytes()), diff_id=digest(one)))
    with Spools(tmp_path) as spools:
        tree = merge(layers, spools, Limits())
        assert [path for path, _ in tree.walk()] == [b"%d" % number for number in range(8)] + [b"same"]
        last = tree.find(b"same")
        assert last is not None
        assert spools.read(last.inode.content) == b"7"
    with Spools(tmp_path) as spools, pytest.raises(LayerError, match="the layers unpack to more than 8000000 bytes"):
        merge(layers, spools, Limits(unpacked=8_000_000))
    layers[3] = dataclasses.replace(layers[3], diff_id=digest(b"other"))
    with Spools(tmp_path) as spools, pytest.raises(LayerError, match="its tar hashes to"):
        merge(layers, spools, Limits())


def _merge(tmp_path: Path, layer: Layer, limits: Limits | None = None) -> bytes:
    with Spools(tmp_path) as spools:
        tree = merge([layer], spools, limits or Limits())
        node = tree.find(b"a")
        assert node is not None
        assert [path.name for path in tmp_path.iterdir()] == ["blob"]  # nothing of a layer has a name on the host
        return spools.read(node.inode.content)


@pytest.mark.parametrize("packing", ["none", "gzip", "zstd", "many gzip members", "many zstd frames"])
def test_every_compression_is_read(tmp_path: Path, packing: str) -> None:
    contents = hashlib.shake_256(b"seed").digest(3_000_000 if packing in ("none", "gzip", "zstd") else 3_000)
    data = tar(member(b"a", contents))
    layer = _layer(tmp_path, _pack(data, packing), data)
    assert _merge(tmp_path, layer) == contents


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("which", ["digest", "diff_id"])
def test_a_wrong_digest_is_refused(tmp_path: Path, compression: str, which: str) -> None:
    data = tar(member(b"a", b"x"))
    layer = _layer(tmp_path, _pack(data, compression), data, **{which: digest(b"other")})
    with pytest.raises(LayerError, match=f"its {'blob' if which == 'digest' else 'tar'} hashes to"):
        _merge(tmp_path, layer)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_truncated_blob_is_refused(tmp_path: Path, compression: str, cut: int) -> None:
    data = tar(member(b"a", hashlib.shake_256(b"seed").digest(100_000)))
    packed = _pack(data, compression)[:-cut]
    with pytest.raises(LayerError):
        _merge(tmp_path, _layer(tmp_path, packed, data))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("junk", [b"", b"junk" * 100, b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"])
def test_junk_is_refused(tmp_path: Path, compression: str, junk: bytes) -> None:
    with pytest.raises(LayerError):
        _merge(tmp_path, _layer(tmp_path, junk, b"something"))


@pytest.mark.parametrize("packed", [b"\xfd7zXZ\0" + bytes(600), b"BZh91AY" + bytes(600), b"%PDF" * 200])
def test_what_is_no_packed_tar_is_named(tmp_path: Path, packed: bytes) -> None:
    with pytest.raises(LayerError, match="neither a tar nor one packed by gzip or zstd"):
        _merge(tmp_path, _layer(tmp_path, packed, b""))


def test_a_tar_whose_first_name_looks_like_gzip(tmp_path: Path) -> None:
    data = tar(member(b"\x1f\x8b\x08"), member(b"a", b"x"))
    assert _merge(tmp_path, _layer(tmp_path, data, data)) == b"x"


def test_a_skippable_frame_first(tmp_path: Path) -> None:
    data = tar(member(b"a", b"x"))
    packed = b"\x50\x2a\x4d\x18\x04\0\0\0note" + _pack(data, "zstd")
    assert _merge(tmp_path, _layer(tmp_path, packed, data)) == b"x"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_is_noticed_before_it_has_grown(tmp_path: Path, compression: str) -> None:
    data = bytes(80 << 20)
    layer = _layer(tmp_path, _pack(data, compression), data)
    with pytest.raises(LayerError, match="200 times its size") as caught:
        _merge(tmp_path, layer)
    assert "--max-ratio" in caught.value.hint
    with pytest.raises(LayerError, match="more than 1048576 bytes") as caught:
        _merge(tmp_path, layer, Limits(unpacked=1 << 20))
    assert "--max-unpacked" in caught.value.hint


def test_a_zstd_window_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    data = tar(member(b"a", b"x"))
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = stream.compress(data) + stream.flush()
    with pytest.raises(LayerError, match="damaged"):
        _merge(tmp_path, _layer(tmp_path, packed, data))


def test_an_error_names_the_layer(tmp_path: Path) -> None:
    data = tar(member(b"../x"))
    layer = _layer(tmp_path, data, data)
    with Spools(tmp_path) as spools, pytest.raises(LayerError, match=layer.digest):
        merge([layer], spools, Limits())
