"""The routes of functions: payloads of any type, answers and failures, asynchronous requests, what
keys may, and what a function's answer may not do to a page.
"""

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mayfly.api.functions import UNKNOWN_TYPE, respond
from mayfly.client import AsyncClient
from mayfly.functions.answer import Answer, Times
from mayfly.functions.lines import MAX_PAYLOAD
from mayfly.guests.start import StartKind
from tests.kit.answers import check_answer
from tests.kit.api_server import Served, make_key, serving
from tests.kit.functions_kit import create_function, install_echo

JSON = {"Content-Type": "application/json"}
Serve = Callable[..., Any]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None) -> Serve:
    """Run a scenario against a server with the function `echo`, which leaves nothing behind."""
    install_echo(monkeypatch, tmp_path)

    def call(scenario: Any, **changes: Any) -> Any:
        async def whole(served: Served) -> Any:
            await create_function(served.functions, tmp_path, "echo", concurrency_limit=2)
            await create_function(served.functions, tmp_path, "impatient", timeout_s=0.1)
            return await scenario(served)

        return serving(tmp_path, whole, **changes)

    return call


async def ask(client: aiohttp.ClientSession, method: str, path: str, data: bytes = b"", **options: Any) -> tuple[int, Any, Any]:
    """Status, body and headers; JSON is held against openapi.json unless it is a function's."""
    async with client.request(method, path, data=io.BytesIO(data) if data else b"", **options) as answer:
        body = await answer.read()
        if "X-Mayfly-Start" in answer.headers:
            return answer.status, body, answer.headers
        found = json.loads(body) if body else None
        check_answer(method, path, answer.status, found)
        return answer.status, found, answer.headers


