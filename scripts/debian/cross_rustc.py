"""Print the path of a Rust compiler for another architecture than this machine's.

Usage: python -m scripts.debian.cross_rustc ARCH

It is Debian's, with that architecture's standard library, unpacked into the cache on first use.
Nothing is installed. It links with ARCH-linux-gnu-gcc.
"""

import platform
import shutil
import sys
from pathlib import Path

from scripts.debian.cached import cached
from scripts.debian.mirror import DEBIAN, SUITE
from scripts.debian.root import LIBRARIES, HostFilesError, unpack


def main() -> None:
    arch = sys.argv[1] if sys.argv[1:] else ""
    if arch not in DEBIAN or arch == platform.machine():
        sys.exit(f"cross-rustc: give one of {', '.join(sorted(DEBIAN.keys() - {platform.machine()}))}")
    if not shutil.which(f"{arch}-linux-gnu-gcc"):
        sys.exit(f"cross-rustc: {arch}-linux-gnu-gcc is missing; run 'make setup'")
    folder = cached(f"rustc-{SUITE}-{arch}", f"Debian {SUITE}'s Rust compiler for {arch}", lambda tree: make(tree, arch))
    print(folder / "rustc")


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
    try:
        main()
    except HostFilesError as error:
        sys.exit(f"cross-rustc: {error}")
