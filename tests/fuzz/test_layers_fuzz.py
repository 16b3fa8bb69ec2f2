"""Whatever bytes a layer has, merging it gives a tree or a LayerError, within bounded time and
memory, and writes no file.

Mutations of real tars (bytes changed, cut, doubled, swapped; checksums mended so that the change is
read) from a fixed seed."""

import random

import pytest

from mayfly.errors import ImageError, LayerError
from mayfly.imagegen.rootfs.cpio import write_cpio
from mayfly.imagegen.rootfs.tree import Content
from tests.kit.imagegen_kit import BLOCK, contents, directory, hard_link, header, member, merged, pax, read_cpio, symlink, tar
from tests.kit.scale import scaled

ROUNDS = scaled(100_000)
SHARDS = 4

SEEDS = (
    tar(directory(b"d"), member(b"d/a", b"x" * 700), symlink(b"l", b"d"), member(b"l/b", b"y"), hard_link(b"h", b"d/a")),
    tar(pax({b"path": b"p/q", b"size": b"3", b"uid": b"70000"}), member(b"x", b"abc"), member(b"d/.wh.a"), member(b"p/.wh..wh..opq")),
    tar(
        member(b"././@LongLink", b"n" * 300 + b"/m\0", kind=b"L"),
        member(b"s", b"1"),
        member(b"././@LongLink", b"t\0", kind=b"K"),
        symlink(b"u", b"v"),
    ),
    tar(
        pax({b"comment": b"c" * 600, b"SCHILY.xattr.user.x": b"\n9 x=y\n"}),
        pax({b"path": b"pp/" * 90 + b"f", b"gid": b"-2", b"mtime": b"-1e99"}),
        member(b"x", b"1"),
        pax({b"path": b"g", b"size": b"1"}, kind=b"g"),
        member(b"y", b"n" * 900, kind=b"L"),
        pax({b"linkpath": b"pp/pp", b"path": b""}),
        symlink(b"up", b"v"),
        pax({b"uname": b"\xff\0"}),
        hard_link(b"again", b"up"),
    ),
    tar(header(b"big", size=b"\x80" + bytes(10) + b"\x02") + b"zz".ljust(BLOCK, b"\0"), member(b"f", kind=b"6"), member(b"c", kind=b"3")),
    tar(
        pax({b"GNU.sparse.map": b"1,2,9,1", b"GNU.sparse.size": b"40", b"GNU.sparse.name": b"sparse"}),
        member(b"x", b"abc"),
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"600"}),
        member(b"y", b"2\n1\n2\n500\n3\n".ljust(BLOCK, b"\0") + b"abcde"),
        member(b"z", kind=b"S"),
    ),
)
MAX_HOLES = 1 << 20
"""Spools refuse what has more, by --max-unpacked; here it is passed over."""
SPLICES = (
    *(b"12 path=a/b\n", b"9 size=1\n", b"20 linkpath=up/up/u\n", b"8 uid=-\n", b"0 \n", b"99999999999 ", b"999999 path=", b"6 a=\n\n"),
    b"..",
    b"/",
    b"\0",
    b".wh.",
    b".wh..wh..opq",
    b"../",
    b"l/",
    b"\xff\xff",
    b"7" * 11,
    b"-1",
    b"99 ",
    b"GNU.sparse.major=1\n",
)


def _mutate(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed))
        match rng.randrange(6):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                splice = rng.choice(SPLICES)
                changed[at : at + len(splice)] = splice
            case 2:
                start = at - at % BLOCK
                changed[start:start] = changed[start : start + BLOCK]
            case 3:
                del changed[at - at % BLOCK : at - at % BLOCK + BLOCK]
                if not changed:
                    return b""
            case 4:
                one, other = (rng.randrange(len(changed) // BLOCK or 1) * BLOCK for _ in range(2))
                changed[one : one + BLOCK], changed[other : other + BLOCK] = changed[other : other + BLOCK], changed[one : one + BLOCK]
            case _:
                # The type, the size or the name of some header.
                start = at - at % BLOCK + rng.choice((156, 124, 0, 157))
                changed[start : start + 1] = rng.choice(
                    (b"0", b"1", b"2", b"5", b"x", b"g", b"K", b"L", b"7", b"S", b"/", b".", b"\0", b"\x80")
                )
    if rng.random() < 0.1:
        del changed[rng.randrange(len(changed)) :]
    if rng.random() < 0.8:
        _mend(changed)
    return bytes(changed)


def _mend(data: bytearray) -> None:
    """Give every block that looks like a header its right checksum."""
    for at in range(0, len(data) - BLOCK + 1, BLOCK):
        if data[at + 257 : at + 262] == b"ustar":
            total = sum(data[at : at + 148]) + 8 * 32 + sum(data[at + 156 : at + BLOCK])
            data[at + 148 : at + 156] = b"%06o\0 " % total


@pytest.mark.parametrize("shard", range(SHARDS))
def test_mutated_layers_give_a_tree_or_a_layer_error(shard: int) -> None:
    rng = random.Random(shard)
    trees = errors = 0
    for _ in range(ROUNDS // SHARDS):
        layers = [_mutate(rng, rng.choice(SEEDS)) if rng.random() < 0.8 else rng.choice(SEEDS) for _ in range(rng.randint(1, 3))]
        try:
            tree = merged(*layers, limit=1000)
        except LayerError:
            errors += 1
            continue
        trees += 1
        if sum(node.inode.size for node in tree.nodes()) > MAX_HOLES:
            continue
        pieces: list[bytes] = []

        def chunks(content: Content, layers: list[bytes] = layers) -> list[bytes]:
            return [contents(content, layers)]

        try:
            write_cpio(tree, lambda content: iter(chunks(content)), pieces.append)
        except ImageError:
            continue
        for entry in read_cpio(b"".join(pieces))[:-1]:
            assert b".." not in entry.name.split(b"/")
            assert not entry.name.startswith(b"/")
    # A fuzz of nothing but refusals, or of none, would test nothing.
    assert trees > ROUNDS // SHARDS // 20
    assert errors > ROUNDS // SHARDS // 20
