"""Debian's packages in images of C, from an archive on loopback: what is taken, where it goes, what
is refused.
"""

import io
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.errors import ConfigError, ImageError, LayerError, MayflyError, RegistryError
from mayfly.imagegen.build import Built
from mayfly.imagegen.languages import load_language
from mayfly.imagegen.packages.archives import unpack_deb
from mayfly.imagegen.rootfs.unpack import unpack
from tests.kit.imagegen_kit import CpioEntry, directory, layout_of, member, read_cpio, symlink, tar, toy_language
from tests.kit.package_kit import PackageServer, build_with, deb

pytestmark = pytest.mark.usefixtures("own_folders")
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
LIB = f"usr/lib/{platform.machine()}-linux-gnu".encode()
LANGUAGE = toy_language(packages={"kind": "deb", "registry": "http://127.0.0.1:1"}, prune=["var", "usr/share", "**/libpruned*"])
STATUS = b"""Package: libc6
Status: install ok installed
Version: 2.41-1
Architecture: all

Package: libpruned1
Status: install ok installed
Version: 1.0-1
Architecture: all

Package: libold1
Status: install ok installed
Version: 0.9-1
Architecture: all
"""
BASE = tar(
    member(b"etc/toy-version", b"14.2"),
    symlink(b"etc/os-release", b"../usr/lib/os-release"),
    member(b"usr/lib/os-release", b"ID=debian\nVERSION_CODENAME=trixie\n"),
    symlink(b"lib", b"usr/lib"),
    member(LIB + b"/libc.so.6", b"libc"),
    member(LIB + b"/libpruned.so.1", b"pruned"),
    member(LIB + b"/libold.so.1", b"old"),
    member(b"var/lib/dpkg/status", STATUS),
    member(b"var/lib/dpkg/info/libc6.list", b"/." + b"\n/" + LIB + b"/libc.so.6\n/usr/share/doc/libc6/copyright\n"),
    member(b"var/lib/dpkg/info/libpruned1.list", b"/" + LIB + b"/libpruned.so.1\n"),
    member(b"var/lib/dpkg/info/libold1.list", b"/" + LIB + b"/libold.so.1\n"),
)
ZLIB = tar(
    directory(b"./"),
    directory(b"./lib/"),
    member(b"./lib/%s-linux-gnu/libz.so.1.3" % platform.machine().encode(), b"z"),
    symlink(b"./" + LIB + b"/libz.so.1", b"libz.so.1.3"),
    member(b"./usr/share/doc/zlib1g/copyright", b"text"),
)
ZLIB_DEV = tar(
    member(b"./usr/include/zlib.h", b"#define Z 1"),
    symlink(b"./" + LIB + b"/libz.so", b"libz.so.1.3"),
    symlink(b"./" + LIB + b"/libz-extra.so", b"libz.so"),
    member(b"./usr/share/man/man3/zlib.3.gz", b"text"),
)
EMPTY = tar(directory(b"./"))
DEBS = [
    ({"Package": "zlib1g", "Version": "1:1.3-1", "Depends": "libc6 (>= 2.14)"}, deb(ZLIB)),
    (
        {"Package": "zlib1g-dev", "Version": "1:1.3-1", "Pre-Depends": "zlib1g (= 1:1.3-1)", "Depends": "libc6-dev | libc-dev"},
        deb(ZLIB_DEV, "zst"),
    ),
    ({"Package": "libc6", "Version": "2.41-9"}, deb(EMPTY)),
    ({"Package": "musl-dev", "Version": "1.2", "Provides": "libc-dev (= 1.2), other"}, deb(EMPTY, "gz")),
    ({"Package": "libpruned1", "Version": "1.0-1"}, deb(tar(member(b"./" + LIB + b"/libpruned.so.1", b"pruned")))),
    ({"Package": "libold1", "Version": "1.0-1"}, deb(EMPTY)),
    ({"Package": "all", "Version": "1", "Depends": "libpruned1, libold1 (= 1.0-1), libc6:any (>= 9), musl-dev, libc-dev"}, deb(EMPTY)),
    ({"Package": "broken", "Version": "1", "Depends": "nowhere (>= 2)"}, deb(EMPTY)),
    ({"Package": "round", "Version": "1", "Depends": "about"}, deb(EMPTY)),
    ({"Package": "about", "Version": "1", "Depends": "round"}, deb(EMPTY)),
]


@pytest.fixture
def server() -> Iterator[PackageServer]:
    with PackageServer() as server:
        server.add_debs(DEBS, "trixie", ARCH)
        yield server


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return layout_of(tmp_path / "layout", BASE)


def _build(layout: Path, server: PackageServer, *packages: str, **changes: object) -> Built:
    return build_with(LANGUAGE, layout, f"{server.address}/debian", *packages, **changes)


def _entries(built: Built) -> dict[bytes, CpioEntry]:
    return {entry.name: entry for entry in read_cpio((built.folder / "initramfs").read_bytes())}


