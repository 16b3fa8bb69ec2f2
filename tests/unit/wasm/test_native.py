"""What a program does as the processor's own code is what it does interpreted: random programs give
the same bytes, the same trap and the same count of ticks, and go on in the one from a checkpoint of
the other.
"""

import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kit.scale import scaled
from tests.kit.wasm import I32, I64, STOPPED, TRAPPED, Code, Ended, Kind, Module, execute, leb, program, sleb, vector
from tests.kit.wasm_programs import emulated_runtime
from tests.unit.wasm.test_checkpoints import IOV

pytestmark = pytest.mark.timeout(600)
C = Code
F32, F64 = b"\x7d", b"\x7c"
KINDS = (I32, I64, F32, F64)
EACH = 9
"""Locals of each kind: more than there are registers."""
MEMORY = 4096
"""Bytes that the program works on, and writes in the end; the buffer vector is behind them."""


def codes(first: int, last: int) -> tuple[bytes, ...]:
    return tuple(bytes((code,)) for code in range(first, last + 1))


def saturating(first: int, last: int) -> tuple[bytes, ...]:
    return tuple(bytes((0xFC, code)) for code in range(first, last + 1))


UNARY = {
    I32: {
        I32: (b"\x45", *codes(0x67, 0x69), *codes(0xC0, 0xC1)),
        I64: (b"\x50", b"\xa7"),
        F32: (b"\xbc", *saturating(0, 1), b"\xa8"),
        F64: (*saturating(2, 3), b"\xab"),
    },
    I64: {I32: codes(0xAC, 0xAD), I64: (*codes(0x79, 0x7B), *codes(0xC2, 0xC4)), F32: saturating(4, 5), F64: (b"\xbd", *saturating(6, 7))},
    F32: {I32: (*codes(0xB2, 0xB3), b"\xbe"), I64: codes(0xB4, 0xB5), F32: codes(0x8B, 0x91), F64: (b"\xb6",)},
    F64: {I32: codes(0xB7, 0xB8), I64: (*codes(0xB9, 0xBA), b"\xbf"), F32: (b"\xbb",), F64: codes(0x99, 0x9F)},
}
"""By the kind of the result and of the operand."""
BINARY = {
    I32: {
        I32: (*codes(0x46, 0x4F), *codes(0x6A, 0x6C), *codes(0x71, 0x78)),
        I64: codes(0x51, 0x5A),
        F32: codes(0x5B, 0x60),
        F64: codes(0x61, 0x66),
    },
    I64: {I64: (*codes(0x7C, 0x7E), *codes(0x83, 0x8A))},
    F32: {F32: (*codes(0x92, 0x98), *codes(0x92, 0x94) * 3)},
    F64: {F64: (*codes(0xA0, 0xA6), *codes(0xA0, 0xA2) * 3)},
}
DIVIDING = {I32: codes(0x6D, 0x70), I64: codes(0x7F, 0x82)}
TRUNCATING = {I32: {F32: codes(0xA8, 0xA9), F64: codes(0xAA, 0xAB)}, I64: {F32: codes(0xAE, 0xAF), F64: codes(0xB0, 0xB1)}}
CONVERTING = {F32: codes(0xB2, 0xB2), F64: codes(0xB7, 0xB7)}
LOADS = {I32: codes(0x28, 0x28) + codes(0x2C, 0x2F), I64: codes(0x29, 0x29) + codes(0x30, 0x35), F32: (b"\x2a",), F64: (b"\x2b",)}
STORES = {I32: (b"\x36", *codes(0x3A, 0x3B)), I64: (b"\x37", *codes(0x3C, 0x3E)), F32: (b"\x38",), F64: (b"\x39",)}


