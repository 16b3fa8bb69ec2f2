"""`mayfly serve` on sockets that systemd has opened, and what it tells systemd. Machines are
ordinary processes.
"""

import http.client
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.errors import ConfigError
from mayfly.host.activation import inherited, notify
from mayfly.host.listen import open_doors
from mayfly.host.sockets import claim
from tests.kit.api_fakes import ROOT, install_toys, small_config

AS_SYSTEMD = """
import os, sys
number = len(sys.argv[1].split(","))
for at, fd in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(fd, 100 + at)
for at in range(number):
    os.dup2(100 + at, 3 + at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(number))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        yield Path(name)


@pytest.fixture
def listener(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "api.sock"))
        listener.listen()
        yield listener


def get(path: Path, target: str) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        client = http.client.HTTPConnection("localhost")
        client.sock = connection
        client.request("GET", target)
        return client.getresponse().status


def test_a_server_serves_on_the_sockets_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, listener: socket.socket
) -> None:
    """It says when it is ready, and leaves the Unix socket where it was."""
    install_toys(monkeypatch, tmp_path)
    mode = (folder / "api.sock").stat().st_mode
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(folder / "notify"))
        arguments = ["-m", "tests.kit.fake_mayfly", "-", "serve", "--time-factor", "1"]
        fds = (listener.fileno(), tcp.fileno())
        server = subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, ",".join(map(str, fds)), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(folder / "notify")},
            pass_fds=fds,
        )
        try:
            assert told.recv(100) == b"READY=1"
            assert get(folder / "api.sock", "/healthz") == 200
            over_tcp = http.client.HTTPConnection(*tcp.getsockname())
            over_tcp.request("GET", "/languages")
            assert over_tcp.getresponse().status == 401  # it asks for a key
            over_tcp.close()
            server.terminate()
            assert told.recv(100) == b"STOPPING=1"
        finally:
            server.terminate()
            assert server.wait(60) == 0
    assert (folder / "api.sock").stat().st_mode == mode


def test_sockets_are_for_the_process_that_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "2")
    assert inherited() == (None, ())
    assert "LISTEN_FDS" not in os.environ  # nor for its children


def test_what_is_no_listening_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for family, kind in ((socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM)):
        with socket.socket(family, kind) as other:
            monkeypatch.setattr("mayfly.host.activation.FIRST", os.dup(other.fileno()))
            monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
            monkeypatch.setenv("LISTEN_FDS", "1")
            with pytest.raises(ConfigError, match="not a listening stream socket"):
                inherited()


def test_an_activated_socket_stays(folder: Path, listener: socket.socket) -> None:
    with claim(folder / "other.sock", socket.socket(fileno=os.dup(listener.fileno()))) as (served, runs):
        assert served.getsockname() == str(folder / "api.sock")
        assert runs == folder / "runs"
    assert (folder / "api.sock").is_socket()
    assert not runs.exists()


def test_an_activated_address_of_others_wants_tls_too(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as tcp, pytest.raises(ConfigError, match="can be reached from other hosts"):
        open_doors(small_config(tmp_path), {}, [tcp]).__enter__()


def test_an_abstract_notify_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("")  # an abstract name that the kernel chooses
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + told.getsockname()[1:].decode())
        notify("READY=1")
        assert told.recv(100) == b"READY=1"
