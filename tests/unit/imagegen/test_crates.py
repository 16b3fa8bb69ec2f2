"""Packages of Rust in images, from a sparse index on loopback: which are chosen, and that this
host's cargo builds with them and without a network.
"""

import json
import platform
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from mayfly.cli.features import joined
from mayfly.errors import ConfigError, ImageError, LayerError, MayflyError
from mayfly.imagegen.build import Built
from mayfly.imagegen.languages import load_language
from mayfly.imagegen.packages.cfg import Programs, holds
from mayfly.imagegen.packages.crates import FOLDER
from mayfly.imagegen.rootfs.unpack import unpack
from tests.kit.crates_kit import add_crate
from tests.kit.imagegen_kit import layout_of, member, read_cpio, tar, toy_language
from tests.kit.package_kit import PackageServer, build_with, sha256, tgz

pytestmark = pytest.mark.usefixtures("own_folders")
LANGUAGE = toy_language(packages={"kind": "crates", "registry": "http://127.0.0.1:1"})
CARGO = shutil.which("cargo")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return layout_of(tmp_path / "layout", tar(member(b"etc/toy-version", b"1.70.0")))


def _build(layout: Path, server: PackageServer, *packages: str, **changes: object) -> Built:
    return build_with(LANGUAGE, layout, server.address, *packages, **changes)


def _fill(server: PackageServer) -> None:
    add_crate(server, "left", "1.0.0", "[features]\ndefault = []\nwide = []\n")
    add_crate(server, "left", "1.4.2", "[features]\ndefault = []\nwide = []\n")
    add_crate(server, "left", "1.5.0", rust_version="1.71")
    add_crate(server, "left", "1.6.0", yanked=True)
    add_crate(server, "left", "2.0.0-rc.1")
    add_crate(server, "left", "2.0.0")
    add_crate(server, "old", "0.3.1", '[dependencies]\nleft = "1"\n')
    add_crate(server, "low", "1.0.0", '[dependencies]\nleft = ">=1, <1.4"\n')
    add_crate(server, "macros", "1.0.0", "[lib]\nproc-macro = true\n", {"src/lib.rs": b""})
    derive = '[dependencies]\nmacros = {{ version = "=1.0.0", optional = true }}\nleft = {{ version = "{0}", optional = true }}\n'
    features = '[features]\ndefault = ["std"]\nstd = []\nderive = ["dep:macros"]\nwide = ["left?/wide", "left/wide"]\n'
    add_crate(server, "ser", "1.0.0", derive.format("1") + features)
    windows = '[target."cfg(windows)".dependencies]\nwinapi = { version = "0.3", features = ["console"] }\n'
    mine = '[target."cfg(all(unix, target_pointer_width = \\"64\\"))".dependencies]\nold = "0.3"\n[dev-dependencies]\nnone = "9"\n'
    add_crate(server, "system", "0.1.0", windows + mine)
    add_crate(server, "winapi", "0.3.9", '[dependencies]\nnowhere = "1"\n[features]\nconsole = []\n')
    add_crate(server, "renamed", "1.0.0", '[dependencies]\nright = { package = "left", version = "1.0" }\n')


def _crates(built: Built) -> list[str]:
    """The crates that the image has."""
    names = {entry.name.decode() for entry in read_cpio((built.folder / "initramfs").read_bytes())}
    return sorted(name.split("/")[5] for name in names if name.startswith(f"{FOLDER}/vendor/") and name.count("/") == 5)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["left"], ["left-2.0.0"]),
        (["left@1"], ["left-1.4.2"]),  # 1.5 is for a newer compiler, 1.6 was yanked
        (["left@=1.0.0"], ["left-1.0.0"]),
        (["left@>=1, <3"], ["left-2.0.0"]),
        (["old", "left@2"], ["left-1.4.2", "left-2.0.0", "old-0.3.1"]),
        (["old", "low"], ["left-1.0.0", "low-1.0.0", "old-0.3.1"]),  # the first choice, 1.4.2, is too new for both
        (["ser"], ["ser-1.0.0"]),
        (["ser[derive]"], ["macros-1.0.0", "ser-1.0.0"]),
        (["ser@1[wide,derive]"], ["left-1.4.2", "macros-1.0.0", "ser-1.0.0"]),
        (["system"], ["left-1.4.2", "old-0.3.1", "system-0.1.0", "winapi-0.3.9"]),
        (["renamed"], ["left-1.4.2", "renamed-1.0.0"]),
    ],
)
def test_crates_are_those_that_cargo_would_choose(layout: Path, server: PackageServer, wanted: list[str], found: list[str]) -> None:
    _fill(server)
    built = _build(layout, server, *wanted)
    assert _crates(built) == found
    real = [name for name in found if not name.startswith("winapi")]  # an empty crate stands for what is for other systems
    assert [f"{package.name}-{package.version}" for package in built.manifest.packages] == real
    assert {(package.kind, package.license) for package in built.manifest.packages} == {("cargo", "MIT")}
    for package in built.manifest.packages:
        assert package.digest == f"sha256:{sha256(server.pages[f'/crates/{package.name}/{package.version}/download'])}"


