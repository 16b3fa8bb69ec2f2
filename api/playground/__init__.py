"""The page to try it on: the files that `make web` bundles, under a strict policy. It is described
in docs/playground.md.

The page has no access that a key does not give: it is an ordinary client of the routes beside it.
"""

import hashlib
import os
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web

from mayfly.api.connections import Handler
from mayfly.host.keys import Keyring
from mayfly.host.listen import Door

STATIC = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy, level 3. The editor and the terminal make style elements, which have the
nonce; the editor's marks are pictures in data: addresses.
"""
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
LISTEN = ("127.0.0.1:8080",)
"""Where the page is if the configuration names no address."""
NOT_BUILT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Mayfly playground</title>
<h1>The page is not built</h1>
<p>Run <code>make web</code> in the checkout (it needs npm), then start the server again. The API works without the page.</p>
</html>
"""


def invite(door: Door, keyring: Keyring) -> str:
    """The page's address, for the operator; on loopback with a key, which ends with the server."""
    local = ip_address(door.listener.getsockname()[0]).is_loopback
    return f"{door.url}/#key={keyring.issue('playground')}" if local else f"{door.url}/"


def routes(folder: Path = STATIC) -> tuple[tuple[str, Handler], ...]:
    """What is answered to GET for the page: paths and handlers. The files are read here, once; they
    are some 1.2 MB.
    """
    files = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
    page = files.pop("index.html", b"").decode()
    return ("/", _page(page)), ("/playground/{name}", _file(files))


def _page(text: str) -> Handler:
    async def page(request: web.Request) -> web.Response:
        """Give the page."""
        nonce = os.urandom(16).hex()
        headers = {**HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": POLICY.format(nonce=nonce)}
        body = text.replace("{nonce}", nonce) or NOT_BUILT
        return web.Response(text=body, content_type="text/html", charset="utf-8", status=200 if text else 503, headers=headers)

    return page


def _file(files: dict[str, bytes]) -> Handler:
    tags = {name: hashlib.sha256(content).hexdigest()[:32] for name, content in files.items()}

    async def file(request: web.Request) -> web.Response:
        """Give a file of the page."""
        name = request.match_info["name"]
        if name not in files:
            raise web.HTTPNotFound
        headers = {**HEADERS, "Cache-Control": "no-cache", "ETag": f'"{tags[name]}"'}
        if any(tag.value in ("*", tags[name]) for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        kind = TYPES.get(Path(name).suffix, "application/octet-stream")
        return web.Response(body=files[name], headers={**headers, "Content-Type": f"{kind}; charset=utf-8"})

    return file
