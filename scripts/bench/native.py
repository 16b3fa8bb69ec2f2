"""Measure restores of a tiny guest beside Firecracker's, natively: what the monitors alone cost.

Usage: python -m scripts.bench.native FILE --firecracker PATH [--rounds N] [--in-turn N]

The guest of both is a few instructions, which run where KVM emulates supervisor code too, and say a
byte every few milliseconds. So, other than in an emulated host, no guest's work is in these
figures, and Python takes what it takes. Each round has one restore, some at once, and some one
after another, of either monitor. Processor time is that of all processes a restore needs, to their
end; ours is from a warm zygote, Firecracker's from the start of its process.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from mayfly.guests.zygote import Zygote
from mayfly.schema import replace
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig
from scripts.bench.monitors import SPOKEN, Firecracker, Monitor, Ours
from scripts.bench.peers import AT_ONCE, in_turn, own_memory, rest, several
from tests.kit import tiny

SPEAK = f"""
    1:  mov al, {SPOKEN[0]}
        mov dx, 0x2f8
        out dx, al
        mov dx, 0x3f8
        out dx, al
        mov ecx, 1500
    2:  dec ecx
        jnz 2b
        jmp 1b
"""
"""On both serial ports: our channel is the second, Firecracker's the first."""
ROWS = {
    "first_ms": "restore to the first byte, ms",
    "own_mib": "memory of its own then, MiB",
    "ten_first_ms": f"{AT_ONCE} at once: the first one's byte, ms",
    "ten_last_ms": f"{AT_ONCE} at once: the last one's, ms",
    "turn_ms": "one of many one after another, ms",
    "turn_processor_ms": "  processor time of it, ms",
}


def processor_s(monitor: Monitor) -> float:
    """Seconds that ended processes of it had, and its helper (proc_pid_stat(5), getrusage(2))."""
    if monitor.helper:
        ticks = map(int, Path(f"/proc/{monitor.helper}/stat").read_text().rpartition(")")[2].split()[11:15])
        return sum(ticks) / os.sysconf("SC_CLK_TCK")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def one_round(monitor: Monitor, turns: int) -> dict[str, float]:
    """Figures by the names of ROWS."""
    began = time.monotonic()
    with monitor.restore() as alive:
        alive.wait_for(SPOKEN)
        found = {"first_ms": 1000 * (time.monotonic() - began), "own_mib": own_memory(alive.pid()) / MIB}
    found |= {f"ten_{name.removesuffix('_s')}_ms": 1000 * seconds for name, seconds in several(monitor).items()}
    before = processor_s(monitor)
    found["turn_ms"] = 1000 * in_turn(monitor, turns)
    return found | {"turn_processor_ms": 1000 * (processor_s(monitor) - before) / turns}


def measure(rounds: int, turns: int, binary: Path) -> dict[str, Any]:
    """All rounds of both."""
    with contextlib.ExitStack() as resources:
        work = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        zygote = resources.enter_context(contextlib.closing(Zygote.start()))
        (work / "initrd").write_bytes(bytes(4096))  # Firecracker wants one
        config = MachineConfig(kernel=str(tiny.build(work, SPEAK)), memory=16 * MIB, user=None)
        monitors: dict[str, Monitor] = {
            "mayfly": Ours(zygote, config, work, channel=Channel.SERIAL),
            "firecracker": Firecracker(binary, replace(config, initrd=str(work / "initrd")), work),
        }
        for monitor in monitors.values():
            monitor.save()
        found: dict[str, list[dict[str, float]]] = {name: [] for name in monitors}
        for _ in range(rounds):
            for name, monitor in monitors.items():
                found[name].append(one_round(monitor, turns))
                rest(monitor)
    return {"machine": platform.platform(), "rounds": rounds, "in_turn": turns, "monitors": found}


def show(results: dict[str, Any]) -> None:
    """Print medians, least and most."""
    for row, label in ROWS.items():
        cells = []
        for figures in results["monitors"].values():
            values = [figure[row] for figure in figures]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"{label:38}" + "".join(f"{cell:>28}" for cell in cells))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure restores of a tiny guest beside Firecracker's.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--firecracker", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--in-turn", type=int, default=20, help="restores one after another, in each round")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # for the zygote
    results = measure(arguments.rounds, arguments.in_turn, arguments.firecracker)
    arguments.file.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
