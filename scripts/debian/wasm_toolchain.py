"""Print the path of a program that compiles a file to WebAssembly (wasip1): PROGRAM SOURCE OUTPUT.

Usage: python -m scripts.debian.wasm_toolchain LANGUAGE      (rust, go or c)

The compilers are Debian's, unpacked into the cache on first use. Nothing is installed.
"""

from pathlib import Path
from typing import NamedTuple

from scripts.debian.cached import cached, print_path
from scripts.debian.mirror import SUITE
from scripts.debian.root import LIBRARIES, unpack


class Toolchain(NamedTuple):
    packages: tuple[str, ...]
    parts: tuple[str, ...]
    """What is taken of the packages and of all that they depend on."""
    script: str
    """A shell script's lines; `$here` is the folder, `run` executes one of its dynamic programs."""


RUST = """
mkdir -p "$3.tmp"
printf '#!/bin/sh\\nexec "%s" --library-path "%s" "%s" "$@"\\n' "$loader" "$libraries" "$here/usr/bin/wasm-ld" >"$3.tmp/wasm-ld"
chmod +x "$3.tmp/wasm-ld"
run rustc --sysroot "$here/usr" --edition 2021 -O -C strip=symbols -C linker="$3.tmp/wasm-ld" --target wasm32-wasip1 "$1" -o "$2"
rm -r "$3.tmp"
"""
GO = """
GOROOT=$(echo "$here"/usr/lib/go-1.*)
export GOROOT GOCACHE="$here/cache" GOTOOLCHAIN=local GOOS=wasip1 GOARCH=wasm CGO_ENABLED=0
"$GOROOT/bin/go" build -ldflags='-s -w' -o "$2" "$1"
"""
C = """
resources=$(echo "$here"/usr/lib/llvm-*/lib/clang/*)
run clang --target=wasm32-wasi --sysroot="$here/usr" -resource-dir "$resources" -isystem "$here/usr/include/wasm32-wasi" \\
    -O2 -c "$1" -o "$2.o"
run wasm-ld -L"$here/usr/lib/wasm32-wasi" "$here/usr/lib/wasm32-wasi/crt1-command.o" "$2.o" -lm -lc \\
    "$(echo "$resources"/lib/*/libclang_rt.builtins*wasm32*.a)" --strip-all -o "$2"
rm "$2.o"
"""
TOOLCHAINS = {
    "rust": Toolchain(
        ("rustc", "libstd-rust-dev-wasm32", "lld"),
        ("./usr/bin", f"./{LIBRARIES}", "./usr/lib/rustlib/wasm32-wasip1", "./usr/lib/llvm-*/bin"),
        RUST,
    ),
    "go": Toolchain(("golang-go",), ("./usr/lib/go-*", "./usr/share/go-*"), GO),
    "c": Toolchain(
        ("clang", "lld", "wasi-libc", "libclang-rt-dev-wasm32"),
        (
            "./usr/bin",
            f"./{LIBRARIES}",
            "./usr/include/wasm32-wasi",
            "./usr/lib/wasm32-wasi",
            "./usr/lib/llvm-*/bin",
            "./usr/lib/llvm-*/lib",
        ),
        C,
    ),
}


def toolchain(language: str) -> Path:
    """The program that compiles; HostFilesError says why there is none."""
    what = f"Debian {SUITE}'s compiler of {language} for WebAssembly"
    return cached(f"wasm-{language}-{SUITE}", what, lambda tree: make(tree, TOOLCHAINS[language])) / "compile"


def make(tree: Path, wanted: Toolchain) -> None:
    unpack(tree, wanted.packages, parts=("--wildcards", *wanted.parts))
    lines = [
        "#!/bin/sh",
        "set -eu",
        'here=$(realpath "${0%/*}")',
        f'libraries="$here/{LIBRARIES}:$(echo "$here"/usr/lib/llvm-*/lib)"',
        f'loader=$(echo "$here/{LIBRARIES}"/ld-linux-*)',
        'run() { name=$1 && shift && "$loader" --library-path "$libraries" "$here/usr/bin/$name" "$@"; }',
        'set -- "$(realpath "$1")" "$2" "$2"',
        wanted.script.strip(),
    ]
    program = tree / "compile"
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)


if __name__ == "__main__":
    print_path("wasm-toolchain", TOOLCHAINS, toolchain)
