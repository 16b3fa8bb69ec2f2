"""Measure starts: cold boots, restores and warm machines, alone and several at a time.

Usage: python -m scripts.bench.snapshots linux FILE [--rounds N] [--language L]
       python -m scripts.bench.snapshots tiny FILE [--rounds N]
       python -m scripts.bench.snapshots plot FILE PICTURE

`linux` runs where KVM runs Linux, that is through scripts/with-kvm. `tiny` measures tiny guests on
any /dev/kvm. `plot` draws what `linux` has written.

A start is timed from the request to the agent's HELLO, to the first byte of a program that is
already in the image, and to the end of a compiled hello world. Kinds take turns in every round, so
that other load falls on all alike; quote medians and ratios. Each start is made twice and the
second one is measured: emulation translates code anew when it moves, and what ran before was of
another kind. QEMU's microvm boots, and resumes from a migration file, with the same kernel and
initramfs; it is timed from its start to HELLO.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mayfly.errors import MayflyError
from mayfly.guests.converse import converse
from mayfly.guests.job import Job
from mayfly.guests.outcome import Outcome
from mayfly.guests.start import Guest, StartKind, resume, start
from mayfly.guests.zygote import Zygote
from mayfly.host.checks import time_factor
from mayfly.host.config import Config
from mayfly.host.plan import Plan, make_plan, want_machine
from mayfly.host.snippet import Snippet
from mayfly.images.manifest import LanguageStep
from mayfly.protocol.conversation import Event
from mayfly.protocol.frames import Resumed, Stderr, Stdout
from mayfly.protocol.report import End
from mayfly.runs.service import Service
from mayfly.vmm.config import MachineConfig
from scripts.bench import microvm
from tests.kit import tiny

HELLO = b'fn main() { println!("hello from a machine"); }\n'
READY_MADE = (LanguageStep(name="run", argv=("echo", "hello")),)
KINDS = (StartKind.COLD, StartKind.RESTORED, StartKind.WARM)
AT_ONCE = 10
SNAPSHOT_MIB = 256
IDLE_S = 1.0
"""So long a warm machine has waited when its run comes."""
TINY_ROUNDS = 10
"""Restores of a tiny guest beside the others."""
COLUMNS = {"hello_s": "HELLO", "first_byte_s": "first byte", "done_s": "end"}


class Watched(Outcome):
    """An outcome that notes when the first output came."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.step_names, kept=2000)
        self.first_at = 0.0

    def note(self, event: Event) -> None:
        super().note(event)
        if isinstance(event, Stdout | Stderr) and not self.first_at:
            self.first_at = time.monotonic()


async def finish(guest: Guest, job: Job, began: float) -> dict[str, Any]:
    """Let a guest do the job: seconds to the first byte of output and to the end, and what it
    cost.
    """
    outcome = Watched(job)
    await converse(guest, job, outcome)
    done = time.monotonic() - began
    ended = await guest.process.stop()
    if outcome.verdict().exit_status:
        raise SystemExit(f"bench: the program failed: {outcome.tail!r}")
    return {
        "first_byte_s": outcome.first_at - began,
        "done_s": done,
        "exits": ended.exits.get("total", 0),
        "page_faults": ended.exits.get("page-faults", 0),
        "own_bytes": ended.exits.get("own-bytes", 0),
    }


async def one(service: Service, kind: StartKind, plan: Plan, *, load_ws: bool = True) -> dict[str, Any]:
    """One machine of this kind from request to end."""
    wanted = plan.wanted
    base = await service.supply.ensure_base(wanted)
    restored = wanted.restored_from(base.chain, load_ws=load_ws)
    guest = await start(service.spawner, restored) if kind is StartKind.WARM else None
    if guest:
        await asyncio.sleep(IDLE_S)
    began = time.monotonic()
    if guest is None:
        guest = await start(service.spawner, wanted if kind is StartKind.COLD else restored)
    hello = time.monotonic() - began
    return {"hello_s": hello, **await finish(guest, plan.job, began)}


async def second(service: Service, kind: StartKind, plan: Plan, *, load_ws: bool = True) -> dict[str, Any]:
    """The second of two such machines, one after the other."""
    await one(service, kind, plan, load_ws=load_ws)
    return await one(service, kind, plan, load_ws=load_ws)


async def resumed_again(service: Service, plan: Plan) -> float:
    """Seconds that the guest's own work for RESUMED takes, in a machine that has done it before."""
    base = await service.supply.ensure_base(plan.wanted)
    guest = await start(service.spawner, plan.wanted.restored_from(base.chain))
    began = time.monotonic()
    await resume(guest.process, microvm.expect(plan.wanted))
    seconds = time.monotonic() - began
    await guest.process.stop()
    return seconds


