"""Results of tests, out of what a test program prints: a guest's bytes, of which nothing is
believed but that they are somebody's words.

    lines      control lines, each behind a byte 0x1e; what is between them is the output of a test:
                   +NAME           a test begins
                   -STATUS MS      a program that is a test has ended with that exit status; if it
                                   put out Unity's lines (FILE:LINE:NAME:PASS), those are tests,
                                   and so are GoogleTest's (`[ RUN      ] NAME`)
                   {"name"}        a test begins; the name may have more than one line
                   {"name", "outcome", "message"?, "wall_ms"?, "output"?}   a test has ended
    libtest    Rust's: `--format json`, an object a line; or lines as above, of a program that is a
               test
    gotest     Go's: `-test.v`, lines as `--- PASS: TestX (0.00s)`, since 1.20 behind a byte 0x16;
               before those of each package of several, behind such a byte too, `=== PACKAGE
               FOLDER`, which is before its tests' names
"""

import json
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from mayfly.protocol.frames import Exit, ExitHow, Limit
from mayfly.runs.result import TestReport

MAX_TESTS = 10_000
MAX_NAME = 500
"""Letters of a test's name."""
SKIPPED = 77
"""The exit status of a test program that does not apply, as of automake and meson."""
RUST_PANICKED = 101
"""The exit status of a program of Rust's that has panicked."""
SIGNALS = frozenset(128 + number for number in signal.valid_signals())
"""A shell's statuses of programs that a signal ended."""
CRASHES = SIGNALS - {128 + signal.SIGABRT}
"""Of those, of which the program itself says nothing."""

T = TypeVar("T")
Outcome: TypeAlias = Literal["passed", "failed", "skipped", "error", "timeout"]
_GO_END = re.compile(r"--- (PASS|FAIL|SKIP): (\S+) \((\d+(?:\.\d+)?)s\)")
_GO_BEGIN = re.compile(r"=== (RUN|CONT|NAME|PAUSE) +(\S+)")
_GO_PACKAGE = re.compile(r"=== PACKAGE (?:\./)?(.*)")
_GO_MARKED = re.compile(r"\x16(?:=== RUN |--- |PASS\n|FAIL\n)")
_GO_UNMARKED = re.compile(rf"(?:{_GO_END.pattern}|{_GO_BEGIN.pattern}|\A(?:PASS|FAIL))\Z")
_GO_CRASH = re.compile(r"^(?:panic|fatal error): .*", re.MULTILINE)
_GO_OUTCOMES: Mapping[str, Outcome] = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}
_GO_PLACE = re.compile(r"^\s+\S+\.go:\d+: ")
_GO_BEHIND = re.compile(r"(?<=\S) {4}[^\s:]+_test\.go:\d+: ")
"""That behind a line without an end."""
_UNITY = re.compile(r":\d+:(\w+(?:\([^:\n]*\))?):(PASS|FAIL|IGNORE)\b(?:: ?(.*))?\n?")
"""Behind a file's name, which may stand behind what the test put out."""
_UNITY_END = re.compile(r"^(\d{1,9}) Tests (\d{1,9}) Failures (\d{1,9}) Ignored", re.MULTILINE)
_UNITY_OUTCOMES: Mapping[str, Outcome] = {"PASS": "passed", "FAIL": "failed", "IGNORE": "skipped"}
_GOOGLE = re.compile(
    r"\[ RUN      \] (\S+)\n((?:(?!\[ RUN      \] ).)*?)(?:\[ +(OK|FAILED|SKIPPED) +\] \1(?:, where [^\n]{0,2000})? \((\d{1,9}) ms\)\n|\Z)",
    re.DOTALL,
)
_GOOGLE_OUTCOMES: Mapping[str, Outcome] = {"OK": "passed", "FAILED": "failed", "SKIPPED": "skipped"}
_TERMINATED = re.compile(r"^terminate called .*", re.DOTALL | re.MULTILINE)
_DOCTEST = re.compile(r":\d+: (?:FATAL )?ERROR: (.*?)(?:\n\n|\Z)", re.DOTALL)
_DOCTEST_RAN = re.compile(r"^\[doctest\] test cases: +[1-9]", re.MULTILINE)
_CATCH_SKIPPED = "\ntest cases: 1 | 1 skipped\n"
_JAVA_THROWN = re.compile(r'^Exception in thread "[^"\n]*" (.*?)(?:\n\tat |\n?\Z)', re.DOTALL | re.MULTILINE)
_RUST_LINE = re.compile(r'\{ ?"type": ?"test".*')
"""May stand behind what a test put out past the runner."""
_RUST_PLACE = re.compile(r":\d+:\d+:$")
_RUST_PANIC_END = re.compile(r"\nnote: run with|\n\nthread '|\Z")
_RUST_OLD_PANIC_END = re.compile(r"', [^\n']*:\d+:\d+$", re.MULTILINE)


