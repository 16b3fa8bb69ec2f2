"""Results of tests out of what test programs print."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.protocol.frames import Exit, ExitHow, Limit
from mayfly.runs.tested import MAX_NAME, MAX_TESTS, read_tests


def ended(code: int = 0, how: ExitHow = ExitHow.EXITED, limit: Limit = Limit.NONE) -> Exit:
    """The end of a program."""
    return Exit(step=0, how=how, code=code, limit=limit, wall_us=0, cpu_us=0, peak_memory=0, cut=(False, False))


def cut() -> Exit:
    """That of one that has put out more than it may."""
    return Exit(step=0, how=ExitHow.EXITED, code=0, limit=Limit.NONE, wall_us=0, cpu_us=0, peak_memory=0, cut=(True, False))


def found(form: str, stdout: str, end: Exit | None = None) -> list[tuple[object, ...]]:
    """Name, outcome, message and output of each test."""
    return [(test.name, test.outcome, test.message, test.output) for test in read_tests(form, stdout.encode(), end or ended())]


def test_lines() -> None:
    stdout = (
        'before\n\x1e+a\nsaid\x1e{"name": "a", "outcome": "passed"}\nlost\n'
        '\x1e{"name": "b", "outcome": "failed", "message": "m", "wall_ms": 1.5, "output": "o"}\n'
        "\x1e+c\none\ntwo\n\x1e-3 20\n\x1e+d\n\x1e-134 0\n\x1e+e\n\x1e-77 0\n\x1e+f\n\x1e-0 10\n"
        '\x1e{"name": "g", "outcome": "odd"}\n\x1e{broken\n\x1e-x\n\x1e'
    )
    assert found("lines", stdout) == [
        ("a", "passed", "", "said"),
        ("b", "failed", "m", "o"),
        ("c", "failed", "two", "one\ntwo\n"),
        ("d", "failed", "ended by SIGABRT", ""),
        ("e", "skipped", "exit status 77", ""),
        ("f", "passed", "", ""),
    ]


def test_those_of_the_same_name_are_told_apart() -> None:
    twice = '{"type": "test", "event": "%s", "name": "a", "stdout": "%s"}\n'
    stdout = "".join(twice % fields for fields in (("started", ""), ("ok", "1"), ("started", ""), ("failed", "2"), ("started", "")))
    assert found("libtest", stdout, ended(3)) == [
        ("a", "passed", "", "1"),
        ("a (2)", "failed", "2", "2"),
        ("a (3)", "error", "the program ended before the test did, with status 3", ""),
    ]
    names = [name for name, *_ in found("lines", "\x1e+a\n\x1e-0 0\n" * 2 + "\x1e+a (2)\n\x1e-0 0\n")]
    assert names == ["a", "a (2)", "a (2) (2)"]


@pytest.mark.parametrize(
    ("end", "outcome", "message"),
    [
        (ended(9, ExitHow.SIGNALED, Limit.WALL), "timeout", "ended by its wall limit"),
        (ended(9, ExitHow.SIGNALED, Limit.MEMORY), "error", "ended by its memory limit"),
        (ended(11, ExitHow.SIGNALED), "error", "ended by SIGSEGV"),
        (ended(99, ExitHow.SIGNALED), "error", "ended by signal 99"),
        (ended(137), "error", "ended by SIGKILL"),
        (cut(), "error", "more was put out than the output limit takes: how it ended is not known"),
        (ended(3), "error", "the program ended before the test did, with status 3"),
    ],
)
def test_one_that_has_not_ended_says_how_the_program_did(end: Exit, outcome: str, message: str) -> None:
    assert found("lines", "\x1e+a\nout", end) == [("a", outcome, message, "out")]


LIBTEST = """
{ "type": "suite", "event": "started", "test_count": 4 }
{ "type": "test", "event": "started", "name": "adds" }
noise
{ "type": "test", "name": "adds", "event": "ok", "exec_time": 0.0015, "stdout": "seen\\n" }
{ "type": "test", "event": "started", "name": "fails" }
{ "type": "test", "name": "fails", "event": "failed", "stdout": "panicked at x.rs:3:5:\\nfailed\\n  left: 1\\nnote: x\\nnote: run with" }
{ "type": "test", "name": "old", "event": "failed", "stdout": "thread 'old' panicked at 'boom', main.rs:3:5\\n" }
{ "type": "test", "name": "later", "event": "ignored", "message": "why" }
{ "type": "test", "event": "started", "name": "hangs" }
"""


def test_a_program_of_rusts() -> None:
    ghost = '{"type": "test", "event": "ok", "name": "ghost"}\n'
    said = f"one\n{ghost}\nthread 'main' (7) panicked at src/main.rs:2:28:\nassertion failed: two\nnote: run with `RUST_BACKTRACE=1`\n"
    assert found("libtest", f"\x1e+src/main\n{said}\x1e-101 10\n", ended(101)) == [("src/main", "failed", "assertion failed: two", said)]


def test_doctests_that_have_not_ended() -> None:
    """One may end the program, or be of no name that doctest knows."""
    start = '[doctest] doctest version is "2.4.9"\n[doctest] run with "--help" for options\n'
    none, one = (f"[doctest] test cases: {count} | {count} passed | 0 failed | 9 skipped\n" for count in (0, 1))
    for said, outcome in (("", "error"), (none, "error"), (one, "passed")):
        assert found("lines", f"\x1e+a\n{start}{said}\x1e-0 10\n")[0][:2] == ("a", outcome)


def test_libtest() -> None:
    late = ended(9, ExitHow.SIGNALED, Limit.CPU)
    tests = read_tests("libtest", LIBTEST.encode(), late)
    assert [(test.name, test.outcome, test.message) for test in tests] == [
        ("adds", "passed", ""),
        ("fails", "failed", "failed\n  left: 1\nnote: x"),
        ("old", "failed", "boom"),
        ("later", "skipped", "why"),
        ("hangs", "timeout", "ended by its cpu limit"),
    ]
    assert (tests[0].wall_ms, tests[0].output) == (1.5, "seen\n")


def test_libtests_lines_behind_output_and_with_other_ends_of_lines() -> None:
    stdout = (
        'a child{ "type": "test", "event": "started", "name": "a" }\n'
        '\u2028{ "type": "test", "name": "a", "event": "ok", "stdout": "\u2028\x85" }\n'
        '{ "type": "test", "name": "b", "event": "failed", "stdout": "panicked at x.rs:3:5:\\nm\x85n\\n\\nthread \'b\' panicked at y" }\n'
    )
    assert [row[:3] for row in found("libtest", stdout)] == [("a", "passed", ""), ("b", "failed", "m\x85n")]


GOTEST = """=== RUN   TestPasses
seen
no line end--- PASS: TestPasses (0.01s)
=== RUN   TestFails
    leap_test.go:9: one
        two
