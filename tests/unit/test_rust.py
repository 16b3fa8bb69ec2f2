"""The tests that the programs inside machines have beside their own code."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("program", ["agent", "wasm"])
def test_the_tests_beside_the_code_pass(program: str, tmp_path: Path) -> None:
    source, executable = ROOT / program / "src/main.rs", tmp_path / "tests"
    command: list[str | Path] = ["rustc", "--edition", "2021", "--test", "-C", "opt-level=1", "-o", executable, source]
    subprocess.run(command, check=True, cwd=tmp_path)
    done = subprocess.run([executable], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout
    assert " 0 failed; 0 ignored" in done.stdout