class _Told(msgspec.Struct):
    """A control line that is an object. Without an outcome the test begins."""

    name: str
    outcome: Outcome | None = None
    message: str = ""
    wall_ms: float | None = None
    output: str | None = None


class _LibTest(msgspec.Struct):
    """A line of Rust's."""

    type: str
    event: str
    name: str = ""
    stdout: str = ""
    message: str = ""
    exec_time: float | None = None


class _Tests:
    """Tests in the order in which they began; those that have not ended are `open`. The second one
    of a name has ` (2)` behind it.
    """

    def __init__(self) -> None:
        self.open: dict[str, list[str]] = {}
        """By the name that the program gives, what each has put out."""
        self._as: dict[str, str] = {}
        """Of those that are open, our names."""
        self._times: dict[str, int] = {}
        self._ended: dict[str, TestReport | None] = {}

    def begin(self, name: str) -> None:
        name = ours = name[:MAX_NAME]
        if name in self.open or len(self._ended) >= MAX_TESTS:
            return
        while ours in self._ended:
            self._times[name] = self._times.get(name, 1) + 1
            ours = f"{name} ({self._times[name]})"
        self.open[name] = []
        self._as[name] = ours
        self._ended[ours] = None

    def say(self, name: str, text: str) -> None:
        """Something that a test puts out; lost if none is open."""
        if name[:MAX_NAME] in self.open:
            self.open[name[:MAX_NAME]].append(text)

    def drop(self, name: str) -> None:
        """Take back that a test has begun."""
        if self.open.pop(name[:MAX_NAME], None) is not None:
            del self._ended[self._as.pop(name[:MAX_NAME])]

    def end(self, name: str, outcome: Outcome, message: str, wall_ms: float | None, output: str | None = None) -> None:
        name = name[:MAX_NAME]
        self.begin(name)
        said = self.open.pop(name, None)
        if said is not None:
            output = "".join(said) if output is None else output
            ours = self._as.pop(name)
            self._ended[ours] = TestReport(name=ours, outcome=outcome, message=message, wall_ms=wall_ms, output=output)

    def finish(self, exit: Exit) -> list[TestReport]:  # as the frame is called
        """All of them; what has not ended says how the program did."""
        late = exit.limit in (Limit.WALL, Limit.CPU)
        for name in tuple(self.open):
            self.end(name, "timeout" if late else "error", _why(exit), None)
        return [test for test in self._ended.values() if test is not None]


def read_tests(form: str, stdout: bytes, exit: Exit) -> list[TestReport]:
    """The results of tests that a program has put out in this form, and how it ended."""
    tests = _Tests()
    _READERS[form](stdout.decode("utf-8", "replace"), tests)
    found = tests.finish(exit)
    if not found and (exit.how, exit.code, exit.limit) == (ExitHow.EXITED, 0, Limit.NONE):
        return [TestReport(name="tests", outcome="error", message="there are no tests", wall_ms=None, output="")]
    return found


def _decode(text: str, type: type[T]) -> T | None:
    """An object out of JSON, or None if it is another. Halves of a surrogate pair, which strings of
    Python, Java and JavaScript may have, become question marks.
    """
    try:
        return msgspec.json.decode(text, type=type)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        whole = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
        return msgspec.json.decode(whole, type=type)
    except (ValueError, RecursionError):  # msgspec's errors are the former
        return None


def _why(exit: Exit) -> str:
    if exit.limit is not Limit.NONE:
        return f"ended by its {exit.limit.name.lower().replace('_', ' ')} limit"
    if exit.cut[0]:
        return "more was put out than the output limit takes: how it ended is not known"
    if exit.how is ExitHow.SIGNALED:
        return _signalled(exit.code)
    if exit.code in SIGNALS:  # a shell's status
        return _signalled(exit.code - 128)
    return f"the program ended before the test did, with status {exit.code}"


def _signalled(number: int) -> str:
    try:
        return f"ended by {signal.Signals(number).name}"
    except ValueError:
        return f"ended by signal {number}"


