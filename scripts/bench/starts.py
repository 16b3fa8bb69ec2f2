"""Measure cold boots and a run: exits and the time of each phase, with QEMU's microvm beside them.

Usage: python -m scripts.bench.starts measure FILE [--rounds N] [--language L]
       python -m scripts.bench.starts plot FILE PICTURE

`measure` runs where KVM works, that is through scripts/with-kvm. Every round boots each kind once,
so that other load on the host falls on all alike; quote medians and ratios. Ours is timed from the
request to a warm zygote, QEMU from its start, both to the agent's HELLO, with one kernel and one
initramfs. An exit is a return of KVM_RUN to user space; QEMU's are not counted. The channels'
rates are those of machines without an agent.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mayfly import paths
from mayfly.guests.job import Wanted
from mayfly.guests.probe import probe
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import start
from mayfly.guests.zygote import Zygote
from mayfly.images import manifest
from mayfly.images.store import InstalledImage
from mayfly.protocol.report import Ended
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig
from scripts.bench import microvm
from tests.kit.spawned import Spawned
from tests.kit.toy import shell_root

DEADLINE_S = 120.0
USER = "nobody"
STREAMS = {Channel.SERIAL: 4 << 10, Channel.VIRTIO: 16 << 20}
"""How many bytes a guest sends to measure each kind of channel."""
SENDER = """
port={port}
until [ -c $port ]; do :; done
case $port in *ttyS*) /bin/busybox stty -F $port raw -echo clocal crtscts 115200 ;; esac
exec 3<>$port
/bin/busybox dd if=/dev/zero bs=4k count={blocks} >&3
/bin/busybox cat <&3
"""
PORTS = {Channel.SERIAL: "/dev/ttyS1", Channel.VIRTIO: "/dev/vport0p0"}


def want(kernel: Path, image: InstalledImage, channel: Channel) -> Wanted:
    """The machine that is booted."""
    memory = image.manifest.memory
    machine = MachineConfig(kernel=str(kernel), initrd=str(image.initramfs), memory=memory, channel=channel, user=USER)
    return Wanted(image=image, machine=machine, timeout_s=DEADLINE_S)


async def boot_ours(spawner: Spawner, wanted: Wanted) -> dict[str, Any]:
    """One cold boot with our monitor."""
    began = time.monotonic()
    guest = await start(spawner, wanted)
    total = time.monotonic() - began
    ended = await guest.process.stop()
    phases = dict(guest.process.phases)
    in_guest = total - sum(phases.values())
    kernel_s = guest.hello.boot_us / 1e6  # by the guest's clock, which starts when the kernel has found its memory
    return {
        "total_s": total,
        "phases_s": phases | {"kernel": kernel_s, "agent and entry": in_guest - kernel_s},
        "exits": ended.exits["total"] - ended.exits["channel-data"],
        "exits_with_channel_data": ended.exits["total"],
        "exits_by_cause": dict(ended.exits),
    }


def boot_qemu(wanted: Wanted) -> dict[str, Any]:
    """One cold boot with QEMU's microvm."""
    conversation = microvm.expect(wanted)
    began = time.monotonic()
    with microvm.started(wanted.machine) as channel:
        microvm.wait_hello(channel, conversation)
        return {"total_s": time.monotonic() - began}


def throughput(zygote: Zygote, kernel: Path, channel: Channel) -> float:
    """Bytes a second from a guest's program, which has no agent, to the channel's other end."""
    size = STREAMS[channel]
    with tempfile.NamedTemporaryFile() as initrd:
        initrd.write(shell_root(SENDER.format(port=PORTS[channel], blocks=size >> 12)))
        initrd.flush()
        config = MachineConfig(kernel=str(kernel), initrd=initrd.name, memory=96 * MIB, channel=channel, user=None)
        with Spawned(zygote, config) as machine:
            machine.channel.settimeout(DEADLINE_S)
            size -= len(machine.channel.recv(1))
            began = time.monotonic()
            while size:
                data = machine.channel.recv(min(size, 1 << 16))
                if not data:
                    raise SystemExit("bench: the machine ended before it had sent everything")
                size -= len(data)
            seconds = time.monotonic() - began
            machine.channel.close()
            while not isinstance(machine.next_line(), Ended):
                pass
        zygote.receive()
    return (STREAMS[channel] - 1) / seconds


def run_snippet(language: str) -> dict[str, Any]:
    """The phases and exits of a whole cold `mayfly run` of a compiled hello world, over virtio."""
    with tempfile.TemporaryDirectory() as work:
        snippet = Path(work) / "hello.rs"
        snippet.write_text('fn main() { println!("hello"); }\n')
        command = [
            sys.executable,
            "-m",
            "mayfly.cli.main",
            "run",
            "--cold",
            "--json",
            "--channel",
            "virtio",
            "--language",
            language,
            str(snippet),
        ]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, check=True)
        total = time.monotonic() - began
    result = json.loads(done.stdout)
    return {"total_s": total, "phases_s": result["phases"], "exits": result["exits"]}