def start_qemu(config: MachineConfig, plan: Plan, saved: Path | None = None) -> float:
    """Seconds to HELLO of QEMU's microvm, which boots, or goes on from the file `saved`."""
    conversation = microvm.expect(plan.wanted)
    began = time.monotonic()
    with microvm.started(config, microvm.restoring(saved) if saved else ()) as channel:
        if saved:
            channel.sendall(conversation.resumed(Resumed(time.time_ns(), os.urandom(16), "qemu", "", os.urandom(64))))
        microvm.wait_hello(channel, conversation)
        return time.monotonic() - began


def measure_qemu(plan: Plan, rounds: int) -> dict[str, list[float]]:
    """Boots and restores of QEMU's microvm, which has the memory of ours."""
    results: dict[str, list[float]] = {"cold": [], "restored": []}
    with tempfile.TemporaryDirectory() as work:
        saved = Path(work) / "machine"
        microvm.save(plan.wanted.machine, saved, lambda channel: microvm.wait_hello(channel, microvm.expect(plan.wanted)))
        for _ in range(rounds):
            results["cold"].append(start_qemu(plan.wanted.machine, plan))
            results["restored"].append(start_qemu(plan.wanted.machine, plan, saved))
    return results


async def measure_linux(rounds: int, language: str) -> dict[str, Any]:
    """All kinds, both programs, one at a time and several."""
    config = Config.load({})
    config = config.scaled(time_factor(config))
    results: dict[str, Any] = {}
    async with Service(config, Zygote.start) as service:
        image = service.images.find(language)
        plans = {
            "ready-made": make_plan(Snippet(source=b""), image, config, steps=READY_MADE),
            "compiled": make_plan(Snippet(source=HELLO), image, config),
        }
        began = time.monotonic()
        base = await service.supply.ensure_base(want_machine(image, config), again=True)
        results["create"] = {"seconds": time.monotonic() - began, "memory_bytes": base.manifest.memory_bytes}
        for _ in range(rounds):
            for program, plan in plans.items():
                for kind in KINDS:
                    results.setdefault(program, {}).setdefault(kind, []).append(await second(service, kind, plan))
            unmapped = await second(service, StartKind.RESTORED, plans["compiled"], load_ws=False)
            results.setdefault("without working set", []).append(unmapped)
            for kind, flags in ((StartKind.RESTORED, ()), (StartKind.COLD, ("--cold",))) * 2:
                seconds = await asyncio.to_thread(command, language, *flags)
                results.setdefault("mayfly run", {}).setdefault(kind, []).append(seconds)
        for program, plan in plans.items():
            for kind in KINDS:
                several = await asyncio.gather(*(one(service, kind, plan) for _ in range(AT_ONCE)))
                results.setdefault(f"{program}, {AT_ONCE} at once", {})[kind] = several
        results["resumed_s"] = [await resumed_again(service, plans["compiled"]) for _ in range(rounds)]
    if shutil.which("qemu-system-x86_64"):
        results["qemu"] = measure_qemu(plans["compiled"], rounds)
    results["tiny"] = measure_tiny(TINY_ROUNDS)
    return results


