"""Python's packages in images: what is chosen, where it goes, and what is refused. The index is on
loopback; some of its wheels are real ones, packed again as they are installed here.
"""

import io
import platform
import stat
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mayfly.cli.image import cli
from mayfly.errors import ConfigError, ImageError, LayerError, MayflyError, RegistryError
from mayfly.imagegen.build import Built
from mayfly.imagegen.languages import load_language
from mayfly.imagegen.rootfs.spools import Limits
from mayfly.imagegen.rootfs.unpack import unpack
from mayfly.images.manifest import load
from tests.kit.imagegen_kit import CpioEntry, directory, layout_of, member, read_cpio, tar, toy_language
from tests.kit.package_kit import PackageServer, build_with, pack, packed_again, wheel

pytestmark = pytest.mark.usefixtures("own_folders")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"usr/local/lib/python{PYTHON}/site-packages"
LANGUAGE = toy_language(packages={"kind": "wheels", "registry": "http://127.0.0.1:1/simple"}, prune=["usr/local/bin"])
LIBC = member(
    f"usr/lib/{platform.machine()}-linux-gnu/libc.so.6".encode(), b"\0GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\n"
)
BASE = tar(member(b"etc/toy-version", PYTHON.encode()), LIBC, member(f"usr/local/lib/python{PYTHON}/os.py".encode()))


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return layout_of(tmp_path / "layout", BASE)


def _build(layout: Path, server: PackageServer, *packages: str, **changes: object) -> Built:
    return build_with(LANGUAGE, layout, f"{server.address}/simple/", *packages, **changes)


def _entries(built: Built) -> dict[str, CpioEntry]:
    return {entry.name.decode(): entry for entry in read_cpio((built.folder / "initramfs").read_bytes())}


def _versions(built: Built) -> dict[str, str]:
    return {package.name: package.version for package in built.manifest.packages}


def test_real_wheels_are_imported_from_an_image(layout: Path, server: PackageServer, tmp_path: Path) -> None:
    """One of them is machine code for this Python alone; their files are root's and read-only."""
    server.add_wheels(dict(map(packed_again, ("msgspec", "idna"))))
    server.add_wheels({"app-1.0-py3-none-any.whl": wheel("app", "1.0", ["msgspec>=0.18", "IDNA (>2)"])})
    built = _build(layout, server, "app")
    assert list(_versions(built)) == ["app", "idna", "msgspec"]
    unpack(built.folder, tmp_path / "root")
    script = (
        "import app, idna, importlib.metadata, msgspec; print(app.version, msgspec.json.decode(b'[7]'), importlib.metadata.version('app'))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(tmp_path / 'root' / SITE)!r}); {script}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1.0 [7] 1.0\n", "")
    ours = [entry for name, entry in _entries(built).items() if name.startswith(f"{SITE}/")]
    assert {(entry.uid, entry.gid, entry.mode & 0o022) for entry in ours} == {(0, 0, 0)}


def test_the_manifest_pins_what_was_found(layout: Path, server: PackageServer) -> None:
    one = wheel("one", "1.5")
    server.add_wheels({"one-1.5-py3-none-any.whl": one})
    built = _build(layout, server, "one")
    (package,) = load(built.folder).packages
    assert (package.kind, package.name, package.version, package.license) == ("pypi", "one", "1.5", "MIT")
    assert package.source == f"{server.address}/files/one-1.5-py3-none-any.whl"
    assert package.digest.startswith("sha256:")
    assert _entries(built)[f"{SITE}/one/__init__.py"].data == b"version = '1.5'\n"


def test_what_was_built_stays_until_it_is_forced(layout: Path, server: PackageServer) -> None:
    server.add_wheels({"one-1.0-py3-none-any.whl": wheel("one", "1.0")})
    assert _build(layout, server, "one").fresh
    server.add_wheels({"one-2.0-py3-none-any.whl": wheel("one", "2.0")})
    assert not _build(layout, server, "one").fresh
    assert _versions(_build(layout, server, "one", force=True)) == {"one": "2.0"}
    assert _versions(_build(layout, server, "one<2")) == {"one": "1.0"}
    assert _versions(_build(layout, server)) == {}
    server.pages.clear()
    assert _versions(_build(layout, server, "one<2", offline=True, force=True)) == {"one": "1.0"}
    with pytest.raises(RegistryError, match="is not in the cache"):
        _build(layout, server, "two", offline=True)


