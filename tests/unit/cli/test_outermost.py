"""The outermost handler of both commands: every error ends as a message, a hint and a status."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import click
from mayfly.cli import main
from mayfly.errors import BootError, HostError
def fails(**_):
    raise {error}
for group, names in ((main.cli, ["doctor", "run"]), (main.group("image"), ["list"])):
    for name in names:
        group.get_command(None, name).callback = fails
sys.argv = {argv!r}
main.{function}()
"""
DOCTOR, RUN, LIST = ["mayfly", "doctor"], ["mayfly", "run", "x.rs"], ["imagegen", "list"]


def end(error: str, argv: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """What the program does with this error in its command."""
    function = "imagegen" if argv[0] == "imagegen" else "main"
    kept = {name: value for name, value in os.environ.items() if name != "MAYFLY_DEBUG"}
    command = [sys.executable, "-c", PROGRAM.format(error=error, argv=argv, function=function)]
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **environment}, check=False)


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        ("HostError('no room', hint='make some')", "no room", "make some"),
        ("KeyError('x')", "a fault of Mayfly's own: KeyError: 'x'", "please report it, with what MAYFLY_DEBUG=1 prints"),
        ("RecursionError('deep')", "a fault of Mayfly's own: RecursionError: deep", "please report it"),
        ("OSError(28, 'No space left on device', '/data/x')", "/data/x: No space left on device", "free some disk space"),
        ("OSError(24, 'Too many open files')", "Too many open files", "ulimit -n"),
        ("OSError(5, 'Input/output error')", "Input/output error", "MAYFLY_DEBUG=1"),
    ],
)
def test_an_error_is_a_message_and_a_hint(error: str, message: str, hint: str) -> None:
    done = end(error, DOCTOR)
    assert (done.returncode, done.stdout) == (1, "")
    said, told = done.stderr.splitlines()
    assert said.startswith(f"mayfly: {message}")
    assert told.startswith("  hint: ")
    assert hint in told


@pytest.mark.parametrize(("argv", "status"), [(RUN, 125), (LIST, 1)])
def test_a_fault_of_ours_has_the_status_of_the_command(argv: list[str], status: int) -> None:
    done = end("ZeroDivisionError('x')", argv)
    assert done.returncode == status
    assert done.stderr.startswith(f"{argv[0]}: a fault of Mayfly's own: ZeroDivisionError: x (")


def test_the_traceback_comes_when_asked_for() -> None:
    done = end("ValueError(1)", DOCTOR, MAYFLY_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert 'File "<string>", line 7, in fails' in done.stderr


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    done = end(r"BootError('a\x1b[2Jb', hint='\x07', console='first\nlast \x9b31m')", RUN)
    assert not any((ord(letter) < 32 and letter != "\n") or 127 <= ord(letter) < 160 for letter in done.stderr)
    assert done.stderr.splitlines()[-2:] == ["  | first", "  | last \ufffd31m"]


def test_an_interrupt_has_a_status_of_its_own() -> None:
    done = end("KeyboardInterrupt", LIST)
    assert (done.returncode, done.stderr.strip()) == (130, "imagegen: interrupted")
