"""Packages of PyPI that benchmarks measure beside ours, each pinned by digest."""

import contextlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def wheel(package: str, *digests: str, python: str = "") -> Iterator[zipfile.ZipFile]:
    """The wheel of `package` (`name==version`) for this Python, or for the version `python`. It has
    one of these SHA-256 digests.

    Raises:
        SystemExit: it cannot be had.
    """
    with tempfile.TemporaryDirectory() as work:
        wanted = Path(work) / "wanted.txt"
        wanted.write_text(" ".join([package, *(f"--hash=sha256:{digest}" for digest in digests)]) + "\n")
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        command += ["--only-binary=:all:", *(["--python-version", python] if python else []), "-d", work, "-r", str(wanted)]
        if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False).returncode:
            raise SystemExit(f"bench: {package} cannot be fetched")
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as found:
            yield found
