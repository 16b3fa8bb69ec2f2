"""What every emulated Intel host boots, made on first use and kept by its recipe's hash:

$XDG_CACHE_HOME/mayfly/intel-check/HASH/
    bochs      the emulator, of SUITE's source package and bochs.patch
    bios, vga  its firmware
    vmlinuz    SUITE's kernel of the cloud flavour
    modules    cpio: busybox, the modules and their order, as hostfiles.modules_archive makes it
"""

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from scripts.debian.mirror import SUITE
from scripts.debian.root import HostFilesError, run
from scripts.intel_check.archive import Archive
from scripts.kvmhost.hostfiles import modules_archive, preparing

PATCH = Path(__file__).with_name("bochs.patch")
CONFIGURE = (
    *("--with-nogui", "--disable-docbook", "--disable-cdrom", "--disable-readline", "--disable-xpm"),
    "--disable-configurable-msrs",
    *("--enable-cpu-level=6", "--enable-x86-64", "--enable-vmx=2", "--enable-memtype", "--enable-all-optimizations"),
    *("--enable-avx", "--enable-evex", "--enable-amx", "--enable-cet", "--enable-uintr", "--enable-protection-keys"),
)
FLAGS = "-O2 -pipe"
KERNEL = "linux-image-cloud-amd64"
MODULES = (("kvm-intel", ""), ("tun", ""))
PROGRAMS = {"g++": "g++", "make": "make", "patch": "patch", "busybox": "busybox-static"}


def files(cache: Path) -> Path:
    """The folder described above.

    Raises:
        HostFilesError: something cannot be fetched or built; the message says what.
    """
    recipe = (SUITE, PATCH.read_bytes(), CONFIGURE, FLAGS, KERNEL, MODULES)
    folder = cache / hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    cache.mkdir(parents=True, exist_ok=True)
    with preparing(cache):
        if not folder.exists():
            _make(cache, folder)
    return folder


def _make(cache: Path, folder: Path) -> None:
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing:
        raise HostFilesError(f"run this as root, then again: apt-get install -y {' '.join(missing)}")
    with tempfile.TemporaryDirectory(dir=cache) as name:
        work = Path(name)
        result = work / "result"
        result.mkdir()
        archive = Archive(work)
        _fetch_kernel(archive, result)
        shutil.copyfile(archive.unpack("bochsbios") / "usr/share/bochs/BIOS-bochs-latest", result / "bios")
        shutil.copyfile(archive.unpack("vgabios") / "usr/share/vgabios/vgabios.bin", result / "vga")
        _build_bochs(archive.source("bochs"), work / "bochs-source", result)
        for old in cache.iterdir():
            if old.is_dir() and old != work:
                shutil.rmtree(old)
        result.rename(folder)


def _fetch_kernel(archive: Archive, result: Path) -> None:
    package = archive.dependency(KERNEL)
    version = package.removeprefix("linux-image-")
    root = archive.unpack(package)
    shutil.copyfile(root / f"boot/vmlinuz-{version}", result / "vmlinuz")
    tree = next(root.glob(f"**/lib/modules/{version}"))
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    (result / "modules").write_bytes(modules_archive(tree, MODULES, busybox))


def _build_bochs(tarball: Path, source: Path, result: Path) -> None:
    print("intel-check: building Bochs, 10 to 20 minutes (once)", file=sys.stderr, flush=True)
    source.mkdir()
    run("tar", "-xf", tarball, "-C", source, "--strip-components=1")
    run("patch", "-p1", "-i", PATCH, cwd=source)
    run("env", f"CFLAGS={FLAGS}", f"CXXFLAGS={FLAGS}", "./configure", *CONFIGURE, cwd=source)
    run("nice", "-n", "15", "make", f"-j{os.cpu_count() or 1}", cwd=source)
    run("strip", "-o", result / "bochs", source / "bochs")
