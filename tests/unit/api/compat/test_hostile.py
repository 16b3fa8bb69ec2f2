"""No value in a request of any contract causes a fault of ours, and every answer has the contract's
form.

The server has no memory for machines, so that what is valid starts nothing.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.compat_server import Compatible

VALUES: list[Any] = [None, True, -1, 1.5, 10**30, "", "\0", "x" * 70_000, [], {}, [None], {"": ""}, "../x", "1e999"]
NEST = {"statusCode", "message", "error"}
PISTON = {
    **{"language": "rust", "version": "*", "files": [{"name": "x", "content": "true", "encoding": "utf8"}], "stdin": "", "args": ["x"]},
    **{"run_timeout": 1000, "compile_cpu_time": 1, "run_memory_limit": 10**8, "compile_memory_limit": -1},
}
JUDGE0 = {
    **{"source_code": "true", "language_id": 73, "compiler_options": "-x", "command_line_arguments": "x", "stdin": ""},
    **{"cpu_time_limit": 1, "memory_limit": 5000, "number_of_runs": 2, "redirect_stderr_to_stdout": True, "enable_network": False},
    **{"callback_url": "http://127.0.0.1/", "additional_files": "", "base64_encoded": False, "wait": True, "fields": "*"},
}
REQUESTS: list[tuple[str, Any, set[str]]] = [
    ("/piston/api/v2/execute", PISTON, {"message"}),
    ("/piston/api/v2/packages", {"language": "rust", "version": "1"}, {"message"}),
    ("/judge0/submissions", JUDGE0, {"error"}),
    ("/judge0/submissions/batch", {"submissions": [{"source_code": "true", "language_id": 73}]}, {"error"}),
    ("/polycode/run", {"id": "1", "source": "true", "compilerOptions": {"language": "rust", "version": "1"}}, NEST),
    ("/polycode/run", {"sourceCode": "true", "language": "rust", "stdin": ["x"], "version": "1"}, NEST),
    (
        "/sandboxfusion/run_code",
        {"code": "true", "language": "rust", "stdin": "", "run_timeout": 1, "memory_limit_MB": -1, "files": {"x": ""}},
        {"detail"},
    ),
    (
        "/codapi/v1/exec",
        {"sandbox": "rust", "command": "run", "version": "1", "files": {"": "true"}},
        {"id", "ok", "duration", "stdout", "stderr"},
    ),
]
BODIES = [b"", b"\0", b"\xff", b"{" * 50_000, b'{"a":' * 50_000, b"[1]", b"files[0]=x&files[1][x]=y&args=&=&", b"5"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in a body, and to itself."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    made = copy.deepcopy(body)
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made


@pytest.mark.parametrize(("path", "body", "form"), REQUESTS)
def test_no_value_causes_a_fault(served: Compatible, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, form: set[str]) -> None:
    monkeypatch.setattr(served.service.admission, "budget", 0)
    for place in places(body):
        for value in VALUES:
            sent = json.dumps(replaced(body, place, value))
            answer = served.post(path, data=sent, headers={"Content-Type": "application/json"})
            found = answer.json()
            assert 400 <= answer.status_code < 500 or answer.status_code == 503, (sent[:500], answer.text)
            if answer.status_code == 422 and path.startswith("/judge0"):
                found = found if isinstance(found, list) else [found]
                texts = [text for errors in found for texts in errors.values() for text in texts]
                assert texts
                assert all(isinstance(text, str) for text in texts)
            else:
                assert set(found) - {"status"} == form, (sent[:500], answer.text)
    assert served.runs() == []


@pytest.mark.parametrize("path", sorted({path for path, _, _ in REQUESTS}))
@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff", b"{" * 50_000, b'{"a":' * 50_000, b"[1]", b'"x"', b"files[0]=x&files[1][x]=y&args=&=&", b"5"]
)
def test_no_body_causes_a_fault(served: Compatible, path: str, data: bytes) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = served.post(path, data=data, headers={"Content-Type": kind})
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()


@pytest.mark.parametrize(
    "path",
    [
        *("/judge0/submissions/%00", "/judge0/submissions/..%2f..", "/judge0/languages/99999999999999999999", "/judge0/languages/%ff"),
        *("/judge0/submissions?page=x&per_page=99999999999999999999", "/judge0/submissions?fields=%00"),
        *("/judge0/submissions/batch?tokens=,,", "/piston/%ff", "/codapi/v1/%00", "/polycode/../x", "/sandboxfusion/?x=%00"),
    ],
)  # fmt: skip
def test_no_address_causes_a_fault(served: Compatible, path: str) -> None:
    assert 200 <= served.get(path).status_code < 500
