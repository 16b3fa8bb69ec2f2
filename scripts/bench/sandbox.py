"""What the sandbox costs a start: from the request for a machine until it runs, with and without
it, in turns; each round begins with the other.

Usage: python -m scripts.bench.sandbox [COUNT]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from mayfly.guests.zygote import Zygote
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig, Sandbox
from tests.kit import tiny
from tests.kit.spawned import Spawned

LEVELS = (Sandbox.OFF, Sandbox.REQUIRED)


def main(count: int) -> None:
    """Print medians, in milliseconds."""
    starts: dict[Sandbox, list[float]] = {level: [] for level in LEVELS}
    parts: dict[Sandbox, list[float]] = {level: [] for level in LEVELS}
    with tempfile.TemporaryDirectory() as folder:
        kernel = tiny.build(Path(folder), "1: jmp 1b\n")
        zygote = Zygote.start()
        for turn in range(count):
            for level in LEVELS if turn % 2 else reversed(LEVELS):
                config = MachineConfig(kernel=str(kernel), memory=16 * MIB, channel=Channel.SERIAL, sandbox=level)
                began = time.perf_counter()
                with Spawned(zygote, config) as machine:
                    running = machine.wait_running()
                    starts[level].append(time.perf_counter() - began)
                    parts[level].append(running.phases["sandbox"])
                zygote.receive()
        zygote.close()
    for level in LEVELS:
        start, part = (1000 * statistics.median(values[level]) for values in (starts, parts))
        print(f"{level}: start {start:.2f} ms, of which giving up {part:.2f} ms")
    more = [1000 * (with_it - without) for without, with_it in zip(*starts.values(), strict=True)]
    low, middle, high = statistics.quantiles(more, n=4)
    print(f"a start with it takes {middle:.2f} ms more than the other of its round (quartiles {low:.2f} and {high:.2f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 30)
