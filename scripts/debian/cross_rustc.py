"""Print the path of a Rust compiler for another architecture than this machine's.

Usage: python -m scripts.debian.cross_rustc ARCH

It is Debian's, with that architecture's standard library, unpacked into the cache on first use.
Nothing is installed. It links with ARCH-linux-gnu-gcc.
"""

import platform
import shutil
from pathlib import Path

from scripts.debian.cached import cached, print_path
from scripts.debian.mirror import DEBIAN, SUITE
from scripts.debian.root import LIBRARIES, HostFilesError, unpack


def compiler(arch: str) -> Path:
    """The program that compiles for `arch`; HostFilesError says why there is none."""
    if not shutil.which(f"{arch}-linux-gnu-gcc"):
        raise HostFilesError(f"{arch}-linux-gnu-gcc is missing; run 'make setup'")
    return cached(f"rustc-{SUITE}-{arch}", f"Debian {SUITE}'s Rust compiler for {arch}", lambda tree: make(tree, arch)) / "rustc"


def make(tree: Path, arch: str) -> None:
    packages = ["rustc", f"libstd-rust-dev:{DEBIAN[arch]}"]
    parts = ["./usr/bin/rustc", f"./{LIBRARIES}", "./usr/lib/rustlib"]
    unpack(tree, packages, f"{DEBIAN[platform.machine()]},{DEBIAN[arch]}", parts)
    loader = next((tree / LIBRARIES).glob("ld-linux-*")).name
    program = tree / "rustc"
    rustc = f'"$here/{LIBRARIES}/{loader}" --library-path "$here/{LIBRARIES}" "$here/usr/bin/rustc" --sysroot "$here/usr"'
    program.write_text(f'#!/bin/sh\nhere=${{0%/*}}\nexec {rustc} -C linker={arch}-linux-gnu-gcc "$@"\n')
    program.chmod(0o755)


if __name__ == "__main__":
    print_path("cross-rustc", DEBIAN.keys() - {platform.machine()}, compiler)
