"""Exercises as sites lay them out, with the test frameworks that they use, and what comes of their
tests.
"""

import dataclasses
from collections.abc import Mapping

from tests.kit.suites import Told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """An exercise's files. Its tests tell `told`, or it does not build, for the reason `says`."""

    language: str
    files: Mapping[str, str]
    told: tuple[Told, ...] = ()
    says: str = ""


_JEST = (
    "describe('Leap', () => {\n"
    "  let asked;\n"
    "  beforeEach(() => { asked = jest.fn(isLeap); });\n"
    "  test('sixteen', () => { expect(asked(16)).toBe(true); expect(asked).toHaveBeenCalledWith(16); });\n"
    "  it('twenty', () => expect(isLeap(20)).toEqual(false));\n"
    "  test('a word', () => expect(() => isLeap('x')).toThrow(new TypeError('no number: x')));\n"
    "  test('another word', () => expect(() => isLeap('y')).not.toThrow());\n"
    "  xtest('later', () => {});\n"
    "  test.each([[4, true], [5, true]])('of %i', (year, is) => expect({ is: isLeap(year) }).toMatchObject({ is }));\n"
    "  test('waits', (done) => { setTimeout(() => { expect(0.1 + 0.2).toBeCloseTo(0.3); done(); }, 1); });\n"
    "  test('promises', () => expect(Promise.reject(new Error('no'))).rejects.toThrow('no'));\n"
    "  test('what is not there', () => jest.mock('./leap'));\n"
    "});\n"
)
_JEST_TOLD = (
    ("Leap > sixteen", "passed", "", ""),
    ("Leap > twenty", "failed", "expect(received).toEqual(expected)\n\nExpected: false\nReceived: true", ""),
    ("Leap > a word", "passed", "", ""),
    ("Leap > another word", "failed", "expect(received).not.toThrow()\n\nReceived: TypeError: no number: y", ""),
    ("Leap > later", "skipped", "", ""),
    ("Leap > of 4", "passed", "", ""),
    ("Leap > of 5", "failed", "expect(received).toMatchObject(expected)\n\nExpected: { is: true }\nReceived: { is: false }", ""),
    ("Leap > waits", "passed", "", ""),
    ("Leap > promises", "passed", "", ""),
    (
        "Leap > what is not there",
        "failed",
        "jest.mock is not there: these tests are node:test's, with the commonest words of Jest",
        "",
    ),
)
_JEST_ONLY = (
    "describe('before', () => { test('one', () => { throw 1; }); });\n"
    "describe('a', () => {\n"
    "  beforeEach(() => expect.hasAssertions());\n"
    "  test('left out', () => { throw 1; });\n"
    "  test.only('no assertion', () => {});\n"
    "  it.only('too few', () => { expect.assertions(2); expect(1).toBe(1); });\n"
    "  fit('counted', async () => { expect.assertions(1); await expect(Promise.resolve(1)).resolves.toBe(1); });\n"
    "});\n"
    "fdescribe('b', () => {\n"
    "  test.each([1, 2])('%i of $x', (value) => expect(value).toBe(1));\n"
    "  test.each([['a', { b: [1] }]])('%s %p %#', () => {});\n"
    "  test.each([{ a: 'x', b: { c: 1 } }])('$a $b.c $b $nothing', () => {});\n"
    "  test.each`x | y\n    ${1} | ${'two'}\n  `('$x is $y', ({ x, y }) => expect([x, y]).toEqual([1, 'two']));\n"
    "  xtest('skipped', () => {});\n"
    "  test.failing('fails', () => { throw 1; });\n"
    "  test.todo('later');\n"
    "});\n"
    "describe.skip('c', () => { beforeAll(() => { throw 1; }); test('of c', () => {}); });\n"
)
_JEST_ONLY_TOLD = (
    ("before > one", "skipped", "", ""),
    ("a > left out", "skipped", "", ""),
    ("a > no assertion", "failed", "expect.hasAssertions()\n\nExpected: at least one assertion\nReceived: none", ""),
    ("a > too few", "failed", "expect.assertions(2)\n\nExpected: 2 assertions\nReceived: 1", ""),
    ("a > counted", "passed", "", ""),
    ("b > 1 of $x", "passed", "", ""),
    ("b > 2 of $x", "failed", "expect(received).toBe(expected)\n\nExpected: 1\nReceived: 2", ""),
    ('b > a {"b": [Array]} 0', "passed", "", ""),
    ('b > x 1 {"c": 1} $nothing', "passed", "", ""),
    ("b > 1 is two", "passed", "", ""),
    ("b > skipped", "skipped", "", ""),
    ("b > fails", "passed", "", ""),
    ("b > later", "skipped", "", ""),
    ("c > of c", "skipped", "", ""),
)
_NODE_PACKAGE = '{"name": "leap", "private": true, "devDependencies": {"@jest/globals": "^29.7.0", "jest": "^29.7.0"}}\n'
_UNITY_H = (
    "#include <stdio.h>\nextern int failed, ran, ignored, now;\n"
    '#define RUN_TEST(test) (ran++, now = 0, setUp(), test(), tearDown(), now ? 0 : printf(__FILE__ ":1:" #test ":PASS\\n"))\n'
    '#define TEST_ASSERT_TRUE(is) if (!(is)) { now = 1; failed++; printf(__FILE__ ":%d:%s:FAIL: Expected TRUE Was FALSE\\n", '
    "__LINE__, __func__); return; }\n"
    '#define TEST_IGNORE() { now = 1; ignored++; printf(__FILE__ ":%d:%s:IGNORE\\n", __LINE__, __func__); return; }\n'
    "#define UNITY_BEGIN()\n"
    '#define UNITY_END() (printf("\\n%d Tests %d Failures %d Ignored \\nFAIL\\n", ran, failed, ignored), failed)\n'
    "void setUp(void); void tearDown(void);\n"
)
_UNITY_TESTS = (
    '#include "test-framework/unity.h"\n#include "leap.h"\n#include <stdlib.h>\n\ntypedef struct { int hour; } clock_t; // not of C99\n\n'
    "#ifdef UNITY_OUTPUT_COLOR\n#error colours\n#endif\n"
    "void setUp(void) {}\nvoid tearDown(void) {}\n\n"
    "static void test_sixteen(void) { TEST_ASSERT_TRUE(leap(SIXTEEN)); }\n"
    "static void test_five(void) { TEST_ASSERT_TRUE(leap(5)); }\n"
    "static void test_later(void) { TEST_IGNORE(); }\n"
)
_UNITY_FILES = {
    "leap.c": '#include "leap.h"\n#include <stdio.h>\n\nint leap(int year) { printf("asked %d\\n", year); return year % 4 == 0; }\n',
    "leap.h": "int leap(int year);\n",
    "makefile": (
        "CFLAGS  = -std=c99 $(MORE) *\nCFLAGS += -Wall -Werror -DSIXTEEN=16 -DUNITY_OUTPUT_COLOR\nASANFLAGS = -DSIXTEEN=1\n"
        "test: tests.out\n\t./tests.out\n"
    ),
    "test-framework/unity.c": "int failed, ran, ignored, now;\n",
    "test-framework/unity.h": _UNITY_H,
}
_CATCH = """
// As much of Catch2 as a program of it shows: its words of the command line, and tests by their names.
#include <cstring>
#include <iostream>
#include <string>
#include <vector>
struct Test { const char *name; void (*body)(); };
std::vector<Test> &tests();
struct Add { Add(const char *name, void (*body)()) { tests().push_back({name, body}); } };
extern bool failed;
namespace Catch { struct Session { int run(int count, char **words); }; }
#define NAMED(one, two) one##two
#define NAME(one, two) NAMED(one, two)
#define TEST_CASE(name, ...) static void NAME(test, __LINE__)(); static Add NAME(add, __LINE__)(name, NAME(test, __LINE__)); \\
    static void NAME(test, __LINE__)()
#define REQUIRE(is) if (!(is)) { failed = true; std::cout << "x.cpp:1: FAILED:\\n  REQUIRE( " #is " )\\n" << std::endl; return; }
#ifdef CATCH_CONFIG_MAIN
bool failed;
std::vector<Test> &tests() { static std::vector<Test> all; return all; }
int Catch::Session::run(int count, char **words) {
    bool list = false, quiet = CATCH_VERSION == 2, all = true, strict = false;
    std::string wanted;
    for (int at = 1; at < count; at++) {
        std::string word = words[at];
        if (word == (CATCH_VERSION == 2 ? "--list-test-names-only" : "--list-tests")) list = true;
        else if (word == "--verbosity=quiet") quiet = true;
        else if (word == "-w" && at + 1 < count && words[++at] == std::string(CATCH_VERSION == 2 ? "NoTests" : "UnmatchedTestSpec"))
            strict = true;
        else if (word == "--allow-running-no-tests" && CATCH_VERSION == 3) continue;
        else if (word == "~[.]") continue;
        else if (word[0] == '"') {
            all = false;
            for (size_t letter = 1; letter + 1 < word.size(); letter++) {
                if (word[letter] == ',') return 3;
                wanted += word[word[letter] == '\\\\' ? ++letter : letter];
            }
        } else { std::cerr << "Unrecognised token: " << word << std::endl; return 255; }
    }
    int found = 0;
    for (auto &test : tests()) {
        if (!all && wanted != test.name) continue;
        found++;
        if (list && !quiet) std::cout << "  ";
        if (list) std::cout << test.name << "\\n"; else test.body();
    }
    return list ? (CATCH_VERSION == 2 ? found : 0) : !found && strict ? 2 : failed;
}
int main(int count, char **words) { return Catch::Session().run(count, words); }
#endif
"""


