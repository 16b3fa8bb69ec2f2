"""What the emulated KVM host boots from, made on first use and kept in
$XDG_CACHE_HOME/mayfly/kvm-host.

qemu-system-*-SUITE/      QEMU of a newer Debian than this machine's, with the libraries that it
needs
KERNEL-VERSION/vmlinux    of Debian's package, unpacked, never installed
KERNEL-VERSION/modules    cpio: /init's tools and the few modules it loads, in order
tools-HASH.ext4           the Python libraries in use, read-only: over 9p, imports take seconds
state-NUMBER.ext4         a disk for images, snapshots and caches; it stays. One for each emulated
host that may run at a time root-ARCH-*               what a host of another architecture than this
machine's has in their place; see foreign.py"""

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import lzma
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mayfly.imagegen.rootfs.cpio import header
from scripts.debian.mirror import SUITE
from scripts.debian.root import LIBRARIES, HostFilesError, run, unpack

QEMU_SINCE = 10
"""QEMU 7.2, of Debian 12, runs machines in its emulated KVM, but a host with two of them at once
dies now and then.
"""
KERNELS = ("linux-image-6.12-amd64", "linux-image-amd64")
"""The first that Debian has: 12 has the newer one as a security update, 13 by the usual name."""
STATE_SIZE = "24G"
STATE_DISKS = 2
TOOL_DISKS = 3  # kept: several checkouts, each with an environment of its own, may take turns
MODULES = (
    # module, options; in an order that meets needs which no module declares (ext4's checksums)
    ("virtio_pci", ""),
    ("virtio_console", ""),
    ("virtio_blk", ""),
    ("virtio_rng", ""),
    ("virtio_net", ""),
    ("9pnet_virtio", ""),
    ("9p", ""),
    ("crc32c_generic", ""),
    ("ext4", ""),
    ("tun", ""),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """How hosts of the architectures differ.

    Attributes:
        qemu: the emulator's program.
        package: Debian's, which has it.
        machine: the emulator's options for a machine whose processor has hardware virtualisation.
        console: the kernel's name for its serial port.
        modules: as MODULES.
    """

    qemu: str
    package: str
    machine: tuple[str, ...]
    console: str
    modules: tuple[tuple[str, str], ...]

    @property
    def recipe(self) -> str:
        """Names what the kernel's folder is made of."""
        return hashlib.sha256(repr((KERNELS, self.modules)).encode()).hexdigest()[:8]


HOSTS = {
    "x86_64": Host(
        qemu="qemu-system-x86_64",
        package="qemu-system-x86",
        # ERMS: an emulated `rep movsb` moves byte by byte; without the bit Linux copies and clears
        # memory by words, ten times as fast.
        machine=("-machine", "q35,accel=tcg", "-cpu", "max,erms=off,fsrm=off,la57=off,vgif=off"),
        console="ttyS0",
        modules=(*MODULES, ("kvm-amd", "nested=0")),
    ),
    "aarch64": Host(
        qemu="qemu-system-aarch64",
        package="qemu-system-arm",
        # Signing pointers as the architecture describes it takes most of an emulator's time; what
        # else is off costs time too.
        machine=(
            *("-machine", "virt,accel=tcg,virtualization=on,gic-version=3"),
            *("-cpu", "max,pauth-impdef=on,sve=off,sme=off,lpa2=off"),
        ),
        console="ttyAMA0",
        modules=(*MODULES, ("overlay", "")),
    ),
}
SIGNED = b"~Module signature appended~\n"
LEFT_OUT = {"site-packages", "dist-packages", "test", "idlelib", "ensurepip"}


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A newc archive of (path, mode with file type, content). The kernel takes several in a row."""
    archive = bytearray()
    for number, (path, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        archive += header(ino=number, mode=mode, uid=0, gid=0, nlink=1, size=len(content), name=path.encode()) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def qemu(cache: Path, host: Host) -> list[str]:
    """The emulator's command: this machine's own where it is new enough, else a newer Debian's, run
    with its own libraries.
    """
    if shutil.which(host.qemu):
        version = re.search(r"version (\d+)", run(host.qemu, "--version"))
        if version and int(version[1]) >= QEMU_SINCE:
            return [host.qemu]
    root = cache / f"{host.package}-{SUITE}"
    if not root.exists():
        print(f"with-kvm: fetching QEMU of Debian {SUITE} for the emulated host (once)", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            unpack(Path(work) / "root", [host.package])
            (Path(work) / "root").rename(root)
    libraries = root / LIBRARIES
    loader = [str(next(libraries.glob("ld-linux-*"))), "--library-path", str(libraries), str(root / f"usr/bin/{host.qemu}")]
    return [*loader, "-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")]


def kernel(cache: Path, host: Host) -> tuple[Path, Path]:
    """Kernel and modules archive, from the newest folder that the cache has, else from Debian's
    repository.
    """
    kept = sorted(cache.glob(f"*.{host.recipe}/modules"), key=lambda path: path.stat().st_mtime)
    if not kept:
        kept = [_fetch_kernel(cache, host)]
    return kept[-1].with_name("vmlinux"), kept[-1]


def _fetch_kernel(cache: Path, host: Host) -> Path:
    packages = [
        subprocess.run(["apt-cache", "show", "--no-all-versions", name], capture_output=True, text=True, check=False).stdout
        for name in KERNELS
    ]
    depends = re.search(r"^Depends: (linux-image-[^ ,]+)", "".join(packages), re.MULTILINE)
    if not depends:
        raise HostFilesError(f"Debian's {' and '.join(KERNELS)} cannot be found; run 'apt-get update'")
    print(f"with-kvm: fetching {depends[1]} for the emulated host (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        work = Path(folder)
        run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", depends[1], cwd=work)
        run("dpkg-deb", "-x", next(work.glob("*.deb")), work / "root")
        version = depends[1].removeprefix("linux-image-")
        result = work / "result"
        result.mkdir()
        (result / "vmlinux").write_bytes(unpacked_kernel((work / f"root/boot/vmlinuz-{version}").read_bytes()))
        tree = next(work.glob(f"root/**/lib/modules/{version}"))
        busybox = shutil.which("busybox")
        if not busybox:
            raise HostFilesError("busybox is missing")
        (result / "modules").write_bytes(modules_archive(tree, host.modules, Path(busybox)))
        result.rename(cache / f"{version}.{host.recipe}")
    return cache / f"{version}.{host.recipe}/modules"


def unpacked_kernel(image: bytes) -> bytes:
    """The ELF file inside a bzImage (Linux Documentation/arch/x86/boot.rst); the image itself where
    its compression is an unusual one.
    """
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length - 4]  # behind it is its unpacked size
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd") and shutil.which("zstd"):
        return subprocess.run(["zstd", "-dc"], input=payload, capture_output=True, check=True).stdout
    return image


def unsigned(module: bytes) -> bytes:
    """A kernel module without the signature at its end: checking it takes longer than the
    loading.
    """
    body = module.removesuffix(SIGNED)
    return module if body is module else body[: -12 - int.from_bytes(body[-4:], "big")]


def modules_archive(tree: Path, modules: Sequence[tuple[str, str]], busybox: Path) -> bytes:
    """A cpio with busybox, `modules` behind those that they need, and /modules/order for /init.

    modprobe --show-depends wants a modules.dep, which depmod makes of all 4,000 modules. These few
    say themselves what they need.
    """
    files = {re.sub(r"\.ko(\.xz)?$", "", path.name).replace("-", "_"): path for path in tree.rglob("*.ko*")}
    builtin = {Path(line).stem.replace("-", "_") for line in (tree / "modules.builtin").read_text().split()}
    options = {name.replace("-", "_"): words for name, words in modules}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name in builtin:
            return
        if name not in files:
            raise HostFilesError(f"{tree.name} has no module {name}")
        data = files[name].read_bytes()
        data = lzma.decompress(data) if files[name].suffix == ".xz" else data
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends[1].decode().split(",") if depends else ():
            if other:
                load(other.replace("-", "_"))
        loaded[name] = unsigned(data)

    for name in options:
        load(name)
    order = "".join(f"{name} {options.get(name, '')}\n" for name in loaded)
    folders = [(name, 0o040755, b"") for name in ("bin", "modules", "dev")]
    files_in = [("bin/busybox", 0o100755, busybox.read_bytes()), ("modules/order", 0o100644, order.encode())]
    return cpio([*folders, *files_in, *((f"modules/{name}", 0o100644, data) for name, data in loaded.items())])


@contextlib.contextmanager
def preparing(cache: Path) -> Iterator[None]:
    """Only one process at a time makes what is kept here."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def take_state_disk(cache: Path, arch: str) -> tuple[Path, int]:
    """A state disk that no other emulated host uses, made on first use and checked on each; held as
    long as the descriptor is open.
    """
    kind = "" if arch == platform.machine() else f"{arch}-"
    disks = [cache / f"{kind}state-{number}.ext4" for number in range(1, STATE_DISKS + 1)]
    locks = [os.open(disk.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for disk in disks]
    waited = False
    while (held := next((number for number, lock in enumerate(locks) if _flock(lock)), -1)) < 0:
        if not waited:
            print(f"with-kvm: {STATE_DISKS} emulated hosts run already; waiting until one ends", file=sys.stderr)
        waited = True
        time.sleep(0.5)  # no call waits for either of two locks
    for number, lock in enumerate(locks):
        if number != held:
            os.close(lock)
    _make_state_disk(disks[held])
    return disks[held], locks[held]


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_state_disk(disk: Path) -> None:
    if not disk.exists():
        new = disk.with_suffix(".new")
        new.unlink(missing_ok=True)
        run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0", new, STATE_SIZE)
        new.rename(disk)
    check = subprocess.run(["e2fsck", "-p", disk], capture_output=True, text=True, check=False)
    if check.returncode >= 4:
        raise HostFilesError(f"{disk} is damaged; what it holds can be made again, so remove it ({check.stdout.strip()})")


def python_folders(python: Path) -> list[Path]:
    """The folders from which this Python imports: its own library and the environment's
    packages.
    """
    query = "import sysconfig; p = sysconfig.get_paths(); print(p['stdlib']); print(p['purelib'])"
    return [Path(line) for line in run(python, "-c", query).split("\n") if line]


def tool_disk(cache: Path, folders: Sequence[Path]) -> Path:
    """A disk with copies of `folders`, as /0, /1, …; made again when a file in them has changed."""
    digest = hashlib.sha256()
    for folder in folders:
        for path, size, modified in _files(folder):
            digest.update(f"{path}\0{size}\0{modified}\n".encode("utf-8", "surrogateescape"))
    disk = cache / f"tools-{digest.hexdigest()[:16]}.ext4"
    if disk.exists():
        return disk
    print("with-kvm: putting the Python libraries on a disk for the emulated host (when they changed)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        tree, new = Path(work) / "tree", Path(work) / "disk"
        tree.mkdir()
        for number, folder in enumerate(folders):
            shutil.copytree(folder, tree / str(number), symlinks=True, ignore=_left_out, copy_function=_link_or_copy)
        entries = sum(len(names) + len(files) for _, names, files in os.walk(tree))
        size = sum(path.lstat().st_blocks * 512 for path in tree.rglob("*"))
        run(
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-O",
            "^has_journal",
            "-m",
            "0",
            "-N",
            str(entries + 100),
            "-d",
            tree,
            new,
            f"{size * 115 // 100 // 1024 + 8192}k",
        )
        disks = sorted(cache.glob("tools-*.ext4"), key=lambda path: path.stat().st_mtime)
        for old in disks[: -(TOOL_DISKS - 1)]:
            old.unlink()
        new.rename(disk)
    return disk


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Of Python's own library: its tests, and packages that do not belong to the environment."""
    return LEFT_OUT.intersection(names) if "os.py" in names else set()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of each file in `folder`, sorted. Compiled Python is left out: it follows
    from the rest.
    """
    for top, names, files in os.walk(folder):
        names[:] = sorted(set(names) - _left_out(top, names + files))
        for name in sorted(files):
            if not name.endswith(".pyc"):
                path = os.path.join(top, name)  # noqa: PTH118 (thousands of them: Path is five times slower)
                status = os.lstat(path)
                yield path, status.st_size, status.st_mtime_ns
