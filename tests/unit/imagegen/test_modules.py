"""Packages of Go in images, from a module proxy on loopback: which modules are chosen, and what
lies where Go looks for it.
"""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from mayfly.errors import ConfigError, ImageError, LayerError, MayflyError, RegistryError
from mayfly.imagegen.build import Built
from mayfly.imagegen.languages import load_language
from mayfly.imagegen.packages.modules import FOLDER, Module, hash1, imports, read_go_mod
from tests.kit.imagegen_kit import layout_of, member, read_cpio, tar, toy_language
from tests.kit.modules_kit import add_module, serve_module
from tests.kit.package_kit import PackageServer, build_with, pack, sha256

pytestmark = pytest.mark.usefixtures("own_folders")
LANGUAGE = toy_language(packages={"kind": "modules", "registry": "http://127.0.0.1:1", "env": {"GOSUMDB": "off"}})
MOD = f"{FOLDER}/mod"
HOSTILE = 1 << 17
"""Bytes: by their square, time would be minutes."""
PSEUDO = "v0.0.0-20231006140011-7918f672742d"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return layout_of(tmp_path / "layout", tar(member(b"etc/toy-version", b"1.24.4")))


def _build(layout: Path, server: PackageServer, *packages: str, **changes: object) -> Built:
    return build_with(LANGUAGE, layout, server.address, *packages, **changes)


def _files(built: Built) -> dict[str, bytes]:
    return {entry.name.decode(): entry.data for entry in read_cpio((built.folder / "initramfs").read_bytes())}


def _fill(server: PackageServer) -> None:
    """`top` imports `left` and names `right`; `Deep/x` is imported by `left` alone."""
    for version in ("v1.0.0", "v1.2.0", "v1.10.0", "v2.0.0-rc.1"):
        add_module(server, "example.org/right", version)
    add_module(server, "example.org/Deep/x", "v0.1.0")
    add_module(server, "example.org/Deep/x", "v0.2.0")
    deep = 'package left\n\nimport (\n\t"fmt"\n\td "example.org/Deep/x/sub" // for windows too\n)\n\nvar _ = fmt.Sprint(d.Version)\n'
    needs = "require example.org/Deep/x v0.1.0\n"
    add_module(server, "example.org/left", "v1.1.0", {"left.go": deep.encode()}, needs)
    source = b'package top\n\nimport _ "example.org/left"\n'
    block = "require (\n\texample.org/left v1.1.0\n\texample.org/right v1.2.0 // indirect\n)\n"
    tests = b'package top\n\nimport _ "example.org/none"\n'
    add_module(server, "example.org/top", "v1.0.0", {"in/top.go": source, "top_test.go": tests, "testdata/x.go": b"("}, block)
    server.pages[f"/example.org/bare/@v/{PSEUDO}.info"] = server.pages["/example.org/bare/@latest"] = json.dumps(
        {"Version": PSEUDO}
    ).encode()
    server.pages["/example.org/bare/@v/main.info"] = server.pages["/example.org/bare/@latest"]
    serve_module(server, "example.org/bare", PSEUDO, {"go.mod": b"module example.org/bare\n", "bare.go": b"package bare\n"})
    del server.pages["/example.org/bare/@v/list"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["example.org/right"], ["right@v1.10.0"]),
        (["example.org/right@v1.2"], ["right@v1.2.0"]),
        (["example.org/top/in@v1"], ["Deep/x@v0.1.0", "left@v1.1.0", "top@v1.0.0"]),  # a package of it
        (["example.org/right@v2.0.0-rc.1"], ["right@v2.0.0-rc.1"]),
        (["example.org/bare"], [f"bare@{PSEUDO}"]),
        (["example.org/bare@main"], [f"bare@{PSEUDO}"]),
        (["example.org/top"], ["Deep/x@v0.1.0", "left@v1.1.0", "top@v1.0.0"]),  # no package imports right
        (["example.org/top", "example.org/Deep/x"], ["Deep/x@v0.2.0", "left@v1.1.0", "top@v1.0.0"]),
        (["example.org/top", "example.org/right@v1.0.0"], ["Deep/x@v0.1.0", "left@v1.1.0", "right@v1.2.0", "top@v1.0.0"]),
    ],
)
def test_modules_are_those_that_go_would_choose(layout: Path, server: PackageServer, wanted: list[str], found: list[str]) -> None:
    _fill(server)
    built = _build(layout, server, *wanted)
    assert [f"{package.name}@{package.version}" for package in built.manifest.packages] == [f"example.org/{name}" for name in found]
    assert {package.kind for package in built.manifest.packages} == {"golang"}
    assert built.manifest.env["GOSUMDB"] == "off"


