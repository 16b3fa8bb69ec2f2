"""An emulated host of another architecture than this machine's: a small Debian root, and the
project's own parts for it.

Kept in $XDG_CACHE_HOME/mayfly/kvm-host/root-ARCH-HASH/, by the hash of all that it is made of:

root.ext4      Debian's packages, only unpacked, and in /usr/local the Python libraries in the
versions that this machine has
vmlinux        Debian's kernel
modules        cpio, as hostfiles.modules_archive makes it
include/       the headers that vmm/kvm is compiled against here
"""

import hashlib
import re
import shutil
import stat
import sys
import tempfile
import tomllib
from pathlib import Path

from scripts.debian import root as debianroot
from scripts.debian.mirror import DEBIAN, SUITE
from scripts.debian.root import ESSENTIAL, HostFilesError, finish, run, unpack
from scripts.kvmhost.hostfiles import Host, modules_archive

PACKAGES = (
    *(*ESSENTIAL, "busybox-static", "curl", "gcc", "iproute2", "libc6-dev", "libpython3-dev", "lz4"),
    *("passt", "procps", "python3", "socat"),
)
TESTS_NEED = ("hypothesis", "nats-py", "pip", "pytest", "pytest-timeout", "setuptools")
ROOTS = 2  # kept: several checkouts, each with a recipe of its own, may take turns
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_34")
LEFT_OUT = ("boot", "usr/lib/modules", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/zoneinfo")
OUR_PROGRAMS = {"mayfly": "main", "imagegen": "imagegen"}


def root(cache: Path, arch: str, host: Host, project: Path, python: Path) -> Path:
    """The folder described above, made first where there is none of this recipe."""
    needed = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"] + list(TESTS_NEED)
    constraints = project / "constraints.txt"
    texts = [Path(file).read_text() for file in (constraints, __file__, debianroot.__file__)]
    parts = (SUITE, host, needed, texts)
    folder = cache / f"root-{arch}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    if not shutil.which(f"{arch}-linux-gnu-gcc"):
        raise HostFilesError(f"{arch}-linux-gnu-gcc is missing; run 'make setup'")
    print(f"with-kvm: making a Debian {SUITE} for {arch}, a minute or two (when its recipe has changed)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        tree, result = Path(work) / "tree", Path(work) / "result"
        unpack(tree, [*PACKAGES, f"linux-image-{DEBIAN[arch]}"], DEBIAN[arch])
        result.mkdir()
        shutil.copytree(tree / "usr/include", result / "include", symlinks=True)
        shutil.copyfile(next((tree / "boot").glob("vmlinuz-*")), result / "vmlinux")
        modules = modules_archive(next((tree / "usr/lib/modules").iterdir()), host.modules, tree / "usr/bin/busybox")
        (result / "modules").write_bytes(modules)
        _finish(tree)
        _install_libraries(tree, arch, python, needed, constraints)
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", tree, result / "root.ext4", "1G")
        roots = sorted(cache.glob(f"root-{arch}-*"), key=lambda path: path.stat().st_mtime)
        for old in roots[: -(ROOTS - 1)]:
            shutil.rmtree(old)
        result.chmod(0o755)
        result.rename(folder)
    return folder


def _finish(tree: Path) -> None:
    """Take out what is not needed, and add our own programs."""
    finish(tree)
    for name in LEFT_OUT:
        shutil.rmtree(tree / name, ignore_errors=True)
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    programs = tree / "usr/local/bin"
    programs.mkdir(parents=True, exist_ok=True)
    (programs / "python").symlink_to("/usr/bin/python3")
    for name, function in OUR_PROGRAMS.items():
        program = programs / name
        program.write_text(f"#!/usr/bin/python3\nfrom mayfly.cli.main import {function}\n{function}()\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _python_version(folder: Path) -> str:
    return next(found[1] for path in folder.iterdir() if (found := re.fullmatch(r"python(3\.\d+)", path.name)))


def _install_libraries(tree: Path, arch: str, python: Path, needed: list[str], constraints: Path) -> None:
    version = _python_version(tree / "usr/lib")
    pip: list[str | Path] = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
    pip += ["--implementation=cp", f"--python-version={version}", *(f"--platform={name}_{arch}" for name in PLATFORMS)]
    run(*pip, "-c", constraints, "--target", tree / f"usr/local/lib/python{version}/dist-packages", *needed)


def compile_bindings(folder: Path, arch: str, project: Path, python: Path) -> None:
    """Compile the project's vmm/kvm for `arch` into its place, beside this machine's own."""
    version = _python_version(folder / "include")
    target = project / f"vmm/kvm/_kvm.cpython-{version.replace('.', '')}-{arch}-linux-gnu.so"
    sources = [project / "vmm/kvm/build_kvm.py", *sorted((project / "vmm/kvm/cdef").iterdir())]
    if target.exists() and target.stat().st_mtime > max(path.stat().st_mtime for path in [folder, *sources]):
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:
        run(python, sources[0], "--c", arch, f"{work}/_kvm.c")
        headers = (folder / "include" / name for name in (f"python{version}", ".", f"{arch}-linux-gnu"))
        flags = ("-O2", "-fPIC", "-shared", "-Werror=incompatible-pointer-types", *(f"-I{path}" for path in headers))
        run(f"{arch}-linux-gnu-gcc", *flags, "-o", f"{work}/_kvm.so", f"{work}/_kvm.c")
        Path(work, "_kvm.so").replace(target)
