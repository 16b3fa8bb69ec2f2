"""Modules written by hand: what runs, what traps, what is refused and by which name."""

from pathlib import Path

import pytest

from tests.kit.wasm import I32, REFUSED, TRAPPED, Code, Ended, Kind, Module, execute, leb, program, text, vector

C = Code


def run(module: Module | bytes, tmp_path: Path, *args: str, stdin: bytes = b"") -> Ended:
    """Write a module and run it."""
    path = tmp_path / "m.wasm"
    path.write_bytes(module if isinstance(module, bytes) else module.encoded())
    return execute(path, *args, stdin=stdin)


def result(code: bytes, tmp_path: Path, locals: bytes = b"", *more: tuple[Kind, bytes, bytes], table: tuple[int, ...] = ()) -> Ended:
    """Run code that leaves an i32, as the exit status; functions of `more` come before it."""
    functions = [*more, (Kind(), locals, code + C.call(0))]
    return run(Module(imports=("proc_exit",), functions=functions, table=table), tmp_path)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (C.i32(7) + C.i32(5) + C.i32_sub, 2),
        (C.i32(-7) + C.i32(2) + C.i32_div_s + C.i32(10) + C.i32_add, 7),
        (C.i32(1) + C.i32(2) + C.i32(0) + C.select, 2),
        (C.block(I32) + C.i32(4) + C.i32(1) + C.br_if(0) + C.drop + C.i32(5) + C.end, 4),
        (C.block(I32) + C.i32(4) + C.i32(0) + C.br_if(0) + C.drop + C.i32(5) + C.end, 5),
        (C.i32(0) + C.when(I32) + C.i32(1) + C.otherwise + C.i32(2) + C.end, 2),
        (C.i32(3) + C.block() + C.block() + C.block() + C.i32(1) + C.br_table(0, 1, 2) + C.end + C.end + C.end, 3),
        (C.i32(8) + C.i64_extend_u + C.i64(1 << 32) + C.i64_add + C.i32_wrap, 8),
        (C.i32(1) + b"\x40\x00" + C.drop + b"\x3f\x00", 2),
        (C.block(I32) + C.i32(6) + C.br(0) + C.unreachable + C.end, 6),
    ],
)
def test_code_gives(code: bytes, status: int, tmp_path: Path) -> None:
    assert result(code, tmp_path).status == status


def test_a_noted_local_keeps_the_value_it_had(tmp_path: Path) -> None:
    code = C.i32(5) + C.set(0) + C.get(0) + C.i32(9) + C.set(0) + C.get(0) + C.i32_mul
    assert result(code, tmp_path, I32).status == 45


def test_a_dropped_result_is_not_taken_for_the_next(tmp_path: Path) -> None:
    code = C.i32(3) + C.get(0) + C.i32_add + C.get(0) + C.i32(8) + C.i32_add + C.drop + C.set(1) + C.get(1)
    assert result(code, tmp_path, I32 + I32).status == 3


def test_blocks_take_and_give_several_values(tmp_path: Path) -> None:
    pair = Kind(I32 * 2, I32 * 2)
    swap = (pair, b"", C.get(1) + C.get(0))
    module = Module(imports=("proc_exit",), functions=[swap, (Kind(), b"", b"")])
    kind = module.kinds().index(pair)
    # A loop that carries two values round: (10, 0) -> (9, 1) -> ... until the first is 3.
    round_ = C.set(1) + C.set(0) + C.get(0) + C.i32(-1) + C.i32_add + C.get(1) + C.i32(1) + C.i32_add
    again = C.i32(3) + C.get(0) + C.i32(-1) + C.i32_add + C.i32_lt_s + C.br_if(0)
    code = C.i32(10) + C.i32(0) + C.loop(leb(kind)) + round_ + again + C.end + C.call(1) + C.i32_sub
    module.functions[-1] = (Kind(), I32 * 2, code + C.call(0))
    assert run(module, tmp_path).status == 4  # 7 - 3


def test_an_indirect_call_finds_its_function(tmp_path: Path) -> None:
    callee = (Kind(I32, I32), b"", C.get(0) + C.i32(1) + C.i32_add)
    module = Module(imports=("proc_exit",), functions=[callee, (Kind(), b"", b"")], table=(1,))
    kind = module.kinds().index(Kind(I32, I32))
    module.functions[-1] = (Kind(), b"", C.i32(41) + C.i32(0) + C.call_indirect(kind) + C.call(0))
    assert run(module, tmp_path).status == 42


