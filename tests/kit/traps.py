"""Suites whose tests are easily told wrongly: those that fail as passed, those that pass as failed,
or some not at all.
"""

from collections.abc import Mapping

from tests.kit.layouts import Layout

_PYTEST = "takes pytest; add it: imagegen build python --package pytest"

TRAPS: Mapping[str, Layout] = {
    "Python's that only pytest runs": Layout(
        language="python",
        files={
            "leap_test.py": (
                "import functools\nfrom unittest import TestCase, mock\n\n"
                "async def test_a(): assert 0\n\ndef test_b():\n    assert 0\n    yield\n\ndef test_c(tmp_path): assert 0\n\n"
                "class TestD:\n    def test_d(self): assert 0\n\n"
                "class TestE(TestCase):\n    async def test_e(self): assert 0\n\n"
                "@mock.patch('os.getcwd')\ndef test_f(getcwd): assert 0, 'patched'\n\n"
                "def named(function):\n    @functools.wraps(function)\n    def inner(*words): return function(*words)\n    return inner\n\n"
                "@named\nasync def test_g(): assert 0\n"
            )
        },
        told=(
            ("leap_test.test_c", "error", f"it has parameters: it {_PYTEST}", ""),
            ("leap_test.TestD", "error", f"a class that is no unittest.TestCase {_PYTEST}", ""),
            ("leap_test.TestE.test_e", "error", f"TypeError: test_e gave back a coroutine, which has not run: it {_PYTEST}", "…"),
            ("leap_test.test_a", "error", f"TypeError: test_a gave back a coroutine, which has not run: it {_PYTEST}", "…"),
            ("leap_test.test_b", "error", f"TypeError: test_b gave back a generator, which has not run: it {_PYTEST}", ""),
            ("leap_test.test_f", "failed", "AssertionError: patched", ""),
            ("leap_test.test_g", "error", f"TypeError: test_g gave back a coroutine, which has not run: it {_PYTEST}", "…"),
        ),
    ),
    "Python's subtests, skips and names": Layout(
        language="python",
        files={
            "leap_test.py": (
                "import unittest\n\nclass T(unittest.TestCase):\n"
                "    def test_a(self):\n        with self.subTest('one'): self.fail('a')\n"
                "        with self.subTest('two'): self.skipTest('no')\n"
                "    def test_b(self):\n        with self.subTest('one'): self.skipTest('no')\n"
                "        with self.subTest('two'): self.fail('b')\n"
                "    def test_c(self):\n        for i in (1, 3):\n            with self.subTest(i=i): self.fail(f'is {i}')\n"
                "    def test_d(self):\n        with self.subTest('one'): self.skipTest('no')\n"
                "    def test_e(self):\n        self.addCleanup(self.skipTest, 'late')\n        self.fail('early')\n"
                "    def test_f(self):\n        print('\\udc80')\n        raise ValueError('\\ud83d')\n"
            ),
            "class_test.py": (
                "import unittest\n\nclass T(unittest.TestCase):\n    @classmethod\n"
                "    def setUpClass(cls): raise unittest.SkipTest('no class')\n    def test_a(self): pass\n"
            ),
            "module_test.py": (
                "import unittest\n\ndef setUpModule(): raise unittest.SkipTest('no module')\n\n"
                "class T(unittest.TestCase):\n    def test_a(self): pass\n"
            ),
            "other_test.py": "import unittest\n\nraise unittest.SkipTest('not here')\n",
            "third_test.py": "import sys\n\ndef test_a(): pass\n\nsys.exit(0)\n",
        },
        told=(
            ("other_test.py", "skipped", "not here", ""),
            ("third_test.py", "error", "SystemExit: 0", ""),
            ("setUpClass (class_test.T)", "skipped", "no class", ""),
            ("leap_test.T.test_a", "failed", "[one] AssertionError: a", ""),
            ("leap_test.T.test_b", "failed", "[two] AssertionError: b", ""),
            ("leap_test.T.test_c", "failed", "(i=1) AssertionError: is 1", ""),
            ("leap_test.T.test_d", "passed", "", ""),
            ("leap_test.T.test_e", "failed", "AssertionError: early", ""),
            ("leap_test.T.test_f", "error", "ValueError: ?", "?\n"),
            ("setUpModule (module_test)", "skipped", "no module", ""),
        ),
    ),
    "Python's that are plain asserts, or programs": Layout(
        language="python",
        files={
            "a_test.py": (
                "from leap import leap\n\ndef check(candidate):\n    assert candidate(4)\n    assert candidate(3)\n\ncheck(leap)\n"
            ),
            "b_test.py": "from leap import leap\n\nassert leap(4)\n",
            "c_test.py": (
                "import unittest\n\nclass T(unittest.TestCase):\n    def test_a(self): pass\n"
                "    def test_b(self): raise KeyboardInterrupt\n\nunittest.main(argv=['x'])\n"
            ),
            "d_test.py": "if __name__ == '__main__':\n    assert 0\n",
            "src/leap.py": "def leap(year):\n    return year % 4 == 0\n",
        },
        told=(
            ("a_test.py", "failed", "AssertionError: assert candidate(3)", ""),
            ("b_test.py", "passed", "", ""),
            ("c_test.T.test_a", "passed", "", ""),
            ("c_test.T.test_b", "error", "KeyboardInterrupt", ""),
        ),
    ),
    "Python's beside what they import": Layout(
        language="python",
        files={
            "src/leap.py": "def leap(year):\n    return year % 4 == 0\n",
            "tests/helper.py": "four = 4\n",
            "tests/leap_test.py": "from helper import four\nfrom leap import leap\n\ndef test_leap():\n    assert not leap(four)\n",
        },
        told=(("tests.leap_test.test_leap", "failed", "AssertionError: assert not leap(four)", ""),),
    ),
    "Python's that are none": Layout(
        language="python",
        files={"leap_test.py": "def leap_test():\n    assert 0\n"},
        says="there are no tests: they are in files test_*.py and *_test.py\n",
    ),
    "Java's of several lines, of halves of letters, and late": Layout(
        language="java",
        files={
            "LeapTest.java": (
                "import java.time.Duration;\nimport org.junit.jupiter.api.*;\nimport org.junit.jupiter.params.*;\n"
                "import org.junit.jupiter.params.provider.*;\n\n"
                "@TestMethodOrder(MethodOrderer.MethodName.class)\nclass LeapTest {\n"
                '    @ParameterizedTest @ValueSource(strings = {"a\\nb"}) void a(String text) { System.out.print(text); }\n'
                '    @Test void b() { System.out.print("\\ud83d."); Assertions.assertEquals("x", "\\ude00"); }\n'
                "    @Test @Timeout(1) void c() throws Exception { Thread.sleep(60_000); }\n"
                "    @Test void d() { Assertions.assertTimeoutPreemptively(Duration.ofMillis(100), () -> { for (;;); }); }\n}\n"
            )
        },
        told=(
            ("LeapTest.a [1] a\nb", "passed", "", "a\nb"),
            ("LeapTest.b", "failed", "expected: <x> but was: <?>", "?."),
            ("LeapTest.c", "timeout", "java.util.concurrent.TimeoutException: c() timed out after 1 second", ""),
            ("LeapTest.d", "timeout", "execution timed out after 100 ms", ""),
        ),
    ),
    "Java's in a machine without memory": Layout(
        language="java",
        files={
            "LeapTest.java": (
                "import java.time.Duration;\nimport org.junit.jupiter.api.*;\n\n"
                "@TestMethodOrder(MethodOrderer.MethodName.class)\nclass LeapTest {\n"
                "    @Test void a() { Assertions.assertTimeoutPreemptively(Duration.ofMillis(100), () -> { for (;;); }); }\n"
                "    @Test void b() { long[] many = new long[Integer.MAX_VALUE]; }\n}\n"
            )
        },
        told=(
            ("LeapTest.a", "timeout", "execution timed out after 100 ms", ""),
            ("LeapTest.b", "error", "…", "…"),
        ),
    ),
    "Java's that are none": Layout(
        language="java",
        files={"LeapTest.java": "import org.junit.jupiter.api.*;\n\nclass LeapTest { void leap() {} }\n"},
        says="there are no tests",
    ),
    "Java's that are none, without JUnit": Layout(language="java", files={"Leap.java": "class Leap { }\n"}, says="there are no tests"),
    "JavaScript's of several lines, of halves of letters, and none": Layout(
        language="javascript",
        files={
            "a.test.js": (
                "test.each(['a\\nb'])('%s', () => {});\ntest('c \\ud83d', () => {});\ntest('d', () => { throw new Error('\\ude00'); });\n"
            ),
            "b.test.js": "test('e\\nf', () => process.exit(0));\n",
            "c.test.js": "require('assert').equal(1, 1);\n",
            "d.test.js": "describe('g', () => {});\n",
            "e.test.js": "test.skip('h', () => {});\n",
            "f.test.js": "require('node:test').test('i', { skip: true }, () => {});\n",
        },
        told=(
            ("a\nb", "passed", "", ""),
            ("c ?", "passed", "", ""),
            ("d", "failed", "?", ""),
            ("e\nf", "error", "the program ended before the test did, with status 1", ""),
            ("c.test.js", "error", "there are no tests in this file", ""),
            ("d.test.js", "error", "there are no tests in this file", ""),
            ("h", "skipped", "", ""),
            ("i", "skipped", "", ""),
        ),
    ),
    "Rust's that say what a line does not hold": Layout(
        language="rust",
        files={
            "main.rs": (
                'use std::io::Write;\n\n#[test]\nfn a() {\n    println!("x\\u{2028}y");\n}\n\n'
                '#[test]\nfn b() {\n    panic!("m\\u{85}n\\nnote: more");\n}\n\n'
                "#[test]\nfn c() {\n    let mut out = std::io::stdout().lock();\n"
                '    write!(out, "no line").unwrap();\n    out.flush().unwrap();\n}\n'
            )
        },
        told=(
            ("a", "passed", "", "x\u2028y\n"),
            ("b", "failed", "m\x85n\nnote: more", "…"),
            ("c", "passed", "", ""),
        ),
    ),
    "Rust's that are none": Layout(language="rust", files={"main.rs": "fn main() {}\n"}, says="there are no tests: they are functions"),
    "TypeScript's beside their files": Layout(
        language="typescript",
        files={
            "src/data/a.txt": "text",
            "src/a.test.ts": (
                "import * as fs from 'fs';\nimport * as path from 'path';\n"
                "test('by the folder', () => expect(fs.readFileSync(path.join(__dirname, 'data/a.txt'), 'utf8')).toBe('text'));\n"
                "test('by the URL', () => expect(fs.existsSync(new URL('./data/a.txt', import.meta.url))).toBe(true));\n"
                "test('lowered', () => { class A { accessor a = 1; } expect(new A().a).toBe(2); });\n"
            ),
            "src/a.test.mts": "test('of the same name', () => { throw new Error(import.meta.dirname.slice(-3)); });\n",
            "none.test.ts": "export {};\n",
        },
        told=(
            ("none.test.ts", "error", "there are no tests in this file", ""),
            ("of the same name", "failed", "src", ""),
            ("by the folder", "passed", "", ""),
            ("by the URL", "passed", "", ""),
            ("lowered", "failed", "expect(received).toBe(expected)\n\nExpected: 2\nReceived: 1", ""),
        ),
    ),
    "Go's that are none": Layout(
        language="go",
        files={"go.mod": "module leap\n\ngo 1.18\n", "leap_test.go": "package leap\n\nfunc leap() {}\n"},
        told=(("tests", "error", "there are no tests", ""),),
    ),
    **{
        f"{name}'s in folders": Layout(
            language=language,
            files={
                f"src/leap{suffix}": '#include "leap.h"\n\nint leap(int year) { return year % 4 == 0; }\n',
                "src/leap.h": "int leap(int year);\n",
                f"src/main{suffix}": "int main(void) { return 0; }\n",
                f"test_a{suffix}": '#include "src/leap.h"\n\nint main(void) { return !leap(4); }\n',
                f"tests/test_a{suffix}": '#include "../src/leap.h"\n\nint main(void) { return leap(4) + 2; }\n',
                f"tests/unit/deep/leap_test{suffix}": (
                    '#include <stdio.h>\n\nint main(void) { volatile int *none = 0; puts("said"); fflush(stdout); return *none; }\n'
                ),
            },
            told=(
                ("test_a", "passed", "", ""),
                ("tests/test_a", "failed", "exit status 3", ""),
                ("tests/unit/deep/leap_test", "failed", "ended by SIGSEGV", "…"),
            ),
        )
        for language, name, suffix in (("c", "C", ".c"), ("cpp", "C++", ".cc"))
    },
}
"""By what is wrong with them."""
