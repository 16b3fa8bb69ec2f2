"""Piston's contract, by its published client `ultra-piston` and by plain requests."""

import asyncio
import base64
import json
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import aiohttp
import pytest
import ultra_piston  # type: ignore[import-untyped]
from ultra_piston import errors

from mayfly.api.compat.piston import socket
from tests.kit.compat_server import Compatible

HELLO = {"name": "main.rs", "content": "echo hello"}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine under load may need more than a second for a first message."""
    monkeypatch.setattr(socket, "INIT_S", 60.0)


def client_of(served: Compatible) -> ultra_piston.PistonClient:
    return ultra_piston.PistonClient(base_url=f"{served.url}/piston/api/v2/", api_key=served.token, rate_limit=0)


def execute(served: Compatible, body: Any, path: str = "/api/v2/execute", status: int = 200, **more: Any) -> Any:
    arguments = {"json": body} if isinstance(body, dict) else {"data": body}
    answer = served.post(f"/piston{path}", **arguments, **more)
    assert answer.status_code == status, answer.text
    return answer.json()


def refused(served: Compatible, **change: Any) -> str:
    body = {"language": "rust", "version": "*", "files": [HELLO], **change}
    answer = execute(served, {name: value for name, value in body.items() if value is not ...}, status=400)
    assert set(answer) == {"message"}
    assert served.runs() == []
    return str(answer["message"])


def test_ultra_piston(served: Compatible) -> None:
    client = client_of(served)
    runtimes = {(one.language, one.version): one for one in client.get_runtimes()}
    assert runtimes["rust", "1.85.1"].aliases == ["rs"]
    assert runtimes["python", "3.13.0"].aliases == ["py", "py3", "python3"]
    assert (runtimes["c++", "1.85.1"].aliases, runtimes["c++", "1.85.1"].runtime) == (["cpp", "g++"], "gcc")
    assert {(one.language, one.language_version) for one in client.get_packages()} == set(runtimes)
    source = 'read line; echo "$line $1"; echo err >&2; exit 3'
    found = client.post_execute("rs", "1.x", ultra_piston.File(content=source), stdin="in", args=["arg"])
    assert (found.language, found.version) == ("rust", "1.85.1")
    assert (found.run.code, found.run.stdout, found.run.stderr, found.run.signal) == (3, "in arg\n", "err\n", None)
    assert sorted(found.run.output.splitlines()) == ["err", "in arg"]
    assert found.compile is not None
    assert found.compile.code == 0
    with pytest.raises(errors.BadRequestError):
        client.post_execute("rust", "2", ultra_piston.File(content=source))
    with pytest.raises(errors.BadRequestError):
        client.post_packages("rust", "1.85.1")
    with pytest.raises(errors.NotFoundError):
        client.post_packages("cobol", "1.0.0")


@pytest.mark.parametrize(
    ("language", "version", "found"),
    [
        ("python", "*", "3.13.0"),
        ("py3", "3", "3.13.0"),
        ("python", "3.9.x", "3.9.2"),
        ("python", "<3.10", "3.9.2"),
        ("python", ">= 3.10", "3.13.0"),
        ("python", "~3.9", "3.9.2"),
        ("python", "v3.9.2", "3.9.2"),
        ("python", "3.8 || 3.9", "3.9.2"),
        ("Python", "^3.9.0", "3.13.0"),
        ("python", "2", None),
        ("python", "latest", None),
        ("cobol", "*", None),
        ("toy", "1.0", "1.0.0"),
    ],
)
def test_the_highest_version_in_the_range_is_taken(served: Compatible, language: str, version: str, found: str | None) -> None:
    body = {"language": language, "version": version, "files": [{"content": "0"}], "run_timeout": "x"}
    message = execute(served, body, status=400)["message"]  # checked after the version: nothing need run
    assert message == ("If specified, run_timeout must be a number" if found else f"{language}-{version} runtime is unknown")


def test_the_checks_are_made_in_pistons_order(served: Compatible) -> None:
    assert refused(served, language=..., version=...) == "language is required as a string"
    empty = execute(served, b"", status=400, headers={"Content-Type": "application/json"})
    assert empty == {"message": "language is required as a string"}
    assert refused(served, language=5) == "language is required as a string"
    assert refused(served, version="", files=...) == "version is required as a string"
    assert refused(served, files={"0": HELLO}) == "files is required as an array"
    assert refused(served, files=[HELLO, {"name": "x"}]) == "files[1].content is required as a string"
    assert refused(served, files=[None]) == "files[0].content is required as a string"
    assert refused(served, language="cobol", files=[]) == "cobol-* runtime is unknown"
    assert refused(served, files=[], run_timeout="x") == "files must include at least one utf8 encoded file"
    only = "files must include at least one utf8 encoded file"
    assert refused(served, files=[{"content": "", "encoding": "hex"}]) == only
    assert refused(served, run_timeout="1000", compile_memory_limit=[]) == "If specified, compile_memory_limit must be a number"
    assert refused(served, run_timeout="1000") == "If specified, run_timeout must be a number"
    assert refused(served, run_timeout=True) == "If specified, run_timeout must be a number"
    assert refused(served, run_timeout=10001) == "run_timeout cannot exceed the configured limit of 10000"
    assert refused(served, compile_timeout=60000.5) == "compile_timeout cannot exceed the configured limit of 60000"
    assert refused(served, compile_timeout=-1) == "compile_timeout must be non-negative"
    assert refused(served, run_cpu_time=-0.5) == "run_cpu_time must be non-negative"


def test_what_piston_answers_with_an_empty_500_is_a_message(served: Compatible) -> None:
    for name in ("../x", "/x", "a/../../x", "a//b"):
        assert "not allowed" in refused(served, files=[HELLO, {"name": name, "content": ""}])
    assert "files[1].name" in refused(served, files=[HELLO, {"name": 5, "content": ""}])
    assert "already" in refused(served, files=[HELLO, {"name": "x", "content": ""}, {"name": "./x", "content": ""}])
    assert "not hex" in refused(served, files=[HELLO, {"name": "x", "content": "xyz", "encoding": "hex"}])
    assert "args" in refused(served, args="one")
    assert "args[0]" in refused(served, args=[["one"]])
    assert "stdin" in refused(served, stdin={})


def test_files_and_their_encodings(served: Compatible) -> None:
    files = [
        {"name": "data/one", "content": "6f6e65", "encoding": "hex"},
        {"name": None, "content": 'cat data/one two file3.code; printf "$1"', "encoding": "latin1"},
        {"name": "two", "content": base64.urlsafe_b64encode(b"\xfb\xff\xfe").decode().rstrip("="), "encoding": "base64"},
        {"content": "three"},
    ]
    run = execute(served, {"language": "rust", "version": "1.85.1", "files": files, "args": [4]})["run"]
    assert run["stdout"] == "one\ufffd\ufffd\ufffdthree4"


def test_clients_that_declare_their_bodies_otherwise(served: Compatible) -> None:
    body = json.dumps({"language": "rust", "version": "*", "files": [HELLO]})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8", "application/octet-stream"):
        assert execute(served, body, "/api/v2/execute/", headers={"Content-Type": kind})["run"]["stdout"] == "hello\n"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    fields = {"language": "rust", "version": "*", "files[0][name]": "x", "files[0][content]": 'echo "$1 $2"', "run_timeout": "1500"}
    given = urllib.parse.urlencode([*fields.items(), ("args[]", "one"), ("args[]", "two")])
    assert execute(served, given, headers=form)["run"]["stdout"] == "one two\n"
    given = urllib.parse.urlencode({"language": "rust", "version": "*", "files": json.dumps([HELLO])})
    assert execute(served, given, "/execute", headers=form)["run"]["stdout"] == "hello\n"
    answer = served.post("/piston/api/v2/execute", data=b"\x00", headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()) == (415, {"message": "requests must be of type application/json"})
    assert "not JSON" in execute(served, b'{"language"', status=400)["message"]


def test_how_a_stage_ends(served: Compatible) -> None:
    def run(source: str, **more: Any) -> Any:
        return execute(served, {"language": "rust", "version": "*", "files": [{"content": source}], **more})

    ok = run("echo x", run_memory_limit=-1, compile_memory_limit=-1, run_timeout=0, run_cpu_time=None)["run"]
    assert set(ok) == {"stdout", "stderr", "output", "code", "signal", "message", "status", "cpu_time", "wall_time", "memory"}
    assert (ok["code"], ok["signal"], ok["message"], ok["status"]) == (0, None, None, None)
    assert ok["memory"] >= 0
    killed = run("kill -SEGV $$")["run"]
    assert (killed["code"], killed["signal"], killed["status"], killed["message"]) == (None, "SIGSEGV", "SG", "Caught fatal signal 11")
    late = run("sleep 60", run_timeout=100)["run"]
    assert (late["code"], late["signal"], late["status"]) == (None, "SIGKILL", "TO")
    failed = run("exit 5")["run"]
    assert (failed["code"], failed["status"], failed["message"]) == (5, "RE", "Exited with error status 5")
    broken = run("if")
    assert broken["run"] == broken["compile"]
    assert broken["run"]["code"] != 0
    much = run("head -c 2000000 /dev/zero")["run"]
    assert (much["code"], much["signal"], much["status"]) == (None, "SIGKILL", "OL")
    assert (run("kill -SEGV $$", run_cpu_time=2**70)["run"]["signal"]) == "SIGSEGV"


def test_a_language_that_piston_does_not_compile(served: Compatible) -> None:
    body = {"language": "python", "version": "*", "files": [{"name": "main.py", "content": "print(5)"}]}
    found = execute(served, body)
    assert "compile" not in found
    assert found["run"]["stdout"] == "5\n"
    found = execute(served, {**body, "files": [{"content": "if"}]})
    assert "compile" not in found
    assert found["run"]["code"] == 1
    assert "SyntaxError" in found["run"]["stderr"]


def test_other_paths(served: Compatible) -> None:
    url = "/piston"
    assert served.get(url).json() == {"message": "Piston v3.1.1"}
    for path in ("/nothing", "/api/v2/nothing"):
        answer = served.get(url + path)
        assert (answer.status_code, answer.json()) == (404, {"message": "Not Found"})
    answer = served.get(f"{url}/api/v2/execute")
    assert (answer.status_code, answer.json()) == (404, {"message": "Not Found"})
    body = {"language": "rust", "version": "1.85.1"}
    answer = served.delete(f"{url}/api/v2/packages", json=body)
    assert answer.status_code == 400
    answer = served.delete(f"{url}/api/v2/packages", json=body | {"version": "9.9.9"})
    assert (answer.status_code, answer.json()) == (404, {"message": "Requested package rust-9.9.9 does not exist"})


def test_a_server_that_stops(served: Compatible, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"language": "rust", "version": "*", "files": [HELLO]}
    monkeypatch.setattr(served.service, "stopping", True)
    assert "stopping" in execute(served, body, status=503)["message"]


class Talk:
    """A plain client of the WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def say(self, **message: Any) -> None:
        await self.socket.send_json(message)

    async def begin(self, source: str, **more: Any) -> None:
        await self.say(type="init", language="rust", version="*", files=[{"content": source}], **{"run_timeout": 10_000, **more})

    async def hear(self) -> Any:
        """The next message, or the code and the words of the end."""
        message = await self.socket.receive(60)
        if message.type is aiohttp.WSMsgType.TEXT:
            return json.loads(message.data)
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return message.data, message.extra

    async def until(self, **wanted: Any) -> Any:
        """The next message with these fields."""
        while not isinstance(found := await self.hear(), dict) or wanted.items() - found.items():
            assert isinstance(found, dict), found
        return found

    async def rest(self) -> list[Any]:
        found = [await self.hear()]
        while isinstance(found[-1], dict):
            found.append(await self.hear())
        return found