def test_they_lie_where_go_looks_for_them(layout: Path, server: PackageServer) -> None:
    _fill(server)
    built = _build(layout, server, "example.org/Deep/x@v0.2.0")
    files = _files(built)
    at = f"{MOD}/cache/download/example.org/!deep/x/@v"
    assert files[f"{MOD}/example.org/!deep/x@v0.2.0/x.go"] == b'package x\n\nconst Version = "v0.2.0"\n'
    assert files[f"{at}/list"] == b"v0.2.0\n"
    assert files[f"{at}/v0.2.0.mod"] == b"module example.org/Deep/x\n\ngo 1.18\n"
    hashed = files[f"{at}/v0.2.0.ziphash"].decode()
    assert files["go.mod"] == b"module snippet\n\ngo 1.24\n\nrequire (\n\texample.org/Deep/x v0.2.0\n)\n"
    assert files["go.sum"].decode().splitlines()[0] == f"example.org/Deep/x v0.2.0 {hashed}"
    (package,) = built.manifest.packages
    assert package.digest == f"sha256:{sha256(server.pages['/example.org/!deep/x/@v/v0.2.0.zip'])}"


def test_hashes_are_those_of_go_sum() -> None:
    """golang.org/x/sys v0.13.0/go.mod, as many a go.sum has it."""
    digest = hashlib.sha256(b"module golang.org/x/sys\n\ngo 1.17\n").hexdigest()
    assert hash1([("go.mod", digest)]) == "h1:oPkhp1MJrh7nUepCBck5+mAzfO9JrbApNNgaTdGDITg="


def test_go_mod_files_are_read() -> None:
    text = (
        b'module x // require a.b/c v1.0.0\n\ngo 1.20\n\nrequire (\n\ta.b/c v1.0.0\n\t"a.b/d" v0.1.0 // indirect\n\t// a.b/e v1.0.0\n)\n'
        b"require a.b/f v2.0.0+incompatible\n\nexclude a.b/g v1.0.0\nexclude (\n\ta.b/h v1.0.0\n)\nreplace a.b/c v1.0.0 => ../c\n"
    )
    found = read_go_mod(text)
    assert found.go == (1, 20)
    assert found.needs == (Module("a.b/c", "v1.0.0"), Module("a.b/d", "v0.1.0"), Module("a.b/f", "v2.0.0+incompatible"))
    assert read_go_mod(b"module x\n").go == (1, 16)
    assert read_go_mod(b"go 1.21rc1\r\nrequire(\r\n\t`a.b/c` v1.0.0\r\n)\r\n").needs == (Module("a.b/c", "v1.0.0"),)
    assert read_go_mod(b"go 1.21rc1\r\n").go == (1, 21)


