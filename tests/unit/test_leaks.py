"""The watch for leaks sees each kind of them, and nothing where there is none."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.guests.cgroups import group_of
from mayfly.protocol import frames as p
from tests.kit import leaks
from tests.kit.agent_groups import remove_left
from tests.kit.agent_process import AgentProcess, build_agent


def test_nothing_left(no_leaks: None) -> None:
    with socket.socket(socket.AF_UNIX), subprocess.Popen(["true"]) as done:
        done.wait()


def test_each_kind_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = leaks.Holdings.now()
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as bound, subprocess.Popen(["cat"], stdin=reader) as child:
        bound.bind(str(tmp_path / "s"))
        words = "; ".join(leaks.Holdings.now().beyond(before))
        assert f"descriptor {reader} on pipe" in words
        assert f"child process {child.pid}: " in words
        assert f"Unix socket {tmp_path}/s" in words
        os.close(reader)
        os.close(writer)
    (tmp_path / "s").unlink()
    assert leaks.Holdings.now().beyond(before) == []


def test_sockets_of_others_are_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = leaks.Holdings.now()
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); print(flush=True); input()"
    for name, env in (("ours", None), ("theirs", {})):
        command = [sys.executable, "-S", "-c", code, str(tmp_path / name)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as child:
            assert child.stdout
            child.stdout.readline()
            words = "; ".join(leaks.Holdings.now().beyond(before))
            assert (f"Unix socket {tmp_path / name}" in words) == (name == "ours")
            child.communicate(b"\n")


def test_a_leak_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "GRACE_S", 0.0)
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(AssertionError, match="left behind: descriptor"), leaks.none_left():
        writer = os.open("/dev/null", os.O_RDONLY)
    os.close(reader)
    os.close(writer)


def test_the_group_of_a_killed_agent_goes(tmp_path: Path) -> None:
    own = group_of()
    agent = AgentProcess(build_agent(), tmp_path / "work")
    agent.expect(p.Hello, run=0)
    agent.process.kill()
    agent.process.wait()
    agent.socket.close()
    if own is None or not (group := own / f"mayfly-agent-{agent.process.pid}").exists():
        pytest.skip("an agent may make no control groups here")
    remove_left()
    assert not group.exists()
