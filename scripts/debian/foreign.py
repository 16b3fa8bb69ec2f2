"""What scripts of a language's packages do, for a root of another architecture's packages that were
only unpacked: by its own programs, in an emulator of its processor.
"""

import os
import shutil
import subprocess
from pathlib import Path

from scripts.debian.qemu_user import emulator
from scripts.debian.root import HostFilesError

EDITION = 1
"""Raise it when `configure` does something else."""
CERTIFICATES = "usr/share/ca-certificates-java/ca-certificates-java.jar"
LINKS = {"cc": "gcc", "c++": "g++", "java": "../lib/jvm/default-java/bin/java", "javac": "../lib/jvm/default-java/bin/javac"}
"""Alternatives in /usr/bin, where the root has what they stand for."""


def link(tree: Path) -> None:
    for name, target in LINKS.items():
        if (tree / "usr/bin" / target).exists():
            (tree / "usr/bin" / name).symlink_to(target)


def configure(tree: Path, arch: str) -> None:
    """Compile Python's library, which a run cannot keep; give Java the certificates of authorities.

    Raises:
        HostFilesError: a program of the root failed.
    """
    link(tree)
    for library in sorted(tree.glob("usr/lib/python3.*")):
        sources = sorted(f"/{path.relative_to(tree)}" for path in tree.glob("usr/lib/python3*/**/*.py"))
        run(tree, arch, f"/usr/bin/{library.name}", "-E", "-S", f"/usr/lib/{library.name}/py_compile.py", *sources)
    if (tree / CERTIFICATES).exists():
        (tree / "etc/ssl/certs/java").mkdir(parents=True, exist_ok=True)
        names = sorted(path.relative_to(tree) for path in tree.glob("usr/share/ca-certificates/mozilla/*.crt"))
        lines = "".join(f"+/{name}\n" for name in names)
        run(tree, arch, "/usr/bin/java", "-jar", f"/{CERTIFICATES}", "-storepass", "changeit", told=lines)


def run(tree: Path, arch: str, *command: str, told: str = "") -> None:
    """Run a program of the root, which is to start no others; `told` is its standard input."""
    inside = tree / "emulator"
    shutil.copy(emulator(arch), inside)
    as_root = () if os.geteuid() == 0 else ("unshare", "--map-root-user")
    # Python's files have their sources' hashes then, not their times, which a layer does not keep.
    environment = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": "0"}
    line = [*as_root, "chroot", tree, "/emulator", *command]
    try:
        done = subprocess.run(line, env=environment, input=told, capture_output=True, text=True, check=False)
    finally:
        inside.unlink()
    if done.returncode:
        raise HostFilesError(f"{command[0]} of {arch} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
