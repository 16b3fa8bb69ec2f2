"""Hostile functions of Python with the language's own shim in the real agent, all of them ordinary
processes: whatever one does, each request is answered once, by what was asked, or fails with a
reason, and the next one is answered.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mayfly.errors import FunctionCrashedError, FunctionFailedError, FunctionTimeoutError
from mayfly.functions.answer import Answer
from mayfly.functions.service import Functions
from mayfly.functions.spec import FunctionSpec, SnapshotOptions
from mayfly.runs.service import Service
from tests.kit.agent_process import build_agent
from tests.kit.api_fakes import factory, gone, install, install_toys, open_descriptors, small_config
from tests.kit.function_fakes import invocation
from tests.kit.function_process import function_of
from tests.kit.scale import patience

Ask = Callable[..., Awaitable[Answer]]
BOOTED = SnapshotOptions(base=False, diff=False)
HEAD = """
import os, signal, struct, subprocess, sys, threading, time

ANSWER, EXCEPTION = 1, 2
requests = 0

def message(kind, id=0, data=b"", size=None):
    size = len(data) if size is None else size
    return struct.pack("<BIQH", kind, id, 0, 0) + struct.pack("<I", size) + data

def say(*what, **more):
    send(message(*what, **more))

def send(data):
    while data:
        data = data[os.write(1000, data):]

def handle(event):
    global requests
    requests += 1
    if event == b"harm":
        return harm(requests)
    return event
"""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None) -> Callable[..., None]:
    """Create a function whose `harm` is the code that is given, and run a scenario with it."""
    install_toys(monkeypatch, tmp_path)
    function = function_of("python")
    install("python", ".py", function.steps, marker="", function=function)
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    agent = build_agent()

    def call(code: str, scenario: Callable[[Ask], Awaitable[None]], **fields: float) -> None:
        (tmp_path / "handler.py").write_text(HEAD + code)
        spec = FunctionSpec(name="f", language="python", code=str(tmp_path / "handler.py"), snapshot=BOOTED, **fields)  # type: ignore[arg-type]

        async def whole() -> None:
            async with Service(small_config(tmp_path), factory(executable=agent)) as service:
                functions = Functions(
                    service.config, service.spawner, service.admission, service.supply, service.images, service.networks, service.observer
                )

                async def ask(payload: bytes) -> Answer:
                    return await functions.invoke(invocation("f", payload, "application/octet-stream"))

                async with functions:
                    await functions.create(spec)
                    await asyncio.wait_for(scenario(ask), patience(60))
                assert service.admission.used == 0

        before = open_descriptors()
        asyncio.run(whole())
        assert open_descriptors() == before

    return call


BREACHES = {
    "twice": "send(message(ANSWER, n, b'mine') * 2); time.sleep(60)",
    "early": "send(message(ANSWER, n, b'mine') + message(ANSWER, n + 1, b'for the next')); time.sleep(60)",
    "another": "say(ANSWER, n + 1, b'mine'); time.sleep(60)",
    "not yet asked": "say(ANSWER, n + 7); time.sleep(60)",
    "loaded": "say(0); time.sleep(60)",
    "kind": "say(77, n); time.sleep(60)",
    "huge": "say(ANSWER, n, size=2**32 - 1); time.sleep(60)",
    "longer": "say(ANSWER, n, b'abc', size=2); time.sleep(60)",
    "noise": "send(os.urandom(1 << 20)); time.sleep(60)",
    "closed": "os.close(1000); time.sleep(60)",
    "half": "say(ANSWER, n, b'abc', size=9); os._exit(0)",
    "aborts": "os.abort()",
    "stopped": "os.kill(os.getpid(), signal.SIGSEGV)",
    "exits": "sys.stdout.write('last words'); sys.stdout.flush(); os._exit(0)",
}


@pytest.mark.parametrize("name", BREACHES)
def test_what_breaks_its_contract_is_ended_alone(serve: Callable[..., None], name: str) -> None:
    async def scenario(ask: Ask) -> None:
        assert (await ask(b"one")).payload == b"one"
        with contextlib.suppress(FunctionCrashedError):
            answer = await ask(b"harm")  # the first of two answers is right, and may come before the fault is known
            assert (name in ("twice", "early"), answer.payload) == (True, b"mine")
        answer = await ask(b"two")
        assert (answer.payload, answer.start) == (b"two", "cold")

    serve(f"def harm(n):\n    {BREACHES[name]}\n", scenario)


def test_what_is_said_between_requests_answers_none(serve: Callable[..., None]) -> None:
    """An answer to the next request, before that is asked: the function is ended for it at once."""
    code = """