def _read_lines(text: str, tests: _Tests) -> None:
    name = ""
    for piece in text.split("\x1e")[1:]:
        line, _, rest = piece.partition("\n")
        if line.startswith("+"):
            name = line[1:]
            tests.begin(name)
        elif found := re.fullmatch(r"-(\d{1,3}) (\d{1,9})", line):
            if name:  # else what it put out was taken for an end
                _end_program(tests, name, int(found[1]), float(found[2]))
            name = ""
        elif line.startswith("{"):
            told = _decode(line, _Told)
            if told is None:
                continue
            if told.outcome is None:
                name = told.name
                tests.begin(name)
            else:
                tests.end(told.name, told.outcome, told.message, told.wall_ms, told.output)
                name = ""
        tests.say(name, rest)


def _end_program(tests: _Tests, name: str, status: int, wall_ms: float) -> None:
    """A program that is a test, or that has told of its tests: what it said last is the reason if
    it failed.
    """
    text = "".join(tests.open.get(name[:MAX_NAME], ()))
    if found := list(_UNITY.finditer(text)):
        tests.drop(name)
        summaries = _UNITY_END.findall(text)
        at = 0
        for match in found:
            said = text[at : match.start()].removesuffix(_unity_file(text[at : match.start()], name))
            tests.end(match[1], _UNITY_OUTCOMES[match[2]], match[3] or "", None, said)
            at = match.end()
        text = text[at:]
        if _UNITY_END.search(text):
            counts = tuple(sum(map(int, column)) for column in zip(*summaries, strict=True))
            told = (len(found), *(sum(match[2] == word for match in found) for word in ("FAIL", "IGNORE")))
            _end_unity(tests, name, counts, told, status, wall_ms)
            return
        tests.begin(name)
        tests.say(name, text)
        if status in (0, SKIPPED):
            tests.end(name, "error", f"the program ended before its tests did, with status {status}", wall_ms)
            return
    if _end_google(tests, name, text, status, wall_ms):
        return
    if not status and text.startswith("[doctest]") and not _DOCTEST_RAN.search(text):
        tests.end(name, "error", "the program ended with status 0, and no test had", wall_ms)
        return
    outcome: Outcome = "skipped" if status == SKIPPED or (status == 0 and _CATCH_SKIPPED in text) else "failed" if status else "passed"
    printed = text.strip().splitlines()
    message = (
        _catch_message(text)
        or _thrown(text)
        or _terminated(text)
        or (_panic(text) if status == RUST_PANICKED else "")
        or (printed[-1] if printed and status not in CRASHES else _status(status))
    )
    tests.end(name, outcome, "" if outcome == "passed" else message, wall_ms)


def _thrown(text: str) -> str:
    """What Java says of an exception that ended a program."""
    found = _JAVA_THROWN.search(text)
    return found[1] if found else ""


def _terminated(text: str) -> str:
    """What C++ says of one."""
    found = _TERMINATED.search(text)
    return found[0].strip() if found else ""


def _end_google(tests: _Tests, name: str, text: str, status: int, wall_ms: float) -> bool:
    """Whether a program was one of GoogleTest's. It is a row of its own if it failed though none of
    its tests did.
    """
    found = list(_GOOGLE.finditer(text))
    if not found:
        return False
    tests.drop(name)
    for test, said, word, ms in (match.groups() for match in found):
        if word is None:
            tests.end(test, "error", _status(status), None, said)
        else:
            message = "" if word == "OK" else said.partition(" Failure\n")[2].strip() or said.strip()
            tests.end(test, _GOOGLE_OUTCOMES[word], message, float(ms), said)
    if status and all(match[3] in ("OK", "SKIPPED") for match in found):
        tests.end(name, "failed", f"all tests ended, and then the program: {_status(status)}", wall_ms)
    return True


def _catch_message(text: str) -> str:
    """What Catch2 or doctest says of the first assertion that failed, or of why a test was
    skipped.
    """
    for word in (": FAILED:\n", ": SKIPPED:\n"):
        if word in text:
            return text.partition(word)[2].partition("\n\n")[0].strip()
    found = _DOCTEST.search(text) if text.startswith("[doctest]") else None
    return found[1].strip() if found else ""


def _unity_file(said: str, program: str) -> str:
    """The name of the test's file at the end of what was put out: as the program is called, or else
    the last word.
    """
    line = said[said.rfind("\n") + 1 :]
    at = line.rfind(f"{program}.")
    return line[at if at >= 0 else line.rfind(" ") + 1 :]


def _end_unity(tests: _Tests, name: str, counts: tuple[int, ...], told: tuple[int, ...], status: int, wall_ms: float) -> None:
    """A program whose tests have ended. It is a row of its own if it was not well besides: it ended
    with another status than of its failed tests, or its summary has tests that were not told.
    """
    failures = counts[1]
    if status not in ((0, 1, failures % 256) if failures else (0,)):
        tests.end(name, "failed", f"all tests ended, and then the program: {_status(status)}", wall_ms)
    elif counts != told:
        words = "{} tests, {} failures, {} ignored"
        message = f"its summary has {words.format(*counts)}; {words.format(*told)} were told"
        tests.end(name, "error" if counts[1] != told[1] else "passed", message, wall_ms)