SET = {
    "a-1.0-py3-none-any.whl": wheel("a", "1.0", ["c<2"]),
    "a-2.0-py3-none-any.whl": wheel("a", "2.0", ["c>=2"]),
    "a-3.0rc1-py3-none-any.whl": wheel("a", "3.0rc1"),
    "b-1.0-py3-none-any.whl": wheel("b", "1.0", ["c<2"]),
    "c-1.0-py3-none-any.whl": wheel("c", "1.0"),
    "c-2.0-py3-none-any.whl": wheel("c", "2.0"),
    "d-1.0-py3-none-any.whl": wheel("d", "1.0", ["c; extra == 'more'", "b; sys_platform == 'win32'", "a[x]; python_version >= '3'"]),
    "e-1.0-py3-none-any.whl": wheel("e", "1.0", ["f"]),
    "f-1.0-py3-none-any.whl": wheel("f", "1.0", ["e"]),
}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["a"], {"a": "2.0", "c": "2.0"}),
        (["a", "b"], {"a": "1.0", "b": "1.0", "c": "1.0"}),  # the newest a does not go with b
        (["b", "a"], {"a": "1.0", "b": "1.0", "c": "1.0"}),
        (["a==3.0rc1"], {"a": "3.0rc1"}),
        (["A == 1.*", "c"], {"a": "1.0", "c": "1.0"}),
        (["d", "b"], {"a": "1.0", "b": "1.0", "c": "1.0", "d": "1.0"}),
        (["d[more]"], {"a": "2.0", "c": "2.0", "d": "1.0"}),
        (["a<2; python_version < '3'", "b; sys_platform == 'linux'"], {"b": "1.0", "c": "1.0"}),
        (["e"], {"e": "1.0", "f": "1.0"}),  # they need each other
    ],
)
def test_packages_that_fit_together(layout: Path, server: PackageServer, wanted: list[str], found: Mapping[str, str]) -> None:
    server.add_wheels(SET)
    assert _versions(_build(layout, server, *wanted)) == found
    assert len([path for path in server.asked if path.endswith(".whl")]) == len(found)


def test_the_best_wheel_for_the_image_is_taken(layout: Path, server: PackageServer) -> None:
    """Not one for a newer C library, another machine, another Python; a yanked one only by name."""
    arch, minor = platform.machine(), sys.version_info.minor
    names = [
        f"p-1.0-cp3{minor}-cp3{minor}-manylinux_2_36_{arch}.whl",
        f"p-1.0-cp3{minor}-cp3{minor}-manylinux_2_17_{arch}.manylinux2014_{arch}.whl",
        "p-1.0-py3-none-any.whl",
        f"p-1.1-cp3{minor}-cp3{minor}-manylinux_2_39_{arch}.whl",
        f"p-1.2-cp3{minor + 1}-cp3{minor + 1}-manylinux_2_17_{arch}.whl",
        f"p-1.3-cp3{minor}-cp3{minor}-manylinux_2_17_s390x.whl",
        f"p-1.4-cp3{minor}-cp3{minor}-musllinux_1_2_{arch}.whl",
    ]
    server.add_wheels({name: wheel("p", name.split("-")[1]) for name in names}, metadata=False)
    newer: dict[str, Any] = {"requires-python": ">=3.99"}
    server.add_wheels({"p-1.5-py3-none-any.whl": wheel("p", "1.5")}, **newer)
    server.add_wheels({"p-1.6-py3-none-any.whl": wheel("p", "1.6")}, yanked="a mistake")
    (package,) = _build(layout, server, "p").manifest.packages
    assert package.source.endswith(names[0])
    assert _versions(_build(layout, server, "p==1.6")) == {"p": "1.6"}


