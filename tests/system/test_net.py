"""Machines with a network: a shell in the guest and servers on the host exchange what both of them
can check, over tap and over passt.
"""

import contextlib
import hashlib
import itertools
import json
import platform
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest

from mayfly import paths
from tests.kit import net_kit, toy
from tests.kit.net_kit import ip, make_tap
from tests.kit.scale import FULL
from tests.system.test_service import Server as HttpServer
from tests.system.test_snapshots import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(2700 if FULL else 900)]

LINE = "the quick brown fox jumps over the lazy dog"
LINES = 25_000
CHUNK = f"{LINE}\n".encode() * LINES
WHOLE = {"x86_64": -(-(1 << 30) // len(CHUNK)), "aarch64": 64}[platform.machine()]
CHUNKS, PASST_CHUNKS = (WHOLE, 4) if FULL else (8, 1)
"""In each direction. passt 2023 waits for two seconds whenever a slow guest's window has been full,
so it gets fewer.
"""
DEADLINE_S = 800
TAP, GATEWAY, GUEST, GATEWAY6, GUEST6 = "mayfly0", "10.87.0.1", "10.87.0.2", "fd6d:6179:666c:79::1", "fd6d:6179:666c:79::2"
SECOND, SECOND6 = "10.87.0.3", "fd6d:6179:666c:79::3"
INTERNAL = "10.99.0.1"
"""Another address of the host's, which nothing allows."""
NAMED = "192.0.2.77"
"""What every name means."""
UPLINK_ADDRESS = "198.51.100.1"
TAP_OPTIONS = (
    *("--network-backend", "tap", "--network-taps", TAP, "--network-allow", GATEWAY, "--network-allow", GATEWAY6),
    *("--network-subnets", "10.87.0.0/16", "--network-subnets", "fd6d:6179:666c:79::/64"),
)
PASST_OPTIONS = ("--network-backend", "passt", "--network-allow", UPLINK_ADDRESS, "--network-nameservers", "9.9.9.9")
Start: TypeAlias = "Callable[..., subprocess.Popen[str]]"


def digest(pieces: Iterable[bytes]) -> str:
    """MD5 serves against chance, and is what an emulated guest computes quickly."""
    state = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        state.update(piece)
    return state.hexdigest()


class Server:
    """Sockets on one address of the host's: one takes bytes and keeps their digest, one sends, one
    is a name server.
    """

    def __init__(self, address: str, chunks: int) -> None:
        self._chunks = chunks
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.uploaded = ""
        self.takes = socket.create_server((address, 0), family=family)
        self.gives = socket.create_server((address, 0), family=family)
        self.names = socket.socket(family, socket.SOCK_DGRAM)
        self.names.bind((address, 53))
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._take, self._give, self._answer)]
        for thread in self._threads:
            thread.start()

    def _take(self) -> None:
        with self.takes.accept()[0] as connection:
            self.uploaded = digest(iter(lambda: connection.recv(1 << 16), b""))

    def _give(self) -> None:
        with self.gives.accept()[0] as connection:
            for _ in range(self._chunks):
                connection.sendall(CHUNK)

    def _answer(self) -> None:
        """One address for each question after an IPv4 address, none for others (RFC 1035, 4.1)."""
        with contextlib.suppress(OSError):  # closed
            while True:
                query, sender = self.names.recvfrom(2000)
                wanted = query.endswith(b"\0\0\1\0\1")
                answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + net_kit.packed(NAMED) if wanted else b""
                self.names.sendto(query[:2] + b"\x81\x80\0\1" + bytes((0, wanted)) + bytes(4) + query[12:] + answer, sender)

    def close(self) -> None:
        for thread in self._threads[:2]:
            thread.join(30)
        for one in (self.takes, self.gives, self.names):
            one.close()


PING = r"""
#include <netinet/in.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>

/* A ping by a socket that any user may have; busybox's wants root. */
int main(int argc, char **argv) {
    struct sockaddr_in6 to6 = {.sin6_family = AF_INET6};
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct timeval patience = {.tv_sec = argc > 2 ? 2 : 20};
    char answer[64], request[16] = {8};
    int is6 = inet_pton(AF_INET6, argv[1], &to6.sin6_addr), fd;
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    if (is6) request[0] = (char)128;
    fd = socket(is6 ? AF_INET6 : AF_INET, SOCK_DGRAM, is6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (sendto(fd, request, sizeof request, 0, is6 ? (void *)&to6 : (void *)&to, is6 ? sizeof to6 : sizeof to) < 0) perror("sendto");
    puts(recv(fd, answer, sizeof answer, 0) == sizeof request ? "pong" : "silence");
    return 0;
}
"""
"""echo-request ADDRESS [impatiently]"""