def test_libraries_and_headers_are_in_the_image(layout: Path, server: PackageServer) -> None:
    """And neither its documentation, nor anything where a link to a folder was."""
    built = _build(layout, server, "zlib1g-dev")
    assert [(package.kind, package.name, package.version) for package in built.manifest.packages] == [
        ("deb/debian", "musl-dev", "1.2"),
        ("deb/debian", "zlib1g", "1:1.3-1"),
        ("deb/debian", "zlib1g-dev", "1:1.3-1"),
    ]
    entries = _entries(built)
    assert entries[b"usr/include/zlib.h"].data == b"#define Z 1"
    assert entries[LIB + b"/libz.so.1.3"].data == b"z"
    assert entries[b"lib"].data == b"usr/lib"
    assert not [name for name in entries if b"/doc/" in name or b"/man/" in name]
    assert entries[b"usr/lib/mayfly/libraries"].data == b"-Wl,--as-needed -lz -lz-extra\n"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["zlib1g"], ["zlib1g"]),  # libc6 is there
        (["zlib1g=1:1.3-1", "zlib1g"], ["zlib1g"]),
        (["all"], ["all", "libold1", "libpruned1", "musl-dev"]),  # one was pruned, one is too old
        (["round"], ["about", "round"]),
    ],
)
def test_what_is_needed_and_not_there_comes_too(layout: Path, server: PackageServer, wanted: list[str], found: list[str]) -> None:
    assert [package.name for package in _build(layout, server, *wanted).manifest.packages] == found


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("nothing", ImageError, "the suite has no package 'nothing'"),
        ("zlib1g=2", ImageError, "the suite has zlib1g 1:1.3-1, not 2"),
        ("broken", ImageError, r"broken needs nowhere \(>= 2\), which the suite has not"),
        ("Zlib", ConfigError, "is not a name of Debian's"),
        ("../x", ConfigError, "is not a name of Debian's"),
    ],
)
def test_what_cannot_be_had_is_said(layout: Path, server: PackageServer, wanted: str, error: type[MayflyError], message: str) -> None:
    with pytest.raises(error, match=message):
        _build(layout, server, wanted)


def test_an_archive_that_is_damaged_or_lies(layout: Path, server: PackageServer) -> None:
    server.pages["/debian/pool/main/zlib1g_1:1.3-1.deb"] = deb(EMPTY)
    with pytest.raises(RegistryError, match="hashes to"):
        _build(layout, server, "zlib1g")
    server.add_debs([({"Package": "bad", "Version": "1"}, deb(tar(member(b"./../../etc/passwd", b"x"))))], "trixie", ARCH)
    with pytest.raises(LayerError, match=r"leads above the root"):
        _build(layout, server, "bad")
    server.pages["/debian/dists/trixie/InRelease"] = b"Suite: trixie\nSHA256:\n"
    with pytest.raises(RegistryError, match=r"names no main/binary-"):
        _build(layout, server, "round")
    del server.pages["/debian/dists/trixie/InRelease"]
    with pytest.raises(RegistryError, match=r"is not a suite of Debian's"):
        _build(layout, server, "round")


@pytest.mark.parametrize(
    "data", [b"", b"!<arch>\n", deb(EMPTY)[:-40], deb(EMPTY).replace(b"data.tar.xz", b"data.tar.xx"), deb(EMPTY).replace(b"`\n", b"``")]
)
def test_damaged_packages_are_refused(data: bytes) -> None:
    with pytest.raises(LayerError, match="is damaged"):
        list(unpack_deb(io.BytesIO(data)))


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc on this host")
def test_a_snippet_links_with_what_came(layout: Path, server: PackageServer, tmp_path: Path) -> None:
    """By the language's own build step, against a real library."""
    (tmp_path / "seven.c").write_text("int seven(void) { return 7; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libseven.so", tmp_path / "seven.c"], check=True)
    library = (tmp_path / "libseven.so").read_bytes()
    data = tar(member(b"./" + LIB + b"/libseven.so", library), member(b"./usr/include/seven.h", b"int seven(void);\n"))
    server.add_debs([({"Package": "libseven-dev", "Version": "1"}, deb(data))], "trixie", ARCH)
    unpack(_build(layout, server, "libseven-dev").folder, tmp_path / "root")
    step = load_language("c").steps[0]
    script = step.argv[2].replace("/usr/lib/mayfly", str(tmp_path / "root/usr/lib/mayfly"))
    (tmp_path / "main.c").write_text('#include <seven.h>\n#include <stdio.h>\nint main(void) { printf("%d\\n", seven()); }\n')
    (tmp_path / "seven.c").unlink()
    root = [f"-I{tmp_path}/root/usr/include", f"-L{tmp_path}/root/{LIB.decode()}"]
    done = subprocess.run(["sh", "-c", script, "sh", "default", *root], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = subprocess.run([tmp_path / "main"], env={"LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert run.stdout == "7\n"


def test_the_manifest_tells_both_kinds_of_packages(layout: Path, server: PackageServer) -> None:
    manifest = json.loads((_build(layout, server, "zlib1g").folder / "manifest.json").read_text())
    assert manifest["system"] == {"libc6": "2.41-1", "libold1": "0.9-1"}
    assert [package["name"] for package in manifest["packages"]] == ["zlib1g"]
    newer = json.loads((_build(layout, server, "libold1").folder / "manifest.json").read_text())
    assert newer["system"] == {"libc6": "2.41-1"}
