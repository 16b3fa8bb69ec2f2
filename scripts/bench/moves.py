"""Moves of a tiny guest between two vmm processes of this host, and saves and clones of it: rounds,
bytes, time, and how long the guest's output pauses.

The guest writes to 64 MiB, page after page, 20 MiB a second, and says some hundred times a second
how far it is. It writes 16 pages at a time, since a host without hardware virtualisation may
emulate each of its instructions. Nothing but the processes' own pipes and an asyncio stream over
loopback is between the two.
"""

import argparse
import asyncio
import contextlib
import ctypes
import itertools
import json
import mmap
import os
import random
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from mayfly.guests.job import Wanted
from mayfly.guests.spawner import Spawner, VmmProcess
from mayfly.guests.zygote import Zygote
from mayfly.images.store import InstalledImage
from mayfly.protocol.pages import pack_runs, unpack_runs
from mayfly.snapshots import live, moving
from mayfly.units import MIB, PAGE
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.snapshot import MEMORY, PAGES
from scripts.bench.functions import median
from tests.kit import tiny
from tests.kit.moving_kit import COUNTER, DATA, LINE, LINE_STATUS, UART, cold

RAM, DIRTIED, RATE = 96 * MIB, 64 * MIB, 20 * MIB
BATCH = 16  # Pages that are written without a look at the clock
EACH_LINE = 3 * BATCH  # Pages between two lines
ROUNDS = 5
CALIBRATION_S = 0.2
RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""A function: rdtsc; shl rdx, 32; or rax, rdx; ret."""
MAKES_UP = 10 * EACH_LINE  # Pages that it may be late with, some 100 ms
SETTLE_LINES = 200
CLONES = 2


def writer(ticks: int) -> str:
    """A guest that writes a BATCH of pages each so many ticks of the time-stamp counter. It makes
    up for what it is late where others had its processor: not for a longer pause.
    """
    stores = "".join(f"        mov [rdi + {number * PAGE}], ebx\n" for number in range(BATCH))
    return f"""
        cli
        mov esp, 0x400000
        xor ebx, ebx
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov r9, rax
        mov edi, {DATA}
next:   add ebx, {BATCH}
{stores}
        add edi, {BATCH * PAGE}
        cmp edi, {DATA + DIRTIED}
        jb 1f
        mov edi, {DATA}
