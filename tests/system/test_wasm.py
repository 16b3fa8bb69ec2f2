"""Programs of WebAssembly in real guests: stopped in one and resumed in another, which has neither
their source nor a compiler; some of them are compiled from Rust, Go and C in their guests.
"""

import contextlib
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly import paths
from mayfly.client.blocking import BlockingRun, Client
from mayfly.client.results import StdoutEvent
from tests.kit import net_kit, toy, wasm_programs
from tests.kit.scale import FULL
from tests.kit.wasm import Module, program
from tests.system.test_net import GATEWAY, GUEST, TAP, TAP_OPTIONS
from tests.system.test_service import Server
from tests.unit.wasm.test_checkpoints import IOV, WORD, C, echo
from tests.unit.wasm.test_sockets import Answering, answer

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1200)]

SOURCES = {
    "rust": """
fn main() {
    let mut line = String::new();
    let mut sum = 1.5f64;
    println!("ready");
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        sum = sum * 1.1 + line.len() as f64;
        println!("{sum}");
        line.clear();
    }
}
""",
    "go": (wasm_programs.SOURCES / "sums.go").read_text(),
    "c": """
#include <stdio.h>
#include <string.h>

int main(void) {
    char line[80];
    double sum = 1.5;
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        sum = sum * 1.1 + strlen(line);
        printf("%.17g\\n", sum);
        fflush(stdout);
    }
    return 0;
}
""",
}
MISTAKES = {
    "rust": ('fn main() { let x: i32 = "text"; }', "mismatched types"),
    "go": ("package main\n\nfn main() {}", "syntax error"),
    "c": ("int main(void) { return missing; }", "undeclared identifier"),
}
LINES = ("one\n", "and two\n", "three, at last\n")


def expected() -> list[float]:
    """What the programs write behind their first line."""
    sums = [1.5]
    for line in LINES:
        sums.append(sums[-1] * 1.1 + len(line))
    return sums[1:]


def need(language: str, arch: str = toy.MACHINE) -> None:
    """Skip the test where the language has no image, or one that only the whole counts have."""
    if language != "wasm" and not FULL:
        pytest.skip(f"the image of {language} is one of the whole counts")
    if not paths.image_dir(language, arch).is_dir():
        pytest.skip(f"there is no image of {language}: scripts/build-image {language} --arch {arch}")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    need("wasm")
    languages = [name for name in ("wasm", *(f"{name}-wasm" for name in SOURCES)) if paths.image_dir(name, toy.MACHINE).is_dir()]
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        server = Server(Path(name), *(part for name in languages for part in ("--language", name)))
        with Client(server.socket) as client:
            yield client
        server.close()


def read(run: BlockingRun, lines: int) -> list[str]:
    """The run's first lines."""
    text = b""
    for event in run:
        text += event.data if isinstance(event, StdoutEvent) else b""
        if text.count(b"\n") >= lines:
            break
    return text.decode().splitlines()


def test_a_module_goes_on_from_its_checkpoint(client: Client) -> None:
    with client.start(echo().encoded(), language="wasm", interactive=True, stdin="before ") as first:
        for event in first:
            if isinstance(event, StdoutEvent):
                break
        state = first.checkpoint()
        assert (first.result().stdout, first.result().exit_status) == ("before ", 75)
    result = client.run(state, language="wasm", stdin="and after")
    assert (result.stdout, result.exit_status) == ("and after", 0), result.stderr


@pytest.mark.parametrize("language", SOURCES)
def test_a_program_goes_on_from_its_checkpoint(client: Client, language: str) -> None:
    need(f"{language}-wasm")
    with client.start(SOURCES[language], language=language, target="wasm", interactive=True) as first:
        assert read(first, 1) == ["ready"]
        first.send(LINES[0])
        before = read(first, 2)[1:]
        state = first.checkpoint()
        assert first.result().exit_status == 75
    with client.start(state, language="wasm", stdin="".join(LINES[1:])) as second:
        result = second.result()
    assert (list(map(float, before + result.stdout.splitlines())), result.exit_status) == (expected(), 0), result.stderr


@pytest.mark.parametrize("language", MISTAKES)
def test_it_is_built_with_its_mistakes_shown(client: Client, language: str) -> None:
    need(f"{language}-wasm")
    source, mistake = MISTAKES[language]
    result = client.run(source, language=language, target="wasm")
    assert result.status == "build_failed"
    assert mistake in result.stderr