--- FAIL: TestFails (0.00s)
=== RUN   TestTable
=== RUN   TestTable/a_b
    leap_test.go:12: not this
=== RUN   TestTable/c
--- FAIL: TestTable (0.00s)
    --- FAIL: TestTable/a_b (0.00s)
    --- PASS: TestTable/c (0.00s)
=== RUN   TestSkips
    leap_test.go:20: later
--- SKIP: TestSkips (0.00s)
=== RUN   TestPanics
--- FAIL: TestPanics (0.00s)
panic: boom [recovered]
\tpanic: boom

goroutine 6 [running]:
"""


def test_gotest() -> None:
    tests = found("gotest", GOTEST, ended(2))
    assert [(name, outcome, message) for name, outcome, message, _ in tests] == [
        ("TestPasses", "passed", ""),
        ("TestFails", "failed", "one\ntwo"),
        ("TestTable", "failed", ""),
        ("TestTable/a_b", "failed", "not this"),
        ("TestTable/c", "passed", ""),
        ("TestSkips", "skipped", "later"),
        ("TestPanics", "failed", "panic: boom [recovered]"),
    ]
    assert tests[0][3] == "seen\nno line end"
    assert found("gotest", "=== RUN   TestX\nout\n", ended(9, ExitHow.SIGNALED, Limit.WALL)) == [
        ("TestX", "timeout", "ended by its wall limit", "out\n")
    ]


def test_gotest_with_marks() -> None:
    """What a test prints is nothing else, whatever it looks like."""
    printed = "=== RUN   TestGhost\n    --- FAIL: TestGhost (0.00s)\n--- PASS: TestA (0.00s)\nPASS\n"
    stdout = (
        f"{printed}\x16=== RUN   TestA\n{printed}no line end\x16=== RUN   TestA/b\nof b\x16--- PASS: TestA/b (0.01s)\n"
        "\x16=== NAME   \nlost\n\x16=== NAME  TestA\n    a_test.go:7: one\n        === RUN   two\n"
        "\x16--- FAIL: TestA (0.00s)\n\x16FAIL\nlost\n"
    )
    assert found("gotest", stdout, ended(1)) == [
        ("TestA", "failed", "one\n=== RUN   two", f"{printed}no line end    a_test.go:7: one\n        === RUN   two\n"),
        ("TestA/b", "passed", "", "of b"),
    ]
    two = "\x16=== PACKAGE .\n\x16=== RUN   TestA\nx\x16--- PASS: TestA (0.00s)\ny\x16PASS\n\x16=== PACKAGE ./b\n\x16=== RUN   TestA\n"
    assert found("gotest", two, ended(1))[0] == ("TestA", "passed", "", "xy")


def test_gos_of_several_packages() -> None:
    """Of programs that ended before their tests did, too."""
    crash = "panic: a\n\ngoroutine 7 [running]:\n"
    stdout = (
        f"\x16=== PACKAGE .\n=== RUN   TestA\n{crash}\x16=== PACKAGE ./b/c\n=== RUN   TestA\nout"
        "\x16=== PACKAGE ./d\n=== RUN   TestA\npanic: logged\n--- PASS: TestA (0.00s)\nPASS\n=== RUN   TestB\npanic: said\n"
    )
    assert found("gotest", stdout, ended(9, ExitHow.SIGNALED, Limit.WALL)) == [
        ("TestA", "failed", "panic: a", crash),
        ("b/c.TestA", "error", "the program ended before the test did", "out"),
        ("d.TestA", "passed", "", "panic: logged\n"),
        ("d.TestB", "timeout", "ended by its wall limit", "panic: said\n"),
    ]


GOOGLE = """[==========] Running 4 tests from 1 test suite.
[----------] 4 tests from Leap
[ RUN      ] Leap.Four
said[       OK ] Leap.Four (2 ms)
[ RUN      ] Leap.Five
leap_test.cc:5: Failure
Expected equality of these values:
  5 % 4
    Which is: 1
  0

