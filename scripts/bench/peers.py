"""Measure ours beside Firecracker and QEMU's microvm: the same kernel and initramfs, in one run.

Usage: python -m scripts.bench.peers fetch
       python -m scripts.bench.peers measure FILE [--firecracker PATH] [--boxes FOLDER] [--rounds N]
           [--in-turn N]
       python -m scripts.bench.peers plot FILE PICTURE

`fetch` puts Firecracker into the cache and prints its path. `measure` runs where KVM runs Linux,
that is through scripts/with-kvm. The guest is one program (speaker.c), which says a byte every 20
ms and answers each byte. Peers take turns in every round, so that other load falls on all alike,
and save a machine anew in each; quote medians and ratios. Each is timed from the request to the
guest's first byte: ours from a warm zygote, which every user of it has; others from the start of
their process. A monitor that does not come up is left out, with the reason.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mayfly import paths
from mayfly.errors import MayflyError
from mayfly.guests.probe import probe
from mayfly.guests.zygote import Zygote
from mayfly.units import MIB
from mayfly.vmm.config import MachineConfig
from scripts.bench import boxes, firecracker
from scripts.bench.exits import UserspaceExits
from scripts.bench.monitors import ANSWERED, SPOKEN, Firecracker, Monitor, Ours, Qemu, Start, ask_ours, serving
from tests.kit import toy

MEMORY = 96 * MIB
AT_ONCE = 10
REST_S = 1.0
"""Without a new process of a monitor's helper, until its turn is over: ours has spares made."""
SPEAKER = Path(__file__).with_name("speaker.c")


def processor_s(pid: int) -> float:
    """Seconds that a process's threads have had a processor (sched-stats.rst, schedstat)."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat") if pid else ()
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def own_memory(pid: int) -> int:
    """Bytes of a process's own, which nothing else shares and no file holds.

    Private_Dirty alone has pages of a file too that only this process maps, where the file's system
    is in memory (proc_pid_smaps(5)).
    """
    maps = Path(f"/proc/{pid}/smaps").read_text()
    dirty, anonymous = (re.findall(rf"^{name}: +(\d+) kB$", maps, re.MULTILINE) for name in ("Private_Dirty", "Anonymous"))
    return sum(min(int(some), int(other)) for some, other in zip(dirty, anonymous, strict=True)) << 10


def one(monitor: Monitor, start: Callable[[], Start], exits: UserspaceExits) -> dict[str, float]:
    """One start, alone."""
    helper = processor_s(monitor.helper)
    exits.reset()
    began = time.monotonic()
    with start() as alive:
        alive.wait_for(SPOKEN)
        seconds = time.monotonic() - began
        count = exits.count()
        pid = alive.pid()
        figures = {"first_s": seconds, "processor_s": processor_s(pid) + processor_s(monitor.helper) - helper}
        figures |= {"private_bytes": own_memory(pid)} | ({} if count is None else {"exits": count})
        began = time.monotonic()
        os.write(alive.writer, b"?")
        alive.wait_for(ANSWERED)
        return {**figures, "answer_s": time.monotonic() - began}


def several(monitor: Monitor) -> dict[str, float]:
    """Clones at once: seconds to the first one's byte, and to the last one's."""

    def first_byte(_: int) -> float:
        with monitor.restore() as alive:
            alive.wait_for(SPOKEN)
            return time.monotonic() - began

    with ThreadPoolExecutor(AT_ONCE) as threads:
        began = time.monotonic()
        seconds = sorted(threads.map(first_byte, range(AT_ONCE)))
    return {"first_s": seconds[0], "last_s": seconds[-1]}


def in_turn(monitor: Monitor, count: int) -> float:
    """Seconds of each of so many restores one after another, to its first byte and its end."""
    began = time.monotonic()
    for _ in range(count):
        with monitor.restore() as alive:
            alive.wait_for(SPOKEN)
    return (time.monotonic() - began) / count


def save(monitor: Monitor) -> None:
    """Save a machine anew: what going on costs depends on what its guest was doing then, and on how
    long ago that was. It goes on once, unmeasured, for what a monitor does at the first time.
    """
    monitor.save()
    with monitor.restore() as alive:
        alive.wait_for(SPOKEN)


def boot(monitor: Monitor) -> None:
    """Boot one, unmeasured: of what has booted twice in a row ours has the next machine ahead."""
    with monitor.boot() as alive:
        alive.wait_for(SPOKEN)


def rest(monitor: Monitor) -> None:
    """Let what a monitor does behind its turn not fall on the next one's."""
    before, children = None, ""
    while monitor.helper and children != before:
        time.sleep(REST_S)
        before, children = children, Path(f"/proc/{monitor.helper}/task/{monitor.helper}/children").read_text()


