"""Polycode's and codapi's contracts."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mayfly.api.compat.dialects import DIALECTS, addresses_of, make_dialects
from mayfly.errors import ConfigError
from mayfly.host.listen import Door
from tests.kit.api_fakes import ROOT, install_toys
from tests.kit.api_server import Served, make_key, serving
from tests.kit.compat_server import Compatible


def post(served: Compatible, path: str, body: Any, **more: Any) -> tuple[int, Any]:
    answer = served.post(path, json=body, **more)
    return answer.status_code, answer.json()


def polycode(served: Compatible, source: str, language: str = "rust", **options: Any) -> Any:
    body = {"id": "1", "source": source, "compilerOptions": {"language": language, **options}}
    status, answer = post(served, "/polycode/run", body)
    assert status == 201
    return answer


def test_a_workload_of_polycode(served: Compatible) -> None:
    assert polycode(served, "printf 'out\\r\\nmore\\n\\n'; echo err >&2") == {
        "success": True,
        "output": {"stdout": "out\nmore\n", "stderr": "err"},
    }
    assert polycode(served, "exit 3") == {"success": False, "output": {"stdout": "", "stderr": ""}}
    failed = polycode(served, "if")
    assert not failed["success"]
    assert "unexpected" in failed["output"]["stderr"].lower()


def test_a_version_of_polycode_is_a_wish(served: Compatible) -> None:
    source = "import sys; print(sys.argv[0])"
    for version in ("3.9", 42, None):
        assert polycode(served, source, "python", version=version)["success"]
    versions = {run.version for run in served.runs()}
    assert versions == {"3.13", "3.9.2"}


def test_polycodes_second_form(served: Compatible) -> None:
    body = {"sourceCode": "cat; exit 2", "language": "rust", "stdin": ["one", "two"]}
    status, answer = post(served, "/polycode/run/", body)
    assert status == 201
    (run,) = served.runs()
    assert answer == {"stdout": "one\ntwo", "stderr": "", "exitCode": 2, "runId": run.id}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        (b"{}", 422, "is missing"),
        (b'{"source": "x"}', 422, "compilerOptions"),
        (b'{"source": 1, "compilerOptions": {"language": "rust"}}', 422, "source"),
        (b'{"source": "x", "compilerOptions": {"language": "cobol"}}', 404, "cobol"),
        (b'{"source": "x", "compilerOptions": {"language": "../rust"}}', 404, "rust"),
        (b'{"sourceCode": "x", "language": "rust", "stdin": [1]}', 422, "stdin"),
        (b'{"source": "\\ud800", "compilerOptions": {"language": "rust"}}', 400, "not JSON"),
        (b'{"source": "x", "compilerOptions": ' + b"[" * 100_000, 400, "not JSON"),
    ],
)
def test_polycodes_errors(served: Compatible, body: bytes, status: int, words: str) -> None:
    answer = served.post("/polycode/run", data=body)
    assert answer.status_code == status
    error = answer.json()
    assert set(error) == {"statusCode", "message", "error"}
    assert error["statusCode"] == status
    assert words in error["message"]
    assert served.runs() == []


def test_what_is_not_there_has_the_contracts_form_of_errors(served: Compatible) -> None:
    assert served.get("/polycode/nothing").json()["statusCode"] == 404
    answer = served.get("/polycode/run")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert served.get("/codapi/v1/exec").json()["ok"] is False
    assert served.get("/polycodes").json()["error"]["code"] == "not_found"


def test_codapi(served: Compatible) -> None:
    body = {"sandbox": "python", "command": "run", "files": {"": "import other; print(other.x)", "other.py": "x = 5"}}
    body["files"][""] = "import sys; sys.path.insert(0, '.'); " + body["files"][""]  # type: ignore[index]
    status, answer = post(served, "/codapi/v1/exec", body)
    assert (status, answer["ok"], answer["stdout"], answer["stderr"]) == (200, True, "5", "")
    assert answer["id"].startswith("python_run_")
    assert answer["duration"] > 0
    status, answer = post(served, "/codapi/v1/exec", {"sandbox": "rust", "command": "run", "files": {"any.rs": "echo err >&2; exit 1"}})
    assert (status, answer["ok"], answer["stderr"]) == (200, False, "err")


def test_codapi_lets_pages_from_anywhere_use_it(served: Compatible) -> None:
    url = "/codapi/v1"
    answers = [
        served.options(f"{url}/exec"),
        served.head(f"{url}/health"),
        served.post(f"{url}/exec", data="{"),
        served.get(f"{url}/nothing"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 404]
    assert {answer.headers.get("Access-Control-Allow-Origin") for answer in answers} == {"*"}
    assert "Access-Control-Allow-Origin" not in served.get("/version").headers


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"sandbox": "cobol"}, 404, "cobol"),
        ({"command": "test"}, 404, "unknown command"),
        ({"files": {"": " \n"}}, 400, "empty request"),
        ({"files": {}}, 400, "empty request"),
        ({"files": ["x"]}, 400, "files"),
        ({"files": {"../x": "x", "y": "y"}}, 400, "not allowed"),
        ({"version": "9"}, 404, "no version"),
    ],
)
def test_codapis_errors(served: Compatible, change: dict[str, Any], status: int, words: str) -> None:
    body = {"sandbox": "python", "command": "run", "files": {"": "x"}, **change}
    found, answer = post(served, "/codapi/v1/exec", body)
    assert (found, answer["ok"], answer["stdout"]) == (status, False, "")
    assert words in answer["stderr"]
    assert served.runs() == []


def test_a_client_that_goes_away_ends_its_run(served: Compatible, tmp_path: Path) -> None:
    started = tmp_path / "started"
    body = json.dumps({"id": "1", "source": f"touch {started}; sleep 100", "compilerOptions": {"language": "rust"}})
    client = subprocess.Popen(["curl", "-s", "-H", f"Authorization: Bearer {served.token}", "-d", body, f"{served.url}/polycode/run"])
    try:
        while not started.exists():
            assert client.poll() is None
        (run,) = served.runs()
    finally:
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
    while not run.done.is_set():
        pass
    assert run.outcome.error is not None


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["cobol"], "no contract"),
        (["polycode=x"], "not a prefix"),
        (["polycode="], "not a prefix"),
        (["polycode=/{x}"], "not a prefix"),
        (["polycode=/runs"], "taken"),
        (["polycode=/languages"], "taken"),
        (["polycode", "codapi=/polycode"], "taken"),
        (["polycode=/a/b", "codapi=/a"], "taken"),
        (["polycode=/a", "codapi=/a/b"], "taken"),
    ],
)
def test_a_configuration_that_cannot_be(wanted: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_dialects(wanted, ["/languages", "/runs/{id}"])


def test_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)

    async def scenario(served: Served) -> None:
        wide, narrow = served.doors
        headers = {"X-Auth-Token": make_key("me")}
        async with aiohttp.ClientSession(headers=headers) as client:

            async def get(path: str, door: Door = narrow, method: str = "GET") -> tuple[int, Any]:
                async with client.request(method, door.url + path) as answer:
                    return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.text())

            assert await get("/version") == await get("/judge0/version", wide) == (200, "1.13.1")
            assert (await get("/version", wide))[1]["protocol"]
            assert await get("/submissions/?page=0&fields=token") == (400, {"error": "invalid page: 0"})
            assert await get("/submissions/a%2Fb") == (404, {"status": 404, "error": "Not Found"})
            for path in ("/runs", "/judge0/version", "/../version", "/%2e%2e/healthz", "//healthz", "/"):
                assert (await get(path))[1] != (await get(path, wide))[1]
            async with client.post(f"{narrow.url}/submissions?wait=true", json={"source_code": "x", "language_id": "x"}) as answer:
                assert answer.status == 422
            reader, writer = await asyncio.open_connection(*narrow.listener.getsockname())
            with contextlib.closing(writer):
                writer.write(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b" 40" in await reader.readline()
        async with aiohttp.ClientSession() as client, client.get(f"{narrow.url}/about") as answer:
            assert (answer.status, set(await answer.json())) == (401, {"error"})

    serving(tmp_path, scenario, compat=("judge0=127.0.0.1:0",))


def test_prefixes() -> None:
    assert addresses_of(["polycode", "piston=[::1]:80", "codapi=/a:5", "judge0=localhost:1"]) == {
        "[::1]:80": "/piston",
        "localhost:1": "/judge0",
    }
    assert [dialect.prefix for dialect in make_dialects(["polycode", "codapi=/a/b/"], [])] == ["/polycode", "/a/b"]
    assert [dialect.prefix for dialect in make_dialects([*DIALECTS], [])] == [f"/{name}" for name in DIALECTS]


@pytest.mark.parametrize("name", DIALECTS)
def test_it_is_described(name: str) -> None:
    text = (ROOT / "docs/compat.md").read_text()
    (dialect,) = make_dialects([name], [])
    assert f"/{name}" in text
    for path in dialect.paths():
        last = path.path.rstrip("/").rpartition("/")[2].replace("{token}", "TOKEN").replace("{id}", "ID")
        assert last in text, path.path
