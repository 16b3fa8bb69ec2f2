"""Our `expect` beside Jest's own, whose answers are in the table."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

KIT = Path(__file__).parents[2] / "kit"
PROFILES = Path(__file__).parents[3] / "imagegen/languages/profiles"


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_assertions_pass_and_fail_as_jests_do() -> None:
    lines = (KIT / "jest_assertions.txt").read_text().splitlines()
    command = ["node", str(KIT / "jest_table.cjs"), str(PROFILES / "expect.cjs"), str(PROFILES / "jest.cjs")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout)
    assert [line for line, passes in zip(lines, answers, strict=True) if (line[:5] == "pass ") is not passes] == []
