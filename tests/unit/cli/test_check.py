"""`imagegen check`, of Python's own snippets with this host's Python."""

import json
import sys
from pathlib import Path

import pytest

from mayfly.errors import ConfigError
from mayfly.imagegen.checks import load_checks
from mayfly.images.manifest import LanguageStep
from tests.kit.api_fakes import install
from tests.unit.cli.test_cli import Mayfly, mayfly

__all__ = ["mayfly"]


def python(run: str) -> None:
    """An image of Python that runs programs so."""
    build = LanguageStep(name="build", argv=(sys.executable, "-m", "py_compile", "main.py"))
    install("python", ".py", (build, LanguageStep(name="run", argv=("sh", "-c", run), stdin=True)))


def check(mayfly: Mayfly, *args: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    process = mayfly("image", "check", *args)
    out, err = process.communicate(timeout=120)
    return process.returncode, out.decode(), err.decode()


def test_all_is_well(mayfly: Mayfly) -> None:
    python(f"exec {sys.executable} main.py")
    status, out, err = check(mayfly, "python")
    *lines, last = out.splitlines()
    assert (status, err, last) == (0, "", f"python 1.0: {len(lines)} of {len(lines)} are right"), out
    assert [line.split("  ")[0].strip() for line in lines] == ["ok"] * len(load_checks("python"))


def test_what_is_wrong_is_said(mayfly: Mayfly) -> None:
    python(f"{sys.executable} main.py; status=$?; echo more; [ $status != 3 ]")
    status, out, _ = check(mayfly, "python", "--json")
    found = {one["name"]: one["fault"] for one in json.loads(out)}
    assert status == 1
    assert found["hello"] == r"standard output is 'hello\nmore\n', not 'hello\n'"
    assert found["exit status"] == "its exit status is 1, not 3: ''"
    assert found["error of syntax"] == found["wall limit"] == ""


def test_a_language_without_image_or_checks(mayfly: Mayfly) -> None:
    status, _, err = check(mayfly, "rust")
    assert (status, err.splitlines()[0].startswith("mayfly: no image for the language 'rust'")) == (1, True), err
    status, _, err = check(mayfly, "toy")
    assert (status, err.splitlines()[0]) == (1, "mayfly: toy has no checks")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("- {name: a, source: b, limits: {wall_s: 0}}")
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_checks("x", tmp_path)
