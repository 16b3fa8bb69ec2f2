"""`mayfly serve --playground` with machines that are ordinary processes, for tests of the page and
for its pictures.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.images import manifest
from tests.kit.api_fakes import ROOT, install

BUILT = ROOT / "api/playground/static/page.js"
CHROMIUM = ("/usr/bin/chromium-headless-shell", "/usr/bin/chromium", "/usr/bin/google-chrome")
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/#key=\S+")


def why_no_browser() -> str:
    """Why the page cannot be tried here; empty if it can."""
    if not BUILT.exists():
        return "the page is not built: make web, which needs npm"
    if not find_chromium():
        return "no Chromium is installed: apt-get install chromium-headless-shell"
    return ""


def find_chromium() -> str:
    """The browser's program, or an empty text."""
    return next((path for path in CHROMIUM if os.access(path, os.X_OK)), "")


def install_languages(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Private XDG folders with three languages: Python, whose build step finds errors of syntax, a
    shell, and `said`, whose build fails and says what the source says.
    """
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    python = (sys.executable, "-u")
    build = manifest.LanguageStep(name="build", argv=(*python, "-m", "py_compile", "main.py"))
    run = manifest.LanguageStep(name="run", argv=(*python, "main.py", "{args}"), stdin=True)
    install("python", ".py", (build, run), version="3.13")
    install("shell", ".sh", (manifest.LanguageStep(name="run", argv=("sh", "main.sh", "{args}"), stdin=True),), version="1.0")
    said = manifest.LanguageStep(name="build", argv=("sh", "-c", "cat main.rs >&2; exit 1"))
    install("said", ".rs", (said, manifest.LanguageStep(name="run", argv=("true",))), version="1.0")


@contextlib.contextmanager
def serve_page(folder: Path, *flags: str) -> Iterator[str]:
    """The page's address with its key, while the server runs; XDG folders are as they are."""
    command = [sys.executable, str(ROOT / "tests/kit/fake_mayfly.py"), "-", "serve", "--playground", "--listen", "127.0.0.1:0"]
    command += ["--kernel", str(folder / "vmlinux"), "--time-factor", "1", "--cold", "--memory-budget", "1G", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr
    try:
        for line in server.stderr:
            if found := ADDRESS.search(line):
                break
        else:
            pytest.fail(f"the server ended with status {server.wait()}")
        yield found[0]
    finally:
        server.send_signal(signal.SIGINT)
        server.stderr.read()
        server.stderr.close()
        assert server.wait() == 0
