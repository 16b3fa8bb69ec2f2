"""The agent as an ordinary process: runs, their order, files, input, refusals, and the end."""

import os
import re
from pathlib import Path

import pytest

from mayfly.protocol import frames as p
from mayfly.units import MIB
from tests.kit.agent_process import UID, AgentProcess, processes_of, shell
from tests.kit.agent_process import agent as agent
from tests.kit.agent_process import executable as executable

NO_STEP = p.Step("run", ("true",))


def test_two_steps_with_files_and_environment(agent: AgentProcess) -> None:
    build = shell('cp src/in.txt out.txt; echo "$GREETING" >> out.txt; umask', "build", env=(("GREETING", "gr\udcfc\udcdf"),))
    agent.start(build, shell("cat out.txt; ls -l /proc/self/fd >&2", "run"), files=[("src/in.txt", b"a\xff\n"), ("/work/empty", b"")])
    result = agent.result()
    assert result.stages == ["build", "run"]
    assert result.stdout == b"0022\na\xff\ngr\xfc\xdf\n"
    assert [(e.step, e.how, e.code, e.limit, e.cut) for e in result.exits] == [
        (0, p.ExitHow.EXITED, 0, p.Limit.NONE, (False, False)),
        (1, p.ExitHow.EXITED, 0, p.Limit.NONE, (False, False)),
    ]
    assert all(e.wall_us > 0 and e.peak_memory > 0 for e in result.exits)
    assert re.findall(rb" (\d+) -> (\S+):", result.stderr) == [(b"0", b""), (b"1", b"pipe"), (b"2", b"pipe")][1:]
    assert len(result.stderr.splitlines()) == 5, "0, 1, 2, the folder itself and the total"
    assert (agent.work / "empty").stat().st_size == 0


def test_a_failed_step_is_the_last(agent: AgentProcess) -> None:
    agent.start(shell("echo no >&2; exit 101", "build"), shell("echo never"))
    result = agent.result()
    assert (result.stages, result.stderr, result.stdout, result.exit.code) == (["build"], b"no\n", b"", 101)


@pytest.mark.parametrize(
    ("step", "errno"),
    [
        (p.Step("run", ("no-such-program",)), 2),
        (p.Step("run", ("/no/such/program",)), 2),
        (p.Step("run", ("./data",)), 13),
        (p.Step("run", ("true",), cwd="/work/nowhere"), 2),
        (p.Step("run", ("/proc/self/environ",)), 13),
    ],
    ids=["name", "path", "not executable", "cwd", "not ours"],
)
def test_a_program_that_cannot_start(agent: AgentProcess, step: p.Step, errno: int) -> None:
    agent.start(step, shell("echo never"), files=[("data", b"#!/bin/sh\n")])
    assert agent.result().exit == p.Exit(0, p.ExitHow.NOT_STARTED, errno, p.Limit.NONE, 0, 0, 0, (False, False))
    agent.start(shell("echo still here"), run=2)
    assert agent.result().stdout == b"still here\n"


def test_an_executable_file_of_the_host(agent: AgentProcess) -> None:
    agent.start(p.Step("run", ("./script", "a b", "\udcff")), files=[("script", b'#!/bin/sh\nprintf "%s|" "$@"')], mode=0o755)
    assert agent.result().stdout == b"a b|\xff|"


def test_program_ends_by_a_signal(agent: AgentProcess) -> None:
    agent.start(shell("kill -SEGV $$"))
    assert (agent.result().exit.how, agent.waiting) == (p.ExitHow.SIGNALED, [])


def test_signal_reaches_every_process_of_the_step(agent: AgentProcess) -> None:
    # The parent has its trap before its child can say that it is ready.
    agent.start(shell("trap 'wait; exit 5' TERM; sh -c 'trap \"echo child; exit\" TERM; echo ready; sleep 60 & wait' & wait"))
    agent.expect(p.Stage)
    assert agent.expect(p.Stdout).data == b"ready\n"
    agent.send(p.Signal(15), p.Signal(0), p.Signal(200))
    result = agent.result()
    assert result.exit.code in (5, 128 + 15)
    assert result.stdout == b"child\n"


def test_output_comes_while_the_program_runs(agent: AgentProcess) -> None:
    agent.start(shell("echo one; read line; echo two $line >&2", stdin=True))
    assert agent.expect(p.Credit).count == 65536
    agent.expect(p.Stage)
    assert agent.expect(p.Stdout).data == b"one\n"
    agent.send(p.Stdin(b"now\n"))
    assert agent.expect(p.Stderr).data == b"two now\n"
    assert agent.result().exit.code == 0