def talk(served: Compatible, scenario: Callable[[Talk], Awaitable[Any]], path: str = "/api/v2/connect") -> Any:
    async def whole() -> Any:
        headers = {"Authorization": served.token}
        async with aiohttp.ClientSession() as client, client.ws_connect(f"{served.url}/piston{path}", headers=headers) as socket:
            return await scenario(Talk(socket))

    return asyncio.run(whole())


RUNTIME = {"type": "runtime", "language": "rust", "version": "1.85.1"}
COMPILED = [{"type": "stage", "stage": "compile"}, {"type": "exit", "stage": "compile", "code": 0, "signal": None}]
COMPLETED = (4999, "Job Completed")


def test_a_dialogue(served: Compatible) -> None:
    async def scenario(talk: Talk) -> None:
        await talk.begin("read a; echo $1 $a; read b; echo $b >&2; cat; exit 3", args=["arg"])
        assert await talk.hear() == RUNTIME
        assert [await talk.hear(), await talk.hear()] == COMPILED
        assert await talk.hear() == {"type": "stage", "stage": "run"}
        await talk.say(type="data", stream="stdin", data="one\n")
        assert await talk.hear() == {"type": "data", "stream": "stdout", "data": "arg one\n"}
        await talk.say(type="data", stream="stdin", data="two\n")
        assert await talk.hear() == {"type": "data", "stream": "stderr", "data": "two\n"}
        await talk.say(type="data", stream="stdin", data="rest")
        await talk.say(type="data", stream="stdin", data=None)
        exit_ = {"type": "exit", "stage": "run", "code": 3, "signal": None}
        assert await talk.rest() == [{"type": "data", "stream": "stdout", "data": "rest"}, exit_, COMPLETED]

    talk(served, scenario)
    talk(served, scenario, "/connect/")


