"""Measure cold boots and a run: exits and the time of each phase, with QEMU's microvm beside them.

Usage: python -m scripts.bench.starts measure FILE [--rounds N] [--language L]
       python -m scripts.bench.starts plot FILE PICTURE

`measure` runs where KVM works, that is through scripts/with-kvm. Every round boots each kind once
and sends a stream over each kind of channel, one after the other, so that other load on the host
falls on all alike; quote medians and ratios. Ours is timed from the request to a warm zygote, QEMU
from its start, both to the last byte of the agent's HELLO, with one kernel and one initramfs. An
exit is a return of KVM_RUN to user space; QEMU's are not counted.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mayfly import paths
from mayfly.images import manifest
from mayfly.protocol.frames import FrameReader, Hello
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig
from mayfly.vmm.probe import probe
from mayfly.vmm.process.report import Ended
from mayfly.vmm.process.zygote import Zygote
from scripts.bench import machine, microvm
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


def wait_hello(channel: socket.socket) -> tuple[float, Hello]:
    """When the agent's HELLO was complete, and what it says."""
    channel.settimeout(DEADLINE_S)
    reader = FrameReader()
    while data := channel.recv(4096):
        for frame in reader.feed(data):
            if isinstance(frame.message, Hello):
                return time.monotonic(), frame.message
    raise SystemExit("bench: the machine ended before its HELLO")


def boot_config(kernel: Path, folder: Path, image: manifest.Manifest, channel: Channel) -> MachineConfig:
    """The machine that is booted."""
    return MachineConfig(kernel=str(kernel), initrd=str(folder / "initramfs"), memory=image.memory, channel=channel, user=USER)


def boot_ours(zygote: Zygote, kernel: Path, folder: Path, image: manifest.Manifest, channel: Channel) -> dict[str, Any]:
    """One cold boot with our monitor."""
    config = boot_config(kernel, folder, image, channel)
    began = time.monotonic()
    with machine.started(zygote, config) as (ours, report):
        ready, hello = wait_hello(ours)
    running, ended = report
    assert isinstance(ended, Ended)  # noqa: S101 (it is the last line)
    phases = dict(running.phases)
    guest = ready - began - sum(phases.values())
    kernel_s = hello.boot_us / 1e6  # by the guest's clock, which starts when the kernel has found its memory
    exits = dict(ended.exits)
    return {
        "total_s": ready - began,
        "phases_s": phases | {"kernel": kernel_s, "agent and entry": guest - kernel_s},
        "exits": exits["total"] - exits["channel-data"],
        "exits_with_channel_data": exits["total"],
        "exits_by_cause": exits,
    }


def boot_qemu(kernel: Path, folder: Path, image: manifest.Manifest) -> dict[str, Any]:
    """One cold boot with QEMU's microvm."""
    config = boot_config(kernel, folder, image, Channel.VIRTIO)
    began = time.monotonic()
    with microvm.started(config) as channel:
        ready, _ = wait_hello(channel)
    return {"total_s": ready - began}


def throughput(zygote: Zygote, kernel: Path, channel: Channel) -> float:
    """Bytes a second from a guest's program to the channel's other end."""
    size = STREAMS[channel]
    with tempfile.NamedTemporaryFile() as initrd:
        initrd.write(shell_root(SENDER.format(port=PORTS[channel], blocks=size >> 12)))
        initrd.flush()
        config = MachineConfig(kernel=str(kernel), initrd=initrd.name, memory=96 * MIB, channel=channel, user=None)
        with machine.started(zygote, config) as (ours, _):
            ours.settimeout(DEADLINE_S)
            size -= len(ours.recv(1))
            began = time.monotonic()
            while size:
                data = ours.recv(min(size, 1 << 16))
                if not data:
                    raise SystemExit("bench: the machine ended before it had sent everything")
                size -= len(data)
            seconds = time.monotonic() - began
    return (STREAMS[channel] - 1) / seconds


def run_snippet(language: str) -> dict[str, Any]:
    """The phases and exits of a whole `mayfly run` of a compiled hello world, over virtio."""
    with tempfile.TemporaryDirectory() as work:
        snippet = Path(work) / "hello.rs"
        snippet.write_text('fn main() { println!("hello"); }\n')
        command = [sys.executable, "-m", "mayfly.cli.main", "run", "--json", "--channel", "virtio", "--language", language, str(snippet)]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, check=True)
        total = time.monotonic() - began
    result = json.loads(done.stdout)
    return {"total_s": total, "phases_s": result["phases"], "exits": result["exits"]}


def measure(rounds: int, language: str) -> dict[str, Any]:
    """All of it."""
    arch = os.uname().machine
    folder = paths.image_dir(language, arch)
    image = manifest.load(folder)
    kernel = paths.kernel_path(arch)
    kinds: dict[str, list[dict[str, Any]]] = {"serial": [], "virtio": [], "qemu": []}
    channels: dict[str, list[float]] = {"serial": [], "virtio": []}
    zygote = Zygote.start()
    try:
        for _ in range(rounds):
            for kind in channels:
                channels[kind].append(throughput(zygote, kernel, Channel(kind)))
            kinds["serial"].append(boot_ours(zygote, kernel, folder, image, Channel.SERIAL))
            kinds["virtio"].append(boot_ours(zygote, kernel, folder, image, Channel.VIRTIO))
            if shutil.which("qemu-system-x86_64"):
                kinds["qemu"].append(boot_qemu(kernel, folder, image))
    finally:
        zygote.close()
    return {
        "host": probe().reason,
        "image": {"language": language, "compression": image.compression, "size": image.initramfs_size, "unpacked": image.unpacked_size},
        "channels": {kind: {"bytes_per_s": rates} for kind, rates in channels.items()},
        "boots": {kind: results for kind, results in kinds.items() if results},
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
