"""`mayfly serve` as a process: how it begins, how it ends, what it leaves. Machines are ordinary
processes.
"""

import asyncio
import base64
import hashlib
import hmac
import http.server
import json
import os
import queue
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.kit.api_fakes import ROOT, gone, install_toys
from tests.kit.api_server import make_certificate


class Server(subprocess.Popen[bytes]):
    """`said` is what it has said on standard error until it was ready."""

    said = b""


Serve = Callable[..., Server]


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        yield Path(name) / "x" / "api.sock"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Path) -> Iterator[Serve]:
    """Start servers; they are waited for until they listen or end, and ended with the test."""
    install_toys(monkeypatch, tmp_path)
    started = []

    def start(*args: str, wait_for: bytes = b"listening") -> Server:
        command = [sys.executable, "-m", "tests.kit.fake_mayfly", "-", "serve", "--socket", str(path), "--time-factor", "1", *args]
        process = Server(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, start_new_session=True)
        started.append(process)
        assert process.stderr
        for line in process.stderr:
            process.said += line
            if wait_for in line or b"  " in line:
                break
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        assert process.stderr
        process.stderr.close()


def call(path: Path, method: str, url: str, body: bytes | None = None) -> tuple[int, Any]:
    async def ask() -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(path))) as client,
            client.request(method, f"http://mayfly{url}", data=body) as answer,
        ):
            return answer.status, await answer.json()

    return asyncio.run(asyncio.wait_for(ask(), 30))


def first_line(output: str) -> tuple[socket.socket, bytes]:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(output)
    connection.settimeout(30)
    line = b""
    while not line.endswith(b"\n"):
        line += connection.recv(1)
    return connection, line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_its_runs_and_removes_its_sockets(serve: Serve, path: Path, number: int) -> None:
    server = serve("--language", "toy", "--drain-s", "0")
    status, started = call(path, "POST", "/start?output=events", b"echo $$; exec sleep 60")
    assert status == 201
    connection = socket.socket(socket.AF_UNIX)
    with connection:
        connection.connect(started["output_socket"])
        with connection.makefile() as lines:
            pid = next(int(event["data"]) for event in map(json.loads, lines) if event["event"] == "stdout")
            server.send_signal(number)
            rest = [json.loads(line) for line in lines]
    assert [event["event"] for event in rest] == ["error", "done"]
    assert rest[0]["error"]["message"] == "the server is stopping"
    assert server.wait(60) == 0
    assert list(path.parent.rglob("*")) == []
    assert gone(pid)


@pytest.mark.parametrize("patient", [True, False])
def test_what_is_under_way_may_end_unless_it_is_told_twice(serve: Serve, path: Path, tmp_path: Path, patient: bool) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    server = serve("--language", "toy", "--drain-s", "60")
    _, started = call(path, "POST", "/start", f"echo begun; read -r line <{go}; echo $line".encode())
    connection, _ = first_line(started["output_socket"])
    with connection:
        server.send_signal(signal.SIGTERM)
        while call(path, "GET", "/readyz")[0] == 200:
            pass
        assert call(path, "GET", "/healthz")[1]["status"] == "draining"
        status, answer = call(path, "POST", "/start", b"true")
        assert (status, answer["error"]["code"]) == (503, "stopping")
        assert server.poll() is None
        if patient:
            go.write_text("ended\n")
        else:
            server.send_signal(signal.SIGTERM)
        assert b"".join(iter(lambda: connection.recv(4096), b"")) == (b"ended\n" if patient else b"")
    assert server.wait(60) == 0
    assert list(path.parent.rglob("*")) == []


def test_runs_that_do_not_end_in_time_are_ended(serve: Serve, path: Path) -> None:
    server = serve("--language", "toy", "--drain-s", "0.2")
    _, started = call(path, "POST", "/start?output=events", b"echo begun; exec sleep 60")
    connection = socket.socket(socket.AF_UNIX)
    with connection:
        connection.connect(started["output_socket"])
        with connection.makefile() as lines:
            next(line for line in lines if "begun" in line)
            server.send_signal(signal.SIGTERM)
            assert [json.loads(line)["event"] for line in lines] == ["error", "done"]
    assert server.wait(60) == 0


