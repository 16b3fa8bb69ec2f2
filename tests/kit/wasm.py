"""WebAssembly modules written by hand, and Mayfly's runtime as a process."""

import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 120.0
STOPPED, TRAPPED, REFUSED = 75, 134, 126
I32, I64, F32, F64 = b"\x7f", b"\x7e", b"\x7d", b"\x7c"
PAGE = 65536
PIPE = 65536
"""Bytes that a pipe takes, as Linux makes them."""


def leb(number: int) -> bytes:
    """An unsigned integer."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def sleb(number: int) -> bytes:
    """A signed integer."""
    out = bytearray()
    while not -64 <= number < 64:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number & 0x7F))


def vector(parts: Iterable[bytes]) -> bytes:
    """A count, and as many parts."""
    parts = list(parts)
    return leb(len(parts)) + b"".join(parts)


def text(data: str | bytes) -> bytes:
    """A length, and as many bytes."""
    data = data.encode() if isinstance(data, str) else data
    return leb(len(data)) + data


def section(number: int, content: bytes) -> bytes:
    """A section of a module."""
    return bytes((number,)) + text(content)


class Code:
    """Instructions by their names, as far as tests write them."""

    unreachable, nop, end, otherwise, return_, drop, select = (bytes((code,)) for code in (0x00, 0x01, 0x0B, 0x05, 0x0F, 0x1A, 0x1B))
    i32_eqz, i32_eq, i32_lt_s, i32_add, i32_sub, i32_mul, i32_div_s = (
        bytes((code,)) for code in (0x45, 0x46, 0x48, 0x6A, 0x6B, 0x6C, 0x6D)
    )
    i64_add, i64_mul, i64_extend_u, i32_wrap = (bytes((code,)) for code in (0x7C, 0x7E, 0xAD, 0xA7))

    @staticmethod
    def block(kind: bytes = b"\x40") -> bytes:
        return b"\x02" + kind

    @staticmethod
    def loop(kind: bytes = b"\x40") -> bytes:
        return b"\x03" + kind

    @staticmethod
    def when(kind: bytes = b"\x40") -> bytes:
        return b"\x04" + kind

    @staticmethod
    def br(depth: int) -> bytes:
        return b"\x0c" + leb(depth)

    @staticmethod
    def br_if(depth: int) -> bytes:
        return b"\x0d" + leb(depth)

    @staticmethod
    def br_table(*depths: int) -> bytes:
        return b"\x0e" + vector(map(leb, depths[:-1])) + leb(depths[-1])

    @staticmethod
    def call(function: int) -> bytes:
        return b"\x10" + leb(function)

    @staticmethod
    def call_indirect(kind: int) -> bytes:
        return b"\x11" + leb(kind) + b"\x00"

    @staticmethod
    def get(local: int) -> bytes:
        return b"\x20" + leb(local)

    @staticmethod
    def set(local: int) -> bytes:
        return b"\x21" + leb(local)

    @staticmethod
    def tee(local: int) -> bytes:
        return b"\x22" + leb(local)

    @staticmethod
    def i32(number: int) -> bytes:
        return b"\x41" + sleb(number)

    @staticmethod
    def i64(number: int) -> bytes:
        return b"\x42" + sleb(number)

    @staticmethod
    def load(offset: int = 0) -> bytes:
        return b"\x28\x02" + leb(offset)

    @staticmethod
    def store(offset: int = 0) -> bytes:
        return b"\x36\x02" + leb(offset)

    @staticmethod
    def store64(offset: int = 0) -> bytes:
        return b"\x37\x03" + leb(offset)


class Kind(NamedTuple):
    """A function's type."""

    params: bytes = b""
    results: bytes = b""

    def encoded(self) -> bytes:
        return b"\x60" + text(self.params) + text(self.results)


