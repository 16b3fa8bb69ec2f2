"""Programs of several languages, compiled to WebAssembly once and kept by their content."""

import atexit
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from mayfly import paths
from scripts.debian.qemu_user import emulator
from scripts.debian.root import LIBRARIES, HostFilesError
from scripts.debian.wasm_toolchain import TOOLCHAINS, toolchain
from tests.kit.wasm import build

SOURCES = Path(__file__).parent.parent / "programs" / "wasm"
LANGUAGES = {".rs": "rust", ".go": "go", ".c": "c"}


class Program(NamedTuple):
    """A program and what its test gives it."""

    source: str
    stdin: bytes = b""
    status: int = 0


PROGRAMS = (
    Program("sieve.rs"),
    Program("nbody.rs"),
    Program("tree.rs"),
    Program("lines.rs", stdin=b"".join(b"line %d of some words\n" % number for number in range(64))),
    Program("chans.go"),
    Program("counter.c", status=7),
    Program("gemm.c"),
    Program("readfile.c"),
)


def compiled(source: Path) -> Path:
    """The module of a source file; the test is skipped where its compiler cannot be had."""
    language = LANGUAGES[source.suffix]
    what = hashlib.sha256(source.read_bytes() + repr(TOOLCHAINS[language]).encode()).hexdigest()[:16]
    cache = paths.cache_dir() / "wasm-modules"
    module = cache / f"{source.stem}-{what}.wasm"
    if not module.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f".{source.stem}-{what}-{os.getpid()}.wasm"
        try:
            subprocess.run([_toolchain(language), source, part], check=True, capture_output=True)
            part.rename(module)
        finally:
            part.unlink(missing_ok=True)
    return module


@functools.cache
def compiler(language: str) -> Path:
    """A folder with the programs of a language's compiler, by their own names."""
    here = _toolchain(language).parent
    if language == "go":
        return next(here.glob("usr/lib/go-1.*")) / "bin"
    folder = Path(tempfile.mkdtemp(prefix="mayfly-compiler-"))
    atexit.register(shutil.rmtree, folder)
    (loader,) = (here / LIBRARIES).glob("ld-linux-*")
    for name, more in (("rustc", f'--sysroot "{here}/usr"'), ("wasm-ld", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{loader}" --library-path "{here / LIBRARIES}" "{here}/usr/bin/{name}" {more} "$@"\n')
        program.chmod(0o755)
    return folder


@functools.cache
def _toolchain(language: str) -> Path:
    try:
        return toolchain(language)
    except (HostFilesError, OSError) as error:
        pytest.skip(f"no compiler of {language} for WebAssembly: {error}")


@functools.cache
def emulated_runtime() -> tuple[Path, Path]:
    """The command that runs the runtime of the other architecture."""
    arch = "x86_64" if platform.machine() == "aarch64" else "aarch64"
    try:
        return emulator(arch), build(arch)
    except (HostFilesError, OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no runtime of {arch}: {error}")