def test_keys_are_made_and_taken_back_while_it_serves(serve: Serve, path: Path) -> None:
    server = serve("--language", "toy", "--listen", "127.0.0.1:0", wait_for=b"make a key")
    url = re.search(r"http://127.0.0.1:\d+", server.said.decode())
    assert url

    def key(*args: str) -> str:
        command = [sys.executable, "-m", "mayfly.cli.main", "key", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def ask(token: str) -> int:
        request = urllib.request.Request(f"{url[0]}/languages", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    token = key("create", "site", "--rate", "60/min", "--concurrency", "4", "--memory", "1G", "--readers", "9").strip()
    assert ask(token) == 200
    assert ask(token[:-1]) == 401
    listed = json.loads(key("list", "--json"))
    assert [[item[name] for name in ("name", "rate", "concurrency", "memory", "readers")] for item in listed] == [
        ["site", 60, 4, 1 << 30, 9]
    ]
    assert "hash" not in listed[0]
    assert "60 runs/min, 4 at a time, 1024 MiB" in key("list")
    key("revoke", "site")
    assert ask(token) == 401
    assert key("list") == ""


def test_a_killed_server_leaves_a_socket_that_the_next_one_replaces(serve: Serve, path: Path) -> None:
    first = serve()
    _, started = call(path, "POST", "/start?language=toy", b"echo $$; exec sleep 60")
    connection, line = first_line(started["output_socket"])
    connection.close()
    first.kill()
    first.wait(60)
    assert path.exists()
    assert Path(started["output_socket"]).exists()
    assert gone(int(line)), "its machine outlived it"
    serve()
    assert call(path, "GET", "/healthz")[0] == 200
    assert not Path(started["output_socket"]).exists()


def test_a_live_server_is_left_alone(serve: Serve, path: Path) -> None:
    serve()
    second = serve()
    assert second.wait(60) == 1
    assert call(path, "GET", "/healthz")[0] == 200


def test_an_unknown_language_is_said_at_once(serve: Serve, path: Path) -> None:
    assert serve("--language", "cobol").wait(60) == 1
    assert not path.exists()


def test_sighup_has_the_certificate_read_again(serve: Serve, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    server = serve("--listen", "127.0.0.1:0", "--tls-certificate", str(certificate), "--tls-key", str(key))
    found = re.search(rb"https://127\.0\.0\.1:(\d+)", server.said)
    assert found

    def presented() -> bytes:
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", int(found[1])), timeout=60))

    def told_again(words: bytes) -> None:
        server.send_signal(signal.SIGHUP)
        assert server.stderr
        assert any(words in line for line in server.stderr)

    assert presented() == ssl.PEM_cert_to_DER_cert(certificate.read_text())
    for new, old in zip(make_certificate(tmp_path, "renewed"), (certificate, key), strict=True):
        new.replace(old)
    told_again(b"read the certificate")
    renewed = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert presented() == renewed
    certificate.write_text("none")
    told_again(b"the last one is used on")
    assert presented() == renewed
    server.terminate()
    assert server.wait(60) == 0


class Receiver(http.server.ThreadingHTTPServer):
    """Receives results over TLS: `got` has the headers and the body of each, or why a handshake
    failed.
    """

    def __init__(self, pair: tuple[Path, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Received)
        self.got: queue.Queue[Any] = queue.Queue()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(*pair)

    def __enter__(self) -> "Receiver":
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, where = super().get_request()
        try:
            return self.context.wrap_socket(connection, server_side=True), where
        except OSError as error:
            connection.close()
            self.got.put(error)
            raise


class Received(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        self.server.got.put((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_results_go_to_https_receivers_whose_certificate_holds(
    serve: Serve, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a certificate authority of one's own; not where the name is another, nor the issuer."""
    issuer = make_certificate(tmp_path, "authority")
    good, other = (
        make_certificate(tmp_path, name, address=address, by=issuer) for name, address in (("good", "127.0.0.1"), ("other", "127.0.0.2"))
    )
    unknown = make_certificate(tmp_path, "unknown")
    monkeypatch.setenv("SSL_CERT_FILE", str(issuer[0]))
    audit, secret = tmp_path / "audit", "0123456789abcdef"
    server = serve("--callback-host", "127.0.0.1", "--audit-log", str(audit))
    with Receiver(good) as right, Receiver(other) as misnamed, Receiver(unknown) as stranger:
        receivers = (right, misnamed, stranger)
        for receiver in receivers:
            url = f"https://127.0.0.1:{receiver.server_port}/hook"
            body = {"language": "toy", "source": "echo hello", "callback_url": url, "callback_secret": secret}
            assert call(path, "POST", "/start", json.dumps(body).encode())[0] == 201
        headers, sent = right.got.get(timeout=60)
        assert json.loads(sent)["steps"][-1]["stdout"] == "hello\n"
        message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + sent
        digest = hmac.new(secret.encode(), message, hashlib.sha256).digest()
        assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
        refusals = [receiver.got.get(timeout=60) for receiver in receivers[1:]]
        assert all(isinstance(refusal, ssl.SSLError) for refusal in refusals), refusals
        server.terminate()
        assert server.wait(60) == 0
    ends = sorted((line["ok"], line["outcome"]) for line in map(json.loads, audit.read_text().splitlines()) if line["action"] == "callback")
    assert [ok for ok, _ in ends] == [False, False, True]
    assert all("certificate verify failed" in outcome.lower() for _, outcome in ends[:2]), ends
    assert ends[2][1] == "204"
