"""JavaScript's shim, with this host's own Node: what a function meets, and what comes back over
descriptor 3.
"""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.function_process import ANSWER, LOADED, RESUMED, FunctionProcess, LoadError, Message, function_of

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

MAX_PAYLOAD = 6 << 20
HANDLER = """
const { Buffer } = require("node:buffer");
console.log("loading");
console.error("loading");
const cases = {
  echo: (event) => event,
  what: (event) => (event instanceof Uint8Array ? `bytes ${event.length}` : `${typeof event} ${JSON.stringify(event)}`),
  later: async (event) => { await new Promise((resolve) => setTimeout(resolve, 5)); console.log("waited"); return [event]; },
  bytes: () => new Uint8Array([1, 2, 3]).subarray(1),
  buffer: () => new ArrayBuffer(2),
  large: () => Buffer.alloc(6 << 20),
  text: () => "\\u00e9",
  nothing: () => undefined,
  error: () => { throw new RangeError("no \\ud800"); },
  rejected: async () => { throw "words"; },
  circle: () => { const a = []; a.push(a); return a; },
  big: () => ({ a: 1n }),
  symbol: () => Symbol("s"),
  tooLarge: () => Buffer.alloc((6 << 20) + 1),
  deep: () => { const f = () => f(); return f(); },
  hostile: () => { const error = new Error(); Object.defineProperty(error, "stack", { get() { throw 1; } }); throw error; },
  random: () => [Math.random(), require("crypto").randomUUID(), require("crypto").randomBytes(4).toString("hex"),
    crypto.getRandomValues(new Uint32Array(1))[0], crypto.randomUUID()],
  exit: () => process.exit(7),
  leak: () => { Promise.reject(new Error("nobody waits")); return new Promise(() => {}); },
  flood: () => { for (let n = 0; n < 3000; n++) console.log("x".repeat(99)); return 1; },
};
exports.handle = (event) => (event?.case ? cases[event.case](event.event) : cases.what(event));
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[FunctionProcess]:
    process = FunctionProcess(function_of("javascript"), {"handler.js": HANDLER}, tmp_path)
    yield process
    process.__exit__()


def ask(process: FunctionProcess, name: str, event: str = "null") -> Message:
    """Ask for a case."""
    return process.ask(f'{{"case": "{name}", "event": {event}}}'.encode(), "application/json")


def test_it_is_loaded_once_and_answers_by_id(process: FunctionProcess) -> None:
    assert process.load() == Message(kind=LOADED, id=0, took_us=0, content_type="", payload=b"", log=b"loading\nloading\n")
    for number in (1, 7, 0xFFFF_FFFF):
        said = process.ask(b'{"case": "echo", "event": {"a": [1, null]}}', "application/json", id=number)
        assert (said.kind, said.id, said.log, said.json) == (ANSWER, number, b"", {"a": [1, None]})
        assert said.took_us < 60_000_000
    process.send(kind=RESUMED, id=0)
    said = ask(process, "later", "3")
    assert (said.json, said.log) == ([3], b"waited\n")
    assert said.took_us >= 4_000
    assert len(ask(process, "flood").log) == 300_000


def test_what_a_handler_gets(process: FunctionProcess) -> None:
    process.load()
    cases = [
        ("application/json; charset=utf-8", b"[1.5]", "object [1.5]"),
        ("application/problem+json", b'"\\u00e9"', 'string "é"'),
        ("application/json", b"", "object null"),
        ("", b"", "object null"),
        ("", b"12", "number 12"),
        ("", b"\xef\xbb\xbf{}", "object {}"),
        ("", b"NaN", "bytes 3"),
        ("", b"\xff", "bytes 1"),
        ("text/plain", "é".encode(), 'string "é"'),
        ('text/html; charset="UTF-16LE"; x=y', "é".encode("utf-16-le"), 'string "é"'),
        ("text/plain", b"", 'string ""'),
        ("application/octet-stream", b"", "bytes 0"),
        ("image/png", bytes(MAX_PAYLOAD), f"bytes {MAX_PAYLOAD}"),
    ]
    for content_type, payload, words in cases:
        said = process.ask(payload, content_type)
        assert said.content_type == "text/plain; charset=utf-8"
        assert said.payload.decode() == words
    for content_type, payload, words in (
        ("application/json", b"{", "the payload is not JSON: "),
        ("text/plain", b"\xff", "the payload is not text in utf-8: "),
        ("text/plain; charset=klingon", b"x", "the payload is not text in klingon: "),
    ):
        assert process.ask(payload, content_type).exception["message"].startswith(words)


def test_what_it_returns(process: FunctionProcess) -> None:
    process.load()
    for name, content_type, payload in (
        ("bytes", "application/octet-stream", b"\2\3"),
        ("buffer", "application/octet-stream", b"\0\0"),
        ("large", "application/octet-stream", bytes(MAX_PAYLOAD)),
        ("text", "text/plain; charset=utf-8", "é".encode()),
        ("nothing", "application/json", b"null"),
    ):
        said = ask(process, name)
        assert (said.kind, said.content_type, said.payload) == (ANSWER, content_type, payload)


def test_exceptions_leave_it_loaded(process: FunctionProcess) -> None:
    process.load()
    for name, error, words in (
        ("error", "RangeError", "no \ud800"),
        ("rejected", "string", "words"),
        ("circle", "TypeError", "the answer cannot be written as JSON: Converting circular"),
        ("big", "TypeError", "the answer cannot be written as JSON: Do not know how to serialize a BigInt"),
        ("symbol", "TypeError", "the answer cannot be written as JSON: it is a symbol"),
        ("tooLarge", "RangeError", "the answer has 6291457 bytes; at most 6291456 can be sent"),
        ("deep", "RangeError", "Maximum call stack size exceeded"),
        ("hostile", "Error", "the exception cannot be described"),
        ("none", "TypeError", "cases[event.case] is not a function"),
    ):
        fields = ask(process, name).exception
        assert (fields["error"], fields["message"][: len(words)]) == (error, words)
        assert "shim.mjs" not in fields["trace"]
    assert "at Object.error (" in ask(process, "error").exception["trace"]


def test_what_is_random_is_the_kernels(process: FunctionProcess) -> None:
    process.load()
    first, second = ask(process, "random").json, ask(process, "random").json
    assert not set(first) & set(second)
    for number, name, data, _, web in (first, second):
        assert 0 <= number < 1
        assert [uuid.UUID(text).version for text in (name, web)] == [4, 4]
        assert len(data) == 8


@pytest.mark.parametrize(("name", "code"), [("exit", 7), ("leak", 1)])
def test_a_crash_ends_it(process: FunctionProcess, name: str, code: int) -> None:
    process.load()
    with pytest.raises((EOFError, ConnectionError)):
        ask(process, name)
    assert process.process.wait(60) == code
    assert b"nobody waits" in process.log() or name == "exit"


@pytest.mark.parametrize(
    ("files", "entry", "words"),
    [
        ({"handler.js": "let x = ;"}, "", "SyntaxError: Unexpected token ';'"),
        ({"handler.js": "exports.other = 1;"}, "", "the module handler exports no function handle"),
        ({"other.js": ""}, "", "the function has no module handler; its files are other.js"),
        ({"handler.js": "throw new Error('at once');"}, "", "Error: at once"),
        ({"handler.js": ""}, "handle", "it must be MODULE.NAME, such as handler.handle"),
    ],
)
def test_one_that_cannot_be_loaded(tmp_path: Path, files: dict[str, str], entry: str, words: str) -> None:
    with FunctionProcess(function_of("javascript"), files, tmp_path, entry=entry) as process, pytest.raises(LoadError) as caught:
        process.load()
    assert caught.value.code == 1
    assert caught.value.log.startswith("the function cannot be loaded: ")
    assert words in caught.value.log


def test_es_modules_and_folders(tmp_path: Path) -> None:
    files = {
        "app/views.mjs": "import { two } from '../two.mjs';\nexport async function show() { return await two; }\n",
        "two.mjs": "export const two = await Promise.resolve(2);\n",
    }
    with FunctionProcess(function_of("javascript"), files, tmp_path, entry="app.views.show") as process:
        assert process.load().kind == LOADED
        assert process.ask().json == 2