[  FAILED  ] Leap.Five (0 ms)
[ RUN      ] Leap.Later
leap_test.cc:7: Skipped
later
[  SKIPPED ] Leap.Later (0 ms)
[ RUN      ] Years/Leap.Is/0
leap_test.cc:9: Failure
Failed

[  FAILED  ] Years/Leap.Is/0, where GetParam() = 5 (0 ms)
"""
GOOGLE_END = """[----------] 4 tests from Leap (2 ms total)

[  PASSED  ] 1 test.
[  FAILED  ] 1 test, listed below:
[  FAILED  ] Leap.Five
"""


def test_googles() -> None:
    rows = [
        ("Leap.Four", "passed", "", "said"),
        (
            "Leap.Five",
            "failed",
            "Expected equality of these values:\n  5 % 4\n    Which is: 1\n  0",
            "leap_test.cc:5: Failure\nExpected equality of these values:\n  5 % 4\n    Which is: 1\n  0\n\n",
        ),
        ("Leap.Later", "skipped", "leap_test.cc:7: Skipped\nlater", "leap_test.cc:7: Skipped\nlater\n"),
        ("Years/Leap.Is/0", "failed", "Failed", "leap_test.cc:9: Failure\nFailed\n\n"),
    ]
    assert found("lines", f"\x1e+leap_test\n{GOOGLE}{GOOGLE_END}\x1e-1 20\n", ended(1)) == rows
    crashed = f"\x1e+leap_test\n{GOOGLE}[ RUN      ] Leap.Crash\nout\x1e-139 20\n"
    assert found("lines", crashed, ended(1)) == [*rows, ("Leap.Crash", "error", "ended by SIGSEGV", "out")]
    late = "\x1e+leap_test\n[ RUN      ] Leap.Four\n[       OK ] Leap.Four (2 ms)\nbye\x1e-139 20\n"
    assert found("lines", late, ended(1)) == [
        ("Leap.Four", "passed", "", ""),
        ("leap_test", "failed", "all tests ended, and then the program: ended by SIGSEGV", ""),
    ]


def test_what_ended_a_program_of_cpp() -> None:
    said = "before\nterminate called after throwing an instance of 'std::runtime_error'\n  what():  boom\n"
    assert found("lines", f"\x1e+a\n{said}\x1e-134 0\n", ended(1))[0][:3] == (
        "a",
        "failed",
        "terminate called after throwing an instance of 'std::runtime_error'\n  what():  boom",
    )


@pytest.mark.parametrize("form", ["lines", "libtest", "gotest"])
def test_no_tests_are_an_error(form: str) -> None:
    assert found(form, "PASS\n") == [("tests", "error", "there are no tests", "")]
    assert found(form, "", ended(1)) == []  # the program says why


def test_names_of_several_lines() -> None:
    stdout = '\x1e{"name": "a\\nb"}\nsaid\x1e{"name": "a\\nb", "outcome": "passed"}\n\x1e{"name": "c\\nd"}\n'
    assert found("lines", stdout, ended(3))[0] == ("a\nb", "passed", "", "said")
    assert [row[:2] for row in found("lines", stdout, ended(3))] == [("a\nb", "passed"), ("c\nd", "error")]


def test_halves_of_surrogate_pairs() -> None:
    ends = '{"name": "a \\ud83d", "outcome": "failed", "message": "\\ude00 é \\ud83d\\ude00", "output": "\\ud83d"}'
    assert found("lines", f'\x1e{{"name": "a \\ud83d"}}\n\x1e{ends}\n') == [("a ?", "failed", "? é 😀", "?")]
    assert found("lines", '\x1e{"name": "a", "outcome": "failed", "wall_ms": NaN}\n', ended(1)) == []


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (139, "last line\n", "ended by SIGSEGV"),
        (134, "assertion failed\n", "assertion failed"),
        (255, "", "exit status 255"),
        (255, "last line\n", "last line"),
        (
            1,
            'Exception in thread "main" java.lang.AssertionError: two\nlines\n\tat A.main(A.java:3)\n',
            "java.lang.AssertionError: two\nlines",
        ),
    ],
)
def test_why_a_program_failed(status: int, said: str, message: str) -> None:
    assert found("lines", f"\x1e+a\n{said}\x1e-{status} 0\n") == [("a", "failed", message, said)]


def test_catch2() -> None:
    """What the console reporter of version 3 says."""
    failed = "Filters: a\nleap.cpp:6: FAILED:\n  REQUIRE( a )\nwith expansion:\n  false\n\n=====\ntest cases: 1 | 1 failed\n"
    skipped = "leap.cpp:9: SKIPPED:\nexplicitly with message:\n  later\n\n=====\ntest cases: 1 | 1 skipped\nassertions: - none -\n\n"
    told = found("lines", f"\x1e+a\n{failed}\x1e-42 10\n\x1e+b\n{skipped}\x1e-0 10\n")
    assert [row[:3] for row in told] == [
        ("a", "failed", "REQUIRE( a )\nwith expansion:\n  false"),
        ("b", "skipped", "explicitly with message:\n  later"),
    ]


UNITY_LINES = "asked 16\nt_leap.c:5:test_a:PASS\nasked 5t_leap.c:12:test_b:FAIL: Expected 1 Was 0\nt_leap.c:9:test_c(1, 2):IGNORE\n"
TOLD = "3 tests, 1 failures, 1 ignored were told"
UNITY_TOLD = [
    ("test_a", "passed", "", "asked 16\n"),
    ("test_b", "failed", "Expected 1 Was 0", "asked 5"),
    ("test_c(1, 2)", "skipped", "", ""),
]


@pytest.mark.parametrize(
    ("summary", "status", "more"),
    [
        ("3 Tests 1 Failures 1 Ignored", 1, []),
        ("3 Tests 1 Failures 1 Ignored", 0, []),
        ("3 Tests 1 Failures 1 Ignored", 139, [("failed", "all tests ended, and then the program: ended by SIGSEGV")]),
        ("3 Tests 1 Failures 1 Ignored", 23, [("failed", "all tests ended, and then the program: exit status 23")]),
        (
            "4 Tests 2 Failures 1 Ignored",
            2,
            [("error", f"its summary has 4 tests, 2 failures, 1 ignored; {TOLD}")],
        ),
        (
            "4 Tests 1 Failures 1 Ignored",
            1,
            [("passed", f"its summary has 4 tests, 1 failures, 1 ignored; {TOLD}")],
        ),
        ("1 Tests 0 Failures 1 Ignored\nmore\n2 Tests 1 Failures 0 Ignored", 1, []),
    ],
)
def test_unity(summary: str, status: int, more: list[tuple[str, str]]) -> None:
    told = found("lines", f"\x1e+t_leap\n{UNITY_LINES}\n-----\n{summary} \nFAIL\n\x1e-{status} 10\n")
    assert told[:3] == UNITY_TOLD
    assert [(name, outcome, message) for name, outcome, message, _ in told[3:]] == [("t_leap", *row) for row in more]


def test_unitys_that_pass_in_a_program_that_does_not() -> None:
    lines = "x.c:1:a:PASS\n\n-----\n1 Tests 0 Failures 0 Ignored\nOK\nleaked\n"
    assert found("lines", f"\x1e+x\n{lines}\x1e-0 1\n") == [("a", "passed", "", "")]
    told = found("lines", f"\x1e+x\n{lines}\x1e-1 1\n")
    assert [row[:3] for row in told] == [("a", "passed", ""), ("x", "failed", "all tests ended, and then the program: exit status 1")]


@pytest.mark.parametrize(
    ("status", "outcome", "message"),
    [
        (0, "error", "the program ended before its tests did, with status 0"),
        (77, "error", "the program ended before its tests did, with status 77"),
        (3, "failed", "bye"),
        (134, "failed", "bye"),
        (139, "failed", "ended by SIGSEGV"),
    ],
)
def test_a_program_that_ends_amid_unitys_tests(status: int, outcome: str, message: str) -> None:
    told = found("lines", f"\x1e+x\nx.c:10:a:PASS\nbye\n\x1e-{status} 1\n")
    assert told == [("a", "passed", "", ""), ("x", outcome, message, "bye\n")]


def test_there_is_an_end_to_tests_and_to_their_names() -> None:
    many = "".join(f"\x1e+{number}\n\x1e-0 0\n" for number in range(MAX_TESTS + 5))
    assert len(found("lines", many)) == MAX_TESTS
    assert len(str(found("lines", f"\x1e+{'x' * 9999}\n\x1e-0 0\n")[0][0])) == MAX_NAME


LONG = 1 << 20
LAST = '{"type": "test", "event": "failed", "name": "a", "stdout": "%s"}\n'


@pytest.mark.parametrize(
    ("form", "stdout"),
    [
        pytest.param("gotest", "=== RUN   a\n" + " " * LONG + "\n", id="spaces"),
        pytest.param("gotest", "=== RUN   a\n" + " --- PASS: a (1" * (LONG // 15) + "\n", id="ends"),
        pytest.param("gotest", "=== RUN   a\n" + "=== RUN " * (LONG // 8) + "\n", id="begins"),
        pytest.param("lines", "\x1e+a\n[ RUN      ] a\n" + "[  OK ] a, where " * (LONG // 17) + "\n\x1e-0 0\n", id="GoogleTest's ends"),
        pytest.param("lines", "\x1e+a\n" + ":1:a(" * (LONG // 5) + "\n\x1e-0 0\n", id="Unity's tests"),
        pytest.param("lines", "\x1e+a\n" + 'Exception in thread "' * (LONG // 21) + "\n\x1e-1 0\n", id="Java's exceptions"),
        pytest.param("libtest", LAST % ("panicked at a:1:1" * (LONG // 17)), id="panics"),
        pytest.param("libtest", LAST % ("panicked at 'a', " * (LONG // 17)), id="older panics"),
        pytest.param("libtest", '{"type": "test"' * (LONG // 15), id="objects"),
    ],
)
def test_what_resembles_results_is_read_in_one_pass(form: str, stdout: str) -> None:
    """Programs print what they like: by squares of its length this would take hours."""
    assert len(read_tests(form, stdout.encode(), ended())) == 1


@given(
    st.sampled_from(["lines", "libtest", "gotest"]),
    st.binary(max_size=300) | st.text(alphabet='\x1e{}+-01"a:=\n RUN', max_size=80).map(str.encode),
)
def test_nothing_that_is_printed_breaks_it(form: str, stdout: bytes) -> None:
    for test in read_tests(form, stdout, ended()):
        assert test.outcome in ("passed", "failed", "skipped", "error", "timeout")
