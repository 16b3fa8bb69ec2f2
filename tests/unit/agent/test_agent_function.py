"""Functions: what the agent passes on between the host and a shim, and what it does with one that
breaks the contract.
"""

import os
import re
from pathlib import Path

import pytest

from mayfly.protocol import frames as p
from tests.kit import shim
from tests.kit.agent_process import AgentProcess, Result, processes_of, shell
from tests.kit.agent_process import agent as agent
from tests.kit.agent_process import executable as executable
from tests.kit.shim import ECHO, function

JSON = "application/json"
ANSWER = p.ResponseKind.ANSWER


def load(agent: AgentProcess, handler: bytes = ECHO, *, output: int = 1 << 20, run: int = 1) -> bytes:
    """Load a function; what it printed meanwhile."""
    agent.start(function(output=output), files=[(shim.NAME, shim.HEAD + handler)], run=run)
    messages = list(agent.until(p.Loaded))
    assert isinstance(messages[0], p.Stage)
    return b"".join(message.data for message in messages if isinstance(message, p.Stdout | p.Stderr))


def request(agent: AgentProcess, data: bytes = b"", *, number: int = 7, content_type: str = "", run: int = 1) -> None:
    """Send a request in pieces."""
    for at in range(0, len(data) or 1, p.MAX_BODY_CHUNK):
        agent.send(p.Request(number, content_type, len(data), data[at : at + p.MAX_BODY_CHUNK]), run=run)


def respond(agent: AgentProcess) -> tuple[p.Response, bytes]:
    """The response, put together, and what was printed before its last frame."""
    log, data = b"", b""
    while True:
        message = agent.receive().message
        if isinstance(message, p.Stdout | p.Stderr):
            log += message.data
            continue
        assert isinstance(message, p.Response), message
        data += message.data
        assert message.data or not message.size
        if len(data) == message.size:
            message.data = data
            return message, log


def ask(agent: AgentProcess, data: bytes = b"", **fields: object) -> tuple[p.Response, bytes]:
    request(agent, data, **fields)  # type: ignore[arg-type]
    return respond(agent)


def end(agent: AgentProcess) -> Result:
    """What the function's end brings; then the agent takes the next run."""
    result = agent.result()
    agent.start(shell("echo next"), run=2)
    assert agent.result().stdout == b"next\n"
    return result


def test_requests_one_after_another(agent: AgentProcess) -> None:
    assert load(agent, b"print('up', flush=True)" + ECHO) == b"up\n"
    for number, content_type, data in [(0, "", b""), (0xFFFF_FFFF, JSON, b"[1]"), (5, "x" * 255, b"\xc0\xdb" * 100)]:
        response, log = ask(agent, data, number=number, content_type=content_type)
        assert response == p.Response(number, ANSWER, len(data), content_type, len(data), data)
        assert log == b""


def test_a_request_as_large_as_can_be_and_its_response(agent: AgentProcess) -> None:
    load(agent)
    data = os.urandom(1 << 20) * 6
    assert len(data) == p.MAX_BODY
    response, _ = ask(agent, data)
    assert response.data == data
    assert ask(agent, b"and then")[0].data == b"and then"


def test_the_steps_before_it_build_it(agent: AgentProcess) -> None:
    build = shell(f"cp draft {shim.NAME}", "build")
    agent.start(build, function(), files=[("draft", shim.HEAD + ECHO)])
    assert [type(message) for message in agent.until(p.Loaded)] == [p.Stage, p.Exit, p.Stage, p.Loaded]
    assert ask(agent, b"x")[0].data == b"x"


def test_a_program_has_descriptor_3_and_no_other(agent: AgentProcess) -> None:
    listed = b"""
names = sorted(os.listdir("/proc/self/fd"))[:-1]  # but for the folder's own
print(*names, os.readlink("/proc/self/fd/0"), os.readlink("/proc/self/fd/3")[:6], flush=True)
"""
    assert load(agent, listed + ECHO) == b"0 1 2 3 /dev/null socket\n"


def test_an_exception_is_a_response(agent: AgentProcess) -> None:
    load(agent, b"serve(lambda id, content_type, data: say(EXCEPTION, id, b'text/plain', b'no ' + data, us=10**12))")
    expected = p.Response(7, p.ResponseKind.EXCEPTION, 10**12, "text/plain", 6, b"no way")
    assert ask(agent, b"way")[0] == expected
    assert ask(agent, b"way")[0] == expected


