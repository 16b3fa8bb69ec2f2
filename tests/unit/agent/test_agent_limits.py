"""The agent as an ordinary process: every limit, floods, and programs that try not to end."""

import fcntl
import os
import sys
import termios
import time
from pathlib import Path

import pytest

from mayfly.protocol import frames as p
from mayfly.units import MIB
from tests.kit.agent_process import AgentProcess, processes_of, shell
from tests.kit.agent_process import agent as agent
from tests.kit.agent_process import executable as executable

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="without a user of its own the step would kill the test")


def _cgroup_controllers(agent: AgentProcess) -> list[str]:
    mounts = (line.split() for line in Path(f"/proc/{agent.process.pid}/mounts").read_text().splitlines())
    return [word for mount in mounts if mount[2] == "cgroup2" for word in Path(mount[1], "cgroup.subtree_control").read_text().split()]


def ended(agent: AgentProcess) -> p.Exit:
    """The end of a run that must leave no process behind, and an agent that takes the next one."""
    result = agent.result()
    if os.geteuid() == 0:
        assert processes_of() == []
    agent.start(shell("echo next"), run=2)
    assert agent.result().stdout == b"next\n"
    return result.exit


BY_WALL = (p.ExitHow.SIGNALED, 9, p.Limit.WALL)


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000",
        "while :; do :; done",
        "kill -STOP $$",
        "exec >&- 2>&-; sleep 1000",
        "trap '' TERM INT HUP; while :; do sleep 1; done",
        "sleep 1000 & wait",
        "setsid sleep 1000 & (sleep 1000 &); setsid -w sleep 1000",
    ],
)
def test_wall_clock(agent: AgentProcess, script: str) -> None:
    agent.start(shell(script, wall_ms=300))
    exit = ended(agent)
    assert (exit.how, exit.code, exit.limit) == BY_WALL
    assert exit.wall_us >= 300_000


def test_cpu_time_of_all_processes_together(agent: AgentProcess) -> None:
    agent.start(shell("for i in 1 2 3 4; do sh -c 'while :; do :; done' & done; wait", cpu_ms=400))
    exit = ended(agent)
    assert (exit.how, exit.code, exit.limit) == (p.ExitHow.SIGNALED, 9, p.Limit.CPU)
    assert exit.cpu_us >= 400_000


def test_sleeping_uses_no_cpu_time(agent: AgentProcess) -> None:
    agent.start(shell("sleep 0.5", cpu_ms=300))
    exit = ended(agent)
    assert (exit.code, exit.limit) == (0, p.Limit.NONE)
    assert exit.cpu_us < 300_000 <= exit.wall_us


def test_file_size(agent: AgentProcess) -> None:
    agent.start(shell("exec head -c 100000 /dev/zero > big", file_size=10_000))
    exit = ended(agent)
    assert (exit.how, exit.code, exit.limit) == (p.ExitHow.SIGNALED, 25, p.Limit.FILE_SIZE)


def test_memory(agent: AgentProcess) -> None:
    agent.start(shell("exec dd if=/dev/zero of=/dev/null bs=200M count=1", memory=32 * MIB))
    exit = ended(agent)
    if "memory" in _cgroup_controllers(agent):
        assert (exit.how, exit.code, exit.limit) == (p.ExitHow.SIGNALED, 9, p.Limit.MEMORY)
    else:  # a limit on private memory stands in: the program is refused it and says so itself
        assert (exit.how, exit.code, exit.limit) == (p.ExitHow.EXITED, 1, p.Limit.NONE)


@as_root
def test_fork_bomb(agent: AgentProcess) -> None:
    agent.start(shell("f() { f & f & f; }; f & exec sleep 1000", wall_ms=1000, processes=30, output=1000))
    exit = ended(agent)
    assert (exit.how, exit.code, exit.limit) == BY_WALL


def test_processes(agent: AgentProcess) -> None:
    agent.start(shell("for i in $(seq 60); do sleep 1000 & done; echo all; exit 3", processes=20))
    exit = ended(agent)
    assert exit.how == p.ExitHow.EXITED
    assert exit.code != 0
    if "pids" in _cgroup_controllers(agent):
        assert exit.limit == p.Limit.PROCESSES


@as_root
def test_killing_everything_kills_only_itself(agent: AgentProcess) -> None:
    agent.start(shell("kill -9 -1; echo alive"))
    exit = ended(agent)
    assert exit.limit == p.Limit.NONE


