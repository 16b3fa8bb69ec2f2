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
            ("d_test.py", "failed", "AssertionError: assert 0", ""),
            ("c_test.T.test_a", "passed", "", ""),
            ("c_test.T.test_b", "error", "KeyboardInterrupt", ""),
        ),
    ),
    "Python's of what is not there": Layout(
        language="python",
        files={
            "leap_test.py": "import nowhere.deep\n\ndef test_leap(): pass\n",
            "other_test.py": "import own.deep\n\ndef test_other(): pass\n",
            "own/__init__.py": "",
        },
        told=(
            ("leap_test.py", "error", "ModuleNotFoundError: No module named 'nowhere'", ""),
            ("other_test.py", "error", "ModuleNotFoundError: No module named 'own.deep'", ""),
        ),
        says="the image has no nowhere; add it: imagegen build python --package nowhere\n",
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
    "Java's of Maven, of JUnit 3, and of classes that fail": Layout(
        language="java",
        files={
            "src/main/java/a/Leap.java": "package a; class Leap { static boolean is(int year) { return year % 4 == 0; } }\n",
            "src/test/java/a/LeapTest.java": (
                "package a;\n\npublic class LeapTest extends junit.framework.TestCase {\n"
                "    public void testA() { assertTrue(Leap.is(5)); }\n"
                '    public void testB() { assertNotNull(getClass().getResource("/b")); }\n}\n'
            ),
            "src/test/resources/b": "",
        },
        told=(("a.LeapTest.testA", "failed", "…", ""), ("a.LeapTest.testB", "passed", "", "")),
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
            ("c.test.js", "passed", "", ""),
            ("d.test.js", "error", "there are no tests in this file", ""),
            ("h", "skipped", "", ""),
            ("i", "skipped", "", ""),
        ),
    ),
    "Jest's of a clock that stands still": Layout(
        language="javascript",
        files={
            "a.test.js": (
                "beforeEach(() => jest.useFakeTimers({ now: new Date('2024-02-29') }));\n"
                "test('waits', () => {\n  const late = jest.fn();\n  setTimeout(late, 500);\n  jest.advanceTimersByTime(499);\n"
                "  expect(late).not.toHaveBeenCalled();\n  jest.advanceTimersByTime(1);\n  expect(late).toHaveBeenCalledTimes(1);\n});\n"
                "test('day', () => expect(new Date().getDate()).toBe(28));\n"
                "test('later', async () => {\n  const waited = new Promise((all) => setTimeout(all, 60_000, 'waited'));\n"
                "  jest.runAllTimers();\n  jest.useRealTimers();\n  expect(await waited).toBe('waited');\n});\n"
                "test('async', async () => {\n  let told = '';\n  setTimeout(async () => (told = await 'told'), 10);\n"
                "  await jest.advanceTimersByTimeAsync(10);\n  expect(told).toBe('told');\n});\n"
            )
        },
        told=(
            ("waits", "passed", "", ""),
            ("day", "failed", "expect(received).toBe(expected)\n\nExpected: 28\nReceived: 29", ""),
            ("later", "passed", "", ""),
            ("async", "passed", "", ""),
        ),
    ),
    "JavaScript's beside helpers, and that leave something open": Layout(
        language="javascript",
        files={
            "a.test.js": "const assert = require('assert');\nassert.equal(1, 2);\n",
            "b.test.js": "const assert = require('assert');\nrequire('node:test').describe('none', () => {});\n",
            "c.test.js": "const { expect } = require('@x/chai/more');\ntest('a', () => {});\n",
            "tests/helper.js": "exports.one = 1;\n",
            "tests/setup.mjs": "export const one = 1;\n",
            "tests/a.js": (
                "const { one } = require('./helper');\ntest('opens', (done) => { require('http').createServer().listen(0, done); });\n"
                "test('repeats', () => { setInterval(() => {}, 1000); });\ntest('one', () => expect(one).toBe(2));\n"
            ),
        },
        told=(
            ("a.test.js", "failed", "1 == 2", "…"),
            ("b.test.js", "error", "there are no tests in this file", ""),
            ("c.test.js", "error", "Cannot find module '@x/chai/more'…", "…"),
            ("opens", "passed", "", ""),
            ("repeats", "passed", "", ""),
            ("one", "failed", "expect(received).toBe(expected)\n\nExpected: 2\nReceived: 1", ""),
        ),
        says="the image has no @x/chai; add it: imagegen build javascript --package '@x/chai'\n",
    ),
    "JavaScript's with elements": Layout(
        language="javascript",
        files={"src/__tests__/a.jsx": "test('element', () => expect(<b />).toBe(1));\n"},
        says="src/__tests__/a.jsx: elements take TypeScript's image: send it in the language typescript\n",
    ),
    "TypeScript's with elements, and that wait": Layout(
        language="typescript",
        files={
            "a.test.tsx": (
                "const React = { createElement: (...all: unknown[]) => all };\n"
                "test('element', () => expect(<b id='x'>y</b>).toEqual(['b', { id: 'x' }, 'z']));\n"
            ),
            "b.test.ts": (
                "const two: number = await Promise.resolve(2);\n"
                "test('waited', () => { const path = require('path'); expect(path.sep + two).toBe('/3'); });\n"
            ),
            "c.test.ts": "import assert from 'assert';\nassert.equal(1 as number, 1);\n",
            "d.test.jsx": "const h = (...all) => all;\n/** @jsx h */\ntest('of none', () => expect(<b />).toEqual(['b', null]));\n",
        },
        told=(
            (
                "element",
                "failed",
                "expect(received).toEqual(expected)\n\nExpected: [ 'b', { id: 'x' }, 'z' ]\nReceived: [ 'b', { id: 'x' }, 'y' ]",
                "",
            ),
            ("waited", "failed", "expect(received).toBe(expected)\n\nExpected: '/3'\nReceived: '/2'", ""),
            ("c.test.ts", "passed", "", ""),
            ("of none", "passed", "", ""),
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
    "Rust's beside what they test": Layout(
        language="rust",
        files={
            "a.rs": "pub fn leap(year: u16) -> bool { year % 4 == 0 }\n",
            "b.rs": "mod a;\n\n#[test]\nfn four() {\n    assert!(!a::leap(4));\n}\n",
        },
        told=(("four", "failed", "assertion failed: !a::leap(4)", "…"),),
    ),
    "Rust's of a workspace": Layout(
        language="rust",
        files={"Cargo.toml": '[workspace]\nmembers = ["a"]\n', "a/src/lib.rs": "#[test]\nfn a() {}\n"},
        says="of a workspace send one member\n",
    ),
    "Rust's that are a program": Layout(
        language="rust",
        files={
            "Cargo.toml": '[package]\nname = "leap-year"\nversion = "1.0.0"\n',
            "src/lib.rs": "pub fn leap(year: u16) -> bool { year % 4 == 0 }\n",
            "src/main.rs": (
                "use leap_year::leap;\n\nfn main() {\n    assert!(leap(4));\n"
                '    println!("asked");\n    assert_eq!(leap(5), true, "five");\n}\n'
            ),
        },
        told=(("src/main", "failed", "assertion `left == right` failed: five\n  left: false\n right: true", "…"),),
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
    "Go's that end the program": Layout(
        language="go",
        files={
            "go.mod": "module leap\n\ngo 1.18\n",
            "leap_test.go": (
                'package leap\n\nimport "testing"\n\nfunc TestA(t *testing.T) {\n\tgo func() { panic("of another") }()\n\tselect {}\n}\n'
            ),
            "b/b_test.go": 'package b\n\nimport (\n\t"os"\n\t"testing"\n)\n\nfunc TestA(t *testing.T) { os.Exit(0) }\n',
            "c/c_test.go": 'package c\n\nimport "testing"\n\nfunc TestA(t *testing.T) { <-make(chan int) }\n',
        },
        told=(
            ("TestA", "failed", "panic: of another", "…"),
            ("b.TestA", "failed", "panic: unexpected call to os.Exit(0) during test…", "…"),
            ("c.TestA", "failed", "fatal error: all goroutines are asleep - deadlock!", "…"),
        ),
    ),
    "Go's that print what looks like results": Layout(
        language="go",
        files={
            "go.mod": "module leap\n\ngo 1.18\n",
            "leap_test.go": (
                'package leap\n\nimport (\n\t"fmt"\n\t"testing"\n)\n\nfunc TestA(t *testing.T) {\n'
                '\tfmt.Print("--- FAIL: TestGhost (0.00s)\\n=== RUN   TestGhost\\nPASS\\nno end")\n'
                '\tt.Run("b", func(t *testing.T) { t.Log("--- FAIL: TestGhost (0.00s)") })\n}\n'
            ),
        },
        told=(
            ("TestA", "passed", "", "--- FAIL: TestGhost (0.00s)\n=== RUN   TestGhost\nPASS\nno end"),
            ("TestA/b", "passed", "", "    leap_test.go:10: --- FAIL: TestGhost (0.00s)\n"),
        ),
    ),
    "Go's that import their own package without a module": Layout(
        language="go",
        files={
            "leap.go": "package leap\n\nfunc Is() bool { return true }\n",
            "leap_test.go": 'package leap_test\n\nimport "testing"\nimport "example.com/leap"\n\nfunc TestA(t *testing.T) { leap.Is() }\n',
        },
        says="there is no go.mod, which says where example.com/leap is: send one\n",
    ),
    "Go's in a folder that is no package": Layout(
        language="go",
        files={"go.mod": "module leap\n\ngo 1.18\n", "a b/leap_test.go": "package leap\n"},
        says="malformed import path \"leap/a b\": invalid char ' '\n",
    ),
    "Go's that are none": Layout(
        language="go",
        files={"go.mod": "module leap\n\ngo 1.18\n", "leap_test.go": "package leap\n\nfunc leap() {}\n"},
        told=(("tests", "error", "there are no tests", ""),),
    ),
    "C's beside C++'s": Layout(
        language="cpp",
        files={
            "four.c": "int four(void) { int new = 4; return new; }\n",
            "leap_test.cc": 'extern "C" int four(void);\n\nint main() { return four(); }\n',
        },
        told=(("leap_test", "failed", "exit status 4", ""),),
    ),
    "GoogleTest where there is none": Layout(
        language="cpp",
        files={"leap_test.cc": '#include "gtest/gtest.h"\n\nTEST(Leap, Four) {}\n'},
        says="the image has no libgtest-dev; add it: imagegen build cpp --package libgtest-dev\n",
    ),
    "Check where there is none": Layout(
        language="c",
        files={"test_leap.c": "#include <check.h>\n\nint main(void) { return 0; }\n"},
        says="the image has no check; add it: imagegen build c --package check\n",
    ),
    **{
        f"{name}'s in folders": Layout(
            language=language,
            files={
                f"src/leap{suffix}": '#include "leap.h"\n\nint leap(int year) { return year % 4 == 0; }\n',
                "src/leap.h": "int leap(int year);\n",
                f"src/main{suffix}": "int main(void) { return 0; }\n",
                "include/five.h": "int five(void);\n",
                f"program{suffix}": "int five(void) { return 5; }\n\nint main(void) { return 0; }\n",
                f"test_b{suffix}": '#include "five.h"\n#include "leap.h"\n\nint main(void) { return leap(five()); }\n',
                f"test_c{suffix}": "#include <assert.h>\n\nint main(void) { assert(0); }\n",
                f"test_a{suffix}": '#include "src/leap.h"\n\nint main(void) { return !leap(4); }\n',
                f"tests/test_a{suffix}": '#include "../src/leap.h"\n\nint main(void) { return leap(4) + 2; }\n',
                f"tests/unit/deep/leap_test{suffix}": (
                    '#include <stdio.h>\n\nint main(void) { volatile int *none = 0; puts("said"); fflush(stdout); return *none; }\n'
                ),
            },
            told=(
                ("test_a", "passed", "", ""),
                ("test_b", "passed", "", ""),
                ("test_c", "failed", "test_c: test_c…", "…"),
                ("tests/test_a", "failed", "exit status 3", ""),
                ("tests/unit/deep/leap_test", "failed", "ended by SIGSEGV", "…"),
            ),
        )
        for language, name, suffix in (("c", "C", ".c"), ("cpp", "C++", ".cc"))
    },
}
"""By what is wrong with them."""