WASI = {
    "fd_write": Kind(I32 * 4, I32),
    "fd_read": Kind(I32 * 4, I32),
    "fd_fdstat_set_flags": Kind(I32 * 2, I32),
    "proc_exit": Kind(I32),
    "clock_time_get": Kind(I32 + I64 + I32, I32),
    "poll_oneoff": Kind(I32 * 4, I32),
    "sched_yield": Kind(b"", I32),
    "sock_accept": Kind(I32 * 3, I32),
    "sock_open": Kind(I32 * 4, I32),
    "sock_connect": Kind(I32 * 2, I32),
    # As WasmEdge has them.
    "sock_bind": Kind(I32 * 3, I32),
    "sock_getsockopt": Kind(I32 * 5, I32),
}


@dataclass
class Module:
    """A command of functions; the imports come first among them, and the last one is `_start`."""

    imports: Sequence[str] = ()
    functions: list[tuple[Kind, bytes, bytes]] = field(default_factory=list)
    """Type, locals (a byte for each) and code without the last `end`."""
    data: dict[int, bytes] = field(default_factory=dict)
    table: Sequence[int] = ()
    pages: int = 1
    """At the start."""
    growth: int = 63
    """Pages by which it may grow."""
    extra: dict[int, bytes] = field(default_factory=dict)
    """Sections as they are, in the stead of ours or besides."""

    def kinds(self) -> list[Kind]:
        """The types, in their order."""
        every = [WASI[name] for name in self.imports] + [kind for kind, _, _ in self.functions]
        return list(dict.fromkeys(every))

    def encoded(self) -> bytes:
        """The module's file."""
        kinds = self.kinds()
        sections = {
            1: vector(kind.encoded() for kind in kinds),
            2: vector(text("wasi_snapshot_preview1") + text(name) + b"\x00" + leb(kinds.index(WASI[name])) for name in self.imports),
            3: vector(leb(kinds.index(kind)) for kind, _, _ in self.functions),
            4: vector([b"\x70\x00" + leb(len(self.table))] if self.table else []),
            5: vector([b"\x01" + leb(self.pages) + leb(self.pages + self.growth)]),
            7: vector([text("_start") + b"\x00" + leb(len(self.imports) + len(self.functions) - 1), text("memory") + b"\x02\x00"]),
            9: vector([b"\x00\x41\x00\x0b" + vector(map(leb, self.table))] if self.table else []),
            10: vector(text(vector(b"\x01" + bytes((local,)) for local in locals) + code + b"\x0b") for _, locals, code in self.functions),
            11: vector(b"\x00" + Code.i32(at) + b"\x0b" + text(data) for at, data in self.data.items()),
            **self.extra,
        }
        return b"\0asm\1\0\0\0" + b"".join(
            section(number, sections[number]) for number in sorted(sections, key=lambda n: n if n < 12 else 9.5)
        )


def program(code: bytes, locals: bytes = b"", **parts: object) -> Module:
    """A module of one function."""
    return Module(functions=[(Kind(), locals, code)], **parts)  # type: ignore[arg-type]


@functools.cache
def build(machine: str = os.uname().machine) -> Path:
    """Build the runtime if its sources have changed; the path of the executable."""
    subprocess.run([ROOT / "wasm" / "build.sh", machine], check=True, stdout=subprocess.DEVNULL)
    return ROOT / "imagegen" / "agents" / f"mayfly-wasm.{machine}"


class Ended(NamedTuple):
    """How a process of the runtime ended."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def stats(self) -> dict[str, float]:
        """What `--stats` told."""
        stats: dict[str, float] = json.loads(self.stderr.splitlines()[-1].split(": ", 1)[1])
        return stats


def execute(*words: str | Path, stdin: bytes | Path = b"", runtime: Sequence[str | Path] = (), cwd: Path | None = None) -> Ended:
    """Run the runtime to its end. Standard input comes through a pipe, or is a file. If a pipe has
    room for all of it, it is there before the program begins, and so at each of its ticks.
    """
    command = [*(runtime or (build(),)), *words]
    with contextlib.ExitStack() as stack:
        if isinstance(stdin, Path):
            source: Any = {"stdin": stack.enter_context(stdin.open("rb"))}
        elif len(stdin) <= PIPE:
            reading, writing = os.pipe()
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(stdin)
            source = {"stdin": stack.enter_context(os.fdopen(reading, "rb"))}
        else:
            source = {"input": stdin}
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, cwd=cwd, check=False, **source)
    return Ended(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
