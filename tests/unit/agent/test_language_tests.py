"""Suites of each language, run by the agent with this host's own compilers, and their results as a
whole: a test that passes, one that fails, one that is skipped, one that the machine's limits or a
crash end, and a suite that does not compile.
"""

import shutil
from collections.abc import Mapping

import pytest

from mayfly.imagegen.languages import load_language, offered
from mayfly.images.manifest import Profile
from mayfly.protocol import frames as p
from mayfly.runs.tested import read_tests
from tests.kit.agent_process import AgentProcess, Result
from tests.unit.agent.test_language_steps import HAS_GCC, HAS_NODE, HAS_RUST, agent, executable, steps_here

__all__ = ["agent", "executable"]


def needs(there: object, name: str) -> list[pytest.MarkDecorator]:
    """The mark of a test that needs a program."""
    return [pytest.mark.skipif(not there, reason=f"{name} is not installed")]


def run(agent: AgentProcess, name: str, files: Mapping[str, str], hidden: tuple[str, ...] = (), wall_ms: int = 60_000) -> Result:
    """Test files of a language."""
    language = load_language(name)
    profile = language.profiles["test"]
    steps = steps_here(agent, language, profile.steps, wall_ms=wall_ms, hidden=hidden)
    agent.start(*steps, files=[(path, text.encode()) for path, text in {**profile.files, **files}.items()])
    agent.send(p.StdinEof())
    return agent.result()


def outcomes(name: str, result: Result) -> dict[str, tuple[str, str]]:
    """Outcome and message by test."""
    profile: Profile = load_language(name).profiles["test"]
    return {test.name: (test.outcome, test.message) for test in read_tests(profile.tests, result.stdout, result.exits[-1])}


RUST = """
pub fn twice(n: u8) -> u8 { n + n }
#[test] fn passes() { println!("seen"); assert_eq!(twice(2), 4); }
#[test] fn fails() { assert_eq!(twice(2), 5, "is not five"); }
#[test] fn overflows() { twice(200); }
#[test] #[ignore = "later"] fn ignored() {}
"""
PYTHON = {
    "leap.py": "def leap(year):\n    print('asked', year)\n    return year % 4 == 0\n",
    "leap_test.py": "import unittest\nfrom leap import leap\n\n\nclass LeapTest(unittest.TestCase):\n"
    "    def test_passes(self):\n        self.assertTrue(leap(4))\n"
    "    def test_fails(self):\n        self.assertTrue(leap(3), 'three')\n"
    "    def test_errs(self):\n        leap('x')\n"
    "    @unittest.skip('later')\n    def test_skips(self):\n        pass\n\n\ndef test_plain():\n    assert not leap(5)\n",
}
NODE = {
    "leap.js": "exports.leap = (year) => { if (typeof year !== 'number') throw new TypeError('no number'); return year % 4 === 0; };\n",
    "leap.test.js": "const { test, describe } = require('node:test');\nconst assert = require('node:assert');\n"
    "const { leap } = require('./leap');\n"
    "describe('leap', () => {\n  test('passes', () => assert.ok(leap(4)));\n"
    "  test('fails', () => assert.equal(leap(3), true, 'three'));\n});\n"
    "test('throws', () => leap('x'));\ntest('skips', { skip: 'later' }, () => {});\n",
}
C = {
    "leap.c": "int leap(int year) { return year % 4 == 0; }\n",
    "test_passes.c": "#include <assert.h>\nint leap(int);\nint main(void) { assert(leap(4)); return 0; }\n",
    "test_fails.c": '#include <stdio.h>\nint leap(int);\nint main(void) { puts("three"); return leap(3) ? 0 : 2; }\n',
    "test_aborts.c": "#include <assert.h>\nint leap(int);\nint main(void) { assert(leap(3)); return 0; }\n",
    "test_skips.c": "int main(void) { return 77; }\n",
}
JAVA = {
    "Leap.java": "class Leap { static boolean leap(int year) { return year % 4 == 0; } }\n",
    "PassTest.java": "class PassTest { public static void main(String[] a) { assert Leap.leap(4); } }\n",
    "FailTest.java": 'class FailTest { public static void main(String[] a) { assert Leap.leap(3) : "three"; } }\n',
}


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.skipif(not HAS_RUST, reason="rustc is not installed")
def test_rusts(agent: AgentProcess, hidden: bool) -> None:
    files = {"main.rs": RUST}
    if hidden:  # a crate, and tests in files of their own
        lines = RUST.splitlines()
        files = {
            "src/lib.rs": lines[1],
            "tests/twice.rs": "use two_times::twice;\n" + "\n".join(lines[2:]),
            "Cargo.toml": '[package]\nname = "two-times"\n',
        }
    result = run(agent, "rust", files, hidden=("tests/twice.rs",) if hidden else ())
    assert not (agent.work / "tests" / "twice.rs").exists()
    found = outcomes("rust", result)
    assert found.pop("fails")[0] == "failed"
    assert found == {
        "passes": ("passed", ""),
        "overflows": ("failed", "attempt to add with overflow"),
        "ignored": ("skipped", "later"),
    }
    assert result.exits[-1].code != 0
    said = {test.name: test.output for test in read_tests("libtest", result.stdout, result.exits[-1])}
    assert said["passes"] == "seen\n"


