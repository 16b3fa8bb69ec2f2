"""`mayfly boot` with Linux kernels: ours in both formats, on one and two vCPUs, and Debian's own of
the cloud flavour.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from mayfly import paths
from tests.kit import toy
from tests.kit.scale import FULL

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

DEADLINE_S = 300
INIT = """
echo "READY with $(/bin/busybox nproc)"
/bin/busybox reboot -f
"""


def boot(folder: Path, kernel: str, *options: str) -> "subprocess.CompletedProcess[str]":
    path = paths.data_dir() / "kernel" / kernel
    assert path.exists(), f"{path} is missing: mayfly kernel build; scripts/debian/cloud-kernel"
    initramfs = folder / "initramfs"
    initramfs.write_bytes(toy.shell_root(INIT))
    command = [sys.executable, "-m", "mayfly.cli.main", "boot", "--kernel", str(path), "--initrd", str(initramfs), "--cmdline", "quiet"]
    return subprocess.run(
        [*command, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False, errors="replace"
    )


KERNELS = {"x86_64": [("vmlinux", 1), ("vmlinux", 2), ("bzImage", 1)], "aarch64": [("Image", 1), ("Image", 2)]}


@pytest.mark.aarch64
@pytest.mark.parametrize(("kernel", "cpus"), KERNELS[toy.MACHINE])
def test_our_kernel_boots(tmp_path: Path, kernel: str, cpus: int) -> None:
    done = boot(tmp_path, f"{toy.MACHINE}/{kernel}", "--cpus", str(cpus), "--memory", "128M")
    assert (done.returncode, f"READY with {cpus}" in done.stdout) == (0, True), done.stdout[-2000:] + done.stderr


if FULL and toy.MACHINE == "x86_64":

    def test_debians_kernel_boots(tmp_path: Path) -> None:
        done = boot(tmp_path, "debian-cloud/vmlinuz", "--memory", "256M")
        assert (done.returncode, "READY with 1" in done.stdout) == (0, True), done.stdout[-2000:] + done.stderr
