"""The real Rust images: how small they are, and that what is left of them builds programs. In a chroot: without a machine, but as root."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.manifest import Manifest, load
from tests.unit.rust_snippets import SNIPPETS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
CHROOT = shutil.which("chroot", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "chroot"


@pytest.fixture(scope="module", params=["debian", "docker"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Manifest, Path]]:
    """The manifest of a reference image's build, and its archive unpacked by GNU cpio."""
    if os.geteuid() != 0:
        pytest.skip("only root can unpack an archive with its owners, and chroot")
    folder = tmp_path_factory.mktemp(request.param)
    layout, built, root = folder / "layout", folder / "image", folder / "root"
    subprocess.run([ROOT / "scripts" / "reference-image", "rust", layout, "--layout", request.param], check=True)
    command = [
        sys.executable,
        "-m",
        "imagegen.cli",
        "build",
        "rust",
        "--image",
        f"oci:{layout}",
        "--output",
        str(built),
        "--compress",
        "zstd",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    root.mkdir()
    unpack = f"zstd -dc '{built}/initramfs' | cpio -idm --quiet"
    subprocess.run(["sh", "-c", unpack], cwd=root, check=True)
    os.mknod(root / "dev" / "null", 0o020666, os.makedev(1, 3))  # in a machine the agent mounts devtmpfs
    (root / "dev" / "null").chmod(0o666)
    yield load(built), root
    shutil.rmtree(folder)


def _in_image(manifest: Manifest, root: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as the agent would: as its user, in /work, with the image's environment alone."""
    return subprocess.run(
        [CHROOT, "--userspec=1000:1000", str(root), "sh", "-c", 'cd /work && exec "$@"', "sh", *command],
        env=dict(manifest.env),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_it_is_small(image: tuple[Manifest, Path]) -> None:
    manifest, root = image
    print(json.dumps({"unpacked_mib": manifest.unpacked_size / MIB, "archive_mib": manifest.initramfs_size / MIB}))
    assert manifest.unpacked_size <= 420 * MIB
    assert manifest.initramfs_size <= 130 * MIB
    assert manifest.version.startswith("1.85")
    assert (root / "mayfly" / "end").read_text() == manifest.end_marker


def test_it_builds_and_runs_twenty_programs(image: tuple[Manifest, Path]) -> None:
    manifest, root = image
    build = manifest.steps[0].argv
    failed = {}
    for name, (source, expected) in SNIPPETS.items():
        (root / "work" / manifest.source_file).write_text(source)
        extra = ("--test",) if "#[test]" in source else ()
        built = _in_image(manifest, root, *build, *extra)
        ran = _in_image(manifest, root, "./main") if built.returncode == 0 else built
        right = expected in ran.stdout if extra else ran.stdout == expected
        if ran.returncode != 0 or not right:
            failed[name] = built.stderr + ran.stdout + ran.stderr
    assert failed == {}
    assert len(SNIPPETS) == 20


def test_a_compile_error_is_the_compilers(image: tuple[Manifest, Path]) -> None:
    manifest, root = image
    (root / "work" / manifest.source_file).write_text("fn main() { let x: u8 = true; }")
    built = _in_image(manifest, root, *manifest.steps[0].argv)
    assert built.returncode == 1
    assert "mismatched types" in built.stderr
