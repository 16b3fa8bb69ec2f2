"""scripts/tap-setup and scripts/tap-cleanup, in a network namespace."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.vmm.network import own_addresses
from mayfly.vmm.network.tap import Tap
from tests.kit import net_kit
from tests.kit.net_kit import GUEST_MAC

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces with interfaces")
SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with net_kit.namespace():
        yield


def call(script: str, *arguments: str) -> int:
    return subprocess.run([SCRIPTS / script, *arguments], capture_output=True, check=False).returncode


def interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex() if name.startswith("mayfly"))


def test_makes_a_bridge_and_taps_that_machines_can_use_and_removes_them() -> None:
    assert call("tap-setup", "2") == 0
    assert interfaces() == ["mayfly", "mayfly0", "mayfly1"]
    assert {"10.87.0.1", "fd6d:6179:666c:79::1"} <= own_addresses.addresses()
    details = subprocess.run(["ip", "-d", "link", "show", "mayfly1"], capture_output=True, text=True, check=True).stdout
    assert "master mayfly" in details
    assert "isolated on" in details
    Tap("mayfly0", [GUEST_MAC]).close()
    assert call("tap-cleanup", "2") == 0
    assert interfaces() == []


def test_each_does_nothing_twice_and_what_is_in_use_stays() -> None:
    for count in ("1", "1", "3"):
        assert call("tap-setup", count) == 0
    assert interfaces() == ["mayfly", "mayfly0", "mayfly1", "mayfly2"]
    assert call("tap-cleanup", "2") == 0
    assert interfaces() == ["mayfly", "mayfly2"]
    for _ in range(2):
        assert call("tap-cleanup", "3") == 0
    assert interfaces() == []


@pytest.mark.parametrize("arguments", [[], ["0"], ["x"], ["1", "root", "more"], ["-1"]])
def test_wrong_use_makes_nothing(arguments: list[str]) -> None:
    assert call("tap-setup", *arguments) == 2
    assert interfaces() == []


def test_an_unknown_owner_is_an_error() -> None:
    assert call("tap-setup", "1", "no-such-user") != 0