def test_an_image_without_glibc_gets_wheels_for_any_machine(tmp_path: Path, server: PackageServer) -> None:
    """And Debian's Python has a folder of its own."""
    arch, minor = platform.machine(), sys.version_info.minor
    layout = layout_of(tmp_path / "musl", tar(member(b"etc/toy-version", PYTHON.encode()), directory(b"usr")))
    server.add_wheels({f"p-1.0-cp3{minor}-cp3{minor}-manylinux_2_17_{arch}.whl": wheel("p", "1.0")})
    with pytest.raises(ImageError, match=r"no wheel of p fits any version: the index has none for Python"):
        _build(layout, server, "p")
    server.add_wheels({"p-0.9-py3-none-any.whl": wheel("p", "0.9")})
    built = _build(layout, server, "p", force=True)
    assert f"usr/local/lib/python{PYTHON}/dist-packages/p/__init__.py" in _entries(built)


def test_data_of_a_wheel_goes_to_its_places(layout: Path, server: PackageServer) -> None:
    data = {
        "p-1.0.data/scripts/tool": b"#!python -s\nprint()\n",
        "p-1.0.data/scripts/binary": b"\x7fELF",
        "p-1.0.data/data/share/p/x": b"x",
        "p-1.0.data/platlib/p_native.so": b"so",
        "p-1.0.data/headers/p.h": b"h",
    }
    server.add_wheels({"p-1.0-py3-none-any.whl": wheel("p", "1.0", files=data)})
    entries = _entries(_build(layout, server, "p"))
    assert entries["usr/local/bin/tool"].data == b"#!/usr/bin/env python3\nprint()\n"
    assert stat.S_IMODE(entries["usr/local/bin/binary"].mode) == 0o755
    assert entries["usr/local/share/p/x"].data == b"x"
    assert entries[f"{SITE}/p_native.so"].data == b"so"
    assert entries["usr/local/include/p.h"].data == b"h"
    assert f"{SITE}/p-1.0.dist-info/METADATA" in entries


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("none", ImageError, r"the index has no project 'none' \(the command line needs it\)"),
        ("a==9", ImageError, r"no wheel of a fits ==9: the index has 3\.0rc1, 2\.0, 1\.0"),
        ("c>=2", ImageError, r"b 1\.0 needs c<2, not 2\.0|no wheel of c fits <2,>=2|no wheel of c fits >=2,<2"),
        ("a==", ConfigError, "--package 'a=='"),
        ("../a", ConfigError, r"--package '\.\./a'"),
        ("a @ http://127.0.0.1/a.whl", ConfigError, "which is not in an index"),
    ],
)
def test_what_cannot_be_had_is_said(layout: Path, server: PackageServer, wanted: str, error: type[MayflyError], message: str) -> None:
    server.add_wheels(SET)
    with pytest.raises(error, match=message):
        _build(layout, server, "b", wanted)
    assert not (layout.parent / "data/mayfly/images/toy" / platform.machine()).exists()


def _link() -> bytes:
    packed = io.BytesIO(wheel("p", "1.0"))
    with zipfile.ZipFile(packed, "a") as archive:
        link = zipfile.ZipInfo("p/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return packed.getvalue()


def _flipped() -> bytes:
    data = bytearray(wheel("p", "1.0", files={"p/data": bytes(range(256)) * 8}))
    data[data.index(b"p/data") + 30] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (wheel("p", "1.0", files={"../../../../etc/passwd": b"x"}), r"'\.\./\.\./\.\./\.\./etc/passwd' leads elsewhere"),
        (wheel("p", "1.0", files={"/etc/passwd": b"x"}), "'/etc/passwd' leads elsewhere"),
        (wheel("p", "1.0", files={"p/../../x": b"x"}), r"'p/\.\./\.\./x' leads elsewhere"),
        (wheel("p", "1.0", files={"p-1.0.data/scripts/../x": b"x"}), "leads elsewhere"),
        (wheel("p", "1.0", files={"p-1.0.data/elsewhere/x": b"x"}), "has no place"),
        (_link(), "'p/link' is a link"),
        (_flipped(), "is damaged"),
        (wheel("p", "1.0")[:-30], "is damaged"),
        (wheel("p", "1.0", files={"p/zeros": bytes(70_000_000)}), "more than 200 times its size"),
        (wheel("p", "1.0", files={f"p/{number}": b"" for number in range(1000)}), "more than 900 members"),
    ],
    ids=["up", "root", "inner", "data", "scheme", "link", "flipped", "cut", "bomb", "many"],
)
def test_hostile_wheels_are_refused(layout: Path, server: PackageServer, data: bytes, message: str) -> None:
    server.add_wheels({"p-1.0-py3-none-any.whl": wheel("p", "1.0")})
    good = _build(layout, server, "p")
    server.pages.clear()
    server.pages["/simple/p/"] = b""
    server.add_wheels({"p-2.0-py3-none-any.whl": wheel("p", "2.0")}) if not data else None
    server.pages.pop("/simple/p/")
    server.add_wheels({"p-1.0-py3-none-any.whl": data}, metadata=False)
    with pytest.raises(LayerError, match=message):
        _build(layout, server, "p", force=True, limits=Limits(entries=900))
    assert load(good.folder) == good.manifest