def make_initramfs(folder: Path) -> Path:
    """The initramfs of all."""
    program = folder / "speaker"
    subprocess.run(["gcc", "-static", "-Os", "-s", "-o", program, SPEAKER], check=True)
    file = folder / "initramfs"
    entries = [("dev", 0o040755, b""), ("init", 0o100755, program.read_bytes())]
    file.write_bytes(toy.archive(entries) + toy.END)
    return file


def measure(file: Path, rounds: int, turns: int, binary: Path | None, others: Path | None) -> dict[str, Any]:
    """All of it; `file` has, as JSON, what there is so far."""
    results: dict[str, Any] = {"host": probe().reason, "machine": platform.platform(), "rounds": rounds, "in_turn": turns}
    results |= {"left_out": {}, "monitors": {}}
    with contextlib.ExitStack() as resources:
        work = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        exits = resources.enter_context(UserspaceExits())
        zygote = resources.enter_context(contextlib.closing(Zygote.start()))
        kernel = str(paths.kernel_path(os.uname().machine))
        config = MachineConfig(kernel=kernel, initrd=str(make_initramfs(work)), memory=MEMORY, user=None)
        monitors: dict[str, Monitor] = {"mayfly": Ours(zygote, config, work), "qemu": Qemu(config, work)}
        if binary:
            monitors["firecracker"] = Firecracker(binary, config, work)
        else:
            results["left_out"]["firecracker"] = "--firecracker does not say where it is"
        found: dict[str, dict[str, list[Any]]] = results["monitors"]

        def keep() -> None:
            file.write_text(json.dumps(results, indent=1) + "\n")

        def note(name: str, kind: str, result: Any) -> None:
            found.setdefault(name, {}).setdefault(kind, []).append(result)
            keep()

        def each(kind: str, act: Callable[[Monitor], Any], *, clones: bool = False) -> None:
            for name, monitor in list(monitors.items()):
                if clones and not monitor.clones:
                    continue
                try:
                    result = act(monitor)
                except (SystemExit, OSError, MayflyError) as error:
                    results["left_out"][name] = f"{kind}: {error}"
                    del monitors[name]
                    continue
                print(f"bench: {kind}: {name}: {result}", file=sys.stderr, flush=True)
                if result is not None:
                    note(name, kind, result)
                rest(monitor)

        for _ in range(rounds):
            each("saved", save)
            each("cold", lambda monitor: one(monitor, monitor.boot, exits))
            each("second", boot)
            each("booted again", lambda monitor: one(monitor, monitor.boot, exits))
            each("restored", lambda monitor: one(monitor, monitor.restore, exits))
            each("at once", several, clones=True)
            each("at once again", several, clones=True)
            each("in turn", lambda monitor: in_turn(monitor, turns), clones=True)
        asking: dict[str, Callable[[], float]] = {
            name: monitor.by_api for name, monitor in monitors.items() if isinstance(monitor, Firecracker)
        }
        with serving(kernel, work / "serving") as api, serving(kernel, work / "pooling", "--warm", "1") as pooled:
            asking["mayfly"] = functools.partial(ask_ours, api)
            ready: Callable[[], float] = functools.partial(ask_ours, pooled)
            for ask in (*asking.values(), ready):
                ask()  # once for what a server does at its first run
            for _ in range(rounds):
                for name, ask in asking.items():
                    time.sleep(REST_S)
                    note(name, "by api", ask())
                time.sleep(REST_S)
                note("mayfly", "by api, ready", ready())
        for name in boxes.BOXES:
            try:
                if others is None:
                    raise SystemExit("--boxes does not say where it is")
                with tempfile.TemporaryDirectory() as folder:
                    found[name] = boxes.measure(name, others, Path(folder), rounds)
            except SystemExit as error:
                results["left_out"][name] = str(error)
            keep()
    return results


