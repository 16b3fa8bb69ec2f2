"""Invariant: whatever the host sends, short of SHUTDOWN, the agent lives, answers in whole frames,
and runs the next program.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.protocol import frames as p
from tests.kit.agent_process import PATH_ENV, AgentProcess, build_agent, shell

RUNS = (1, 2, 3)
LAST = 99
run = st.sampled_from((0, *RUNS))
program = st.sampled_from([("true",), ("false",), ("cat",), ("no-such-program",), ("sh", "-c", "echo x; kill -9 $$"), ()])
# A function that says it is loaded, and answers what nobody asked it.
shim = ("sh", "-c", r"{ head -c 19 /dev/zero; sleep 0.01; printf '\001\000'; } >&3 || exit; cat <&3")
step = st.one_of(
    st.builds(
        p.Step, st.just("s"), program, st.sampled_from(["/work", "/", "nowhere", "/nowhere"]), wall_ms=st.just(2000), stdin=st.booleans()
    ),
    st.builds(p.Step, st.just("f"), program | st.just(shim), wall_ms=st.just(2000), function=st.just(True)),
)
path = st.sampled_from(["a", "b/c", "/work/d", "../e", "/etc/f", "a/g", ""])
entry = st.builds(p.FileEntry, path, st.sampled_from([0o644, 0o755, 0o4755]), st.integers(0, 20) | st.just(2**40))
message = st.one_of(
    st.builds(p.Start, st.just(PATH_ENV), st.lists(step, max_size=3).map(tuple), st.lists(entry, max_size=3).map(tuple)),
    st.builds(p.File, st.integers(0, 3), st.integers(0, 20), st.binary(max_size=20)),
    st.builds(p.Begin),
    st.builds(p.Stdin, st.binary(max_size=100)),
    st.builds(p.StdinEof),
    st.builds(p.Signal, st.sampled_from([0, 9, 15, 19, 64, 65, 255])),
    st.builds(p.Collect, st.lists(st.sampled_from(["/work", "/work/a", "x", "/work/../etc"]), max_size=2).map(tuple)),
    *(
        st.builds(kind, st.just(0), st.just(bytes(16)), st.sampled_from(["", "x"]), st.text(max_size=20), st.just(bytes(16)))
        for kind in (p.Resumed, p.Moved)
    ),
    st.builds(
        p.Request, st.integers(0, 1), st.sampled_from(["", "x" * 256]), st.integers(0, 3) | st.just(2**32 - 1), st.binary(max_size=3)
    ),
    st.builds(p.Stdout, st.binary(max_size=10)),
)
framed = st.builds(p.encode_frame, message, run)
piece = st.one_of(framed, framed, framed, st.binary(max_size=50), framed.map(lambda frame: frame[:-3]))


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentProcess]:
    with tempfile.TemporaryDirectory() as folder, AgentProcess(build_agent(), Path(folder) / "work") as process:
        Path(folder).chmod(0o755)
        process.expect(p.Hello, run=0)
        yield process


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(piece, max_size=12))
def test_agent_survives(agent: AgentProcess, pieces: list[bytes]) -> None:
    for data in pieces:
        agent.send_bytes(data)
    agent.send_bytes(p.END)
    for number in RUNS:  # end what may be under way
        agent.send(p.Begin(), p.StdinEof(), p.Signal(9), run=number)
    answer: p.Message | None = None
    while not isinstance(answer, p.Stage):
        agent.start(shell("echo $0 alive"), run=LAST)
        frame = agent.receive()
        while frame.run != LAST:
            frame = agent.receive()
        answer = frame.message
        if isinstance(answer, p.Error):
            assert answer.code == p.ErrorCode.WRONG_STATE
    assert agent.expect(p.Stdout, run=LAST).data == b"sh alive\n"
    assert agent.expect(p.Exit, run=LAST).code == 0
    agent.expect(p.Done, run=LAST)
    agent.start(shell("exit 3"), run=LAST + 1)
    assert agent.result().exit.code == 3
