"""Java's shim, with this host's own javac and java: what a function meets, and what comes back over
descriptor 3.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.function_process import ANSWER, LOADED, RESUMED, BuildError, FunctionProcess, LoadError, function_of
from tests.kit.scale import FULL

pytestmark = pytest.mark.skipif(shutil.which("javac") is None, reason="javac is not installed")

HANDLER = """
import java.util.concurrent.*;

public class Handler {
    private int asked;

    static { System.out.print("once"); }

    Object handle(String event) throws Exception {
        asked++;
        switch (event) {
            case "bytes": return new byte[] {1, -1};
            case "large": return new byte[6 << 20];
            case "too large": return new byte[(6 << 20) + 1];
            case "null": return null;
            case "number": return 1;
            case "deep": return handle("deep");
            case "memory": return new long[Integer.MAX_VALUE];
            case "error": throw new java.io.IOException("no \\"\\ud800\\"");
            case "random": return Math.random() + " " + ThreadLocalRandom.current().nextLong() + " " + java.util.UUID.randomUUID();
            case "exit": System.exit(7);
        }
        System.out.println("asked");
        System.err.println("asked");
        return event + asked;
    }
}
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionProcess]:
    """One for all: it takes seconds to build."""
    files = {"Handler.java": HANDLER, "deep/Echo.java": ECHO}
    with FunctionProcess(function_of("java"), files, tmp_path_factory.mktemp("function")) as process:
        loaded = process.load()
        assert (loaded.kind, loaded.id, loaded.log) == (LOADED, 0, b"once")
        yield process


ECHO = "package deep;\n\nclass Echo {\n    static byte[] echo(byte[] event) { return event; }\n}\n"


def test_it_answers_by_id(process: FunctionProcess) -> None:
    begun = int(process.ask("é".encode()).payload.decode().removeprefix("é"))
    for number in (1, 7, 0xFFFF_FFFF):
        begun += 1
        said = process.ask("é".encode(), "text/plain", id=number)
        assert (said.kind, said.id, said.payload.decode()) == (ANSWER, number, f"é{begun}")
        assert (said.content_type, said.log) == ("text/plain; charset=utf-8", b"asked\nasked\n")
        assert said.took_us < 60_000_000


def test_what_it_returns(process: FunctionProcess) -> None:
    for name, payload in (("bytes", b"\1\xff"), ("large", bytes(6 << 20))):
        said = process.ask(name.encode())
        assert (said.kind, said.content_type, said.payload) == (ANSWER, "", payload)


def test_exceptions_leave_it_loaded(process: FunctionProcess) -> None:
    for event, error, words in (
        (b"too large", "java.lang.IllegalStateException", "the answer has 6291457 bytes; at most 6291456 can be sent"),
        (b"null", "java.lang.ClassCastException", "a function returns byte[] or String, not null"),
        (b"number", "java.lang.ClassCastException", "a function returns byte[] or String, not java.lang.Integer"),
        (b"deep", "java.lang.StackOverflowError", "null"),
        (b"memory", "java.lang.OutOfMemoryError", ""),
        (b"error", "java.io.IOException", 'no "\ud800"'),
        (b"\xff", "java.nio.charset.MalformedInputException", "Input length = 1"),
    ):
        fields = process.ask(event).exception
        assert (fields["error"], fields["message"][: len(words)]) == (error, words)
        assert "MayflyFunction" not in fields["trace"]
    assert "at Handler.handle(Handler.java:19)" in process.ask(b"error").exception["trace"]


def test_a_clone_has_other_random_numbers(process: FunctionProcess) -> None:
    seen = process.ask(b"random").payload.split()
    for _ in range(2):
        process.send(kind=RESUMED, id=0)
        said = process.ask(b"random")
        assert said.log == b""
        seen += said.payload.split()
    assert len({*seen}) == 9


BROKEN = {
    "class": ("class Other {}", "", "the entry is Handler.handle, and there is no such class"),
    "method": ("class Handler { int handle(int n) { return n; } }", "", "the class has no such method that takes byte[] or String"),
    "constructor": (
        'class Handler { Handler() { throw new RuntimeException("at once"); } byte[] handle(byte[] n) { return n; } }',
        "",
        "at once",
    ),
    "static": ("class Handler { static int n = 1 / 0; byte[] handle(byte[] n) { return n; } }", "", "ArithmeticException: / by zero"),
    "entry": ("class Handler {}", "Handler", "it must be CLASS.METHOD, such as Handler.handle"),
}
"""Sources that cannot be loaded, the entry, and what is said."""


@pytest.mark.parametrize("which", BROKEN if FULL else ["constructor"])
def test_one_that_cannot_be_loaded(tmp_path: Path, which: str) -> None:
    source, entry, words = BROKEN[which]
    files = {"Handler.java": source}
    with FunctionProcess(function_of("java"), files, tmp_path, entry=entry) as process, pytest.raises(LoadError) as caught:
        process.load()
    assert caught.value.code == 1
    assert caught.value.log.startswith("the function cannot be loaded: ")
    assert words in caught.value.log


def test_one_that_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="incompatible types"):
        FunctionProcess(function_of("java"), {"Handler.java": "class Handler { int n = true; }"}, tmp_path)


@pytest.mark.skipif(not FULL, reason="builds once more; the whole counts do")
def test_a_crash_ends_a_static_one_of_a_package_too(tmp_path: Path) -> None:
    files = {"deep/Echo.java": ECHO.replace("return event", "if (event.length == 0) System.exit(7); return event")}
    with FunctionProcess(function_of("java"), files, tmp_path, entry="deep.Echo.echo") as process:
        process.load()
        assert process.ask(b"\xff").payload == b"\xff"
        with pytest.raises((EOFError, ConnectionError)):
            process.ask()
        assert process.process.wait(60) == 7