def test_a_signal(served: Compatible) -> None:
    async def scenario(talk: Talk) -> Any:
        await talk.begin("trap 'echo got; exit 4' USR1; echo ready; while :; do :; done")
        await talk.until(data="ready\n")
        await talk.say(type="signal", signal="SIGUSR1")
        return await talk.rest()

    exit_ = {"type": "exit", "stage": "run", "code": 4, "signal": None}
    assert talk(served, scenario) == [{"type": "data", "stream": "stdout", "data": "got\n"}, exit_, COMPLETED]


def test_a_program_that_cannot_be_built_or_takes_too_long(served: Compatible) -> None:
    async def broken(talk: Talk) -> Any:
        await talk.begin("if")
        return await talk.rest()

    found = talk(served, broken)
    assert found[:2] == [RUNTIME, COMPILED[0]]
    assert (found[-2]["stage"], found[-2]["type"], found[-1]) == ("compile", "exit", COMPLETED)

    async def late(talk: Talk) -> Any:
        await talk.begin("sleep 60", run_timeout=200)
        return await talk.rest()

    exit_ = {"type": "exit", "stage": "run", "code": None, "signal": "SIGKILL"}
    assert talk(served, late)[-2:] == [exit_, COMPLETED]


def test_an_interpreted_program_has_one_stage(served: Compatible) -> None:
    for source in ("print(5)", "if"):

        async def scenario(talk: Talk, source: str = source) -> Any:
            await talk.say(type="init", language="python", version="3.13", files=[{"content": source}])
            return await talk.rest()

        stages = [(one["type"], one.get("stage")) for one in talk(served, scenario)[1:-1] if one["type"] != "data"]
        assert stages == [("stage", "run"), ("exit", "run")]


