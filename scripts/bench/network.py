"""Measure a machine's network with iperf3: ours over tap and passt, QEMU's microvm over a tap.

Usage: python -m scripts.bench.network FILE [--seconds N] [--rounds N]

Run it as root where KVM works, that is through scripts/with-kvm. Each machine has an initramfs with
the agent and Debian's iperf3. It talks to an iperf3 on the host, first as the sender, then as the
receiver. Over a tap the host also tries to connect to a port that nobody listens at, which the
guest's kernel refuses: a packet there and one back. All machines exist all the time and take turns
of some seconds, round after round, so that other load on the host falls on all alike. All of them
are in a network namespace of their own. QEMU serves the device itself (no vhost), as our monitor
does.
"""

import argparse
import asyncio
import contextlib
import errno
import functools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from mayfly import paths
from mayfly.guests.converse import Listener, converse
from mayfly.guests.job import RATES, Job, Wanted
from mayfly.guests.outcome import Outcome, Status
from mayfly.guests.probe import probe
from mayfly.guests.spawner import Spawner
from mayfly.guests.start import start
from mayfly.guests.zygote import Zygote
from mayfly.images import manifest
from mayfly.images.store import InstalledImage
from mayfly.protocol.frames import Start, Step
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig, NetworkBackend, NetworkConfig
from scripts.bench import microvm
from tests.kit import toy

UPLINK = "198.51.100.1"
"""The host's address towards the Internet, as passt sees it."""
MEMORY = 192 * MIB
DEADLINE_S = 120.0
PACKETS = 100
CLOSED_PORT = 9
IPERF = Path("/usr/bin/iperf3")
LOADER = "/bin/ld-linux-x86-64.so.2"
"""In the guest, where nothing is in the folders in which the kernel and iperf3 would look."""


def make_image() -> InstalledImage:
    """A toy language's image with iperf3 and the libraries that it needs, all in /bin."""
    needed = subprocess.run(["ldd", IPERF], capture_output=True, text=True, check=True).stdout
    libraries = map(Path, re.findall(r"(/\S+) \(0x", needed))
    folder = toy.build("bench-iperf3", memory=MEMORY, programs={path.name: path.read_bytes() for path in (IPERF, *libraries)})
    return InstalledImage(folder, manifest.load(folder))


KINDS = {
    "ours, tap": NetworkBackend.TAP,
    "qemu microvm, tap": NetworkBackend.TAP,
    "ours, passt": NetworkBackend.PASST,
}
DIRECTIONS = {"from the guest": (), "to the guest": ("-R",)}
"""With iperf3's options."""


def network(number: int, backend: NetworkBackend) -> NetworkConfig:
    """The network of machine `number`; passt gets what mayfly/host/networks.py gives it."""
    tap = backend is NetworkBackend.TAP
    return NetworkConfig(
        backend=backend,
        tap=f"mayfly{number}" if tap else "",
        mtu=1500 if tap else 65520,
        mac=f"02:00:00:00:00:{2 + number:02}",
        addresses=(f"10.87.{number}.2/24",),
        gateways=(f"10.87.{number}.1",),
        allow=(f"10.87.{number}.1" if tap else UPLINK,),
    )


Runs = Callable[[Job, Listener], Awaitable[None]]
"""Lets the agent of a machine that is up run a job."""


async def start_ours(spawner: Spawner, wanted: Wanted) -> Runs:
    """A machine of ours."""
    return functools.partial(converse, await start(spawner, wanted))


def start_qemu(machines: contextlib.ExitStack, wanted: Wanted) -> Runs:
    """QEMU's microvm with such a tap."""
    network = wanted.machine.network
    assert network is not None  # noqa: S101 (every machine here has one)
    tap = f"tap,id=net,ifname={network.tap},script=no,downscript=no,vhost=off"
    device = f"virtio-net-device,netdev=net,mac={network.mac}"
    channel = machines.enter_context(microvm.started(wanted.machine, ["-netdev", tap, "-device", device]))
    conversation = microvm.expect(wanted)
    microvm.wait_hello(channel, conversation)

    async def run(job: Job, listener: Listener) -> None:
        await asyncio.to_thread(microvm.converse, channel, conversation, job, listener)

    return run


