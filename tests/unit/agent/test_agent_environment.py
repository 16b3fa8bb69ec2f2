"""What a program meets, what it leaves, and how its end is told."""

import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.protocol import frames as p
from tests.kit.agent_process import PATIENCE_S, AgentProcess, shell
from tests.kit.agent_process import agent as agent
from tests.kit.agent_process import executable as executable

TURNS = "import os\nfor n in range(600): os.write(1 + n % 2, b'%d\\n' % n)\n"
MACHINES = {"x86_64": 62, "aarch64": 183}
RIGHTS_RW, RIGHTS_RX = 6, 5


def python(source: str, **limits: object) -> p.Step:
    """A step that runs Python's source."""
    return p.Step("run", ("/usr/bin/python3", "-c", source), **{"wall_ms": 20_000, **limits})  # type: ignore[arg-type]


def numbers(messages: list[p.Message]) -> list[int]:
    """The numbers that were written to both streams, in the order in which they came."""
    output = b"".join(message.data for message in messages if isinstance(message, p.Stdout | p.Stderr))
    return [int(number) for number in output.split()]


def test_the_streams_keep_their_order(agent: AgentProcess) -> None:
    os.sched_setaffinity(agent.process.pid, {min(os.sched_getaffinity(0))})
    for run in (1, 2, 3):
        agent.start(python(TURNS), run=run)
        assert numbers(agent.result().messages) == list(range(600))


def test_the_streams_keep_their_order_on_all_processors(agent: AgentProcess) -> None:
    agent.start(python(TURNS))
    assert numbers(agent.result().messages) == list(range(600))


def test_a_large_write_and_a_small_one_keep_their_order(agent: AgentProcess) -> None:
    source = "import os\nfor n in range(4): os.write(1, b'%d ' % n * 40000 + b'\\n'); os.write(2, b'|')\n"
    agent.start(python(source))
    output = b"".join(message.data for message in agent.result().messages if isinstance(message, p.Stdout | p.Stderr))
    assert output == b"".join(b"%d " % n * 40000 + b"\n|" for n in range(4))


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody tells of."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never comes"


def sleeps(pid: str) -> bool:
    """Whether a process waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("size", ["1", "4095", "4097", "8191", "100_000 * (n % 40 == 20)", "1_500_000 * (n % 100 == 50)"])
def test_streams_that_meet_full_pipes_keep_their_order(agent: AgentProcess, size: str) -> None:
    source = f"""
