"""Measure how long the first answer of a function takes by the way it starts, and what it faults.

Usage: python -m scripts.bench.functions tiny FILE [--rounds N]
       python -m scripts.bench.functions plot FILE PICTURE

Each command writes its own part of FILE. `tiny` plays the function with a tiny guest, on any
/dev/kvm: it writes the pages of its base, then those of its diff (and some of the base again), and
a request reads some of both and writes a few. Kinds of start take turns in every round; the first
round only warms up. Each is measured with the snapshots' files in the page cache, and without:
read from the disk.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from mayfly.units import MIB
from mayfly.vmm.config import Layer
from mayfly.vmm.process.report import End
from mayfly.vmm.snapshot import MEMORY
from tests.kit import tiny

ROUNDS = 10
KINDS = ("boot", "full snapshot", "full, copied", "base only", "base + diff", "base + diff, diff copied", "base + diff, both copied")
"""Ways to start, from the one that keeps nothing."""
PAGE = 4096
BASE, DIFF = 8 * MIB, 104 * MIB
"""Addresses of the tiny guest's pages. They lie in pieces: every fourth page is left out."""
BASE_PAGES, DIFF_PAGES = 16384, 4096
TINY_MEMORY = 136 * MIB
SAID = {"boot": 3, "base only": 2}
"""Bytes that a tiny guest says up to its answer: one at the end of each part of its life."""


def touch(start: int, pages: int, every: int, access: str) -> str:
    """Code that accesses every so manieth page of a part of the memory."""
    return f"mov rdi, {start}\nmov ecx, {pages // every}\n1: {access}\nadd rdi, {every * PAGE}\ndec ecx\njnz 1b\n"


def say() -> str:
    """Code that ends a part of the guest's life."""
    return "mov dx, 0x3f8\nout dx, al\n"


def tiny_function(folder: Path) -> Path:
    """The guest that plays a function."""
    write, read = "mov [rdi], rdi", "mov rax, [rdi]"
    up = touch(BASE, BASE_PAGES, 1, write)
    loaded = touch(DIFF, DIFF_PAGES, 1, write) + touch(BASE, BASE_PAGES, 32, "inc qword ptr [rdi]")
    answer = touch(BASE + PAGE, BASE_PAGES, 16, read) + touch(DIFF, DIFF_PAGES, 4, read) + touch(DIFF + PAGE, DIFF_PAGES, 32, write)
    return tiny.build(folder, up + say() + loaded + say() + answer + say() + "1: jmp 1b\n")


def measure_tiny(rounds: int) -> dict[str, Any]:
    """Each way to start, with its snapshots in the page cache and without."""
    with tempfile.TemporaryDirectory(dir=".", prefix=".bench-") as work:  # /tmp may be no disk
        folder = Path(work)
        kernel = tiny_function(folder)
        written = {name: save_tiny(kernel, folder, name) for name in ("base", "diff", "full")}
        base, diff, full = (str(folder / name) for name in written)
        layers = {
            "boot": (),
            "full snapshot": (Layer(folder=full),),
            "full, copied": (Layer(folder=full, copied=True),),
            "base only": (Layer(folder=base),),
            "base + diff": (Layer(folder=base), Layer(folder=diff)),
            "base + diff, diff copied": (Layer(folder=base), Layer(folder=diff, copied=True)),
            "base + diff, both copied": (Layer(folder=base, copied=True), Layer(folder=diff, copied=True)),
        }
        results: dict[str, Any] = {"bytes": written, "cached": {}, "from disk": {}}
        for number in range(rounds + 1):
            for kind in KINDS:
                for where in ("cached", "from disk"):
                    for name in written:
                        cache(folder / name / MEMORY, there=where == "cached")
                    found = answer_tiny(kernel, layers[kind], SAID.get(kind, 1))
                    if number:
                        results[where].setdefault(kind, []).append(found)
        return results


def save_tiny(kernel: Path, folder: Path, name: str) -> int:
    """Make the snapshot; the bytes of memory in it."""
    parent = (str(folder / "base"),) if name == "diff" else ()
    running = tiny.Running(kernel, memory=TINY_MEMORY, restore=parent)
    written = tiny.run_and_save(running, 2 if name == "full" else 1, folder / name)
    running.close()
    return written


def cache(path: Path, *, there: bool) -> None:
    """Have a file in the page cache, or not."""
    with path.open("rb", buffering=0) as file:
        if not there:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while there and file.read(MIB):
            pass


def answer_tiny(kernel: Path, layers: tuple[Layer, ...], said: int) -> dict[str, float]:
    """Seconds from the start of such a guest to its answer, and the process's page faults."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    running = tiny.Running(kernel, memory=TINY_MEMORY, restore=layers)
    made = time.monotonic() - began
    answered = 0.0

    def count(_: bytes) -> None:
        nonlocal said, answered
        said -= 1
        if not said:
            answered = time.monotonic() - began
            running.machine.finish(End.STOPPED)

    running.say = count
    running.run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    running.close()
    faults = {"minor": after.ru_minflt - before.ru_minflt, "major": after.ru_majflt - before.ru_majflt}
    return {"answer_s": answered, "made_s": made, **faults}


def median(results: list[dict[str, float]], key: str) -> float:
    """Of one figure over the rounds."""
    return statistics.median(result[key] for result in results)


def show(results: dict[str, list[dict[str, float]]]) -> None:
    """Print medians of every kind, and what they are of a boot."""
    boot = median(results["boot"], "answer_s")
    for kind, rounds in results.items():
        figures = "  ".join(f"{key} {median(rounds, key):10.4f}" for key in rounds[0])
        print(f"{kind:25} {figures}  of a boot {median(rounds, 'answer_s') / boot:.3f}")


def plot(results: dict[str, Any], picture: Path) -> None:
    """Bars of the time to the first answer and of page faults, by kind of start."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    parts = {f"tiny guest, {where}": results["tiny"][where] for where in ("cached", "from disk")}
    figure, axes = pyplot.subplots(len(parts), 2, figsize=(11, 2.6 * len(parts)), squeeze=False)
    for (title, kinds), (times, faults) in zip(parts.items(), axes, strict=True):
        names = list(kinds)[::-1]
        times.barh(names, [1000 * median(kinds[name], "answer_s") for name in names])
        times.set(xlabel="ms to the first answer, median", title=title)
        left = [0.0] * len(names)
        for key in ("minor", "major"):
            values = [median(kinds[name], key) for name in names]
            faults.barh(names, values, left=left, label=key)
            left = [sum(each) for each in zip(left, values, strict=True)]
        faults.set(xlabel="page faults of the vmm process, median", yticklabels=[])
        faults.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure starts of functions.")
    parser.add_argument("what", choices=["tiny", "plot"])
    parser.add_argument("file", type=Path)
    parser.add_argument("picture", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    results = json.loads(arguments.file.read_text()) if arguments.file.exists() else {}
    if arguments.what == "plot":
        plot(results, arguments.picture)
        return
    results["tiny"] = measure_tiny(arguments.rounds)
    for where in ("cached", "from disk"):
        print(f"tiny guest, {where}")
        show(results["tiny"][where])
    arguments.file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
