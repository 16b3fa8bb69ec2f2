"""Packages of JavaScript in images, from a registry on loopback, run by the Node of this host where
there is one.
"""

import base64
import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ConfigError, ImageError, LayerError, MayflyError
from mayfly.imagegen.build import Built
from mayfly.imagegen.languages import load_language
from mayfly.imagegen.rootfs.spools import Limits
from mayfly.imagegen.rootfs.unpack import unpack
from tests.kit.imagegen_kit import layout_of, member, read_cpio, tar, toy_language
from tests.kit.package_kit import PackageServer, build_with, tgz

pytestmark = pytest.mark.usefixtures("own_folders")
LANGUAGE = toy_language(packages={"kind": "npm", "registry": "http://127.0.0.1:1"})
CPU = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return layout_of(tmp_path / "layout", tar(member(b"etc/toy-version", b"20.1")))


def _build(layout: Path, server: PackageServer, *packages: str, **changes: object) -> Built:
    return build_with(LANGUAGE, layout, server.address, *packages, **changes)


def _folders(built: Built) -> dict[str, str]:
    """The version of each package, by its folder below /node_modules."""
    found = {}
    for entry in read_cpio((built.folder / "initramfs").read_bytes()):
        if entry.name.startswith(b"node_modules/") and entry.name.endswith(b"/package.json"):
            found[entry.name.decode().removeprefix("node_modules/").removesuffix("/package.json")] = json.loads(entry.data)["version"]
    return found


def _fill(server: PackageServer) -> None:
    server.add_npm("left", "1.0.0")
    server.add_npm("left", "2.0.0")
    server.add_npm("left", "3.0.0-beta.1")
    server.add_npm("@scope/tool", "1.4.0", dependencies={"left": "^1.0.0"}, bin={"tool": "index.js"})
    server.add_npm("@scope/tool", "1.5.0", dependencies={"left": "< 2", "alias": "npm:left@1.x"})
    server.add_npm("plugin", "1.0.0", peerDependencies={"left": "1 || 2", "none": "*"}, peerDependenciesMeta={"none": {"optional": True}})
    native: dict[str, Any] = {"os": ["linux"], "cpu": [CPU], "libc": ["glibc"]}
    server.add_npm("native-here", "1.0.0", **native)
    server.add_npm("native-musl", "1.0.0", **{**native, "libc": ["musl"]})
    server.add_npm("native-mac", "1.0.0", os=["!linux"])
    optional = {"native-here": "1", "native-musl": "1", "native-mac": "1"}
    server.add_npm("native", "1.0.0", optionalDependencies=optional, dependencies=optional)
    server.add_npm("tagged", "1.0.0", dependencies={"left": "latest"})
    server.add_npm("round", "1.0.0", dependencies={"about": "*"})
    server.add_npm("about", "1.0.0", dependencies={"round": "*"})


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["left@2"], {"left": "2.0.0"}),
        (["left"], {"left": "3.0.0-beta.1"}),  # what the tag `latest` says
        (["left@>=1 <3"], {"left": "2.0.0"}),
        (["@scope/tool@1.4", "left@2"], {"@scope/tool": "1.4.0", "left": "2.0.0", "@scope/tool/node_modules/left": "1.0.0"}),
        (["@scope/tool"], {"@scope/tool": "1.5.0", "left": "1.0.0", "alias": "1.0.0"}),
        (["left@~> 1.0"], {"left": "1.0.0"}),
        (["left@^v1.0.0 || v2"], {"left": "2.0.0"}),
        (["left@>= v1 <v2.0.0"], {"left": "1.0.0"}),
        (["tagged", "left@2"], {"tagged": "1.0.0", "left": "2.0.0", "tagged/node_modules/left": "3.0.0-beta.1"}),
        (["tagged", "left"], {"tagged": "1.0.0", "left": "3.0.0-beta.1"}),
        (["plugin", "left@1"], {"plugin": "1.0.0", "left": "1.0.0"}),
        (["plugin"], {"plugin": "1.0.0", "left": "2.0.0"}),
        (["native"], {"native": "1.0.0", "native-here": "1.0.0"}),
        (["round"], {"round": "1.0.0", "about": "1.0.0"}),
    ],
)
def test_packages_go_where_node_finds_the_version_that_each_needs(
    layout: Path, server: PackageServer, wanted: list[str], found: dict[str, str]
) -> None:
    _fill(server)
    built = _build(layout, server, *wanted)
    assert _folders(built) == found
    assert {package.digest[:7] for package in built.manifest.packages} == {"sha512:"}


