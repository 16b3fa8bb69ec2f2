"""Measure a machine's network with iperf3: ours over tap and passt, QEMU's microvm over a tap.

Usage: python -m scripts.bench.network FILE [--seconds N] [--rounds N]

Run it as root where KVM works, that is through scripts/with-kvm. Each machine has an initramfs with
the agent and Debian's iperf3. It talks to an iperf3 on the host, first as the sender, then as the
receiver. All machines exist all the time and take turns of some seconds, round after round, so that
other load on the host falls on all alike. All of them are in a network namespace of their own. QEMU
serves the device itself (no vhost), as our monitor does.
"""

import argparse
import contextlib
import json
import os
import re
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mayfly import paths
from mayfly.protocol.frames import Begin, Done, Exit, FrameReader, Hello, Message, Start, Stdout, Step, encode_frame
from mayfly.units import MIB
from mayfly.vmm.config import Channel, MachineConfig, NetworkBackend, NetworkConfig
from mayfly.vmm.probe import probe
from mayfly.vmm.process.zygote import Zygote
from scripts.bench import machine, microvm
from tests.kit.toy import END, archive

UPLINK = "198.51.100.1"
"""The host's address towards the Internet, as passt sees it."""
MEMORY = 192 * MIB
DEADLINE_S = 120.0
IPERF = Path("/usr/bin/iperf3")
AGENT = Path(__file__).resolve().parents[2] / f"imagegen/agents/mayfly-agent.{os.uname().machine}"


def make_initramfs(path: Path) -> None:
    """Agent, iperf3 and the libraries that it needs."""
    libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", IPERF], capture_output=True, text=True, check=True).stdout)
    files = {"init": AGENT, **{name.lstrip("/"): Path(name) for name in (str(IPERF), *libraries)}}
    folders = {str(parent) for name in files for parent in Path(name).parents} | {
        "dev",
        "proc",
        "sys",
        "tmp",
        "work",
        "mayfly",
        "var/tmp",
        "var",
        "etc",
    }
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in sorted(folders - {"."})]
    entries += [(name, stat.S_IFREG | 0o755, file.read_bytes()) for name, file in files.items()]
    entries += [("mayfly/end", stat.S_IFREG | 0o444, b"bench")]
    path.write_bytes(archive(entries) + END)


@contextlib.contextmanager
def ours(config: MachineConfig) -> Iterator[socket.socket]:
    """A machine of ours; its channel."""
    with contextlib.closing(Zygote.start()) as zygote, machine.started(zygote, config) as (channel, _):
        yield channel


def qemu(config: MachineConfig) -> contextlib.AbstractContextManager[socket.socket]:
    """QEMU's microvm with such a tap."""
    assert config.network is not None  # noqa: S101 (every machine here has one)
    tap = f"tap,id=net,ifname={config.network.tap},script=no,downscript=no,vhost=off"
    return microvm.started(config, ["-netdev", tap, "-device", f"virtio-net-device,netdev=net,mac={config.network.mac}"])


Starter = Callable[[MachineConfig], contextlib.AbstractContextManager[socket.socket]]
KINDS: dict[str, tuple[Starter, NetworkBackend]] = {
    "ours, tap": (ours, NetworkBackend.TAP),
    "qemu microvm, tap": (qemu, NetworkBackend.TAP),
    "ours, passt": (ours, NetworkBackend.PASST),
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


class Guest:
    """A machine whose agent runs iperf3."""

    def __init__(self, channel: socket.socket, address: str) -> None:
        self._channel, self._address, self._runs = channel, address, 0
        channel.settimeout(DEADLINE_S)
        self._messages = self._read()
        while not isinstance(next(self._messages), Hello):
            pass

    def _read(self) -> Iterator[Message]:
        reader = FrameReader()
        while data := self._channel.recv(65536):
            yield from (frame.message for frame in reader.feed(data))
        raise SystemExit("bench-network: the machine ended too early")

    def rate(self, seconds: int, *options: str) -> float:
        """Gigabits a second to or from a server on the host."""
        self._runs += 1
        with subprocess.Popen([IPERF, "--server", "--one-off", "--forceflush"], stdout=subprocess.PIPE) as server:
            while b"listening" not in server.stdout.readline():  # type: ignore[union-attr]  # a pipe was asked for
                pass
            argv = (str(IPERF), "-c", self._address, "-t", str(seconds), "--connect-timeout", "20000", "-J", *options)
            start = Start((), (Step("run", argv, wall_ms=100_000),), ())
            self._channel.sendall(encode_frame(start, self._runs) + encode_frame(Begin(), self._runs))
            output, code = b"", 0
            while not isinstance(message := next(self._messages), Done):
                output += message.data if isinstance(message, Stdout) else b""
                code = message.code if isinstance(message, Exit) else code
            server.kill()
        if code:
            raise SystemExit(f"bench-network: iperf3 failed in the guest: {output.decode(errors='replace')}")
        return float(json.loads(output)["end"]["sum_received"]["bits_per_second"]) / 1e9


def measure(seconds: int, rounds: int) -> dict[str, Any]:
    """All of it, in this network namespace."""
    results: dict[str, dict[str, list[float]]] = {kind: {direction: [] for direction in DIRECTIONS} for kind in KINDS}
    with contextlib.ExitStack() as machines:
        work = machines.enter_context(tempfile.TemporaryDirectory())
        initramfs = Path(work) / "initramfs"
        make_initramfs(initramfs)
        Path(work).chmod(0o755)
        guests = {}
        for number, (kind, (started, backend)) in enumerate(KINDS.items()):
            config = MachineConfig(
                kernel=str(paths.kernel_path(os.uname().machine)),
                initrd=str(initramfs),
                memory=MEMORY,
                channel=Channel.VIRTIO,
                network=network(number, backend),
            )
            guests[kind] = Guest(machines.enter_context(started(config)), network(number, backend).allow[0])
        for _ in range(rounds):
            for direction, options in DIRECTIONS.items():
                for kind, guest in guests.items():
                    results[kind][direction].append(guest.rate(seconds, *options))
    return {"host": probe().reason, "seconds": seconds, "gigabits_per_second": results}


def show(results: dict[str, Any]) -> None:
    """Print medians, and how ours compares with QEMU's."""
    print(results["host"])
    medians: dict[str, dict[str, float]] = {}
    for kind, rates in results["gigabits_per_second"].items():
        medians[kind] = {direction: statistics.median(rounds) for direction, rounds in rates.items()}
        print(f"{kind:18} " + ", ".join(f"{rate:6.3f} Gbit/s {direction}" for direction, rate in medians[kind].items()))
    for direction, rate in medians["qemu microvm, tap"].items():
        print(f"over tap, {direction}: {medians['ours, tap'][direction] / rate:.2f} of QEMU's")


def set_up() -> None:
    """Make the namespace's interfaces: the machines' taps, and one that stands for the Internet."""
    networks = [network(number, backend) for number, (_, backend) in enumerate(KINDS.values())]
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
    results = measure(arguments.seconds, arguments.rounds)
    arguments.file.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