1:      mov [{COUNTER:#x}], ebx
        sub r10d, {BATCH}
        jg 3f
        mov r10d, {EACH_LINE}
        mov esi, ebx
        mov ecx, 4
2:      mov dx, {LINE_STATUS}
        in al, dx
        test al, 0x20
        jz 2b
        mov dx, {UART}
        mov al, sil
        out dx, al
        shr esi, 8
        dec ecx
        jnz 2b
3:      add r9, {ticks}
4:      rdtsc
        shl rdx, 32
        or rax, rdx
        cmp rax, r9
        jb 4b
        lea rcx, [r9 + {ticks * MAKES_UP // BATCH}]
        cmp rax, rcx
        jb next
        mov r9, rax
        jmp next
    """


class Reader:
    """Reads a guest's lines, from whichever process has it, and notes when each came. The guest may
    have been restored in the middle of a line.
    """

    def __init__(self) -> None:
        self.at: list[tuple[float, int]] = []
        self._part = b""
        self._aligned = False

    async def follow(self, process: VmmProcess) -> None:
        while data := await process.read():
            self.take(data)

    def take(self, data: bytes) -> None:
        now = time.monotonic()
        self._part += data
        if not self._aligned and len(self._part) >= 4 * LINE.size:
            lines = [struct.unpack_from("<3I", self._part, start) for start in range(LINE.size)]
            start = next(at for at, (one, two, three) in enumerate(lines) if two - one == three - two == EACH_LINE)
            self._part, self._aligned = self._part[start:], True
        while self._aligned and len(self._part) >= LINE.size:
            self.at.append((now, LINE.unpack(self._part[: LINE.size])[0]))
            self._part = self._part[LINE.size :]

    async def more(self, count: int) -> None:
        wanted = len(self.at) + count
        while len(self.at) < wanted:
            await asyncio.sleep(0.01)


def ticks_per_batch(host_hz: float) -> int:
    """Of the time-stamp counter, for RATE."""
    return round(host_hz * BATCH * PAGE / RATE)


def host_hz() -> float:
    """Of the time-stamp counter, which guests have too."""
    with mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(RDTSC)
        place = ctypes.c_char.from_buffer(code)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))

        def both() -> tuple[float, int]:
            """The time and the counter: where the least was between two looks at the time."""
            looks = [(time.monotonic(), read(), time.monotonic()) for _ in range(100)]
            return min(looks, key=lambda look: look[2] - look[0])[:2]

        began, first = both()
        time.sleep(CALIBRATION_S)
        ended, last = both()
        del place
    return (last - first) / (ended - began)


async def one_move(spawner: Spawner, wanted: Wanted, limit: float | None) -> dict[str, Any]:
    """Boot, move once over a TCP connection, and take the figures."""
    reader = Reader()
    guest = await cold(spawner, wanted)
    following = asyncio.create_task(reader.follow(guest.process))
    await reader.more(SETTLE_LINES)
    rounds: list[moving.Round] = []
    arrived: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda source, _: arrived.set_result(source), "127.0.0.1", 0)
    _, writer_end = await asyncio.open_connection(*server.sockets[0].getsockname())
    sent = 0

    async def write(data: bytes) -> None:
        nonlocal sent
        sent += len(data)
        writer_end.write(data)
        await writer_end.drain()

    receiving = asyncio.create_task(moving.receive(spawner, moving.wanted_with(wanted, 0), (await arrived).read))
    began = time.monotonic()
    await moving.send_rounds(guest, write, held=0, limit_bytes_s=limit, progress=rounds.append)
    stopped, before = time.monotonic(), sent
    await moving.send_last(guest, write, limit_bytes_s=limit)
    moved = await receiving
    following.cancel()
    await asyncio.wait([following])
    reader.take(await guest.process.rest())
    await moved.process.resume()
    ended = time.monotonic()
    goes_on = asyncio.create_task(reader.follow(moved.process))
    await reader.more(SETTLE_LINES)
    await guest.process.stop(0)
    await moved.process.stop(0)
    await goes_on
    writer_end.close()
    server.close()
    times = [at for at, _ in reader.at]
    gaps = [(later - earlier, later) for earlier, later in itertools.pairwise(times)]
    numbers = [number for _, number in reader.at]
    if numbers != list(range(numbers[0], numbers[0] + EACH_LINE * len(numbers), EACH_LINE)):
        at = next(at for at, (one, other) in enumerate(itertools.pairwise(numbers)) if other != one + EACH_LINE)
        raise SystemExit(f"bench: a line is missing: {numbers[max(0, at - 2) : at + 4]} at {at} of {len(numbers)}")
    return {
        "total_s": ended - began,
        "rounds": len(rounds),
        "round_bytes": [each.size for each in rounds],
        "sent_bytes": sent,
        "last_sent_bytes": sent - before,
        "stopped_s": ended - stopped,
        "reader_gap_s": max(gap for gap, at in gaps if at >= began),
        "usual_gap_s": statistics.median(gap for gap, _ in gaps),
        "load": os.getloadavg()[0],
        "dirtied_bytes_s": PAGE * (numbers[SETTLE_LINES] - numbers[SETTLE_LINES // 2]) / (times[SETTLE_LINES] - times[SETTLE_LINES // 2]),
    }


async def one_save(spawner: Spawner, wanted: Wanted) -> dict[str, Any]:
    """Save the same guest while it runs, save it standing still, and clone it while it runs."""
    reader = Reader()
    guest = await cold(spawner, wanted)
    following = asyncio.create_task(reader.follow(guest.process))
    await reader.more(SETTLE_LINES)
    found: dict[str, Any] = {}
    for kind in ("in_rounds", "at_once"):
        with tempfile.TemporaryDirectory() as folder:
            began, seen = time.monotonic(), len(reader.at)
            if kind == "in_rounds":
                await live.save(guest, Path(folder))
            else:
                await guest.process.snapshot(Path(folder), go_on=True, timeout_s=60)
            found[f"{kind}_s"] = time.monotonic() - began
            await reader.more(SETTLE_LINES)
            times = [at for at, _ in reader.at[seen - 1 :]]
            found[f"{kind}_gap_s"] = max(later - earlier for earlier, later in itertools.pairwise(times))
    with tempfile.TemporaryDirectory() as folder:
        began, seen = time.monotonic(), len(reader.at)
        await live.save(guest, Path(folder))
        clones = await live.clones(spawner, wanted, Path(folder), CLONES)
        for one in clones:
            await one.process.resume()
        for one in clones:
            await one.process.read()
        found["forked_s"] = time.monotonic() - began
        await reader.more(SETTLE_LINES)
        times = [at for at, _ in reader.at[seen - 1 :]]
        found["forked_gap_s"] = max(later - earlier for earlier, later in itertools.pairwise(times))
        for one in clones:
            await one.process.stop(0)
    await guest.process.stop(0)
    await following
    return found


async def filled(spawner: Spawner, wanted: Wanted, base: Path) -> Wanted:
    """The machine restored from a base in which what it will write to cannot be compressed."""
    guest = await cold(spawner, wanted)
    await guest.process.read()
    base.mkdir()
    await guest.process.snapshot(base, timeout_s=60)
    with (base / MEMORY).open("r+b") as file:
        file.seek(DATA)
        file.write(random.Random(1).randbytes(DIRTIED))  # noqa: S311
    runs = [run for run in unpack_runs((base / PAGES).read_bytes(), RAM) if run[0] < DATA // PAGE]
    (base / PAGES).write_bytes(pack_runs([*runs, (DATA // PAGE, DIRTIED // PAGE)]))
    return wanted.restored_from([base])


async def measure(image: InstalledImage, rounds: int) -> dict[str, Any]:
    """All figures: of each kind the list, and its medians."""
    with tempfile.TemporaryDirectory() as folder:
        kernel = tiny.build(Path(folder), writer(ticks_per_batch(host_hz())))
        machine = MachineConfig(kernel=str(kernel), memory=RAM, channel=Channel.SERIAL)
        plain = Wanted(image=image, machine=machine, timeout_s=60.0)
        spawner = Spawner(Zygote.start)
        results: dict[str, Any] = {}
        try:
            wanted = await filled(spawner, plain, Path(folder) / "base")
            for name, limit in (("unlimited", None), ("limited to 40 MB/s", 40e6)):
                results[name] = [await one_move(spawner, wanted, limit) for _ in range(rounds)]
            results["saved"] = [await one_save(spawner, wanted) for _ in range(rounds)]
        finally:
            await spawner.close()
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure moves of a tiny guest.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as data, contextlib.ExitStack() as stack:
        os.environ["XDG_DATA_HOME"] = data
        stack.callback(os.environ.pop, "XDG_DATA_HOME")
        from mayfly.images.store import Images
        from tests.kit.api_fakes import install

        install("toy", ".toy", ())
        results = asyncio.run(measure(Images().find("toy"), arguments.rounds))
    for kind, found in results.items():
        print(kind)
        for name in found[0]:
            values = [each[name] for each in found]
            print(f"    {name:18} {values if isinstance(values[0], list) else f'{median(found, name):.4g}  (most {max(values):.4g})'}")
    arguments.file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