def command(language: str, *flags: str) -> float:
    """Seconds of a whole `mayfly run` of the compiled hello world, the second of two."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "hello.rs").write_bytes(HELLO)
        arguments: list[str | Path] = [Path(sys.executable).with_name("mayfly"), "run", *flags, "-l", language, f"{work}/hello.rs"]
        for _ in range(2):
            began = time.monotonic()
            subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def show_linux(results: dict[str, Any]) -> None:
    """Print medians and the ratios that count."""

    def median(program: str, kind: str, key: str) -> float:
        return float(statistics.median(result[key] for result in results[program][kind]))

    print(f"making the base: {results['create']['seconds']:.1f} s, {results['create']['memory_bytes'] >> 20} MiB of memory")
    for program in ("ready-made", "compiled", f"ready-made, {AT_ONCE} at once", f"compiled, {AT_ONCE} at once"):
        for kind in KINDS:
            figures = "  ".join(f"{key} {median(program, kind, key):9.3f}" for key in (*COLUMNS, "exits", "page_faults", "own_bytes"))
            print(f"{program:22} {kind:9} {figures}")
    cold, restored, warm = (median("ready-made", kind, "hello_s") for kind in KINDS)
    print(f"restore takes {restored / cold:.3f} of a cold boot, a warm machine {warm / restored:.3f} of a restore, to HELLO")
    unmapped = statistics.median(result["done_s"] for result in results["without working set"])
    print(
        f"compiled, restored, with its working set mapped ahead: {median('compiled', 'restored', 'done_s'):.2f} s, without {unmapped:.2f} s"
    )
    least = statistics.median(result["first_s"] for result in results["tiny"]["restore"]) + statistics.median(results["resumed_s"])
    print(f"and {restored / least:.1f} times a tiny guest's restore with the guest's own work for RESUMED ({1000 * least:.0f} ms)")
    for kind, seconds in results.get("qemu", {}).items():
        print(f"qemu microvm, {kind:9} to HELLO: {statistics.median(seconds):.2f} s")
    whole = {kind: statistics.median(seconds) for kind, seconds in results["mayfly run"].items()}
    print(f"mayfly run, compiled: restored {whole['restored']:.2f} s, cold {whole['cold']:.2f} s: {whole['restored'] / whole['cold']:.2f}")


def measure_tiny(rounds: int) -> dict[str, Any]:
    """Seconds to a tiny guest's first instruction: cold, and from a snapshot of 256 MiB."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        kernel = tiny.build(folder, "mov dx, 0x3f8\n1: out dx, al\njmp 1b\n")
        memory = (SNAPSHOT_MIB + 16) << 20
        saved = tiny.Running(kernel, memory=memory)
        for mib in range(4, SNAPSHOT_MIB + 4):
            saved.machine.mapping.view[mib << 20 : mib + 1 << 20] = os.urandom(1 << 20)
        written = tiny.run_and_save(saved, 1, folder / "snapshot")
        saved.close()
        kinds: dict[str, Callable[[], tiny.Running]] = {
            "boot": lambda: tiny.Running(kernel, memory=memory),
            "restore": lambda: tiny.Running(kernel, restore=(str(folder / "snapshot"),), memory=memory),
        }
        results: dict[str, Any] = {"snapshot_bytes": written, **{kind: [] for kind in kinds}}
        for _ in range(rounds):
            for kind, make in kinds.items():
                results[kind].append(first_instruction(make))
    return results


def first_instruction(make: Callable[[], tiny.Running]) -> dict[str, float]:
    """Seconds from the call to the guest's first exit, and of what."""
    began = time.monotonic()
    running = make()
    made = time.monotonic() - began
    said: list[float] = []

    def say(_: bytes) -> None:
        said.append(time.monotonic() - began)
        running.machine.finish(End.STOPPED)

    running.say = say
    running.run()
    phases = dict(running.machine.phases)
    running.close()
    return {"first_s": said[0], "made_s": made, **phases}


def show_tiny(results: dict[str, Any]) -> None:
    """Print medians."""
    for kind in ("boot", "restore"):
        keys = results[kind][0]
        print(f"{kind:8}" + "  ".join(f"{key} {1000 * statistics.median(result[key] for result in results[kind]):8.3f} ms" for key in keys))


def plot(results: dict[str, Any], picture: Path) -> None:
    """Bars of the times, by program and kind, QEMU's beside them."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    for axis, program, title in zip(axes, ("ready-made", "compiled"), ("a program that is there", "a compiled hello world"), strict=False):
        for number, (key, label) in enumerate(COLUMNS.items()):
            values = [statistics.median(result[key] for result in results[program][kind]) for kind in KINDS]
            axis.bar([place + (number - 1) * 0.25 for place in range(len(values))], values, width=0.25, label=label)
        axis.set_xticks(range(len(KINDS)), [str(kind) for kind in KINDS])
        axis.set_title(title)
        axis.set_ylabel("seconds, median")
        axis.legend()
    whole = {f"mayfly run\n{kind}": seconds for kind, seconds in results["mayfly run"].items()}
    whole |= {f"qemu, HELLO\n{kind}": seconds for kind, seconds in results.get("qemu", {}).items()}
    axes[2].bar(list(whole), [statistics.median(seconds) for seconds in whole.values()], color="gray")
    axes[2].set_title("whole commands, and QEMU's microvm")
    axes[2].tick_params(axis="x", labelsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure starts of machines.")
    parser.add_argument("what", choices=["linux", "tiny", "plot"])
    parser.add_argument("file", type=Path)
    parser.add_argument("picture", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--language", default="rust")
    arguments = parser.parse_args()
    if arguments.what == "plot":
        plot(json.loads(arguments.file.read_text()), arguments.picture)
        return
    if arguments.what == "tiny":
        results = measure_tiny(arguments.rounds or 100)
        show_tiny(results)
    else:
        try:
            results = asyncio.run(measure_linux(arguments.rounds or 3, arguments.language))
        except MayflyError as error:
            raise SystemExit(f"bench: {error}\n{getattr(error, 'console', '')}") from error
        show_linux(results)
    arguments.file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
