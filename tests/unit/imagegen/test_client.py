"""Requests to a registry: where credentials go and do not go, redirects, challenges, proxies."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import ConfigError, RegistryError
from mayfly.imagegen.digests import digest_of
from mayfly.imagegen.oci.accounts import Account
from mayfly.imagegen.oci.client import Client, TransientError, body, origin_of, parse_challenges
from mayfly.imagegen.oci.reference import RegistryReference, parse_reference
from mayfly.imagegen.oci.registry import RegistrySource
from mayfly.imagegen.progress import Silent

Answer = tuple[int, dict[str, str], bytes]
Seen = list[tuple[str, str, str]]
ME = Account(basic="bWU6cGFzcw==")


@contextlib.contextmanager
def _server(answer: Callable[[str, str, str], Answer], host: str = "127.0.0.1") -> Iterator[tuple[str, Seen]]:
    """A server that answers (method, path, Authorization); its address, and what it was asked."""
    seen: Seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = (self.command, self.path, self.headers.get("Authorization") or "")
            seen.append(asked)
            status, headers, data = answer(*asked)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

        do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 (http.server's names)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _client(base: str, account: Account | None = ME) -> Client:
    return Client(base, lambda: account, "repository:a/b:pull")


def _get(client: Client, url: str) -> tuple[int, bytes]:
    with client.request("GET", url, {}) as response:
        return response.status_code, b"".join(body(response, 1 << 20))


def _registry(challenge: str, wanted: str, then: Answer) -> Callable[[str, str, str], Answer]:
    """Challenges whoever does not show `wanted`, and gives a token to all."""

    def answer(_: str, path: str, authorization: str) -> Answer:
        if path.startswith("/token"):
            return 200, {}, b'{"token": "", "access_token": "t0ken"}'
        return then if authorization == wanted else (401, {"WWW-Authenticate": challenge}, b"")

    return answer


def test_an_upload_elsewhere_goes_without_the_token(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"contents")
    with _server(lambda *_: (201, {}, b""), "127.0.0.2") as (other, there):

        def answer(method: str, path: str, authorization: str) -> Answer:
            if path.startswith("/token"):
                return 200, {}, b'{"token": "t0ken"}'
            if authorization != "Bearer t0ken":
                return 401, {"WWW-Authenticate": f'Bearer realm="{base}/token"'}, b""
            return (404, {}, b"") if method == "HEAD" else (202, {"Location": f"{other}/upload?x=1"}, b"")

        with _server(answer) as (base, here):
            reference = parse_reference(f"{base.removeprefix('http://')}/test:1")
            assert isinstance(reference, RegistryReference)
            RegistrySource(reference, tmp_path / "cache", progress=Silent()).push(tmp_path / "blob", digest_of(b"contents"))
    assert [authorization for *_, authorization in there] == [""]
    assert there[0][1] == f"/upload?x=1&digest={digest_of(b'contents')}"
    assert [authorization for _, path, authorization in here if path.startswith("/v2/test/blobs/uploads")] == ["Bearer t0ken"]


def test_a_manifest_is_not_pushed_under_another_digest(tmp_path: Path) -> None:
    reference = parse_reference("127.0.0.1:1/test@sha256:" + "0" * 64)
    assert isinstance(reference, RegistryReference)
    with pytest.raises(ConfigError, match="has the digest"):
        RegistrySource(reference, tmp_path, progress=Silent()).push_manifest(b"{}", "x")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_no_credentials_along(status: int) -> None:
    with (
        _server(lambda *_: (200, {}, b"there"), "127.0.0.2") as (other, there),
        _server(_registry("Basic realm=x", f"Basic {ME.basic}", (status, {"Location": f"{other}/x"}, b""))) as (base, here),
    ):
        assert _get(_client(base), f"{base}/v2/") == (200, b"there")
    assert [authorization for *_, authorization in there] == [""]
    assert here[-1][2] == f"Basic {ME.basic}"


def test_a_challenge_of_another_host_is_not_answered() -> None:
    """The redirect's target asks for an account, for a realm of its own."""
    with (
        _server(lambda *_: (401, {"WWW-Authenticate": f'Bearer realm="{other}/token"'}, b""), "127.0.0.2") as (other, there),
        _server(lambda *_: (307, {"Location": f"{other}/x"}, b"")) as (base, _),
    ):
        assert _get(_client(base), f"{base}/v2/")[0] == 401
    assert [(path, authorization) for _, path, authorization in there] == [("/x", "")]


def test_a_token_server_that_redirects_gets_the_account_alone() -> None:
    with _server(lambda *_: (200, {}, b'{"token": "t0ken"}'), "127.0.0.2") as (other, there):

        def answer(_: str, path: str, authorization: str) -> Answer:
            if path.startswith("/auth"):
                return 307, {"Location": f"{other}/token"}, b""
            return (200, {}, b"ok") if authorization == "Bearer t0ken" else (401, {"WWW-Authenticate": f'Bearer realm="{base}/auth"'}, b"")

        with _server(answer) as (base, here):
            assert _get(_client(base), f"{base}/v2/") == (200, b"ok")
    assert [authorization for *_, authorization in there] == [""]
    assert ("GET", "/auth?scope=repository%3Aa%2Fb%3Apull", f"Basic {ME.basic}") in here


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/x", "ftp://x/", "file:///etc/passwd", "http://[/", "//", "http://x:99999/"])
def test_where_no_request_may_lead(location: str) -> None:
    with _server(lambda *_: (307, {"Location": location}, b"")) as (base, _):
        client = _client(base)
        if location.startswith("http://127"):
            client._home = origin_of(base.replace("http:", "https:"))
        with pytest.raises(RegistryError) as caught:
            _get(client, f"{base}/v2/")
    assert caught.value.hint


