"""SandboxFusion's contract, by its published client and by plain requests."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import requests
from sandbox_fusion import client as fusion  # type: ignore[import-untyped]
from sandbox_fusion import models

from mayfly.images import manifest
from tests.kit.api_fakes import install
from tests.kit.compat_server import Compatible, compatible, install_languages


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


def test_pytest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests that the code has, with files beside them, and arguments for pytest."""
    install_languages(monkeypatch, tmp_path)
    patient: dict[str, Any] = {"language": "pytest", "run_timeout": 120}
    files = {"helper.py": base64.b64encode(b"def double(x): return 2 * x\n").decode()}
    code = "import helper\ndef test_right(): assert helper.double(2) == 4\ndef test_wrong(): assert helper.double(2) == 5\n"
    with compatible(tmp_path, compat=("sandboxfusion",), run_wall_s=120.0) as make:
        served = make()
        found = run(served, code, files=files, **patient)
        assert (found["status"], found["compile_result"], found["run_result"]["return_code"]) == ("Failed", None, 1)
        assert "1 failed, 1 passed" in found["run_result"]["stdout"]
        found = run(served, code, files=files, args=["-k", "right"], **patient)
        assert (found["status"], "1 passed, 1 deselected" in found["run_result"]["stdout"]) == ("Success", True)
        late = run(served, "import time\ndef test(): time.sleep(600)", "pytest", run_timeout=2)
        assert (late["status"], late["run_result"]["status"]) == ("Failed", "TimeLimitExceeded")
        lacking = run(served, "import os; os._exit(120)", **patient)  # as where there is no pytest
        assert (lacking["status"], "has no pytest" in lacking["message"]) == ("SandboxError", True)


def test_go_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is called; a machine with Go in it is another test's."""
    install_languages(monkeypatch, tmp_path)
    step = manifest.LanguageStep(name="build", argv=("false",), env={"BUILD_ENV": "1"})
    install("go", ".go", (step, manifest.LanguageStep(name="run", argv=("false",), stdin=True)))
    (tmp_path / "go").write_text('#!/bin/sh\necho "$@" "$BUILD_ENV"; cat main_test.go\n')
    (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with compatible(tmp_path, compat=("sandboxfusion",)) as make:
        found = run(make(), "package main", "go_test", args=["for", "pytest"], files={"x.go": "", "none": None})
    assert (found["status"], found["compile_result"]) == ("Success", None)
    assert found["run_result"]["stdout"] == "test -vet=off main_test.go 1\npackage main"


@pytest.mark.parametrize(
    "change",
    [
        {"code": None},
        {"language": "cobol"},
        {"language": "go_test"},  # no image here
        {"language": "pytest", "args": [5]},
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
