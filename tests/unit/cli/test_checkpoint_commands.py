"""`mayfly checkpoint` and `mayfly resume --to` against a server as a process, whose machines are
ordinary processes with the real agent.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mayfly.client.blocking import Client
from mayfly.client.results import StdoutEvent
from mayfly.imagegen.languages import load_language, offered
from mayfly.schema import replace
from tests.kit.agent_process import build_agent
from tests.kit.api_fakes import ROOT, install, install_toys
from tests.kit.scale import patience
from tests.kit.wasm import build
from tests.unit.wasm.test_checkpoints import echo

Mayfly = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def mayfly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mayfly:
    """Start the command where the language `wasm` is what its file says."""
    install_toys(monkeypatch, tmp_path)
    language = load_language("wasm")
    argv = (str(build()), *language.steps[0].argv[1:])
    steps = (replace(language.steps[0], argv=argv),)
    install("wasm", ".wasm", steps, marker="", checkpoint=language.checkpoint, options=offered(language, "1.0"))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_AGENT": str(build_agent())}

    def start(*words: str | Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tests.kit.fake_mayfly", "-", *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=tmp_path, env=env, stdin=pipe, stdout=pipe, stderr=pipe)

    return start


@pytest.fixture
def server(mayfly: Mayfly) -> Iterator[Path]:
    """The socket of a server."""
    with tempfile.TemporaryDirectory(prefix="mayfly-") as name:
        socket = Path(name) / "api.sock"
        with mayfly("serve", "--socket", socket, "--time-factor", "1") as process:
            assert process.stderr
            for line in process.stderr:
                if b"listening" in line:
                    break
            yield socket
            process.terminate()
            process.communicate(timeout=patience(30))


def finish(process: "subprocess.Popen[bytes]", stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Exit status, standard output and standard error."""
    out, err = process.communicate(stdin, timeout=patience(30))
    return process.returncode, out, err


def test_a_program_goes_on_at_another_server(mayfly: Mayfly, server: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with Client(server) as client, client.start(echo().encoded(), language="wasm", interactive=True, stdin="before ") as first:
        for event in first:
            if isinstance(event, StdoutEvent):
                break
        status, out, err = finish(mayfly("checkpoint", first.id, "--output", state, "--socket", server))
        assert (status, b"mayfly resume" in out) == (0, True), err
        assert first.result().exit_status == 75
    status, out, err = finish(mayfly("resume", state, "--to", server), b"and after")
    assert (status, out) == (0, b"and after"), err
    assert b"mayfly: run " in err


def test_a_file_for_which_there_is_no_room_does_not_end_the_program(mayfly: Mayfly, server: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Client(server) as client, client.start(echo().encoded(), language="wasm", interactive=True, stdin="before ") as run:
        for event in run:
            if isinstance(event, StdoutEvent):
                break
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            process = mayfly("checkpoint", run.id, "--output", tmp_path / "state", "--socket", server)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        status, _, err = finish(process)
        assert (status, b"state: cannot be written: File too large" in err) == (1, True), err
        run.send("and after", end=True)
        assert (run.result().stdout, list(tmp_path.glob("*state*"))) == ("before and after", [])


def test_what_goes_elsewhere_takes_no_further_words(mayfly: Mayfly, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"x")
    status, _, err = finish(mayfly("resume", "state", "--to", tmp_path / "none.sock", "--", "word"))
    assert (status, b"goes with one FILE alone" in err) == (125, True), err
