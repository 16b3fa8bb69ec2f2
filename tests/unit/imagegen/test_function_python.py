"""Python's shim, with this host's own Python: what a function meets, and what comes back over
descriptor 3.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.kit.function_process import ANSWER, LOADED, RESUMED, FunctionProcess, LoadError, Message, function_of

MAX_PAYLOAD = 6 << 20
Load = Callable[..., FunctionProcess]


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Load]:
    """Load a Python function of one file, or of more."""
    loaded: list[FunctionProcess] = []

    def load(source: str, entry: str = "", files: Mapping[str, str] | None = None) -> FunctionProcess:
        folder = tmp_path / str(len(loaded))
        loaded.append(FunctionProcess(function_of("python"), {"handler.py": source, **(files or {})}, folder, entry=entry))
        return loaded[-1]

    yield load
    for process in loaded:
        process.__exit__()


def test_python_says_that_it_is_loaded_once_and_answers_by_id(python: Load) -> None:
    process = python(
        "import sys\nprint('loading')\nprint('loading', file=sys.stderr)\ndef handle(event):\n    print('asked')\n    return event\n"
    )
    assert process.load() == Message(kind=LOADED, id=0, took_us=0, content_type="", payload=b"", log=b"loading\nloading\n")
    for number in (1, 7, 0xFFFF_FFFF):
        said = process.ask(b'{"a": [1, null]}', "application/json", id=number)
        assert (said.kind, said.id, said.log, said.json) == (ANSWER, number, b"asked\n", {"a": [1, None]})
        assert said.took_us < 60_000_000


@pytest.mark.parametrize(
    ("content_type", "payload", "event"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("Application/JSON; charset=utf-8", b"[1.5]", [1.5]),
        ("application/problem+json", b'"\\u00e9"', "é"),
        ("application/json", b"", None),
        ("", b"", None),
        ("", b"12", 12),
        ("", b"text", b"text"),
        ("", b"NaN", b"NaN"),
        ("", b"1\x00", b"1\x00"),
        ("", b"\xef\xbb\xbf{}", {}),
        ("application/geo+json", b"", None),
        ("", b"[" * 100_000, b"[" * 100_000),
        ("text/plain", "é".encode(), "é"),
        ("text/plain; charset=latin-1", b"\xe9", "é"),
        ('text/html; charset="UTF-16"; x=y', "é".encode("utf-16"), "é"),
        ("text/plain", b"", ""),
        ("application/octet-stream", b"", b""),
        ("application/x-www-form-urlencoded", b"12", b"12"),
        ("image/png", b"\x89PNG", b"\x89PNG"),
    ],
)
def test_what_a_python_handler_gets(python: Load, content_type: str, payload: bytes, event: object) -> None:
    process = python("def handle(event):\n    return repr(event)\n")
    process.load()
    assert process.ask(payload, content_type).payload.decode() == repr(event)


@pytest.mark.parametrize(
    ("content_type", "payload", "words"),
    [
        ("application/json", b"{", "the payload is not JSON"),
        ("application/json", b"[NaN]", "the payload is not JSON: it has no NaN"),
        ("application/json", b"\xff", "the payload is not JSON"),
        ("application/json", b"[" * 100_000, "the payload is not JSON"),
        ("text/plain", b"\xff", "the payload is not text in utf-8"),
        ("text/plain; charset=klingon", b"x", "the payload is not text in klingon"),
        ("text/plain; charset=base64", b"x", "the payload is not text in base64"),
    ],
)
def test_a_payload_that_is_not_what_its_type_says(python: Load, content_type: str, payload: bytes, words: str) -> None:
    process = python("def handle(event):\n    return 1\n")
    process.load()
    assert words in process.ask(payload, content_type).exception["message"]
    assert process.ask().json == 1


@pytest.mark.parametrize(
    ("expression", "content_type", "payload"),
    [
        ("b'x'", "application/octet-stream", b"x"),
        ("bytearray(b'x')", "application/octet-stream", b"x"),
        ("memoryview(b'xyz')[::2]", "application/octet-stream", b"xz"),
        ("'é'", "text/plain; charset=utf-8", "é".encode()),
        ("{'a': (1, None)}", "application/json", b'{"a":[1,null]}'),
        ("None", "application/json", b"null"),
        ("bytes(6 << 20)", "application/octet-stream", bytes(MAX_PAYLOAD)),
    ],
)
def test_what_a_python_handler_returns(python: Load, expression: str, content_type: str, payload: bytes) -> None:
    process = python(f"def handle(event):\n    return {expression}\n")
    process.load()
    said = process.ask()
    assert (said.kind, said.content_type, said.payload) == (ANSWER, content_type, payload)


EXCEPTIONS = {
    "a plain one": ("return 1 / event", "ZeroDivisionError", "division by zero"),
    "sys.exit": ("raise SystemExit(3)", "SystemExit", "3"),
    "Ctrl-C": ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
    "no end of calls": ("def f(): f()\n    f()", "RecursionError", "maximum recursion depth"),
    "its own limit": ("__import__('sys').setrecursionlimit(30)\n    f = lambda: f()\n    f()", "RecursionError", ""),
    "a message that raises": ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})", "E", "its message cannot be had"),
    "surrogates": ("raise ValueError('\\ud800')", "ValueError", "\\ud800"),
    "a cause that is itself": ("e = ValueError('x'); e.__cause__ = e; raise e", "ValueError", "x"),
    "very long": ("raise ValueError('x' * 10_000_000)", "ValueError", "x"),
    "NaN": ("return [float('nan')]", "ValueError", "the answer cannot be written as JSON"),
    "no JSON": ("return object()", "TypeError", "the answer cannot be written as JSON: Object of type object"),
    "a generator": ("return (x for x in 'abc')", "TypeError", "the answer cannot be written as JSON"),
    "a circle": ("a = []; a.append(a); return a", "ValueError", "the answer cannot be written as JSON: Circular"),
    "too deep": ("a = []\n    for _ in range(100_000): a = [a]\n    return a", "RecursionError", "the answer cannot be written"),
    "text that is none": ("return '\\ud800'", "UnicodeEncodeError", "surrogates not allowed"),
    "too large": ("return bytes((6 << 20) + 1)", "ValueError", "the answer has 6291457 bytes; at most 6291456 can be sent"),
    "too large as JSON": ("return ['x' * (6 << 20)]", "ValueError", "the answer has 6291460 bytes"),
    "no memory": ("return bytes(1 << 60)", "MemoryError", ""),
    "no coroutine": ("return type('A', (), {'__await__': lambda self: 1})()", "TypeError", ""),
}


def test_exceptions_of_python_leave_it_loaded(python: Load) -> None:
    cases = "".join(f"def case{index}(event):\n    {body}\n\n" for index, (body, _, _) in enumerate(EXCEPTIONS.values()))
    process = python(f"{cases}def handle(event):\n    return globals()[event](0)\n")
    process.load()
    for index, (name, (_, error, words)) in enumerate(EXCEPTIONS.items()):
        if name == "its own limit":
            continue  # it stays, so it has a process of its own below
        fields = process.ask(f"case{index}".encode(), "text/plain", id=index).exception
        assert fields["error"] == error, name
        assert words in fields["message"], name
        assert len(fields["message"]) + len(fields["trace"]) < 100_000, name


def test_a_trace_of_python_begins_in_the_function(python: Load) -> None:
    helper = "def work(event):\n    raise KeyError(event)\n"
    process = python("import helper\ndef handle(event):\n    return helper.work(event)\n", files={"helper.py": helper})
    process.load()
    fields = process.ask(b"5").exception
    lines = fields["trace"].splitlines()
    assert (fields["error"], fields["message"]) == ("KeyError", "5")
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "KeyError: 5")
    assert [line.split(", ")[1:] for line in lines if line.startswith("  File")] == [["line 3", "in handle"], ["line 2", "in work"]]
    assert "shim.py" not in fields["trace"]


def test_a_python_function_without_room_for_a_trace(python: Load) -> None:
    body, error, _ = EXCEPTIONS["its own limit"]
    process = python(f"def handle(event):\n    {body}\n")
    process.load()
    for _ in range(3):
        assert process.ask().exception["error"] in (error, "Exception")


ASYNC = """
import asyncio
loops = set()
kept = []