def test_killing_its_process_group(agent: AgentProcess) -> None:
    agent.start(shell("sleep 1000 & kill -9 0"))
    exit = ended(agent)
    assert (exit.how, exit.code, exit.limit) == (p.ExitHow.SIGNALED, 9, p.Limit.NONE)


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000 & echo out",
        "(sleep 1000 &) ; echo out",
        "setsid sh -c 'setsid sleep 1000 & sleep 1000' & echo out",
        "(trap '' TERM HUP; exec sleep 1000) & echo out",
        "(kill -STOP $(sh -c 'echo $PPID')) & echo out",
    ],
)
def test_what_a_program_leaves_is_killed_and_not_waited_for(agent: AgentProcess, script: str) -> None:
    agent.start(shell(script))
    exit = ended(agent)
    assert (exit.how, exit.code, exit.limit) == (p.ExitHow.EXITED, 0, p.Limit.NONE)
    assert exit.wall_us < 10_000_000


def test_many_orphans_are_reaped(agent: AgentProcess) -> None:
    agent.start(shell("for i in $(seq 100); do (true &); (sh -c 'exit 3' &); done; exec sleep 0.1"))
    assert ended(agent).code == 0
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
    assert not children.exists() or children.read_text() == ""


def test_floods_are_cut_and_the_program_goes_on(agent: AgentProcess) -> None:
    script = "head -c 40000000 /dev/zero & head -c 40000000 /dev/zero >&2; wait; echo the end > file; exit 4"
    agent.start(shell(script, output=100_001))
    result = agent.result()
    assert (len(result.stdout), len(result.stderr)) == (100_001, 100_001)
    assert (result.exit.how, result.exit.code, result.exit.limit, result.exit.cut) == (p.ExitHow.EXITED, 4, p.Limit.NONE, (True, True))
    assert (agent.work / "file").read_text() == "the end\n"


def test_output_of_just_the_limit_is_not_cut(agent: AgentProcess) -> None:
    agent.start(shell("head -c 70000 /dev/zero; head -c 70001 /dev/zero >&2", output=70_000))
    result = agent.result()
    assert (len(result.stdout), len(result.stderr), result.exit.cut) == (70_000, 70_000, (False, True))


def stuck(agent: AgentProcess) -> bool:
    """Whether its program waits for it, and it waits for us: nothing moves until we read."""
    before = unread(agent)
    asleep = all(state(pid) == "S" for pid in (*family(agent.process.pid), agent.process.pid))  # itself last
    return asleep and unread(agent) == before > 0


def unread(agent: AgentProcess) -> int:
    return int.from_bytes(fcntl.ioctl(agent.socket, termios.FIONREAD, bytes(4)), sys.byteorder)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def family(pid: int) -> list[int]:
    """All descendants of a process."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [member for child in children for member in (*family(child), child)]


def test_a_host_that_does_not_read_stops_the_program_and_the_clock(agent: AgentProcess) -> None:
    size = 8 * MIB
    began = time.monotonic()
    agent.start(shell(f"head -c {size} /dev/zero; echo end >&2"))
    agent.expect(p.Stage)
    while not stuck(agent):
        os.sched_yield()
    stopped = time.monotonic()
    time.sleep(1)  # this pause is what is tested
    stopped -= time.monotonic()
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    resident_kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident_kib < 4096, "what waits for the host is bounded"
    result = agent.result()
    assert (len(result.stdout), result.stderr) == (size, b"end\n")
    assert (result.exit.code, result.exit.limit) == (0, p.Limit.NONE)
    assert result.exit.wall_us / 1e6 <= time.monotonic() - began + stopped, "the clock stood still meanwhile"


def test_limits_of_one_step_are_not_those_of_the_next(agent: AgentProcess) -> None:
    agent.start(shell("head -c 200 /dev/zero", "a", output=100, file_size=1000), shell("head -c 2000 /dev/zero | tee f", "b"))
    result = agent.result()
    assert [exit.cut for exit in result.exits] == [(True, False), (False, False)]
    assert len(result.stdout) == 2100


def test_text_that_is_not_utf8(agent: AgentProcess) -> None:
    agent.start(shell(r"printf '\377\300\333\0\n'; printf '\300\301' >&2"))
    result = agent.result()
    assert (result.stdout, result.stderr) == (b"\xff\xc0\xdb\0\n", b"\xc0\xc1")
