"""What `make deb` packs: the unit's hardening, the manual pages, the package in a clean root."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from mayfly.cli.main import cli
from mayfly.host.config import FIELDS
from scripts import man
from scripts.debian.mirror import KEYRING, MirrorError, mirror
from tests.kit.api_fakes import ROOT

MOST_EXPOSED = 20  # Tenths, as --threshold has them
PACKAGES = sorted((ROOT / "build" / "deb").glob("*.deb"))
CHECK = r"""
set -eux
root=$1
chroot "$root" apt-get install -y -q --no-install-recommends /tmp/mayfly.deb
chroot "$root" getent passwd mayfly >/dev/null
chroot "$root" runuser -u mayfly -- env HOME=/tmp mayfly --version
chroot "$root" runuser -u mayfly -- env HOME=/tmp mayfly serve --help >/dev/null
chroot "$root" runuser -u mayfly -- env HOME=/tmp mayfly doctor | grep -q '^problem  kvm'
test -e "$root/usr/share/man/man1/mayfly.1.gz"
chroot "$root" apt-get purge -y -q mayfly
! test -e "$root/usr/lib/mayfly"
! test -e "$root/usr/bin/mayfly"
"""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_service_is_exposed_little() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED}", "packaging/mayfly.service"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", man.PAGES)
def test_a_manual_page_is_sound(page: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    text = man.PAGES[page]()
    done = subprocess.run(["groff", "-k", "-man", "-ww", "-z"], input=text, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_the_pages_name_every_command_and_key() -> None:
    commands = [path for path, _, _ in man.commands(cli, click.Context(cli, info_name="mayfly"), "mayfly")]
    said = man.mayfly_1().replace("\\-", "-")
    assert [path for path in commands if f".SS {path}" not in said] == []
    keys = re.findall(r"^\.B (\w+)$", man.mayfly_yaml_5(), re.MULTILINE)
    assert keys == list(FIELDS)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not PACKAGES, reason="no package was made: make deb")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a root for packages")
def test_the_package_is_installed_and_removed_in_a_clean_root(tmp_path: Path) -> None:
    release = platform.freedesktop_os_release()
    try:
        source = mirror()
    except MirrorError as error:
        pytest.skip(str(error))
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\n{CHECK}")
    hook.chmod(0o755)
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--keyring={KEYRING}", f"--customize-hook=copy-in {tmp_path}/mayfly.deb /tmp"]
    shutil.copyfile(PACKAGES[-1], tmp_path / "mayfly.deb")
    command += [f'--customize-hook={hook} "$1"', release["VERSION_CODENAME"], "/dev/null", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
