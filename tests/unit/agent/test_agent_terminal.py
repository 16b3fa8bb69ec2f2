"""A step at a terminal: what is typed, what is shown, its size, and its end."""

import re
from pathlib import Path
from typing import Any

import pytest

from mayfly.protocol import frames as p
from tests.kit.agent_process import AgentProcess, Result, processes_of, shell
from tests.kit.agent_process import agent as agent
from tests.kit.agent_process import executable as executable
from tests.kit.processor_time import processor_s


def at_terminal(script: str, **settings: Any) -> p.Step:
    return shell(script, "run", **{"stdin": True, "columns": 80, "rows": 24, **settings})


def until(agent: AgentProcess, text: bytes) -> bytes:
    """The output up to a text, and to the end of its frame."""
    found = b""
    while text not in found:
        message = agent.receive().message
        assert isinstance(message, p.Stage | p.Stdout | p.Credit), message
        found += message.data if isinstance(message, p.Stdout) else b""
    return found


def typed(agent: AgentProcess, script: str, *messages: p.Message, **settings: Any) -> Result:
    """What a program does that says `ready` (at its `READY`) and then gets these messages."""
    agent.start(at_terminal(script.replace("READY", "echo ready"), **settings))
    assert until(agent, b"\n") == b"ready\r\n"
    agent.send(*messages)
    return agent.result()


def test_the_program_is_at_a_terminal_of_its_own(agent: AgentProcess) -> None:
    script = "test -t 0 && test -t 1 && stty size && echo $TERM >/dev/tty && echo out >/dev/stdout && tty >&2"
    agent.start(at_terminal(script, columns=132, rows=43))
    result = agent.result()
    assert re.fullmatch(rb"43 132\r\nxterm-256color\r\nout\r\n/dev/pts/\d+\r\n", result.stdout)
    assert (result.stderr, result.exit.code, result.exit.cut) == (b"", 0, (False, False))


def test_term_is_what_start_says(agent: AgentProcess) -> None:
    agent.start(at_terminal("echo $TERM", env=(("TERM", "dumb"),)))
    assert agent.result().stdout == b"dumb\r\n"


def test_what_is_typed_is_echoed_and_read_by_lines(agent: AgentProcess) -> None:
    agent.start(at_terminal("echo ready; read name; echo hello $name; read again; echo $again"))
    until(agent, b"ready\r\n")
    agent.send(p.Stdin(b"Ax\x7fda\r"))
    assert until(agent, b"hello Ada\r\n") == b"Ax\b \bda\r\nhello Ada\r\n"
    agent.send(p.Stdin("ö\x7fyou\n".encode()))
    assert agent.result().stdout == "ö\b \byou\r\nyou\r\n".encode()


def test_only_the_step_that_asks_has_one(agent: AgentProcess) -> None:
    agent.start(shell("test -t 1 || echo pipe; echo err >&2", "build"), at_terminal("test -t 1 && echo terminal"))
    result = agent.result()
    assert (result.stdout, result.stderr) == (b"pipe\nterminal\r\n", b"err\n")


def test_without_standard_input_it_can_still_be_written_to(agent: AgentProcess) -> None:
    agent.start(at_terminal("test -t 0 && test -t 1 && echo both", stdin=False))
    assert agent.result().stdout == b"both\r\n"


def test_ctrl_c_interrupts_the_foreground(agent: AgentProcess) -> None:
    result = typed(agent, "trap 'echo caught; exit 3' INT; READY; while :; do sleep 0.01; done", p.Stdin(b"\x03"))
    assert (result.stdout, result.exit.code) == (b"^Ccaught\r\n", 3)


def test_a_signal_of_the_host_comes_too(agent: AgentProcess) -> None:
    result = typed(agent, "trap 'exit 4' TERM; READY; while :; do sleep 0.01; done", p.Signal(15))
    assert result.exit.code == 4


def test_another_size(agent: AgentProcess) -> None:
    result = typed(agent, "trap 'stty size; exit' WINCH; READY; while :; do sleep 0.01; done", p.Resize(columns=100, rows=30))
    assert result.stdout == b"30 100\r\n"


def test_another_size_for_no_terminal_is_dropped(agent: AgentProcess) -> None:
    agent.send(p.Resize(100, 30), run=0)
    agent.start(shell("echo ready; cat", stdin=True))
    agent.send(p.Resize(100, 30), p.StdinEof())
    assert (agent.result().stdout, agent.waiting) == (b"ready\n", [])
    agent.send(p.Resize(100, 30))
    agent.start(shell("true"), run=2)
    assert agent.result().exit.code == 0


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        ((), b"0\r\n"),
        ((p.Stdin(b"line\n"),), b"line\r\n5\r\n"),
        ((p.Stdin(b"part"),), b"part4\r\n"),
        ((p.Stdin(b"line\r"), p.Stdin(b"part")), b"line\r\npart9\r\n"),
    ],
)
def test_the_end_of_input_ends_the_programs_input(agent: AgentProcess, messages: tuple[p.Message, ...], shown: bytes) -> None:
    result = typed(agent, "READY; wc -c", *messages, p.StdinEof())
    assert (result.stdout, result.exit.code, result.errors) == (shown, 0, [])