@pytest.mark.parametrize("text", ["\n", " ", "require (\n", "a (\n\n", "//", "require\n", "go 1.", "9", "("])
def test_a_hostile_go_mod_takes_no_time(text: str) -> None:
    """Nor an int() of more digits than Python reads."""
    for begin in ("", "go 1."):
        assert read_go_mod((begin + text * (HOSTILE // len(text))).encode()).go < (2,)


@pytest.mark.parametrize("text", ["\n", ";\n", "/*", "//", "import ", "import (\n", 'import "', "x", "`"])
def test_a_hostile_source_takes_no_time(text: str) -> None:
    for begin in ("", "package x\n", "package x\nimport ", "package x\nimport ("):
        imports(begin + text * (HOSTILE // len(text)))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('package x\nimport "a"\nimport b "c/d"; import . "e"\n', ["a", "c/d", "e"]),
        ('// x\n/* package y\nimport "no" */ package x; import (\n\t_ "a" // "no"\n\t/* "no" */ "b"\n)\n', ["a", "b"]),
        ("package x\nimport `a`\n", ["a"]),
        ('package x\nvar s = `import "no"`\n', []),
        ("", []),
    ],
)
def test_imports_are_read(source: str, found: list[str]) -> None:
    assert imports(source) == found


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (["example.org/nothing"], ImageError, "the proxy has no module with example.org/nothing@latest"),
        (["example.org/right@v9"], ImageError, "the proxy has no module with example.org/right@v9"),
        (["example.org/right/none"], ImageError, r"the module example.org/right@v1\.10\.0 has no package example.org/right/none"),
        (["left"], ConfigError, "is not a module"),
        (["example.org/../left"], ConfigError, "is not a module"),
        (
            ["example.org/gone"],
            RegistryError,
            r"the proxy has no go.mod of example.org/lost@v1\.0\.0|the proxy has no example.org/lost@v1\.0\.0",
        ),
        (["example.org/odd"], ImageError, "which is not a module"),
        (["example.org/zeros"], ImageError, r"v1\.0\.0-01' is needed, which is not a module"),
        (["example.org/digits"], ImageError, "which is not a module"),
        (["example.org/listed"], ImageError, "the proxy has no module with example.org/listed@latest"),
    ],
)
def test_what_cannot_be_had_is_said(layout: Path, server: PackageServer, wanted: list[str], error: type[MayflyError], message: str) -> None:
    _fill(server)
    add_module(
        server, "example.org/gone", "v1.0.0", {"gone.go": b'package gone\nimport "example.org/lost"\n'}, "require example.org/lost v1.0.0\n"
    )
    add_module(server, "example.org/odd", "v1.0.0", mod="require example.org/../../etc v1.0.0\n")
    add_module(server, "example.org/zeros", "v1.0.0", mod="require example.org/right v1.0.0-01\n")
    add_module(server, "example.org/digits", "v1.0.0", mod=f"require example.org/right v{'1' * 5000}.0.0\n")
    server.pages["/example.org/listed/@v/list"] = b"v1.0.0-01\nv01.0.0\nv1.0.0-a..b\n"
    with pytest.raises(error, match=message):
        _build(layout, server, *wanted)


def test_hostile_zips_are_refused(layout: Path, server: PackageServer) -> None:
    for name, message in (("../up", "leads elsewhere"), ("example.org/other@v1.0.0/x.go", "files of another module")):
        add_module(server, "example.org/bad", "v1.0.0")
        server.pages["/example.org/bad/@v/v1.0.0.zip"] = pack({"example.org/bad@v1.0.0/bad.go": b"package bad\n", name: b"x"})
        with pytest.raises(LayerError, match=message):
            _build(layout, server, "example.org/bad", force=True)
    server.pages["/example.org/bad/@v/v1.0.0.zip"] = b"PK no"
    with pytest.raises(LayerError, match="damaged"):
        _build(layout, server, "example.org/bad", force=True)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("main.go:3:8: no required module provides package a.b/c/d: go.mod file not found in current directory", "a.b/c/d"),
        ("main.go:3:8: no required module provides package a.b/c; to add it:", "a.b/c"),
        ("main.go:3:8: cannot find module providing package a.b/c: module a.b/c: no such file", "a.b/c"),
        ("go: a.b/c@v1.0.0: reading file:///x/a.b/c/@v/v1.0.0.mod: no such file or directory", "a.b/c@v1.0.0"),
        ("main.go:3:8: a.b/c@v1.0.0: reading file:///x/a.b/c/@v/v1.0.0.mod: no such file or directory", "a.b/c@v1.0.0"),
        ('go: a.b/c@v1.0.0: Get "https://proxy.example/a.b/c/@v/v1.0.0.mod": dial tcp: lookup failed', "a.b/c@v1.0.0"),
        ("main.go:3:8: undefined: x", ""),
    ],
)
def test_modules_that_are_not_there_are_said(tmp_path: Path, said: str, name: str) -> None:
    """By the build step, of whatever go says."""
    (tmp_path / "go").write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit 1\n")
    (tmp_path / "go").chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/main.go").touch()
    step = next(found for found in load_language("go").steps if found.name == "build")
    # What the image has in the root and in /tmp has its own place here.
    words = [word.replace("/tmp/", f"{tmp_path}/").replace("/var/cache/go", str(tmp_path)) for word in step.argv]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False)
    hint = f"the image has no {name.partition('@')[0]}; add its module: imagegen build go --package '{name}'\n" if name else ""
    assert (done.stderr, done.returncode) == (f"{said}\n{hint}", 1)
