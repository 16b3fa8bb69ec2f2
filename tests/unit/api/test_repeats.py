"""The same request twice is one run; several requests in one; a result goes where its request said,
signed, and to nobody inside.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mayfly.api.requests import MAX_BATCH
from mayfly.runs import callbacks, repeats
from mayfly.runs.run import Run
from mayfly.runs.service import Service
from tests.kit.api_server import Served, make_key
from tests.unit.api.test_doors import Serve, serve

__all__ = ["serve"]
SECRET = "a secret of the client"
KEYED = {"Idempotency-Key": "one"}
SERVING = Path(__file__).parents[3] / "docs/serving.md"


async def post(client: aiohttp.ClientSession, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    data = {"json": body} if isinstance(body, dict) else {"data": body}
    async with client.post(path, **data, headers={name.replace("_", "-"): value for name, value in headers.items()}) as answer:
        return answer.status, await answer.json(), answer.headers


def test_a_request_that_is_repeated_is_one_run(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        client, command = served.operator, b"echo $$"
        both = await asyncio.gather(*(post(client, "/run?language=toy", command, **KEYED) for _ in range(2)))
        again = await post(client, "/run?language=toy", command, **KEYED)
        assert {status for status, _, _ in (*both, again)} == {200}
        assert both[0][1]["steps"] == both[1][1]["steps"] == again[1]["steps"]
        assert {answer["id"] for _, answer, _ in (*both, again)} == {both[0][1]["id"]}
        assert sorted(headers.get("Idempotency-Replayed", "") for _, _, headers in both) == ["", "true"]
        for path, body in (("/run?language=toy", b"echo other"), ("/run?language=py", command), ("/start?language=toy", command)):
            status, answer, _ = await post(client, path, body, **KEYED)
            assert (status, answer["error"]["code"]) == (422, "idempotency_key_reused"), path
        assert (await post(client, "/run?language=toy", command, Idempotency_Key="two"))[1]["id"] != again[1]["id"]
        for wrong in ("", "x" * 256, "a b"):
            assert (await post(client, "/run?language=toy", command, Idempotency_Key=wrong))[0] == 422
        async with served.client(make_key("site")) as other:
            assert (await post(other, "/run?language=toy", command, **KEYED))[1]["id"] != again[1]["id"]

    serve(scenario)


def test_start_and_its_refusals(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        client = served.operator
        assert (await post(client, "/start?language=cobol", b"true", **KEYED))[0] == 404
        first, second = [await post(client, "/start?language=toy", b"true", **KEYED) for _ in range(2)]
        assert first[1] == second[1], "a refusal does not use a key up, and the output socket is the same"
        async with client.delete(f"/runs/{first[1]['id']}") as answer:
            assert answer.status == 204
        assert (await post(client, "/start?language=toy", b"false", **KEYED))[1]["id"] != first[1]["id"], "its run is no longer kept"

    serve(scenario)


def test_a_client_that_comes_back_finds_its_run(serve: Serve, tmp_path: Path) -> None:
    go = tmp_path / "go"

    async def scenario(served: Served) -> None:
        command = f"echo begun; until test -e {go}; do sleep 0.01; done; echo ended".encode()
        first = asyncio.create_task(post(served.operator, "/run?language=toy", command, **KEYED))
        run = await begun(served.service)
        first.cancel()
        second = asyncio.create_task(post(served.operator, "/run?language=toy", command, **KEYED))
        third = asyncio.create_task(post(served.operator, "/run?language=toy", command, Idempotency_Key="other"))
        await begun(served.service, 2)
        third.cancel()
        second.cancel()
        go.touch()
        status, answer, _ = await post(served.operator, "/run?language=toy", command, **KEYED)
        assert (status, answer["id"], answer["steps"][1]["stdout"]) == (200, run.id, "begun\nended\n")

    serve(scenario)


async def begun(service: Service, count: int = 1) -> Run:
    while len(runs := [run for run in service.runs if len(run.record) > 300]) < count:
        await asyncio.sleep(0.01)
    return runs[0]


def test_keys_are_not_held_longer_than_runs(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        known = repeats.Repeats(served.service.runs)
        for number in range(300):
            run = Run(language="toy", version="1", mode=None, step_names=())  # type: ignore[arg-type]
            served.service.runs.add(run)
            known.remember(repeats.Repeat("", str(number), b"x"), run)
            served.service.runs.drop(run)
        assert len(known._begun) <= repeats._FEW

    serve(scenario)


def test_a_batch(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        async with served.client(make_key("site", concurrency=3)) as client:
            good, bad = {"language": "toy", "source": "echo hello"}, {"language": "cobol", "source": "x"}
            body = {"runs": [good, bad, {"source": 3}, {**good, "source": "exit 3"}, good, good]}
            status, answer, _ = await post(client, "/batch", body, **KEYED)
            assert status == 200
            codes = [item["error"]["code"] if "error" in item else "" for item in answer["runs"]]
            assert codes == ["", "unknown_language", "invalid_value", "", "", "key_limit"]
            ids = [item["id"] for item in answer["runs"] if "id" in item]
            for run_id in ids:
                await served.service.get(run_id).done.wait()
            async with client.get(f"/runs?ids={','.join([*ids, 'none'])}") as found:
                runs = (await found.json())["runs"]
            assert [run and run["exit_status"] for run in runs] == [0, 3, 0, None]
            assert runs[0]["steps"][1]["stdout"] == "hello\n"
            for run_id in ids:
                await served.service.settled(served.service.get(run_id))
            _, again, _ = await post(client, "/batch", body, **KEYED)
            assert [item.get("id") for item in again["runs"]][:5] == [item.get("id") for item in answer["runs"]][:5]
            assert "id" in again["runs"][5], "a refusal is tried again"
            async with served.client(make_key("other")) as other, other.get(f"/runs?ids={','.join(ids)}") as found:
                assert (await found.json())["runs"] == [None] * 3
            for wrong, expected in (
                ({"runs": []}, 422),
                ({"runs": [good] * (MAX_BATCH + 1)}, 422),
                ({}, 422),
                (b"[", 400),
                ({"runs": 1}, 422),
            ):
                assert (await post(client, "/batch", wrong))[0] == expected, wrong
            for query in ("", "?ids=a,a", f"?ids={','.join(map(str, range(MAX_BATCH + 1)))}", "?id=a"):
                async with client.get(f"/runs{query}") as found:
                    assert found.status == 422, query

    serve(scenario)


class Receiver:
    """Takes callbacks; gives the `statuses` one after the other, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.taken: asyncio.Queue[tuple[web.Request, bytes]] = asyncio.Queue()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.taken.put_nowait((request, body))
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": self.url} if status == 302 else {})

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Receiver"]:
        app = web.Application()
        app.router.add_route("*", "/hook", self.take)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{port}/hook"
        try:
            yield self
        finally:
            await runner.cleanup()


