"""`mayfly test`, `fmt` and `lint`, of a language whose files are shell scripts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.images.manifest import LanguageStep, Profile
from tests.kit.api_fakes import install
from tests.unit.cli.test_cli import Mayfly, mayfly

__all__ = ["mayfly"]
Command = Callable[..., tuple[int, str, str]]
TEST = """
for file in *_test.script tests/*.script; do
    [ -e "$file" ] || continue
    printf '\\036+%s\\n' "$file"
    (exec sh "$file") 2>&1
    printf '\\036-%d 5\\n' $?
done
"""


def profile(script: str, collect: tuple[str, ...] = (), tests: str = "") -> Profile:
    """A profile of one step."""
    step = LanguageStep(name="run", argv=("sh", "-c", script, "sh", "{hidden}"))
    return Profile(steps=(step,), collect=collect, tests=tests)  # type: ignore[arg-type]


@pytest.fixture
def command(mayfly: Mayfly, tmp_path: Path) -> Command:
    """Run a command on files: its exit status, standard output and standard error."""
    profiles = {
        "test": profile(TEST, ("**/*.script",), "lines"),
        "format": profile("sed -i 's/ *$//' *.script", ("*.script",)),
        "lint": profile("! grep -n TODO *.script"),
    }
    install("script", ".script", (LanguageStep(name="run", argv=("sh", "main.script")),), profiles=profiles)

    def call(*args: str) -> tuple[int, str, str]:
        process = mayfly(*args)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.decode(), err.decode()

    return call


def test_each_test_has_a_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "suite" / "tests").mkdir(parents=True)
    (tmp_path / "suite" / "a_test.script").write_text("echo fine\n")
    (tmp_path / "suite" / "tests" / "b.script").write_text("echo one; echo 'is not two'; exit 1\n")
    status, out, err = command("test", "suite")
    assert (status, err, out.splitlines()) == (
        1,
        "",
        [
            "ok       a_test.script  5 ms",
            "FAILED   tests/b.script  5 ms",
            "         is not two",
            "         | one",
            "         | is not two",
            "1 passed, 1 failed",
        ],
    )
    status, out, _ = command("test", "suite/a_test.script", "--hidden", "suite/tests", "--json")
    result = json.loads(out)
    assert (status, sorted(result["files"])) == (0, ["a_test.script"])
    assert [(test["name"], test["outcome"], test["output"]) for test in result["tests"]] == [
        ("a_test.script", "passed", "fine\n"),
        ("tests/b.script", "failed", "one\nis not two\n"),
    ]


def test_files_are_formatted_in_place(command: Command, tmp_path: Path) -> None:
    for name, text in (("a.script", "echo  \n"), ("b.script", "echo\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "a.script").chmod(0o700)
    assert command("fmt", "--check", "a.script", "b.script") == (1, "would format a.script\n", "")
    assert command("fmt", "a.script", "b.script") == (0, "formatted a.script\n", "")
    assert (tmp_path / "a.script").read_text() == "echo\n"
    assert (tmp_path / "a.script").stat().st_mode & 0o777 == 0o700
    assert command("fmt", "a.script") == (0, "", "")


def test_what_a_linter_finds_is_shown(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a.script").write_text("TODO\n")
    assert command("lint", "a.script") == (1, "1:TODO\n", "")


def test_a_language_without_the_profile_says_so(command: Command, tmp_path: Path) -> None:
    (tmp_path / "x.toy").write_text("echo\n")
    status, _, err = command("test", "x.toy")
    assert (status, "toy has no profile 'test'" in err) == (125, True)
