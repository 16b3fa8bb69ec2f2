"""Measure the system calls of vmm processes, and write vmm/sandbox/calls.py.

Usage: python -m scripts.system_calls [SCENARIO]…

Each scenario of `tests/kit/sandbox_scenarios.py` is played under strace, with filters that allow
all. What counts are the calls of vmm processes between their first filter and their end. Needs
root, /dev/kvm, strace, gcc and passt. With names only these are measured, and what they call is
printed.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mayfly.guests import zygote
from tests.kit.sandbox_scenarios import SCENARIOS, play

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "vmm/sandbox/calls.py"
STARTING = ("clone", "clone3", "rseq", "seccomp", "set_robust_list")
"""Only what starts threads, and the last filter, needs these."""
BESIDES = {
    "brk": "malloc",
    "clock_gettime": "where the vDSO cannot tell the time",
    "clone": "threads, where clone3 is refused",
    "epoll_pwait": "epoll_wait of other architectures and C libraries",
    "fstat": "newfstatat of newer C libraries",
    "gettimeofday": "where the vDSO cannot tell the time",
    "lseek": "Python's files",
    "mremap": "realloc of large blocks",
    "preadv": "a diff's pages, with other C libraries",
    "preadv2": "a diff's pages",
    "readv": "packets for a guest in many buffers",
    "recvmsg": "requests, with descriptors",
    "restart_syscall": "the kernel: calls that a stop signal interrupted",
    "sched_getaffinity": "the C library: how many heaps its threads share",
    "sched_yield": "locks of the C library",
    "shutdown": "the channel's end",
    "writev": "packets and pages in many pieces",
}
"""What no scenario is sure to show, and why it is allowed."""
REFUSED = {
    "access": "Python's tracebacks",
    "faccessat": "access of other architectures",
    "getcwd": "Python's tracebacks",
    "open": "the C library: /sys and /proc, to count processors",
    "openat": "Python's tracebacks: the source's lines",
    "prctl": "Python 3.14: a thread's name",
    "readlink": "Python's tracebacks",
    "readlinkat": "readlink of other architectures",
    "stat": "Python's tracebacks",
    "statx": "stat of newer C libraries",
}
"""What may be asked for on the way to an error, and is refused without ending the process."""
_OPEN = (
    "from mayfly.vmm.sandbox import seccomp\n"
    "seccomp.first = lambda *, connects: seccomp._pack([seccomp._returns(seccomp._ALLOW)])\n"
    "seccomp.second = lambda: seccomp.first(connects=True)\n"
)
_LINE = re.compile(r"(?P<pid>\d+) +(?:<\.\.\. )?(?P<name>\w+)(?P<rest>[( ].*)")
_HEADERS = {"x86_64": "asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}


def numbers(arch: str) -> dict[str, int]:
    """The numbers of system calls by name, of the kernel's headers."""
    flags = ["-E", "-dM", "-D__BITS_PER_LONG=64", "-D__ARCH_WANT_NEW_STAT", "-D__ARCH_WANT_SYS_CLONE3"]
    given = f"#include <{_HEADERS[arch]}>\n"
    text = subprocess.run(["gcc", *flags, "-"], input=given, stdout=subprocess.PIPE, text=True, check=True).stdout
    defined: dict[str, str] = dict(re.findall(r"^#define (__NR\w+) (\w+)$", text, re.MULTILINE))
    found = {name.removeprefix("__NR_"): defined.get(value, value) for name, value in defined.items() if name.startswith("__NR_")}
    return {name: int(value) for name, value in found.items() if value.isdecimal()}


def calls(trace: Iterable[str]) -> Iterator[str]:
    """The names of the calls in a trace that a vmm process made once it had its first filter."""
    lines = [match for line in trace if (match := _LINE.match(line))]
    groups: dict[str, str] = {}
    begun: dict[str, str] = {}
    for pid, name, rest in (match.groups() for match in lines):
        if name in ("clone", "clone3"):
            begun[pid] = begun.get(pid, "") + rest
            if made := re.search(r" = (\d+)$", rest):
                if "CLONE_THREAD" in begun[pid]:
                    groups[made[1]] = groups.get(pid, pid)
                del begun[pid]
    filtered = set()
    for pid, name, rest in (match.groups() for match in lines):
        group = groups.get(pid, pid)
        if group in filtered:
            yield name
        elif name == "seccomp" and "SECCOMP_SET_MODE_FILTER" in rest:
            filtered.add(group)


def measure(name: str) -> set[str]:
    """The calls of a scenario."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace")
        command = ["strace", "-f", "-qq", "-o", str(trace), sys.executable, "-P", "-m", "scripts.system_calls", "--play", name]
        subprocess.run(command, cwd=ROOT, check=True)
        return set(calls(trace.read_text(errors="replace").splitlines()))


def table(measured: Mapping[str, set[str]]) -> str:
    """The module with what scenarios were seen to call."""
    seen = defaultdict(list)
    for scenario, called in measured.items():
        for name in called:
            seen[name].append(scenario)
    why = {name: ", ".join(found) if len(found) < len(measured) else "all" for name, found in seen.items()}
    running = {**BESIDES, **{name: text for name, text in why.items() if name not in REFUSED}}
    parts = {
        "RUNNING": ("of a machine that runs", {name: text for name, text in running.items() if name not in STARTING}),
        "STARTING": ("besides, until all threads run", {name: running.get(name, "all") for name in STARTING}),
        "REFUSED": ("refused with EACCES, as they are no sign of an attack", REFUSED),
    }
    of = {arch: numbers(arch) for arch in _HEADERS}
    text = '"""System calls, with their numbers on x86-64 and aarch64: written by scripts/system_calls.py.\n\n'
    text += "Behind each: the scenarios that it was seen in, or why it is here without that.\n" + '"""\n'
    for part, (what, names) in parts.items():
        rows = [f'    "{name}": ({of["x86_64"].get(name)}, {of["aarch64"].get(name)}),  # {names[name]}\n' for name in sorted(names)]
        text += f"\n{part} = {{\n{''.join(rows)}}}\n" + f'"""Calls {what}."""\n'
    return text


def main(arguments: list[str]) -> None:
    """Do what the module's text says."""
    if arguments[:1] == ["--play"]:
        zygote.START = _OPEN + zygote.START
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            place.chmod(0o755)
            play(arguments[1], place)
        return
    measured = {}
    for name in arguments or SCENARIOS:
        measured[name] = measure(name)
        print(f"{name}: {len(measured[name])} calls", file=sys.stderr)
    if arguments:
        print(*sorted(set().union(*measured.values())))
    else:
        TABLE.write_text(table(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
