"""Runs that begin with what an earlier one left, and files that are found by patterns."""

import os
from collections.abc import Sequence

import pytest

from mayfly.protocol import frames as p
from tests.kit.agent_process import PATH_ENV, UID, AgentProcess, Result, shell
from tests.kit.agent_process import agent as agent
from tests.kit.agent_process import executable as executable

BUILD = """mkdir -p out/empty
printf '#!/bin/sh\\necho built' > out/main
chmod 750 out/main
ln -s main out/link
mkfifo out/fifo
umask 077
echo x > x"""
LIST = "find . -printf '%p %y %m %l %U\\n' | sort"


def keep(agent: AgentProcess, *steps: p.Step, files: Sequence[tuple[str, bytes]] = (), run: int = 1) -> Result:
    """Do a run whose working folder becomes the products."""
    entries = tuple(p.FileEntry(path, 0o644, len(data)) for path, data in files)
    agent.send(p.Start(PATH_ENV, steps, entries, keep=True), *(p.File(index, 0, data) for index, (_, data) in enumerate(files)), run=run)
    agent.send(p.Begin(), run=run)
    return agent.result()


def go_on(agent: AgentProcess, script: str, run: int, *, keep: bool = False) -> Result:
    """Do a run that begins with the products."""
    agent.send(p.Start(PATH_ENV, (shell(script),), (), keep=keep, from_products=True), p.Begin(), run=run)
    return agent.result()


def test_every_run_begins_with_a_copy_of_the_products(agent: AgentProcess) -> None:
    uid = os.geteuid() or UID
    assert keep(agent, shell(BUILD, "build")).exit.code == 0
    spoil = "rm -r out; echo y > x; mkdir -p .hidden"
    for run in range(2, 5):
        result = go_on(agent, f"{LIST}; out/link; {spoil}", run)
        assert result.stdout.decode().splitlines() == [
            f". d 755  {uid}",
            f"./out d 755  {uid}",
            f"./out/empty d 755  {uid}",
            f"./out/link l 777 main {os.geteuid()}",
            f"./out/main f 750  {uid}",
            f"./x f 600  {uid}",
            "built",
        ]


def test_products_may_be_files_alone(agent: AgentProcess) -> None:
    result = keep(agent, files=[("a/main.py", b"hi"), ("b", b"")])
    assert [type(message) for message in result.messages] == [p.Done]
    assert go_on(agent, "cat a/main.py; ls; rm b", 2).stdout == b"hia\nb\n"
    assert go_on(agent, "ls", 3).stdout == b"a\nb\n"


def test_products_can_be_replaced_and_are_gone_with_a_run_of_its_own(agent: AgentProcess) -> None:
    keep(agent, shell("echo one > x"))
    assert go_on(agent, "cat x; echo two > x", 2, keep=True).stdout == b"one\n"
    assert [go_on(agent, "cat x", run).stdout for run in (3, 4)] == [b"two\n"] * 2
    agent.start(shell("ls -a"), run=5)
    assert agent.result().stdout == b".\n..\n"
    agent.send(p.Start(PATH_ENV, (shell("ls"),), (), from_products=True), run=6)
    assert agent.expect(p.Error, run=6).code == p.ErrorCode.START_REFUSED


def test_a_failed_build_and_a_refused_start_leave_products(agent: AgentProcess) -> None:
    assert keep(agent, shell("echo a > x; exit 3"), shell("echo never")).exit.code == 3
    agent.send(p.Start(PATH_ENV, (), ()), run=2)
    assert agent.expect(p.Error, run=2).code == p.ErrorCode.START_REFUSED
    assert go_on(agent, "cat x", 3).stdout == b"a\n"


def test_no_files_are_written_over_products(agent: AgentProcess) -> None:
    keep(agent, shell("ln -s /etc link"))
    agent.send(p.Start(PATH_ENV, (shell("true"),), (p.FileEntry("link/x", 0o644, 0),), from_products=True), run=2)
    assert "files of its own" in agent.expect(p.Error, run=2).message


@pytest.mark.skipif(os.geteuid() != 0, reason="programs run as the agent's own user, who may go everywhere")
def test_no_program_reaches_the_products(agent: AgentProcess) -> None:
    keep(agent, shell("echo a > x"))
    vault = agent.work.with_name(agent.work.name + ".products")
    assert go_on(agent, f"ls {vault}; cat {vault}/work/x; echo evil > {vault}/work/x", 2).stdout == b""
    assert go_on(agent, "cat x", 3).stdout == b"a\n"


def collected(agent: AgentProcess, *patterns: str) -> dict[str, bytes]:
    """The files that match, by their names, in the order of their coming."""
    agent.send(p.Collect(tuple(f"/work/{pattern}" for pattern in patterns), globs=True))
    files: dict[str, bytes] = {}
    path = ""
    while not (piece := agent.expect(p.Collected)).last:
        path = piece.head.path if piece.head else path
        files[path.removeprefix("/work/")] = files.get(path.removeprefix("/work/"), b"") + piece.data
    return files


def test_files_are_collected_by_patterns(agent: AgentProcess) -> None:
    agent.start(
        shell("mkdir -p a/b .c; for i in a/x.png a/b/y.png z.png a/t .c/h.png; do printf $i > $i; done; ln -s /etc e.png; mkfifo f.png")
    )
    assert agent.result().exit.code == 0
    assert collected(agent, "*.png") == {"z.png": b"z.png"}
    assert list(collected(agent, "**/*.png", "a/?")) == ["a/b/y.png", "a/t", "a/x.png", "z.png"]
    assert collected(agent, "**/nothing", "..", "/etc/passwd", "") == {}
    assert list(collected(agent, ".c/*")) == [".c/h.png"]