async def rate(runs: Runs, address: str, seconds: int, options: Sequence[str]) -> float:
    """Gigabits a second to or from a server on the host."""
    argv = [LOADER, "--library-path", "/bin", "/bin/iperf3"]
    argv += ["-c", address, "-t", str(seconds), "--connect-timeout", "20000", "-J", *options]
    begin = Start((), (Step("run", tuple(argv), wall_ms=100_000),), ())
    outcome = Outcome(("run",), kept=MIB)
    with subprocess.Popen([IPERF, "--server", "--one-off", "--forceflush"], stdout=subprocess.PIPE) as server:
        while b"listening" not in server.stdout.readline():  # type: ignore[union-attr]  # a pipe was asked for
            pass
        await runs(Job(start=begin, deadline_s=DEADLINE_S, rate=RATES[Channel.VIRTIO]), outcome)
        server.kill()
    if outcome.verdict().status is not Status.OK:
        raise SystemExit(f"bench-network: iperf3 failed in the guest: {outcome.tail.decode(errors='replace')}")
    return float(json.loads(outcome.tail)["end"]["sum_received"]["bits_per_second"]) / 1e9


def answer_ms(address: str) -> float:
    """Milliseconds until the guest's kernel refuses a connection; the median of PACKETS."""

    def one() -> float:
        with socket.socket() as connection:
            began = time.monotonic()
            if connection.connect_ex((address, CLOSED_PORT)) != errno.ECONNREFUSED:
                raise SystemExit(f"bench-network: {address} does not refuse a connection")
            return 1000 * (time.monotonic() - began)

    return statistics.median(one() for _ in range(PACKETS))


async def measure(seconds: int, rounds: int) -> dict[str, Any]:
    """All of it, in this network namespace."""
    results: dict[str, dict[str, list[float]]] = {kind: {direction: [] for direction in DIRECTIONS} for kind in KINDS}
    answers: dict[str, list[float]] = {}
    spawner = Spawner(Zygote.start)
    try:
        with contextlib.ExitStack() as machines:
            image = make_image()
            machines.callback(shutil.rmtree, image.folder)
            guests: dict[str, tuple[Runs, str]] = {}
            for number, (kind, backend) in enumerate(KINDS.items()):
                given = network(number, backend)
                machine = MachineConfig(
                    kernel=str(paths.kernel_path(os.uname().machine)),
                    initrd=str(image.initramfs),
                    memory=MEMORY,
                    channel=Channel.VIRTIO,
                    network=given,
                )
                wanted = Wanted(image=image, machine=machine, timeout_s=DEADLINE_S)
                runs = start_qemu(machines, wanted) if kind.startswith("qemu") else await start_ours(spawner, wanted)
                guests[kind] = runs, given.allow[0]
            for _ in range(rounds):
                for number, (kind, backend) in enumerate(KINDS.items()):
                    if backend is NetworkBackend.TAP:
                        answers.setdefault(kind, []).append(answer_ms(network(number, backend).addresses[0].partition("/")[0]))
                for direction, options in DIRECTIONS.items():
                    for kind, (runs, address) in guests.items():
                        results[kind][direction].append(await rate(runs, address, seconds, options))
    finally:
        await spawner.close()
    return {"host": probe().reason, "seconds": seconds, "gigabits_per_second": results, "answer_ms": answers}


def show(results: dict[str, Any]) -> None:
    """Print medians, and how ours compares with QEMU's."""
    print(results["host"])
    medians: dict[str, dict[str, float]] = {}
    for kind, rates in results["gigabits_per_second"].items():
        medians[kind] = {direction: statistics.median(rounds) for direction, rounds in rates.items()}
        print(f"{kind:18} " + ", ".join(f"{rate:6.3f} Gbit/s {direction}" for direction, rate in medians[kind].items()))
    for direction, rate in medians["qemu microvm, tap"].items():
        print(f"over tap, {direction}: {medians['ours, tap'][direction] / rate:.2f} of QEMU's")
    for kind, rounds in results["answer_ms"].items():
        print(f"{kind:18} a packet there and one back: {statistics.median(rounds):.2f} ms")


def set_up() -> None:
    """Make the namespace's interfaces: the machines' taps, and one that stands for the Internet."""
    networks = [network(number, backend) for number, backend in enumerate(KINDS.values())]
    taps = {one.tap: f"{one.gateways[0]}/24" for one in networks if one.tap} | {"uplink": f"{UPLINK}/24"}
    commands = ["link set lo up"]
    for name, address in taps.items():
        commands += [f"tuntap add dev {name} mode tap vnet_hdr", f"address add {address} dev {name}", f"link set {name} up"]
    for command in (*commands, "route add default via 198.51.100.2 dev uplink"):
        subprocess.run(["ip", *command.split()], check=True)
    # As the agent sets it in the guest. Otherwise a slow start may leave a sender with small
    # segments, by chance.
    Path("/proc/sys/net/ipv4/tcp_min_tso_segs").write_text("44")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the network's throughput.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "scripts.bench.network", *sys.argv[1:], "--inside"])  # noqa: S606 (no shell is wanted)
    set_up()
    results = asyncio.run(measure(arguments.seconds, arguments.rounds))
    arguments.file.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