def hooked(url: str, source: str = "echo hello", secret: str = SECRET.replace(" ", "-")) -> dict[str, Any]:
    return {"language": "toy", "source": source, "callback_url": url, "callback_secret": secret}


def is_genuine(request: web.Request, body: bytes, secret: str) -> bool:
    """What the documentation's own code says of a delivery."""
    (code,) = re.findall(r"```python\n(def is_genuine.*?)```", SERVING.read_text(), re.DOTALL)
    names: dict[str, Any] = {"base64": base64, "hashlib": hashlib, "hmac": hmac, "time": time}
    exec(code, names)
    return bool(names["is_genuine"](request.headers, body, secret))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "DELAYS_S", (0.01, 0.01))


def test_a_result_is_posted_and_signed(serve: Serve, hasty: None, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"

    async def scenario(served: Served) -> None:
        async with Receiver().listening() as receiver:
            whsec = "whsec_" + base64.b64encode(b"\xff" * 24).decode()
            for path, secret in (("/start", "plain-text-secret"), ("/run", whsec)):
                _, started, _ = await post(served.operator, path, hooked(receiver.url, secret=secret))
                request, body = await receiver.taken.get()
                if secret == whsec:
                    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + body
                    digest = hmac.new(b"\xff" * 24, signed, hashlib.sha256).digest()
                    assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
                else:
                    assert is_genuine(request, body, secret)
                    assert not is_genuine(request, body + b" ", secret)
                    assert not is_genuine(request, body, secret + "x")
                assert (request.method, request.headers["Content-Type"]) == ("POST", "application/json")
                result = json.loads(body)
                assert (result["id"], result["status"], result["steps"][1]["stdout"]) == (started["id"], "ok", "hello\n")
                assert request.headers["webhook-id"] == started["id"]
                assert "secret" not in body.decode()

    serve(scenario, callback_hosts=("127.0.0.1",), audit_log=str(log))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [(line["host"], line["ok"], line["outcome"], line["attempts"]) for line in lines if line["action"] == "callback"]
    assert found == [("127.0.0.1", True, "200", 1)] * 2
    assert "secret" not in log.read_text()


def test_a_client_that_is_called_back_need_not_wait(serve: Serve, hasty: None, tmp_path: Path) -> None:
    go = tmp_path / "go"

    async def scenario(served: Served) -> None:
        async with Receiver().listening() as receiver:
            source = f"echo begun; until test -e {go}; do sleep 0.01; done"
            asking = asyncio.create_task(post(served.operator, "/run", hooked(receiver.url, source)))
            run = await begun(served.service)
            asking.cancel()
            go.touch()
            _, body = await receiver.taken.get()
            assert (json.loads(body)["id"], json.loads(body)["status"]) == (run.id, "ok")

    serve(scenario, callback_hosts=("127.0.0.1",))


def test_a_failed_delivery_is_tried_again_and_has_an_end(serve: Serve, hasty: None, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"

    async def scenario(served: Served) -> None:
        async with Receiver(503, 302, 200, 500, 500, 500).listening() as receiver:
            for _ in range(2):
                _, started, _ = await post(served.operator, "/start", hooked(receiver.url))
                taken = [await receiver.taken.get() for _ in range(3)]
                assert {request.headers["webhook-id"] for request, _ in taken} == {started["id"]}
                assert len({body for _, body in taken}) == 1
            url = receiver.url
        _, started, _ = await post(served.operator, "/start", hooked(url))  # nobody is there now
        while log.read_text().count('"callback"') < 3:
            await asyncio.sleep(0.01)
        await served.service.forget(started["id"])

    serve(scenario, callback_hosts=("127.0.0.0/8",), audit_log=str(log))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [(line["ok"], line["outcome"], line["attempts"]) for line in lines if line["action"] == "callback"]
    assert found[:2] == [(True, "200", 3), (False, "500", 3)]
    assert found[2][0] is False
    assert found[2][2] == 3


INSIDE = [
    *("http://127.0.0.1/x", "http://[::1]/x", "http://10.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://[::ffff:127.0.0.1]/"),
    *("http://127.1/", "http://2130706433/", "http://0/", "http://0177.0.0.1/", "https://192.168.1.1:8443/"),
    *(
        "ftp://example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://",
        "http:///x",
        "example.com/x",
        "http://user:pass@example.com/",
    ),
    *("http://example.com:99999/", "http://exa mple.com/", "http://example.com/\n", "http://\\example.com/", "x" * 2049, ""),
]


def test_what_may_not_be_called(serve: Serve) -> None:
    async def scenario(served: Served) -> None:
        for url in INSIDE:
            status, answer, _ = await post(served.operator, "/start", hooked(url))
            assert (status, answer["error"]["code"]) == (422, "invalid_value"), url
            assert "callback_url" in answer["error"]["message"], url
        for secret in ("", "short", "whsec_not base64", "whsec_!!!!!!!!!!!!!!!!"):
            status, answer, _ = await post(served.operator, "/start", hooked("http://example.com/", secret=secret))
            assert (status, "callback_secret" in answer["error"]["message"]) == (422, True), secret
        for name in ("callback_url", "callback_secret"):
            body = {key: value for key, value in hooked("http://example.com/").items() if key != name}
            assert (await post(served.operator, "/start", body))[0] == 422
        assert list(served.service.runs) == []

    serve(scenario)


def test_a_name_with_an_inner_address_is_not_called(serve: Serve, hasty: None, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"

    async def scenario(served: Served) -> None:
        async with Receiver().listening() as receiver:
            for host in ("localhost", "0x7f.1"):
                await post(served.operator, "/start", hooked(receiver.url.replace("127.0.0.1", host)))
            while log.read_text().count('"callback"') < 2:
                await asyncio.sleep(0.01)
            assert receiver.taken.empty()

    serve(scenario, audit_log=str(log))
    found = [json.loads(line) for line in log.read_text().splitlines() if '"callback"' in line]
    assert [line["ok"] for line in found] == [False, False]
    assert all("may not be called" in line["outcome"] for line in found)

    async def allowed(served: Served) -> None:
        async with Receiver().listening() as receiver:
            await post(served.operator, "/start", hooked(receiver.url.replace("127.0.0.1", "localhost")))
            await receiver.taken.get()

    serve(allowed, callback_hosts=("localhost",))


def test_results_that_wait_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "MOST_OF_ONE", 2)
    monkeypatch.setattr(callbacks, "DELAYS_S", (3600.0,))

    async def scenario(served: Served) -> None:
        async with Receiver(*[500] * 9).listening() as receiver, served.client(make_key("site")) as site:
            for _ in range(2):
                assert (await post(site, "/start", hooked(receiver.url)))[0] == 201
                await receiver.taken.get()
            status, answer, headers = await post(site, "/start", hooked(receiver.url))
            assert (status, answer["error"]["code"]) == (429, "busy")
            assert headers["Retry-After"]
            assert (await post(served.operator, "/start", hooked(receiver.url)))[0] == 201
            await receiver.taken.get()
        # The server ends, though three results still wait for their second attempt.

    monkeypatch.setattr(callbacks, "CLOSE_S", 0.05)
    serve(scenario, callback_hosts=("127.0.0.1",))
