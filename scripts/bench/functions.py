"""Measure how long the first answer of a function takes by the way it starts, and what it faults.

Usage: python -m scripts.bench.functions tiny FILE [--rounds N]
       python -m scripts.bench.functions linux FILE [--rounds N]
       python -m scripts.bench.functions plot FILE PICTURE

Each command writes its own part of FILE. `tiny` plays the function with a tiny guest, on any
/dev/kvm: it writes the pages of its base, then those of its diff (and some of the base again), and
a request reads some of both and writes a few. Kinds of start take turns in every round; the first
round only warms up. Each is measured with the snapshots' files in the page cache, and without:
read from the disk.

`linux` runs where KVM runs Linux, that is through scripts/with-kvm, and starts functions of
examples/functions from the page cache by each of their snapshot options. KVM counts the faults of
the guest's own tables, where its debugfs can be read.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from mayfly.errors import MayflyError
from mayfly.functions.making import FunctionMachines, Revision, revise
from mayfly.functions.service import Functions
from mayfly.functions.spec import SnapshotOptions, load_specs
from mayfly.guests.function import FunctionRequest, ask
from mayfly.guests.zygote import Zygote
from mayfly.host.checks import time_factor
from mayfly.host.config import Config
from mayfly.protocol.conversation import Event
from mayfly.protocol.report import End
from mayfly.runs.service import Service
from mayfly.schema import replace
from mayfly.units import MIB
from mayfly.vmm.config import Layer
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

EXAMPLES = Path(__file__).parents[2] / "examples" / "functions" / "functions.yaml"
FUNCTIONS = ("hello", "sentiment-analysis")
PAYLOAD = b'{"request": 42}'
NO_SET = SnapshotOptions(load_ws=False)
OPTIONS = {
    "boot": SnapshotOptions(base=False, diff=False),
    "full snapshot": replace(NO_SET, base=False),
    "full, copied": replace(NO_SET, base=False, copy_base=True),
    "base only": SnapshotOptions(diff=False),
    "base + diff": NO_SET,
    "base + diff, diff copied": replace(NO_SET, copy_diff=True),
    "base + diff, both copied": replace(NO_SET, copy_base=True, copy_diff=True),
    "base + diff, working set": SnapshotOptions(),
}
WARM = "warm"
LINUX_ROUNDS = 3
KVM_FAULTS = Path("/sys/kernel/debug/kvm/pf_taken")


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


class Silent:
    """A listener that does not care what a function prints."""

    def note(self, event: Event) -> None:
        """Forget it."""


async def measure_linux(rounds: int) -> dict[str, Any]:
    """Each of the functions by each of its options, and asked again when it is warm."""
    config = Config.load({})
    config = config.scaled(time_factor(config))
    specs = {spec.name: spec for spec in load_specs(EXAMPLES)}
    results: dict[str, Any] = {}
    async with Service(config, Zygote.start) as service:
        machines = FunctionMachines(config, service.spawner, service.supply, service.networks)
        parts = (config, service.spawner, service.admission, service.supply, service.images, service.networks)
        async with Functions(*parts) as functions:
            for name in FUNCTIONS:
                made = {}
                for suffix, options in (("", NO_SET), ("-full", OPTIONS["full snapshot"])):
                    spec = replace(specs[name], name=f"bench-{name}{suffix}", snapshot=replace(options, dump_ws=True))
                    function = await functions.create(spec, again=True)
                    made[not options.base] = revise(function, service.images.find(spec.language), config, service.networks)
                for number in range(rounds + 1):
                    for kind, options in OPTIONS.items():
                        revision = made[options.diff and not options.base]
                        spec = replace(revision.spec, snapshot=options)
                        found = await answer_linux(machines, replace(revision, function=replace(revision.function, spec=spec)))
                        if number:
                            for which, figures in zip((kind, WARM), found, strict=True):
                                results.setdefault(name, {}).setdefault(which, []).append(figures)
                for revision in made.values():
                    await functions.remove(revision.function.name)
    return results


async def answer_linux(machines: FunctionMachines, revision: Revision) -> tuple[dict[str, float], dict[str, float]]:
    """What the first answer of a guest takes, and the second one."""
    faults, began = kvm_faults(), time.monotonic()
    guest, _ = await machines.start(revision)
    started = time.monotonic() - began
    await ask(guest, FunctionRequest(id=1, content_type="", payload=PAYLOAD), Silent(), revision.wanted.timeout_s)
    answered = time.monotonic() - began
    faults = kvm_faults() - faults
    counted = (await guest.process.stats()).exits
    began = time.monotonic()
    await ask(guest, FunctionRequest(id=2, content_type="", payload=PAYLOAD), Silent(), revision.wanted.timeout_s)
    warm = time.monotonic() - began
    again = (await guest.process.stats()).exits
    await machines.stop(guest)
    names = {"minor": "page-faults", "exits": "total", "own_bytes": "own-bytes"}
    first = {"answer_s": answered, "made_s": started, "kvm_faults": faults, **{ours: counted[name] for ours, name in names.items()}}
    return first, {"answer_s": warm, **{ours: again[name] - counted[name] for ours, name in names.items()}}


def kvm_faults() -> int:
    """What KVM has counted in the machines that are there now; 0 if it cannot be read."""
    try:
        return int(KVM_FAULTS.read_text())
    except OSError:
        return 0


def median(results: list[dict[str, float]], key: str) -> float:
    """Of one figure over the rounds."""
    return statistics.median(result[key] for result in results)


def show(results: dict[str, list[dict[str, float]]]) -> None:
    """Print medians of every kind, and what they are of a boot."""
    boot = median(results["boot"], "answer_s")
    for kind, rounds in results.items():
        figures = "  ".join(f"{key} {median(rounds, key):10.4g}" for key in rounds[0])
        print(f"{kind:25} {figures}  of a boot {median(rounds, 'answer_s') / boot:.3f}")


def plot(results: dict[str, Any], picture: Path) -> None:
    """Bars of the time to the first answer and of page faults, by kind of start."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    parts = {f"tiny guest, {where}": results["tiny"][where] for where in ("cached", "from disk")}
    parts |= {f"{name}, in an emulated host": kinds for name, kinds in results.get("linux", {}).items()}
    figure, axes = pyplot.subplots(len(parts), 2, figsize=(11, 2.6 * len(parts)), squeeze=False)
    for (title, kinds), (times, faults) in zip(parts.items(), axes, strict=True):
        names = list(kinds)[::-1]
        times.barh(names, [1000 * median(kinds[name], "answer_s") for name in names])
        times.set(xlabel="ms to the first answer, median", title=title)
        left = [0.0] * len(names)
        for key in ("minor", "major", "kvm_faults"):
            values = [median(kinds[name], key) if key in kinds[name][0] else 0.0 for name in names]
            faults.barh(names, values, left=left, label=key)
            left = [sum(each) for each in zip(left, values, strict=True)]
        faults.set(xlabel="page faults of the vmm process, median", yticklabels=[])
        faults.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure starts of functions.")
    parser.add_argument("what", choices=["tiny", "linux", "plot"])
    parser.add_argument("file", type=Path)
    parser.add_argument("picture", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    results = json.loads(arguments.file.read_text()) if arguments.file.exists() else {}
    if arguments.what == "plot":
        plot(results, arguments.picture)
        return
    if arguments.what == "tiny":
        results["tiny"] = measure_tiny(arguments.rounds or ROUNDS)
        shown = {f"tiny guest, {where}": results["tiny"][where] for where in ("cached", "from disk")}
    else:
        if not KVM_FAULTS.exists():
            subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=False)
        try:
            shown = results["linux"] = asyncio.run(measure_linux(arguments.rounds or LINUX_ROUNDS))
        except MayflyError as error:
            raise SystemExit(f"bench: {error}\n{getattr(error, 'console', '')}") from error
    for title, kinds in shown.items():
        print(title)
        show(kinds)
    arguments.file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
