#!/bin/sh
# Build the runtime, for speed, as the interpreter's loop is what runs: wasm/build.sh [ARCH] -> imagegen/agents/mayfly-wasm.ARCH
# (scripts/rustc-static has the rest)
exec "$(dirname "$0")/../scripts/rustc-static" wasm 3 "$@"
