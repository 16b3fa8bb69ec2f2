"""scripts/test: how it ends, by itself and when interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
from pathlib import Path
from scripts import suite
suite.ROOT = Path(sys.argv[1])
suite.GRACE_S = 0.5
suite.BOOTING = []
suite.must_run = lambda: ["kvm"]
suite.RUNS = {name: ([sys.executable, sys.argv[1] + "/run.py", name], ["tests"], []) for name in json.loads(sys.argv[2])}
sys.argv[1:] = json.loads(sys.argv[3])
sys.exit(suite.main())
"""
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
with open("started", "a") as file:
    print(sys.argv[1], os.getpid(), child.pid, file=file, flush=True)
print("this is", sys.argv[1], flush=True)
open("tell", "wb").write(b".")
time.sleep(1000)
"""
COUNTING = """
import json, os, pathlib, sys
name, path = sys.argv[1], pathlib.Path(os.environ["MAYFLY_TEST_COUNTS"])
goes = pathlib.Path(name + ".goes")
goes.write_text(goes.read_text() + "x" if goes.exists() else "x")
outcome = "failed" if name == "broken" or name == "shaky" and goes.read_text() == "x" else "passed"
counts = {"outcomes": {outcome: 1}, "markers": {"kvm": {outcome: 1}}, "tests": {name: [outcome, 1.0]}}
path.write_text(json.dumps(counts))
sys.exit(outcome == "failed")
"""


def start(folder: Path, script: str, names: list[str], *arguments: str) -> "subprocess.Popen[str]":
    (folder / "run.py").write_text(script)
    command = [sys.executable, "-c", PROGRAM, str(folder), json.dumps(names), json.dumps(arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(folder: Path, names: list[str], *arguments: str) -> tuple[int, list[str]]:
    """Exit status and lines of a suite with these runs."""
    with start(folder, COUNTING, names, *arguments) as process:
        output, _ = process.communicate()
    return process.returncode, output.splitlines()


@pytest.fixture
def told() -> Iterator[tuple[int, int]]:
    """A pipe to which each run writes one byte when it is up."""
    ends = os.pipe()
    yield ends
    for descriptor in ends:
        os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_of_it_and_no_run_begins(tmp_path: Path, told: tuple[int, int], number: signal.Signals) -> None:
    read, write = told
    (tmp_path / "tell").symlink_to(f"/proc/{os.getpid()}/fd/{write}")  # the suite hands no descriptors on
    with start(tmp_path, STUBBORN, ["one", "two", "three"]) as process:
        assert os.read(read, 1) + os.read(read, 1) == b".."
        process.send_signal(number)
        output, _ = process.communicate()
    assert process.returncode == 128 + number
    assert "ending what runs" in output
    assert "this is one" in output and "this is two" in output
    lines = [line.split() for line in (tmp_path / "started").read_text().splitlines()]
    assert sorted(name for name, *_ in lines) == ["one", "two"]
    left = [pid for _, *pids in lines for pid in pids if Path(f"/proc/{pid}/cmdline").exists()]
    assert left == []


def test_the_last_line_sums_up_and_says_what_needed_a_second_go(tmp_path: Path) -> None:
    status, lines = ended(tmp_path, ["here", "shaky", "good"])
    assert status == 0
    assert lines[-1].strip("= ").startswith("3 passed in ")
    assert lines[-1].strip("= ").endswith(", 1 needed a second go")
    assert "test: needed a second go: shaky" in lines
    assert any(line.startswith("test: good ") and line.endswith("s  1 passed") for line in lines)


@pytest.mark.parametrize(
    ("names", "most", "status"), [(["shaky"], "1", 0), (["shaky"], "0", 1), (["broken", "here"], "9", 1), (["here"], "0", 0)]
)
def test_too_many_second_goes_or_a_test_that_fails_twice_fail_it(tmp_path: Path, names: list[str], most: str, status: int) -> None:
    assert ended(tmp_path, names, "--most-retries", most)[0] == status


def test_a_marker_that_was_skipped_as_a_whole_fails_it(tmp_path: Path) -> None:
    status, lines = ended(tmp_path, ["broken"])
    assert status == 1
    assert "test: no test passed of: kvm" in lines


def test_a_report_keeps_what_was_not_done_anew(tmp_path: Path) -> None:
    page = tmp_path / "report.md"
    names = ["good", "broken", "shaky"]
    ended(tmp_path, names, "--report", str(page))
    parts = page.read_text().split("\n\n## ")
    assert [part.split("\n")[0] for part in parts] == ["# Test report", *names]
    assert re.search(r"^20\d\d-\d\d-\d\d, \w+, Python [\d.]+, a tenth of the counts: 1 failed in 0 s\.$", parts[2], re.MULTILINE)
    assert "- failed: `broken`" in parts[2] and "- " not in parts[3]
    page.write_text(page.read_text().replace(" in 0 s", " in 7 s"))
    status, lines = ended(tmp_path, names, "--report", str(page), "--run", "good", "--run", "shaky")
    assert status == 0 and lines[-1].strip("= ").startswith("2 passed in ")
    assert re.findall(r" in (\d+) s", page.read_text()) == ["0", "7", "0"]


FIXTURE = """
import os, signal, subprocess, sys
import pytest

@pytest.fixture
def child():
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True) as process:
        print("child", process.pid, flush=True)
        yield
        process.kill()

def test_one(child):
    import asyncio
    async def waiting():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    asyncio.run(waiting())

def test_two(child):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


def test_sigterm_has_fixtures_end_what_they_started(tmp_path: Path) -> None:
    (tmp_path / "test_toy.py").write_text(FIXTURE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-p",
        "no:randomly",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == pytest.ExitCode.INTERRUPTED, found.stdout + found.stderr
    children = re.findall(r"child (\d+)", found.stdout)
    assert len(children) == 2
    assert not any(Path("/proc", pid).exists() for pid in children)
