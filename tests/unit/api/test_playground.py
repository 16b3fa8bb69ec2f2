"""The playground's files: what is served, under which policy, and what is said without them."""

import asyncio
import re
import socket
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from mayfly.api.playground import NOT_BUILT, invite, routes
from mayfly.host.keys import Keyring
from mayfly.host.listen import Door
from tests.kit.api_fakes import install_toys
from tests.kit.api_server import Served, serving

NONCE = re.compile(r"'nonce-([0-9a-f]{32})'")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text('<link nonce="{nonce}" href="playground/page.css">')
    (tmp_path / "page.js").write_text("run();")
    (tmp_path / "page.css").write_text("")
    return tmp_path


def get(folder: Path, path: str, name: str = "", **headers: str) -> web.Response:
    handler = dict(routes(folder))[path]

    async def call() -> web.StreamResponse:
        return await handler(make_mocked_request("GET", path, headers=headers, match_info={"name": name}))

    answer = asyncio.run(call())
    assert isinstance(answer, web.Response)
    return answer


def test_the_page_has_a_new_nonce_each_time(folder: Path) -> None:
    nonces = set()
    for _ in range(2):
        answer = get(folder, "/")
        (nonce,) = NONCE.findall(answer.headers["Content-Security-Policy"])
        assert answer.text == f'<link nonce="{nonce}" href="playground/page.css">'
        assert answer.headers["Cache-Control"] == "no-store"
        nonces.add(nonce)
    assert len(nonces) == 2


def test_its_policy_names_nobody_else(folder: Path) -> None:
    policy = get(folder, "/").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy


@pytest.mark.parametrize(("name", "kind"), [("page.js", "text/javascript"), ("page.css", "text/css")])
def test_a_file_is_given_as_what_it_is(folder: Path, name: str, kind: str) -> None:
    answer = get(folder, "/playground/{name}", name)
    assert answer.status == 200
    assert answer.content_type == kind
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    again = get(folder, "/playground/{name}", name, **{"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.body) == (304, None)


@pytest.mark.parametrize("name", ["index.html", "missing.js", "../__init__.py", "..", ""])
def test_nothing_else_is_given(folder: Path, name: str) -> None:
    with pytest.raises(web.HTTPNotFound):
        get(folder, "/playground/{name}", name)


def test_without_the_bundle_the_page_says_what_to_do(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        answer = get(place, "/")
        assert (answer.status, answer.text) == (503, NOT_BUILT)
    assert "make web" in NOT_BUILT


def test_the_page_needs_no_key_but_all_that_it_calls_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)

    async def scenario(served: Served) -> None:
        async with served.client() as client:
            for path, statuses in (("/", (200, 503)), ("/playground/none.js", (404,)), ("/languages", (401,))):
                async with client.get(path) as answer:
                    assert answer.status in statuses, path
            async with client.head("/") as answer:
                assert "script-src 'self'" in answer.headers["Content-Security-Policy"]

    serving(tmp_path, scenario, playground=True)


def test_a_server_without_it_has_nothing_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)

    async def scenario(served: Served) -> None:
        async with served.operator.get("/") as answer:
            assert answer.status == 404

    serving(tmp_path, scenario)


def test_only_a_page_on_loopback_is_given_a_key(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys.json")
    for host, issued in (("127.0.0.1", True), ("0.0.0.0", False)):
        with socket.socket() as unused:  # it never listens
            unused.bind((host, 0))
            door = Door(unused, None)
            url, _, key = invite(door, keyring).partition("#key=")
            assert url == f"{door.url}/"
            assert (keyring.find(key) is not None) == issued
    assert len(keyring) == 1
