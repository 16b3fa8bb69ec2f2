"""`mayfly boot` with Linux kernels: ours in both formats, on one and two vCPUs, and Debian's own of the cloud flavour."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from imagegen.cpio import header
from mayfly import paths

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

DEADLINE_S = 300
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc
/bin/busybox mount -t proc proc /proc
echo "READY with $(/bin/busybox nproc)"
/bin/busybox grep -c IO-APIC /proc/interrupts
/bin/busybox reboot -f
"""


def initramfs(folder: Path) -> Path:
    """A root of busybox and an init which says READY and resets the machine."""
    archive = bytearray()
    entries = [("bin", stat.S_IFDIR | 0o755, b""), ("bin/busybox", stat.S_IFREG | 0o755, Path("/bin/busybox").read_bytes())]
    entries += [("init", stat.S_IFREG | 0o755, INIT.encode()), ("TRAILER!!!", 0, b"")]
    for number, (name, mode, data) in enumerate(entries, 1):
        archive += header(ino=number, mode=mode, uid=0, gid=0, nlink=1, size=len(data), name=name.encode()) + data
        archive += bytes(-len(archive) % 4)
    path = folder / "initramfs"
    path.write_bytes(archive)
    return path


def boot(folder: Path, kernel: str, *options: str) -> "subprocess.CompletedProcess[str]":
    path = paths.data_dir() / "kernel" / kernel
    assert path.exists(), f"{path} is missing: make kernel; scripts/debian-kernel"
    command = [sys.executable, "-m", "api.cli", "boot", "--kernel", str(path), "--initrd", str(initramfs(folder)), "--cmdline", "quiet"]
    return subprocess.run(
        [*command, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False, errors="replace"
    )


@pytest.mark.parametrize(("kernel", "cpus"), [("x86_64/vmlinux", 1), ("x86_64/vmlinux", 2), ("x86_64/bzImage", 1)])
def test_our_kernel_boots(tmp_path: Path, kernel: str, cpus: int) -> None:
    done = boot(tmp_path, kernel, "--cpus", str(cpus), "--memory", "128M")
    assert (done.returncode, f"READY with {cpus}" in done.stdout) == (0, True), done.stdout[-2000:] + done.stderr


def test_debians_kernel_boots(tmp_path: Path) -> None:
    done = boot(tmp_path, "debian-cloud/vmlinuz", "--memory", "256M")
    assert (done.returncode, "READY with 1" in done.stdout) == (0, True), done.stdout[-2000:] + done.stderr