def test_the_answer_is_the_functions_own(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        for kind in ("application/json", "text/plain; charset=latin-1", "image/png", 'multipart/x; boundary="a b"'):
            for payload in (b"", b"\0\xff" * 1000, b'{"a": 1}'):
                status, body, headers = await ask(served.operator, "POST", "/functions/echo", payload, headers={"Content-Type": kind})
                assert (status, body, headers["Content-Type"]) == (200, payload, kind)
                assert headers["X-Mayfly-Start"] in ("cold", "restored", "warm")
                assert float(headers["X-Mayfly-Duration"]) >= 0
                assert float(headers["X-Mayfly-Queued"]) >= 0
                assert len(headers["X-Mayfly-Request-Id"]) == 32
                assert headers["Content-Security-Policy"] == "sandbox"
        assert headers["X-Mayfly-Start"] == "warm"
        for given in ({"Content-Type": "application/x-www-form-urlencoded"}, {}):
            options = {"headers": given, "skip_auto_headers": ["Content-Type"]}
            _, _, headers = await ask(served.operator, "POST", "/functions/echo", b"1", **options)
            assert headers["Content-Type"] == UNKNOWN_TYPE, "no type, as curl's is none"
        for kind in ("text/é", "text/plain; a=" + "b" * 300):
            status, refused, _ = await ask(served.operator, "POST", "/functions/echo", b"1", headers={"Content-Type": kind})
            assert (status, refused["error"]["code"]) == (415, "unsupported_media_type")

    serve(scenario)


def test_a_payload_has_six_mib(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        payload = b"x" * MAX_PAYLOAD
        status, body, _ = await ask(served.operator, "POST", "/functions/echo", payload)
        assert (status, body) == (200, payload)
        status, refused, _ = await ask(served.operator, "POST", "/functions/echo", payload + b"x")
        assert (status, refused["error"]["code"]) == (413, "too_large")
        async with AsyncClient(served.service.config.socket) as client:
            assert (await client.invoke("echo", payload)).payload == payload

    serve(scenario)


def test_failures_have_their_status_and_hit_nobody_else(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        status, body, headers = await ask(served.operator, "POST", "/functions/echo", b"!raise no such item")
        assert (status, json.loads(body)["message"]) == (500, "no such item")
        assert headers["X-Mayfly-Function-Error"] == "exception"
        assert headers["Content-Type"] == "application/json"
        others = [asyncio.create_task(ask(served.operator, "POST", "/functions/echo", b"%d" % number)) for number in range(20)]
        for name, deed, expected in (
            ("echo", b"!exit 3", (502, "function_crashed")),
            ("impatient", b"!hang", (504, "function_timeout")),
            ("echo", b"!vanish", (502, "function_crashed")),
            ("echo", b"!other", (502, "function_crashed")),
        ):
            status, refused, headers = await ask(served.operator, "POST", f"/functions/{name}", deed)
            assert (status, refused["error"]["code"]) == expected
            assert len(headers["X-Mayfly-Request-Id"]) == 32
            assert "X-Mayfly-Function-Error" not in headers
        for number, other in enumerate(others):
            assert (await other)[:2] == (200, b"%d" % number)

    serve(scenario)


def test_what_can_be_invoked_is_listed(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        await ask(served.operator, "POST", "/functions/echo", b"1")
        await ask(served.operator, "POST", "/functions/echo", b"!exit 1")
        status, found, _ = await ask(served.operator, "GET", "/functions")
        assert status == 200
        assert [function["name"] for function in found["functions"]] == ["echo", "impatient"]
        figures = found["functions"][0]["figures"]
        assert (figures["requests"], figures["ok"], figures["failures"]) == (2, 1, {"function_crashed": 1})
        assert (found["statistics"]["completed"], found["statistics"]["dropped"]) == (1, 0)
        assert found["statistics"]["memory"] == served.service.admission.budget
        assert (await ask(served.operator, "GET", "/functions/echo"))[1] == (await ask(served.operator, "GET", "/functions"))[1][
            "functions"
        ][0]
        assert (await ask(served.operator, "HEAD", "/functions/echo"))[0] == 200
        for method, path in (("GET", "/functions/none"), ("POST", "/functions/none"), ("GET", "/functions/none/logs")):
            status, refused, _ = await ask(served.operator, method, path)
            assert (status, refused["error"]["code"]) == (404, "unknown_function")
        status, _, _ = await ask(served.operator, "GET", "/functions/echo/requests/" + "0" * 32)
        assert status == 404

    serve(scenario)


def test_logs_say_which_request_printed_a_line(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        _, _, headers = await ask(served.operator, "POST", "/functions/echo", b"!log hello\n")
        _, found, _ = await ask(served.operator, "GET", "/functions/echo/logs?last=2")
        assert sorted((line["stream"], line["text"]) for line in found["lines"]) == [("stderr", "hello"), ("stdout", "hello")]
        assert {line["request_id"] for line in found["lines"]} == {headers["X-Mayfly-Request-Id"]}
        for last in ("0", "x", "1001"):
            assert (await ask(served.operator, "GET", f"/functions/echo/logs?last={last}"))[0] == 422

    serve(scenario)


def test_asynchronous_requests_are_answered_by_their_id(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        for query in ("?async", "?async=true"):
            status, accepted, headers = await ask(served.operator, "POST", f"/functions/echo{query}", b"[1]", headers=JSON)
            assert (status, accepted["status"], accepted["function"]) == (202, "pending", "echo")
            assert headers["Location"] == f"/functions/echo/requests/{accepted['id']}"
            for _ in range(2):
                status, body, headers = await ask(served.operator, "GET", f"{headers['Location']}?wait=true")
                assert (status, body, headers["Content-Type"]) == (200, b"[1]", "application/json")
                assert headers["X-Mayfly-Request-Id"] == accepted["id"]
                headers = {"Location": f"/functions/echo/requests/{accepted['id']}"}
        _, accepted, headers = await ask(served.operator, "POST", "/functions/echo?async", b"!sleep 0.2")
        assert (await ask(served.operator, "GET", headers["Location"]))[0] == 202
        assert (await ask(served.operator, "GET", headers["Location"] + "?wait=true"))[0] == 200
        for name, deed, expected in (("echo", b"!exit 1", 502), ("impatient", b"!hang", 504), ("echo", b"!raise it", 500)):
            _, _, headers = await ask(served.operator, "POST", f"/functions/{name}?async", deed)
            assert (await ask(served.operator, "GET", headers["Location"] + "?wait=true"))[0] == expected
        assert (await ask(served.operator, "POST", "/functions/echo?async=maybe"))[0] == 422

    serve(scenario)


def test_a_key_sees_its_own_requests_and_no_logs(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        async with served.client(make_key("one")) as one, served.client(make_key("two")) as two, served.client() as nobody:
            assert (await ask(nobody, "POST", "/functions/echo"))[0] == 401
            status, body, _ = await ask(one, "POST", "/functions/echo", b"mine")
            assert (status, body) == (200, b"mine")
            _, _, headers = await ask(one, "POST", "/functions/echo?async", b"secret")
            place = headers["Location"]
            assert (await ask(one, "GET", f"{place}?wait=true"))[1] == b"secret"
            for other in (place, place.replace("echo", "none")):
                assert (await ask(two, "GET", other))[0] == 404
            assert (await ask(served.operator, "GET", place))[1] == b"secret"
            status, refused, _ = await ask(one, "GET", "/functions/echo/logs")
            assert (status, refused["error"]["code"]) == (403, "forbidden")
            assert [function["name"] for function in (await ask(one, "GET", "/functions"))[1]["functions"]] == ["echo", "impatient"]

    serve(scenario)


def test_no_new_requests_while_the_server_stops(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        slow = asyncio.create_task(ask(served.operator, "POST", "/functions/echo", b"!sleep 0.2"))
        while not served.functions.under_way:
            await asyncio.sleep(0)
        draining = asyncio.create_task(served.functions.drain(60))
        await asyncio.sleep(0)
        status, refused, headers = await ask(served.operator, "POST", "/functions/echo", b"1")
        assert (status, refused["error"]["code"]) == (503, "stopping")
        assert "Retry-After" in headers
        assert (await slow)[:2] == (200, b"!sleep 0.2")
        await draining

    serve(scenario)


def test_a_client_that_goes_away_harms_nobody(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        gone = [asyncio.create_task(ask(served.operator, "POST", "/functions/echo", b"!sleep 0.1")) for _ in range(6)]
        while served.functions.under_way < 6:
            await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        assert (await ask(served.operator, "POST", "/functions/echo", b"here"))[:2] == (200, b"here")

    serve(scenario)


@pytest.mark.parametrize("kind", ["", "text/html\r\nSet-Cookie: a=b", "te\u00e4xt", "x" * 256, "\0"])
def test_a_type_that_no_header_may_have_becomes_unknown(kind: str) -> None:
    times = Times(received=0.0, queued_s=0.0, started_s=0.0, sent_s=0.0, answered_s=0.0, guest_us=1)
    answer = Answer(request_id="0" * 32, function="f", status="ok", content_type=kind, payload=b"<p>", start=StartKind.WARM, times=times)
    headers = respond(answer).headers
    assert headers["Content-Type"] == UNKNOWN_TYPE
    assert headers["X-Content-Type-Options"] == "nosniff"