def _status(status: int) -> str:
    """A shell's status of a program."""
    return _signalled(status - 128) if status in SIGNALS else f"exit status {status}"


def _read_libtest(text: str, tests: _Tests) -> None:
    if text.startswith("\x1e"):
        _read_lines(text, tests)
        return
    outcomes: Mapping[str, Outcome] = {"ok": "passed", "failed": "failed", "ignored": "skipped"}
    for match in _RUST_LINE.finditer(text):
        found = _decode(match[0], _LibTest)
        if found is None:
            continue
        if found.event == "started":
            tests.begin(found.name)
        elif found.event in outcomes:
            message = found.message or (_panic(found.stdout) if found.event == "failed" else "")
            wall_ms = None if found.exec_time is None else round(found.exec_time * 1000, 3)
            tests.end(found.name, outcomes[found.event], message, wall_ms, found.stdout)


def _panic(stdout: str) -> str:
    lines = stdout.split("\n")
    for number, line in enumerate(lines[:-1], 1):
        if "panicked at " in line and _RUST_PLACE.search(line):
            return _RUST_PANIC_END.split("\n".join(lines[number:]), 1)[0].strip()
    _, old, said = stdout.partition("panicked at '")  # before Rust 1.73
    end = _RUST_OLD_PANIC_END.search(said)
    return said[: end.start()].strip() if old and end else stdout.strip()


def _read_gotest(text: str, tests: _Tests) -> None:
    current = prefix = ""
    ended: dict[str, tuple[Outcome, float]] = {}

    def finish() -> None:  # late: output may come behind the end
        for name, (outcome, wall_ms) in ended.items():
            said = "".join(tests.open.get(name[:MAX_NAME], ()))
            tests.end(name, outcome, "" if outcome == "passed" else _go_message(said), wall_ms)
        ended.clear()
        for name, pieces in tuple(tests.open.items()):
            said = "".join(pieces)
            crash = _GO_CRASH.search(said)
            if crash and "\ngoroutine " in said:
                tests.end(name, "failed", crash[0], None)

    marked = _GO_MARKED.search(text) is not None
    for line in text.splitlines(keepends=True):
        said, words = _go_words(line.removesuffix("\n"), marked)
        if found := _GO_PACKAGE.fullmatch(words):
            tests.say(current, said)
            finish()
            for name in tuple(tests.open):
                tests.end(name, "error", "the program ended before the test did", None)
            current, prefix = "", "" if found[1] == "." else f"{found[1]}."
        elif found := _GO_BEGIN.fullmatch(words):
            tests.say(current, said)
            if found[1] == "RUN":
                tests.begin(prefix + found[2])
            if found[1] != "PAUSE":
                current = prefix + found[2]
        elif found := _GO_END.fullmatch(words):
            if said.strip():
                tests.say(current, said.rstrip(" "))
            current = prefix + found[2]
            ended[current] = (_GO_OUTCOMES[found[1]], float(found[3]) * 1000)
        elif words.rstrip(" ") in ("PASS", "FAIL", "=== NAME"):  # nobody's turn
            tests.say(current, said)
            current = ""
        else:
            tests.say(current, line)
    finish()


def _go_words(line: str, marked: bool) -> tuple[str, str]:
    """What a test has put out before the runner's own words in a line, and these."""
    said, mark, words = line.rpartition("\x16")
    if marked or mark:
        return said, words if mark else ""
    found = _GO_UNMARKED.search(line)
    return (line[: found.start()], found[0]) if found else (line, "")


def _go_message(said: str) -> str:
    """The first line that a test logged, with what belongs to it; or the panic."""
    lines = said.splitlines()
    for index, line in enumerate(lines):
        if _GO_CRASH.match(line):
            return line
        if place := _GO_PLACE.match(line):
            indent = len(line) - len(line.lstrip())
            more = [line[place.end() :]]
            for following in lines[index + 1 :]:
                if len(following) - len(following.lstrip()) <= indent:
                    break
                more.append(following.strip())
            return "\n".join(more)
    behind = _GO_BEHIND.search(said)
    return _go_message(said[behind.start() :]) if behind else said.strip()


_READERS: Mapping[str, Callable[[str, Any], None]] = {"lines": _read_lines, "libtest": _read_libtest, "gotest": _read_gotest}
