"""What keeps a machine from going on at another host is said, each difference by its name."""

from typing import Any

import pytest

from mayfly.schema import msgspec, replace
from mayfly.snapshots.moving import Offer, misfits
from mayfly.units import MIB
from mayfly.vmm import arch
from mayfly.vmm.arch.aarch64 import state as aarch64
from mayfly.vmm.arch.x86_64 import state as x86_64
from mayfly.vmm.config import Channel, DeviceKind, NetworkBackend
from mayfly.vmm.snapshot.files import Shape

MACHINE = Shape(memory=96 * MIB, cpus=1, channel=Channel.VIRTIO, devices=(DeviceKind.ENTROPY,), network=None)
HERE = Offer(
    mayfly="1",
    protocol=2,
    arch="x86_64",
    identity="same",
    kernel="sha256:one",
    image="sha256:two",
    language="rust",
    machine=MACHINE,
    layers=("sha256:base",),
)
BRAND = "80000002.0: 41 0 0 0"
LESS = f"{BRAND}, 1.0: a00f11 800 80202000 78bfbff, 7.0: 0 1800000 4 0"
MORE = "80000002.0: 42 0 0 0, 1.0: a00f12 800 82202000 78bfbff, 7.0: 0 1810020 4 0"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, []),
        ({"layers": ()}, []),
        ({"mayfly": "0"}, ["The Mayfly there is 0, here 1."]),
        ({"protocol": 3}, ["The protocol there is 3, here 2."]),
        ({"arch": "aarch64", "identity": "other"}, ["The architecture there is aarch64, here x86_64."]),
        (
            {"kernel": "sha256:x", "image": "sha256:y"},
            ["The kernel there is sha256:x, here sha256:one.", "The image of rust there is sha256:y, here sha256:two."],
        ),
        (
            {"machine": replace(MACHINE, memory=128 * MIB, cpus=2)},
            ["The machine's memory there is 128 MiB, here 96 MiB.", "The machine's cpus there is 2, here 1."],
        ),
        (
            {"machine": replace(MACHINE, devices=(), channel=Channel.SERIAL, network=(NetworkBackend.TAP, 1500))},
            [
                "The machine's channel there is serial, here virtio.",
                "The machine's devices there is none, here entropy.",
                "The machine's network there is tap, 1500, here none.",
            ],
        ),
    ],
)
def test_each_difference_is_said(changes: dict[str, Any], says: list[str]) -> None:
    offered = replace(HERE, **changes)
    assert misfits(offered, HERE) == says
    assert misfits(msgspec.json.decode(msgspec.json.encode(offered), type=Offer), HERE) == says, "as it travels"


def test_a_processor_is_said_by_what_the_arch_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arch.state, "difference", lambda theirs, ours: f"{theirs}-{ours}")
    assert misfits(replace(HERE, identity="other"), HERE) == ["What guests see of processor and KVM differs: other-same."]


def test_x86_features_are_named() -> None:
    assert x86_64.difference(LESS, MORE) == "A there, B here; only here: AES, AVX2, AVX512F; other numbers in CPUID: 0x1.0, 0x80000002.0"
    assert x86_64.difference(MORE, LESS).startswith("B there, A here; only there: AES, AVX2, AVX512F;")
    assert x86_64.difference(LESS, LESS) == ""


@pytest.mark.parametrize("garbage", ["", "x", "7.0: 1", "7.0: z z z z", "7.0: 0 0 0 0, ", "80000002.0: " + "f" * 99 + " 0 0 0"])
def test_an_identity_that_is_none_names_what_is_here(garbage: str) -> None:
    assert "only here: " in x86_64.difference(garbage, LESS)
    assert "only here: aes" in aarch64.difference(garbage, "Features\t: aes")


def test_arm_features_are_named() -> None:
    there = "Features\t: fp asimd aes, CPU implementer\t: 0x41, CPU part\t: 0xd08"
    here = "Features\t: fp asimd sve, CPU implementer\t: 0x41, CPU part\t: 0xd0c"
    assert aarch64.difference(there, here) == "CPU part: 0xd08 there, 0xd0c here; only there: aes; only here: sve"
    assert aarch64.difference(here, here) == ""
