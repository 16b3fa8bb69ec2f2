"""A stopped program goes on in another process as if it had not been stopped; a checkpoint that
anybody may have written is refused or harmless.
"""

import os
import random
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mayfly.runs.carried import HEAD
from tests.kit.scale import scaled
from tests.kit.wasm import I32, PATIENCE_S, REFUSED, STOPPED, TRAPPED, Code, Kind, Module, build, execute, program

C = Code
IOV, WORD = 64, 128
"""Where a program's buffer vector and its number are in memory."""
NONBLOCK, AGAIN = 4, 6
"""Of WASI: a flag of a descriptor, and the error of a read that would wait."""
SPIN = b"\xf1\x5e\xed\x0f"
"""What is in a program's memory in front of its number."""
VERSION_AT, MODULE_AT = 8, 21


def write_number(local: int) -> bytes:
    """Code that writes 4 bytes, a local, to standard output by function 0."""
    return C.i32(WORD) + C.get(local) + C.store() + C.i32(1) + C.i32(IOV) + C.i32(1) + C.i32(32) + C.call(0) + C.drop


def counter(rounds: int) -> Module:
    """A program whose loop calls a function that calls itself, and writes each result."""
    down = Kind(I32, I32)
    # f(n) = n == 0 ? 1 : f(n - 1) * 3 + n, with an operand that waits during the call
    body = C.get(0) + C.i32_eqz + C.when(I32) + C.i32(1) + C.otherwise
    body += C.get(0) + C.get(0) + C.i32(1) + C.i32_sub + C.call(1) + C.i32(3) + C.i32_mul + C.i32_add + C.end
    step = C.get(0) + C.i32(1) + C.i32_add + C.tee(0) + C.call(1) + C.set(1) + write_number(1)
    grow = C.i32(1) + b"\x40\x00" + C.drop + C.get(0) + C.i32(65536) + C.i32_mul + C.get(1) + C.store(8)
    loop = C.loop() + step + grow + C.get(0) + C.i32(rounds) + C.i32_lt_s + C.br_if(0) + C.end
    data = {IOV: struct.pack("<II", WORD, 4)}
    return Module(imports=("fd_write",), functions=[(down, b"", body), (Kind(), I32 * 2, loop)], data=data)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "counter.wasm"
    path.write_bytes(counter(6).encoded())
    return path


