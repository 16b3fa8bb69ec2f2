"""`mayfly workload` as a process, against a server whose functions are coroutines."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly.workload.generate import as_line, generate, load_spec
from tests.kit.fake_functions import FakeFunctions
from tests.kit.functions_kit import install_echo

ROOT = Path(__file__).parents[3]
MEDIUM = ROOT / "examples/workloads/medium.yaml"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:  # short enough for sockets
        yield Path(name)


def mayfly(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mayfly.cli.main", "workload", *map(str, arguments)]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(folder), "MAYFLY_URL": ""}


def workload(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(mayfly(*arguments), env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=120)


def request(function: str, time: int = 0) -> str:
    return json.dumps({"time": time, "function": function, "payload": {}}) + "\n"


def test_generate_replay_and_report(folder: Path) -> None:
    made = workload(folder, "generate", MEDIUM, "--seed", "2", "--seconds", "1.5", "--output", "requests.jsonl")
    assert (made.returncode, made.stdout) == (0, ""), made.stderr
    lines = (folder / "requests.jsonl").read_bytes()
    wanted = load_spec(MEDIUM)
    assert lines == b"".join(as_line(each) + b"\n" for each in generate(_until(wanted, 1500), 2))
    assert made.stderr == f"{lines.count(bytes([10]))} requests\n"
    with (folder / "requests.jsonl").open("a") as file:
        file.write("nonsense\n")

    async def replayed() -> tuple[int | None, bytes]:
        async with FakeFunctions().serving(folder / "api.sock"):
            command = mayfly("replay", "requests.jsonl", "--against", folder / "api.sock", "--speed", "20", "-o", "answers.jsonl")
            process = await asyncio.create_subprocess_exec(*command, env=environment(folder), cwd=folder, stderr=subprocess.PIPE)
            _, said = await process.communicate()
            return process.returncode, said

    status, said = asyncio.run(asyncio.wait_for(replayed(), 120))
    assert status == 0, said
    assert f"line {lines.count(bytes([10])) + 1} is skipped: JSON is malformed" in said.decode()

    found = workload(folder, "report", "answers.jsonl", "--json", "report.json", "--plot", "report.png")
    assert found.returncode == 0, found.stderr
    assert "100.00 % succeeded" in found.stdout
    (experiment,) = json.loads((folder / "report.json").read_text())["experiments"]
    assert experiment["requests"] == lines.count(b"\n")
    assert (experiment["memory_bytes"], experiment["guests_created"]) == (1 << 30, 1)
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def _until(spec: Any, end_time: int) -> Any:
    from mayfly.schema import replace

    return replace(spec, end_time=end_time)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_replay_writes_what_is_there(folder: Path, number: signal.Signals) -> None:
    (folder / "requests.jsonl").write_text(request("echo") + request("held") + request("echo", time=10_000_000))

    async def interrupted() -> tuple[int | None, bytes, bytes]:
        functions = FakeFunctions()
        async with functions.serving(folder / "api.sock"):
            command = mayfly("replay", "requests.jsonl", "--against", folder / "api.sock")
            process = await asyncio.create_subprocess_exec(
                *command, env=environment(folder), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            await functions.held.wait()
            process.send_signal(number)
            answers, said = await process.communicate()
            return process.returncode, answers, said

    status, answers, said = asyncio.run(asyncio.wait_for(interrupted(), 120))
    assert (status, said) == (130, b"interrupted; what was known is written\n")
    lines = [json.loads(line) for line in answers.splitlines()]
    assert lines[-1]["summary"]["requests"] == 3
    assert {line["line"]: line["status"] for line in lines[:-1]}[2] == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "none.yaml"), "none.yaml: No such file"),
        (("replay", "none.jsonl"), "none.jsonl: No such file"),
        (("replay", os.devnull, "--against", "none.sock"), "is 'mayfly serve' running there?"),
        (("replay", os.devnull, "--against", "ftp://x"), "is no server's address"),
        (("report", "none.jsonl"), "none.jsonl: No such file"),
        (("report", os.devnull), "holds no answers"),
        (("report",), "Missing argument"),
    ],
)
def test_what_cannot_be_done_is_said(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    found = workload(folder, *arguments)
    assert found.returncode != 0
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_the_report_alone_is_json_on_standard_output(folder: Path) -> None:
    (folder / "answers.jsonl").write_text('{"line": 1, "function": "f", "status": "ok", "due_ms": 0, "sent_ms": 0, "answered_ms": 2}\n')
    found = workload(folder, "report", "answers.jsonl", "--json", "-")
    assert json.loads(found.stdout)["experiments"][0]["latency_ms"]["max"] == 2


def test_functions_in_guests_of_the_replaying_process(folder: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    install_echo(monkeypatch, folder)
    (folder / "echo.toy").write_text("true")
    (folder / "functions.yaml").write_text("{name: echo, language: toy, code: echo.toy, concurrency_limit: 2, queue_s: 60}\n")
    (folder / "requests.jsonl").write_text("".join(request("echo", time) for time in range(20)) + request("other"))
    options = ("--time-factor", "1", "--kernel", folder / "vmlinux", "--memory-budget", str(1 << 30))

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "tests.kit.fake_mayfly", "-", *map(str, arguments), *map(str, options)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        found = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, found.stderr
        return found.stdout

    run("function", "create", "functions.yaml")
    *answers, last = map(json.loads, run("workload", "replay", "requests.jsonl", "--in-process").splitlines())
    assert sorted((each["line"], each["status"]) for each in answers) == [
        *((line, "ok") for line in range(1, 21)),
        (21, "unknown_function"),
    ]
    assert {each["start"] for each in answers if each["status"] == "ok"} <= {"cold", "restored", "warm"}
    assert last["summary"]["memory"] == 1 << 30
    assert 1 <= last["summary"]["guests_created"] <= 2


def test_a_server_or_this_process_but_not_both(folder: Path) -> None:
    found = workload(folder, "replay", os.devnull, "--in-process", "--against", "x.sock")
    assert (found.returncode, "either --against or --in-process" in found.stderr) == (2, True)
