"""Suites of each language, run by the agent with this host's own compilers, and their results as a
whole.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from mayfly.imagegen.languages import ProfileName, load_language
from mayfly.protocol import frames as p
from mayfly.runs.result import TestReport as Report
from mayfly.runs.tested import read_tests
from tests.kit.agent_process import AgentProcess, Result
from tests.kit.layouts import LAYOUTS, Layout
from tests.kit.scale import FULL
from tests.kit.strangers import STRANGERS
from tests.kit.suites import SUITES, expected, told
from tests.kit.traps import TRAPS
from tests.unit.agent.test_language_steps import (
    ESBUILD,
    HAS_GCC,
    HAS_NODE,
    HAS_RUST,
    agent,
    executable,
    go_caches,
    steps_here,
    with_esbuild,
)

__all__ = ["agent", "executable", "with_esbuild"]

HAS_JUNIT = any(Path("/usr/share/java").glob("junit-platform-launcher*.jar"))
MISSING = {
    "rust": "" if HAS_RUST else "rustc",
    "go": "" if shutil.which("go") else "go",
    "python": "",
    "javascript": "" if HAS_NODE else "node",
    "typescript": "" if ESBUILD and HAS_NODE else "node or esbuild",
    "java": "" if shutil.which("javac") and HAS_JUNIT else "javac or junit5",
    "c": "" if HAS_GCC else "gcc",
    "cpp": "" if HAS_GCC else "g++",
}
"""What each language takes that is not here."""


def languages(names: Iterable[str] = SUITES) -> pytest.MarkDecorator:
    """The mark of a test for each of the languages whose compilers are here."""
    return pytest.mark.parametrize(
        "name",
        [pytest.param(name, marks=pytest.mark.skipif(bool(MISSING[name]), reason=f"{MISSING[name]} is not installed")) for name in names],
    )


def run(
    agent: AgentProcess,
    name: str,
    files: Mapping[str, str],
    hidden: tuple[str, ...] = (),
    *,
    profile: ProfileName = "test",
    cpu_ms: int = 0,
    pytest: bool = False,
    options: Mapping[str, str] = {},
) -> Result:
    """Do with files of a language what the profile says, with a limit on the processor time of its
    last step; Python's tests without pytest unless asked for.
    """
    language = load_language(name)
    chosen = language.profiles[profile]
    if name == "go":
        go_caches(agent)
    if name == "python" and not pytest:
        files = {**files, "pytest.py": "raise ModuleNotFoundError(name='pytest')\n"}
    *steps, last = steps_here(agent, language, chosen.steps, wall_ms=600_000, hidden=hidden, options=options)
    last.cpu_ms = cpu_ms
    agent.start(*steps, last, files=[(path, text.encode()) for path, text in {**chosen.files, **files}.items()])
    agent.send(p.StdinEof())
    agent.patience_s *= 10  # Go compiles its library
    return agent.result()


def results(name: str, result: Result) -> list[Report]:
    """Each test's."""
    return read_tests(load_language(name).profiles["test"].tests, result.stdout, result.exits[-1])


@languages()
@pytest.mark.usefixtures("with_esbuild")
def test_a_suite(agent: AgentProcess, name: str) -> None:
    suite = SUITES[name]
    result = run(agent, name, suite.files, suite.hidden)
    assert result.stages[-1] == "run", result.stderr
    tests = results(name, result)
    assert told(tests) == expected(suite, tests), result.stderr
    assert all(test.wall_ms is not None and test.wall_ms >= 0 for test in tests if test.outcome != "skipped")
    assert result.exits[-1].code != 0
    if name not in ("javascript", "typescript"):  # these import when they run
        assert not any((agent.work / path).exists() for path in suite.hidden)


@languages([*SUITES] if FULL else ["c", "javascript"])
@pytest.mark.usefixtures("with_esbuild")
def test_a_suite_that_is_no_program_of_the_language(agent: AgentProcess, name: str) -> None:
    suite = SUITES[name]
    result = run(agent, name, {**suite.files, **suite.wrong}, suite.hidden)
    assert result.exits[-1].code != 0
    assert suite.words in (result.stdout + result.stderr).decode()
    assert {test.outcome for test in results(name, result)} <= {"error"}


@languages([*SUITES] if FULL else ["c", "javascript", "python"])
@pytest.mark.usefixtures("with_esbuild")
def test_one_that_never_ends_is_a_timeout(agent: AgentProcess, name: str) -> None:
    suite = SUITES[name]
    result = run(agent, name, {**suite.files, **suite.endless}, suite.hidden, cpu_ms=10_000 if name == "java" else 2000)
    found = [(test.name, test.outcome, test.message) for test in results(name, result)]
    assert found == [(suite.ends[0], "passed", ""), (suite.ends[1], "timeout", "ended by its cpu limit")], result.stderr


