"""Print the path of an emulator of another architecture's programs.

Usage: python -m scripts.debian.qemu_user ARCH

It is this machine's, or else Debian's, unpacked into the cache on first use. Nothing is installed.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from scripts.debian.mirror import DEBIAN, SUITE
from scripts.debian.root import HostFilesError, unpack
from scripts.kvmhost.hostfiles import preparing


def emulator(arch: str) -> Path:
    """A program that runs a static program of `arch`; HostFilesError says why there is none."""
    for name in (f"qemu-{arch}-static", f"qemu-{arch}"):
        found = shutil.which(name)
        if found:
            return Path(found)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mayfly"
    folder = cache / f"qemu-user-{SUITE}"
    cache.mkdir(parents=True, exist_ok=True)
    with preparing(cache):
        if not folder.exists():
            make(folder)
    return folder / "usr/bin" / f"qemu-{arch}"


def make(folder: Path) -> None:
    print(f"qemu-user: fetching Debian {SUITE}'s emulator (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".qemu-user-") as work:
        tree = Path(work) / "tree"
        # Debian links it statically.
        unpack(tree, ["qemu-user"], parts=[f"./usr/bin/qemu-{arch}" for arch in DEBIAN])
        tree.chmod(0o755)
        tree.rename(folder)


def main() -> None:
    arch = sys.argv[1] if sys.argv[1:] else ""
    if arch not in DEBIAN:
        sys.exit(f"qemu-user: give one of {', '.join(DEBIAN)}")
    print(emulator(arch))


if __name__ == "__main__":
    try:
        main()
    except HostFilesError as error:
        sys.exit(f"qemu-user: {error}")
