"""Imports point one way: api -> imagegen, vmm, mayfly; imagegen -> vmm, mayfly; vmm -> mayfly; mayfly -> nothing of ours."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"api", "imagegen", "vmm", "mayfly", "tests", "scripts", "examples"}
ALLOWED = {
    "api": {"api", "imagegen", "vmm", "mayfly"},
    "imagegen": {"imagegen", "vmm", "mayfly"},
    "vmm": {"vmm", "mayfly"},
    "mayfly": {"mayfly"},
}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.lineno, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    if package == "imagegen" and not files:
        pytest.skip("there is no imagegen in this tree")
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imported(path)
        if name in OURS - ALLOWED[package]
    ]
    assert wrong == []


def test_the_zygote_stays_small() -> None:
    code = (
        "import sys, vmm.zygote, vmm.process; print(sorted({'aiohttp', 'asyncio', 'click', 'yaml', 'api', 'imagegen'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
