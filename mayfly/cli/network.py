"""`mayfly network`: make and remove the bridge and tap interfaces of machines with a network."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from mayfly.cli.flags import Size
from mayfly.errors import ConfigError, HostError
from mayfly.units import MIB

BRIDGE = "mayfly"
"""The gateway of all machines; tap interfaces are BRIDGE0, BRIDGE1, and so on."""
ADDRESSES = ("10.87.0.1/16", "fd6d:6179:666c:79::1/64 nodad")
"""Of the bridge. Without the search for duplicates the second is usable in its first second."""
MAX_TAPS = 9999
LIMITS = "mayfly_limits"
"""nft(8)'s tables of limits, one of packets at the taps and one of what is forwarded."""
LEAST_BURST = MIB // 8
"""Bytes at once within any rate: two packets as segmentation offload makes them."""

PACKAGES = {"ip": "iproute2", "nft": "nftables"}

count_argument = click.argument("count", metavar="N", type=click.IntRange(1, MAX_TAPS))


@click.group()
def cli() -> None:
    """Make and remove the tap interfaces that give machines a network."""


@cli.command()
@count_argument
@click.option("--user", default="", help="who may open the taps; by default who calls sudo, else root")
@click.option("--rate", type=Size(), default="0", help="bytes a second that a machine may send, and receive (such as 10M)")
@click.option("--packets", type=click.IntRange(0, 10**9), default=0, help="packets a second, likewise")
@click.option("--connections", type=click.IntRange(0, 65536), default=0, help="connections beyond the bridge that it may have at a time")
def setup(count: int, user: str, rate: int, packets: int, connections: int) -> None:
    """Make the bridge `mayfly` and N tap interfaces on it, mayfly0 and so on. Needs root.

    The bridge is the gateway of machines with a network. Interfaces that exist already stay as
    they are. --rate, --packets and --connections limit each of the N taps by nft(8) (Linux 5.16);
    what is beyond a limit is dropped. They replace all earlier limits, and go with the bridge.

    Machines reach the Internet only if this host forwards for them:

    \b
      sysctl net.ipv4.ip_forward=1
      nft add table ip mayfly
      nft 'add chain ip mayfly nat { type nat hook postrouting priority srcnat; }'
      nft add rule ip mayfly nat ip saddr 10.87.0.0/16 masquerade
    """  # noqa: D301 (click takes the character for "as it stands")
    user = user or os.environ.get("SUDO_USER", "root")
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"there is no user {user!r} on this host", hint="give --user an existing one") from None
    there = _interfaces()
    _ip([line for name in (BRIDGE, *_taps(count)) if name not in there for line in _making(name, user)])
    if rate or packets or connections:
        _run("nft", "-f", "-", lines="".join(f"{line}\n" for line in _limiting(_taps(count), rate, packets, connections)))


@cli.command()
@count_argument
def cleanup(count: int) -> None:
    """Remove the first N tap interfaces, and the bridge when none is left on it. Needs root."""
    there = _interfaces()
    _ip([f"link delete dev {name}" for name in _taps(count) if name in there])
    if BRIDGE in there and not _run("ip", "-o", "link", "show", "master", BRIDGE):
        _ip([f"link delete dev {BRIDGE}"])
        if shutil.which("nft"):
            _run("nft", "-f", "-", lines="".join(f"{line}\n" for family in ("netdev", "inet") for line in _forgetting(family)))


def _taps(count: int) -> list[str]:
    return [f"{BRIDGE}{number}" for number in range(count)]


def _interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _making(name: str, user: str) -> Iterator[str]:
    """Commands of ip(8) that make one interface."""
    if name == BRIDGE:
        yield f"link add {name} type bridge"
        yield from (f"address add {address} dev {name}" for address in ADDRESSES)
    else:
        yield f"tuntap add dev {name} mode tap vnet_hdr user {user}"
        yield f"link set dev {name} master {BRIDGE}"
        # The kernel keeps machines apart too: isolated ports reach the bridge, but not each other.
        yield f"link set dev {name} type bridge_slave isolated on"
    yield f"link set dev {name} up"


def _forgetting(family: str) -> Iterator[str]:
    """Commands of nft(8) that remove a table, which is made first as it may not be there."""
    yield f"add table {family} {LIMITS}"
    yield f"delete table {family} {LIMITS}"


def _limiting(taps: Sequence[str], rate: int, packets: int, connections: int) -> Iterator[str]:
    """Commands of nft(8) that put limits in place of earlier ones: token buckets at each tap, which
    hold a tenth of a second's share, and a count by a machine's address.
    """
    for family in ("netdev", "inet"):
        yield from _forgetting(family)
        yield f"add table {family} {LIMITS}"
    buckets = [f"limit rate over {rate} bytes/second burst {max(LEAST_BURST, rate // 10)} bytes drop"] * bool(rate)
    buckets += [f"limit rate over {packets}/second burst {max(1, packets // 10)} packets drop"] * bool(packets)
    for tap in taps if buckets else ():
        for hook in ("ingress", "egress"):
            yield f'add chain netdev {LIMITS} {tap}_{hook} {{ type filter hook {hook} device "{tap}" priority 0; }}'
            yield from (f"add rule netdev {LIMITS} {tap}_{hook} {bucket}" for bucket in buckets)
    if connections:
        yield f"add chain inet {LIMITS} forwarded {{ type filter hook forward priority 0; }}"
        for family, kind in (("ip", "ipv4_addr"), ("ip6", "ipv6_addr")):
            yield f"add set inet {LIMITS} of_{family} {{ type {kind}; flags dynamic; size 65536; }}"
            counted = f"add @of_{family} {{ {family} saddr ct count over {connections} }}"
            yield f'add rule inet {LIMITS} forwarded iifname "{BRIDGE}" ct state new {counted} drop'


def _ip(commands: Sequence[str]) -> None:
    """Run commands of ip(8) as root, the next one only when the last one has succeeded."""
    if not commands:
        return
    if os.geteuid() != 0:
        raise HostError("only root may change this host's network", hint=f"run it as root: sudo {Path(sys.argv[0]).absolute()} network …")
    _run("ip", "-batch", "-", lines="".join(f"{command}\n" for command in commands))


def _run(program: str, *arguments: str, lines: str = "") -> str:
    """What ip(8) or nft(8) printed."""
    try:
        done = subprocess.run([program, *arguments], input=lines, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise HostError(f"the program {program} is not on this host", hint=f"apt-get install {PACKAGES[program]}") from None
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise HostError(f"{program}(8) failed: {words}", hint="undo what was made: mayfly network cleanup N")
    return done.stdout
