"""What stands by: a program that is started in one run and becomes that of a step of the next."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from mayfly.protocol import frames as p
from mayfly.units import MIB
from tests.kit.agent_process import PATH_ENV, AgentProcess, Result, processes_of, shell
from tests.kit.agent_process import agent as agent
from tests.kit.agent_process import executable as executable

TOY = """
import os, resource, socket, sys
print("getting warm", flush=True)
channel = socket.socket(fileno=3)
channel.send(b"r")
told = b""
while piece := channel.recv(65536):
    told += piece
channel.close()
os.chdir(os.environ["PWD"])
argv = told.split(b"\\0")
assert argv.pop() == b""
exec(argv[2])
"""
"""Says that it is ready, and then does what its second argument says."""
MAY_LIMIT_OTHERS = bool(int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16) >> 24 & 1)
"""CAP_SYS_RESOURCE of capabilities(7), which root has, but often not in a container."""
others_limits = pytest.mark.skipif(not MAY_LIMIT_OTHERS, reason="without CAP_SYS_RESOURCE nobody sets other users' limits")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="without a user of its own nobody can tell what stands by")


def stand_by(agent: AgentProcess, source: str = TOY, **fields: object) -> None:
    """Have it stand by."""
    standby = p.Step("run", ("/usr/bin/python3", "-c", source), **{"standby": True, "wall_ms": 20_000, **fields})  # type: ignore[arg-type]
    agent.start(standby)
    result = agent.result()
    assert (result.stdout, result.stderr, result.errors) == (b"getting warm\n", b"", [])
    assert (result.exit.how, result.exit.code, result.exit.limit) == (p.ExitHow.EXITED, 0, p.Limit.NONE)
    assert len(processes_of()) == 1


def step(source: str = "print(os.getpid())", *arguments: str, **fields: object) -> p.Step:
    """A step that what stands by may do: its own program would say that it is started anew."""
    return p.Step("run", ("echo", "anew", source, *arguments), **{"by_standby": True, "wall_ms": 20_000, **fields})  # type: ignore[arg-type]


def done(agent: AgentProcess, *steps: p.Step, run: int = 2) -> Result:
    """A run after which nothing is alive."""
    agent.start(*steps, files=[("here", b"a file of the run")], run=run)
    result = agent.result()
    assert processes_of() == []
    assert result.errors == []
    return result


def processor_ticks(pid: int) -> int:
    """Hundredths of a second of a processor, of its own (proc(5), /proc/PID/stat)."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def was_used(result: Result) -> bool:
    return not result.stdout.startswith(b"anew")


def test_it_is_the_program_of_the_next_runs_step_once(agent: AgentProcess) -> None:
    stand_by(agent, stdin=True)
    source = "print(open('here').read(), argv[3:], sys.stdin.read()); sys.stderr.write('err'); sys.exit(7)"
    agent.start(step(source, "-x", "\udcff", "", stdin=True), files=[("here", b"a file")], run=2)
    agent.send(p.Stdin(b"some input"), p.StdinEof(), run=2)
    result = agent.result()
    assert result.stdout == b"a file [b'-x', b'\\xff', b''] some input\n"
    assert result.stderr == b"err"
    assert (result.exit.how, result.exit.code, result.exit.limit) == (p.ExitHow.EXITED, 7, p.Limit.NONE)
    assert processes_of() == []
    assert not was_used(done(agent, step(stdin=True), run=3))


def test_a_step_that_it_does_not_fit_is_started_as_always(agent: AgentProcess) -> None:
    others: list[dict[str, Any]] = [
        {"by_standby": False},
        {"name": "build"},
        {"cwd": "/"},
        {"env": (("A", "B"),)},
        {"stdin": True},
        {"columns": 80, "rows": 24},
        {"memory": 1 << 40},
    ]
    for number, fields in enumerate(others):
        stand_by(agent)
        result = done(agent, dataclasses.replace(step(), **fields), run=number + 2)
        assert not was_used(result), fields


def test_it_waits_for_its_step_and_does_not_hold_up_those_before(agent: AgentProcess) -> None:
    stand_by(agent)
    first = shell("sleep 1000 & exit 0", "build")
    result = done(agent, first, step("print('done')"))
    assert result.stages == ["build", "run"]
    # Where there are no control groups it ends with what the step before it left.
    assert result.stdout in {b"done\n", b"anew print('done')\n"}
    assert [exit.code for exit in result.exits] == [0, 0]


@pytest.mark.parametrize("child", [["sleep", "1000"], ["true"], ["sh", "-c", "(setsid sleep 1000 &)"]])
def test_a_child_that_it_should_not_have_holds_nothing_up(agent: AgentProcess, child: list[str]) -> None:
    agent.start(p.Step("run", ("/usr/bin/python3", "-c", f"import subprocess\nsubprocess.Popen({child})\n{TOY}"), standby=True))
    assert agent.result().exit.code == 0
    result = done(agent, shell("exit 0", "build"), step("print('done')"))
    assert [exit.code for exit in result.exits] == [0, 0]


