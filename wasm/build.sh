#!/bin/sh
# Build the runtime as one static executable: wasm/build.sh [ARCH] -> imagegen/agents/mayfly-wasm.ARCH
# ARCH is x86_64 or aarch64 (default: this machine's). Needs rustc >= 1.63 and a C linker, no cargo, no crates, no network. For another
# architecture than this machine's, scripts/debian/cross_rustc.py brings the compiler.
# Nothing is done when neither the sources nor the compiler have changed since the last time.
set -eu
cd "$(dirname "$0")/.."
arch=${1:-$(uname -m)}
out=imagegen/agents/mayfly-wasm.$arch

case $arch in
    "$(uname -m)") rustc=rustc ;;
    aarch64 | x86_64) rustc=$(${PYTHON:-.venv/bin/python} -m scripts.debian.cross_rustc "$arch") ;;
    *) echo "wasm/build.sh: unknown architecture $arch (x86_64 and aarch64 are known)" >&2; exit 2 ;;
esac
if ! command -v "$rustc" >/dev/null; then
    echo "wasm/build.sh: rustc is missing; on Debian: apt-get install rustc" >&2
    exit 1
fi

wanted=$({ "$rustc" -vV; cat wasm/build.sh; find wasm/src -name '*.rs' | LC_ALL=C sort | xargs sha256sum; } | sha256sum | cut -d' ' -f1)
if [ -x "$out" ] && [ "$(cat "$out.built-from" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

mkdir -p imagegen/agents
part=$(mktemp -d "imagegen/agents/.part-XXXXXX")
trap 'rm -rf "$part"' EXIT INT TERM
# The interpreter's loop is what runs: speed before size. A panic ends the program, and needs no unwinder.
"$rustc" --edition 2021 --crate-name mayfly_wasm --target "$arch-unknown-linux-gnu" \
    -C opt-level=3 -C panic=abort -C lto -C codegen-units=1 -C strip=symbols -C target-feature=+crt-static \
    --remap-path-prefix "$PWD=." wasm/src/main.rs -o "$part/wasm"
mv "$part/wasm" "$out"
echo "$wanted" > "$out.built-from"
echo "wasm/build.sh: built $out ($(stat -c %s "$out") bytes)"