def test_a_file_of_another_digest_is_refused(layout: Path, server: PackageServer) -> None:
    server.add_wheels({"p-1.0-py3-none-any.whl": wheel("p", "1.0")})
    server.pages["/files/p-1.0-py3-none-any.whl"] = pack({"other": b""})
    with pytest.raises(RegistryError, match=r"hashes to [0-9a-f]{12}…, not to sha256"):
        _build(layout, server, "p")


def test_an_index_that_is_none_is_said(layout: Path, server: PackageServer) -> None:
    server.pages["/simple/p/"] = b"<html>"
    with pytest.raises(RegistryError, match="is not a simple index in JSON"):
        _build(layout, server, "p")


def test_on_the_command_line(layout: Path, server: PackageServer, tmp_path: Path) -> None:
    """Of a language that takes packages, and of one that does not."""
    base = tar(member(f"usr/local/lib/python{PYTHON}/os.py".encode()), LIBC)
    image = f"oci:{layout_of(tmp_path / 'python', base)}"
    server.add_wheels({"one-1.5-py3-none-any.whl": wheel("one", "1.5")})
    asked = ["build", "python", "--compress", "none", "--image", image, "--package", "one==1.*"]
    asked += ["--packages-from", f"{server.address}/simple"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    assert "packages: one 1.5" in done.output
    assert "  package  one 1.5 sha256:" in CliRunner().invoke(cli, ["inspect", "python"]).output
    refused = CliRunner().invoke(cli, ["build", "c-wasm", "--package", "x"])
    assert isinstance(refused.exception, ConfigError)
    assert "images of c-wasm take no packages" in refused.exception.message


@pytest.mark.parametrize(
    ("requirements", "complaint"),
    [
        ("idna\nmsgspec>=0.1,<99  # a comment\n\n# another\n-r other.txt\n", ""),
        ("IDNA == 3.*\nmsgspec[yaml] ~= 0.1\nidna!=1.2\nidna (>2)\n", ""),
        ("numpy_not_there==2.*\n", "numpy_not_there==2.*: the image has no numpy_not_there; add it: imagegen build python --package"),
        ("idna==2.*\n", "idna==2.*: the image has idna 3"),
        ("idna>3.0.0,<=3.1\n", "the image has idna 3"),
        ("numpy_not_there; sys_platform == 'win32'\n", ""),
    ],
)
def test_requirements_that_are_not_there_fail_the_build(tmp_path: Path, requirements: str, complaint: str) -> None:
    (tmp_path / "main.py").write_text("print(1)\n")
    (tmp_path / "requirements.txt").write_text(requirements)
    build_step = load_language("python").steps[0]
    command = [sys.executable, *build_step.argv[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, complaint in done.stderr) == (1 if complaint else 0, True), done.stderr


def test_a_build_finds_errors_and_imports_nothing_of_the_snippet(tmp_path: Path) -> None:
    command = [sys.executable, *load_language("python").steps[0].argv[1:]]
    for name in ("re", "traceback", "linecache"):
        (tmp_path / f"{name}.py").write_text("import os\nos.abort()\n")
    for source, said in {
        "print(1": "  File \"main.py\", line 1\n    print(1\n         ^\nSyntaxError: '(' was never closed\n",
        "if 1:\nprint(1)": "IndentationError: expected an indented block after 'if' statement on line 1\n",
        "\0": "source code string cannot contain null bytes\n",
        "'\\d'": "",  # a warning, which the run gives
    }.items():
        (tmp_path / "main.py").write_text(source)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1 if said else 0, ""), done.stderr
        assert done.stderr.endswith(said) if said else not done.stderr
    assert not (tmp_path / "__pycache__").exists()