def test_stdin_flows_against_credit(agent: AgentProcess) -> None:
    data = bytes(range(256)) * 2000
    agent.start(shell("cat; echo end", stdin=True))
    sent, granted, got = 0, 0, b""
    while not got.endswith(b"end\n"):
        message = agent.receive().message
        got += message.data if isinstance(message, p.Stdout) else b""
        if isinstance(message, p.Credit):
            granted += message.count
            assert granted - min(sent, len(data)) <= 65536, "no more is under way than the window"
            piece = data[sent:granted]
            sent += len(piece)
            agent.send(*(p.Stdin(piece[at : at + 9000]) for at in range(0, len(piece), 9000)))
            if sent == len(data):
                agent.send(p.StdinEof())
                sent += 1
    assert got == data + b"end\n"
    assert agent.result().exit.code == 0


def test_stdin_waits_for_the_step_that_takes_it(agent: AgentProcess) -> None:
    agent.start(shell("cat; echo built", "build"), shell("cat", "run", stdin=True))
    agent.send(p.Stdin(b"early"), p.StdinEof())
    assert agent.result().stdout == b"built\nearly"


def test_no_stdin_step_means_no_credit(agent: AgentProcess) -> None:
    agent.start(shell("cat"))
    agent.send(p.Stdin(b"dropped in silence"))
    result = agent.result()
    assert [type(message) for message in result.messages] == [p.Stage, p.Exit, p.Done]


@pytest.mark.parametrize("script", ["exit 0", "exec 0<&-; echo closed; sleep 0.2", "head -c 1 >/dev/null"])
def test_program_that_takes_no_more_stdin(agent: AgentProcess, script: str) -> None:
    agent.start(shell(script, stdin=True))
    agent.send(*[p.Stdin(b"x" * 8192)] * 8)
    result = agent.result()
    assert (result.exit.how, result.exit.code, result.errors) == (p.ExitHow.EXITED, 0, [])
    agent.send(p.Stdin(b"late"), p.StdinEof())
    agent.start(shell("echo next"), run=2)
    assert agent.result().stdout == b"next\n"


def test_stdin_beyond_credit_is_an_error_and_dropped(agent: AgentProcess) -> None:
    agent.start(shell("exec sleep 1000", stdin=True))
    agent.expect(p.Credit)
    agent.send(*[p.Stdin(b"x" * 65536)] * 4)  # the pipe and the agent together hold half of that
    while not isinstance(message := agent.receive().message, p.Error):
        assert isinstance(message, p.Stage | p.Credit)
    assert message.code == p.ErrorCode.WRONG_STATE
    agent.send(p.Signal(15))
    assert agent.result().exit.code == 15


def test_runs_follow_one_another_with_nothing_left(agent: AgentProcess) -> None:
    for run in range(1, 6):
        agent.start(shell("ls -a; mkdir -p a/b; touch left a/b/c; ln -s /etc link"), files=[(f"file{run}", b"")], run=run)
        result = agent.result()
        assert result.stdout.split() == [b".", b"..", f"file{run}".encode()]
        assert result.exit.code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="the agent forbids others to look at its descriptors")
def test_no_descriptor_is_left_open(agent: AgentProcess) -> None:
    def run(number: int) -> int:
        agent.start(shell("cat", stdin=True), p.Step("gone", ("no-such-program",)), files=[("a", b"x")], run=number)
        agent.send(p.StdinEof(), run=number)
        assert [exit.how for exit in agent.result().exits] == [p.ExitHow.EXITED, p.ExitHow.NOT_STARTED]
        agent.send(p.Collect(("/work",)), run=number)
        assert [message for message in agent.until(p.Collected) if isinstance(message, p.Collected)]
        while not agent.expect(p.Collected, run=number).last:
            pass
        return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))

    first = run(1)
    assert [run(number) for number in range(2, 6)] == [first] * 4


def test_collect(agent: AgentProcess) -> None:
    script = "mkdir -p out/sub out/empty; head -c 100000 /dev/zero > out/big; printf x > out/sub/x; : > out/none"
    agent.start(shell(script + "; ln -s /etc out/link; mkfifo out/fifo"))
    assert agent.result().exit.code == 0
    agent.send(p.Collect(("/work/out", "/work/out/sub/x")))
    files: dict[int, bytes] = {}
    heads: dict[int, p.FileEntry] = {}
    ended: list[int] = []
    for message in agent.until(p.Collected):
        assert isinstance(message, p.Collected)
        while not message.last:
            if message.head:
                heads[message.index] = message.head
            files[message.index] = files.get(message.index, b"") + message.data
            ended += [message.index] * message.ends
            message = agent.expect(p.Collected)
    assert [(head.path, head.mode, head.size) for head in heads.values()] == [
        ("/work/out", 0o040755, 0),
        ("/work/out/big", 0o100644, 100_000),
        ("/work/out/empty", 0o040755, 0),
        ("/work/out/none", 0o100644, 0),
        ("/work/out/sub", 0o040755, 0),
        ("/work/out/sub/x", 0o100644, 1),
        ("/work/out/sub/x", 0o100644, 1),
    ]
    assert ended == list(range(7))
    assert [len(data) for data in files.values()] == [head.size for head in heads.values()]


