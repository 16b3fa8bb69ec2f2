"""Over TCP: nobody without a key, each key within its limits and among its own runs; TLS, pages of
other origins, request ids, and what the logs tell.
"""

import asyncio
import asyncio.sslproto
import contextlib
import gc
import json
import resource
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mayfly.api import connections
from mayfly.api.routes import ROUTES
from mayfly.client import AsyncClient, StdoutEvent
from mayfly.errors import BusyError, ConfigError, HostError, UnauthorizedError, UnknownRunError
from mayfly.host import handshakes
from mayfly.host.config import Config
from mayfly.host.keys import Keyring, default_path, revoke
from mayfly.host.listen import load_tls, open_doors
from mayfly.units import MIB
from tests.kit.api_fakes import install_toys, small_config
from tests.kit.api_server import Served, make_certificate, make_key, serving

Serve = Callable[..., Any]
SECRET = "words of a snippet"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None) -> Serve:
    """Run a scenario against a server, which leaves nothing behind."""
    install_toys(monkeypatch, tmp_path)

    def call(scenario: Any, **changes: Any) -> Any:
        return serving(tmp_path, scenario, **changes)

    return call


async def ask(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
    async with client.request(method, path, **options) as answer:
        found = await answer.json() if answer.content_type == "application/json" and method != "HEAD" else await answer.text()
        return answer.status, found, answer.headers


async def begin(client: aiohttp.ClientSession, text: bytes = b"sleep 60") -> tuple[int, Any, Any]:
    return await ask(client, "POST", "/start?language=toy", data=text)


def test_without_a_key_hardly_anything_is_answered(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        async with served.client() as client:
            for route in ROUTES:
                path = route.path.replace("{id}", "x")
                status, answer, headers = await ask(client, route.method, path, data=b"x" if route.method == "POST" else None)
                if path in ("/healthz", "/readyz", "/version", "/openapi.json"):
                    assert status == 200, path
                    assert "memory_used" not in answer
                else:
                    assert (status, answer["error"]["code"]) == (401, "unauthorized"), path
                    assert headers["WWW-Authenticate"].startswith("Bearer")
            assert (await ask(client, "GET", "/nothing"))[0] == 401
        for headers in (
            {"Authorization": "Bearer x"},
            {"Authorization": "Basic eDp4"},
            {"Authorization": "Bearer"},
            {"X-Auth-Token": f"mayfly_{'0' * 16}_{'x' * 43}"},
            {"Sec-WebSocket-Protocol": "bearer.x"},
        ):
            async with served.client() as client:
                assert (await ask(client, "GET", "/languages", headers=headers))[0] == 401, headers
        assert (await ask(served.operator, "GET", "/languages"))[0] == 200
        assert (await ask(served.operator, "GET", "/healthz"))[1]["memory_used"] == 0

    serve(scenario)


def test_a_key_comes_in_until_it_is_revoked(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        token = make_key("site")  # while the server runs
        for headers in (
            {"Authorization": f"Bearer {token}"},
            {"authorization": f"bearer  {token} "},
            {"X-Auth-Token": token},
            {"Sec-WebSocket-Protocol": f"mayfly, bearer.{token}"},
        ):
            async with served.client() as client:
                status, answer, _ = await ask(client, "POST", "/run?language=toy", data=b"echo hello", headers=headers)
                assert (status, answer["steps"][1]["stdout"]) == (200, "hello\n"), headers
        revoke(default_path(), "site")
        async with served.client(token) as client:
            assert (await ask(client, "GET", "/languages"))[0] == 401

    serve(scenario)


def test_a_key_sees_and_ends_its_own_runs_only(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        async with served.client(make_key("one")) as one, served.client(make_key("two")) as two:
            started = [(await begin(client))[1] for client in (one, two, served.operator)]
            runs = [answer["id"] for answer in started]
            assert [answer["output_socket"] is None for answer in started] == [True, True, False]
            for other in (runs[1], runs[2]):
                unknown = (await ask(one, "GET", "/runs/0"))[1]["error"]["message"].replace("0", other)
                for method, path in (("GET", ""), ("GET", "/events"), ("HEAD", "")):
                    status, answer, _ = await ask(one, method, f"/runs/{other}{path}")
                    assert status == 404, path
                    assert method == "HEAD" or answer["error"]["message"] == unknown
                assert (await ask(one, "DELETE", f"/runs/{other}"))[0] == 204, "as for a run that is not there"
                assert not served.service.get(other).done.is_set()
            status, answer, _ = await ask(one, "POST", f"/runs/{runs[0]}/snapshot", json={"name": "mine"})
            assert (status, answer["error"]["code"]) == (403, "forbidden")
            assert (await ask(one, "GET", f"/runs/{runs[0]}"))[0] == 200
            assert (await ask(one, "DELETE", f"/runs/{runs[0]}"))[0] == 204
            assert (await ask(one, "GET", f"/runs/{runs[0]}"))[0] == 404
            for run in runs[1:]:
                assert (await ask(served.operator, "GET", f"/runs/{run}"))[0] == 200
                assert (await ask(served.operator, "DELETE", f"/runs/{run}"))[0] == 204

    serve(scenario)


def test_no_route_shows_a_run_to_another_key(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        async with served.client(make_key("one")) as one, served.client(make_key("two")) as two:
            run = served.service.get((await begin(one))[1]["id"])
            routes = [route for route in ROUTES if "{id}" in route.path]
            assert len(routes) >= 4
            for route in routes:
                path = route.path.replace("{id}", run.id)
                status, _, _ = await ask(two, route.method, path, data=b"x" if route.method == "POST" else None)
                unknown, _, _ = await ask(one, route.method, route.path.replace("{id}", "0"), data=b"x" if route.method == "POST" else None)
                assert status == unknown in (204, 403, 404), path
            assert not run.done.is_set()
            assert (await ask(one, "DELETE", f"/runs/{run.id}"))[0] == 204

    serve(scenario)


def test_a_keys_limits_are_its_own(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        tokens = {
            "number": make_key("number", concurrency=1),
            "memory": make_key("memory", memory=200 * MIB),
            "small": make_key("small", memory=64 * MIB),
            "rate": make_key("rate", rate=2),
        }
        for name in ("number", "memory"):
            async with served.client(tokens[name]) as client:
                status, started, _ = await begin(client)
                assert status == 201
                status, answer, headers = await begin(client)
                assert (status, answer["error"]["code"]) == (429, "key_limit")
                assert int(headers["Retry-After"]) == answer["error"]["retry_after_s"] >= 1
                run = served.service.get(started["id"])
                await ask(client, "DELETE", f"/runs/{run.id}")
                await served.service.settled(run)
                status, started, _ = await begin(client)
                assert status == 201
                await ask(client, "DELETE", f"/runs/{started['id']}")
        async with served.client(tokens["small"]) as client:
            status, answer, _ = await begin(client)
            assert (status, answer["error"]["code"]) == (422, "invalid_value")
        async with served.client(tokens["rate"]) as client:
            answers = [await ask(client, "POST", "/run?language=toy", data=b"true") for _ in range(3)]
            assert [status for status, _, _ in answers] == [200, 200, 429]
            assert 1 <= int(answers[2][2]["Retry-After"]) <= 30
            assert (await ask(client, "GET", "/languages"))[0] == 200, "only runs count"
        assert (await begin(served.operator))[0] == 201

    serve(scenario)


def test_what_is_refused_is_not_counted(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        token = make_key("site", rate=2, concurrency=1)
        async with served.client(token) as client:
            for _ in range(5):
                assert (await ask(client, "POST", "/run?language=cobol", data=b"x"))[0] == 404
                assert (await ask(client, "POST", "/run", json={"language": "toy", "source": "", "args": ["\0"]}))[0] == 422
            assert (await ask(client, "POST", "/run?language=toy", data=b"true"))[0] == 200

    serve(scenario)


def test_tls(serve: Serve, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))

    async def scenario(served: Served) -> None:
        assert served.url.startswith("https://127.0.0.1:")
        async with served.client(make_key("site"), connector=aiohttp.TCPConnector(ssl=trust)) as client:
            status, answer, _ = await ask(client, "POST", "/run?language=toy", data=b"echo hello")
            assert (status, answer["steps"][1]["stdout"]) == (200, "hello\n")
            asking = asyncio.create_task(ask(client, "POST", "/run?language=toy", data=b"echo here; sleep 60"))
            while not (found := [run for run in served.service.runs if len(run.record) and not run.done.is_set()]):
                await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait_for(found[0].done.wait(), 30)
        # Renewed: who connects from now on sees the new certificate.
        again, other_key = make_certificate(tmp_path, "renewed")
        again.replace(certificate)
        other_key.replace(key)
        assert served.doors[0].tls is not None
        load_tls(served.service.config, served.doors[0].tls)
        fresh = ssl.create_default_context(cafile=str(certificate))
        async with served.client(connector=aiohttp.TCPConnector(ssl=fresh)) as client:
            assert (await ask(client, "GET", "/healthz"))[0] == 200

    serve(scenario, tls_certificate=str(certificate), tls_key=str(key))


def test_handshakes_that_come_to_no_end_keep_nobody_out(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(handshakes, "MOST", 4)

    async def scenario(served: Served) -> None:
        silent = [await connect(served) for _ in range(6)]
        for reader, _ in silent[:2]:
            assert await to_its_end(reader) == b""
        async with served.client(make_key("site"), connector=aiohttp.TCPConnector(ssl=trust)) as client:
            assert (await ask(client, "GET", "/languages"))[0] == 200
        assert await to_its_end(silent[2][0]) == b"", "the oldest went for the client"
        assert not any(reader.at_eof() for reader, _ in silent[3:])
        silent[3][1].write(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in await to_its_end(silent[3][0])
        for _, writer in silent:
            writer.close()

    serve(scenario, tls_certificate=str(certificate), tls_key=str(key))


async def to_its_end(reader: asyncio.StreamReader) -> bytes:
    """What comes before the other end closes, or resets, the connection."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def test_a_connection_with_tls_takes_little_memory(serve: Serve, tmp_path: Path) -> None:
    """What asyncio holds for one is its own affair, and 256 KiB if nobody says otherwise."""
    certificate, key = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))

    async def scenario(served: Served) -> None:
        async with served.client(make_key("site"), connector=aiohttp.TCPConnector(ssl=trust)) as client:
            answer = await ask(client, "POST", "/run?language=toy", data=b"head -c 600000 /dev/zero | tr '\\0' x")
            assert len(answer[1]["steps"][-1]["stdout"]) == 600_000
            protocols = [found for found in gc.get_objects() if isinstance(found, asyncio.sslproto.SSLProtocol)]
            assert len(protocols) >= 2  # both ends
            assert max(sys.getsizeof(value) for protocol in protocols for value in vars(protocol).values()) < 32 * 1024

    serve(scenario, tls_certificate=str(certificate), tls_key=str(key))


def test_a_request_that_comes_with_the_end_of_its_handshake(serve: Serve, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))

    async def scenario(served: Served) -> None:
        reader, writer = await connect(served)
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = trust.wrap_bio(came, goes, server_hostname="127.0.0.1")
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                secure.do_handshake()
                break
            writer.write(goes.read())
            came.write(await reader.read(1 << 16))
        secure.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write(goes.read())  # the client's Finished, and its request
        answer = b""
        while b"}" not in answer:
            came.write(await reader.read(1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:
                    answer += secure.read()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()

    serve(scenario, tls_certificate=str(certificate), tls_key=str(key))


def test_a_keys_readers_are_counted(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        async with served.client(make_key("few", readers=2)) as client, served.client(make_key("many")) as other:
            runs = [(await begin(client))[1]["id"] for _ in range(2)]
            async with client.get(f"/runs/{runs[0]}/events"), client.ws_connect(f"/runs/{runs[1]}/attach") as socket:
                status, answer, headers = await ask(client, "GET", f"/runs/{runs[1]}/events")
                assert (status, answer["error"]["code"], headers["Retry-After"]) == (429, "key_limit", "1")
                with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
                    await client.ws_connect(f"/runs/{runs[0]}/attach")
                mine = (await begin(other))[1]["id"]
                async with other.get(f"/runs/{mine}/events") as answer:
                    assert answer.status == 200, "another key's are its own"
                async with served.operator.get(f"/runs/{runs[0]}/events") as answer:
                    assert answer.status == 200
                await socket.close()
                while (status := (await ask(client, "HEAD", f"/runs/{runs[1]}/events"))[0]) == 429:
                    await asyncio.sleep(0.01)
                assert status == 200

    serve(scenario)


def test_the_client_comes_in_with_a_key(serve: Serve, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)

    async def scenario(served: Served) -> None:
        async with AsyncClient(served.url, key=make_key("site", rate=60), certificates=certificate) as client:
            assert (await client.run("echo hello", language="toy")).stdout == "hello\n"
            async with client.start("echo begun; sleep 60", language="toy") as run:
                async for event in run:
                    if isinstance(event, StdoutEvent):
                        break
            with pytest.raises(UnknownRunError):
                await run.result()
        for wrong in ("", "nonsense"):
            async with AsyncClient(served.url, key=wrong, certificates=certificate) as client:
                with pytest.raises(UnauthorizedError) as caught:
                    await client.languages()
                assert "mayfly key create" in caught.value.hint

    serve(scenario, tls_certificate=str(certificate), tls_key=str(key))


def test_many_keys_at_once_keep_their_accounts(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        async def use(number: int) -> set[int]:
            token = make_key(f"site{number}", concurrency=2)
            async with served.client(token) as client:
                answers = await asyncio.gather(*(ask(client, "POST", "/run?language=toy", data=b"true") for _ in range(4)))
                tenant = Keyring(default_path()).find(token)
                assert tenant is not None
                assert {run.owner for run in served.service.runs if run.id in {found.get("id") for _, found, _ in answers}} == {
                    tenant.key.id
                }
                return {status for status, _, _ in answers}

        found = await asyncio.gather(*(use(number) for number in range(4)))
        assert found == [{200, 429}] * 4
        for run in served.service.runs:
            await served.service.settled(run)
        assert served.service.admission.used == 0

    serve(scenario, memory_budget=1024 * MIB)


def test_what_is_not_listened_at(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"listen": ("0.0.0.0:0",)}, "there is no TLS"),
        ({"listen": ("127.0.0.1:0", "[::]:0")}, "there is no TLS"),
        ({"listen": ("no-such-host.invalid:80",)}, "is not known"),
        ({"listen": ("8080",)}, "is not an address"),
        ({"listen": ("127.0.0.1:0",), "tls_certificate": str(key), "tls_key": str(key)}, "cannot be used"),
        ({"listen": ("127.0.0.1:0",), "tls_certificate": "/nowhere", "tls_key": str(key)}, "cannot be used: No such file"),
    ]
    for changes, message in refused:
        with pytest.raises(ConfigError, match=message) as caught, open_doors(small_config(tmp_path, **changes)):
            pass
        assert caught.value.hint
    with pytest.raises(ConfigError, match="go together"):
        Config(tls_key="x")
    for changes in ({"insecure": True}, {"tls_certificate": str(certificate), "tls_key": str(key)}):
        with open_doors(small_config(tmp_path, listen=("0.0.0.0:0",), **changes)) as (door,):
            assert door.url.startswith("http")
            taken = door.listener.getsockname()[1]
            with pytest.raises(HostError, match="cannot listen there"), open_doors(small_config(tmp_path, listen=(f"127.0.0.1:{taken}",))):
                pass
    with open_doors(small_config(tmp_path)) as doors:
        assert doors == ()


def test_pages_of_configured_origins_may_use_it(serve: Serve) -> None:
    page, other = {"Origin": "https://site.example"}, {"Origin": "https://evil.example"}
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}

    async def scenario(served: Served) -> None:
        async with served.client() as client:
            status, _, headers = await ask(client, "OPTIONS", "/run", headers=page | wish)
            assert status == 204
            assert headers["Access-Control-Allow-Origin"] == "https://site.example"
            assert "POST" in headers["Access-Control-Allow-Methods"]
            assert "Authorization" in headers["Access-Control-Allow-Headers"]
            for wrong in (other | wish, page, wish):
                status, _, headers = await ask(client, "OPTIONS", "/run", headers=wrong)
                assert status == 401
                assert (headers.get("Access-Control-Allow-Origin") is not None) == ("Origin" in wrong and wrong["Origin"] == page["Origin"])
            status, _, headers = await ask(client, "GET", "/languages", headers=page)
            assert status == 401
            assert headers["Access-Control-Allow-Origin"] == "https://site.example", "a page must be able to read the error"
            assert "Retry-After" in headers["Access-Control-Expose-Headers"]
        async with served.client(make_key("site")) as client:
            _, _, headers = await ask(client, "POST", "/run?language=toy&stream=sse", data=b"true", headers=page)
            assert headers["Access-Control-Allow-Origin"] == "https://site.example"
            assert "Origin" in headers.getall("Vary")
            assert "Access-Control-Allow-Origin" not in (await ask(client, "GET", "/languages", headers=other))[2]
        assert "Access-Control-Allow-Credentials" not in headers

    serve(scenario, cors_origins=("https://site.example/",))


def test_any_origin_and_none(serve: Serve) -> None:
    async def every(served: Served) -> None:
        _, _, headers = await ask(served.operator, "GET", "/healthz", headers={"Origin": "null"})
        assert headers["Access-Control-Allow-Origin"] == "*"

    async def none(served: Served) -> None:
        _, _, headers = await ask(served.operator, "GET", "/healthz", headers={"Origin": "https://site.example"})
        assert "Access-Control-Allow-Origin" not in headers
        assert "Vary" not in headers
        wish = {"Origin": "https://site.example", "Access-Control-Request-Method": "POST"}
        assert (await ask(served.operator, "OPTIONS", "/run", headers=wish))[0] == 405

    serve(every, cors_origins=("*",))
    serve(none)


def test_requests_have_ids(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        for given, kept in (("abc-1.2:3", True), ("x" * 129, False), ("a b", False), ('"', False)):
            status, answer, headers = await ask(served.operator, "GET", "/runs/none", headers={"X-Request-Id": given})
            assert status == 404
            assert (headers["X-Request-Id"] == given) == kept
            assert answer["request_id"] == headers["X-Request-Id"]
        first, second = [(await ask(served.operator, "GET", "/version"))[2]["X-Request-Id"] for _ in range(2)]
        assert first != second
        _, _, headers = await ask(served.operator, "POST", "/run?language=toy&stream=jsonl", data=b"true")
        assert headers["X-Request-Id"]

    serve(scenario)


def test_the_logs_tell_who_did_what_but_not_with_which_words(serve: Serve, tmp_path: Path) -> None:
    logs = {name: tmp_path / f"{name}.jsonl" for name in ("access_log", "audit_log")}

    async def scenario(served: Served) -> tuple[str, str]:
        body = {"language": "toy", "source": f"# {SECRET}\ncat; echo {SECRET}", "stdin": SECRET, "limits": {"run": {"wall_s": 5}}}
        async with served.client(make_key("site", concurrency=1)) as client:
            status, done, _ = await ask(client, "POST", "/run?language=toy", json=body, headers={"X-Request-Id": "mine"})
            assert status == 200
            await served.service.settled(served.service.get(done["id"]))
            _, kept, _ = await begin(client)
            assert (await begin(client))[0] == 429
            await ask(client, "DELETE", f"/runs/{kept['id']}")
            await ask(client, "GET", f"/runs/x?{SECRET.replace(' ', '+')}")
        async with served.client("mayfly_nonsense") as client:
            await ask(client, "GET", "/languages")
        await ask(served.operator, "GET", "/healthz")
        return done["id"], kept["id"]

    done, kept = serve(scenario, **{name: str(path) for name, path in logs.items()})
    whole = "".join(path.read_text() for path in logs.values())
    for words in (SECRET, "of+a+snippet", "nonsense", "mayfly_"):
        assert words not in whole
    access, audit = ([json.loads(line) for line in path.read_text().splitlines()] for path in logs.values())
    found = [(line["key"], line["method"], line["path"], line["status"]) for line in access]
    assert found == [
        ("site", "POST", "/run", 200),
        ("site", "POST", "/start", 201),
        ("site", "POST", "/start", 429),
        ("site", "DELETE", f"/runs/{kept}", 204),
        ("site", "GET", "/runs/x", 404),
        (None, "GET", "/languages", 401),
        ("", "GET", "/healthz", 200),
    ]
    assert access[0]["request"] == "mine"
    assert [line["peer"] for line in access] == ["127.0.0.1"] * 6 + ["unix"]
    assert all(line["time"] and line["ms"] >= 0 and line["request"] for line in access)
    assert {line["key"] for line in audit} == {"site"}
    assert [(line["action"], line.get("run")) for line in audit if line.get("run") == done] == [("start", done), ("end", done)]
    start, end = audit[:2]
    assert (start["image"], start["language"], start["limits"], start["request"]) == ("oci:x", "toy@1.0", {"run": {"wall_s": 5}}, "mine")
    assert (end["status"], end["exit_status"]) == ("ok", 0)
    assert [(line["action"], line.get("code")) for line in audit if line["action"] in ("refuse", "delete")] == [
        ("refuse", "key_limit"),
        ("delete", None),
    ]


async def connect(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = served.doors[0].listener.getsockname()
    return await asyncio.open_connection(host, port)


def raw(token: str, body: bytes, version: str = "1.1") -> bytes:
    lines = (f"POST /run?language=toy HTTP/{version}", "Host: x", f"Authorization: Bearer {token}", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


def test_who_half_closes_gets_the_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "TICK_S", 0.05)
    monkeypatch.setattr(connections, "PROBE_S", 0.05)

    async def scenario(served: Served) -> None:
        reader, writer = await connect(served)
        writer.write(raw(make_key("site"), b"sleep 0.3; echo hello"))
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 ")
        assert answer.rpartition(b"100 Continue\r\n\r\n")[2].startswith(b"HTTP/1.1 200 ")
        assert b'"stdout":"hello\\n"' in answer

    serve(scenario)


@pytest.mark.parametrize("half_first", [False, True])
def test_who_goes_away_ends_the_run(serve: Serve, monkeypatch: pytest.MonkeyPatch, half_first: bool) -> None:
    monkeypatch.setattr(connections, "TICK_S", 0.05)
    monkeypatch.setattr(connections, "PROBE_S", 0.05)

    async def scenario(served: Served) -> str:
        _, writer = await connect(served)
        writer.write(raw(make_key("site"), b"sleep 60"))
        if half_first:
            writer.write_eof()
        while not (runs := list(served.service.runs)):
            await asyncio.sleep(0.01)
        writer.close()
        await asyncio.wait_for(runs[0].done.wait(), 30)
        return str(runs[0].outcome.error)

    assert serve(scenario) == "the client went away"


class Slow(dict[Any, Any]):
    """A request of `size` bytes from `owner`, which come when `go` is set."""

    def __init__(self, owner: str, size: int, go: asyncio.Event) -> None:
        super().__init__({connections.OWNER: owner})
        self.content_length = size
        self.content = self
        self._go = go

    async def iter_any(self) -> AsyncIterator[bytes]:
        await self._go.wait()
        yield bytes(self.content_length)


def test_one_key_holds_half_of_the_room_for_bodies() -> None:
    async def scenario() -> None:
        go, bodies = asyncio.Event(), connections.Bodies(most=800, room=1000)

        def read(owner: str, size: int) -> "asyncio.Task[bytes]":
            return asyncio.create_task(bodies.read(Slow(owner, size, go)))  # type: ignore[arg-type]

        slow = [read("one", 400), read("two", 400), read("one", 100)]
        await asyncio.sleep(0)
        for owner, size in (("one", 1), ("three", 101), ("", 101)):
            with pytest.raises(BusyError):
                await read(owner, size)
        slow += [read("", 100)]
        await asyncio.sleep(0)
        go.set()
        assert [len(await task) for task in slow] == [400, 400, 100, 100]
        assert len(await read("one", 500)) == 500, "all of it was given back"
        assert len(await read("", 800)) == 800, "the operator has all of the room"

    asyncio.run(scenario())


def test_connections_over_tcp_leave_descriptors_to_others(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (16, 16))

    async def scenario(served: Served) -> None:
        open_ones = [await connect(served) for _ in range(8)]
        for _, writer in open_ones:  # each is known to the server when it answers
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in open_ones:
            assert (await reader.readline()).endswith(b"200 OK\r\n")
        reader, _ = one_more = await connect(served)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        for _, writer in (*open_ones, one_more):
            writer.close()
        assert (await ask(served.operator, "GET", "/healthz"))[0] == 200

    serve(scenario)