@pytest.mark.parametrize("library", ["gnu", "musl"])
def test_crates_are_those_for_the_images_c_library(tmp_path: Path, server: PackageServer, library: str) -> None:
    loader = f"lib/ld-musl-{platform.machine()}.so.1" if library == "musl" else f"lib/{platform.machine()}-linux-gnu/libc.so.6"
    layout = layout_of(tmp_path / "layout", tar(member(b"etc/toy-version", b"1.70.0"), member(loader.encode())))
    needs = "".join(f'[target.\'cfg(target_env = "{env}")\'.dependencies]\n{env} = "1"\n' for env in ("gnu", "musl"))
    triple = f'[target.{platform.machine()}-unknown-linux-musl.dependencies]\nby-triple = "1"\n'
    add_crate(server, "system", "0.1.0", needs + triple)
    for name in ("gnu", "musl", "by-triple"):
        add_crate(server, name, "1.0.0")
    built = _build(layout, server, "system")
    assert [package.name for package in built.manifest.packages] == [*(["by-triple"] if library == "musl" else []), library, "system"]


@pytest.mark.skipif(not CARGO, reason="no cargo on this host")
def test_cargo_builds_with_them_without_a_network(layout: Path, server: PackageServer, tmp_path: Path) -> None:
    """The program that the prepare steps build, which needs all that was asked for; and one of its
    own, in the versions that are there.
    """
    _fill(server)
    built = _build(layout, server, "ser[derive,wide]", "system", "left@2")
    root = tmp_path / "root"
    unpack(built.folder, root)
    vendor = f"source.image.directory={json.dumps(str(root / FOLDER / 'vendor'))}"
    program = root / "work/program"
    (program / "src").mkdir(parents=True)
    (program / "Cargo.toml").write_text(
        '[package]\nname = "program"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\nleft = "2"\n'
        'ser = { version = "1", features = ["derive"] }\n'
    )
    (program / "src/main.rs").write_text('fn main() { println!("{} {}", left::VERSION, ser::VERSION); }\n')
    # The manifest in /.cargo counts where it lies above the program, as in the image.
    command = [CARGO or "cargo", "--config", vendor, "run", "--quiet", "--target-dir", str(tmp_path / "target")]
    for folder, output in ((root / FOLDER / "packages", ""), (program, "2.0.0 1.0.0\n")):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        assert (done.stdout, done.returncode) == (output, 0), done.stderr


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (["nothing"], ImageError, "--package needs nothing, which the index has not"),
        (["Left"], ImageError, "--package needs Left, which the index has as 'left'"),
        (["left@9"], ImageError, r"needs left@9, of which the index has no version: the newest for this compiler is 2\.0\.0"),
        (["low", "high"], ImageError, r"high-1\.0\.0 needs left@\^1\.4, and 1\.0\.0 is chosen"),
        (["left@1", "left@2"], ConfigError, "a crate is asked for twice"),
        (["../left"], ConfigError, "is not a crate"),
        (["left[no way]"], ConfigError, "is not a crate"),
        (["left@one"], ImageError, "is not a range of versions"),
        (["ser[nothing]"], ImageError, r"ser-1\.0\.0 has no feature 'nothing'"),
        (["bad"], ImageError, "needs '../../etc', which is not a name"),
        (["elsewhere"], ImageError, "of another index"),
        (["odd"], ImageError, "which makes no sense"),
    ],
)
def test_what_cannot_be_had_is_said(layout: Path, server: PackageServer, wanted: list[str], error: type[MayflyError], message: str) -> None:
    _fill(server)
    need = {"name": "left", "req": "1", "kind": "normal", "target": None}
    add_crate(server, "high", "1.0.0", '[dependencies]\nleft = "^1.4"\n')
    add_crate(server, "bad", "1.0.0", deps=[{**need, "name": "../../etc"}])
    add_crate(server, "elsewhere", "1.0.0", deps=[{**need, "registry": "https://example.org"}])
    add_crate(server, "odd", "1.0.0", deps=[{**need, "target": "cfg(all("}])
    with pytest.raises(error, match=message):
        _build(layout, server, *wanted)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tgz({"left-3.0.0/../../etc/passwd": b"x"}), "leads elsewhere"),
        (tgz({"left-3.0.0/src/lib.rs": b"x" * 5000})[:-20], "is damaged"),
    ],
    ids=["up", "cut"],
)
def test_hostile_crates_are_refused(layout: Path, server: PackageServer, data: bytes, message: str) -> None:
    add_crate(server, "left", "3.0.0", cksum=sha256(data))
    server.pages["/crates/left/3.0.0/download"] = data
    with pytest.raises(LayerError, match=message):
        _build(layout, server, "left")