def test_a_run_that_fails_before_its_step_ends_it(agent: AgentProcess) -> None:
    stand_by(agent)
    assert [exit.code for exit in done(agent, shell("exit 1", "build"), step()).exits] == [1]
    assert not was_used(done(agent, step(), run=3))


def test_one_that_has_died_is_not_missed(agent: AgentProcess) -> None:
    stand_by(agent)
    source = """
import os
os.kill(-1, 9)
try:
    own = lambda name: name.isdigit() and int(name) != os.getpid() and os.stat(f"/proc/{name}").st_uid == os.getuid()
    while any(map(own, os.listdir("/proc"))):
        pass
except FileNotFoundError:
    pass
"""
    killer = p.Step("build", ("/usr/bin/python3", "-c", source), wall_ms=20_000)
    assert not was_used(done(agent, killer, step()))


def test_one_that_is_not_ready_is_a_step_that_ends(agent: AgentProcess) -> None:
    agent.start(p.Step("run", ("sh", "-c", "echo no; exit 3"), standby=True))
    result = agent.result()
    assert (result.stdout, result.exit.code) == (b"no\n", 3)
    agent.start(p.Step("run", ("sh", "-c", "exec 3>&-; exit 0"), standby=True), run=2)
    assert agent.result().exit.code == 0
    assert not was_used(done(agent, step(), run=3))


def test_its_time_and_output_are_limited_from_then_on(agent: AgentProcess) -> None:
    stand_by(agent)
    result = done(agent, step("print('x' * 1000, flush=True)\nwhile True: pass", wall_ms=500, output=100))
    assert (len(result.stdout), result.exit.limit, result.exit.cut) == (100, p.Limit.WALL, (True, False))
    assert result.exit.wall_us >= 500_000


@others_limits
def test_its_limits_are_the_steps(agent: AgentProcess) -> None:
    stand_by(agent)
    assert done(agent, step("while True: pass", cpu_ms=300)).exit.limit is p.Limit.CPU
    stand_by(agent)
    source = "print(*(resource.getrlimit(name) for name in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)))"
    assert done(agent, step(source, file_size=1 << 16, cpu_ms=20_000)).stdout == b"(65536, 65536) (22, 23)\n"
    stand_by(agent, memory=100 * MIB)
    result = done(agent, step("held = bytearray(400 << 20); print('so much')", memory=100 * MIB))
    assert (result.stdout, result.exit.code != 0) == (b"", True)


@others_limits
def test_time_that_it_used_before_does_not_count(agent: AgentProcess) -> None:
    stand_by(agent, f"import time\nwhile time.process_time() < 1: pass\n{TOY}")
    result = done(agent, step("print('done')", cpu_ms=900))
    assert (result.stdout, result.exit.limit) == (b"done\n", p.Limit.NONE)
    assert result.exit.cpu_us < 900_000


@pytest.mark.skipif(MAY_LIMIT_OTHERS, reason="root may set other users' limits here")
def test_one_that_cannot_be_limited_is_not_used(agent: AgentProcess) -> None:
    stand_by(agent)
    assert not was_used(done(agent, step("print('by me')", file_size=1 << 16)))


def test_another_one_takes_its_place_and_both_end_with_the_agent(agent: AgentProcess) -> None:
    stand_by(agent)
    stand_by(agent, TOY + "print('second')")
    assert done(agent, step("print('it is the', end=' ')")).stdout == b"it is the second\n"
    stand_by(agent)


def test_what_cannot_stand_by_is_refused(agent: AgentProcess) -> None:
    for fields in ({"function": True}, {"columns": 80, "rows": 24}, {"by_standby": True}):
        agent.send(p.Start(PATH_ENV, (p.Step("run", ("true",), standby=True, **fields),), ()))
        assert agent.expect(p.Error).code is p.ErrorCode.START_REFUSED
    agent.send(p.Start(PATH_ENV, (p.Step("run", ("true",), standby=True),) * 2, ()))
    assert agent.expect(p.Error).code is p.ErrorCode.START_REFUSED


def test_a_run_of_the_same_number_that_fails_ends_it_too(agent: AgentProcess) -> None:
    """As in a restored machine, whose host begins to count anew."""
    stand_by(agent)
    assert [exit.code for exit in done(agent, shell("exit 1", "build"), step(), run=1).exits] == [1]


def test_one_that_closes_its_socket_before_it_is_ready_costs_nothing(agent: AgentProcess) -> None:
    agent.start(p.Step("run", ("sh", "-c", "exec 3>&-; sleep 1"), standby=True, wall_ms=20_000))
    before = processor_ticks(agent.process.pid)
    assert agent.result().exit.code == 0
    assert processor_ticks(agent.process.pid) - before < 50


@others_limits
def test_a_step_without_limits_has_none(agent: AgentProcess) -> None:
    stand_by(agent, file_size=1 << 16, cpu_ms=20_000)
    source = "print(*(resource.getrlimit(name) == (-1, -1) for name in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)))"
    assert done(agent, step(source)).stdout == b"True True\n"
