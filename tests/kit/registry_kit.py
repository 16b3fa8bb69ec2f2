"""A registry in this process that serves an OCI layout and misbehaves as told."""

import dataclasses
import http.server
import json
import re
import urllib.parse
from pathlib import Path
from typing import Any

from tests.kit.loopback import LoopbackServer


@dataclasses.dataclass
class Faults:
    """What goes wrong. Counts are used up, one at a request."""

    status: list[int] = dataclasses.field(default_factory=list)
    """Answer the next requests so."""
    status_headers: dict[str, str] = dataclasses.field(default_factory=dict)
    status_body: bytes = b"{}"
    """Headers and body of those answers."""
    cut_blobs_at: list[int] = dataclasses.field(default_factory=list)
    """Break the next blobs' answers off after so many bytes of the body."""
    no_range: bool = False
    """Take no notice of Range."""
    garble: bool = False
    """Change a byte of every blob."""
    longer: bool = False
    """Send more than was asked for."""
    token: str | None = None
    """Ask for this bearer token, which anyone gets."""
    account: str | None = None
    """Give the token to this account only (`user:password` in base64)."""
    identity_token: str | None = None
    """Give the token to whoever shows this one (OAuth2, grant type refresh_token)."""
    token_answer: bytes | None = None
    """What the one who asks for a token is sent instead."""
    token_status: list[int] = dataclasses.field(default_factory=list)
    """Answer the next requests for a token so."""
    expires_after: int | None = None
    """Take the token so many times; then there is a new one."""
    redirect: str | None = None
    """Send whoever wants a blob to the registry at this address."""


class FakeRegistry(LoopbackServer):
    """Serves `layout` as repository `test`. A context manager; `requests` has what was asked, with
    its Range.
    """

    def __init__(self, layout: Path, faults: Faults | None = None) -> None:
        self.layout = layout
        self.faults = faults or Faults()
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str] = []
        super().__init__()

    @property
    def address(self) -> str:
        """host:port"""
        return f"127.0.0.1:{self.port}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """One request."""
        self.requests.append((request.path, request.headers.get("Range", "")))
        self.authorizations.append(request.headers.get("Authorization", ""))
        if request.path.startswith("/token"):
            self._token(request)
            return
        if self.faults.token is not None and request.headers.get("Authorization") != f"Bearer {self.faults.token}":
            challenge = f'Bearer realm="http://{self.address}/token",service="test",scope="repository:test:pull"'
            self._send(request, 401, b"{}", "application/json", {"WWW-Authenticate": challenge})
            return
        if self.faults.expires_after is not None:
            self.faults.expires_after -= 1
            if self.faults.expires_after == 0:
                self.faults.token = f"{self.faults.token}-renewed"
        if self.faults.status:
            self._send(request, self.faults.status.pop(0), self.faults.status_body, "application/json", self.faults.status_headers)
            return
        match = re.fullmatch(r"/v2/test/(manifests|blobs)/(.+)", request.path)
        if match is None:
            self._send(request, 404, b"{}", "application/json")
        elif match[1] == "manifests":
            self._manifest(request, match[2])
        else:
            self._blob(request, match[2])

    def _token(self, request: http.server.BaseHTTPRequestHandler) -> None:
        form = dict(urllib.parse.parse_qsl(request.rfile.read(int(request.headers.get("Content-Length", 0))).decode()))
        refused = self.faults.account is not None and request.headers.get("Authorization") != f"Basic {self.faults.account}"
        if self.faults.identity_token is not None:
            shown = {"grant_type": "refresh_token", "service": "test", "scope": "repository:test:pull", "client_id": "imagegen"}
            refused = form != {**shown, "refresh_token": self.faults.identity_token}
        name = "token" if self.faults.identity_token is None else "access_token"
        status = 401 if refused else self.faults.token_status.pop(0) if self.faults.token_status else 200
        answer = b'{"%s": "%s"}' % (name.encode(), str(self.faults.token).encode())
        self._send(request, status, self.faults.token_answer or answer if status == 200 else b"{}", "application/json")

    def _manifest(self, request: http.server.BaseHTTPRequestHandler, target: str) -> None:
        if ":" in target:
            path = self._path(target)
        else:
            entries = json.loads((self.layout / "index.json").read_bytes())["manifests"]
            tags = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry for entry in entries}
            path = self._path(tags[target]["digest"]) if target in tags else self.layout / "none"
        if not path.exists():
            self._send(request, 404, b"{}", "application/json")
            return
        data = path.read_bytes()
        self._send(request, 200, data, json.loads(data)["mediaType"])

    def _blob(self, request: http.server.BaseHTTPRequestHandler, digest: str) -> None:
        if self.faults.redirect is not None:
            self._send(request, 307, b"", "text/plain", {"Location": f"http://{self.faults.redirect}/v2/test/blobs/{digest}"})
            return
        path = self._path(digest)
        if not path.exists():
            self._send(request, 404, b"{}", "application/json")
            return
        data = path.read_bytes()
        if self.faults.garble:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.faults.longer:
            data += b"more"
        status, headers = 200, {}
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if match and not self.faults.no_range:
            start = int(match[1])
            status, headers = 206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            data = data[start:]
        cut = self.faults.cut_blobs_at.pop(0) if self.faults.cut_blobs_at else None
        self._send(request, status, data, "application/octet-stream", headers, cut)

    def _path(self, digest: str) -> Path:
        return self.layout / "blobs" / digest.replace(":", "/")

    def _send(
        self,
        request: Any,
        status: int,
        data: bytes,
        media_type: str,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {"Content-Type": media_type, "Content-Length": str(len(data)), **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(data if cut is None else data[:cut])
        request.close_connection = True