import os
while not os.path.exists("go"): pass
os.unlink("go")
for n in range(700): os.write(1 + n % 2, (b"%d" % n).ljust({size} - 1) + b"\\n")
"""
    agent.start(python(source, wall_ms=0))
    agent.expect(p.Stage)
    agent.process.send_signal(signal.SIGSTOP)
    try:
        (agent.work / "go").touch()
        until(lambda: not (agent.work / "go").exists())
        (pid,) = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
        # From here on it does nothing but write.
        until(lambda: sleeps(pid))
    finally:
        agent.process.send_signal(signal.SIGCONT)
    assert numbers(agent.result().messages) == list(range(700))


def test_output_through_a_file_that_is_opened_anew_is_whole(agent: AgentProcess) -> None:
    agent.start(shell("for n in 1 2 3 4 5; do echo $n; echo $n >/dev/stdout; echo $n >/dev/stderr; done"))
    result = agent.result()
    assert sorted(result.stdout.split()) == sorted(b"1 1 2 2 3 3 4 4 5 5".split())
    assert result.stderr == b"1\n2\n3\n4\n5\n"


def test_a_million_bytes_in_single_writes_are_whole(agent: AgentProcess) -> None:
    agent.start(python("import os\nfor n in range(20000): os.write(1, b'x' * 50)\n", wall_ms=60_000))
    assert agent.result().stdout == b"x" * 1_000_000


def test_the_streams_are_pipes(agent: AgentProcess) -> None:
    source = "import os, stat\nprint([(stat.S_ISFIFO(os.fstat(n).st_mode), os.isatty(n)) for n in (1, 2)])"
    agent.start(python(source))
    assert agent.result().stdout == b"[(True, False), (True, False)]\n"


def test_a_program_has_a_home_and_a_locale(agent: AgentProcess) -> None:
    agent.start(shell('cd; pwd; : >"$HOME/file" && echo "$LANG" "$SHELL"'))
    assert agent.result().stdout.decode().splitlines() == [str(agent.work), "C.UTF-8 /bin/sh"]


def test_what_start_sets_comes_before_the_agents_own(agent: AgentProcess) -> None:
    agent.start(shell("echo $HOME $LANG", env=(("HOME", "/elsewhere"), ("LANG", ""))))
    assert agent.result().stdout == b"/elsewhere\n"


def test_the_working_directory_is_in_the_environment(agent: AgentProcess) -> None:
    agent.start(p.Step("run", ("printenv", "PWD"), cwd="/work/a"), files=[("a/b", b"")])
    assert agent.result().stdout.decode() == f"{agent.work}/a\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can begin an IPC namespace")
def test_nothing_of_system_v_or_posix_outlives_a_run(agent: AgentProcess) -> None:
    leave = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.shmget(4711, 4096, 0o1666) >= 0, ctypes.get_errno()
assert libc.semget(4711, 1, 0o1666) >= 0, ctypes.get_errno()
assert libc.msgget(4711, 0o1666) >= 0, ctypes.get_errno()
assert libc.mq_open(b"/mayfly-test", 0o102, 0o666, None) >= 0, ctypes.get_errno()
print("left")
"""
    look = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print([len(open(f"/proc/sysvipc/{kind}").readlines()) - 1 for kind in ("shm", "sem", "msg")])
print(libc.mq_open(b"/mayfly-test", 0))
"""
    agent.start(python(leave))
    result = agent.result()
    assert result.stdout == b"left\n", result.stderr
    agent.start(python(look), run=2)
    assert agent.result().stdout == b"[0, 0, 0]\n-1\n"


def test_no_socket_outlives_a_run(agent: AgentProcess) -> None:
    source = """
import socket, subprocess, sys, time
if len(sys.argv) == 1:
    command = [sys.executable, "leave.py", "child"]
    subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE).stdout.readline()
else:
    s = socket.socket(socket.AF_UNIX); s.bind("\\0mayfly-test-%d"); s.listen()
    print("bound", flush=True)
    time.sleep(1000)
""".replace("%d", str(os.getpid()))
    agent.start(p.Step("run", ("/usr/bin/python3", "leave.py")), files=[("leave.py", source.encode())])
    assert agent.result().exit.code == 0
    agent.start(python(f"import socket; socket.socket(socket.AF_UNIX).bind('\\0mayfly-test-{os.getpid()}'); print('free')"), run=2)
    assert agent.result().stdout == b"free\n"


def elf(memory: int) -> bytes:
    """A program with an array of `memory` bytes, and no instruction that is one."""
    base = 0x40_0000
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, MACHINES[os.uname().machine], 1, base + 176, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    text = struct.pack("<IIQQQQQQ", 1, RIGHTS_RX, 0, base, base, 192, 192, 0x1000)
    data = struct.pack("<IIQQQQQQ", 1, RIGHTS_RW, 0, base + 0x10000, base + 0x10000, 0, memory, 0x1000)
    return header + text + data + bytes(16)


@pytest.mark.parametrize(("memory", "limit"), [(1 << 45, p.Limit.MEMORY), (4096, p.Limit.NONE)], ids=["larger than the machine", "small"])
def test_a_program_too_large_for_the_memory_trips_its_limit(agent: AgentProcess, memory: int, limit: p.Limit) -> None:
    agent.start(p.Step("run", ("./main",), memory=64 << 20), files=[("main", elf(memory))], mode=0o755)
    ended = agent.result().exit
    assert (ended.how, ended.limit) == (p.ExitHow.SIGNALED, limit)
    assert ended.code in (4, 11)
