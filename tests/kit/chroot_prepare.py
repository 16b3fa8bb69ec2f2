"""An image's steps without a machine, for root: in a chroot.

`python -m tests.kit.chroot_prepare imagegen prepare FOLDER OUT PATH…` does what `imagegen prepare`
does in a guest. For `--prepare-with`.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mayfly.imagegen.rootfs.furnish import RUNNER
from mayfly.images.manifest import LanguageStep, Manifest, load


def enter(root: Path) -> list[str]:
    """What goes before a command that is run as the agent would, in a namespace of its own."""
    within = 'mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/dev" && mknod -m 666 "$0/dev/null" c 1 3 && exec "$@"'
    chroot = ["/usr/sbin/chroot", f"--userspec={RUNNER}:{RUNNER}", str(root)]
    return ["unshare", "--mount", "--net", "sh", "-c", within, str(root), *chroot]


def extract(archive: Path, root: Path) -> None:
    """Unpack an initramfs, of whatever compression, with its owners."""
    packed = archive.read_bytes()[:4]
    unpack = {b"\x28\xb5\x2f\xfd": "zstd -dc", b"\x1f\x8b\x08\x00": "gzip -dc", b"\x02\x21\x4c\x18": "lz4 -dc"}.get(packed, "cat")
    root.mkdir(exist_ok=True)
    subprocess.run(["sh", "-c", f'{unpack} "$0" | cpio -idm --quiet', str(archive)], cwd=root, check=True)


def call(root: Path, manifest: Manifest, step: LanguageStep, **how: Any) -> "subprocess.CompletedProcess[Any]":
    """Run a step of the image in `root`, its options at their defaults."""
    argv = [word for word in step.argv if word != "{args}"]
    for name, option in manifest.options.items():
        argv = [word.replace(f"{{{name}}}", option.default) for word in argv]
    command = [*enter(root), "sh", "-c", 'cd "$0" && exec "$@"', step.cwd, *argv]
    return subprocess.run(command, env={"HOME": "/work", **manifest.env, **step.env}, **{"check": False, **how})


def run(root: Path, manifest: Manifest, files: Mapping[str, str]) -> "subprocess.CompletedProcess[Any]":
    """Run a snippet of these files by the image's own steps, in a renewed workspace: how the last
    one ended.
    """
    for path in [path for name in ("work", "tmp") for path in (root / name).iterdir()]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, text in files.items():
        (root / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "work" / name).write_text(text)
    subprocess.run(["chown", "-R", f"{RUNNER}:{RUNNER}", str(root / "work")], check=True)
    for step in manifest.steps:
        done = call(root, manifest, step, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            break
    return done


def prepare(folder: Path, out: Path, paths: list[str]) -> None:
    """Run the steps of the image's manifest, and write what is then in `paths` to the tar `out`."""
    manifest = load(folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        root = Path(temporary) / "root"
        extract(folder / "initramfs", root)
        for step in manifest.steps:
            print(f"chroot_prepare: {step.name}", file=sys.stderr, flush=True)
            call(root, manifest, step, stdin=subprocess.DEVNULL, check=True)
        with tarfile.open(out, "w") as tar:
            for path in paths:
                tar.add(root / path.lstrip("/"), path.lstrip("/"), filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    os.umask(0o022)
    prepare(Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
