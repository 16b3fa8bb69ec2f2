"""Suites as hurried or careless authors send them, and what comes of their tests."""

from tests.kit.layouts import Layout

_GHOST = '\\x1e{"name": "ghost", "outcome": "passed"}\\n'

# As much of doctest as a program of it shows.
_DOCTEST = r"""#pragma once
#include <iostream>
#include <string>
#include <vector>

namespace doctest {
struct Test { std::string name; void (*body)(); };
inline std::vector<Test> tests;
inline bool failed;
struct Added { Added(std::string name, void (*body)()) { tests.push_back({name, body}); } };
struct Context {
    int run(int count, char **words);
};
}
#define JOINED(a, b) a##b
#define NAMED(name, number) \
    static void JOINED(test, number)(); \
    static doctest::Added JOINED(added, number)(name, JOINED(test, number)); \
    static void JOINED(test, number)()
#define TEST_CASE(name) NAMED(name, __LINE__)
#define CHECK(what) \
    if (!(what)) { std::cout << __FILE__ ":1: ERROR: CHECK( " #what " ) is NOT correct!\n  values: none\n\n"; doctest::failed = true; }
#ifdef DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
int doctest::Context::run(int count, char **words) {
    std::string wanted;
    bool listing = false;
    for (int at = 1; at < count; at++) {
        std::string word = words[at];
        if (word == "-ltc") listing = true;
        if (word.rfind("-tc=", 0) == 0) wanted = word.substr(4);
    }
    int found = 0;
    std::cout << "[doctest] " << (listing ? "listing all test case names" : "version") << "\n" << std::string(80, '=') << "\n";
    for (auto &test : tests) {
        std::size_t star = wanted.find('*'), end = star == std::string::npos ? wanted.size() : star;
        bool fits = wanted.empty() || (end < wanted.size() ? test.name.size() >= end : test.name.size() == end);
        for (std::size_t at = 0; fits && at < end; at++) fits = wanted[at] == '?' || wanted[at] == test.name[at];
        found += fits;
        if (fits && listing) std::cout << test.name << "\n";
        if (fits && !listing) test.body();
    }
    if (listing) std::cout << std::string(80, '=') << "\n[doctest] unskipped test cases passing the current filters: " << found << "\n";
    else std::cout << "[doctest] test cases: " << found << " |\n";
    return failed;
}
int main(int count, char **words) { return doctest::Context().run(count, words); }
#endif
"""

