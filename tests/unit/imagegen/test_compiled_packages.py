"""Debian's packaged crates and modules in images of Rust and Go, from a loopback registry, compiled
by the prepare steps of the languages' files and used by snippets: in a chroot in the place of a
machine.
"""

import os
import sys
from pathlib import Path

import pytest

from mayfly.images.manifest import load
from scripts.debian.package_images import EXP, build
from tests.kit.chroot_prepare import extract, run
from tests.kit.scale import FULL

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not FULL, reason="compiles crates for minutes; the whole counts do"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can chroot"),
]
DERIVES = """
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Point { x: i32, y: i32 }

fn main() {
    let text = serde_json::to_string(&Point { x: 1, y: 2 }).unwrap();
    println!("{text} {:?} {}", serde_json::from_str::<Point>(&text).unwrap(), rand::random::<u8>() as u16 <= 255);
}
"""
CARGO = """
[package]
name = "an-app"
version = "0.1.0"
edition = "2021"

[dependencies]
serde = { version = "1.0", features = ["derive"] }
"""


def image(tmp_path: Path, language: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Build the image of a language with packages; gives its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # what a chroot makes is not for the machine's cache
    build(language, tmp_path / "image", ["--prepare-with", f"env PYTHONPATH={ROOT} {sys.executable} -P -m tests.kit.chroot_prepare"])
    return tmp_path / "image"


def test_snippets_and_projects_use_debians_crates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image(tmp_path, "rust", monkeypatch)
    manifest, root = load(folder), tmp_path / "root"
    assert {"rand", "serde", "serde_derive", "serde_json", "syn"} <= {package.name for package in manifest.packages}
    extract(folder / "initramfs", root)
    said = '{"x":1,"y":2} Point { x: 1, y: 2 } true\n'
    done = run(root, manifest, {"main.rs": DERIVES})
    assert (done.stdout, done.returncode) == (said, 0), done.stderr
    done = run(root, manifest, {"Cargo.toml": CARGO + 'serde_json = "1"\nrand = "0.8"\n', "src/main.rs": DERIVES})
    assert (done.stdout, done.returncode) == (said, 0), done.stderr
    done = run(root, manifest, {"Cargo.toml": CARGO + 'tokio = "1"\n', "src/main.rs": DERIVES})
    assert done.returncode == 1
    assert done.stderr == "Cargo.toml: the image has no tokio; add it: imagegen build rust --package 'tokio@1'\n"
    done = run(root, manifest, {"Cargo.toml": CARGO + 'rand = "0.9"\n', "src/main.rs": DERIVES})
    assert done.returncode == 1
    assert "candidate versions found which didn't match: 0.8.5" in done.stderr


IMPORTS = """
package main

import (
	"fmt"

	"github.com/google/uuid"
	"golang.org/x/exp/maps"
	"golang.org/x/exp/slices"
)

func main() {
	keys := maps.Keys(map[string]int{"b": 1, "a": 2})
	slices.Sort(keys)
	fmt.Println(keys, len(uuid.NewString()))
}
"""


def test_snippets_and_modules_use_debians_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image(tmp_path, "go", monkeypatch)
    manifest, root = load(folder), tmp_path / "root"
    extract(folder / "initramfs", root)
    own = "module own\n\ngo 1.21\n"
    for files in ({}, {"go.mod": own}, {"go.mod": f"{own}\nrequire golang.org/x/exp {EXP}\n"}):
        done = run(root, manifest, {"main.go": IMPORTS, **files})
        assert (done.stdout, done.returncode) == ("[a b] 36\n", 0), done.stderr
    done = run(root, manifest, {"main.go": IMPORTS, "go.mod": f"{own}\nrequire golang.org/x/exp v0.0.0-20221028150844-83b7d23a625f\n"})
    name = "golang.org/x/exp@v0.0.0-20221028150844-83b7d23a625f"
    assert done.returncode == 1
    assert f"the image has no golang.org/x/exp; add its module: imagegen build go --package '{name}'\n" in done.stderr
    done = run(root, manifest, {"main.go": IMPORTS.replace("x/exp/maps", "x/text/cases")})
    assert done.returncode == 1
    assert "add its module: imagegen build go --package 'golang.org/x/text/cases'\n" in done.stderr