LOGS = b"""
def handle(id, content_type, data):
    for line in range(int(data)):
        os.write(1 + line % 2, b"%d\\n" % line)
    say(ANSWER, id)
serve(handle)
"""


def test_the_log_of_a_request_comes_before_its_response_and_in_order(agent: AgentProcess) -> None:
    load(agent, LOGS)
    for lines in (1, 1000, 2, 0):
        _, log = ask(agent, b"%d" % lines)
        assert log.split() == [b"%d" % line for line in range(lines)]


def test_a_log_that_is_larger_than_all_buffers(agent: AgentProcess) -> None:
    """More than the pipes, the agent's queue and the channel take together."""
    load(agent, b"serve(lambda id, t, data: [[os.write(1, b'x' * 1000) for _ in range(3000)], say(ANSWER, id)])", output=0)
    for _ in range(2):
        assert ask(agent)[1] == b"x" * 3_000_000


def test_the_output_limit_is_each_requests_own(agent: AgentProcess) -> None:
    print_first = b"os.write(1, b'l' * 150)\n"
    handle = b"def handle(id, content_type, data):\n os.write(1, b'o' * len(data)); os.write(2, b'e' * 50); say(ANSWER, id)\nserve(handle)"
    assert load(agent, print_first + handle, output=100) == b"l" * 100
    for size in (99, 100, 101, 5000, 100):
        _, log = ask(agent, bytes(size))
        assert log.count(b"o") == min(size, 100)
        assert log.count(b"e") == 50


def test_a_program_that_never_stops_printing_keeps_no_response_back(agent: AgentProcess) -> None:
    flood = b"""
def flood():
    while True:
        os.write(2, b"x" * 100)
threading.Thread(target=flood, daemon=True).start()
"""
    load(agent, flood + ECHO, output=1000)
    for _ in range(5):
        assert ask(agent, b"through")[0].data == b"through"


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([p.Request(1, "", p.MAX_BODY + 1, b"x")], "too large"),
        ([p.Request(1, "x" * 256, 1, b"x")], "too large"),
        ([p.Request(1, "", 1, b"xy")], "more or fewer"),
        ([p.Request(1, "", 1, b"")], "more or fewer"),
        ([p.Request(1, "", 0, b"x")], "more or fewer"),
        ([p.Request(1, "", 3, b"x"), p.Request(1, "", 3, b"yzz"), p.Request(1, "", 3, b"yz")], "more or fewer"),
        ([p.Request(1, "", 3, b"x"), p.Request(1, "", 3, b""), p.Request(1, "", 3, b"yz")], "more or fewer"),
        ([p.Request(1, "", 3, b"x"), p.Request(2, "", 3, b"y"), p.Request(1, "", 3, b"yz")], "under way"),
        ([p.Request(1, "", 3, b"x"), p.Request(1, JSON, 3, b"y"), p.Request(1, "", 3, b"yz")], "under way"),
        ([p.Request(1, "", 3, b"x"), p.Request(1, "", 2, b"y"), p.Request(1, "", 3, b"yz")], "under way"),
        ([p.Request(1, "", 3, b"x"), p.Resumed(0, bytes(16), "x", "", bytes(16)), p.Request(1, "", 3, b"yz")], "RESUMED"),
    ],
)
def test_what_is_no_request_changes_nothing(agent: AgentProcess, messages: list[p.Message], why: str) -> None:
    load(agent)
    for message in messages:
        agent.send(message, run=0 if isinstance(message, p.Resumed) else 1)
    error = agent.receive().message
    assert isinstance(error, p.Error)
    assert error.code == p.ErrorCode.WRONG_STATE
    assert why in error.message
    if len(messages) > 1:
        assert respond(agent)[0].data == b"xyz"
    assert ask(agent, b"unharmed")[0].data == b"unharmed"