def test_it_goes_on_from_every_place(module: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    whole = execute("--stats", module)
    ticks = int(whole.stats["ticks"])
    assert len(whole.stdout) == 24
    for tick in range(1, ticks):
        first = execute("--save", state, "--stop-at", str(tick), module)
        assert first.status == STOPPED
        second = execute(state)
        assert (second.status, first.stdout + second.stdout) == (0, whole.stdout), tick


def test_it_goes_on_from_calls_that_functions_and_loops_begin_with(tmp_path: Path) -> None:
    """Where a function is about to go on and where it is in its call are one place in the code."""
    path, state = tmp_path / "calls.wasm", tmp_path / "state"
    add = C.get(0) + C.i32(1) + C.i32_add
    linger = (Kind(), I32, C.loop() + add + C.tee(0) + C.i32(3) + C.i32_lt_s + C.br_if(0) + C.end)
    straight = (Kind(), b"", C.call(1) + C.call(1))
    rounds = (
        Kind(),
        I32,
        C.loop() + C.call(2) + C.loop() + C.call(1) + add + C.tee(0) + C.i32(4) + C.i32_lt_s + C.br_if(0) + C.end + C.end,
    )
    start = (Kind(), I32, C.call(3) + C.i32(7) + C.set(0) + write_number(0) + C.call(2))
    data = {IOV: struct.pack("<II", WORD, 4)}
    path.write_bytes(Module(imports=("fd_write",), functions=[linger, straight, rounds, start], data=data).encoded())
    ticks = int(execute("--stats", path).stats["ticks"])
    assert ticks > 20
    for tick in range(ticks):
        first = execute("--save", state, "--stop-at", str(tick), path)
        second = execute(state)
        assert (first.status, second.status, first.stdout + second.stdout) == (STOPPED, 0, struct.pack("<I", 7)), (tick, second)


def test_it_goes_on_through_many_stops(module: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    whole = execute("--stats", module)
    output, tick = b"", 0
    ended = execute("--save", state, "--stop-at", "1", module)
    while ended.status == STOPPED:
        output, tick = output + ended.stdout, tick + 3
        ended = execute("--save", state, "--stop-at", str(tick), state)
    assert (ended.status, output + ended.stdout) == (0, whole.stdout)


def test_the_same_state_gives_the_same_file(module: Path, tmp_path: Path) -> None:
    states = [tmp_path / "one", tmp_path / "two"]
    for state in states:
        execute("--save", state, "--stop-at", "9", module)
    one, two = (state.read_bytes() for state in states)
    differing = [at for at in range(len(one)) if one[at] != two[at]]
    assert len(one) == len(two)
    assert len(differing) <= 16, "more than the clock and the directory's time"


def wait_until_blocked(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process sleeps in a system call."""
    end = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < end
        assert process.poll() is None


def echo(before: bytes = b"", after: bytes = b"", **parts: Any) -> Module:
    """A program that copies standard input to standard output, until the end. It does what the code
    says `before` it writes, and `after`.
    """
    read = C.i32(0) + C.i32(IOV) + C.i32(1) + C.i32(32) + C.call(1) + C.drop
    body = read + C.i32(32) + C.load() + C.i32_eqz + C.br_if(1) + before
    body += C.i32(IOV + 4) + C.i32(32) + C.load() + C.store() + C.i32(1) + C.i32(IOV) + C.i32(1) + C.i32(32) + C.call(0) + C.drop
    body += C.i32(IOV + 4) + C.i32(1000) + C.store() + after + C.br(0)
    data = {IOV: struct.pack("<II", WORD, 1000), WORD - 4: SPIN}
    return program(C.block() + C.loop() + body + C.end + C.end, imports=("fd_write", "fd_read"), data=data, **parts)


def test_a_program_that_waits_for_input_stops_and_reads_on(tmp_path: Path, no_leaks: None) -> None:
    path, state = tmp_path / "echo.wasm", tmp_path / "state"
    path.write_bytes(echo().encoded())
    command: list[str | Path] = [build(), "--save", state, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"before ")
        process.stdin.flush()
        assert process.stdout.read(7) == b"before "
        wait_until_blocked(process)
        os.kill(process.pid, signal.SIGUSR1)
        assert process.wait(PATIENCE_S) == STOPPED
    assert execute(state, stdin=b"and after").stdout == b"and after"


def test_a_program_whose_output_nobody_reads_stops(tmp_path: Path, no_leaks: None) -> None:
    """No byte of it is missing then, or comes twice."""
    path, state, rounds = tmp_path / "writer.wasm", tmp_path / "state", 30_000
    step = write_number(0) + C.get(0) + C.i32(1) + C.i32_add + C.tee(0)
    loop = C.loop() + step + C.i32(rounds) + C.i32_lt_s + C.br_if(0) + C.end
    path.write_bytes(program(loop, I32, imports=("fd_write",), data={IOV: struct.pack("<II", WORD, 4)}).encoded())
    with subprocess.Popen([build(), "--save", state, path], stdout=subprocess.PIPE) as process:
        assert process.stdout
        wait_until_blocked(process)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(PATIENCE_S) == STOPPED
        before = process.stdout.read()
    assert 0 < len(before) < 4 * rounds
    assert before + execute(state).stdout == struct.pack(f"<{rounds}I", *range(rounds))


def held_echo() -> Module:
    """As `echo`, but when it has written for the first time it goes on only from a checkpoint that
    was `released`.
    """
    hold = C.i32(WORD - 4) + C.load() + C.i32(int.from_bytes(SPIN, "little", signed=True)) + C.i32_eq
    return echo(after=C.loop() + hold + C.br_if(0) + C.end)


def released(state: bytes) -> bytes:
    """The checkpoint of a `held_echo` that goes on."""
    at = state.rindex(SPIN)  # in memory, which follows the module
    return state[:at] + bytes(4) + state[at + 4 :]


def test_it_says_how_much_input_was_taken(tmp_path: Path) -> None:
    path, state = tmp_path / "echo.wasm", tmp_path / "state"
    path.write_bytes(echo().encoded())
    (tmp_path / "input").write_bytes(b"all of it")
    assert execute("--save", state, "--stop-at", "0", path, stdin=tmp_path / "input").status == STOPPED
    assert HEAD.unpack_from(state.read_bytes()) == (b"MAYFLYWC", 5, 9, True)
    with state.open("ab") as file:
        file.write(b", and more")
    assert execute(state, stdin=b"not this").stdout == b"all of it, and more"


def test_a_program_goes_on_that_cannot_be_saved(tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "echo.wasm"
    path.write_bytes(echo().encoded())
    pipe = subprocess.PIPE
    for options, why in (("--most", "100"), "at most 100"), ((), "cannot be"), (("limit",), "too large"):
        state = tmp_path / ("none/state" if not options else "state")
        command: list[str | Path] = [build(), "--save", state, *(options if "limit" not in options else ()), path]
        if "limit" in options:
            command = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *command]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            assert process.stdin and process.stdout and process.stderr
            process.stdin.write(b"before ")
            process.stdin.flush()
            assert process.stdout.read(7) == b"before "
            os.kill(process.pid, signal.SIGUSR1)
            assert b"it is not stopped" in (line := process.stderr.readline()), why
            stdout, _ = process.communicate(b"and after", PATIENCE_S)
            assert (stdout, process.returncode) == (b"and after", 0), line


def test_input_that_waits_travels_along(tmp_path: Path) -> None:
    path, state = tmp_path / "echo.wasm", tmp_path / "state"
    path.write_bytes(echo().encoded())
    (tmp_path / "input").write_bytes(b"all of it")
    first = execute("--save", state, "--stop-at", "0", path, stdin=tmp_path / "input")
    assert (first.status, first.stdout) == (STOPPED, b"")
    assert execute(state, stdin=b"not this").stdout == b"all of it"


def test_input_that_is_not_waited_for_stays_so(tmp_path: Path) -> None:
    """A program asks for that, and reads where there is nothing."""
    path, state = tmp_path / "hurried.wasm", tmp_path / "state"
    ask = C.i32(0) + C.i32(NONBLOCK) + C.call(0) + C.drop
    linger = C.loop() + C.get(0) + C.i32(1) + C.i32_add + C.tee(0) + C.i32(100) + C.i32_lt_s + C.br_if(0) + C.end
    read = C.i32(0) + C.i32(IOV) + C.i32(1) + C.i32(32) + C.call(1) + C.call(2)
    imports = ("fd_fdstat_set_flags", "fd_read", "proc_exit")
    path.write_bytes(program(ask + linger + read, I32, imports=imports, data={IOV: struct.pack("<II", WORD, 4)}).encoded())
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb"):
        for words, status in ((path,), AGAIN), (("--save", state, "--stop-at", "50", path), STOPPED), ((state,), AGAIN):
            assert subprocess.run([build(), *words], stdin=reading, timeout=PATIENCE_S, check=False).returncode == status


def sleeper(ms: int) -> Module:
    """A program that sleeps, and writes how long by its own clock."""
    clock = C.i32(1) + C.i64(1) + C.i32(WORD) + C.call(1) + C.drop
    data = {0: bytes(8) + bytes(8) + struct.pack("<IIQQHxxxxxx", 1, 0, ms * 1_000_000, 0, 0), IOV: struct.pack("<II", WORD, 16)}
    sleep = C.i32(0) + C.i32(256) + C.i32(1) + C.i32(48) + C.call(2) + C.drop
    later = C.i32(1) + C.i64(1) + C.i32(WORD + 8) + C.call(1) + C.drop
    tell = C.i32(1) + C.i32(IOV) + C.i32(1) + C.i32(32) + C.call(0) + C.drop
    return program(clock + sleep + later + tell, imports=("fd_write", "clock_time_get", "poll_oneoff"), data=data)


def test_a_sleep_goes_on_where_it_was(tmp_path: Path, no_leaks: None) -> None:
    path, state = tmp_path / "sleep.wasm", tmp_path / "state"
    path.write_bytes(sleeper(100_000).encoded())
    with subprocess.Popen([build(), "--save", state, path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        wait_until_blocked(process)
        os.kill(process.pid, signal.SIGUSR1)
        assert process.wait(PATIENCE_S) == STOPPED
    # The moment at which it wakes is brought near, instead of waiting for it.
    data = bytearray(state.read_bytes())
    clock_at = data.index(struct.pack("<I", 1) + b"/") + 5
    clock, until = struct.unpack_from("<QQ", data, clock_at)
    assert 0 < clock < until <= clock + 100_000_000_000
    struct.pack_into("<Q", data, clock_at, until - 1_000_000)
    state.write_bytes(data)
    begin, end = struct.unpack("<QQ", execute(state).stdout)
    assert begin < until <= end


def test_damaged_checkpoints_are_refused_or_harmless(module: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    execute("--save", state, "--stop-at", "20", module)
    data = state.read_bytes()
    chance = random.Random(5)
    broken = tmp_path / "broken"
    for end in [0, 7, 11, 15, *(chance.randrange(len(data)) for _ in range(scaled(200)))]:
        broken.write_bytes(data[:end])
        assert execute(broken).status == REFUSED, end
    module_end = MODULE_AT + 4 + struct.unpack_from("<I", data, MODULE_AT)[0]
    for round_ in range(scaled(2000)):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.choice((chance.randrange(len(data)), module_end + chance.randrange(120), len(data) - 1 - chance.randrange(150)))
            damaged[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        broken.write_bytes(damaged)
        # A changed number may make it run for long: what counts is that it ends as it should.
        ended = execute("--save", tmp_path / "again", "--stop-at", "5000", broken, stdin=b"")
        assert ended.status in (0, STOPPED, TRAPPED, REFUSED), (round_, ended)


def test_frames_that_no_call_leaves_are_refused(module: Path, tmp_path: Path) -> None:
    state, broken = tmp_path / "state", tmp_path / "broken"
    execute("--save", state, "--stop-at", "20", module)
    data = state.read_bytes()
    frames_at = MODULE_AT + 4 + struct.unpack_from("<I", data, MODULE_AT)[0]
    (count,) = struct.unpack_from("<I", data, frames_at)
    assert count > 2
    frames = [struct.unpack_from("<II", data, frames_at + 4 + 8 * place) for place in range(count)]

    def changed(frames: list[tuple[int, int]]) -> None:
        body = b"".join(struct.pack("<II", *frame) for frame in frames)
        broken.write_bytes(data[:frames_at] + struct.pack("<I", len(frames)) + body + data[frames_at + 4 + 8 * count :])
        ended = execute(broken)
        assert (ended.status, "frame" in ended.stderr) == (REFUSED, True), ended.stderr

    changed([])
    changed(frames[1:])  # the outermost takes a value
    changed(frames[:-1])  # the innermost stands in a call
    changed([frames[0], frames[0], *frames[1:]])
    changed([(99, 0), *frames[1:]])
    changed([(frames[0][0], frames[0][1] + 1), *frames[1:]])


def test_a_caller_that_needs_more_of_the_stack_than_its_callee_goes_on(tmp_path: Path) -> None:
    path, state = tmp_path / "wide.wasm", tmp_path / "state"
    wide = 40_000
    callee = (Kind(), I32, C.loop() + C.get(0) + C.i32(1) + C.i32_add + C.tee(0) + C.i32(50) + C.i32_lt_s + C.br_if(0) + C.end)
    caller = C.call(1) + C.i32(1) * wide + C.i32_add * (wide - 1) + C.set(0) + write_number(0)
    data = {IOV: struct.pack("<II", WORD, 4)}
    path.write_bytes(Module(imports=("fd_write",), functions=[callee, (Kind(), I32, caller)], data=data).encoded())
    assert execute("--save", state, "--stop-at", "20", path).status == STOPPED
    assert execute(state).stdout == struct.pack("<I", wide)


PIECE = 65536
"""Bytes of memory that are packed together."""


def bloated(state: bytes, pages: int) -> bytes:
    """The checkpoint of a program that has no zeros in so many pages of memory, which pack well."""

    def behind(at: int, size: int) -> int:
        count: int = struct.unpack_from("<I", state, at)[0]
        return at + 4 + count * size

    begin = end = behind(behind(behind(behind(MODULE_AT, 1), 8), 8), 8)  # frames, slots and globals
    end = behind(begin + 4, 8)
    for place in range(begin + 8, end, 8):
        for _ in range(-(-struct.unpack_from("<II", state, place)[1] // (PIECE // 4096))):
            end = behind(end, 1)
    # One literal, a match of all that follows, and five literals.
    more = PIECE - 1 - 5 - 4 - 15
    packed = b"\x1f\x01" + struct.pack("<H", 1) + b"\xff" * (more // 255) + bytes((more % 255,)) + b"\x50" + b"\x01" * 5
    memory = struct.pack("<IIII", pages, 1, 0, pages * (PIECE // 4096)) + (struct.pack("<I", len(packed)) + packed) * pages
    return state[:begin] + memory + state[end:]


def bloated_echo(folder: Path, pages: int) -> bytes:
    """The same of a program that copies standard input."""
    path, state = folder / "echo.wasm", folder / "state"
    path.write_bytes(echo(growth=65_000).encoded())
    assert execute("--save", state, "--stop-at", "0", path).status == STOPPED
    return bloated(state.read_bytes(), pages)


def test_memory_that_packs_well_is_unpacked(tmp_path: Path) -> None:
    state = tmp_path / "bloated"
    state.write_bytes(bloated_echo(tmp_path, 64))
    ended = execute("--save", tmp_path / "again", "--stop-at", "0", state)
    assert ended.status == STOPPED, ended
    assert (tmp_path / "again").stat().st_size < state.stat().st_size + 4096


def test_a_checkpoint_of_another_version_is_refused_by_it(module: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    execute("--save", state, "--stop-at", "9", module)
    data = bytearray(state.read_bytes())
    struct.pack_into("<I", data, VERSION_AT, 1)
    state.write_bytes(data)
    ended = execute(state)
    assert (ended.status, "version 1" in ended.stderr) == (REFUSED, True)


def test_what_cannot_be_written_leaves_nothing(module: Path, tmp_path: Path) -> None:
    ended = execute("--save", tmp_path / "none" / "state", "--stop-at", "9", module)
    assert ended.status == REFUSED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter.wasm"]
