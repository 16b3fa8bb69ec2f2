"""Tiny guests: a few lines of assembler, linked as an ELF file that the VMM boots like a kernel."""

import subprocess
from pathlib import Path

ENTRY = 0x10_0000


def build(folder: Path, source: str) -> Path:
    """Assemble 64-bit `source` (Intel syntax), to be entered at its first instruction; the ELF file's path."""
    text = folder / "tiny.S"
    text.write_text(f".intel_syntax noprefix\n.globl _start\n_start:\n{source}\n")
    kernel = folder / "tiny.elf"
    flags = ["-nostdlib", "-static", f"-Wl,-Ttext={ENTRY:#x}", "-Wl,--build-id=none,-z,noseparate-code,-N,--no-warn-rwx-segments"]
    subprocess.run(["gcc", *flags, "-o", kernel, text], check=True)
    return kernel