def test_a_request_before_the_function_is_loaded_or_without_one(agent: AgentProcess) -> None:
    agent.start(shell("read line", stdin=True))
    agent.expect(p.Credit)
    agent.expect(p.Stage)
    request(agent)
    assert agent.expect(p.Error).code == p.ErrorCode.WRONG_STATE
    agent.send(p.StdinEof())
    agent.result()
    request(agent)  # after the end: in silence
    agent.start(function(), files=[(shim.NAME, shim.HEAD + b"time.sleep(60)")], run=2)
    agent.expect(p.Stage, run=2)
    request(agent, run=2)
    assert agent.expect(p.Error, run=2).message == "REQUEST before LOADED"


def test_resumed_is_for_machines_also_while_a_function_is_loaded(agent: AgentProcess) -> None:
    load(agent)
    agent.send(p.Resumed(0, bytes(16), "x", "", bytes(16)), run=0)
    assert agent.expect(p.Error, run=0).code == p.ErrorCode.RESUMED_FAILED
    assert ask(agent, b"still")[0].data == b"still"


BREACHES = {
    "twice": (b"serve(lambda id, t, data: send(message(ANSWER, id) * 2))", "more than it was asked for"),
    "later": (b"serve(lambda id, t, data: [say(ANSWER, id), time.sleep(0.1), say(ANSWER, id)])", "not asked for"),
    "other": (b"serve(lambda id, t, data: say(ANSWER, id + 1))", "answered request 8, asked was 7"),
    "kind": (b"serve(lambda id, t, data: say(9, id))", "kind 9"),
    "loaded": (b"serve(lambda id, t, data: say(0, id))", "loaded to request 7"),
    "type": (b"serve(lambda id, t, data: say(ANSWER, id, b'x' * 256))", "256 bytes"),
    "utf-8": (b"serve(lambda id, t, data: say(ANSWER, id, b'\\xff'))", "not text"),
    "lines": (b"serve(lambda id, t, data: say(ANSWER, id, b'a/b\\r\\nX: y'))", "not printable ASCII"),
    "large": (b"serve(lambda id, t, data: say(ANSWER, id, size=(6 << 20) + 1))", "6291457 bytes"),
    "more": (b"serve(lambda id, t, data: say(ANSWER, id, b'', b'ab', size=1))", "more than it was asked for"),
    "closed": (b"serve(lambda id, t, data: [os.close(3), time.sleep(60)])", "closed its descriptor 3"),
    "cut": (b"serve(lambda id, t, data: [say(ANSWER, id, b'', b'ab', size=9), os.close(3), time.sleep(60)])", "closed its descriptor 3"),
}


@pytest.mark.parametrize("handler", BREACHES)
def test_a_function_that_breaks_its_contract_is_ended(agent: AgentProcess, handler: str) -> None:
    program, why = BREACHES[handler]
    load(agent, b"os.fork() or time.sleep(1000)\n" + program if handler == "kind" else program)
    request(agent)
    result = end(agent)
    (error,) = result.errors
    assert error.code == p.ErrorCode.FUNCTION_BROKE_CONTRACT
    assert error.message.startswith("the function ")
    assert why in error.message
    assert (result.exit.how, result.exit.code, result.exit.limit) == (p.ExitHow.SIGNALED, 9, p.Limit.NONE)
    assert [type(message) for message in result.messages if not isinstance(message, p.Response)] == [p.Error, p.Exit, p.Done]
    assert handler == "later" or not any(isinstance(message, p.Response) for message in result.messages)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (b"say(ANSWER, 0); time.sleep(60)", "first than that it is loaded"),
        (b"say(0, 1); time.sleep(60)", "first than that it is loaded"),
        (b"say(0, 0, b'x'); time.sleep(60)", "first than that it is loaded"),
        (b"say(0, us=1); time.sleep(60)", "first than that it is loaded"),
        (b"say(0, data=b'x'); time.sleep(60)", "first than that it is loaded"),
        (b"send(message(0) * 2); time.sleep(60)", "more than it was asked for"),
        (b"send(b'\\0' * 10000); time.sleep(60)", "more than it was asked for"),
        (b"os.close(3); time.sleep(60)", "closed its descriptor 3"),
        (b"say(0); say(0); time.sleep(60)", "not asked for|more than it was asked for"),
        (b"say(0); time.sleep(0.1); say(ANSWER, 7); time.sleep(60)", "not asked for"),
    ],
)
def test_a_function_that_breaks_its_contract_before_it_is_asked(agent: AgentProcess, program: bytes, why: str) -> None:
    agent.start(function(), files=[(shim.NAME, shim.HEAD + program)])
    result = end(agent)
    (error,) = result.errors
    assert re.search(why, error.message)
    assert (result.exit.how, result.exit.code) == (p.ExitHow.SIGNALED, 9)