def _catch(version: int) -> Layout:
    return Layout(
        language="cpp",
        files={
            "leap.cpp": '#include "leap.h"\n\nnamespace leap {\nbool is_leap_year(int year) { return year % 4 == 0; }\n}\n',
            "leap.h": "#pragma once\n\nnamespace leap {\nbool is_leap_year(int year);\n}\n",
            "leap_test.cpp": (
                '#include "leap.h"\n#include "test/catch.hpp"\n\n'
                'TEST_CASE("sixteen, a \\"leap\\" year [\\\\]", "[a1]") { REQUIRE(leap::is_leap_year(16)); }\n\n'
                '#if defined(EXERCISM_RUN_ALL_TESTS)\nTEST_CASE("five") { REQUIRE(leap::is_leap_year(5)); }\n#endif\n'
            ),
            "test/catch.hpp": f"#define CATCH_VERSION {version}\n{_CATCH}",
            "test/tests-main.cpp": '#define CATCH_CONFIG_MAIN\n#include "catch.hpp"\n',
            "CMakeLists.txt": "project(leap CXX)\n",
        },
        told=(('sixteen, a "leap" year [\\]', "passed", "", ""), ("five", "failed", "REQUIRE( leap::is_leap_year(5) )", "…")),
    )


LAYOUTS: Mapping[str, Layout] = {
    "Jest": Layout(
        language="javascript",
        files={
            "package.json": _NODE_PACKAGE,
            "babel.config.js": "module.exports = { presets: [['@exercism/babel-preset-javascript', { corejs: '3.40' }]], plugins: [] };\n",
            "leap.js": (
                "export const isLeap = (year) => {\n"
                "  if (typeof year !== 'number') throw new TypeError(`no number: ${year}`);\n"
                "  return year % 4 === 0;\n};\n"
            ),
            "leap.spec.js": (
                f"import {{ describe, expect, it, jest, test, xtest }} from '@jest/globals';\nimport {{ isLeap }} from './leap';\n\n{_JEST}"
            ),
        },
        told=_JEST_TOLD,
    ),
    "Jest, tests that others leave out": Layout(
        language="javascript",
        files={"src/deep/only.test.js": _JEST_ONLY, "node_modules/x/x.test.js": "throw 1;\n"},
        told=_JEST_ONLY_TOLD,
    ),
    "Jest in CommonJS, by its globals": Layout(
        language="javascript",
        files={
            "package.json": _NODE_PACKAGE,
            "src/leap.js": (
                "exports.isLeap = (year) => {\n"
                "  if (typeof year !== 'number') throw new TypeError(`no number: ${year}`);\n"
                "  return year % 4 === 0;\n};\n"
            ),
            "__tests__/leap.js": f"const {{ isLeap }} = require('../src/leap');\n\n{_JEST}",
        },
        told=_JEST_TOLD,
    ),
    "Jest, tests that never settle": Layout(
        language="javascript",
        files={
            "never.test.js": (
                "jest.setTimeout(60);\n"
                "test('awaits', async () => { await new Promise(() => {}); });\n"
                "test('is not done', (done) => {}, 50);\n"
                "test('has more time', () => new Promise((resolve) => setTimeout(resolve, 100)), 60_000);\n"
                "describe('hook', () => { beforeEach(() => new Promise(() => {}), 70); test('waits for it', () => {}); });\n"
                "test('behind', () => expect(1).toBe(2));\n"
            )
        },
        told=(
            ("awaits", "timeout", "test timed out after 60ms", ""),
            ("is not done", "timeout", "test timed out after 50ms", ""),
            ("has more time", "passed", "", ""),
            ("hook > waits for it", "failed", "…", ""),
            ("behind", "failed", "expect(received).toBe(expected)\n\nExpected: 2\nReceived: 1", ""),
        ),
    ),
    "Jest, times that are none": Layout(
        language="javascript",
        files={
            "x.test.js": (
                "const later = () => new Promise((resolve) => setTimeout(resolve, 20));\n"
                "jest.setTimeout(-1);\n"
                "[undefined, 0, NaN, Infinity, 1e12, 'x', '60000'].forEach((ms) => test(`${ms}`, later, { timeout: ms }));\n"
                "beforeEach(later, NaN);\n"
            )
        },
        told=tuple((name, "passed", "", "") for name in ("undefined", "0", "NaN", "Infinity", "1000000000000", "x", "60000")),
    ),
    "Jest, files that cannot be loaded": Layout(
        language="javascript",
        files={
            "a.test.js": "test('one', () => {}); let x = ;\n",
            "b.test.mjs": "import { x } from './missing.mjs';\ntest('one', () => {});\n",
            "c.test.js": "test('one', () => {});\nthrow new TypeError('of the file');\n",
            "d.test.js": "describe('group', () => { test('one', () => {}); throw null; });\n",
            "e.test.js": "process.exit(3);\n",
            "f.test.js": "test('two', () => {});\n",
        },
        told=(
            ("a.test.js", "error", "Unexpected token ';'", "…"),
            ("b.test.mjs", "error", "…", "…"),
            ("c.test.js", "error", "of the file", "…"),
            ("one", "passed", "", ""),
            ("d.test.js", "error", "null", ""),
            ("group > one", "passed", "", ""),
            ("e.test.js", "error", "the file ended with status 3 outside of its tests", ""),
            ("two", "passed", "", ""),
        ),
    ),
    "Jest, in files with no name of tests": Layout(
        language="javascript",
        files={"solution.js": "module.exports = 1;\n", "solution.tests.js": "test('x', () => { throw 1; });\n"},
        says="there are no tests: they are in files *.test.js, ",
    ),
    "Jest in TypeScript, in files with no name of tests": Layout(
        language="typescript",
        files={"solution.ts": "export const x = 1;\n", "solution.tests.ts": "test('x', () => { throw 1; });\n"},
        says="there are no tests: they are in files *.test.ts, ",
    ),
    "Jest in TypeScript": Layout(
        language="typescript",
        files={
            "package.json": _NODE_PACKAGE,
            "tsconfig.json": '{"compilerOptions": {"strict": true, "module": "node16", "esModuleInterop": true}}\n',
            "leap.ts": (
                "export function isLeap(year: unknown): boolean {\n"
                "  if (typeof year !== 'number') throw new TypeError(`no number: ${year}`);\n"
                "  return year % 4 === 0;\n}\n"
            ),
            "leap.test.ts": (
                f"import {{ describe, expect, it, jest, test, xtest }} from '@jest/globals'\nimport {{ isLeap }} from './leap'\n\n{_JEST}"
            ),
        },
        told=_JEST_TOLD,
    ),
    "Unity": Layout(
        language="c",
        files={
            **_UNITY_FILES,
            "test_leap.c": f"{_UNITY_TESTS}\n"
            "int main(void) { UNITY_BEGIN(); RUN_TEST(test_sixteen); RUN_TEST(test_five); RUN_TEST(test_later); return UNITY_END(); }\n",
        },
        told=(
            ("test_sixteen", "passed", "", "asked 16\n"),
            ("test_five", "failed", "Expected TRUE Was FALSE", "asked 5\n"),
            ("test_later", "skipped", "", ""),
        ),
    ),
    "Unity, and a crash": Layout(
        language="c",
        files={
            **_UNITY_FILES,
            "test_leap.c": f"{_UNITY_TESTS}#include <stdlib.h>\n\n"
            'int main(void) { setbuf(stdout, 0); UNITY_BEGIN(); RUN_TEST(test_sixteen); puts("more"); abort(); }\n',
        },
        told=(("test_sixteen", "passed", "", "asked 16\n"), ("test_leap", "failed", "more", "more\n")),
    ),
    "Unity, and an early end": Layout(
        language="c",
        files={
            **_UNITY_FILES,
            "test_leap.c": f"{_UNITY_TESTS}#include <stdlib.h>\n\n"
            'int main(void) { setbuf(stdout, 0); UNITY_BEGIN(); RUN_TEST(test_sixteen); puts("more"); exit(0); }\n',
        },
        told=(
            ("test_sixteen", "passed", "", "asked 16\n"),
            ("test_leap", "error", "the program ended before its tests did, with status 0", "more\n"),
        ),
    ),
    "Catch2, version 2": _catch(2),
    "Catch2, version 3": _catch(3),
    "what only looks like Catch2": Layout(
        language="cpp",
        files={
            "try_catch.h": "namespace Catch { struct Session { int run(); }; }\n",
            "one_test.cpp": (
                '#include "try_catch.h"\n#include <iostream>\n\n'
                'int Catch::Session::run() { std::cout << "ran" << std::endl; return 1; }\n\n'
                "int main() { return Catch::Session().run(); } // whatever the arguments\n"
            ),
            "two_test.cpp": '#include "try_catch.h"\n\nint main() {}\n',
        },
        told=(("one_test", "failed", "ran", "ran\n"), ("two_test", "passed", "", "")),
    ),
    "Cargo": Layout(
        language="rust",
        files={
            "Cargo.toml": (
                '[package]\nname="leap-year"\nversion = "0.1.0"\nedition = "2018" # gen is a word of 2024\n\n[dependencies]\n\n[features]\n'
            ),
            "Cargo.lock": "version = 4\n",
            "src/lib.rs": "mod years;\n\npub fn is_leap_year(gen: u64) -> bool {\n    years::four(gen)\n}\n",
            "src/years.rs": "pub fn four(year: u64) -> bool {\n    year % 4 == 0\n}\n",
            "tests/leap_year.rs": (
                "use leap_year::*;\n\n#[test]\nfn sixteen() {\n    assert!(is_leap_year(16));\n}\n\n#[test]\n#[ignore]\nfn later() {}\n"
            ),
        },
        told=(("later", "skipped", "", ""), ("sixteen", "passed", "", "")),
    ),
    "Cargo, a library and a program": Layout(
        language="rust",
        files={
            "Cargo.toml": '[package]\nname = "leap-year"\nversion = "0.1.0"\n\n[features]\ndefault = ["std"]\nstd = []\n',
            "src/lib.rs": '#[cfg(feature = "std")]\npub fn four() -> u8 { 4 }\n',
            "src/main.rs": "fn main() {}\n\n#[test]\nfn of_the_program() {\n    assert_eq!(leap_year::four(), 4);\n}\n",
            "tests/folder/main.rs": (
                "mod years;\n\n#[test]\nfn in_a_folder() {\n"
                '    assert_eq!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")), std::env::current_dir().unwrap());\n'
                "    assert!(years::none());\n}\n"
            ),
            "tests/folder/years.rs": "pub fn none() -> bool {\n    false\n}\n",
        },
        told=(("of_the_program", "passed", "", ""), ("in_a_folder", "failed", "assertion failed: years::none()", "…")),
    ),
    "Cargo, with what the image lacks": Layout(
        language="rust",
        files={
            "Cargo.toml": (
                '[package]\nname = "leap"\nversion = "0.1.0"\nedition = "2021"\n\n[dependencies]\nnowhere-1 = "1"\n\n'
                '[dev-dependencies]\nnowhere-2 = "0.3"\n'
            ),
            "src/lib.rs": "pub fn leap() {}\n",
            "tests/leap.rs": "#[test]\nfn leaps() { nowhere_2::leap(); }\n",
        },
        says=(
            "Cargo.toml: the image has no nowhere-1; add it: imagegen build rust --package 'nowhere-1@1'\n"
            "Cargo.toml: the image has no nowhere-2; add it: imagegen build rust --package 'nowhere-2@0.3'\n"
        ),
    ),
    "a module with packages in folders": Layout(
        language="go",
        files={
            "go.mod": "module leap\n\ngo 1.18\n",
            "leap.go": 'package leap\n\nimport "leap/years"\n\nfunc IsLeapYear(year int) bool { return years.Four(year) }\n',
            "leap_test.go": (
                "package leap\n\n"
                'import "testing"\n\n'
                "func TestLeap(t *testing.T) {\n"
                "\tfor _, test := range testCases {\n"
                "\t\tt.Run(test.name, func(t *testing.T) {\n"
                '\t\t\tif IsLeapYear(test.year) != test.is { t.Errorf("%d", test.year) }\n\t\t})\n\t}\n}\n'
            ),
            "cases_test.go": (
                'package leap\n\nvar testCases = []struct{ name string; year int; is bool }{{"a year", 16, true}, {"no year", 5, true}}\n'
            ),
            "years/years.go": "package years\n\nfunc Four(year int) bool { return year%4 == 0 }\n",
            "years/years_test.go": (
                'package years_test\n\nimport (\n\t"leap/years"\n\t"os"\n\t"testing"\n)\n\n'
                "func TestLeap(t *testing.T) {\n"
                '\tif _, err := os.Stat("testdata"); err != nil || !years.Four(4) { t.Fatal(err) }\n}\n'
            ),
            "years/testdata/empty": "",
            "tests/years_test.go": 'package tests\n\nimport "testing"\n\nfunc TestInTests(t *testing.T) {}\n',
            "a/b/c/d/deep_test.go": 'package d\n\nimport "testing"\n\nfunc TestDeep(t *testing.T) { t.Skip("later") }\n',
            "a/none.go": "package a\n",
        },
        told=(
            ("TestLeap", "failed", "", ""),
            ("TestLeap/a_year", "passed", "", ""),
            ("TestLeap/no_year", "failed", "5", "…"),
            ("a/b/c/d.TestDeep", "skipped", "later", "…"),
            ("tests.TestInTests", "passed", "", ""),
            ("years.TestLeap", "passed", "", ""),
        ),
    ),
    "a module for a newer Go": Layout(
        language="go",
        files={
            "go.mod": "module leap\n\ngo 1.999\n",
            "leap_test.go": 'package leap\n\nimport "testing"\n\nfunc TestLeap(t *testing.T) {}\n',
        },
        says="go: go.mod requires go >= 1.999",
    ),
    "a module with what the image lacks": Layout(
        language="go",
        files={
            "go.mod": "module leap\n\ngo 1.18\n",
            "leap.go": "package leap\n",
            "leap_test.go": 'package leap\n\nimport (\n\t_ "example.org/nowhere"\n\t"testing"\n)\n\nfunc TestLeap(t *testing.T) {}\n',
        },
        says="add its module: imagegen build go --package 'example.org/nowhere'\n",
    ),
    "a module that names what the image lacks": Layout(
        language="go",
        files={
            "go.mod": "module leap\n\ngo 1.18\n\nrequire example.org/nowhere v1.0.0\n",
            "leap_test.go": 'package leap\n\nimport (\n\t_ "example.org/nowhere/deep"\n\t"testing"\n)\n\nfunc TestLeap(t *testing.T) {}\n',
        },
        says="add its module: imagegen build go --package 'example.org/nowhere/deep'\n",
    ),
    "marks of pytest where there is none": Layout(
        language="python",
        files={
            "leap.py": "def leap_year(year):\n    return year % 4 == 0\n",
            "leap_test.py": (
                "import unittest\nimport pytest\n\nclass LeapTest(unittest.TestCase):\n"
                "    @pytest.mark.task(taskno=1)\n    def test_leap(self):\n        pass\n"
            ),
        },
        told=(("leap_test.py", "error", "…", ""),),
        says="the image has no pytest; add it: imagegen build python --package pytest\n",
    ),
    "AssertJ where there is none": Layout(
        language="java",
        files={
            "build.gradle": 'dependencies { testImplementation "org.assertj:assertj-core:3.25.1" }\n',
            "src/main/java/Leap.java": "class Leap { boolean isLeapYear(int year) { return year % 4 == 0; } }\n",
            "src/test/java/LeapTest.java": (
                "import org.junit.jupiter.api.Test;\nimport static org.nowhere.api.Assertions.assertThat;\n"
                "import static org.assertj.core.api.Assertions.assertThat;\n\n"
                "public class LeapTest { @Test void leaps() { assertThat(new Leap().isLeapYear(16)).isTrue(); } }\n"
            ),
        },
        says="the image has no assertj-core; add it: imagegen build java --package org.assertj:assertj-core\n",
    ),
}