@pytest.mark.skipif(not shutil.which("node"), reason="no node on this host")
def test_node_imports_them(layout: Path, server: PackageServer, tmp_path: Path) -> None:
    _fill(server)
    server.add_npm("needs", "1.0.0", {"index.js": b"module.exports = 'needs ' + require('left');"}, dependencies={"left": "1"})
    built = _build(layout, server, "needs", "left@2")
    unpack(built.folder, tmp_path / "root")
    (tmp_path / "root/work/main.mjs").write_text("import needs from 'needs'; import left from 'left'; console.log(needs, left);\n")
    done = subprocess.run(["node", "main.mjs"], cwd=tmp_path / "root/work", capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("needs 1.0.0 2.0.0\n", "")


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (["nothing"], ImageError, "--package needs nothing, which the registry has not"),
        (["left@9"], ImageError, "needs left@9, of which the registry has no version"),
        (["left@1", "left@2"], ImageError, r"needs left@2, and 1\.0\.0 is chosen"),
        (["left@3.0.0-beta.1", "plugin"], ImageError, r"plugin@1\.0\.0 needs left@1 \|\| 2, and 3\.0\.0-beta\.1 is chosen"),
        (["native-mac"], ImageError, "is not for this machine"),
        (["../left"], ConfigError, "is not a name"),
        (["left@git+https://example.org/left"], ImageError, "is not a range of versions"),
        (["bad"], ImageError, "needs '../../etc', which is not a name"),
        (["old"], ImageError, "no digest in the registry but that of SHA-1"),
    ],
)
def test_what_cannot_be_had_is_said(layout: Path, server: PackageServer, wanted: list[str], error: type[MayflyError], message: str) -> None:
    _fill(server)
    server.add_npm("bad", "1.0.0", dependencies={"../../etc": "*"})
    server.add_npm("old", "1.0.0", dist={"tarball": f"{server.address}/old.tgz", "shasum": "0" * 40})
    with pytest.raises(error, match=message):
        _build(layout, server, *wanted)


def _link() -> tarfile.TarInfo:
    link = tarfile.TarInfo("package/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return link


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tgz({"package/../../etc/passwd": b"x"}), "leads elsewhere"),
        (tgz({"/package/x": b"x"}), "leads elsewhere"),
        (tgz({"package/link": _link()}), "is a symlink, not a plain file"),
        (tgz({"package/zeros": bytes(70_000_000)}), "more than 200 times its size"),
        (tgz({f"package/{number}": b"" for number in range(1000)}), "more than 900"),
        (tgz({"package/x": b"x" * 5000})[:-20], "is damaged"),
        (b"\x1f\x8bnothing", "is damaged"),
    ],
    ids=["up", "root", "link", "bomb", "many", "cut", "none"],
)
def test_hostile_tarballs_are_refused(layout: Path, server: PackageServer, data: bytes, message: str) -> None:
    integrity = f"sha1-AAAA sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"
    server.add_npm("p", "1.0.0", dist={"tarball": f"{server.address}/p.tgz", "integrity": integrity})
    server.pages["/p.tgz"] = data
    with pytest.raises(LayerError, match=message):
        _build(layout, server, "p", limits=Limits(entries=900))


@pytest.mark.skipif(not shutil.which("node"), reason="no node on this host")
@pytest.mark.parametrize(("language", "step"), [("javascript", "run"), ("typescript", "build")])
def test_dependencies_that_are_not_there_are_said(tmp_path: Path, language: str, step: str) -> None:
    """Before anything of the snippet runs."""
    (tmp_path / "main.js").write_text("console.log('ran')\n")
    (tmp_path / "node_modules/there").mkdir(parents=True)
    command = next(found for found in load_language(language).steps if found.name == step).argv[:4]
    for dependencies, complaint in (
        ({"there": "1", "left-pad": "^1.0"}, f'the image has no left-pad; add it: imagegen build {language} --package "left-pad@^1.0"'),
        ({"there": "1"}, ""),
        (None, ""),
    ):
        (tmp_path / "package.json").write_text(json.dumps({"type": "commonjs", **({"dependencies": dependencies} if dependencies else {})}))
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert complaint in done.stderr
        assert "left-pad" not in done.stderr or complaint
        if complaint or language == "javascript":
            assert (done.returncode, done.stdout) == (1, "") if complaint else (0, "ran\n")


def test_what_a_machine_makes_of_a_package_is_not_for_another_version(
    layout: Path, server: PackageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python's modules are compiled: what is not compiled yet, first without packages."""

    def compile_all(folder: Path, collect: Sequence[str], out: Path, *_: object) -> None:
        there = {entry.name.decode(): entry.data for entry in read_cpio((folder / "initramfs").read_bytes())}
        with tarfile.open(out, "w") as made:
            for name, data in there.items():
                if name.endswith(".js") and f"{name}c" not in there:
                    member = tarfile.TarInfo(f"{name}c")
                    member.size = len(data)
                    made.addfile(member, io.BytesIO(data))

    monkeypatch.setattr("mayfly.imagegen.prepared.prepare", compile_all)
    monkeypatch.setattr("mayfly.imagegen.prepared.why_not", lambda _: "")
    compiled = {"steps": [{"name": "compile", "argv": ["node"]}], "collect": ["/node_modules"], "working_memory_mib": 7}
    language = toy_language(prepare=compiled, packages={"kind": "npm", "registry": "http://127.0.0.1:1", "prepare": compiled})
    for version in ("1.0.0", "2.0.0"):
        server.add_npm("left", version)
        built = build_with(language, layout, server.address, f"left@{version}")
        files = {entry.name: entry.data for entry in read_cpio((built.folder / "initramfs").read_bytes())}
        assert files[b"node_modules/left/index.jsc"] == files[b"node_modules/left/index.js"] == f"module.exports = '{version}';\n".encode()