@pytest.mark.parametrize("layout", [pytest.param(layout, id=name) for name, layout in {**LAYOUTS, **TRAPS, **STRANGERS}.items()])
@pytest.mark.usefixtures("with_esbuild")
def test_an_exercise_as_sites_lay_it_out(agent: AgentProcess, layout: Layout) -> None:
    if why := MISSING[layout.language]:
        pytest.skip(f"{why} is not installed")
    result = run(agent, layout.language, layout.files)
    tests = results(layout.language, result)
    assert told(tests) == expected(layout, tests), result.stderr
    assert layout.says in result.stderr.decode()
    assert result.exits[-1].code != 0 or not layout.says


@languages(["javascript", "java"])
def test_one_that_ends_the_program_has_not_passed(agent: AgentProcess, name: str) -> None:
    """Whatever status it ends it with."""
    files = {
        "javascript": {"a.test.js": "test('a', () => process.exit(0));\n"},
        "java": {"ATest.java": "import org.junit.jupiter.api.*;\n\nclass ATest { @Test void a() { System.exit(0); } }\n"},
    }
    result = run(agent, name, files[name])
    assert [test.outcome for test in results(name, result)] == ["error"], result.stderr
    assert result.exits[-1].code == 1


@pytest.mark.skipif(not HAS_NODE, reason="node is not installed")
def test_jests_times_are_longer_where_everything_takes_longer(agent: AgentProcess) -> None:
    result = run(agent, "javascript", {"x.test.js": "test('never', () => new Promise(() => {}), 40);\n"}, options={"time_factor": "3"})
    assert [test.message for test in results("javascript", result)] == ["test timed out after 120ms"], result.stderr


CATCH2 = Path("/usr/include/catch2/catch.hpp")


@pytest.mark.skipif(not (CATCH2.exists() and HAS_GCC and FULL), reason="no catch2, or not the whole counts: it takes a minute")
def test_the_real_catch2(agent: AgentProcess) -> None:
    """Version 2, whose words the layouts' only have a model of."""
    files = {
        "test/tests-main.cpp": "#define CATCH_CONFIG_MAIN\n#include <catch2/catch.hpp>\n",
        "leap_test.cpp": (
            "#include <catch2/catch.hpp>\n#include <stdexcept>\n\n"
            'TEST_CASE("sixteen, a \\"leap\\" year [\\\\]", "[a1]") { REQUIRE(16 % 4 == 0); }\n'
            'TEST_CASE("#five*") { SECTION("a") { CHECK(4 == 4); } SECTION("b") { CHECK(5 % 4 == 0); } }\n'
            'TEST_CASE("throws") { throw std::runtime_error("boom"); }\n'
            'TEST_CASE("hidden", "[.]") { REQUIRE(false); }\n'
        ),
    }
    assert [(test.name, test.outcome, test.message) for test in results("cpp", run(agent, "cpp", files))] == [
        ('sixteen, a "leap" year [\\]', "passed", ""),
        ("#five*", "failed", "CHECK( 5 % 4 == 0 )\nwith expansion:\n  1 == 0"),
        ("throws", "failed", "due to unexpected exception with message:\n  boom"),
    ]


def test_pythons_with_pytest(agent: AgentProcess) -> None:
    suite = SUITES["python"]
    result = run(agent, "python", suite.files, suite.hidden, pytest=True)
    told = {test.name: (test.outcome, test.message, test.output) for test in results("python", result)}
    of_class = "leap_test.py::LeapTest::"
    assert told == {
        f"{of_class}test_a_leap_year": ("passed", "", "asked 16\n"),
        f"{of_class}test_b_century": ("failed", "AssertionError: True is not False : twenty", "asked 20\n"),
        f"{of_class}test_c_exception": ("failed", "TypeError: not all arguments converted during string formatting", "asked x\n"),
        f"{of_class}test_d_skipped": ("skipped", "Skipped: later", ""),
        f"{of_class}test_e_raises": ("passed", "", "asked None\n"),
    }
    assert result.exits[-1].code == 1


def test_pythons_with_a_configuration_of_pytest(agent: AgentProcess) -> None:
    files = {
        "pytest.ini": "[pytest]\naddopts = -v -ra -s --tb=short --color=yes --ff -p no:randomly\n",
        "a_test.py": "import pytest\n\npytest.skip('not here', allow_module_level=True)\n",
        "b_test.py": (
            "import pytest\n\n@pytest.fixture\ndef late():\n    yield\n    pytest.skip('late')\n\n"
            "def test_a(late):\n    print('said')\n    assert 0, 'early'\n\ndef test_b(): pass\n"
        ),
    }
    result = run(agent, "python", files, pytest=True)
    assert told(results("python", result)) == [
        ("a_test.py", "skipped", "Skipped: not here", ""),
        ("b_test.py::test_a", "failed", "AssertionError: early\nassert 0", "said\n"),
        ("b_test.py::test_b", "passed", "", ""),
    ], result.stderr
    assert result.exits[-1].code == 1