def test_another_crate_than_the_index_names_is_refused(layout: Path, server: PackageServer) -> None:
    add_crate(server, "left", "3.0.0")
    server.pages["/crates/left/3.0.0/download"] = tgz({"left-3.0.0/src/lib.rs": b""})
    with pytest.raises(MayflyError, match="hashes to"):
        _build(layout, server, "left")


@pytest.mark.parametrize(
    ("target", "is_it"),
    [
        ("", True),
        ("x86_64-unknown-linux-gnu", True),
        ("aarch64-unknown-linux-gnu", False),
        ("cfg(unix)", True),
        ("cfg(windows)", False),
        ('cfg(not(any(windows, target_os = "macos")))', True),
        ('cfg(all(target_arch = "x86_64", target_env = "gnu",))', True),
        ('cfg(any(target_arch = "wasm32", all(miri, unix)))', False),
        ('cfg(target_has_atomic = "ptr")', True),
    ],
)
def test_conditions_are_those_of_the_images_programs(target: str, is_it: bool) -> None:
    assert holds(target, Programs("x86_64", "gnu")) is is_it


@pytest.mark.parametrize("target", ["cfg(", "cfg()", "cfg(unix))", "cfg(unix unix)", "cfg(a =)", "cfg(%)", "cfg(" + "not(" * 600])
def test_conditions_that_make_no_sense_are_refused(target: str) -> None:
    with pytest.raises(ImageError, match="makes no sense"):
        holds(target, Programs("x86_64", "gnu"))


def test_features_are_of_the_crate_before_them() -> None:
    words = "rust --package serde@1 --features derive,rc --features=std --package=rand@0.8 --json"
    assert joined(words.split()) == ["rust", "--package", "serde@1[derive,rc,std]", "--package=rand@0.8", "--json"]
    with pytest.raises(click.UsageError):
        joined(["--features", "derive", "--package", "serde"])
    with pytest.raises(click.UsageError, match="'--features' requires an argument"):
        joined(["--package", "serde", "--features"])
    assert joined(["rust", "--package"]) == ["rust", "--package"]  # click says what it lacks


def test_dependencies_that_are_not_there_are_said(tmp_path: Path) -> None:
    """By the build step, before anything is compiled."""
    (tmp_path / "Cargo.toml").write_text(
        '[package]\nname = "x"\nversion = "0.1.0"\n\n# dependencies:\n[dependencies]\nserde = { version = "1", features = ["derive"] }\n'
        'rand="0.8"\nown = { path = "own" }\nnumbers = { features = [], version="0.4", package = \'num\' }\n  pathfinding.version = "4"\n'
        'any = "*"\nshared.workspace = true\nmaybe = { version = "1", optional = true }\n'
        "\n[target.'cfg(windows)'.dependencies]\nwinapi = '0.3'\n"
        '\n[dependencies.tokio]\nversion = "1"\n\n[dev-dependencies]\nproptest = "1"'
    )
    step = next(found for found in load_language("rust").steps if found.name == "build")
    done = subprocess.run([*step.argv[:5], "false"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"Cargo.toml: the image has no {name.partition('@')[0]}; add it: imagegen build rust --package '{name}'"
        for name in ("serde@1", "rand@0.8", "num@0.4", "pathfinding@4", "any@*", "tokio")
    ]