def test_redirects_end() -> None:
    with _server(lambda *_: (307, {"Location": "/again"}, b"")) as (base, seen), pytest.raises(RegistryError, match="more than 10 times"):
        _get(_client(base), base)
    assert len(seen) == 11


def test_an_upload_is_not_turned_into_a_get() -> None:
    with _server(lambda *_: (303, {"Location": "/x"}, b"")) as (base, _), pytest.raises(RegistryError, match="answers POST"):
        _client(base).request("POST", base, {})


def test_netrc_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with _server(lambda *_: (200, {}, b"there"), "127.0.0.2") as (other, there):

        def answer(_: str, path: str, authorization: str) -> Answer:
            if path.startswith("/token"):
                return 200, {}, b'{"token": "t0ken"}'
            if authorization != "Bearer t0ken":
                return 401, {"WWW-Authenticate": f'Bearer realm="{base}/token"'}, b""
            return 302, {"Location": other}, b""

        with _server(answer) as (base, here):
            assert _get(_client(base, None), f"{base}/v2/") == (200, b"there")
    assert [authorization for *_, authorization in there] == [""]
    assert {authorization for *_, authorization in here} == {"", "Bearer t0ken"}


def test_loopback_needs_no_proxy_and_others_use_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with _server(lambda *_: (200, {}, b"proxied")) as (proxy, seen), _server(lambda *_: (200, {}, b"direct")) as (base, _):
        monkeypatch.setenv("http_proxy", proxy)
        assert _get(_client(base), base) == (200, b"direct")
        assert seen == []
        assert _get(_client("http://registry.invalid"), "http://registry.invalid/v2/") == (200, b"proxied")
        assert seen[0][1] == "http://registry.invalid/v2/"
    with pytest.raises(TransientError, match="proxy"):
        _get(_client("http://registry.invalid"), "http://registry.invalid/v2/")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(RegistryError) as caught:
        _get(_client("http://registry.invalid"), "http://registry.invalid/v2/")
    assert "HTTP_PROXY" in caught.value.hint


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ('Bearer realm="r",service="s",scope="a:b:c,d"', [("bearer", {"realm": "r", "service": "s", "scope": "a:b:c,d"})]),
        ("BEARER Realm=r , service=s", [("bearer", {"realm": "r", "service": "s"})]),
        ('Basic realm="a \\"b\\"", Bearer realm="r"', [("basic", {"realm": 'a "b"'}), ("bearer", {"realm": "r"})]),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate YII/ab==, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('realm="r"', []),
        ("Bearer realm=", [("bearer", {})]),
        ("\x00", []),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(header)[: len(expected)] == expected


def test_the_token_is_preferred_and_the_account_is_second() -> None:
    with _server(lambda *a: answer(*a)) as (base, seen):
        answer = _registry(f'Basic realm="x", Bearer realm="{base}/token"', "Bearer t0ken", (200, {}, b"ok"))
        assert _get(_client(base), base) == (200, b"ok")
        answer = _registry('Bearer realm="gopher:x", Basic realm="x"', f"Basic {ME.basic}", (200, {}, b"ok"))
        assert _get(_client(base), base) == (200, b"ok")
        assert _get(_client(base, None), base)[0] == 401
    assert ("GET", "/token?scope=repository%3Aa%2Fb%3Apull", f"Basic {ME.basic}") in seen


def test_each_scope_is_a_parameter_of_its_own() -> None:
    """Token Authentication, Query Parameters: entries are "specified multiple times"."""
    challenges: list[str] = []

    def answer(method: str, path: str, authorization: str) -> Answer:
        return _registry(challenges[0], "Bearer t0ken", (200, {}, b"x"))(method, path, authorization)

    with _server(answer) as (base, seen):
        challenges.append(f'Bearer realm="{base}/token",service="s",scope="repository:a/b:pull repository:c/d:pull"')
        assert _get(_client(base), base + "/v2/a/b/manifests/x") == (200, b"x")
    assert seen[1][1] == "/token?scope=repository%3Aa%2Fb%3Apull&scope=repository%3Ac%2Fd%3Apull&service=s"


def test_a_token_with_a_line_in_it_is_not_sent() -> None:
    def answer(_: str, path: str, __: str) -> Answer:
        token = json.dumps({"token": "a\r\nX: y"}).encode()
        return (200, {}, token) if path.startswith("/token") else (401, {"WWW-Authenticate": f'Bearer realm="{base}/token"'}, b"")

    with _server(answer) as (base, seen):
        assert _get(_client(base), base)[0] == 401
    assert len(seen) == 2


def test_a_packed_answer_is_not_unpacked() -> None:
    """Else a small answer could be a large one; blobs are what their digests say."""
    with _server(lambda *_: (200, {"Content-Encoding": "gzip"}, b"\x1f\x8bxyz")) as (base, _):
        assert _get(_client(base), base) == (200, b"\x1f\x8bxyz")
