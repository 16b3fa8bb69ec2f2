"""Run all tests: most of them here, those that boot Linux through scripts/with-kvm, some on Arm.

Usage: scripts/test [--report FILE] [PYTEST ARGUMENT…]       (MAYFLY_FULL=1: the whole counts)

The last line sums up all runs. The exit status is 0 only if all passed and no marker was skipped as
a whole.
"""

import collections
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = str(ROOT / ".venv/bin/python")
HERE = ["tests/unit", "tests/fuzz", "tests/kvm", "tests/system/test_with_kvm.py", "-m", "not system"]
LINUX = ["-p", "no:hypothesispytest", "-m"]
LONGEST = ("aarch64", "aarch64-test_snapshots", "aarch64-test_runs", "here", "test_snapshots", "test_runs", "aarch64-test_net")
BOOTING = sorted(path.relative_to(ROOT) for path in ROOT.glob("tests/system/test_*.py") if path.stem != "test_with_kvm")
ON_ARM = ["scripts/with-kvm", "--arch", "aarch64", "python"]
RUNS = {
    # One emulated host for each file: if one breaks, the others' results stand. The longest first.
    **{path.stem: (["scripts/with-kvm", PYTHON], [str(path), *LINUX, "system"]) for path in BOOTING},
    "here": ([PYTHON], HERE),
}
if platform.machine() != "aarch64":
    if os.environ.get("MAYFLY_FULL") == "1":
        RUNS |= {f"aarch64-{path.stem}": (ON_ARM, [str(path), *LINUX, "system"]) for path in BOOTING}
    else:
        RUNS["aarch64"] = (ON_ARM, ["tests/system", *LINUX, "system and aarch64"])
RUNS = {name: RUNS[name] for name in sorted(RUNS, key=[*LONGEST, *sorted(RUNS)].index)}
MUST_RUN = ("kvm", "system")
AT_ONCE = 2
"""The emulated host has one processor, and with-kvm allows two such hosts."""
EMULATOR_FAILED = 125
"""with-kvm's own exit status, which pytest never has."""


def run(name: str, extra: list[str]) -> tuple[int, dict[str, Any]]:
    """One run: its status, and what conftest.py counted (empty if it did not come so far).

    QEMU's emulation now and then breaks a guest. So what failed in an emulated host runs once more,
    in a new one, and this says so.
    """
    _, arguments = RUNS[name]
    status, result = attempt(name, [*arguments, *extra])
    failed = [test for test, (outcome, _) in result.get("tests", {}).items() if outcome in ("failed", "error")]
    if name != "here" and (status == EMULATOR_FAILED or failed):
        print(f"test: {name}: once more, in a new emulated host: {' '.join(failed) or 'all of it'}", flush=True)
        status, again = attempt(name, [*(failed or arguments[:1]), *arguments[1:], *extra])
        result = {**again, **result} if failed else again
        result["tests"] = {**result.get("tests", {}), **again.get("tests", {})}
        result["outcomes"] = collections.Counter(outcome for outcome, _ in result["tests"].values())
    return status, result


def attempt(name: str, arguments: list[str]) -> tuple[int, dict[str, Any]]:
    """One call of pytest, its output shown when it is over."""
    counts = ROOT / "build" / f"tests-{name}.json"
    counts.parent.mkdir(exist_ok=True)
    counts.unlink(missing_ok=True)
    command = [*RUNS[name][0], "-m", "pytest", *arguments]
    print(f"test: {' '.join(command)}", flush=True)
    environment = {**os.environ, "MAYFLY_TEST_COUNTS": str(counts)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    print(f"\ntest: {name}:\n{done.stdout.decode(errors='replace')}", flush=True)
    return done.returncode, json.loads(counts.read_text()) if counts.exists() else {}


def summary(outcomes: collections.Counter[str], seconds: float) -> str:
    """A line as pytest ends with."""
    words = [f"{outcomes[name]} {name}" for name in ("failed", "passed", "skipped", "xfailed", "error") if outcomes[name]]
    return f" {', '.join(words) or 'no tests ran'} in {seconds:.2f}s ({int(seconds) // 60}:{int(seconds) % 60:02}) ".center(100, "=")


def report(results: dict[str, dict[str, Any]], line: str) -> str:
    """The runs as a page: each file's outcomes, and everything that did not pass."""
    full = "whole counts" if os.environ.get("MAYFLY_FULL") == "1" else "a tenth of the counts"
    text = [f"# Test report\n\n{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {full}.\n"]
    text.append(f"```\n{line.strip('= ')}\n```\n")
    for name, result in results.items():
        files: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        seconds: collections.Counter[str] = collections.Counter()
        for test, (outcome, took) in result.get("tests", {}).items():
            files[test.split("::")[0]][outcome] += 1
            seconds[test.split("::")[0]] += took
        text.append(f"## {name}\n\n| file | outcomes | seconds |\n|---|---|---|")
        for file, counts in sorted(files.items()):
            text.append(
                f"| {file} | {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))} | {seconds[file]:.1f} |"
            )
        text += ["", *(f"- {outcome}: `{test}`" for test, (outcome, _) in result.get("tests", {}).items() if outcome != "passed")]
    return "\n".join(text).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    """Run, sum up, say."""
    page = Path(arguments[1]) if arguments[:1] == ["--report"] else None
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = dict(zip(RUNS, pool.map(lambda name: run(name, arguments[2:] if page else arguments), RUNS), strict=True))
    results = {name: result for name, (_, result) in done.items()}
    outcomes: collections.Counter[str] = collections.Counter()
    for result in results.values():
        outcomes.update(result.get("outcomes", {}))
    line = summary(outcomes, time.monotonic() - began)
    if page:
        page.write_text(report(results, line))
    idle = [m for m in MUST_RUN if not any(result.get("markers", {}).get(m, {}).get("passed") for result in results.values())]
    arm = [result for name, result in results.items() if name.startswith("aarch64")]
    if arm and not any(result.get("outcomes", {}).get("passed") for result in arm):
        idle.append("aarch64")
    print()
    for name, (status, _) in done.items():
        if status:
            print(f"test: {name}: pytest ended with status {status}")
    if idle:
        print(f"test: no test passed of: {', '.join(idle)}")
    print(line, flush=True)
    return 1 if idle or any(status for status, _ in done.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
