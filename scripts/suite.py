"""Run all tests: most of them here, those that boot Linux through scripts/with-kvm, some on Arm.

The last lines give each run's time and sum up all runs. The exit status is 0 only if all passed, no
marker was skipped as a whole that this machine can run, and not too many tests needed a second go.
Ctrl-C ends everything: 130, and no process is left.
"""

import argparse
import collections
import contextlib
import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
PYTHON = str(ROOT / ".venv/bin/python")
HERE = ["tests/unit", "tests/fuzz", "tests/kvm", "tests/page", "tests/system/test_with_kvm.py"]
FLEET = "tests/unit/fleet"
LINUX = ["-p", "no:hypothesispytest", "-m"]
LONGEST = ("aarch64", "aarch64-test_snapshots", "aarch64-test_runs", "here", "test_snapshots", "test_runs", "aarch64-test_net")
SYSTEM = sorted(path.relative_to(ROOT) for path in ROOT.glob("tests/system/test_*.py"))
TWO_HOSTS = [path for path in SYSTEM if path.stem.startswith("test_two_")]
BOOTING = [path for path in SYSTEM if path not in TWO_HOSTS and path.stem != "test_with_kvm"]
ON_ARM = ["scripts/with-kvm", "--arch", "aarch64", "python"]
RUNS = {
    # One emulated host for each file: if one breaks, the others' results stand. The longest first.
    **{path.stem: (["scripts/with-kvm", PYTHON], [str(path)], [*LINUX, "system"]) for path in BOOTING},
    "here": ([PYTHON], HERE, ["-m", "not system", f"--ignore={FLEET}"]),
    "fleet": ([PYTHON], [FLEET], ["-m", "not system"]),
}
FULL = os.environ.get("MAYFLY_FULL") == "1"
ALONE = "two-hosts"
"""The run whose tests start two emulated hosts at once; no other one is under way then."""
BESIDE = () if FULL else ("fleet",)
"""Runs that wait most of the time: beside AT_ONCE others. The whole counts have clusters, which
want a processor.
"""
if FULL:
    RUNS[ALONE] = ([PYTHON], [*map(str, TWO_HOSTS)], [])
if platform.machine() != "aarch64":
    if FULL:
        RUNS |= {f"aarch64-{path.stem}": (ON_ARM, [str(path)], [*LINUX, "system"]) for path in BOOTING}
    else:
        RUNS["aarch64"] = (ON_ARM, ["tests/system"], [*LINUX, "system and aarch64"])
RUNS = {name: RUNS[name] for name in sorted(RUNS, key=[*LONGEST, *sorted(RUNS)].index)}
AT_ONCE = 2
"""The emulated host has one processor, and with-kvm allows two such hosts."""
EMULATOR_FAILED = 125
"""with-kvm's own exit status, which pytest never has."""
GRACE_S = 20.0
"""A run that was interrupted may take this long for its tear-downs."""
PR_SET_CHILD_SUBREAPER = 36


def must_run() -> list[str]:
    """The markers of which this machine can run some tests."""
    from tests.kit.page_server import why_no_browser

    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return [*(["kvm"] if kvm else []), *(["browser"] if not why_no_browser() else []), "system"]


class Processes:
    """The runs' processes, each in a session of its own, and how all of them end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], Path] = {}
        self._ended = False
        # What a run leaves behind becomes our child, whatever session it is in (prctl(2)).
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def call(self, command: list[str], environment: dict[str, str], log: Path) -> int:
        """Run a command to its end, its output into `log`: its status. SystemExit after `end`."""
        with self._lock, log.open("wb") as output:
            if self._ended:
                raise SystemExit
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running[process] = log
        status = process.wait()
        with self._lock:
            self._running.pop(process, None)
        return status

    def end(self) -> None:
        """End all that runs and say how far it came. Tests get the time for their tear-downs."""
        with self._lock:
            self._ended = True
            running = dict(self._running)
        for process, log in running.items():
            print(f"\ntest: {log.stem} had printed:\n{log.read_text(errors='replace')}", flush=True)
            _signal_group(process.pid, signal.SIGINT)
        until = time.monotonic() + GRACE_S
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            _signal_group(process.pid, signal.SIGKILL)
        while left := children():  # in turns: the children of what ends here are ours next
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def children() -> list[int]:
    """The processes whose parent is this one."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found += map(int, (task / "children").read_text().split())
    return found


def run(name: str, extra: list[str], processes: Processes) -> tuple[int, dict[str, Any]]:
    """One run: its status, and what conftest.py counted (empty if it did not come so far).

    QEMU's emulation now and then breaks a guest, and a busy machine a test. So what failed runs
    once more, in a new emulated host if it is of one; `again` in the result names those tests.
    """
    _, paths, options = RUNS[name]
    began = time.monotonic()
    status, result = attempt(name, [*paths, *options, *extra], processes)
    failed = [test for test, (outcome, _) in result.get("tests", {}).items() if outcome in ("failed", "error")]
    if status == EMULATOR_FAILED or failed:
        print(f"test: {name}: once more: {' '.join(failed) or 'all of it'}", flush=True)
        status, again = attempt(name, [*(failed or paths), *options, *extra], processes)
        result = {**again, **result} if failed else again
        for marker, counts in again.get("markers", {}).items() if failed else ():
            result["markers"][marker] = collections.Counter(result["markers"].get(marker, {})) + collections.Counter(counts)
        result["tests"] = {**result.get("tests", {}), **again.get("tests", {})}
        result["outcomes"] = collections.Counter(outcome for outcome, _ in result["tests"].values())
        result["again"] = failed or list(again.get("tests", {}))[:1]
    return status, {**result, "wall_s": time.monotonic() - began}


