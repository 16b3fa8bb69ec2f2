"""Run Mayfly's tests on emulated Intel processors: scripts/intel-check [--report FILE] [HOST…]

Each host is Bochs with Debian's kernel and its kvm-intel; two run at a time, all for 20 minutes at
most. The first use builds Bochs, which takes 10 to 20 minutes more. --list names the hosts; their
consoles are kept as build/intel-check/HOST.txt.
"""

import argparse
import os
import platform
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from mayfly import paths
from scripts.debian.root import HostFilesError
from scripts.intel_check.files import files
from scripts.intel_check.host import Host, Result, run
from scripts.intel_check.tree import ROOT, root

AT_ONCE = 2
LIMIT_MINUTES = 20.0
ALL = ("tests/kvm", "tests/system/test_boot.py", "tests/system/test_channel.py")
FLOODS = ("a_reader_that_waits_loses_nothing", "a_guest_that_ignores_cts_is_bounded")
"""Each has more than 150,000 exits, which take minutes here."""
COMPILED = "--deselect=tests/system/test_channel.py::test_a_run_finds_nothing_of_the_one_before"  # there is no compiler
CHOSEN = (*ALL, COMPILED, "--ignore=tests/kvm/test_chaos.py", *(f"--deselect=tests/kvm/test_machine.py::test_{name}" for name in FLOODS))
OF_THE_PROCESSOR = (*CHOSEN, "--ignore=tests/kvm/test_zygote.py", "--ignore=tests/kvm/test_control.py")
VIRTIO_ALONE = (*OF_THE_PROCESSOR, "-k", "not test_channel or virtio")
CHAOS = "the random order of starts and ends, floods over the serial channel"
PROCESSES = f"{CHAOS}, and what is of processes, not of the processor"
CARRIERS = f"{PROCESSES}, and the channel over serial and TCP"
HOSTS = (
    Host(name="haswell", model="corei7_haswell_4770", tests=CHOSEN, left_out=CHAOS),
    Host(name="skylake-x", model="corei7_skylake_x", tests=OF_THE_PROCESSOR, left_out=PROCESSES),
    Host(
        name="haswell-restricted",
        model="corei7_haswell_4770",
        parameters="unrestricted_guest=0",
        tests=VIRTIO_ALONE,
        left_out=CARRIERS,
    ),
    Host(
        name="lynnfield",
        model="corei5_lynnfield_750",
        tests=VIRTIO_ALONE,
        left_out=CARRIERS,
    ),
)
"""Skylake-X has APICv, Lynnfield neither XSAVE nor unrestricted guest."""
FEATURES = {
    "ept": "EPT",
    "unrestricted_guest": "unrestricted guest",
    "enable_apicv": "APICv",
}
"""kvm_intel's parameters that say what it uses, and their names for people."""


def main(arguments: list[str]) -> int:
    """Run, sum up; 0 only if every host's tests passed."""
    parser = argparse.ArgumentParser(prog="intel-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say which hosts there are")
    parser.add_argument(
        "--minutes", type=float, default=LIMIT_MINUTES, help="end then (default: %(default)s), for a machine with other work"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the table to this page, if all hosts ran")
    parser.add_argument("hosts", nargs="*", metavar="HOST", help="run these alone")
    options = parser.parse_args(arguments)
    if unknown := set(options.hosts) - {host.name for host in HOSTS}:
        parser.error(f"there is no host {', '.join(sorted(unknown))}; --list names them")
    if options.list:
        for host in HOSTS:
            print(host.name, host.model, host.parameters, f"without {host.left_out}" if host.left_out else "")
        return 0
    if platform.machine() != "x86_64":
        print("intel-check: it runs on x86-64 only: the emulated host has this machine's Python", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = [host for host in HOSTS if not options.hosts or host.name in options.hosts]
    try:
        results = check(chosen, options.minutes * 60)
    except (HostFilesError, OSError) as error:
        print(f"intel-check: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    page = report(results)
    print(page)
    if options.report and len(chosen) == len(HOSTS):
        options.report.write_text(page)
    return 0 if all(result.passed for _, result in results) else 1


def check(hosts: Iterable[Host], limit_s: float) -> list[tuple[Host, Result]]:
    """Run the hosts, AT_ONCE at a time, for `limit_s` at most."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    cache = paths.cache_dir() / "intel-check"
    made = files(cache)
    archive = root(paths.data_dir() / "kernel/x86_64").archive()
    consoles = ROOT / "build/intel-check"
    consoles.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + limit_s
    stop = threading.Event()

    def one(host: Host) -> tuple[Host, Result]:
        print(f"intel-check: {host.name}: begun", flush=True)
        result = run(host, files=made, root=archive, deadline=deadline, stop=stop, cache=cache)
        (consoles / f"{host.name}.txt").write_text(result.console)
        print(f"intel-check: {host.name}: {'passed' if result.passed else 'not passed'} after {result.seconds:.0f} s", flush=True)
        return host, result

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return list(pool.map(one, hosts))
        except BaseException:
            stop.set()
            raise


def report(results: Iterable[tuple[Host, Result]]) -> str:
    """The results as a page of documentation."""
    files = [path.removeprefix("tests/") for path in ALL]
    text = [
        "# Mayfly on Intel processors, emulated\n",
        f"{datetime.now(UTC):%Y-%m-%d}, written by `make intel-check`. The processors are Bochs', the hosts' kernel is",
        "Debian's with its own kvm-intel. Seconds are of the machine that emulates, and of its processors.\n",
        f"| host | {' | '.join(files)} | seconds | processor |",
        f"|---|{'---|' * len(files)}---|---|",
    ]
    notes = []
    for host, result in results:
        cells = [describe(_of(result, path)) for path in ALL]
        text.append(f"| {host.name} | {' | '.join(cells)} | {result.seconds:.0f} | {result.processor_s:.0f} |")
        notes.append(f"\n**{host.name}**: {about(host, result)}")
        if host.left_out:
            notes.append(f"Left out: {host.left_out}.")
        notes += [f"- failed: `{name}`" for name in result.failed]
    return "\n".join([*text, *notes]) + "\n"


def _of(result: Result, path: str) -> Counter[str]:
    return sum((counts for file, counts in result.files.items() if file.startswith(path)), Counter())


def describe(counts: Counter[str]) -> str:
    """The outcomes as words."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "not run"


def about(host: Host, result: Result) -> str:
    """What the processor is and has, and how pytest ended."""
    words = dict(word.partition("=")[::2] for word in result.said.get("parameters", "").split())
    has = [f"{'with' if words[name] == 'Y' else 'no'} {feature}" for name, feature in FEATURES.items() if name in words]
    end = "" if "status" in result.said else " It did not come to its end."
    return f"{result.said.get('processor', 'did not boot')}; {', '.join(has) or 'kvm_intel was not loaded'}.{end}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