SOCKET, ADDRESS, COUNT = 2000, 2040, 32
"""Where a program has its socket's number, the other side's address, and how many bytes it read."""
PORT = 8080
FD = C.i32(0) + C.load(SOCKET)


def copy(source: bytes, target: bytes) -> bytes:
    """Code that reads some bytes from one descriptor and writes them to another, by the functions 1
    and 0; the count is 0 if none came.
    """
    pieces = C.i32(IOV) + C.i32(1) + C.i32(COUNT)
    read = C.i32(COUNT) + C.i32(0) + C.store() + source + pieces + C.call(1) + C.drop
    write = C.i32(IOV + 4) + C.i32(COUNT) + C.load() + C.store() + target + pieces + C.call(0) + C.drop
    return read + C.i32(COUNT) + C.load() + C.when() + write + C.i32(IOV + 4) + C.i32(1000) + C.store() + C.end


def asker(host: str, port: int) -> Module:
    """A program that sends each line of its input over one socket, and writes what comes back."""
    address = struct.pack("<I4sH", 0, net_kit.packed(host), port)
    connect = C.i32(-1) + C.i32(0) + C.i32(1) + C.i32(SOCKET) + C.call(2) + C.drop + FD + C.i32(ADDRESS) + C.call(3) + C.drop
    ask = copy(C.i32(0), FD) + C.i32(COUNT) + C.load() + C.i32_eqz + C.br_if(1) + copy(FD, C.i32(1)) + C.br(0)
    imports = ("fd_write", "fd_read", "sock_open", "sock_connect")
    data = {IOV: struct.pack("<II", WORD, 1000), ADDRESS: address}
    return program(connect + C.block() + C.loop() + ask + C.end + C.end, imports=imports, data=data)


def replier() -> Module:
    """A program that sends back what comes over connections, one after the other, until "quit"."""
    quits = C.i32(WORD) + C.load() + C.i32(int.from_bytes(b"quit", "little")) + C.i32_eq + C.br_if(2)
    reply = C.loop() + copy(FD, FD) + quits + C.i32(COUNT) + C.load() + C.br_if(0) + C.end
    accept = C.i32(4) + C.i32(0) + C.i32(SOCKET) + C.call(2) + C.drop
    imports = ("fd_write", "fd_read", "sock_accept")
    data = {IOV: struct.pack("<II", WORD, 1000)}
    return program(C.block() + C.loop() + accept + reply + C.br(0) + C.end + C.end, imports=imports, data=data)


@pytest.fixture
def networked() -> Iterator[Client]:
    """A server whose machines have a network with this host."""
    if not FULL:
        pytest.skip("five more guests are of the whole counts")
    need("wasm")
    with net_kit.namespace(), tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        net_kit.make_tap(TAP, f"{GATEWAY}/16")
        server = Server(Path(name), "--language", "wasm", *TAP_OPTIONS)
        with Client(server.socket) as client:
            yield client
        server.close()


def exchanged(line: bytes) -> bytes:
    """What the machine sends back of a line, once it listens."""
    end = time.monotonic() + 600
    while True:
        with contextlib.suppress(OSError), socket.create_connection((GUEST, PORT), timeout=60) as connection:
            connection.sendall(line)
            if back := connection.recv(100):
                return back
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_connection_is_made_again_by_the_next_machine(networked: Client) -> None:
    with Answering(host=GATEWAY) as server:
        module = asker(GATEWAY, server.port).encoded()
        with networked.start(module, language="wasm", network=True, interactive=True) as first:
            first.send("one\n")
            assert read(first, 1) == [answer(b"one\n").decode().strip()]
            state = first.checkpoint()
            assert first.result().exit_status == 75
        second = networked.run(state, language="wasm", network=True, stdin="two\n")
        assert (second.stdout, second.exit_status) == (answer(b"two\n").decode(), 0), second.stderr
        assert len(server.connections) == 2
    without = networked.run(state, language="wasm", stdin="three\n")
    assert (without.stdout, without.exit_status) == ("", 0), without.stderr


def test_the_next_machine_listens_where_the_one_before_did(networked: Client) -> None:
    listen = {"listen": f"0.0.0.0:{PORT}"}
    with networked.start(replier().encoded(), language="wasm", network=True, options=listen, interactive=True) as first:
        assert exchanged(b"before") == b"before"
        state = first.checkpoint()
        assert first.result().exit_status == 75
    with networked.start(state, language="wasm", network=True) as second:
        assert exchanged(b"after") == b"after"
        assert exchanged(b"quit") == b"quit"
        assert second.result().exit_status == 0
