"""Judge0's contract, by its official SDK and by plain requests."""

import asyncio
import http.server
import io
import json
import re
import struct
import threading
import time
import zipfile
from typing import Any

import judge0  # type: ignore[import-untyped]
import pytest

from mayfly.api.compat.judge0.archive import unpack
from mayfly.api.compat.judge0.fields import Errors, Fields, decode, encode, parse
from mayfly.api.compat.judge0.store import Store
from mayfly.api.compat.judge0.submission import ALL_FIELDS, Submission
from mayfly.errors import MayflyError
from mayfly.host.config import Config
from tests.kit.compat_server import Compatible

RUST = 73
PYTHON = 71
MANY = 89


def call(served: Compatible, method: str, path: str, body: Any = None, **params: Any) -> tuple[int, Any]:
    answer = served.request(method, f"/judge0{path}", json=body, params=params)
    return answer.status_code, answer.json()


def submit(served: Compatible, source: str | None, language: int = RUST, *, fields: str = "*", **more: Any) -> Any:
    body = {"source_code": source, "language_id": language, **more}
    status, found = call(served, "POST", "/submissions", body, wait="true", fields=fields)
    assert status == 201, found
    return found


def refused(served: Compatible, **change: Any) -> Any:
    status, found = call(served, "POST", "/submissions", {"source_code": "true", "language_id": RUST, **change})
    assert status == 422
    assert served.runs() == []
    return found