def harm(n):
    signal.signal(signal.SIGUSR1, lambda *_: say(ANSWER, n + 1, b"mine"))
    return b"%d" % os.getpid()
"""

    async def scenario(ask: Ask) -> None:
        for number in range(3):
            process = int((await ask(b"harm")).payload)
            os.kill(process, signal.SIGUSR1)
            assert await asyncio.to_thread(gone, process)
            try:
                answer = await ask(b"%d" % number)
            except FunctionCrashedError:  # it was asked before the server knew
                answer = await ask(b"%d" % number)
            assert (answer.payload, answer.start) == (b"%d" % number, "cold")

    serve(code, scenario)


HARMLESS = {
    "descriptors": "[os.dup(0) for _ in range(1 << 20)]",
    "processes": "[subprocess.Popen(['sleep', '1000']) for _ in range(30)]",
    "orphans": "subprocess.run(['sh', '-c', 'sleep 1000 & sleep 1001 &'])",
    "signals": "[signal.signal(number, signal.SIG_IGN) for number in (1, 2, 15)]",
    "flood": "[os.write(number, b'x' * 65536) for number in (1, 2) for _ in range(400)]",
    "closed output": "os.close(0); os.close(1); os.close(2)",
    "own output": "sys.stdout = sys.stderr = None",
    "limits": "__import__('resource').setrlimit(4, (0, 0))",
    "large": "raise ValueError('x' * (8 << 20))",
    "recursion": "harm(n)",
    "generator": "return (x for x in [])",
    "too large": "return b'x' * (6 << 20) + b'y'",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_function_does_to_itself_stays_with_it(serve: Callable[..., None], name: str) -> None:
    async def scenario(ask: Ask) -> None:
        answer = await ask(b"harm")
        assert len(answer.log) <= 64 << 10
        again = await ask(b"one")
        assert (again.payload, again.start) == (b"one", "warm")

    serve(f"def harm(n):\n    {HARMLESS[name]}\n", scenario)


def test_what_ignores_signals_and_prints_for_ever_is_ended_in_its_time(serve: Callable[..., None]) -> None:
    code = "def harm(n):\n    signal.signal(15, signal.SIG_IGN)\n    while True:\n        os.write(1, b'x' * 65536)\n"

    async def scenario(ask: Ask) -> None:
        with pytest.raises(FunctionTimeoutError) as caught:
            await ask(b"harm")
        assert set(caught.value.log) == {"x"}
        assert (await ask(b"one")).payload == b"one"

    serve(code, scenario, timeout_s=1)


def test_what_prints_for_ever_while_nobody_asks_it(serve: Callable[..., None]) -> None:
    code = "def harm(n):\n    subprocess.Popen(['sh', '-c', 'while :; do echo flood; done'])\n    return b'done'\n"

    async def scenario(ask: Ask) -> None:
        assert (await ask(b"harm")).payload == b"done"
        for number in range(20):
            assert (await ask(b"%d" % number)).payload == b"%d" % number

    serve(code, scenario)


@pytest.mark.parametrize("code", ["say(ANSWER, 0)", "os._exit(0)", "os.close(1000); time.sleep(60)", "send(b'x' * (9 << 20))"])
def test_what_breaks_its_contract_while_it_loads_is_not_created(serve: Callable[..., None], code: str) -> None:
    async def nothing(ask: Ask) -> None:
        raise AssertionError

    with pytest.raises(FunctionFailedError):
        serve(code, nothing)
