"""Print the path of an emulator of another architecture's programs.

Usage: python -m scripts.debian.qemu_user ARCH

It is this machine's, or else Debian's, unpacked into the cache on first use. Nothing is installed.
"""

import shutil
from pathlib import Path

from scripts.debian.cached import cached, print_path
from scripts.debian.mirror import DEBIAN, SUITE
from scripts.debian.root import unpack


def emulator(arch: str) -> Path:
    """A program that runs a static program of `arch`; HostFilesError says why there is none."""
    for name in (f"qemu-{arch}-static", f"qemu-{arch}"):
        found = shutil.which(name)
        if found:
            return Path(found)
    return cached(f"qemu-user-{SUITE}", f"Debian {SUITE}'s emulator of processors", make) / "usr/bin" / f"qemu-{arch}"


def make(tree: Path) -> None:
    # Debian links it statically.
    unpack(tree, ["qemu-user"], parts=[f"./usr/bin/qemu-{arch}" for arch in DEBIAN])


if __name__ == "__main__":
    print_path("qemu-user", DEBIAN, emulator)
