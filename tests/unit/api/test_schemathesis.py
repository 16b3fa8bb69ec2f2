"""openapi.json and the server say the same: Schemathesis makes requests of the one and sends them
to the other.
"""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.kit.api_server import Served, make_key, serving
from tests.kit.functions_kit import create_function, install_echo

CONFIGURATION = """
[checks.positive_data_acceptance]
enabled = false # what is well-formed may still name a language, run or network that is not there

[[operations]]
include-path = "/batch"
checks.negative_data_rejection.enabled = false # what is wrong with one of its runs is in its answer
"""
LIMIT_S = 280.0


@pytest.mark.slow
def test_schemathesis_finds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="Schemathesis is not installed: pip install schemathesis")
    install_echo(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)  # it keeps a folder where it runs
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    options = ("--phases=coverage,fuzzing", "--max-examples=3", "--seed=1")

    async def scenario(served: Served) -> tuple[int | None, str]:
        await create_function(served.functions, tmp_path, "echo")
        header = f"Authorization: Bearer {make_key('tester')}"
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json", "-H", header, "--no-color", *options]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        try:
            found, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        return process.returncode, found.decode(errors="replace")

    status, found = serving(tmp_path, scenario, limit_s=LIMIT_S)
    assert status == 0, found[:10_000]
