"""`mayfly network`: make and remove the bridge and tap interfaces of machines with a network."""

import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from mayfly.errors import ConfigError, HostError

BRIDGE = "mayfly"
"""The gateway of all machines; tap interfaces are BRIDGE0, BRIDGE1, and so on."""
ADDRESSES = ("10.87.0.1/16", "fd6d:6179:666c:79::1/64 nodad")
"""Of the bridge. Without the search for duplicates the second is usable in its first second."""
MAX_TAPS = 9999

count_argument = click.argument("count", metavar="N", type=click.IntRange(1, MAX_TAPS))


@click.group()
def cli() -> None:
    """Make and remove the tap interfaces that give machines a network."""


@cli.command()
@count_argument
@click.option("--user", default="", help="who may open the taps; by default who calls sudo, else root")
def setup(count: int, user: str) -> None:
    r"""Make the bridge `mayfly` and N tap interfaces on it, mayfly0 and so on. Needs root.

    The bridge is the gateway of machines with a network. What exists already stays as it is.
    Machines reach the Internet only if this host forwards for them:

    \b
      sysctl net.ipv4.ip_forward=1
      nft add table ip mayfly
      nft 'add chain ip mayfly nat { type nat hook postrouting priority srcnat; }'
      nft add rule ip mayfly nat ip saddr 10.87.0.0/16 masquerade
    """
    user = user or os.environ.get("SUDO_USER", "root")
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"there is no user {user!r} on this host", hint="give --user an existing one") from None
    there = _interfaces()
    _ip([line for name in (BRIDGE, *_taps(count)) if name not in there for line in _making(name, user)])


@cli.command()
@count_argument
def cleanup(count: int) -> None:
    """Remove the first N tap interfaces, and the bridge when none is left on it. Needs root."""
    there = _interfaces()
    _ip([f"link delete dev {name}" for name in _taps(count) if name in there])
    if BRIDGE in there and not _run_ip("-o", "link", "show", "master", BRIDGE):
        _ip([f"link delete dev {BRIDGE}"])


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


def _ip(commands: Sequence[str]) -> None:
    """Run commands of ip(8) as root, the next one only when the last one has succeeded."""
    if not commands:
        return
    if os.geteuid() != 0:
        raise HostError("only root may change this host's network", hint=f"run it as root: sudo {Path(sys.argv[0]).absolute()} network …")
    _run_ip("-batch", "-", lines="".join(f"{command}\n" for command in commands))


def _run_ip(*arguments: str, lines: str = "") -> str:
    """What ip(8) printed."""
    try:
        done = subprocess.run(["ip", *arguments], input=lines, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise HostError("the program ip is not on this host", hint="apt-get install iproute2") from None
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise HostError(f"ip(8) failed: {words}", hint="undo what was made: mayfly network cleanup N")
    return done.stdout