def test_plain_asserts_beside_pytests(agent: AgentProcess) -> None:
    files = {
        "a_test.py": "def check(candidate):\n    assert candidate(3)\n\ncheck(bool)\n",
        "b_test.py": "assert 1 == 2\n",
        "c_test.py": "import unittest\n\nclass T(unittest.TestCase):\n    def test_c(self): pass\n\nunittest.main()\n",
    }
    result = run(agent, "python", files, pytest=True)
    assert [(test.name, test.outcome) for test in results("python", result)] == [
        ("a_test.py", "passed"),
        ("b_test.py", "failed"),
    ], result.stderr
    del files["b_test.py"]
    result = run(agent, "python", files, pytest=True)
    assert [(test.name, test.outcome) for test in results("python", result)] == [
        ("a_test.py", "passed"),
        ("c_test.py::T::test_c", "passed"),
    ], result.stderr


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            {"pytest.ini": "[pytest]\naddopts = -x\n", "a_test.py": "assert 1 == 2\n", "b_test.py": "assert 1 == 3\n"},
            [("a_test.py", "failed")],
            id="not loaded",
        ),
        pytest.param(
            {"tests/pytest.ini": "[pytest]\n", "tests/a_test.py": "assert 1 == 2\n"}, [("tests/a_test.py", "failed")], id="another root"
        ),
        pytest.param(
            {"pytest.ini": "[pytest]\naddopts = -k other\n", "a_test.py": "assert 1\n\ndef test_a(): assert 0\n"}, [], id="not asked for"
        ),
        pytest.param({"a_test.py": "async def check(): assert 0\n\ncheck().close()\n"}, [], id="never run"),
    ],
)
def test_a_file_is_not_told_as_passed_that_asserted_nothing(
    agent: AgentProcess, files: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    result = run(agent, "python", files, pytest=True)
    assert [(test.name, test.outcome) for test in results("python", result)] == expected, result.stderr


@pytest.mark.parametrize(
    ("files", "expected", "says"),
    [
        pytest.param(
            {"a_test.py": "import sys\n\nsys.exit(3)\n", "b_test.py": "1 / 0\n"},
            [("a_test.py", "error", "SystemExit: 3"), ("b_test.py", "error", "ZeroDivisionError: division by zero")],
            "",
            id="one that ends the program",
        ),
        pytest.param(
            {"a_test.py": "from sol import f\n", "b_test.py": "assert 1 == 2, 'b'\n", "sol.py": "def f() return 1\n"},
            [("a_test.py", "error", "SyntaxError: expected ':'"), ("b_test.py", "failed", "AssertionError: b\nassert 1 == 2")],
            "",
            id="reasons",
        ),
        pytest.param(
            {"a_test.py": "def test_a(nothing): pass\n", "sol.py": "", "pytest.ini": "[pytest]\naddopts = --doctest-modules\n"},
            [("a_test.py::test_a", "error", "fixture 'nothing' not found")],
            "",
            id="no fixture",
        ),
        pytest.param(
            {
                "pyproject.toml": "[tool.pytest.ini_options]\ntestpaths = ['spec']\npython_files = ['check_*.py']\n",
                "spec/check_a.py": "def test_a(): pass\n",
                "a_test.py": "def test_b(): pass\n",
            },
            [("spec/check_a.py::test_a", "passed", "")],
            "",
            id="files of a configuration",
        ),
        pytest.param(
            {"setup.cfg": "[tool:pytest]\naddopts = --timeout-method=thread\n", "a_test.py": "def test_a(): pass\n"},
            [],
            "the image has no pytest-timeout; add it: imagegen build python --package pytest-timeout\n",
            id="no plugin",
        ),
        pytest.param(
            {"a_test.py": "def test_a(mocker): pass\n"},
            [("a_test.py::test_a", "error", "fixture 'mocker' not found")],
            "the image has no pytest-mock; add it: imagegen build python --package pytest-mock\n",
            id="no fixture of a plugin",
        ),
        pytest.param(
            {"conftest.py": "import os\nfrom nowhere.deep import x\n", "a_test.py": "def test_a(): pass\n"},
            [],
            "the image has no nowhere; add it: imagegen build python --package nowhere\n",
            id="a conftest that lacks something",
        ),
        pytest.param({"conftest.py": "exit(3)\n", "a_test.py": ""}, [], "conftest.py ended the program: 3\n", id="a conftest that ends"),
        pytest.param(
            {
                "a.py": 'def f():\n    """\n    >>> f()\n    2\n    """\n    return 1\n',
                "pytest.ini": "[pytest]\naddopts = --doctest-modules\n",
            },
            [("a.py::a.f", "failed", "Expected:\n    2\nGot:\n    1")],
            "",
            id="examples",
        ),
    ],
)
def test_what_pytest_makes_of_odd_files(agent: AgentProcess, files: dict[str, str], expected: list[tuple[str, ...]], says: str) -> None:
    result = run(agent, "python", files, pytest=True)
    assert [(test.name, test.outcome, test.message) for test in results("python", result)] == expected, result.stderr
    assert says in result.stderr.decode()


def test_a_file_that_raises_says_where(agent: AgentProcess) -> None:
    """Without what of the runner was under way."""
    files = {"leap.py": "def leap(year):\n    return 1 / 0\n", "leap_test.py": "from leap import leap\n\nleap(1)\n"}
    said = run(agent, "python", files).stderr.decode()
    assert said.startswith("Traceback (most recent call last):\n  File ")
    assert said.splitlines()[1].endswith('leap_test.py", line 3, in <module>')
    assert said.endswith("ZeroDivisionError: division by zero\n")
    assert "tests.py" not in said.replace("leap_test.py", "")


def test_pytests_that_are_none(agent: AgentProcess) -> None:
    result = run(agent, "python", {"a_test.py": ""}, pytest=True)
    assert (result.exits[-1].code, results("python", result)) == (1, [])
    assert b"there are no tests" in result.stderr


@pytest.mark.parametrize("with_pytest", [True, False], ids=["pytest", "unittest"])
def test_pythons_that_cannot_be_loaded(agent: AgentProcess, with_pytest: bool) -> None:
    result = run(agent, "python", {"main_test.py": "def f(:\n"}, pytest=with_pytest)
    assert [test.outcome for test in results("python", result)] == ["error"]
    assert result.exits[-1].code == 1


FORMATTED = {
    "rust": ("src/lib.rs", "pub fn one()->u8{1}\n", "pub fn one() -> u8 {\n    1\n}\n"),
    "go": ("main.go", "package main\nfunc main() {x:=1;_ = x}\n", "package main\n\nfunc main() { x := 1; _ = x }\n"),
    "python": ("main.py", "x = { 'a':1 }\n", 'x = {"a": 1}\n'),
}
LINTED = {
    "rust": ("main.rs", "fn main() { let words = vec![1]; if words.len() == 0 {} }\n", "length comparison to zero"),
    "go": ("main.go", 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Printf("%d", "x") }\n', "wrong type string"),
}
TOOLS = {"rust": "rustfmt", "go": "gofmt", "python": "black"}


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("name", FORMATTED)
def test_the_formatter(agent: AgentProcess, name: str, right: bool) -> None:
    if MISSING[name] or not shutil.which(TOOLS[name]):
        pytest.skip(f"{TOOLS[name]} is not installed")
    path, before, after = FORMATTED[name]
    result = run(agent, name, {path: before if right else "}{"}, profile="format")
    if right:
        assert ((agent.work / path).read_text(), result.exits[-1].code) == (after, 0), result.stderr
    else:
        assert path in (result.stdout + result.stderr).decode()
        assert result.exits[-1].code != 0


@pytest.mark.parametrize("name", LINTED)
def test_the_linter(agent: AgentProcess, name: str) -> None:
    if MISSING[name] or (name == "rust" and not shutil.which("clippy-driver")):
        pytest.skip("the linter is not installed")
    path, text, words = LINTED[name]
    result = run(agent, name, {path: text}, profile="lint")
    assert result.exits[-1].code != 0
    assert words in (result.stdout + result.stderr).decode()


@languages(["java"])
def test_javas_without_junit(agent: AgentProcess, name: str) -> None:
    files = {
        "Leap.java": "class Leap { static boolean leap(int year) { return year % 4 == 0; } }\n",
        "PassTest.java": "class PassTest { public static void main(String[] a) { assert Leap.leap(4); } }\n",
        "FailTest.java": 'class FailTest { public static void main(String[] a) { assert Leap.leap(3) : "three"; } }\n',
        "Main.java": "class Main { public static void main(String[] a) { System.exit(3); } }\n",
    }
    result = run(agent, name, files)
    assert {test.name: test.outcome for test in results(name, result)} == {"FailTest": "failed", "PassTest": "passed"}, result.stderr
    result = run(agent, name, {path: text for path, text in files.items() if path in ("Leap.java", "Main.java")})
    assert {test.name: test.outcome for test in results(name, result)} == {"Main": "failed"}, result.stderr