def archive(files: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return buffer.getvalue()


def test_the_official_sdk(served: Compatible) -> None:
    client = judge0.Client(endpoint=f"{served.url}/judge0", headers={"X-Auth-Token": served.token})
    assert client.version == "1.13.1"
    assert client.is_language_supported(judge0.RUST)
    assert not client.is_language_supported(judge0.HASKELL)
    assert client.get_language(RUST).name == "Rust (1.85.1)"
    one = judge0.run(client=client, source_code="cat; echo err >&2", language=judge0.RUST, stdin="in\u00e9", expected_output="in\u00e9")
    assert (one.status, one.stdout, one.stderr, one.exit_code) == (judge0.Status.ACCEPTED, "in\u00e9", "err\n", 0)
    assert one.time is not None
    assert one.wall_time > 0
    assert one.created_at <= one.finished_at
    cases = [judge0.TestCase(f"{number}\n", f"{number + number % 2}") for number in range(4)]
    source = "print(int(input()))"
    several = judge0.run(client=client, source_code=source, language=judge0.PYTHON, test_cases=cases)
    accepted, wrong = judge0.Status.ACCEPTED, judge0.Status.WRONG_ANSWER
    assert [one.status for one in several] == [accepted, wrong, accepted, wrong]
    assert [one.stdout for one in several] == ["0\n", "1\n", "2\n", "3\n"]
    files = judge0.Filesystem(content=[judge0.File(name="run", content="cat data"), judge0.File(name="data", content="many")])
    many = judge0.run(client=client, submissions=judge0.Submission(source_code="", language=MANY, additional_files=files))
    assert (many.status, many.stdout) == (accepted, "many")


def test_verdicts(served: Compatible) -> None:
    def verdict(source: str, language: int = RUST, **more: Any) -> tuple[int, str | None]:
        found = submit(served, source, language, **more)
        return found["status"]["id"], found["message"]

    assert verdict("echo out") == (3, None)
    assert verdict("printf ' a \\n\\nb\\t\\n\\n\\n'", expected_output=" a\n\nb") == (3, None)
    assert verdict("printf ' a'", expected_output="a") == (4, None)
    assert verdict("true", expected_output="") == (3, None)
    assert verdict("exit 3", expected_output="x") == (11, "Exited with error status 3")
    for name, status in (("SEGV", 7), ("ABRT", 10), ("KILL", 12)):
        assert verdict(f"kill -{name} $$")[0] == status
    assert verdict("sleep 60", wall_time_limit=1) == (5, "Time limit exceeded (wall clock)")
    assert verdict("head -c 5000 /dev/zero", max_file_size=1)[0] == 8


def test_a_compilation_that_fails_gives_its_output_alone(served: Compatible) -> None:
    found = submit(served, "if")
    assert found["status"] == {"id": 6, "description": "Compilation Error"}
    assert "nexpected" in found["compile_output"]
    assert {found[name] for name in ("stdout", "stderr", "time", "memory", "exit_code", "message")} == {None}
    found = submit(served, "if", PYTHON)
    assert (found["status"]["id"], found["compile_output"]) == (11, None)
    assert "SyntaxError" in found["stderr"]


def test_fields(served: Compatible) -> None:
    found = submit(served, "echo out", fields="")
    assert set(found) == {"token", "stdout", "stderr", "compile_output", "message", "time", "memory", "status"}
    assert (found["stdout"], found["stderr"], found["compile_output"]) == ("out\n", None, None)
    assert re.fullmatch(r"\d+\.\d{1,3}", found["time"])
    assert isinstance(found["memory"], int)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", found["token"])
    every = submit(served, "true", stdin="")
    assert tuple(every) == ALL_FIELDS
    assert every["language"] == {"id": RUST, "name": "Rust (1.85.1)"}
    assert (every["stdin"], every["expected_output"], every["cpu_time_limit"], every["memory_limit"]) == ("", None, "5.0", 128000)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", every["finished_at"])
    assert set(submit(served, "true", fields="stdout,exit_code")) == {"stdout", "exit_code"}
    assert call(served, "GET", f"/submissions/{every['token']}", fields="x,token,y") == (400, {"error": "invalid fields: [x, y]"})


def test_base64(served: Compatible) -> None:
    body = {"source_code": encode(b"head -c 50 /dev/zero; cat"), "language_id": RUST, "stdin": encode(b"\xff")}
    status, found = call(served, "POST", "/submissions/", body, wait="true", base64_encoded="true")
    assert status == 201
    assert [len(line) for line in found["stdout"].split("\n")] == [60, 8, 0]
    assert decode(found["stdout"]) == bytes(50) + b"\xff"
    words = "cannot be converted to UTF-8, use base64_encoded=true query parameter"
    path = f"/submissions/{found['token']}"
    assert call(served, "GET", path) == (400, {"error": f"some attributes for this submission {words}"})
    assert call(served, "GET", path, base64_encoded="true")[1]["stdout"] == found["stdout"]
    assert call(served, "GET", path, fields="status_id") == (200, {"status_id": 3})
    status, found = call(served, "POST", "/submissions", {**body, "source_code": "printf '\\377'", "stdin": ""}, wait="true")
    assert (status, found["error"]) == (201, f"some attributes for this submission {words}")
    assert found["token"]


def test_a_submission_is_polled_until_it_is_over(served: Compatible) -> None:
    status, found = call(served, "POST", "/submissions", {"source_code": "read x", "language_id": RUST, "number_of_runs": 2})
    assert status == 201
    assert set(found) == {"token"}
    while (now := call(served, "GET", f"/submissions/{found['token']}")[1])["status"]["id"] < 3:
        assert now["status"]["description"] in ("In Queue", "Processing")
        assert now["stdout"] is None
        time.sleep(0.01)
    assert now["status"]["id"] == 11


def test_a_submission_is_run_as_often_as_is_wished(served: Compatible) -> None:
    assert submit(served, "true", number_of_runs=3)["status_id"] == 3
    assert len(served.runs()) == 3
    assert submit(served, "false", number_of_runs=3)["status_id"] == 11
    assert len(served.runs()) == 4


def test_options(served: Compatible) -> None:
    found = submit(served, 'echo "$1|$2"; echo err >&2', command_line_arguments="'a b' $(c)", redirect_stderr_to_stdout=True)
    assert sorted(found["stdout"].splitlines()) == ["a b|(c)", "err"]
    assert found["stderr"] is None
    found = submit(served, "echo x", compiler_options="-x")
    assert (found["status_id"], found["compile_output"]) == (3, None)
    only = "setting compiler options is only allowed for compiled languages"
    assert refused_options(served) == {"compiler_options": [only]}


def refused_options(served: Compatible) -> Any:
    return call(served, "POST", "/submissions", {"source_code": "x", "language_id": PYTHON, "compiler_options": "-x"})[1]


@pytest.mark.parametrize(
    ("change", "errors"),
    [
        ({"source_code": None}, {"source_code": ["can't be blank"]}),
        ({"source_code": " \n"}, {"source_code": ["can't be blank"]}),
        ({"source_code": {}}, {"source_code": ["can't be blank"]}),
        ({"language_id": None}, {"language_id": ["can't be blank", "language with id  doesn't exist"]}),
        ({"language_id": 9999}, {"language_id": ["language with id 9999 doesn't exist"]}),
        ({"language_id": 60}, {"language_id": ["language with id 60 doesn't exist"]}),
        ({"language_id": 42}, {"language_id": ["language with id 42 is archived and cannot be used anymore"]}),
        ({"language_id": "x"}, {"language_id": ["language with id x doesn't exist"]}),
        ({"number_of_runs": 21}, {"number_of_runs": ["must be less than or equal to 20"]}),
        ({"number_of_runs": 0}, {"number_of_runs": ["must be greater than 0"]}),
        ({"cpu_time_limit": 16, "wall_time_limit": 0.5}, {
            "cpu_time_limit": ["must be less than or equal to 15"],
            "wall_time_limit": ["must be greater than or equal to 1"],
        }),
        ({"memory_limit": 1}, {"memory_limit": ["must be greater than or equal to 2048"]}),
        ({"memory_limit": 10**400}, {"memory_limit": ["is not a number"]}),
        ({"memory_limit": "much"}, {"memory_limit": ["is not a number"]}),
        ({"cpu_time_limit": "NaN"}, {"cpu_time_limit": ["is not a number"]}),
        ({"stack_limit": []}, {"stack_limit": ["is not a number"]}),
        ({"enable_network": True}, {"enable_network": ["enabling network is not allowed"]}),
        ({"command_line_arguments": "x" * 513}, {"command_line_arguments": ["is too long (maximum is 512 characters)"]}),
        ({"command_line_arguments": "'x"}, {"command_line_arguments": ["is not a list of words: No closing quotation"]}),
        ({"language_id": MANY, "source_code": None}, {"additional_files": ["can't be blank"]}),
        ({"language_id": MANY, "additional_files": encode(archive({"run": ""}))}, {"source_code": ["must be blank"]}),
        ({"language_id": MANY, "source_code": "", "additional_files": encode(archive({"x": ""}))}, {
            "additional_files": ["has no file run"],
        }),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_field(served: Compatible, change: dict[str, Any], errors: Any) -> None:
    assert refused(served, **change) == errors


def test_a_callback_gets_the_submission(served: Compatible) -> None:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.handle_request)
    with receiver:
        thread.start()
        found = submit(served, "echo out", callback_url=f"http://127.0.0.1:{receiver.server_port}/x")
        thread.join()
    assert receiver.got is not None
    method, path, body = receiver.got
    assert (method, path, body["token"], body["status"]["id"]) == ("PUT", "/x", found["token"], 3)
    assert decode(body["stdout"]) == b"out\n"


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "ftp://example.org/", "x", "http://[::1]/"])
def test_a_callback_to_what_may_not_be_called(served: Compatible, url: str) -> None:
    assert set(refused(served, callback_url=url)) == {"callback_url"}


