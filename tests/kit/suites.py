"""Suites of tests as exercise sites have them, one a language, and what comes of them: each
outcome, an exception, a crash, what a test prints, names that come twice, a suite that does not
compile, a test that never ends.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

from mayfly.runs.result import TestReport

Told = tuple[str, str, str, str]
"""Name, outcome, message and output of a test. A message that ends with … is a beginning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A solution and its tests.

    `hidden` are those of its files that the tests are. `wrong` replaces files by some that the
    language does not take, for the reason `words`; `endless` by a test that passes and one that
    never ends, whose names are in `ends`.
    """

    files: Mapping[str, str]
    hidden: tuple[str, ...]
    told: tuple[Told, ...]
    wrong: Mapping[str, str]
    words: str
    endless: Mapping[str, str]
    ends: tuple[str, str]


RUST = Suite(
    files={
        "Cargo.toml": '[package]\nname = "leap-year"\nversion = "1.0.0"\nedition = "2021"\n',
        "src/lib.rs": (
            "pub fn is_leap_year(year: u8) -> bool {\n"
            '    println!("asked {year}");\n'
            "    year % 4 == 0\n"
            "}\n\n"
            "pub fn next(year: u8) -> u8 {\n    year + 1\n}\n"
        ),
        "tests/leap_year.rs": (
            "use leap_year::*;\n\n"
            "#[test]\nfn leap() {\n    assert!(is_leap_year(16));\n}\n\n"
            '#[test]\nfn not_leap() {\n    assert_eq!(is_leap_year(20), false, "20 is none");\n}\n\n'
            '#[test]\n#[ignore = "later"]\nfn ignored() {}\n\n'
            '#[test]\n#[should_panic(expected = "overflow")]\nfn panics() {\n    next(255);\n}\n\n'
            "#[test]\nfn last() {\n    next(std::hint::black_box(255));\n}\n"
        ),
        "tests/more.rs": "#[test]\nfn leap() {\n    assert!(!leap_year::is_leap_year(16));\n}\n",
    },
    hidden=("tests/leap_year.rs", "tests/more.rs"),
    told=(
        ("ignored", "skipped", "later", ""),
        ("last", "failed", "attempt to add with overflow", "…"),
        ("leap", "passed", "", "asked 16\n"),
        ("not_leap", "failed", "assertion `left == right` failed: 20 is none\n  left: true\n right: false", "…"),
        ("panics", "passed", "", "…"),
        ("leap (2)", "failed", "assertion failed: !leap_year::is_leap_year(16)", "…"),
    ),
    wrong={"src/lib.rs": "pub fn is_leap_year(year: u8) -> bool { year }\n"},
    words="mismatched types",
    endless={"tests/leap_year.rs": "#[test]\nfn ends() {}\n\n#[test]\nfn never() {\n    loop {}\n}\n", "tests/more.rs": ""},
    ends=("ends", "never"),
)

GO = Suite(
    files={
        "go.mod": "module leap\n\ngo 1.18\n",
        "leap.go": (
            'package leap\n\nimport "fmt"\n\nfunc IsLeapYear(year int) bool {\n\tfmt.Println("asked", year)\n\treturn year%4 == 0\n}\n'
        ),
        "leap_test.go": (
            "package leap\n\n"
            'import "testing"\n\n'
            "func TestLeapYears(t *testing.T) {\n"
            "\tfor _, year := range []int{16, 20, 3} {\n"
            '\t\tt.Run(map[int]string{16: "sixteen", 20: "twenty", 3: "not three"}[year], func(t *testing.T) {\n'
            "\t\t\tif IsLeapYear(year) != (year == 16) {\n"
            '\t\t\t\tt.Fatalf("IsLeapYear(%d) = true, want: false", year)\n'
            "\t\t\t}\n\t\t})\n\t}\n}\n\n"
            'func TestSkipped(t *testing.T) { t.Skip("later") }\n\n'
            "func TestPanics(t *testing.T) {\n\tvar years []int\n\t_ = IsLeapYear(years[len(years)])\n}\n\n"
            "func TestNeverReached(t *testing.T) {}\n"
        ),
    },
    hidden=("leap_test.go",),
    told=(
        ("TestLeapYears", "failed", "", ""),
        ("TestLeapYears/sixteen", "passed", "", "asked 16\n"),
        ("TestLeapYears/twenty", "failed", "IsLeapYear(20) = true, want: false", "…"),
        ("TestLeapYears/not_three", "passed", "", "asked 3\n"),
        ("TestSkipped", "skipped", "later", "…"),
        ("TestPanics", "failed", "panic: runtime error: index out of range [0] with length 0…", "…"),
    ),
    wrong={"leap.go": "package leap\n\nfunc IsLeapYear(year int) bool { return year }\n"},
    words="cannot use year",
    endless={
        "leap_test.go": 'package leap\n\nimport "testing"\n\nfunc TestEnds(t *testing.T) {}\n\n'
        "func TestNever(t *testing.T) {\n\tfor {\n\t}\n}\n"
    },
    ends=("TestEnds", "TestNever"),
)

_PYTHON_LEAP = "def leap_year(year):\n    print('asked', year)\n    return year % 4 == 0\n"
PYTHON = Suite(
    files={
        "leap.py": _PYTHON_LEAP,
        "leap_test.py": (
            "import unittest\n\nfrom leap import leap_year\n\n\n"
            "class LeapTest(unittest.TestCase):\n"
            "    def test_a_leap_year(self):\n        self.assertIs(leap_year(16), True)\n\n"
            "    def test_b_century(self):\n        self.assertIs(leap_year(20), False, 'twenty')\n\n"
            "    def test_c_exception(self):\n        leap_year('x')\n\n"
            "    @unittest.skip('later')\n    def test_d_skipped(self):\n        pass\n\n"
            "    def test_e_raises(self):\n        with self.assertRaises(TypeError):\n            leap_year(None)\n"
        ),
    },
    hidden=("leap_test.py",),
    told=(
        ("leap_test.LeapTest.test_a_leap_year", "passed", "", "asked 16\n"),
        ("leap_test.LeapTest.test_b_century", "failed", "AssertionError: True is not False : twenty", "asked 20\n"),
        (
            "leap_test.LeapTest.test_c_exception",
            "error",
            "TypeError: not all arguments converted during string formatting",
            "asked x\n",
        ),
        ("leap_test.LeapTest.test_d_skipped", "skipped", "later", ""),
        ("leap_test.LeapTest.test_e_raises", "passed", "", "asked None\n"),
    ),
    wrong={"leap.py": "def leap_year(year)\n    return True\n"},
    words="SyntaxError",
    endless={"leap_test.py": "def test_ends():\n    pass\n\n\ndef test_never():\n    while True:\n        pass\n"},
    ends=("leap_test.test_ends", "leap_test.test_never"),
)

_NODE_TEST = (
    "describe('leap', () => {\n"
    "  test('sixteen', () => assert.equal(isLeap(16), true));\n"
    "  test('twenty', () => assert.equal(isLeap(20), false, 'twenty'));\n"
    "  describe('words', () => {\n"
    "    test('sixteen', () => isLeap('sixteen'));\n"
    "    test('later', { skip: 'later' }, () => {});\n"
    "  });\n"
    "});\n"
    "test('in steps', async (t) => {\n"
    "  await t.test('waits', async () => assert.equal(await Promise.resolve(isLeap(4)), true));\n"
    "});\n"
)
_NODE_TOLD = (
    ("leap > sixteen", "passed", "", "asked 16\n"),
    ("leap > twenty", "failed", "twenty", "asked 20\n"),
    ("leap > words > sixteen", "failed", "not a number: sixteen", ""),
    ("leap > words > later", "skipped", "later", ""),
    ("in steps", "passed", "", ""),
    ("in steps > waits", "passed", "", "asked 4\n"),
)
JAVASCRIPT = Suite(
    files={
        "leap.js": (
            "export const isLeap = (year) => {\n"
            "  if (typeof year !== 'number') throw new TypeError(`not a number: ${year}`);\n"
            "  console.log('asked', year);\n"
            "  return year % 4 === 0;\n};\n"
        ),
        "package.json": '{"type": "module"}\n',
        "leap.spec.js": (
            "import assert from 'node:assert';\nimport { describe, test } from 'node:test';\n"
            f"import {{ isLeap }} from './leap.js';\n\n{_NODE_TEST}"
        ),
    },
    hidden=("leap.spec.js",),
    told=_NODE_TOLD,
    wrong={"leap.js": "export const isLeap = (year => true;\n"},
    words="SyntaxError",
    endless={
        "leap.spec.js": "import { describe, it } from 'node:test';\n"
        "describe('it', () => {\n  it('ends', () => {});\n  it('never ends', () => { for (;;); });\n});\n"
    },
    ends=("it > ends", "it > never ends"),
)
TYPESCRIPT = Suite(
    files={
        "leap.ts": (
            "export const isLeap = (year: unknown): boolean => {\n"
            "  if (typeof year !== 'number') throw new TypeError(`not a number: ${year}`);\n"
            "  console.log('asked', year);\n"
            "  return year % 4 === 0;\n};\n"
        ),
        "leap.test.ts": (
            "import assert from 'node:assert';\nimport { describe, test } from 'node:test';\n"
            f"import {{ isLeap }} from './leap.ts';\n\n{_NODE_TEST}"
        ),
    },
    hidden=("leap.test.ts",),
    told=_NODE_TOLD,
    wrong={"leap.ts": "export const isLeap = (year: number => true;\n"},
    words='Expected ")"',
    endless={
        "leap.test.ts": "import { describe, it } from 'node:test';\n"
        "describe('it', () => {\n  it('ends', () => {});\n  it('never ends', () => { for (;;); });\n});\n"
    },
    ends=("it > ends", "it > never ends"),
)

JAVA = Suite(
    files={
        "src/main/java/Leap.java": (
            "class Leap {\n"
            "    boolean isLeapYear(int year) {\n"
            '        if (year < 0) throw new IllegalArgumentException("before \\"zero\\"");\n'
            '        System.out.println("asked " + year);\n'
            "        return year % 4 == 0;\n    }\n}\n"
        ),
        "src/test/java/LeapTest.java": (
            "import org.junit.jupiter.api.*;\nimport org.junit.jupiter.params.*;\nimport org.junit.jupiter.params.provider.*;\n"
            "import static org.junit.jupiter.api.Assertions.*;\n\n"
            "@TestMethodOrder(MethodOrderer.MethodName.class)\npublic class LeapTest {\n"
            "    private Leap leap;\n\n"
            "    @BeforeEach\n    public void setup() { leap = new Leap(); }\n\n"
            "    @Test\n    public void a() { assertTrue(leap.isLeapYear(16)); }\n\n"
            '    @Test\n    public void b() { assertFalse(leap.isLeapYear(20), "twenty"); }\n\n'
            "    @Test\n    public void c() { leap.isLeapYear(-1); }\n\n"
            '    @Disabled("later")\n    @Test\n    public void d() {}\n\n'
            "    @Test\n    public void e() { assertThrows(IllegalArgumentException.class, () -> leap.isLeapYear(-1)); }\n\n"
            '    @Test\n    public void f() { Assumptions.assumeTrue(leap.isLeapYear(3), "no leap year"); }\n\n'
            '    @ParameterizedTest\n    @CsvSource({"8, true", "9, true"})\n'
            "    void g(int year, boolean is) { assertEquals(is, leap.isLeapYear(year)); }\n}\n"
        ),
        "src/test/java/OldTest.java": (
            "import org.junit.Test;\nimport static org.junit.Assert.*;\n\n"
            'public class OldTest {\n    @Test\n    public void a() { assertEquals("four", false, new Leap().isLeapYear(4)); }\n}\n'
        ),
    },
    hidden=("src/test/java/LeapTest.java", "src/test/java/OldTest.java"),
    told=(
        ("LeapTest.a", "passed", "", "asked 16\n"),
        ("LeapTest.b", "failed", "twenty ==> expected: <false> but was: <true>", "asked 20\n"),
        ("LeapTest.c", "error", 'java.lang.IllegalArgumentException: before "zero"', ""),
        ("LeapTest.d", "skipped", "later", ""),
        ("LeapTest.e", "passed", "", ""),
        ("LeapTest.f", "skipped", "Assumption failed: no leap year", "asked 3\n"),
        ("LeapTest.g [1] 8, true", "passed", "", "asked 8\n"),
        ("LeapTest.g [2] 9, true", "failed", "expected: <true> but was: <false>", "asked 9\n"),
        ("OldTest.a", "failed", "four expected:<false> but was:<true>", "asked 4\n"),
    ),
    wrong={"src/main/java/Leap.java": "class Leap { boolean isLeapYear(int year) { return year; } }\n"},
    words="incompatible types",
    endless={
        "src/test/java/LeapTest.java": "import org.junit.jupiter.api.*;\n\n"
        "@TestMethodOrder(MethodOrderer.MethodName.class)\nclass LeapTest {\n"
        "    @Test void ends() {}\n\n    @Test void never() { while (true); }\n}\n",
        "src/test/java/OldTest.java": "",
    },
    ends=("LeapTest.ends", "LeapTest.never"),
)

_C_TESTS = {
    "leap.c": '#include <stdio.h>\n#include "leap.h"\n\nint leap(int year) { printf("asked %d\\n", year); return year % 4 == 0; }\n',
    "leap.h": "int leap(int year);\n",
    "test_a.c": '#include <assert.h>\n#include "leap.h"\n\nint main(void) { assert(leap(16)); return 0; }\n',
    "frame/frame.c": '#include <stdio.h>\n#include "frame.h"\n\nint fail(const char *why) { puts(why); return 2; }\n',
    "frame/frame.h": "int fail(const char *why);\n",
    "test_b.c": '#include "frame/frame.h"\n#include "leap.h"\n\nint main(void) { return leap(20) ? fail("twenty") : 0; }\n',
    "test_c.c": '#include "leap.h"\n\nint main(void) { int *none = 0; return leap(*(volatile int *)none); }\n',
    "test_d.c": "int main(void) { return 77; }\n",
}


def _c(suffix: str) -> Suite:
    """The suite of C; also for C++, with another suffix."""
    tests = {path.replace(".c", suffix): text for path, text in _C_TESTS.items()}
    return Suite(
        files=tests,
        hidden=tuple(path for path in tests if path.startswith("test_")),
        told=(
            ("test_a", "passed", "", "asked 16\n"),
            ("test_b", "failed", "twenty", "asked 20\ntwenty\n"),
            ("test_c", "failed", "…", "…"),
            ("test_d", "skipped", "exit status 77", ""),
        ),
        wrong={f"leap{suffix}": "int leap(int year) { return years; }\n"},
        words="years",
        endless={f"test_{letter}{suffix}": "int main() { return 0; }\n" for letter in "acd"}
        | {f"test_b{suffix}": "int main() { for (volatile int n = 0;; n = 1); }\n"},
        ends=("test_a", "test_b"),
    )


SUITES = {
    "rust": RUST,
    "go": GO,
    "python": PYTHON,
    "javascript": JAVASCRIPT,
    "typescript": TYPESCRIPT,
    "java": JAVA,
    "c": _c(".c"),
    "cpp": _c(".cpp"),
}


def told(tests: Sequence[TestReport]) -> list[Told]:
    """What tests told."""
    return [(test.name, test.outcome, test.message, test.output) for test in tests]


class Telling(Protocol):
    """What has tests that tell something."""

    @property
    def told(self) -> tuple[Told, ...]: ...


def expected(suite: Telling, tests: Sequence[TestReport]) -> list[Told]:
    """What a suite's tests should tell; of a text of which only the beginning counts, what `tests`
    have if it begins so.
    """
    found = []
    for should, does in itertools.zip_longest(suite.told, told(tests)[: len(suite.told)], fillvalue=("", "", "", "")):
        message, output = (
            real if text.endswith("…") and real.startswith(text[:-1]) else text for text, real in zip(should[2:], does[2:], strict=True)
        )
        found.append((should[0], should[1], message, output))
    return found
