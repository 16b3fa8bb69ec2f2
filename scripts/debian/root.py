"""Small Debian roots, for this machine's architecture or another: packages of SUITE that are only
unpacked, none of their scripts run.

That needs no root, no emulation, and nothing of the machine changes.
"""

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scripts.debian.mirror import KEYRING, SUITE, MirrorError, mirror

LIBRARIES = f"usr/lib/{platform.machine()}-linux-gnu"
ESSENTIAL = ("base-files", "base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "libc-bin", "sed", "util-linux")
"""What every root has that programs run in."""
STATUS = """
for package in "$1"/var/cache/apt/archives/*.deb; do
    dpkg-deb -f "$package"
    printf 'Status: install ok installed\\n\\n'
done >"$1/var/lib/dpkg/status"
"""
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "usr/bin/sh": "dash"}
"""What the essential packages' scripts would have made."""


class HostFilesError(Exception):
    """Something that the emulated host needs cannot be had; the message says what to do."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostFilesError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def unpack(target: Path, packages: Sequence[str], architectures: str = "", parts: Sequence[str] = (".",), suite: str = SUITE) -> None:
    """Unpack packages, and all that they depend on, into the new folder `target`.

    `architectures` are Debian's (default: this machine's), the packages' own first; `parts` are the
    files and folders that are wanted."""
    try:
        source = mirror()
    except MirrorError as error:
        raise HostFilesError(str(error)) from error
    archive, hook = target.with_suffix(".tar"), target.with_suffix(".hook")
    hook.write_text(f"#!/bin/sh\nset -eu\n{STATUS}")
    what = ["--quiet", "--variant=extract", f"--include={','.join(packages)}", '--aptopt=APT::Install-Recommends "false"']
    what.append(f'--extract-hook=sh {hook} "$1"')
    if architectures:
        what.append(f"--architectures={architectures}")
    run("mmdebstrap", *what, f"--keyring={KEYRING}", suite, archive, source)
    target.mkdir()
    run("tar", "-xf", archive, "-C", target, "--no-same-owner", "--exclude=./dev/*", *parts)
    archive.unlink()
    hook.unlink()


def finish(tree: Path) -> None:
    """Do for a root with ESSENTIAL in it what those packages' own scripts would have done, as far
    as programs need it.
    """
    for name in ("passwd", "group"):
        shutil.copyfile(tree / f"usr/share/base-passwd/{name}.master", tree / "etc" / name)
    for name, link in LINKS.items():
        if not (tree / name).is_symlink():
            (tree / name).symlink_to(link)