@pytest.fixture(scope="module", autouse=True)
def image(toy_language: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    program = tmp_path_factory.mktemp("ping") / "echo-request"
    subprocess.run(["gcc", "-static", "-O1", "-o", program, "-xc", "-"], input=PING, text=True, check=True)
    toy.build(programs={"echo-request": program.read_bytes()})


@pytest.fixture
def namespace() -> Iterator[None]:
    with net_kit.namespace():
        ip("address", "add", f"{INTERNAL}/32", "dev", "lo")
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        yield


@pytest.fixture
def tap(namespace: None) -> None:
    make_tap(TAP, f"{GATEWAY}/16")
    ip("address", "add", f"{GATEWAY6}/64", "dev", TAP, "nodad")


@pytest.fixture
def uplink(namespace: None) -> None:
    make_tap("uplink", f"{UPLINK_ADDRESS}/24")
    ip("route", "add", "default", "via", "198.51.100.2", "dev", "uplink")


@pytest.fixture
def mayfly(tmp_path: Path) -> Start:
    """Start a snippet, with a network if there are options for it."""

    def start(source: str, *options: str) -> "subprocess.Popen[str]":
        path = tmp_path / "snippet.toy"
        path.write_text(source)
        network = ["--network"] if options else []
        command = [sys.executable, "-m", "mayfly.cli.main", "run", *network, "--wall", str(DEADLINE_S), *options, str(path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def exchange(mayfly: Start, address: str, chunks: int, *options: str, also: str) -> list[str]:
    """Ping, UDP and TCP both ways with servers at `address`; the lines that the commands `also`
    print behind that.

    The program that receives has an input without end: passt 2023 forgets a connection of which one
    direction is closed."""
    server = Server(address, chunks)
    source = f"""
        echo-request {address}
        nslookup question.test {address} | grep -c 'Address.*{NAMED}'
        yes '{LINE}' | head -n {LINES} >chunk
        for _ in $(seq {chunks}); do cat chunk; done | nc {address} {server.takes.getsockname()[1]} && echo uploaded
        mkfifo open
        nc {address} {server.gives.getsockname()[1]} <>open | md5sum
        {also}
    """
    stdout, stderr = mayfly(source, *options).communicate("", DEADLINE_S)
    server.close()
    lines = stdout.splitlines()
    assert lines[:4] == ["pong", "1", "uploaded", f"{digest([CHUNK] * chunks)}  -"], stdout[-2000:] + stderr[-2000:]
    assert server.uploaded == digest([CHUNK] * chunks)
    return lines[4:]


@contextlib.contextmanager
def at_work(process: "subprocess.Popen[str]") -> Iterator[list[str]]:
    """Send a machine numbers, a few a second; its answers."""
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout, answers, over = process.stdin, process.stdout, list[str](), threading.Event()

    def talk() -> None:
        for number in itertools.count():
            stdin.write(f"{number}\n")
            stdin.flush()
            answers.append(stdout.readline())
            if over.wait(0.2):
                return

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join(DEADLINE_S)


@pytest.mark.usefixtures("tap")
@pytest.mark.parametrize("cpus", ["1", "2"] if FULL else ["2"])
def test_everything_goes_over_tap_both_ways(mayfly: Start, cpus: str) -> None:
    """While another machine works beside it."""
    neighbour = mayfly("echo ready; while read line; do echo $((line * line)); done")
    assert neighbour.stdout is not None
    assert neighbour.stdout.readline() == "ready\n"
    also = f"""
        cat /sys/class/net/eth0/operstate
        echo-request {GATEWAY6}
        echo-request {INTERNAL} impatiently
        nc -w 2 {INTERNAL} 80 || echo no way
    """
    with at_work(neighbour) as answers:
        lines = exchange(mayfly, GATEWAY, CHUNKS, *TAP_OPTIONS, "--cpus", cpus, also=also)
    assert lines == ["up", "pong", "silence", "no way"]
    assert len(answers) > 1
    assert answers == [f"{number * number}\n" for number in range(len(answers))]
    assert neighbour.communicate("", DEADLINE_S)[0] == ""
    assert neighbour.returncode == 0


@pytest.mark.usefixtures("tap")
def test_the_host_reaches_a_guest_that_listens(mayfly: Start) -> None:
    """The snippet says that it is ready, then takes one connection; it is pinged meanwhile."""
    process = mayfly("echo ready; nc -l -p 7000 | md5sum", *TAP_OPTIONS)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    pings = subprocess.run(["busybox", "ping", "-c", "3", "-W", "20", GUEST], capture_output=True, text=True, check=False)
    assert pings.stdout.count("bytes from") == 3
    with connect(GUEST, 7000) as connection:
        for _ in range(CHUNKS):
            connection.sendall(CHUNK)
    stdout, stderr = process.communicate("", DEADLINE_S)
    assert stdout == f"{digest([CHUNK] * CHUNKS)}  -\n", stderr


def connect(address: str, port: int) -> socket.socket:
    """To a program that says that it is there a moment before it listens."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((address, port), timeout=DEADLINE_S)


@pytest.mark.usefixtures("uplink")
def test_everything_goes_over_passt_both_ways(mayfly: Start) -> None:
    also = f"cat /etc/resolv.conf\necho-request {INTERNAL} impatiently"
    assert exchange(mayfly, UPLINK_ADDRESS, PASST_CHUNKS, *PASST_OPTIONS, also=also) == ["nameserver 9.9.9.9", "silence"]
    assert not [path for path in Path("/proc").glob("[0-9]*/comm") if path.read_text().startswith("passt")]


def identity(address: str) -> str:
    """A snippet that shows the machine's MAC, addresses and name servers, and pings `address`."""
    return f"cat /sys/class/net/eth0/address; busybox ip -o address show dev eth0; cat /etc/resolv.conf; echo-request {address}"


@pytest.mark.usefixtures("tap")
def test_restored_machines_have_networks_of_their_own() -> None:
    """Two at once, from one snapshot, which is made while a run has its tap; each reaches the host
    with its own MAC and addresses.
    """
    make_tap("mayfly1", f"{GATEWAY}/32")
    ip("route", "add", f"{SECOND}/32", "dev", "mayfly1")
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        server = HttpServer(Path(folder), *TAP_OPTIONS, "--network-taps", "mayfly1", "--network-nameservers", "9.9.9.9", cold=False)

        def run() -> tuple[str, list[str]]:
            status, result = server.request("POST", "/run?language=toy&network=true", identity(GATEWAY).encode())
            assert (status, result["status"]) == (200, "ok"), result
            return result["start"], result["steps"][-1]["stdout"].splitlines()

        run()
        until(lambda: (paths.snapshots_dir() / "toy.tap").exists() and server.request("GET", "/healthz")[1]["memory_used"] == 0)
        with ThreadPoolExecutor(2) as threads:
            first, second = (future.result() for future in [threads.submit(run) for _ in range(2)])
        server.close()
    assert (first[0], second[0]) == ("restored", "restored")
    assert first[1][0] != second[1][0]
    addresses = [sorted(word.split("/")[0] for line in lines for word in line.split()[3:4]) for _, lines in (first, second)]
    own = [[address for address in found if not address.startswith("fe80")] for found in addresses]
    assert sorted(own) == [[GUEST, GUEST6], [SECOND, SECOND6]]
    for _, lines in (first, second):
        assert lines[-2:] == ["nameserver 9.9.9.9", "pong"]


@pytest.mark.usefixtures("uplink")
def test_a_restored_machine_has_a_passt_of_its_own(mayfly: Start) -> None:
    """Of two runs one after the other, each with its own MAC; the first has the snapshot made."""
    runs = [mayfly(identity(UPLINK_ADDRESS), "--json", *PASST_OPTIONS).communicate("", DEADLINE_S) for _ in range(2)]
    results = [json.loads(stdout) for stdout, _ in runs]
    lines = [result["steps"][-1]["stdout"].splitlines() for result in results]
    assert results[-1]["start"] == "restored", runs
    assert [found[-2:] for found in lines] == [["nameserver 9.9.9.9", "pong"]] * 2
    assert lines[0][0] != lines[1][0]


@pytest.mark.usefixtures("tap")
def test_a_tap_that_goes_away_leaves_the_machine_alive(mayfly: Start) -> None:
    process = mayfly("echo ready; read line; sleep 1; cat /sys/class/net/eth0/operstate; echo alive", *TAP_OPTIONS)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    ip("link", "delete", TAP)
    stdout, stderr = process.communicate("go\n", DEADLINE_S)
    assert (stdout, process.returncode) == ("down\nalive\n", 0), stderr


@pytest.mark.usefixtures("namespace")
def test_a_back_end_that_is_not_there_is_named(mayfly: Start) -> None:
    process = mayfly("echo never", *TAP_OPTIONS)
    stdout, stderr = process.communicate("", DEADLINE_S)
    assert (process.returncode, stdout) == (125, "")
    assert "there is no tap interface 'mayfly0'" in stderr


def test_a_machine_that_did_not_ask_has_no_network(tmp_path: Path) -> None:
    path = tmp_path / "snippet.toy"
    path.write_text("ls /sys/class/net")
    done = subprocess.run(
        [sys.executable, "-m", "mayfly.cli.main", "run", str(path)], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert done.stdout == b"lo\n", done.stderr
