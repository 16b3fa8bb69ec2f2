"""What the tests of imagegen make images of: raw tar members, as odd as they come, and OCI
layouts.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zstandard

from mayfly.imagegen.languages import Language, parse_language
from mayfly.imagegen.oci.documents import MACHINE_TO_GOARCH
from mayfly.imagegen.rootfs.layers import apply_layer
from mayfly.imagegen.rootfs.spools import Limits
from mayfly.imagegen.rootfs.tree import Content, Extent, Tree

BLOCK = 512
TOY_VERSION = b"etc/toy-version"
"""Where `toy_language` finds its version in an image."""
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


def toy_language(**fields: object) -> Language:
    """A language, of a file that has these fields besides the least that it must have."""
    usual = {
        "name": "toy",
        "image": "docker.io/library/toy:1",
        "extensions": [".toy"],
        "source_file": "main.toy",
        "version": [{"file": TOY_VERSION.decode(), "pattern": "([0-9.]+)"}],
        "working_memory_mib": 7,
        "steps": [{"name": "run", "argv": ["toy"]}],
        "prune": [],
    }
    return parse_language(json.dumps({**usual, **fields}).encode(), "toy.yaml")


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    size: bytes | int = 0,
    link: bytes = b"",
    mode: bytes | int = 0o644,
    uid: bytes | int = 0,
    gid: bytes | int = 0,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One tar header; numbers given as bytes go in as they are."""

    def octal(value: bytes | int, width: int) -> bytes:
        return value.ljust(width, b"\0") if isinstance(value, bytes) else b"%0*o\0" % (width - 1, value)

    block = name.ljust(100, b"\0") + octal(mode, 8) + octal(uid, 8) + octal(gid, 8) + octal(size, 12) + octal(0, 12)
    block += b" " * 8 + kind + link.ljust(100, b"\0") + magic + bytes(64) + bytes(16) + prefix.ljust(155, b"\0")
    block = block.ljust(BLOCK, b"\0")
    return block[:148] + (checksum or b"%06o\0 " % sum(block)) + block[156:]


def member(name: bytes, data: bytes = b"", kind: bytes = b"0", **fields: Any) -> bytes:
    """A header with contents."""
    return header(name, kind, size=fields.pop("size", len(data)), **fields) + data + bytes(-len(data) % BLOCK)


def directory(name: bytes, **fields: Any) -> bytes:
    """A directory."""
    return member(name, kind=b"5", mode=fields.pop("mode", 0o755), **fields)


def symlink(name: bytes, target: bytes) -> bytes:
    """A symbolic link."""
    return member(name, kind=b"2", link=target, mode=0o777)


def hard_link(name: bytes, target: bytes) -> bytes:
    """A hard link."""
    return member(name, kind=b"1", link=target)