def test_the_end_of_input_may_come_before_the_program(agent: AgentProcess) -> None:
    agent.start(shell("until [ -e go ]; do sleep 0.01; done", "build"), at_terminal("wc -c"))
    agent.expect(p.Credit)
    agent.send(p.Stdin(b"abc\n"), p.StdinEof())
    (agent.work / "go").write_bytes(b"")
    assert agent.result().stdout.endswith(b"4\r\n")


def test_much_output_comes_whole_and_before_the_exit(agent: AgentProcess) -> None:
    agent.start(at_terminal("seq 1 30000"))
    assert agent.result().stdout == b"".join(b"%d\r\n" % number for number in range(1, 30001))


def test_output_over_its_limit_is_cut(agent: AgentProcess) -> None:
    agent.start(at_terminal("seq 1 30000", output=1000))
    result = agent.result()
    assert (len(result.stdout), result.exit.cut, result.exit.code) == (1000, (True, False), 0)


def test_output_waits_for_the_host(agent: AgentProcess) -> None:
    """Nothing is lost while nobody reads the channel."""
    agent.start(at_terminal("stty -opost; head -c 3000000 /dev/zero | tr '\\0' x; echo over >file"))
    agent.expect(p.Credit)
    agent.expect(p.Stage)
    agent.start(shell("true"))  # answered with ERROR 6, in order, once there is room
    result = agent.result()
    assert result.stdout == b"x" * 3_000_000


def test_much_input_flows_against_credit(agent: AgentProcess) -> None:
    data = bytes(range(1, 255)) * 1000
    agent.start(at_terminal(f"stty raw -echo; echo ready; head -c {len(data)} | cksum"))
    credit, at, result = 0, 0, b""
    ready = False
    while True:
        message = agent.receive().message
        if isinstance(message, p.Credit):
            credit += message.count
        elif isinstance(message, p.Stdout):
            result += message.data
            ready = ready or b"ready" in result
        elif isinstance(message, p.Done):
            break
        while ready and credit and at < len(data):
            size = min(credit, 4096, len(data) - at)
            agent.send(p.Stdin(data[at : at + size]))
            at, credit = at + size, credit - size
    assert result.split()[-1] == str(len(data)).encode()


def test_what_the_program_leaves_at_the_terminal_is_killed(agent: AgentProcess) -> None:
    agent.start(at_terminal("trap '' HUP; sleep 61 & setsid sleep 62 & echo over"))
    result = agent.result()
    assert (result.stdout, result.exit.code) == (b"over\r\n", 0)
    assert [line for line in processes_of() if "sleep" in line] == []


def test_a_program_that_leaves_its_terminal_costs_nothing(agent: AgentProcess) -> None:
    before = processor_s(agent.process.pid)
    agent.start(at_terminal("echo left; exec 0<&- 1>&- 2>&-; sleep 1; echo back >/dev/tty; exit 5"))
    result = agent.result()
    assert (result.stdout, result.exit.code) == (b"left\r\nback\r\n", 5)
    assert processor_s(agent.process.pid) - before < 0.5


def test_a_limit_ends_it(agent: AgentProcess) -> None:
    agent.start(at_terminal("echo before; exec sleep 60", wall_ms=300))
    result = agent.result()
    assert (result.stdout, result.exit.limit) == (b"before\r\n", p.Limit.WALL)


@pytest.mark.parametrize("size", [(0, 24), (80, 0)])
def test_a_terminal_of_no_size_is_refused(agent: AgentProcess, size: tuple[int, int]) -> None:
    agent.start(at_terminal("true", columns=size[0], rows=size[1]))
    assert agent.expect(p.Error).code is p.ErrorCode.START_REFUSED


def test_runs_at_terminals_leave_no_descriptor(agent: AgentProcess) -> None:
    def descriptors() -> set[str]:
        return {str(link.readlink()) for link in Path(f"/proc/{agent.process.pid}/fd").iterdir()}

    agent.start(at_terminal("true"))
    agent.result()
    before = descriptors()
    for number in range(2, 5):
        agent.start(at_terminal("cat"), run=number)
        agent.send(p.StdinEof(), run=number)
        assert agent.result().exit.code == 0
    assert descriptors() == before
    assert not any("ptmx" in name or "pts" in name for name in before)
