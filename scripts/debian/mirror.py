"""Where Debian's packages of another release than this machine's come from: the mirror of its own
apt.
"""

import subprocess
from pathlib import Path

SUITE = "trixie"
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's names of the architectures."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class MirrorError(Exception):
    """There is no mirror; the message says what to do."""


def mirror() -> str:
    """The Debian mirror that this machine's own apt uses."""
    command = ("apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)", "Created-By: Packages")
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for line in lines:
        origin, component, release, uri = line.split(" ", 3)
        if origin == "Debian" and component == "main" and not release.endswith(("-security", "-updates", "-backports")):
            return uri
    raise MirrorError("apt here has no Debian main archive configured; run apt-get update, or look at /etc/apt/sources.list")