class Writer:
    """Writes random code of a function that has two parameters, an i32 and an f64, and EACH locals
    of each kind behind them.
    """

    def __init__(self, chance: random.Random, callees: Sequence[int]) -> None:
        self.chance = chance
        self.callees = callees
        self.locals = b"".join(kind * EACH for kind in KINDS)

    def local(self, kind: bytes) -> int:
        return 2 + KINDS.index(kind) * EACH + self.chance.randrange(EACH)

    def constant(self, kind: bytes) -> bytes:
        bits = {I32: 32, I64: 64}.get(kind)
        if bits:
            value = self.chance.choice((0, 1, -1, 7, 31, -(1 << (bits - 1)), self.chance.randrange(-(1 << 31), 1 << 31)))
            return (b"\x41" if kind == I32 else b"\x42") + sleb(value)
        number = self.chance.choice((0.0, -0.0, 1.5, -2.25, 1e30, 3e-39, float("inf"), float("nan"), self.chance.uniform(-1e6, 1e6)))
        return b"\x43" + struct.pack("<f", number) if kind == F32 else b"\x44" + struct.pack("<d", number)

    def address(self, depth: int) -> bytes:
        if self.chance.random() < 0.001:
            return self.value(I32, depth)  # which may be anywhere
        if self.chance.random() < 0.3:
            # There are bits above those of the address.
            base = self.value(I64, depth) + C.i64(-(1 << 32) | MEMORY - 512) + b"\x83" + C.i32_wrap
        else:
            base = self.value(I32, depth) + C.i32(MEMORY - 512) + b"\x71"
        return base + (C.tee(self.local(I32)) if self.chance.random() < 0.3 else b"")

    def accesses(self) -> bytes:
        """Several by one address, which changes now and then; it may be half of a number."""
        wide = self.chance.random() < 0.5
        at = self.local(I64 if wide else I32)
        above = C.i64(self.chance.randrange(-(1 << 31), 1 << 31) << 32) + b"\x84"
        get, put = C.get(at) + C.i32_wrap * wide, (C.i64_extend_u + above) * wide + C.set(at)
        code = self.address(1) + put
        for _ in range(self.chance.randrange(2, 6)):
            kind = self.chance.choice(KINDS)
            if self.chance.random() < 0.5:
                code += get + self.chance.choice(LOADS[kind]) + self.offset() + C.set(self.local(kind))
                code += get + C.i32(MEMORY - 512) + b"\x71" + put
            else:
                code += get + C.get(self.local(kind)) + self.chance.choice(STORES[kind]) + self.offset()
        return code

    def offset(self) -> bytes:
        return b"\x00" + leb(self.chance.choice((0, 0, 8, 500)))

    def value(self, kind: bytes, depth: int) -> bytes:
        chance = self.chance
        if depth == 0:
            return chance.choice((C.get(self.local(kind)), C.get(self.local(kind)), self.constant(kind)))
        match chance.randrange(11):
            case 0:
                return C.get(self.local(kind))
            case 1:
                source = chance.choice(KINDS)
                return self.value(source, depth - 1) + chance.choice(UNARY[kind][source])
            case 2:
                return self.address(depth - 1) + chance.choice(LOADS[kind]) + self.offset()
            case 3:
                return self.value(kind, depth - 1) + self.value(kind, depth - 1) + self.value(I32, depth - 1) + C.select
            case 4:
                return self.value(kind, depth - 1) + b"\x22" + leb(self.local(kind))
            case 5 if kind in DIVIDING:
                one = (C.i32(1) + b"\x72") if kind == I32 else (C.i64(1) + b"\x84")
                one = one if chance.random() > 0.01 else b""
                return self.value(kind, depth - 1) + self.value(kind, depth - 1) + one + chance.choice(DIVIDING[kind])
            case 6 if kind in (I64, F64):
                return b"\x23" + leb(0 if kind == I64 else 1)
            case 7 if kind == F64 and self.callees:
                return self.value(I32, depth - 1) + self.value(F64, depth - 1) + C.call(chance.choice(self.callees))
            case 8 if kind in TRUNCATING:
                source = chance.choice((F32, F64))
                small = self.value(I32, depth - 1) + C.i32(0xFFFFF) + b"\x71" + chance.choice(CONVERTING[source])
                number = small + self.constant(source) + chance.choice(codes(0x93, 0x94) if source == F32 else codes(0xA1, 0xA2))
                return (number if chance.random() < 0.01 else small) + chance.choice(TRUNCATING[kind][source])
            case _:
                source = chance.choice(list(BINARY[kind]))
                return self.value(source, depth - 1) + self.value(source, depth - 1) + chance.choice(BINARY[kind][source])

    def statement(self, depth: int) -> bytes:
        kind = self.chance.choice(KINDS)
        match self.chance.randrange(9):
            case 0:
                return self.address(1) + self.value(kind, 2) + self.chance.choice(STORES[kind]) + self.offset()
            case 1 if depth:
                return self.value(I32, 2) + C.when() + self.some(depth - 1) + C.otherwise + self.some(depth - 1) + C.end
            case 2 if depth:
                count, again = C.get(0) + C.i32(3) + b"\x71" + C.set(0), C.get(0) + C.i32(-1) + C.i32_add + C.tee(0) + C.br_if(0)
                return count + C.loop() + self.some(depth - 1) + C.get(0) + C.when() + again[:-2] + C.br_if(1) + C.end + C.end
            case 3:
                kind = self.chance.choice((I64, F64))
                return self.value(kind, 2) + b"\x24" + leb(0 if kind == I64 else 1)
            case 4 if depth:
                arms = C.block() + C.block() + C.block() + self.value(I32, 1) + C.br_table(0, 1, 2) + C.end
                return arms + self.some(depth - 1) + C.end + self.some(depth - 1) + C.end
            case 5:
                return self.accesses()
            case _:
                return self.value(kind, 3) + C.set(self.local(kind))

    def some(self, depth: int) -> bytes:
        return b"".join(self.statement(depth) for _ in range(self.chance.randrange(1, 5)))

    def function(self) -> tuple[Kind, bytes, bytes]:
        body = C.get(0) + C.set(self.local(I32)) + C.get(1) + C.set(self.local(F64))
        body += b"".join(self.some(2) for _ in range(3))
        return Kind(I32 + F64, F64), self.locals, body + self.value(F64, 2)