async def forever():
    try:
        await asyncio.Event().wait()
    finally:
        print("cancelled")

async def handle(event):
    loops.add(id(asyncio.get_running_loop()))
    if event == "raise":
        await asyncio.sleep(0)
        raise LookupError("awaited")
    if event == "exit":
        raise SystemExit(4)
    if event == "task":
        kept.append(asyncio.create_task(forever()))
    await asyncio.sleep(0)
    return [event, len(loops)]

def later(event):
    return handle(event)
"""


@pytest.mark.parametrize("entry", ["handler.handle", "handler.later"])
def test_async_python(python: Load, entry: str) -> None:
    process = python(ASYNC, entry)
    process.load()
    assert process.ask(b"a", "text/plain").json == ["a", 1]
    fields = process.ask(b"raise", "text/plain").exception
    assert (fields["error"], fields["message"]) == ("LookupError", "awaited")
    assert fields["trace"].splitlines()[1].endswith("in handle")
    assert process.ask(b"exit", "text/plain").exception["error"] == "SystemExit"
    said = process.ask(b"task", "text/plain")
    assert (said.json, said.log) == (["task", 1], b"cancelled\n")
    said = process.ask(b"b", "text/plain")
    assert (said.json, said.log) == (["b", 1], b"")


def test_output_of_python_belongs_to_its_request(python: Load) -> None:
    process = python(
        "import io, os, sys\n"
        "def handle(event):\n"
        "    if event == 1:\n"
        "        print('buffered', end='')\n"
        "        os.write(1, b'')\n"
        "    elif event == 2:\n"
        "        sys.stdout.write('kept')\n"
        "        sys.stdout = io.StringIO()\n"
        "        print('swallowed')\n"
        "    elif event == 3:\n"
        "        sys.stdout = None\n"
        "    elif event == 4:\n"
        "        sys.stdout = sys.__stdout__\n"
        "        sys.stderr.write('err')\n"
    )
    process.load()
    assert [process.ask(str(number).encode()).log for number in range(5)] == [b"", b"buffered", b"kept", b"", b"err"]


def test_a_python_handler_may_close_the_first_descriptors(python: Load) -> None:
    process = python("import os\ndef handle(event):\n    os.closerange(0, 20)\n    if event: print(event)\n    return 1\n")
    process.load()
    assert [process.ask().json for _ in range(3)] == [1, 1, 1]
    assert process.ask(b"2").exception["error"] == "OSError"
    assert process.ask().json == 1


def test_children_of_a_python_handler_do_not_hold_the_descriptor(python: Load) -> None:
    process = python(
        "import os, signal, subprocess\n"
        "def handle(event):\n"
        "    if event == 'crash':\n"
        "        os._exit(5)\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        signal.pause()\n"
        "    return [pid, subprocess.Popen(['sleep', '300'], close_fds=False).pid]\n"
    )
    process.load()
    children = process.ask().json
    try:
        with pytest.raises(EOFError):
            process.ask(b"crash", "text/plain")
        assert process.process.wait(60) == 5
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_a_child_that_comes_back_from_a_python_handler_answers_nothing(python: Load) -> None:
    process = python(
        "import os, sys\n"
        "def handle(event):\n"
        "    pid = os.fork()\n"
        "    if pid:\n"
        "        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    print('child')\n"
        "    if event: sys.exit(event)\n"
        "    return 'twice'\n"
    )
    process.load()
    for code in (0, 6, 0):
        said = process.ask(str(code).encode(), id=code)
        assert (said.json, said.id, said.log) == (code, code, b"child\n")


def test_python_can_start_workers(python: Load) -> None:
    process = python(
        "import concurrent.futures, multiprocessing, threading\n"
        "def handle(event):\n"
        "    context = multiprocessing.get_context(event)\n"
        "    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:\n"
        "        found = list(pool.map(abs, range(-3, 0)))\n"
        "    thread = threading.Thread(target=print, args=('thread',))\n"
        "    thread.start(); thread.join()\n"
        "    return found\n"
    )
    process.load()
    for method in (b"spawn", b"fork"):
        said = process.ask(method, "text/plain")
        assert (said.json, said.log) == ([3, 2, 1], b"thread\n")


@pytest.mark.parametrize(
    ("statement", "code"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", -9), ("__import__('ctypes').string_at(0)", -11)]
)
def test_a_crash_of_python_ends_it_and_its_log_stays(python: Load, statement: str, code: int) -> None:
    process = python(f"import os\ndef handle(event):\n    print('last words')\n    {statement}\n")
    process.load()
    with pytest.raises((EOFError, ConnectionError)):
        process.ask()
    assert process.process.wait(60) == code
    assert process.log() == b"last words\n"


@pytest.mark.parametrize(
    ("source", "entry", "words"),
    [
        ("x = 1\n", "", ["the entry is 'handler.handle', and the module handler has no handle"]),
        ("handle = 1\n", "", ["the entry is 'handler.handle', which is of the type int and cannot be called"]),
        ("", "app.main", ["the function has no module app; its files are handler.py"]),
        ("", "handler.sub.main", ["the entry is 'handler.sub.main', and the function has no module handler.sub"]),
        ("", "handle", ["the entry is 'handle'; it must be MODULE.NAME"]),
        ("", ".handle", ["it must be MODULE.NAME"]),
        ("def handle(:\n", "", ["the module handler failed while it was imported", "line 1", "SyntaxError"]),
        ("import nowhere\n", "", ["the module handler failed", "line 1, in <module>", "No module named 'nowhere'"]),
        ("print('first')\n1 / 0\n", "", ["first", "the module handler failed", "line 2, in <module>", "ZeroDivisionError"]),
        ("import sys\nsys.exit(0)\n", "", ["the module handler exited while it was imported", "line 2, in <module>"]),
        ("import threading\nthreading.Thread(target=threading.Event().wait).start()\n1 / 0\n", "", ["line 3"]),
        ("raise KeyboardInterrupt\n", "", ["the module handler failed", "KeyboardInterrupt"]),
    ],
)
def test_a_python_function_that_cannot_be_loaded(python: Load, source: str, entry: str, words: list[str]) -> None:
    with pytest.raises(LoadError) as caught:
        python(source, entry).load()
    assert caught.value.code == 1
    at = [caught.value.log.index(word) for word in ["the function cannot be loaded: ", *words] if word != "first"]
    assert at == sorted(at)
    assert "shim.py" not in caught.value.log
    assert ("first" in caught.value.log) == ("first" in words)


def test_a_python_package(python: Load) -> None:
    files = {"app/__init__.py": "", "app/views.py": "from . import more\ndef handle(event): return more.X\n", "app/more.py": "X = 2\n"}
    process = python("", "app.views.handle", {**files, "data/json": "", "token.txt": "", "__main__.py": ""})
    process.load()
    assert process.ask().json == 2


@pytest.mark.parametrize("path", ["json.py", "token.py", "types/__init__.py"])
def test_a_python_module_that_would_never_be_imported(python: Load, path: str) -> None:
    """The library's module of that name is there already, and `import` finds that."""
    with pytest.raises(LoadError, match=f"its module {path.partition('/')[0].removesuffix('.py')} has the name of one of Python's own"):
        python("def handle(event): return 1\n", files={path: ""}).load()


def test_clones_of_python_are_seeded_anew(python: Load) -> None:
    """Two processes of one seed stand for two clones of one snapshot."""
    source = "import random, ssl\nrandom.seed(1)\ndef handle(event): return random.random()\n"
    processes = [python(source) for _ in range(3)]
    for process in processes:
        process.load()
    for process in processes[:2]:
        process.send(kind=RESUMED, id=0)
    numbers = [process.ask().json for process in processes]
    assert len(set(numbers)) == 3
    assert numbers[2] == pytest.approx(0.13436424411240122)


def test_what_python_has_loaded_is_frozen(python: Load) -> None:
    process = python("import gc\ndef handle(event): return [gc.get_freeze_count(), gc.isenabled()]\n")
    process.load()
    frozen, enabled = process.ask().json
    assert frozen > 1000
    assert enabled


def test_a_shim_without_an_agent_says_so(tmp_path: Path) -> None:
    (tmp_path / "shim.py").write_text(function_of("python").files[".mayfly/shim.py"])
    done = subprocess.run(["python3", "shim.py", "handler.handle"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "descriptor 3 is not open; the guest's agent starts this program\n")