def test_an_answer_before_the_whole_request_breaks_the_contract(agent: AgentProcess) -> None:
    load(agent, b"say(0)\ntake(12)\nsay(ANSWER, 7)\ntime.sleep(60)")
    agent.send(p.Request(7, "", 2, b"x"))
    (error,) = end(agent).errors
    assert "before it had the whole request" in error.message


@pytest.mark.parametrize(
    ("act", "how", "code"),
    [
        ("os._exit(3)", p.ExitHow.EXITED, 3),
        ("os._exit(0)", p.ExitHow.EXITED, 0),
        ("os.kill(os.getpid(), 11)", p.ExitHow.SIGNALED, 11),
        ("os.kill(os.getpid(), 9)", p.ExitHow.SIGNALED, 9),
        ("[os.close(3), os._exit(4)]", p.ExitHow.EXITED, 4),
    ],
)
def test_a_crash_ends_the_run_and_tells_how(agent: AgentProcess, act: str, how: p.ExitHow, code: int) -> None:
    load(agent, f"serve(lambda id, t, data: [os.write(2, b'last words'), {act}])".encode())
    request(agent)
    result = end(agent)
    assert (result.exit.how, result.exit.code, result.errors, result.stderr) == (how, code, [], b"last words")


def test_an_answer_that_is_the_last(agent: AgentProcess) -> None:
    load(agent, b"serve(lambda id, t, data: [say(ANSWER, id, b'', data), os._exit(0)])")
    assert ask(agent, b"bye")[0].data == b"bye"
    assert end(agent).exit.code == 0


def test_a_function_that_does_not_load(agent: AgentProcess) -> None:
    agent.start(function(), files=[(shim.NAME, b"import no_such_module")])
    result = end(agent)
    assert (result.exit.how, result.exit.code, result.errors) == (p.ExitHow.EXITED, 1, [])
    assert b"ModuleNotFoundError" in result.stderr


def test_memory_is_limited_as_in_any_step(agent: AgentProcess) -> None:
    step = p.Step("function", ("python3", "-I", "-S", shim.NAME), memory=64 << 20, output=1 << 20, function=True)
    agent.start(step, files=[(shim.NAME, shim.HEAD + b"serve(lambda id, t, data: bytearray(1 << 30))")])
    list(agent.until(p.Loaded))
    request(agent)
    result = end(agent)
    assert not result.errors
    assert result.exit.limit is p.Limit.MEMORY or b"MemoryError" in result.stderr


def test_a_signal_reaches_it_and_the_channels_end_leaves_nothing(agent: AgentProcess) -> None:
    load(agent)
    agent.send(p.Signal(15))
    assert end(agent).exit.code == 15
    load(agent, b"import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)" + ECHO, run=3)
    request(agent, b"x" * 100, run=3)
    agent.__exit__()
    assert processes_of() == []


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((function(), shell("true")), "step 0: a function is the last step"),
        ((function(), function()), "step 0: a function is the last step"),
        ((p.Step("f", ("true",), stdin=True, function=True),), "neither standard input nor a terminal"),
        ((p.Step("f", ("true",), columns=80, rows=24, function=True),), "neither standard input nor a terminal"),
    ],
)
def test_a_start_that_is_refused(agent: AgentProcess, steps: tuple[p.Step, ...], why: str) -> None:
    agent.send(p.Start((), steps, ()))
    error = agent.expect(p.Error)
    assert error.code == p.ErrorCode.START_REFUSED
    assert why in error.message


@pytest.mark.skipif(os.geteuid() != 0, reason="the agent forbids others to look at its descriptors")
def test_no_descriptor_is_left_open(agent: AgentProcess) -> None:
    def run(number: int) -> int:
        load(agent, run=number)
        ask(agent, b"x", run=number)
        agent.send(p.Signal(9), run=number)
        agent.result()
        return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))

    first = run(1)
    assert [run(number) for number in range(2, 5)] == [first] * 3