def random_module(seed: int) -> Module:
    """Functions that call those before them, and one that calls the last of them 40 times."""
    chance = random.Random(seed)
    functions = [Writer(chance, callees).function() for callees in ((), (1,), (1, 2))]
    add = C.i32(8) + C.get(0) + C.get(1) + C.call(3) + C.tee(1) + b"\x39" + b"\x03\x00"
    again = C.get(0) + C.i32(1) + C.i32_add + C.tee(0) + C.i32(40) + C.i32_lt_s + C.br_if(0)
    tell = C.i32(1) + C.i32(IOV) + C.i32(1) + C.i32(32) + C.call(0) + C.drop
    tell = tell.replace(C.i32(IOV), C.i32(MEMORY)).replace(C.i32(32), C.i32(MEMORY + 8))
    main = (Kind(), I32 + F64, C.loop() + add + again + C.end + tell)
    data = {0: chance.randbytes(MEMORY), MEMORY: struct.pack("<II", 0, MEMORY)}
    globals_ = vector((b"\x7e\x01\x42\x05\x0b", b"\x7c\x01\x44" + struct.pack("<d", 0.5) + b"\x0b"))
    return Module(imports=("fd_write",), functions=[*functions, main], data=data, extra={6: globals_})


def said(ended: Ended) -> tuple[int, bytes, list[str], object]:
    """How it ended, what it wrote, why it trapped, and its ticks."""
    return ended.status, ended.stdout, ended.stderr.splitlines()[:-1], ended.stats["ticks"]


def compare(path: Path, tmp_path: Path, chance: random.Random, runtime: Sequence[Path] = ()) -> bool:
    """Run a module both ways, and from one to the other; whether it ran to its end."""
    interpreted = execute("--stats", "--compile", "never", path)
    compiled = execute("--stats", "--compile", "always", path, runtime=runtime)
    assert said(compiled) == said(interpreted)
    state = tmp_path / "state"
    for first, second in (("always", "never"), ("never", "always")):
        tick = chance.randrange(1, max(2, int(interpreted.stats["ticks"])))
        begun = execute("--compile", first, "--save", state, "--stop-at", str(tick), path, runtime=runtime)
        if begun.status == STOPPED:
            ended = execute("--stats", "--compile", second, state, runtime=() if second == "never" else runtime)
            assert said(ended)[:3] == said(interpreted)[:3], tick
    return interpreted.status == 0


def to_the_end_of_memory() -> Module:
    """A program that reads and writes at several distances from one address, which goes up to where
    only the first of them are inside memory. It writes what it has read each time.
    """
    reads = b"".join(C.get(0) + C.load(offset) + C.i32_add for offset in (0, 8))
    rest = C.get(0) + C.get(1) + C.store(4) + C.get(1) + C.get(0) + C.load(24) + C.i32_add + C.set(1)
    tell = C.i32(0) + C.get(1) + C.store() + C.i32(1) + C.i32(16) + C.i32(1) + C.i32(32) + C.call(0) + C.drop
    turn = C.get(1) + reads + C.set(1) + C.get(0) + C.get(1) + C.store(16) + tell + rest
    loop = C.loop() + turn + C.get(0) + C.i32(4) + C.i32_add + C.set(0) + C.br(0) + C.end
    data = {16: struct.pack("<II", 0, 4), 65536 - 256: bytes(range(256))}
    return program(C.i32(65536 - 256) + C.set(0) + loop, locals=I32 * 2, imports=("fd_write",), data=data)


def test_it_traps_where_the_access_is_that_is_outside(tmp_path: Path) -> None:
    path = tmp_path / "end.wasm"
    path.write_bytes(to_the_end_of_memory().encoded())
    interpreted, compiled = (execute("--stats", "--compile", how, path) for how in ("never", "always"))
    assert said(compiled) == said(interpreted)
    assert (compiled.status, len(compiled.stdout)) == (TRAPPED, 4 * (1 + (256 - 28) // 4 + 1))
    assert "out of bounds memory access at 0x10000 " in compiled.stderr


def test_what_is_known_of_an_address_goes_with_its_value(tmp_path: Path) -> None:
    path = tmp_path / "changed.wasm"
    read = C.get(0) + C.load(8) + C.drop
    path.write_bytes(program(C.i32(16) + C.set(0) + read + C.get(0) + C.i32(65536) + C.i32_add + C.set(0) + read, I32).encoded())
    interpreted, compiled = (execute("--stats", "--compile", how, path) for how in ("never", "always"))
    assert said(compiled) == said(interpreted)
    assert "out of bounds memory access at 0x10018 " in compiled.stderr


def test_random_programs_do_the_same(tmp_path: Path) -> None:
    path, ended = tmp_path / "random.wasm", 0
    count = scaled(60)
    for seed in range(count):
        path.write_bytes(random_module(seed).encoded())
        ended += compare(path, tmp_path, random.Random(seed))
    assert ended > count // 3


def test_random_programs_do_the_same_on_the_other_architecture(tmp_path: Path) -> None:
    path = tmp_path / "random.wasm"
    for seed in range(1000, 1000 + scaled(12)):
        path.write_bytes(random_module(seed).encoded())
        compare(path, tmp_path, random.Random(seed), emulated_runtime())
