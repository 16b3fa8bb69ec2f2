"""The service and the real agent together, the agent as an ordinary process: real programs without
a machine.
"""

import asyncio
import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import RunEndedError
from mayfly.host.snippet import Case, Mode, Snippet, Terminal
from mayfly.runs.render import Renderer
from mayfly.runs.service import Service
from mayfly.runs.stdin import StdinWriter
from mayfly.units import MIB
from tests.kit.agent_process import build_agent
from tests.kit.api_fakes import factory, install_toys, open_descriptors, small_config


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run snippets one after another, and give the last one's result."""
    install_toys(monkeypatch, tmp_path)
    executable = build_agent()

    async def whole(snippets: tuple[Snippet, ...], config: dict[str, Any]) -> dict[str, Any]:
        async with Service(small_config(tmp_path, **config), factory(executable=executable)) as service:
            for snippet in snippets:
                found = service.start(snippet)
                await asyncio.wait_for(found.done.wait(), 60)
                await service.settled(found)
        return found.to_json()

    def call(*sources: bytes, config: dict[str, Any] | None = None, **snippet: Any) -> dict[str, Any]:
        before = open_descriptors()
        snippets = tuple(Snippet(language="real", source=source, **snippet) for source in sources)
        result = asyncio.run(whole(snippets, config or {}))
        assert open_descriptors() == before
        assert result["error"] is None, result
        return result

    return call


Run = Callable[..., dict[str, Any]]


def test_a_whole_run(run: Run) -> None:
    result = run(b'cat; echo "$1 $X"; echo err >&2; exit 7', stdin=b"in ", args=("a",), env={"X": "y"}, files={"d/f": b"data"})
    step = result["steps"][1]
    assert (step["stdout"], step["stderr"], step["code"], result["exit_status"]) == ("in a y\n", "err\n", 7, 7)
    assert step["wall_ms"] > 0
    assert step["peak_memory"] > 0
    assert result["phases"]["guest_boot"] > 0


def test_a_failed_build(run: Run) -> None:
    result = run(b"if")
    assert (result["status"], len(result["steps"])) == ("build_failed", 1)
    assert "yntax error" in result["steps"][0]["stderr"]


def test_much_stdin_comes_whole(run: Run) -> None:
    data = bytes(range(256)) * 8192
    assert run(b"cksum", stdin=data)["steps"][1]["stdout"].split()[1] == str(len(data))


def test_a_program_that_ends_while_stdin_is_being_sent(run: Run) -> None:
    assert run(b"head -c 10; exit 3", stdin=b"x" * 2_000_000)["exit_status"] == 3


def test_much_output_is_cut_and_the_rest_is_in_order(run: Run) -> None:
    result = run(b"seq 1 100000", limits={"run": {"output": 100_000}})
    step = result["steps"][1]
    assert (step["stdout_truncated"], result["status"], len(step["stdout"])) == (True, "ok", 100_000)
    assert step["stdout"] == "".join(f"{n}\n" for n in range(1, 100_001))[:100_000]


def test_single_bytes_are_no_flood(run: Run) -> None:
    result = run(b"i=0; while [ $i -lt 3000 ]; do printf x; printf y >&2; i=$((i+1)); done", limits={"run": {"output": 3000}})
    assert (result["steps"][1]["stdout"], result["steps"][1]["stderr"]) == ("x" * 3000, "y" * 3000)


@pytest.mark.parametrize(
    ("source", "limit"),
    [(b"echo before; while :; do :; done", "wall"), (b"echo before; exec sleep 60", "wall")],
)
def test_a_limit(run: Run, source: bytes, limit: str) -> None:
    result = run(source, limits={"run": {"wall_s": 0.3}})
    assert (result["status"], result["exit_status"], result["steps"][1]["limit"]) == ("limit", 124, limit)
    assert result["steps"][1]["stdout"] == "before\n"