def pax(records: dict[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A pax extended header."""
    body = b""
    for key, value in records.items():
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        body += str(length).encode() + rest
    return member(b"pax", body, kind)


def tar(*members: bytes) -> bytes:
    """Members with the end-of-archive blocks."""
    return b"".join(members) + bytes(2 * BLOCK)


def merged(*layers: bytes, limit: int = Limits.entries) -> Tree:
    """The tree of some uncompressed tars."""
    tree = Tree(limit)
    for number, data in enumerate(layers, start=1):
        apply_layer(tree, number, functools.partial(_slice, data), len(data), number - 1, limit)
    return tree


def _slice(data: bytes, at: int, size: int) -> bytes:
    return data[at : at + size]


def listing(tree: Tree, layers: Sequence[bytes]) -> dict[str, str]:
    """Path -> what is there: `dir 755`, `file 644 contents`, `-> target`, `fifo`, `device`."""
    kinds = {0o040000: "dir", 0o100000: "file", 0o120000: "->", 0o010000: "fifo", 0o020000: "device"}
    result = {}
    for path, node in tree.walk():
        kind = kinds[node.inode.mode & 0o170000]
        text = contents(node.inode.content, layers).decode("latin-1")
        if kind == "->":
            result[path.decode("latin-1")] = f"-> {text}"
        else:
            result[path.decode("latin-1")] = f"{kind} {node.inode.mode & 0o7777:o} {text}".rstrip()
    return result


def contents(content: Content, layers: Sequence[bytes]) -> bytes:
    """The bytes of a file whose spool is a tar in `layers`."""
    if isinstance(content, Extent):
        result, at = bytearray(content.size), content.offset
        for start, size in ((0, content.size),) if content.pieces is None else content.pieces:
            result[start : start + size] = layers[content.spool][at : at + size]
            at += size
        return bytes(result)
    return content


def digest(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of some bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CpioEntry:
    """An entry of a newc archive, as read back."""

    at: int
    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    data: bytes


def read_cpio(archive: bytes) -> list[CpioEntry]:
    """Parse a newc archive to its end, the trailer included; every padding byte must be 0."""
    entries = []
    at = 0
    while at < len(archive):
        start = at
        assert archive[at : at + 6] == b"070701"
        ino, mode, uid, gid, nlink, mtime, size, *devices, name_size, check = (
            int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)
        )
        assert devices == [0, 0, 0, 0]
        assert check == 0
        at += 110
        name = archive[at : at + name_size]
        assert name.endswith(b"\0")
        at += name_size
        at += _padding(archive, at)
        data = archive[at : at + size]
        at += size
        at += _padding(archive, at)
        entry = CpioEntry(at=start, name=name[:-1], ino=ino, mode=mode, uid=uid, gid=gid, nlink=nlink, mtime=mtime, data=data)
        entries.append(entry)
    assert entries[-1].name == b"TRAILER!!!"
    return entries


def _padding(archive: bytes, at: int) -> int:
    size = -at % 4
    assert archive[at : at + size] == bytes(size)
    return size


class LayoutMaker:
    """Writes an OCI layout of small images, with digests of one algorithm."""

    def __init__(self, folder: Path, algorithm: str = "sha256") -> None:
        self.folder = folder
        self.algorithm = algorithm
        self.blobs = folder / "blobs" / algorithm
        self.blobs.mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Keep a blob; its descriptor."""
        found = digest(data, self.algorithm)
        (self.blobs / found.partition(":")[2]).write_bytes(data)
        return {"mediaType": media_type, "digest": found, "size": len(data)}

    def document(self, value: object, media_type: str) -> dict[str, Any]:
        """Keep a JSON document; its descriptor."""
        return self.blob(json.dumps(value, sort_keys=True).encode(), media_type)

    def layer(self, data: bytes, compression: str = "gzip", docker: bool = False) -> tuple[dict[str, Any], str]:
        """Keep a tar; its descriptor and diff_id."""
        packed = {
            "gzip": lambda: gzip.compress(data, mtime=0),
            "zstd": lambda: zstandard.ZstdCompressor().compress(data),
            "none": lambda: data,
        }[compression]()
        base = DOCKER_LAYER if docker else OCI_LAYER
        suffix = "" if compression == "none" else f"{'.' if docker else '+'}{compression}"
        return self.blob(packed, base + suffix), digest(data, self.algorithm)

    def image(
        self,
        layers: list[tuple[dict[str, Any], str]],
        arch: str = "amd64",
        docker: bool = False,
        env: Sequence[str] = (),
        working_dir: str = "",
    ) -> dict[str, Any]:
        """Keep configuration and manifest; the manifest's descriptor with its platform."""
        config = {
            "os": "linux",
            "architecture": arch,
            "config": {"Env": list(env), "WorkingDir": working_dir},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        }
        media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
        config_type = "application/vnd.docker.container.image.v1+json" if docker else "application/vnd.oci.image.config.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self.document(config, config_type),
            "layers": [descriptor for descriptor, _ in layers],
        }
        return {**self.document(manifest, media_type), "platform": {"os": "linux", "architecture": arch}}

    def index(self, entries: list[dict[str, Any]], docker: bool = False) -> dict[str, Any]:
        """Keep an index; its descriptor."""
        media_type = DOCKER_INDEX if docker else OCI_INDEX
        return self.document({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}, media_type)

    def finish(self, descriptor: dict[str, Any], tag: str = "latest") -> Path:
        """Write the layout's index with this one image or index; the layout's folder."""
        entry = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}))
        return self.folder


def layout_of(folder: Path, layer: bytes) -> Path:
    """An OCI layout of an image for this machine, with this tar for its only layer."""
    maker = LayoutMaker(folder)
    return maker.finish(maker.image([maker.layer(layer)], MACHINE_TO_GOARCH[platform.machine()]))