@pytest.mark.parametrize(
    ("messages", "end"),
    [
        ([], (4001, "Initialization Timeout")),
        ([{"type": "data", "stream": "stdin", "data": "x"}], (4003, "Not yet initialized")),
        ([{"type": "signal", "signal": "SIGINT"}], (4003, "Not yet initialized")),
        ([{"type": "nothing"}, {}, {"type": "signal"}], (4003, "Not yet initialized")),
        (["init", "init"], (4000, "Already Initialized")),
        (["init", {"type": "data", "stream": "stdout", "data": "x"}], (4004, "Can only write to stdin")),
        (["init", {"type": "signal", "signal": "SIGNONE"}], (4005, "Invalid signal")),
        (["init", {"type": "signal", "signal": 9}], (4005, "Invalid signal")),
        (["init", {"type": "data", "stream": "stdin", "data": 5}], (4002, "Notified Error")),
        ([{"type": "init", "language": "cobol", "version": "*", "files": []}], (4002, "Notified Error")),
        (["x"], (4002, "Notified Error")),
        (["x" * (1 << 20)], (1009, mock.ANY)),
        ([["x"]], (4002, "Notified Error")),
    ],
)
def test_how_a_dialogue_is_closed(served: Compatible, monkeypatch: pytest.MonkeyPatch, messages: list[Any], end: tuple[int, str]) -> None:
    if not messages:
        monkeypatch.setattr(socket, "INIT_S", 0.05)

    async def scenario(talk: Talk) -> Any:
        for message in messages:
            if message == "init":
                await talk.begin("sleep 60", run_timeout=10_000)
            elif isinstance(message, str):
                await talk.socket.send_str("{" + message[1:])
            else:
                await talk.socket.send_json(message)
        found = await talk.rest()
        if end[0] == 4002:
            assert found[-2]["type"] == "error"
            assert found[-2]["message"]
        return found[-1]

    assert talk(served, scenario) == end
    for run in served.runs():  # each is ended
        assert asyncio.run_coroutine_threadsafe(asyncio.wait_for(run.done.wait(), 60), served.loop).result()


def test_a_dialogue_whose_client_goes_away_ends_its_run(served: Compatible) -> None:
    async def scenario(talk: Talk) -> None:
        await talk.begin("echo ready; sleep 60")
        await talk.until(data="ready\n")  # the run may go on for ten seconds

    talk(served, scenario)
    (run,) = served.runs()
    assert asyncio.run_coroutine_threadsafe(asyncio.wait_for(run.done.wait(), 60), served.loop).result()
    assert run.outcome.error is not None


def test_what_is_not_a_websocket(served: Compatible) -> None:
    answer = served.get("/piston/api/v2/connect")
    assert (answer.status_code, set(answer.json())) == (400, {"message"})