NO_PYTEST = {"pytest.py": "raise ImportError\n"}


def test_pythons(agent: AgentProcess) -> None:
    result = run(agent, "python", {**PYTHON, **NO_PYTEST}, hidden=("leap_test.py",))
    assert outcomes("python", result) == {
        "leap_test.LeapTest.test_errs": ("error", "TypeError: not all arguments converted during string formatting"),
        "leap_test.LeapTest.test_fails": ("failed", "AssertionError: False is not true : three"),
        "leap_test.LeapTest.test_passes": ("passed", ""),
        "leap_test.LeapTest.test_skips": ("skipped", "later"),
        "leap_test.test_plain": ("passed", ""),
    }, result.stderr
    assert result.exits[-1].code == 1
    assert not (agent.work / "leap_test.py").exists()


def test_pythons_with_pytest(agent: AgentProcess) -> None:
    result = run(agent, "python", PYTHON, hidden=("leap_test.py",))
    found = {name.rpartition(":")[2]: outcome for name, (outcome, _) in outcomes("python", result).items()}
    assert found == {
        "test_errs": "failed",
        "test_fails": "failed",
        "test_passes": "passed",
        "test_skips": "skipped",
        "test_plain": "passed",
    }
    assert result.exits[-1].code == 1


@pytest.mark.parametrize("more", [{}, NO_PYTEST], ids=["pytest", "unittest"])
def test_pythons_that_cannot_be_loaded(agent: AgentProcess, more: dict[str, str]) -> None:
    result = run(agent, "python", {"main_test.py": "def f(:\n", **more})
    assert [outcome for outcome, _ in outcomes("python", result).values()] == ["error"]
    assert result.exits[-1].code == 1


def test_one_that_never_ends_is_a_timeout(agent: AgentProcess) -> None:
    result = run(
        agent, "python", {"main_test.py": "def test_one():\n    pass\ndef test_two():\n    while True: pass\n", **NO_PYTEST}, wall_ms=2000
    )
    assert outcomes("python", result) == {
        "main_test.test_one": ("passed", ""),
        "main_test.test_two": ("timeout", "ended by its wall limit"),
    }


@pytest.mark.skipif(not HAS_NODE, reason="node is not installed")
def test_nodes(agent: AgentProcess) -> None:
    result = run(agent, "javascript", NODE)
    assert outcomes("javascript", result) == {
        "passes": ("passed", ""),
        "fails": ("failed", "three"),
        "throws": ("failed", "no number"),
        "skips": ("skipped", "later"),
    }, result.stderr
    assert result.exits[-1].code == 1


@pytest.mark.skipif(not HAS_GCC, reason="g++ is not installed")
@pytest.mark.parametrize("name", ["c", "cpp"])
def test_cs(agent: AgentProcess, name: str) -> None:
    files = {path: text if name == "c" else text.replace("(void)", "()") for path, text in C.items()}
    files = files if name == "c" else {f"{path}pp": text for path, text in files.items()}
    result = run(agent, name, files, hidden=tuple(path for path in files if path.startswith("test_")))
    found = outcomes(name, result)
    outcome, message = found.pop("test_aborts")
    assert (outcome, "leap(3)' failed" in message) == ("failed", True), message
    assert found == {"test_passes": ("passed", ""), "test_fails": ("failed", "three"), "test_skips": ("skipped", "exit status 77")}
    assert [path.name for path in agent.work.glob("test_*")] == []


@pytest.mark.skipif(not HAS_GCC, reason="g++ is not installed")
def test_a_suite_that_does_not_compile_has_no_results(agent: AgentProcess) -> None:
    result = run(agent, "c", {"test_x.c": "int main(void) { return y; }"})
    assert (result.stages, result.exit.code) == (["build"], 1)


@pytest.mark.skipif(shutil.which("javac") is None, reason="javac is not installed")
def test_javas_without_junit(agent: AgentProcess) -> None:
    result = run(agent, "java", JAVA)
    found = outcomes("java", result)
    assert {name: outcome for name, (outcome, _) in found.items()} == {"FailTest": "failed", "PassTest": "passed"}, result.stderr


def test_each_profile_is_what_the_languages_have() -> None:
    for name in ("c", "cpp", "go", "java", "javascript", "python", "rust", "typescript"):
        language = load_language(name)
        assert language.profiles["test"].tests
        assert offered(language, "99") or name in ("javascript", "typescript", "python")