ROWS = (
    ("cold boot to the first byte, s", "cold", "first_s", 1.0),
    ("  processor time, s", "cold", "processor_s", 1.0),
    ("  exits to user space", "cold", "exits", 1.0),
    ("  memory of its own, MiB", "cold", "private_bytes", 1 / MIB),
    ("the third boot in a row, s", "booted again", "first_s", 1.0),
    ("restore to the first byte, s", "restored", "first_s", 1.0),
    ("  processor time, s", "restored", "processor_s", 1.0),
    ("  exits to user space", "restored", "exits", 1.0),
    ("  memory of the clone's own, MiB", "restored", "private_bytes", 1 / MIB),
    ("a byte there and back, ms", "restored", "answer_s", 1000.0),
    (f"{AT_ONCE} clones at once: the first, s", "at once", "first_s", 1.0),
    (f"{AT_ONCE} clones at once: the last, s", "at once", "last_s", 1.0),
    ("  and once more: the first, s", "at once again", "first_s", 1.0),
    ("  the last, s", "at once again", "last_s", 1.0),
    ("one of many one after another, s", "in turn", "", 1.0),
    ("restore by a request to its API, s", "by api", "", 1.0),
    ("  of a machine that is ready, s", "by api, ready", "", 1.0),
)
"""Label, kind of start, figure and its factor."""


def figures(results: dict[str, Any], monitor: str, row: tuple[str, str, str, float]) -> list[float]:
    """What the rounds gave."""
    _, kind, key, factor = row
    values = results["monitors"][monitor].get(kind, [])
    return [factor * (value[key] if key else value) for value in values if not key or key in value]


def show(results: dict[str, Any]) -> None:
    """Print medians, least and most."""
    names = list(results["monitors"])
    print(f"{results['host']}; {results['rounds']} rounds; {results['in_turn']} restores one after another in each")
    print(f"{'':38}" + "".join(f"{name:>28}" for name in names))
    for row in ROWS:
        cells = []
        for name in names:
            values = figures(results, name, row)
            cells.append(f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-")
        print(f"{row[0]:38}" + "".join(f"{cell:>28}" for cell in cells))
    for name, reason in results["left_out"].items():
        print(f"left out: {name}: {reason}")


def plot(results: dict[str, Any], picture: Path) -> None:
    """Bars of each figure, all monitors as shares of the largest."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as pyplot

    figure, axis = pyplot.subplots(figsize=(10, 7))
    names = list(results["monitors"])
    width = 0.81 / len(names)
    for line, row in enumerate(ROWS):
        medians = {name: statistics.median(values) for name in names if (values := figures(results, name, row))}
        for place, name in enumerate(names):
            if name in medians:
                share = medians[name] / (max(medians.values()) or 1)
                height = line + (place - (len(names) - 1) / 2) * width
                axis.barh(height, share, height=0.93 * width, color=f"C{place}", label=name if line == 0 else None)
                axis.text(share, height, f" {medians[name]:.3g}", va="center", fontsize=7)
    axis.set_yticks(range(len(ROWS)), [label.strip() for label, *_ in ROWS])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.1)
    axis.set_xticks([])
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(names))
    axis.set_title(f"medians of {results['rounds']} rounds; {results['host']}", fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure ours beside other monitors.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch")
    measuring = commands.add_parser("measure")
    measuring.add_argument("file", type=Path)
    measuring.add_argument("--firecracker", type=Path)
    measuring.add_argument("--boxes", type=Path, help="what scripts.bench.boxes has fetched; without it those are not measured")
    measuring.add_argument("--rounds", type=int, default=7)
    measuring.add_argument("--in-turn", type=int, default=100)
    plotting = commands.add_parser("plot")
    plotting.add_argument("file", type=Path)
    plotting.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    match arguments.command:
        case "fetch":
            print(firecracker.fetch())
        case "plot":
            plot(json.loads(arguments.file.read_text()), arguments.picture)
        case _:
            show(measure(arguments.file, arguments.rounds, arguments.in_turn, arguments.firecracker, arguments.boxes))


if __name__ == "__main__":
    main()
