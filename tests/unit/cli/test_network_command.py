"""`mayfly network`, in a network namespace."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from mayfly.cli import network
from mayfly.errors import HostError
from mayfly.host import own_addresses
from mayfly.vmm.network.tap import Tap
from tests.kit import net_kit
from tests.kit.net_kit import GUEST_MAC

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces with interfaces")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with net_kit.namespace():
        yield


def call(*arguments: str) -> int:
    """The exit status of `mayfly network ARGUMENTS`, which says what went wrong."""
    command = [sys.executable, "-m", "mayfly.cli.main", "network", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode


def interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex() if name.startswith("mayfly"))


def test_makes_a_bridge_and_taps_that_machines_can_use_and_removes_them() -> None:
    assert call("setup", "2") == 0
    assert interfaces() == ["mayfly", "mayfly0", "mayfly1"]
    assert {"10.87.0.1", "fd6d:6179:666c:79::1"} <= own_addresses.addresses()
    details = subprocess.run(["ip", "-d", "link", "show", "mayfly1"], capture_output=True, text=True, check=True).stdout
    assert "master mayfly" in details
    assert "isolated on" in details
    Tap("mayfly0", [GUEST_MAC]).close()
    assert call("cleanup", "2") == 0
    assert interfaces() == []


def test_each_does_nothing_twice_and_what_is_in_use_stays() -> None:
    for count in ("1", "1", "3"):
        assert call("setup", count) == 0
    assert interfaces() == ["mayfly", "mayfly0", "mayfly1", "mayfly2"]
    assert call("cleanup", "2") == 0
    assert interfaces() == ["mayfly", "mayfly2"]
    for _ in range(2):
        assert call("cleanup", "3") == 0
    assert interfaces() == []


@pytest.mark.parametrize("arguments", [[], ["0"], ["x"], ["1", "root"], ["10000"]])
def test_wrong_use_makes_nothing(arguments: list[str]) -> None:
    assert call("setup", *arguments) == 2
    assert interfaces() == []


def test_an_unknown_user_is_an_error_before_anything_is_made() -> None:
    assert call("setup", "1", "--user", "no-such-user") == 1
    assert interfaces() == []


def test_the_taps_belong_to_the_given_user() -> None:
    assert call("setup", "1", "--user", "nobody") == 0
    details = subprocess.run(["ip", "-d", "link", "show", "mayfly0"], capture_output=True, text=True, check=True).stdout
    assert "user nobody" in details


def test_others_than_root_are_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    error = CliRunner().invoke(network.cli, ["setup", "1"]).exception
    assert isinstance(error, HostError)
    assert "sudo" in error.hint
    assert interfaces() == []


BURST = 5
needs_nft = pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")


def arrived(tap: str, sent: int, payload: bytes = b"") -> int:
    """How many of so many broadcasts of a guest reach the bridge."""
    frame = net_kit.ethernet(0x88B5, payload, destination=net_kit.BROADCAST)  # a type for experiments (IEEE 802)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as bridge:
        bridge.bind(("mayfly", 0x88B5))
        backend = Tap(tap, [GUEST_MAC])
        net_kit.wait_until_up(tap)
        for _ in range(sent):
            backend.announce(frame)
        backend.close()
        bridge.setblocking(False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while bridge.recv(1 << 16):
                count += 1
        return count


@needs_nft
def test_what_is_beyond_a_limit_is_dropped() -> None:
    assert call("setup", "2") == 0
    assert arrived("mayfly0", 200) == 200
    assert call("setup", "2", "--packets", "50") == 0
    assert BURST <= arrived("mayfly0", 200) < 200
    assert call("setup", "2", "--rate", "1M") == 0
    assert arrived("mayfly0", 50) == 50
    assert 50 <= arrived("mayfly1", 1000, bytes(1400)) < 1000
    assert call("cleanup", "2") == 0
    assert "mayfly_limits" not in subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


@needs_nft
def test_connections_are_counted_by_address() -> None:
    assert call("setup", "1", "--connections", "100") == 0
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    assert "ip saddr ct count over 100" in rules
    assert "ip6 saddr ct count over 100" in rules
    assert call("setup", "1", "--connections", "7") == 0
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    assert rules.count("ct count over 7") == 2
    assert "100" not in rules