STRANGERS: dict[str, Layout] = {
    "Python's that are programs": Layout(
        language="python",
        files={
            "test.py": "from sol import inc\n\nif __name__ == '__main__':\n    print('asked')\n    assert inc(1) == 3, 'one'\n",
            "tests.py": "def check():\n    assert 1 + 1 == 2\n\ndef main():\n    check()\n\nif __name__ == '__main__':\n    check()\n",
            "sol_test.py": 'def inc(n):\n    """\n    >>> inc(1)\n    3\n    """\n    return n + 1\n\nif __name__ == "__main__":\n'
            "    import doctest\n    doctest.testmod()\n",
            "exit_tests.py": "import sys\n\nif __name__ == '__main__':\n    assert True\n    sys.exit('not well')\n",
            "sol.py": "def inc(n):\n    return n + 1\n",
        },
        told=(
            ("exit_tests.py", "failed", "SystemExit: not well", ""),
            ("sol_test.py", "failed", "AssertionError: 1 of 1 examples failed", "…"),
            ("test.py", "failed", "AssertionError: one", "asked\n"),
            ("tests.py", "passed", "", ""),
        ),
    ),
    "Python's that do to standard output what they like": Layout(
        language="python",
        files={
            "test_a.py": (
                "import os, subprocess, sys, unittest\n\nclass A(unittest.TestCase):\n"
                f"    def test_a(self): os.write(1, b'{_GHOST}')\n"
                "    def test_b(self): sys.stdout.buffer.write(b'\\xff')\n"
                "    def test_c(self): subprocess.run(['echo', 'of another'], stdout=sys.stdout); print('own')\n"
                "    def test_d(self): sys.stdout.close()\n"
                "    def test_e(self): os.close(1)\n"
                "    def test_f(self): print('well')\n"
            )
        },
        told=(
            ("test_a.A.test_a", "passed", "", '\x1e{"name": "ghost", "outcome": "passed"}\n'),
            ("test_a.A.test_b", "passed", "", "\ufffd"),
            ("test_a.A.test_c", "passed", "", "of another\nown\n"),
            ("test_a.A.test_d", "passed", "", ""),
            ("test_a.A.test_e", "passed", "", ""),
            ("test_a.A.test_f", "passed", "", "well\n"),
        ),
    ),
    "Mocha's, and words of Vitest's": Layout(
        language="javascript",
        files={
            "test.js": (
                "describe('of Mocha', function () {\n  this.timeout(60).slow(5);\n\n"
                "  before(function () { this.timeout(1000); this.one = 1; });\n"
                "  after(() => {});\n  it('has a this', function () { this.slow(9).retries(2); expect(this.one).toBe(2); });\n"
                "  context('of describe', () => specify('waits', () => new Promise((done) => setTimeout(done, 5000))));\n"
                "  xcontext('left out', () => it('is', () => {}));\n});\n"
            ),
            "vitest.test.mjs": (
                "import { expect, it } from 'vitest';\n\nit.skipIf(true)('skipped', () => {});\nit.runIf(true)('run', () => {});\n"
                "it.fails('fails', () => { throw 1; });\nit.sequential('soft', () => expect.soft(1).toBe(2));\n"
            ),
        },
        told=(
            ("of Mocha > has a this", "failed", "expect(received).toBe(expected)\n\nExpected: 2\nReceived: 1", ""),
            ("of Mocha > of describe > waits", "timeout", "test timed out after 60ms", ""),
            ("of Mocha > left out > is", "skipped", "", ""),
            ("skipped", "skipped", "", ""),
            ("run", "passed", "", ""),
            ("fails", "passed", "", ""),
            ("soft", "failed", "expect(received).toBe(expected)\n\nExpected: 2\nReceived: 1", ""),
        ),
    ),
    "JavaScript's that are TypeScript's": Layout(
        language="javascript",
        files={"src/a.test.ts": "test('a', () => {});\n", "src/a.ts": ""},
        says="there are some of the language typescript: send it as that\n",
    ),
    "JavaScript's that assert on the console": Layout(
        language="javascript",
        files={
            "main.js": "console.assert(1 === 1);\nconsole.assert(1 === 2, 'one is %d', 2);\nconsole.assert(false);\n",
        },
        told=(("main.js", "failed", "one is 2", ""),),
    ),
    "Rust's of a library that is elsewhere": Layout(
        language="rust",
        files={
            "Cargo.toml": '[package]\nname = "calc"\nversion = "0.1.0"\nedition = "2021"\n\n[lib]\npath = "source/calc.rs"\n',
            "source/calc.rs": "pub fn one() -> i32 {\n    1\n}\n",
            "tests/it.rs": "#[test]\nfn one() {\n    assert_eq!(calc::one(), 1);\n}\n",
        },
        told=(("one", "passed", "", ""),),
    ),
    "Rust's in the folder of tests alone": Layout(
        language="rust",
        files={
            "src/solution.rs": "pub fn one() -> i32 {\n    1\n}\n",
            "tests/t.rs": '#[path = "../src/solution.rs"]\nmod solution;\n\n#[test]\nfn one() {\n    assert_eq!(solution::one(), 2)\n}\n',
        },
        told=(("one", "failed", "assertion `left == right` failed\n  left: 1\n right: 2", "…"),),
    ),
    "Java's that takes all memory": Layout(
        language="java",
        files={
            "ATest.java": (
                "import java.util.*;\nimport org.junit.jupiter.api.*;\n\nclass ATest {\n"
                "    @Test void a() { List<long[]> all = new ArrayList<>(); while (true) all.add(new long[1 << 22]); }\n}\n"
            )
        },
        told=(("ATest.a", "error", "java.lang.OutOfMemoryError: Java heap space", ""),),
    ),
    "doctest's, in two files": Layout(
        language="cpp",
        files={
            "doctest.h": _DOCTEST,
            "test_a.cpp": '#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN\n#include "doctest.h"\n\n'
            'TEST_CASE("one, two \\\\ [x] \\"y\\"") { CHECK(1 == 1) }\n',
            "test_b.cpp": '#include "doctest.h"\n\nTEST_CASE("b") { CHECK(1 == 2) }\nTEST_CASE("b*") { CHECK(1 == 1) }\n',
        },
        told=(
            ('one, two \\ [x] "y"', "passed", "", "…"),
            ("b", "failed", "CHECK( 1 == 2 ) is NOT correct!\n  values: none", "…"),
            ("b*", "passed", "", "…"),
        ),
    ),
    **{
        f"{name}'s that include what they test, and put out ends": Layout(
            language=language,
            files={
                f"src/main{suffix}": "int beside(void) { return 0; }\nint main(void) { return 1; }\n",
                f"tests/c{suffix}": "int beside(void);\nint main(void) { return beside(); }\n",
                f"sol{suffix}": "static int own(void) { return 1; }\nint sol(void) { return own(); }\n",
                f"more{suffix}": "int more(void) { return 1; }\n",
                f"a_tests{suffix}": f'# include "./sol{suffix}"\nint more(void);\n\nint main(void) {{ return own() - more(); }}\n',
                f"tests/b{suffix}": '#include <stdio.h>\n\nint main(void) { puts("\\036-0 1\\n\\036+c\\n\\036-0 1"); return 3; }\n',
            },
            told=(
                ("a_tests", "passed", "", ""),
                ("tests/b", "passed", "", ""),
                ("c", "passed", "", ""),
                ("tests/c", "passed", "", ""),
            ),
        )
        for language, name, suffix in (("c", "C", ".c"), ("cpp", "C++", ".cc"))
    },
}
"""By what is odd about them."""
