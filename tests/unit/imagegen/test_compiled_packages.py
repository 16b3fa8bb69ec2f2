"""Debian's packaged crates and modules in images of Rust and Go, from a loopback registry, compiled
by the prepare steps of the languages' files and used by snippets: in a chroot in the place of a
machine.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.images.manifest import load
from scripts.debian import root as debianroot
from tests.kit.chroot_prepare import extract, run
from tests.kit.crates_kit import add_debian_crates
from tests.kit.modules_kit import add_debian_module
from tests.kit.package_kit import PackageServer
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


def build(tmp_path: Path, language: str, more: tuple[str, ...], address: str, *packages: str) -> Path:
    """Build the image of a language from Debian's reference image with more of its packages; gives
    its folder.
    """
    oci, folder = tmp_path / "oci", tmp_path / "image"
    words = [word for name in more for word in ("--with", name)]
    subprocess.run([sys.executable, "-m", "scripts.debian.reference_image", language, str(oci), *words], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "mayfly.cli.main", "image", "build", language, "--image", f"oci:{oci}", "--output", str(folder)]
    prepare = ["--prepare-with", f"env PYTHONPATH={ROOT} {sys.executable} -P -m tests.kit.chroot_prepare"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}  # what a chroot makes is not for the machine's cache
    subprocess.run([*command, *prepare, "--packages-from", address, *packages], cwd=ROOT, env=environment, check=True)
    return folder


def test_snippets_and_projects_use_debians_crates(tmp_path: Path) -> None:
    wanted = ["librust-serde-dev", "librust-serde-derive-dev", "librust-serde-json-dev", "librust-rand-dev"]
    debianroot.unpack(tmp_path / "debian", wanted, parts=("./usr/share/cargo/registry",))
    asked = ["--package", "serde@1", "--features", "derive", "--package", "serde_json", "--package", "rand@0.8"]
    with PackageServer() as server:
        add_debian_crates(server, tmp_path / "debian/usr/share/cargo/registry")
        folder = build(tmp_path, "rust", ("cargo",), server.address, *asked)
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


EXP = "v0.0.0-20231006140011-7918f672742d"
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


def test_snippets_and_modules_use_debians_modules(tmp_path: Path) -> None:
    wanted = ["golang-golang-x-exp-dev", "golang-github-google-uuid-dev"]
    debianroot.unpack(tmp_path / "debian", wanted, parts=("./usr/share/gocode",))
    source = tmp_path / "debian/usr/share/gocode/src"
    with PackageServer() as server:
        add_debian_module(server, source, "golang.org/x/exp", EXP)
        add_debian_module(server, source, "github.com/google/uuid", "v1.6.0")
        folder = build(tmp_path, "go", (), server.address, "--package", "golang.org/x/exp", "--package", "github.com/google/uuid@v1")
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