def attempt(name: str, arguments: list[str], processes: Processes) -> tuple[int, dict[str, Any]]:
    """One call of pytest, its output shown when it is over."""
    counts = ROOT / "build" / f"tests-{name}.json"
    log = counts.with_suffix(".log")
    counts.parent.mkdir(exist_ok=True)
    counts.unlink(missing_ok=True)
    command = [*RUNS[name][0], "-m", "pytest", "--durations=15", *arguments]
    print(f"test: {' '.join(command)}", flush=True)
    status = processes.call(command, {**os.environ, "MAYFLY_TEST_COUNTS": str(counts)}, log)
    print(f"\ntest: {name}:\n{log.read_text(errors='replace')}", flush=True)
    return status, json.loads(counts.read_text()) if counts.exists() else {}


def words(outcomes: collections.Counter[str]) -> str:
    """The outcomes as pytest names them."""
    known = ("failed", "passed", "skipped", "xfailed", "error")
    return ", ".join(f"{outcomes[name]} {name}" for name in known if outcomes[name]) or "no tests ran"


def summary(outcomes: collections.Counter[str], again: int, seconds: float) -> str:
    """A line as pytest ends with, and how many tests needed a second go."""
    time_words = f"{seconds:.2f}s ({int(seconds) // 60}:{int(seconds) % 60:02})"
    return f" {words(outcomes)} in {time_words}, {again} needed a second go ".center(100, "=")


def report(results: dict[str, dict[str, Any]], before: str) -> str:
    """The runs as a page: each file's outcomes, and everything that did not pass. Of a run that was
    not done now the page has what it had `before`.
    """
    full = "whole counts" if FULL else "a tenth of the counts"
    head = f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}, {full}"
    sections = {section.split("\n", 1)[0]: section.rstrip() for section in before.split("\n## ")[1:]}
    for name, result in results.items():
        files: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        seconds: collections.Counter[str] = collections.Counter()
        for test, (outcome, took) in result.get("tests", {}).items():
            files[test.split("::")[0]][outcome] += 1
            seconds[test.split("::")[0]] += took
        counts = words(collections.Counter(result.get("outcomes", {})))
        text = [f"{name}\n\n{head}: {counts} in {result['wall_s']:.0f} s.\n\n| file | outcomes | seconds |\n|---|---|---|"]
        for file, outcomes in sorted(files.items()):
            text.append(f"| {file} | {words(outcomes)} | {seconds[file]:.1f} |")
        others = [f"- {outcome}: `{test}`" for test, (outcome, _) in result.get("tests", {}).items() if outcome != "passed"]
        sections[name] = "\n".join([*text, *(["", *others] if others else [])])
    return "\n\n## ".join(["# Test report", *(sections[name] for name in RUNS if name in sections)]) + "\n"


def main() -> int:
    """Run, sum up, say."""
    parser = argparse.ArgumentParser(prog="scripts/test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "Other arguments go to pytest. With MAYFLY_FULL=1 the tests have their whole counts."
    parser.add_argument("--run", action="append", choices=RUNS, metavar="PART", help=f"do only this; may be given again: {', '.join(RUNS)}")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write into a page what every file's outcomes were")
    parser.add_argument("--random", metavar="SEED", help="run the tests in random order (not on an emulated Arm host)")
    parser.add_argument("--most-retries", type=int, metavar="N", help="fail if more tests needed a second go")
    arguments, extra = parser.parse_known_args()
    shuffle = ["-p", "randomly", f"--randomly-seed={arguments.random}"] if arguments.random else []
    began = time.monotonic()
    processes = Processes()
    pool, beside = ThreadPoolExecutor(AT_ONCE), ThreadPoolExecutor(1)

    def stop(number: int, _frame: object) -> NoReturn:
        for another in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(another, signal.SIG_IGN)
        for each in (pool, beside):
            each.shutdown(wait=False, cancel_futures=True)
        print(f"test: ended by signal {number}; ending what runs", flush=True)
        processes.end()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    done: dict[str, tuple[int, dict[str, Any]]] = {}
    for alone in (True, False):
        names = [name for name in arguments.run or RUNS if (name == ALONE) == alone]
        futures = {
            name: (beside if name in BESIDE else pool).submit(run, name, [*extra, *(shuffle if "aarch64" not in name else ())], processes)
            for name in names
        }
        done |= {name: future.result() for name, future in futures.items()}
    results = {name: result for name, (_, result) in done.items()}
    outcomes: collections.Counter[str] = collections.Counter()
    for result in results.values():
        outcomes.update(result.get("outcomes", {}))
    again = [test for result in results.values() for test in result.get("again", [])]
    line = summary(outcomes, len(again), time.monotonic() - began)
    if arguments.report:
        before = arguments.report.read_text() if arguments.report.exists() else ""
        arguments.report.write_text(report(results, before))
    must = [] if arguments.run else must_run()
    idle = [m for m in must if not any(result.get("markers", {}).get(m, {}).get("passed") for result in results.values())]
    arm = [result for name, result in results.items() if name.startswith("aarch64")]
    if arm and not any(result.get("outcomes", {}).get("passed") for result in arm):
        idle.append("aarch64")
    print()
    for name, (status, result) in done.items():
        print(f"test: {name:24} {result['wall_s']:6.0f} s  {words(collections.Counter(result.get('outcomes', {})))}")
        if status:
            print(f"test: {name}: pytest ended with status {status}")
    for test in again:
        print(f"test: needed a second go: {test}")
    if idle:
        print(f"test: no test passed of: {', '.join(idle)}")
    too_many = arguments.most_retries is not None and len(again) > arguments.most_retries
    if too_many:
        print(f"test: more than {arguments.most_retries} tests needed a second go")
    print(line, flush=True)
    return 1 if idle or too_many or any(status for status, _ in done.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
