"""`mayfly run` where a server of the same user is running: the run is the server's, and looks as
one of the command's own; machines are ordinary processes.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mayfly.cli.served import USUAL_WALL_S, is_ours
from mayfly.host.config import Config
from tests.kit.api_fakes import ROOT, gone, install_toys
from tests.kit.scale import patience

AT_SERVER = re.compile(rb"mayfly: run \S+ of the server at \S+\n")
Start = Callable[..., "subprocess.Popen[bytes]"]
Run = Callable[..., tuple[int, bytes, bytes]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start the command in a folder of its own where a server runs, and end it with the tests."""
    started: list[subprocess.Popen[bytes]] = []
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="mayfly-") as folder:  # a socket's path is short
        install_toys(patch, Path(folder))
        configured = Path(folder) / "config" / "mayfly" / "config.yaml"
        configured.parent.mkdir(parents=True)
        configured.write_text("time_factor: 1\nmemory_budget: 536870912\ncold: true\n")

        def begin(*args: str, env: Mapping[str, str] = {}, **options: Any) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-m", "tests.kit.fake_mayfly", "-", *args]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
            started.append(subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, **pipes))
            return started[-1]

        server = begin("serve", stdout=subprocess.DEVNULL)
        assert server.stderr and any(b"listening" in line for line in server.stderr)
        yield begin
        for process in started:
            with process:
                if process.poll() is None:
                    process.terminate()


@pytest.fixture
def folder(start: Start) -> Path:
    """Where commands are started."""
    return Path(os.environ["XDG_RUNTIME_DIR"])


@pytest.fixture
def run(start: Start, folder: Path) -> Run:
    """Run a snippet of toy verbosely; exit status, output, and what is on standard error besides
    the costs.
    """

    def call(source: str, *args: str, stdin: bytes = b"", **env: str) -> tuple[int, bytes, bytes]:
        (folder / "x.toy").write_text(source)
        process = start("run", "-v", *(args or ("x.toy",)), env=env)
        out, err = process.communicate(stdin, timeout=patience(60))
        kept = [line for line in err.splitlines(keepends=True) if not re.match(rb"mayfly: (exits )?\S.* +[0-9.]+( ms)?\n$", line)]
        return process.returncode, out, b"".join(kept)

    return call


def at_server(result: tuple[int, bytes, bytes]) -> tuple[int, bytes, bytes]:
    """The same, without the line that says that the server ran it, which must be there."""
    status, out, err = result
    assert AT_SERVER.search(err), err
    return status, out, AT_SERVER.sub(b"", err)


def test_output_status_input_and_arguments_are_the_programs(run: Run) -> None:
    assert at_server(run("echo out; echo err >&2; printf '\\377'; exit 7")) == (7, b"out\n\xff", b"err\n")
    assert at_server(run('cat; echo "$1"', "x.toy", "--", "--json", stdin=b"a\0b")) == (0, b"a\0b--json\n", b"")
    assert at_server(run("wc -c", stdin=b"x" * 500_000))[1].strip() == b"500000"
    assert at_server(run("exit 4", stdin=b"x" * 500_000))[0] == 4


def test_what_ends_a_program_is_said(run: Run) -> None:
    assert at_server(run("kill -SEGV $$")) == (139, b"", b"mayfly: step run: ended by SIGSEGV: Segmentation fault\n")
    status, out, err = at_server(run("echo 'x"))
    assert (status, out) == (1, b"") and b"unterminated" in err.lower()
    status, out, err = run("", "none.toy")
    assert (status, out) == (125, b"") and b"none.toy: cannot be read" in err


def test_a_folder_files_back_and_the_result_as_json(run: Run, folder: Path) -> None:
    (folder / "folder" / "deep").mkdir(parents=True)
    (folder / "folder" / "main.toy").write_text("cat deep/data; printf '\\377' > a.bin; chmod +x a.bin; echo b > b.txt")
    (folder / "folder" / "deep" / "data").write_bytes(b"\xff\x00")
    status, out, err = at_server(run("", "folder", "--collect", "*.bin", "--collect-to", "back"))
    assert (status, out, err) == (0, b"\xff\x00", b"")
    assert [(path.name, path.read_bytes(), bool(path.stat().st_mode & 0o100)) for path in (folder / "back").iterdir()] == [
        ("a.bin", b"\xff", True)
    ]
    status, out, err = at_server(run("", "folder", "--collect", "*.none", "--collect-to", "back"))
    assert (status, err) == (125, b"mayfly: the program left no file that --collect asks for\n")
    status, out, _ = at_server(run("echo yes", "--json", "x.toy"))
    result = json.loads(out)
    assert (status, result["status"], result["steps"][-1]["stdout"]) == (0, "ok", "yes\n")


def test_input_is_passed_on_while_the_program_runs(start: Start, folder: Path) -> None:
    (folder / "x.toy").write_text("while read line; do echo got $line; done")
    process = start("run", "x.toy")
    assert process.stdin and process.stdout
    for word in (b"one", b"two"):
        process.stdin.write(word + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"got " + word + b"\n"
    process.stdin.close()
    assert process.wait(patience(60)) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run(start: Start, folder: Path, number: int) -> None:
    mark = folder / "pid"
    (folder / "x.toy").write_text(f"echo $$ > {mark}; echo here; sleep 100")
    process = start("run", "x.toy")
    assert process.stdout and process.stderr and process.stdout.readline() == b"here\n"
    process.send_signal(number)
    assert process.wait(patience(60)) == 128 + number
    assert process.stderr.read() == b""
    assert gone(int(mark.read_text()))


def test_a_reader_of_the_output_that_goes_away(start: Start, folder: Path) -> None:
    (folder / "x.toy").write_text("yes")
    process = start("run", "x.toy")
    assert process.stdout and process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.wait(patience(60)) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("option", [("--no-server",), ("--wall", "9")])
def test_what_is_not_the_servers_to_say_is_run_here(run: Run, option: tuple[str, ...]) -> None:
    status, out, err = run("echo out", *option, "x.toy")
    assert (status, out) == (0, b"out\n")
    assert not AT_SERVER.search(err)


def test_without_a_server_it_is_run_here(run: Run, tmp_path: Path) -> None:
    status, out, err = run("echo out", XDG_RUNTIME_DIR=str(tmp_path))
    assert (status, out) == (0, b"out\n")
    assert not AT_SERVER.search(err)


def test_a_socket_that_nobody_listens_at(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mayfly").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "mayfly" / "api.sock"))
    status, out, err = run("echo out", XDG_RUNTIME_DIR=str(tmp_path))
    assert (status, out) == (0, b"out\n")
    assert not AT_SERVER.search(err)


def test_a_server_of_another_user_is_not_asked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert is_ours(folder / "mayfly" / "api.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not is_ours(folder / "mayfly" / "api.sock")


def test_no_configuration_is_needed(run: Run, tmp_path: Path) -> None:
    assert at_server(run("echo out", XDG_CONFIG_HOME=str(tmp_path)))[:2] == (0, b"out\n")


def test_a_refusal_is_the_servers(run: Run) -> None:
    status, out, err = run("true", "-o", "edition=1", "x.toy")
    assert (status, out) == (125, b"")
    assert b"no such option" in err


def test_help_has_all_flags(run: Run) -> None:
    status, out, _ = run("", "--help")
    assert status == 0
    assert all(word in out for word in (b"--no-server", b"--wall", b"--memory-budget"))


def test_the_limit_is_that_of_the_configuration() -> None:
    assert Config().run_wall_s == USUAL_WALL_S
