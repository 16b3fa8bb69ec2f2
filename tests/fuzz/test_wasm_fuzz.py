"""Whatever bytes a module or a checkpoint has, the runtime refuses it or runs it, and ends by
itself within bounded time and memory, or when it is asked to stop, as it may have come to sleep:
by no signal, and without a panic.

Mutations of compiled programs and of their checkpoints (bytes changed, cut, doubled, moved), from a
fixed seed."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit import net_kit
from tests.kit.scale import scaled
from tests.kit.wasm import PATIENCE_S, STOPPED, Ended, build, execute
from tests.kit.wasm_programs import PROGRAMS, SOURCES, Program, compiled

pytestmark = pytest.mark.timeout(1800)
ROUNDS = scaled(2000)
ROUNDS_OF_GO = scaled(200)
"""Its library is in each of its modules, 2 MB of code."""
TICKS = 2000
ASLEEP_S = 3
"""Then it is asked to stop."""
MOST_KIB = 3 << 20
HEAD = 4096
"""Bytes at the front, where a module's types, imports and tables are."""


def mutated(data: bytes, chance: random.Random, where: Callable[[], int]) -> bytes:
    """The same with some changes."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at, size = min(where(), len(out) - 1), chance.choice((1, 2, 4, 16))
        match chance.randrange(6):
            case 0 | 1 | 2:
                out[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, out[at] ^ 1 << chance.randrange(8), chance.randrange(256)))
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[at : at + size]
            case 5:
                from_ = min(where(), len(out) - 1)
                out[at : at + size] = out[from_ : from_ + size]
    return bytes(out)


def end(path: Path, state: Path, ticks: int, asleep_s: float = ASLEEP_S) -> Ended:
    """What becomes of the file, with little to spend."""
    stopped = ("timeout", "--preserve-status", "--signal=USR1", str(asleep_s))
    runtime = (*stopped, "sh", "-c", f'ulimit -v {MOST_KIB} && exec "$0" "$@"', build())
    ended = execute("--save", state, "--stop-at", str(ticks), path, runtime=runtime)
    assert ended.status >= 0, ended
    assert "panicked" not in ended.stderr or "trap: unreachable" in ended.stderr, ended  # as a program may, with damaged memory
    return ended


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.source)
def test_damaged_modules(program: Program, tmp_path: Path) -> None:
    data = compiled(SOURCES / program.source).read_bytes()
    chance = random.Random(program.source)
    path, state, refused = tmp_path / "module", tmp_path / "state", 0
    rounds = ROUNDS_OF_GO if program.source.endswith(".go") else ROUNDS
    for _ in range(rounds):
        path.write_bytes(mutated(data, chance, lambda: chance.randrange(chance.choice((HEAD, len(data))))))
        refused += "mayfly-wasm: " in end(path, state, TICKS).stderr
    assert refused > 0


@pytest.mark.parametrize("source", ["lines.rs", "tree.rs", "readfile.c"])
def test_damaged_checkpoints(source: str, tmp_path: Path) -> None:
    program = next(program for program in PROGRAMS if program.source == source)
    module = compiled(SOURCES / source)
    whole = execute("--stats", module, stdin=program.stdin)
    path, good, state, refused = tmp_path / "damaged", tmp_path / "good", tmp_path / "state", 0
    ticks = int(whole.stats["ticks"]) // 2
    assert execute("--save", good, "--stop-at", str(ticks), module, stdin=program.stdin).status == STOPPED
    data = good.read_bytes()
    behind = 16 + module.stat().st_size  # the module, which the other test damages
    chance = random.Random(source)
    for _ in range(ROUNDS):
        where = chance.choice((lambda: behind + chance.randrange(4000), lambda: len(data) - 1 - chance.randrange(4000)))
        path.write_bytes(mutated(data, chance, where))
        refused += "mayfly-wasm: " in end(path, state, ticks + TICKS).stderr
    assert refused > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace of its own needs root")
def test_damaged_sockets(tmp_path: Path) -> None:
    """Of a server that listens, has a connection, and has received what it did not read, which
    ends it. There is no network to which they could lead.
    """
    path, good, state, refused = tmp_path / "damaged", tmp_path / "good", tmp_path / "state", 0
    with net_kit.namespace():
        module = compiled(SOURCES / "sockets.c")
        with subprocess.Popen([build(), "--save", good, module, "server", "4", "4000"]) as process:
            connection = connected(4000)
            with connection, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                connection.sendall(b"one\n")
                assert connection.recv(100)
                process.send_signal(signal.SIGSTOP)
                connection.sendall(b"quit\n")
                asking.sendto(b"two\n", ("127.0.0.1", 4000))
                process.send_signal(signal.SIGUSR1)
                process.send_signal(signal.SIGCONT)
                assert process.wait(PATIENCE_S) == STOPPED
        data = good.read_bytes()
        assert b"quit\n" in data
        assert b"two\n" in data
        chance = random.Random("sockets")
        for _ in range(ROUNDS):
            path.write_bytes(mutated(data, chance, lambda: len(data) - 1 - chance.randrange(chance.choice((200, 300)))))
            refused += "mayfly-wasm: " in end(path, state, 1 << 40, asleep_s=0.2).stderr
    assert refused > 0


def connected(port: int) -> socket.socket:
    """A connection to a server that may not listen yet."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.005)
    raise TimeoutError(f"nobody listens at {port}")
