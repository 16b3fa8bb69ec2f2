"""`mayfly run --tty` in front of a terminal: what is typed reaches the program alone, and the
terminal is as it was however that ends. Machines are the real agent as an ordinary process.
"""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.agent_process import PATIENCE_S, build_agent
from tests.kit.api_fakes import ROOT, install_toys

SIZE = (24, 80)


class Screen:
    """A terminal with `mayfly run` at it; the user's side."""

    def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(*SIZE)
        self.before = termios.tcgetattr(self.theirs)
        self.shown = b""
        descriptors = dict.fromkeys(("stdin", "stdout", "stderr"), self.theirs)
        self.process = subprocess.Popen(["setsid", "--ctty", *command], cwd=folder, env=env, **descriptors)  # type: ignore[call-overload]

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def until(self, text: bytes) -> bytes:
        """What is shown up to and including a text, once."""
        end = time.monotonic() + 2 * PATIENCE_S
        while text not in self.shown:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, self.shown
            self.shown += os.read(self.ours, 4096)
        found, text, self.shown = self.shown.partition(text)
        return found + text

    def finish(self) -> tuple[int, bytes]:
        """Exit status and the rest; the terminal is as it was."""
        status = self.process.wait(2 * PATIENCE_S)
        assert termios.tcgetattr(self.theirs) == self.before
        os.set_blocking(self.ours, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.ours, 4096):
                self.shown += data
        return status, self.shown


Run = Callable[..., Screen]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    install_toys(monkeypatch, tmp_path)
    (tmp_path / "config" / "mayfly").mkdir(parents=True)
    (tmp_path / "config" / "mayfly" / "config.yaml").write_text("time_factor: 1\nmemory_budget: 536870912\ncold: true\n")
    return {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_AGENT": str(build_agent())}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "tests.kit.fake_mayfly", "-", "run", *args, "x.real"]


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Iterator[Run]:
    """Run a snippet at a terminal."""
    with contextlib.ExitStack() as screens:

        def call(source: str, *args: str) -> Screen:
            (tmp_path / "x.real").write_text(source)
            screen = Screen(command("-it", *args), tmp_path, environment)
            screens.callback(os.close, screen.ours)
            screens.callback(os.close, screen.theirs)
            screens.callback(screen.process.wait)
            screens.callback(screen.process.kill)
            return screen

        yield call


def test_a_program_asks_and_is_answered(run: Run) -> None:
    screen = run("tty >/dev/null && echo name?; read name; echo hello $name; exit 7")
    assert screen.until(b"name?\r\n") == b"name?\r\n"
    screen.type(b"Ada\r")
    assert screen.until(b"hello Ada\r\n") == b"Ada\r\nhello Ada\r\n"
    assert screen.finish() == (7, b"")


def test_ctrl_c_is_the_programs(run: Run) -> None:
    screen = run("trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done")
    screen.until(b"ready")
    screen.type(b"\x03")
    screen.until(b"caught")
    assert screen.finish()[0] == 3


def test_ctrl_d_is_the_end_of_input(run: Run) -> None:
    screen = run("echo ready; wc -c; echo over")
    screen.until(b"ready")
    screen.type(b"abc\r\x04")
    assert b"4\r\n" in screen.until(b"over")
    assert screen.finish()[0] == 0


def test_the_size_is_the_terminals_and_follows_it(run: Run) -> None:
    screen = run("trap 'stty size; exit' WINCH; stty size; echo ready; while :; do sleep 0.05; done")
    assert screen.until(b"ready") == b"24 80\r\nready"
    screen.resize(50, 132)
    assert screen.until(b"132").strip() == b"50 132"
    assert screen.finish()[0] == 0


def test_ctrl_right_bracket_leaves(run: Run) -> None:
    screen = run("stty -echo; trap '' INT TERM HUP; echo ready; while :; do sleep 0.05; done")
    screen.until(b"ready")
    screen.type(b"x\x1dignored")
    assert screen.finish()[0] == 128 + signal.SIGINT


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves(run: Run, number: int, status: int) -> None:
    screen = run("stty raw; echo ready; sleep 60")
    screen.until(b"ready")
    screen.process.send_signal(number)
    assert screen.finish()[0] == status


@pytest.mark.parametrize(
    ("source", "args", "status"),
    [("if", (), 1), ("echo $((1+1)); kill -SEGV $$", (), 139), ("sleep 60", ("--wall", "0.3"), 124), ("x", ("--snapshot", "none"), 125)],
)
def test_it_is_as_it_was_however_the_run_ends(run: Run, source: str, args: tuple[str, ...], status: int) -> None:
    assert run(source, *args).finish()[0] == status


def test_without_a_terminal_the_program_has_one_nevertheless(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "x.real").write_text("stty size; read name; cat >more; echo hello $name; cat more; echo over")
    done = subprocess.run(command("-it"), input=b"Ada\nmore", capture_output=True, cwd=tmp_path, env=environment, timeout=2 * PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"24 80\r\n" in done.stdout
    assert done.stdout.endswith(b"hello Ada\r\nmoreover\r\n")


def test_an_interactive_run_has_a_limit_of_its_own(environment: dict[str, str], tmp_path: Path) -> None:
    def status(*args: str) -> Any:
        return subprocess.run(command(*args), capture_output=True, cwd=tmp_path, env=environment, timeout=2 * PATIENCE_S).returncode

    (tmp_path / "x.real").write_text("sleep 1")
    assert status("-i", "--wall", "0.3", "--interactive-wall-s", "30") == 0
    (tmp_path / "x.real").write_text("sleep 60")
    assert status("-i", "--wall", "0.3") == 124
    assert status("-t", "--json") == 125