@pytest.mark.parametrize("path", ["/work/nothing", "work", "/work/../etc", "/work/link", "/work/link/passwd"])
def test_collect_refuses(agent: AgentProcess, path: str) -> None:
    agent.start(shell("ln -s /etc link"))
    agent.result()
    agent.send(p.Collect((path,)))
    assert agent.expect(p.Error).code == p.ErrorCode.COLLECT_FAILED
    agent.start(shell("echo next"), run=2)
    assert agent.result().stdout == b"next\n"


FILE = p.FileEntry("a", 0o644, 1)


@pytest.mark.parametrize(
    ("start", "run", "why"),
    [
        (p.Start((), (NO_STEP,), ()), 0, "never 0"),
        (p.Start((), (), ()), 1, "0 steps"),
        (p.Start((), (NO_STEP,), (), from_products=True), 1, "no run has left products"),
        (p.Start((), (p.Step("x", ("true",), columns=80),), ()), 1, "both columns and rows"),
        (p.Start((), (NO_STEP,) * 256, ()), 1, "256 steps"),
        (p.Start((), (NO_STEP, p.Step("x", ())), ()), 1, "step 1: there is no program"),
        (p.Start((), (p.Step("x", ("true",), cwd="work"),), ()), 1, "not absolute"),
        (p.Start((), (p.Step("x", ("true",), stdin=True),) * 2, ()), 1, "more than one step"),
        (p.Start((("A=B", "c"),), (NO_STEP,), ()), 1, "not a name of an environment variable"),
        (p.Start((), (NO_STEP,), (p.FileEntry("../x", 0o644, 1),)), 1, "none beneath /work"),
        (p.Start((), (NO_STEP,), (FILE, FILE)), 1, "file 1: .* twice"),
        (p.Start((), (NO_STEP,), (p.FileEntry("a", 0o4755, 1),)), 1, "permission bits"),
        (p.Start((), (NO_STEP,), (p.FileEntry("a", 0o644, 16 * MIB), p.FileEntry("b", 0o644, 1))), 1, "16777217 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_start_refused(agent: AgentProcess, start: p.Start, run: int, why: str) -> None:
    agent.send(start, run=run)
    error = agent.expect(p.Error, run=run)
    assert error.code == p.ErrorCode.START_REFUSED
    assert re.search(why, error.message)
    agent.start(shell("echo next"), run=2)
    assert agent.result().stdout == b"next\n"


@pytest.mark.parametrize(
    "message",
    [p.Begin(), p.File(0, 0, b"xy"), p.File(0, 2**64 - 1, b"x"), p.File(1, 0, b"x")],
    ids=["missing", "beyond", "wraps", "unknown"],
)
def test_file_that_is_not_as_announced_ends_the_run(agent: AgentProcess, message: p.Message) -> None:
    agent.send(p.Start((), (NO_STEP,), (FILE,)), message, p.File(0, 0, b"x"), p.Begin())
    assert agent.expect(p.Error).code == p.ErrorCode.FILE_NOT_WRITTEN
    agent.expect(p.Done)
    agent.start(shell("echo next"), run=2)
    assert agent.result().stdout == b"next\n"


def test_a_file_of_16_mib_in_pieces_out_of_order(agent: AgentProcess) -> None:
    chunk = 65000
    data = os.urandom(chunk) * (p.MAX_FILES_SIZE // chunk)
    agent.send(p.Start((("PATH", os.environ["PATH"]),), (p.Step("run", ("sha256sum", "big")),), (p.FileEntry("big", 0o600, len(data)),)))
    for at in reversed(range(0, len(data), chunk)):
        agent.send(p.File(0, at, data[at : at + chunk]))
    agent.send(p.Begin())
    result = agent.result()
    assert result.exit.code == 0
    assert (agent.work / "big").read_bytes() == data


def test_frames_in_the_wrong_state(agent: AgentProcess) -> None:
    agent.start(shell("read line; echo $line", stdin=True), files=[("a", b"x")])
    agent.expect(p.Credit)
    agent.expect(p.Stage)
    for message in (p.Start((), (NO_STEP,), ()), p.File(0, 0, b"x"), p.Begin(), p.Collect(("/work",))):
        agent.send(message)
        assert agent.expect(p.Error).code == p.ErrorCode.WRONG_STATE
    agent.send(p.Start((), (NO_STEP,), ()), run=2)
    assert agent.expect(p.Error, run=2).code == p.ErrorCode.WRONG_STATE
    agent.send(p.Resumed(0, bytes(16), "x", "", bytes(16)), run=0)
    assert agent.expect(p.Error, run=0).code == p.ErrorCode.WRONG_STATE
    agent.send(p.Stdin(b"unharmed\n"))
    assert agent.result().stdout == b"unharmed\n"


@pytest.mark.parametrize("kind", [p.Resumed, p.Moved])
def test_an_identity_is_for_machines(agent: AgentProcess, kind: type[p.Resumed] | type[p.Moved]) -> None:
    agent.send(kind(0, bytes(16), "x", "", bytes(16)), run=0)
    assert agent.expect(p.Error, run=0).code == p.ErrorCode.RESUMED_FAILED


def test_moved_is_taken_in_any_state(agent: AgentProcess) -> None:
    """An agent that is no machine's init cannot put it in force, and says so, but goes on."""
    moved = p.Moved(0, bytes(16), "", "", bytes(16))

    def send() -> None:
        agent.send(moved, run=0)
        assert agent.expect(p.Error, run=0).code == p.ErrorCode.RESUMED_FAILED

    agent.send(p.Start((), (shell("read line; echo $line; read line", stdin=True),), (p.FileEntry("a", 0o644, 1),)))
    agent.expect(p.Credit)
    send()
    agent.send(p.File(0, 0, b"x"), p.Begin())
    agent.expect(p.Stage)
    send()
    agent.send(p.Stdin(b"unharmed\n"))
    assert agent.expect(p.Stdout).data == b"unharmed\n"
    send()
    agent.send(p.StdinEof())
    agent.result()
    send()


def test_bad_frames_and_frames_of_other_runs_are_dropped(agent: AgentProcess) -> None:
    garbage = [b"\xc0garbage\xc0", b"\xdb\xdb\xc0", b"x" * 300_000 + b"\xc0", p.encode_frame(p.Done(), 1), b"\xc0" * 100]
    for piece in garbage:
        agent.send_bytes(piece)
    agent.start(shell("echo $0; cat", stdin=True), run=9)
    agent.send(p.Stdin(b"not for this run"), p.StdinEof(), p.Signal(9), run=8)
    for piece in garbage:
        agent.send_bytes(piece)
    agent.send(p.Stdin(b"for this one"), p.StdinEof(), run=9)
    assert agent.result().stdout == b"sh\nfor this one"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a step as another user")
def test_step_has_no_privileges(agent: AgentProcess) -> None:
    script = f"""
        grep -E '^(Uid|Gid|Groups|CapPrm|CapEff|CapInh|CapAmb|NoNewPrivs|SigBlk|SigIgn):' /proc/self/status
        ulimit -c; ulimit -n; ulimit -s; cat /proc/self/oom_score_adj
        kill -9 {os.getpid()} || kill -9 $PPID || echo no kill
        cat /proc/$PPID/environ /proc/$PPID/mem || echo no read
        echo 0 > /proc/$PPID/oom_score_adj || echo no write
        echo $$ > $(grep ^cgroup2 /proc/mounts | cut -d' ' -f2 | head -1)/cgroup.procs || echo no way out
    """
    agent.start(shell(script))
    lines = agent.result().stdout.decode().split("\n")
    assert dict(line.split(":\t", 1) for line in lines[:10]) == {
        "Uid": f"{UID}\t{UID}\t{UID}\t{UID}",
        "Gid": f"{UID}\t{UID}\t{UID}\t{UID}",
        "Groups": " ",
        **dict.fromkeys(["CapPrm", "CapEff", "CapInh", "CapAmb", "SigBlk", "SigIgn"], "0" * 16),
        "NoNewPrivs": "1",
    }
    assert lines[10:] == ["0", "1024", "65536", "1000", "no kill", "no read", "no write", "no way out", ""]


@pytest.mark.parametrize("ending", ["close", "shutdown"])
def test_the_channels_end_leaves_nothing(agent: AgentProcess, ending: str) -> None:
    agent.start(shell("trap '' TERM HUP INT; (setsid sleep 1000 &); setsid sh -c 'sleep 1000 & sleep 1000' & echo up; sleep 1000"))
    agent.expect(p.Stage)
    agent.expect(p.Stdout)
    if ending == "shutdown":
        agent.send(p.Shutdown(), run=0)
        with pytest.raises(EOFError):
            agent.receive()
    pid = agent.process.pid
    agent.__exit__()
    assert processes_of() == []
    cgroups = Path("/proc/self/mounts").read_text().splitlines()
    mounts = [Path(line.split()[1]) for line in cgroups if line.split()[2] == "cgroup2"]
    assert not [folder for mount in mounts for folder in mount.rglob(f"mayfly-agent-{pid}")]


def test_usage(executable: Path) -> None:
    for args in ([], ["--fd"], ["--fd", "x", "--work", "/tmp"], ["--work", "/tmp"], ["--what", "3"]):
        assert os.spawnv(os.P_WAIT, executable, [str(executable), *args]) == 2