async def boots(rounds: int, image: InstalledImage, kernel: Path) -> dict[str, list[dict[str, Any]]]:
    """Every kind of boot, in turns."""
    kinds: dict[str, list[dict[str, Any]]] = {"serial": [], "virtio": []}
    spawner = Spawner(Zygote.start)
    try:
        for _ in range(rounds):
            for channel in STREAMS:
                kinds[channel].append(await boot_ours(spawner, want(kernel, image, channel)))
            if shutil.which("qemu-system-x86_64"):
                kinds.setdefault("qemu", []).append(boot_qemu(want(kernel, image, Channel.VIRTIO)))
    finally:
        await spawner.close()
    return kinds


def measure(rounds: int, language: str) -> dict[str, Any]:
    """All of it."""
    arch = os.uname().machine
    folder = paths.image_dir(language, arch)
    image = InstalledImage(folder, manifest.load(folder))
    kernel = paths.kernel_path(arch)
    with contextlib.closing(Zygote.start()) as zygote:
        rates: dict[Channel, list[float]] = {channel: [] for channel in STREAMS}
        for _ in range(rounds):
            for channel in STREAMS:
                rates[channel].append(throughput(zygote, kernel, channel))
    described = image.manifest
    return {
        "host": probe().reason,
        "image": {
            "language": language,
            "compression": described.compression,
            "size": described.initramfs_size,
            "unpacked": described.unpacked_size,
        },
        "channels": {channel: {"bytes_per_s": rate} for channel, rate in rates.items()},
        "boots": asyncio.run(boots(rounds, image, kernel)),
        "run": run_snippet(language),
    }


def median(results: list[dict[str, Any]], key: str) -> float:
    """The median of one figure over the rounds."""
    return float(statistics.median(result[key] for result in results))


def show(results: dict[str, Any]) -> None:
    """Print what counts."""
    boots = results["boots"]
    print(f"{results['host']}\n{results['image']}")
    for kind in ("serial", "virtio"):
        exits, with_data = median(boots[kind], "exits"), median(boots[kind], "exits_with_channel_data")
        print(f"cold boot, {kind}: {median(boots[kind], 'total_s'):.2f} s, {exits:g} exits ({with_data:g} with the channel's bytes)")
        for phase in boots[kind][0]["phases_s"]:
            print(f"    {phase:8} {1000 * statistics.median(boot['phases_s'][phase] for boot in boots[kind]):9.1f} ms")
    if "qemu" in boots:
        ratio = median(boots["virtio"], "total_s") / median(boots["qemu"], "total_s")
        print(f"cold boot, qemu microvm: {median(boots['qemu'], 'total_s'):.2f} s; ours with virtio takes {ratio:.2f} of that")
    rates = {kind: statistics.median(channel["bytes_per_s"]) for kind, channel in results["channels"].items()}
    ratio = rates["virtio"] / rates["serial"]
    print(f"channel: serial {rates['serial'] / 1024:.1f} KiB/s, virtio {rates['virtio'] / 1024:.0f} KiB/s: {ratio:.0f} times as fast")
    run = results["run"]
    print(f"mayfly run, compiled hello world: {run['total_s']:.2f} s, {run['exits'].get('total', 0)} exits")
    for phase, seconds in run["phases_s"].items():
        print(f"    {phase:12} {1000 * seconds:9.1f} ms")


def plot(results: dict[str, Any], picture: Path) -> None:
    """Bars of the phases, one per kind, and the exits."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as pyplot

    figure, (times, exits) = pyplot.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 1))
    boots = results["boots"]
    for position, (kind, rounds) in enumerate(boots.items()):
        left = 0.0
        for color, phase in enumerate(rounds[0].get("phases_s", {"whole boot": 0})):
            seconds = statistics.median(boot.get("phases_s", {}).get(phase, boot["total_s"]) for boot in rounds)
            times.barh(
                position, seconds, left=left, color=f"C{color}" if kind != "qemu" else "gray", label=phase if position == 0 else None
            )
            left += seconds
    times.set_yticks(range(len(boots)), [f"ours, {kind}" if kind != "qemu" else "qemu microvm" for kind in boots])
    times.set_xlabel("seconds to HELLO, median")
    times.legend(loc="lower right")
    ours = [kind for kind in boots if kind != "qemu"]
    exits.bar(ours, [median(boots[kind], "exits") for kind in ours])
    exits.set_ylabel("exits to HELLO, without the channel's bytes")
    figure.suptitle(results["host"], fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure cold boots and a run.")
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("file", type=Path)
    measuring.add_argument("--rounds", type=int, default=3)
    measuring.add_argument("--language", default="rust")
    plotting = commands.add_parser("plot")
    plotting.add_argument("file", type=Path)
    plotting.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "plot":
        plot(json.loads(arguments.file.read_text()), arguments.picture)
        return
    results = measure(arguments.rounds, arguments.language)
    arguments.file.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
