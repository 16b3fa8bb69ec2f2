"""Debian's packaged crates and modules in images of Rust and Go, from a loopback registry, compiled
by the prepare steps of the languages' files and used by snippets: in a chroot in the place of a
machine.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.imagegen.languages import load_language
from mayfly.images.manifest import load
from scripts.debian.package_images import build
from tests.kit.chroot_prepare import extract, run
from tests.kit.package_kit import PackageServer, build_with, wheel
from tests.kit.packaged import CARGO, DERIVES, GO_MISSING, GO_MOD, GO_OWN, IMPORTS, SAID
from tests.kit.scale import FULL

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not FULL, reason="compiles crates for minutes; the whole counts do"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can chroot"),
]
PREPARE = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-P", "-m", "tests.kit.chroot_prepare")


def image(tmp_path: Path, language: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Build the image of a language with packages; gives its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # what a chroot makes is not for the machine's cache
    build(language, tmp_path / "image", ["--prepare-with", " ".join(PREPARE)])
    return tmp_path / "image"


def test_snippets_and_projects_use_debians_crates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image(tmp_path, "rust", monkeypatch)
    manifest, root = load(folder), tmp_path / "root"
    assert {"rand", "serde", "serde_derive", "serde_json", "syn"} <= {package.name for package in manifest.packages}
    extract(folder / "initramfs", root)
    done = run(root, manifest, {"main.rs": DERIVES})
    assert (done.stdout, done.returncode) == (SAID, 0), done.stderr
    done = run(root, manifest, {"Cargo.toml": CARGO + 'serde_json = "1"\nrand = "0.8"\n', "src/main.rs": DERIVES})
    assert (done.stdout, done.returncode) == (SAID, 0), done.stderr
    done = run(root, manifest, {"Cargo.toml": CARGO + 'tokio = "1"\n', "src/main.rs": DERIVES})
    assert done.returncode == 1
    assert done.stderr == "Cargo.toml: the image has no tokio; add it: imagegen build rust --package 'tokio@1'\n"
    done = run(root, manifest, {"Cargo.toml": CARGO + 'rand = "0.9"\n', "src/main.rs": DERIVES})
    assert done.returncode == 1
    assert "candidate versions found which didn't match: 0.8.5" in done.stderr


def test_snippets_and_modules_use_debians_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image(tmp_path, "go", monkeypatch)
    manifest, root = load(folder), tmp_path / "root"
    extract(folder / "initramfs", root)
    for files in ({}, {"go.mod": GO_OWN}, {"go.mod": GO_MOD}):
        done = run(root, manifest, {"main.go": IMPORTS, **files})
        assert (done.stdout, done.returncode) == ("[a b] 36\n", 0), done.stderr
    done = run(root, manifest, {"main.go": IMPORTS, "go.mod": f"{GO_OWN}\nrequire golang.org/x/exp v0.0.0-20221028150844-83b7d23a625f\n"})
    name = "golang.org/x/exp@v0.0.0-20221028150844-83b7d23a625f"
    assert done.returncode == 1
    assert f"the image has no golang.org/x/exp; add its module: imagegen build go --package '{name}'\n" in done.stderr
    done = run(root, manifest, {"main.go": IMPORTS.replace("x/exp/maps", "x/text/cases")})
    assert done.returncode == 1
    assert GO_MISSING in done.stderr


def test_modules_of_python_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And give tracebacks with the lines of their sources."""
    layout = tmp_path / "layout"
    subprocess.run([sys.executable, "-P", "-m", "scripts.debian.reference_image", "python", str(layout)], cwd=ROOT, check=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    files = {"toy/__init__.py": b"from toy.inner import fail\n", "toy/inner.py": b"def fail():\n    raise ValueError({'x', 'y'})\n"}
    with PackageServer() as server:
        server.add_wheels({"toy-1-py3-none-any.whl": wheel("toy", "1", files={**files, "toy/template.py": b"{{ name }} {%\n"})})
        built = build_with(load_language("python"), layout, f"{server.address}/simple", "toy", prepare_with=PREPARE)
        extract(built.folder / "initramfs", tmp_path / "root")
        server.add_wheels({"toy-2-py3-none-any.whl": wheel("toy", "2", files={"toy/__init__.py": b"version = 2\n"})})
        newer = build_with(load_language("python"), layout, f"{server.address}/simple", "toy==2", prepare_with=PREPARE)
    extract(newer.folder / "initramfs", tmp_path / "newer")
    assert run(tmp_path / "newer", newer.manifest, {"main.py": "import toy\nprint(toy.version)\n"}).stdout == "2\n"
    root = tmp_path / "root"
    site = root / "usr/local/lib/python3.13/dist-packages/toy"
    assert sorted(path.name for path in site.iterdir()) == ["__init__.py", "__pycache__", "inner.py", "template.py"]
    compiled = {path.name: path.read_bytes() for path in (site / "__pycache__").iterdir()}
    assert sorted(compiled) == ["__init__.cpython-313.pyc", "inner.cpython-313.pyc"]
    assert {data[4:8] for data in compiled.values()} == {b"\1\0\0\0"}  # by hash, which is not looked at (PEP 552)
    looks = "import sys, toy\nprint(toy.inner.__cached__)\nsys.stdout.flush()\ntoy.fail()\n"
    done = run(root, built.manifest, {"main.py": looks})
    assert done.stdout.endswith("/toy/__pycache__/inner.cpython-313.pyc\n")
    assert "    raise ValueError({'x', 'y'})" in done.stderr
