"""C++'s headers that are compiled when an image is made, by the prepare step and the build step of
the language's file and this host's g++: a program that starts with one is the same, and so is what
the compiler says of it.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from mayfly.imagegen.languages import load_language
from mayfly.images.manifest import LanguageStep

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
CPP = load_language("cpp")
HEADERS = ("iostream", "bits/stdc++.h")
DEFAULTS = {"standard": "gnu++17", "warnings": "default", "optimize": "0"}


def here(step: LanguageStep, root: Path, options: dict[str, str]) -> Sequence[str]:
    """A step's command with the image's places in a folder of the test's."""
    words = step.argv
    for name, value in options.items():
        words = tuple(word.replace(f"{{{name}}}", value) for word in words)
    return [re.sub(r"/(tmp|var/cache/cpp)\b", rf"{root}/\1", word) for word in words]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which the headers are compiled."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "tmp").mkdir()
    (root / "var/cache/cpp").mkdir(parents=True)
    for step in CPP.prepare.steps:
        subprocess.run(here(step, root, {}), cwd=root, check=True)
    assert all((root / f"var/cache/cpp/{name}.gch").stat().st_size > 1_000_000 for name in HEADERS)
    return root


def build(root: Path, folder: Path, source: str, options: dict[str, str]) -> tuple[int, str, bytes]:
    """How the build step ended, what it said, and the program."""
    folder.mkdir(exist_ok=True)
    (root / "tmp").mkdir(exist_ok=True)
    (folder / "main").unlink(missing_ok=True)
    (folder / "main.cpp").write_text(source)
    done = subprocess.run(here(CPP.steps[0], root, {**DEFAULTS, **options}), cwd=folder, capture_output=True, text=True, check=False)
    program = folder / "main"
    said = re.sub(r"/tmp/cc\w+\.o", "/tmp/object.o", done.stderr)
    return done.returncode, said, program.read_bytes() if program.exists() else b""


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("int main() { std::cout << 1; }", {}),
        ("int main() { int unused; std::cout << 1; }", {"warnings": "extra"}),
        ("int main() { int unused; std::cout << 1; }", {"warnings": "error"}),
        ("int main() { std::cout << __cplusplus; }", {"standard": "c++20"}),
        ("int main() { std::cout << 1; }", {"optimize": "2"}),
        ("struct X {}; int main() { std::cout << X{} << std::missing; }", {}),
        ("int other(); int main() { return other(); }", {}),
    ],
    ids=["plain", "warning", "error of a warning", "standard", "optimized", "error", "of the linker"],
)
def test_they_change_nothing(prepared: Path, tmp_path: Path, source: str, options: dict[str, str]) -> None:
    text = f"#include <iostream>\n{source}\n"
    assert build(prepared, tmp_path / "work", text, options) == build(tmp_path, tmp_path / "work", text, options)


def test_a_macro_before_them_counts(prepared: Path, tmp_path: Path) -> None:
    text = "#define _GLIBCXX_DEBUG\n#include <iostream>\nint main() { std::cout << std::string()[1]; }\n"
    status, said, program = build(prepared, tmp_path / "work", text, {})
    assert (status, said) == (0, "")
    assert program == build(tmp_path, tmp_path / "work", text, {})[2]


@pytest.mark.parametrize("header", HEADERS)
def test_they_are_used(prepared: Path, tmp_path: Path, header: str) -> None:
    """GCC's list of what it reads has the compiled one, and none that it has the text of."""
    (tmp_path / "main.cpp").write_text(f"#include <{header}>\nint main() {{ std::cout << 1; }}\n")
    used = re.search(r"before='(.*)'", here(CPP.steps[0], prepared, {})[2])
    assert used is not None
    done = subprocess.run(
        ["g++", *used[1].split(), "-std=gnu++17", "-O0", "-pthread", "-H", "-fsyntax-only", "main.cpp"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"! {prepared}/var/cache/cpp/{header}.gch" in done.stderr.splitlines()