def test_output_without_an_end_is_no_success(run: Run) -> None:
    """It is cut at its limit, and the program goes on to the next one."""
    result = run(b"exec yes 0123456", limits={"run": {"wall_s": 1.0}})
    step = result["steps"][1]
    assert (result["status"], result["exit_status"], step["limit"], step["stdout_truncated"]) == ("limit", 124, "wall", True)
    assert step["stdout"] == "0123456\n" * (MIB // 8)


def test_a_child_that_keeps_the_output_is_not_waited_for(run: Run) -> None:
    result = run(b"sleep 1000 & (setsid sleep 1000 &); echo done")
    assert (result["status"], result["steps"][1]["stdout"]) == ("ok", "done\n")


@pytest.mark.parametrize(
    ("octal", "expected"), [(r"\377", "/w=="), (r"\342\202\254|\342\202", "4oKsfOKC")], ids=["a byte", "half of a character"]
)
def test_bytes_that_are_no_text_come_as_they_are(run: Run, octal: str, expected: str) -> None:
    """As events they are shown in test_events.py."""
    step = run(f"printf '{octal}'".encode())["steps"][1]
    assert (step["stdout_base64"], step.get("stdout")) == (expected, None)


def test_a_signal_and_its_own_group(run: Run) -> None:
    assert run(b"kill -SEGV $$")["exit_status"] == 139
    assert run(b"kill -KILL 0")["exit_status"] == 137


def test_the_next_run_is_unaffected(run: Run) -> None:
    assert run(b"kill -KILL 0", b"while :; do sh -c 'sleep 9' & done", b"echo fine", config={"run_wall_s": 1})["exit_status"] == 0


def test_output_is_live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)

    async def scenario() -> None:
        async with Service(small_config(tmp_path), factory(executable=build_agent())) as service:
            run = service.start(Snippet(language="real", source=b"echo first; exec sleep 60"))
            reader = Renderer.of(run.record, Mode.RAW)
            while reader.take() != b"first\n":
                assert await reader.wait()
            began = time.monotonic()
            await service.end(run, "enough")
            assert time.monotonic() - began < 20

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_files_come_back(run: Run) -> None:
    source = b"mkdir -p out/.x; printf abc > out/a.txt; head -c 100000 /dev/zero > out/z; touch out/.x/b.txt; ln -s a.txt out/l.txt"
    result = run(source, collect=("**/*.txt", "out/z"))
    files = {name: len(base64.b64decode(file["base64"])) for name, file in result["files"].items()}
    assert files == {"out/a.txt": 3, "out/z": 100_000}
    refused = run(b"echo 12345 > a", collect=("*",), config={"collect_bytes": 5})
    assert (refused["files"], refused["files_error"]["code"], refused["status"]) == ({}, "collect_failed", "ok")


def test_cases_are_apart_from_each_other(run: Run) -> None:
    """Each ends with all that it left: a file, a process, what it changed of the products."""
    source = b"cat; ls -A; rm *; touch left; (sleep 1000; echo never) & echo end"
    cases = tuple(Case(stdin=name, expected_stdout=name + b"data\nmain.real\nend\n") for name in (b"a\n", b"b\n", b"c\n"))
    result = run(source, files={"data": b""}, cases=cases)
    assert [row["verdict"] for row in result["cases"]["results"]] == ["passed"] * 3, result
    failed = run(b'exit "$1"', cases=(Case(args=("0",)), Case(args=("3",))))
    assert [(row["verdict"], row["code"]) for row in failed["cases"]["results"]] == [("passed", 0), ("failed", 3)]


def test_a_program_at_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    source = b"""trap 'stty size' WINCH
        stty size; read name; echo hello $name
        while [ ! -e resized ]; do sleep 0.01; test "$(stty size)" = "30 100" && touch resized; done
        cat; echo over"""

    async def scenario() -> dict[str, Any]:
        async with Service(small_config(tmp_path), factory(executable=build_agent())) as service:
            size = Terminal(columns=80, rows=24)
            run = service.start(Snippet(language="real", source=source, interactive=True, tty=size))

            async def until(text: bytes) -> None:
                while text not in run.record.output(1)[0]:
                    assert not run.done.is_set()
                    await run.record.changed()

            with StdinWriter(run.stdin) as writer:
                await until(b"24 80\r\n")
                await writer.write(b"Ada\r")
                await until(b"hello Ada\r\n")
                await service.resize(run, Terminal(columns=100, rows=30))
                await until(b"30 100\r\n")
                await writer.write(b"end")
                writer.end()
            await run.done.wait()
            with pytest.raises(RunEndedError):
                await service.resize(run, size)
            await service.settled(run)
        return run.to_json()

    result = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert result["status"] == "ok"
    assert result["steps"][1]["stdout"].endswith("endendover\r\n")