def test_an_imported_function_can_be_called_indirectly(tmp_path: Path) -> None:
    module = Module(imports=("proc_exit",), functions=[(Kind(), b"", C.i32(9) + C.i32(0) + C.call_indirect(0))], table=(0,))
    assert run(module, tmp_path).status == 9


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (C.unreachable, "unreachable"),
        (C.i32(1) + C.i32(0) + C.i32_div_s + C.drop, "integer divide by zero"),
        (C.i32(-(1 << 31)) + C.i32(-1) + C.i32_div_s + C.drop, "integer overflow"),
        (C.i32(65533) + C.load() + C.drop, "out of bounds memory access"),
        (C.i32(-1) + C.load(8) + C.drop, "out of bounds memory access"),
        (C.i32(0) + C.i32(0) + C.i32(65537) + b"\xfc\x0b\x00", "memory.fill"),
        (C.i32(1) + C.i32(0) + C.i32(65536) + b"\xfc\x0a\x00\x00", "memory.copy"),
        (C.i32(0) + C.call_indirect(0), "uninitialized element 0"),
        (C.i32(7) + C.call_indirect(0), "undefined element 7"),
        (C.call(0), "call stack exhausted"),
    ],
)
def test_what_no_program_may_do_is_a_trap(code: bytes, what: str, tmp_path: Path) -> None:
    module = program(code, extra={4: b"\x01\x70\x00\x02"})
    ended = run(module, tmp_path)
    assert (ended.status, what in ended.stderr) == (TRAPPED, True), ended.stderr


def test_an_indirect_call_of_another_type_is_a_trap(tmp_path: Path) -> None:
    other = (Kind(I32, I32), b"", C.get(0))
    module = Module(functions=[other, (Kind(), b"", C.i32(0) + C.call_indirect(1))], table=(0,))
    ended = run(module, tmp_path)
    assert (ended.status, "type mismatch" in ended.stderr) == (TRAPPED, True), ended.stderr


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (program(b"\xfd\x0c" + bytes(16) + C.drop), "SIMD"),
        (program(b"\xfe\x03\x00"), "threads"),
        (program(b"", extra={5: b"\x01\x03\x01\x01"}), "threads"),
        (program(b"\x06\x40" + C.end), "exceptions"),
        (program(b"\x08\x00"), "exceptions"),
        (program(b"\x12\x00"), "tail calls"),
        (program(b"\xd0\x70" + C.drop), "reference types"),
        (program(b"", extra={5: b"\x01\x04\x01"}), "64-bit memories"),
        (program(b"", extra={8: b"\x00"}), "start functions"),
        (Module(imports=("sock_bind",), functions=[(Kind(), b"", b"")]), "sockets other than WAMR's"),
        (Module(imports=("sock_getsockopt",), functions=[(Kind(), b"", b"")]), "sockets other than WAMR's"),
    ],
)
def test_what_is_left_out_is_refused_by_its_name(module: Module, name: str, tmp_path: Path) -> None:
    ended = run(module, tmp_path)
    assert (ended.status, f"not supported: {name}" in ended.stderr) == (REFUSED, True), ended.stderr


@pytest.mark.parametrize(
    "code",
    [
        C.i32(1),  # a value left over
        C.drop,  # none there
        C.i32(1) + C.i64(1) + C.i32_add + C.drop,
        C.get(0) + C.drop,
        C.br(7),
        C.block(I32) + C.end + C.drop,
        C.i32(1) + C.when(I32) + C.i32(1) + C.end + C.drop,  # no other branch
        C.call(9),
        C.i32(0) + C.call_indirect(9),
        C.otherwise,
        b"\x23\x00" + C.drop,
        C.i32(0) + b"\x28\x03\x00" + C.drop,  # aligned beyond the natural
        C.block() + C.block(I32) + C.i32(0) + C.br_table(0, 1) + C.end + C.drop + C.end,
        C.unreachable + C.i64(1) + C.i32_eqz + C.drop,
        C.end,
    ],
)
def test_invalid_code_is_refused(code: bytes, tmp_path: Path) -> None:
    ended = run(program(code), tmp_path)
    assert ended.status == REFUSED, ended.stderr
    assert "invalid" in ended.stderr or "malformed" in ended.stderr


def test_malformed_files_are_refused(tmp_path: Path) -> None:
    whole = program(C.i32(1) + C.drop, data={0: b"abc"}).encoded()
    last_section = whole.rindex(b"\x0b\x09")
    for end in set(range(len(whole))) - {last_section}:
        assert run(whole[:end], tmp_path).status == REFUSED, end
    assert run(whole + b"\x01\x01\x00", tmp_path).status == REFUSED  # a section again
    assert run(b"\0asm\x0d\0\x01\0", tmp_path).stderr.count("components") == 1
    assert run(program(b"", data={65535: b"ab"}), tmp_path).status == REFUSED
    assert run(Module(functions=[(Kind(), b"", b"")], table=(5,)), tmp_path).status == REFUSED


def test_a_module_without_start_is_refused(tmp_path: Path) -> None:
    ended = run(program(b"", extra={7: vector([text("memory") + b"\x02\x00"])}), tmp_path)
    assert (ended.status, "_start" in ended.stderr) == (REFUSED, True)


def test_unknown_imports_are_refused_by_name(tmp_path: Path) -> None:
    module = Module(imports=("sched_yield",), functions=[(Kind(), b"", b"")]).encoded()
    assert "sched_field" in run(module.replace(b"sched_yield", b"sched_field"), tmp_path).stderr
