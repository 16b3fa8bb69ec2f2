"""SandboxFusion's contract, by its published client and by plain requests."""

import base64
from typing import Any

import pytest
import requests
from sandbox_fusion import client as fusion  # type: ignore[import-untyped]
from sandbox_fusion import models

from tests.kit.compat_server import Compatible


def run(served: Compatible, code: str, language: str = "rust", status: int = 200, **more: Any) -> Any:
    answer = served.post("/sandboxfusion/run_code", json={"code": code, "language": language, **more})
    assert answer.status_code == status
    return answer.json()


def test_the_published_client(served: Compatible, monkeypatch: pytest.MonkeyPatch) -> None:
    # It has no place for a key: a proxy adds one, as this does.
    post = requests.post
    monkeypatch.setattr(requests, "post", lambda url, **options: post(url, headers={"X-Auth-Token": served.token}, **options))
    asked = models.RunCodeRequest(code="print(input())", language="python", stdin="in", run_timeout=10)
    found = fusion.run_code(asked, endpoint=f"{served.url}/sandboxfusion")
    assert (found.status, found.run_result.status, found.run_result.stdout) == ("Success", "Finished", "in\n")
    assert (found.compile_result, found.run_result.return_code) == (None, 0)
    assert found.run_result.execution_time > 0


def test_results(served: Compatible) -> None:
    found = run(served, "cat data/x; echo err >&2; exit 3", files={"data/x": base64.b64encode(b"file").decode(), "none": None})
    assert (found["status"], found["message"], found["files"]) == ("Failed", "", {})
    assert found["compile_result"]["return_code"] == 0
    assert [found["run_result"][name] for name in ("status", "return_code", "stdout", "stderr")] == ["Finished", 3, "file", "err\n"]
    assert run(served, "kill -SEGV $$")["run_result"]["return_code"] == -11
    late = run(served, "sleep 60", run_timeout=0.1)
    assert (late["status"], late["run_result"]["status"], late["run_result"]["return_code"]) == ("Failed", "TimeLimitExceeded", None)
    broken = run(served, "if")
    assert (broken["status"], broken["run_result"]) == ("Failed", None)
    assert broken["compile_result"]["stderr"]


def test_files_that_are_fetched(served: Compatible) -> None:
    wanted = ["./a", "b/c", "none", "?"]
    found = run(served, "mkdir b; printf 1 >a; printf 2 >b/c; printf 3 >d; exit 1", fetch_files=wanted)
    assert found["files"] == {"./a": base64.b64encode(b"1").decode(), "b/c": base64.b64encode(b"2").decode()}
    assert (found["status"], found["message"]) == ("Failed", "")
    much = run(served, "head -c 10000000 /dev/zero >a", fetch_files=["a"])
    assert (much["files"], much["status"]) == ({}, "Success")
    assert much["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"code": None},
        {"language": "cobol"},
        {"language": "pytest"},
        {"run_timeout": 0},
        {"run_timeout": "long"},
        {"files": {"x": 5}},
        {"files": {"x": "not base64!!!"}},
        {"files": {"../x": ""}},
        {"fetch_files": "x"},
        {"fetch_files": ["../x"]},
        {"fetch_files": ["/etc/passwd"]},
        {"stdin": 5},
    ],
)
def test_what_is_wrong_is_a_422(served: Compatible, change: dict[str, Any]) -> None:
    answer = run(served, **{"code": "true", **change}, status=422)
    assert set(answer["detail"][0]) == {"type", "loc", "msg"}
    assert served.runs() == []


def test_other_paths(served: Compatible) -> None:
    assert served.get("/sandboxfusion/v1/ping").json() == "pong"
    assert "Not Found" in served.get("/sandboxfusion/nothing").json()["detail"]
    assert served.post("/sandboxfusion/run_code", data=b"{").status_code == 422