class Receiver(http.server.HTTPServer):
    """Takes one callback."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: tuple[str, str, Any] | None = None


class Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got = (self.command, self.path, body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def test_batches(served: Compatible) -> None:
    items: list[Any] = [{"source_code": "echo 1", "language_id": RUST}, {"language_id": RUST}, 5]
    status, found = call(served, "POST", "/submissions/batch", {"submissions": items})
    assert status == 201
    assert found[1] == {"source_code": ["can't be blank"]}
    assert set(found[2]) == {"source_code", "language_id"}
    token = found[0]["token"]
    status, found = call(served, "GET", "/submissions/batch", tokens=f"{token},x", fields="token")
    assert (status, found) == (200, {"submissions": [{"token": token}, None]})
    many = "number of submissions in a batch should be less than or equal to 20"
    none = "there should be at least one submission in a batch"
    assert call(served, "POST", "/submissions/batch", {"submissions": items * 7}) == (400, {"error": many})
    assert call(served, "POST", "/submissions/batch", {}) == (400, {"error": none})
    assert call(served, "GET", "/submissions/batch") == (400, {"error": none})
    assert call(served, "GET", "/submissions/batch", tokens="x," * 21) == (400, {"error": many})
    assert call(served, "POST", "/submissions/batch", {"submissions": [{}]})[0] == 422


def test_a_batch_for_which_there_is_no_room_starts_nothing(served: Compatible, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.service.admission, "_queue", 0)
    items = [{"source_code": "sleep 60", "language_id": RUST}] * 10  # the budget is of four machines
    assert call(served, "POST", "/submissions/batch", {"submissions": items}) == (503, {"error": "queue is full"})
    assert served.runs() == []
    assert call(served, "GET", "/submissions")[1]["meta"]["total_count"] == 0


def test_pages(served: Compatible) -> None:
    tokens = [submit(served, "true")["token"] for _ in range(3)]
    status, found = call(served, "GET", "/submissions", page=2, per_page=2, fields="token")
    assert (status, found["submissions"]) == (200, [{"token": tokens[0]}])
    meta = {"current_page": 2, "next_page": None, "prev_page": 1, "total_pages": 2, "total_count": 3}
    assert found["meta"] == meta
    assert call(served, "GET", "/submissions", page=0) == (400, {"error": "invalid page: 0"})
    assert call(served, "GET", "/submissions", page=1, per_page=-1) == (400, {"error": "invalid per_page: -1"})
    assert call(served, "DELETE", f"/submissions/{tokens[0]}") == (400, {"error": "delete not allowed"})
    assert call(served, "GET", "/submissions/x")[0] == 404


def test_what_it_says_of_itself(served: Compatible) -> None:
    languages = {language["id"]: language["name"] for language in call(served, "GET", "/languages/")[1]}
    assert languages[RUST] == "Rust (1.85.1)"
    assert languages[PYTHON] == "Python (3.13.0)"
    assert languages[MANY] == "Multi-file program"
    assert 42 not in languages
    every = {language["id"]: language for language in call(served, "GET", "/languages/all")[1]}
    assert every[42]["is_archived"]
    assert call(served, "GET", f"/languages/{RUST}")[1]["compile_cmd"] == "sh -n main.rs"
    assert call(served, "GET", f"/languages/{PYTHON}")[1]["compile_cmd"] is None
    assert call(served, "GET", "/languages/61")[0] == 404
    statuses = call(served, "GET", "/statuses")[1]
    assert (len(statuses), statuses[10]) == (14, {"id": 11, "description": "Runtime Error (NZEC)"})
    judge0.base_types.Config(**call(served, "GET", "/config_info")[1])
    assert served.get("/judge0/version").text == "1.13.1"
    assert served.post("/judge0/authenticate").status_code == 200
    assert served.post("/judge0/authorize").status_code == 200
    submit(served, "true")
    counted = call(served, "GET", "/statistics")[1]
    assert counted["submissions"]["today"] == 1
    assert counted["languages"] == [{"language": {"id": RUST, "name": "Rust (1.85.1)"}, "count": 1}]
    (queue,) = call(served, "GET", "/workers")[1]
    assert set(queue) == {"queue", "size", "available", "idle", "working", "paused", "failed"}
    assert call(served, "GET", "/system_info")[1]["CPU(s)"]


def test_bodies_of_other_kinds(served: Compatible) -> None:
    def post(data: Any, kind: str, path: str = "/submissions") -> tuple[int, Any]:
        answer = served.post(f"/judge0{path}", data=data, headers={"Content-Type": kind})
        return answer.status_code, answer.json()

    form = "application/x-www-form-urlencoded"
    status, found = post("source_code=echo+form&language_id=73&wait=true", form)
    assert (status, found["stdout"]) == (201, "form\n")
    status, found = post('{"source_code": "echo 1", "language_id": "73", "wait": true}', "text/plain")
    assert (status, found["stdout"]) == (201, "1\n")
    assert post("", form)[0] == 422
    assert post("{", "application/json")[0] == 400
    assert post("[]", "application/json")[0] == 400
    assert post("--x", "multipart/form-data; boundary=x")[0] == 415


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({}, {0, 1, 2, 3}), ({"keep_runs": 2}, {2, 3}), ({"keep_bytes": 2500}, {2, 3}), ({"keep_s": 0.0}, set()), ({"keep_runs": 0}, set())],
)
def test_an_ended_submission_is_kept_within_limits(limits: dict[str, Any], kept: set[int]) -> None:
    async def scenario() -> set[int]:
        fields = parse({"source_code": "x", "language_id": RUST}, encoded=False, network=False)
        assert isinstance(fields, Fields)
        store = Store(Config(**limits))
        every = [Submission(fields, {}, owner, builds=False) for owner in ("me", "me", "me", "you")]
        unfinished = Submission(fields, {}, "me", builds=False)
        for one in (unfinished, *every):
            store.add(one)
        for one in every:
            store.keep(one)
        assert store.get(unfinished.token, "me") is unfinished
        assert store.get(unfinished.token, "you") is None
        assert store.get("x", None) is None
        assert set(store.newest("you")) <= {every[3]}
        return {number for number, one in enumerate(every) if store.get(one.token, None)}

    assert asyncio.run(scenario()) == kept


def test_archives() -> None:
    assert unpack(archive({"./a": "1", "b/c": b"\xff"})) == {"a": b"1", "b/c": b"\xff"}
    assert unpack(archive({"b/": "", "b/c": ""})) == {"b/c": b""}
    for names in (["../x"], ["/x"], ["a/../../x"], ["a", "a/b"]):
        with pytest.raises(MayflyError):
            unpack(archive(dict.fromkeys(names, "")))


def test_archives_that_are_meant_to_harm() -> None:
    bomb = archive({"x": bytes(64 << 20)})
    with pytest.raises(MayflyError, match="more than 16777216 bytes"):
        unpack(bomb)
    lies = bytearray(bomb)
    struct.pack_into("<I", lies, bomb.index(b"PK\x01\x02") + 24, 10)  # the size that its directory says
    with pytest.raises(MayflyError, match="not a zip archive"):
        unpack(bytes(lies))
    with pytest.raises(MayflyError, match="1024 files"):
        unpack(archive({str(number): "" for number in range(1025)}))
    with pytest.raises(MayflyError, match="another way"):
        unpack(archive({"x": "y"}, zipfile.ZIP_LZMA))
    for broken in (b"", b"PK", b"x" * 1000, archive({"x": "y" * 1000})[:-30], archive({"x": "y"})[10:]):
        with pytest.raises(MayflyError):
            unpack(broken)


def test_base64_as_ruby_has_it() -> None:
    assert encode(bytes(45)) == "A" * 60 + "\n"
    assert encode(b"") == ""
    assert decode("aGk=\n") == decode("a Gk") == decode("aGk=trailing") == b"hi"
    assert decode("a") == b""


def test_flags_as_rails_reads_them() -> None:
    def flag(value: object) -> bool:
        found = parse({"source_code": "x", "language_id": RUST, "redirect_stderr_to_stdout": value}, encoded=False, network=True)
        assert isinstance(found, Fields)
        return found.flags["redirect_stderr_to_stdout"]

    assert [value for value in (True, "true", 1, "1", "on") if not flag(value)] == []
    absent: tuple[object, ...] = (None, False, "false", 0, "0", "", "f", [], {})
    assert [value for value in absent if flag(value)] == []
    assert isinstance(parse({}, encoded=False, network=True), Errors)
