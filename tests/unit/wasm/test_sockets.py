"""Programs that talk over loopback are stopped at random moments and go on in other processes, on
this architecture and on another one: each question gets its right answer.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.kit.scale import FULL
from tests.kit.wasm import PATIENCE_S, REFUSED, STOPPED, Ended, build, execute
from tests.kit.wasm_programs import SOURCES, compiled, emulated_runtime
from tests.unit.wasm.test_checkpoints import wait_until_blocked

pytestmark = pytest.mark.timeout(7200 if FULL else 600)
STOPS = 200 if FULL else 20
STOPS_ELSEWHERE = 200 if FULL else 4
LINES = [f"line {number} of some words\n".encode() for number in range(12)]
QUIT = b"quit\n"
FAMILIES = {"4": (socket.AF_INET, "127.0.0.1"), "6": (socket.AF_INET6, "::1")}


def answer(line: bytes) -> bytes:
    """What servers make of a line."""
    total = 7
    for round_ in range(200):
        for byte in line:
            total = (total * 31 + byte + round_) & 0xFFFF_FFFF
    return b"%08x\n" % total


@contextlib.contextmanager
def reserved(family: str = "4") -> Iterator[int]:
    """A port that nobody else gets, at which a program can listen."""
    kind, host = FAMILIES[family]
    with socket.socket(kind) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 0))
        yield holder.getsockname()[1]


class Answering:
    """A server in a thread, which answers each line of each connection."""

    def __init__(self, family: str = "4", host: str = "") -> None:
        self.connections: list[socket.socket] = []
        self._listener = socket.create_server((host or FAMILIES[family][1], 0), family=FAMILIES[family][0])
        self._threads = [threading.Thread(target=self._accept)]
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "Answering":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self.connections):
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(answer(line))


def ask(port: int, lines: Sequence[bytes], family: str = "4", deadline_s: float = PATIENCE_S) -> list[bytes]:
    """Ask for each line until it is answered, over as many connections as that takes; then say that
    it is over.
    """
    left, answers, end = list(lines), [], time.monotonic() + deadline_s
    while time.monotonic() < end:
        try:
            with socket.create_connection((FAMILIES[family][1], port), timeout=deadline_s) as connection, connection.makefile("rb") as back:
                while left:
                    connection.sendall(left[0])
                    given = back.readline()
                    if not given.endswith(b"\n"):
                        break
                    answers.append(given)
                    left.pop(0)
                else:
                    connection.sendall(QUIT)
                    if not connection.recv(1):
                        return answers
        except OSError:
            time.sleep(0.005)  # nobody listens between two processes
    raise TimeoutError(f"{len(left)} lines have no answer")


def asked(port: int, family: str = "4") -> tuple[threading.Thread, list[list[bytes]]]:
    """A thread that asks, and a list into which it puts all answers."""
    found: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: found.append(ask(port, LINES, family)))
    thread.start()
    return thread, found


def client(family: str, server: Answering) -> list[str]:
    return ["client", family, str(server.port), str(len(LINES))]


def through(server: Answering, family: str, state: Path, tick: int, first: Sequence[Path], then: Sequence[Path]) -> tuple[bool, Ended]:
    """A client that is stopped at that tick: whether it was, and how it ended, with all output."""
    module = compiled(SOURCES / "sockets.c")
    begun = execute("--save", state, "--stop-at", str(tick), module, *client(family, server), runtime=first)
    if begun.status != STOPPED:
        return False, begun
    ended = execute(state, runtime=then)
    return True, ended._replace(stdout=begun.stdout + ended.stdout)


def stop_client(family: str, tmp_path: Path, stops: int, second: Sequence[Path] = (), back: bool = False) -> None:
    chance, stopped, tries = random.Random(family), 0, 0
    with Answering(family) as server:
        whole = execute("--stats", compiled(SOURCES / "sockets.c"), *client(family, server))
        assert (whole.status, whole.stdout.count(b"\n")) == (0, len(LINES)), whole
        first, then = (second, ()) if back else ((), second)
        while stopped < stops:
            tries += 1
            assert tries <= 4 * stops, f"{stopped} of {tries} stops came while it ran"
            tick = chance.randrange(1, int(whole.stats["ticks"]))
            was, ended = through(server, family, tmp_path / "state", tick, first, then)
            stopped += was
            assert (ended.status, ended.stdout) == (0, whole.stdout), (tick, ended)
        # Connections were made again at the other side.
        assert len(server.connections) > tries + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_connects_again(family: str, tmp_path: Path, no_leaks: None) -> None:
    stop_client(family, tmp_path, STOPS)


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_a_client_connects_again_on_another_architecture(back: bool, tmp_path: Path, no_leaks: None) -> None:
    stop_client("4", tmp_path, STOPS_ELSEWHERE, emulated_runtime(), back)


SERVERS = {"c": "sockets.c", "rust": "listener.rs", "go": "listener.go"}


def serve(kind: str, port: int, family: str = "4") -> list[str | Path]:
    """The words that start a server; one of Rust or Go has its socket from the runtime."""
    module = compiled(SOURCES / SERVERS[kind])
    address = f"127.0.0.1:{port}"
    return [module, "server", family, str(port)] if kind == "c" else ["--listen", address, module]


def stop_server(kind: str, tmp_path: Path, stops: int, second: Sequence[Path] = (), back: bool = False, family: str = "4") -> None:
    """Stop a server at a random tick, and ask it all the while."""
    chance, state, wanted = random.Random(kind), tmp_path / "state", list(map(answer, LINES))
    stopped = tries = 0
    first, then = (second, ()) if back else ((), second)
    with reserved(family) as port:
        thread, found = asked(port, family)
        whole = execute("--stats", *serve(kind, port, family))
        thread.join()
        assert (whole.status, found) == (0, [wanted]), whole
        while stopped < stops:
            tries += 1
            assert tries <= 4 * stops, f"{stopped} of {tries} stops came while it ran"
            tick = chance.randrange(1, int(whole.stats["ticks"]) * 9 // 10)
            thread, found = asked(port, family)
            ended = execute("--save", state, "--stop-at", str(tick), *serve(kind, port, family), runtime=first)
            if ended.status == STOPPED:
                stopped += 1
                ended = execute(state, runtime=then)
            thread.join()
            assert (ended.status, found) == (0, [wanted]), (tick, ended)


@pytest.mark.parametrize(("kind", "family"), [("c", "4"), ("c", "6"), ("rust", "4"), ("go", "4")])
def test_a_server_listens_again(kind: str, family: str, tmp_path: Path, no_leaks: None) -> None:
    stop_server(kind, tmp_path, STOPS, family=family)


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_listens_again_on_another_architecture(kind: str, back: bool, tmp_path: Path, no_leaks: None) -> None:
    stop_server(kind, tmp_path, STOPS_ELSEWHERE, emulated_runtime(), back)


def wait_until_listening(port: int) -> None:
    """Wait until somebody listens at the port, without connecting to it."""
    end = time.monotonic() + PATIENCE_S
    while f":{port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_program_that_waits_stops(tmp_path: Path, no_leaks: None) -> None:
    """In accept, and for datagrams and connections at once."""
    for kind in ("rust", "c"):
        state = tmp_path / kind
        with reserved() as port, subprocess.Popen([build(), "--save", state, *serve(kind, port)]) as process:
            wait_until_listening(port)
            wait_until_blocked(process)
            process.send_signal(signal.SIGUSR1)
            assert process.wait(PATIENCE_S) == STOPPED
            thread, found = asked(port)
            assert execute(state).status == 0
            thread.join()
            assert found == [list(map(answer, LINES))]


def test_what_was_received_is_read_and_then_the_connection_is_broken(tmp_path: Path) -> None:
    """A client that was stopped while it waited reads the half of the answer that had come. As the
    rest does not come it asks again, on the same socket.
    """
    module, state = compiled(SOURCES / "sockets.c"), tmp_path / "state"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with subprocess.Popen([build(), "--save", state, module, "client", "4", str(port), "1"], stdout=subprocess.PIPE) as process:
            first, _ = server.accept()
            with first, first.makefile("rb") as lines:
                asked = lines.readline()
                wait_until_blocked(process)
                # While it stands still: the socket keeps it, and not the memory, which is packed.
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                first.sendall(answer(asked)[:4])
                process.send_signal(signal.SIGUSR1)
                process.send_signal(signal.SIGCONT)
                assert process.wait(PATIENCE_S) == STOPPED
        assert answer(asked)[:4] in state.read_bytes()
        with subprocess.Popen([build(), state], stdout=subprocess.PIPE) as process:
            assert process.stdout
            second, _ = server.accept()
            with second, second.makefile("rb") as lines:
                assert lines.readline() == asked
                second.sendall(answer(asked))
                assert process.stdout.read() == answer(asked)
            assert process.wait(PATIENCE_S) == 0


def test_what_was_sent_arrives_before_the_program_stops(tmp_path: Path) -> None:
    """The other side reads only then, and the end of the process breaks the connection at once."""
    size = 300_000
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(("127.0.0.1", 0))
        server.listen()
        words: list[str | Path] = [compiled(SOURCES / "sockets.c"), "pour", "4", str(server.getsockname()[1]), str(size)]
        with subprocess.Popen([build(), "--save", tmp_path / "state", *words], stdout=subprocess.PIPE) as process:
            connection, _ = server.accept()
            with connection:
                assert process.stdout and process.stdout.readline() == b"sent\n"
                wait_until_blocked(process)
                process.send_signal(signal.SIGUSR1)
                got = 0
                with contextlib.suppress(ConnectionResetError):
                    while given := connection.recv(65536):
                        got += len(given)
                assert (got, process.wait(PATIENCE_S)) == (size, STOPPED)


def test_who_is_not_there_any_more_is_told_as_an_error(tmp_path: Path) -> None:
    module, state = compiled(SOURCES / "sockets.c"), tmp_path / "state"
    with Answering() as server:
        ticks = int(execute("--stats", module, *client("4", server)).stats["ticks"])
        assert execute("--save", state, "--stop-at", str(ticks // 2), module, *client("4", server)).status == STOPPED
    ended = execute(state)
    assert (ended.status, ended.stderr) == (1, "line: Connection refused\n"), ended


def test_an_address_that_others_have_is_told_as_an_error(tmp_path: Path) -> None:
    """A server goes on where somebody else listens."""
    state = tmp_path / "state"
    with reserved() as port:
        with subprocess.Popen([build(), "--save", state, *serve("rust", port)]) as process:
            wait_until_listening(port)
            wait_until_blocked(process)
            process.send_signal(signal.SIGUSR1)
            assert process.wait(PATIENCE_S) == STOPPED
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            ended = execute(state)
    assert (ended.status, "AddrInUse" in ended.stderr) == (134, True), ended


def test_datagrams_that_wait_travel(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with reserved() as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(PATIENCE_S)
        asking.connect(("127.0.0.1", port))
        with subprocess.Popen([build(), "--save", state, *serve("c", port)]) as process:
            wait_until_listening(port)
            wait_until_blocked(process)
            asking.send(LINES[0])
            assert asking.recv(100) == answer(LINES[0])
            # Sent while it stands still, so that it cannot have answered.
            process.send_signal(signal.SIGSTOP)
            for line in LINES:
                asking.send(line)
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGCONT)
            assert process.wait(PATIENCE_S) == STOPPED
        thread, found = asked(port)
        assert execute(state).status == 0
        thread.join()
        assert [asking.recv(100) for _ in LINES] == list(map(answer, LINES))
        assert found == [list(map(answer, LINES))]


def test_options_travel(tmp_path: Path) -> None:
    """So does how long a receiver waits."""
    module, state = compiled(SOURCES / "sockets.c"), tmp_path / "state"
    with Answering() as server:
        words = ["options", "4", str(server.port)]
        whole = execute("--stats", module, *words)
        assert (whole.status, whole.stdout) == (0, b"Resource temporarily unavailable\n1 1 1 5 20000\n")
        assert execute("--save", state, "--stop-at", str(int(whole.stats["ticks"]) // 2), module, *words).status == STOPPED
        assert execute(state).stdout == b"Connection reset by peer\n1 1 1 5 20000\n"


def test_who_waits_for_all_gets_what_has_come_in_time() -> None:
    """As SO_RCVTIMEO has it (socket(7)): an error only if nothing has."""
    with Answering() as server:
        ended = execute(compiled(SOURCES / "sockets.c"), "all", "4", str(server.port))
    assert (ended.status, ended.stdout) == (0, b"9\n-1\n"), ended


def test_names_are_resolved() -> None:
    ended = execute(compiled(SOURCES / "sockets.c"), "resolve", "localhost")
    assert (ended.status, ended.stdout) == (0, b"127.0.0.1:80\n")


@pytest.mark.parametrize("wrong", ["localhost:80", "127.0.0.1", "127.0.0.1:80,", "127.0.0.1:65536", ":80"])
def test_an_address_to_listen_at_is_one(wrong: str) -> None:
    ended = execute("--listen", wrong, compiled(SOURCES / "listener.rs"))
    assert (ended.status, "--listen: " in ended.stderr) == (2, True)


def test_who_cannot_listen_does_not_begin() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = execute("--listen", address, compiled(SOURCES / "listener.rs"))
    assert (ended.status, f"cannot listen at {address}: " in ended.stderr) == (REFUSED, True), ended
