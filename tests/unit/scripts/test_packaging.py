"""What `make deb` packs: the unit's hardening, the manual pages, the package in a clean root."""

import json
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
CONTAINER = ROOT / "packaging" / "Containerfile"
CHECK = r"""
set -eux
root=$1
mayfly="unshare --net chroot $root runuser -u USER -- env HOME=/tmp ENVIRONMENT ENTRYPOINT"
chroot "$root" sh -exc 'RUN'
chroot "$root" getent passwd mayfly >/dev/null
for folder in /run/mayfly /var/lib/mayfly /var/cache/mayfly; do test "$(chroot "$root" stat -c %U:%a $folder)" = mayfly:700; done
$mayfly --version
$mayfly doctor | grep -q '^problem  kvm'
$mayfly key create someone
test -e "$root/var/lib/mayfly/keys.json"
$mayfly COMMAND --time-factor 1 2>"$root/tmp/said" &
server=$!
until grep listening "$root/tmp/said"; do kill -0 $server; sleep 0.1; done
kill $server
wait $server || true
test -e "$root/usr/share/man/man1/mayfly.1.gz"
chroot "$root" apt-get purge -y -q mayfly
! test -e "$root/usr/lib/mayfly"
! test -e "$root/usr/bin/mayfly"
"""


def container() -> dict[str, str]:
    """The container file's instructions; what an argument or a command is, without JSON's marks."""
    lines = [line for line in CONTAINER.read_text().splitlines() if not line.startswith("#")]
    steps = [line.split(" ", 1) for line in "\n".join(lines).replace("\\\n", "").splitlines() if line]
    assert len({name for name, _ in steps}) == len(steps)
    return {name: " ".join(json.loads(text)) if text.startswith("[") else text for name, text in steps}


def test_the_container_is_as_the_service() -> None:
    found, unit = container(), (ROOT / "packaging" / "mayfly.service").read_text()
    assert f"Environment={found['ENV']}\n" in unit
    assert f"User={found['USER']}\n" in unit
    assert f"ExecStart=/usr/bin/{found['ENTRYPOINT']} serve\n" in unit
    name, *arguments = found["CMD"].split()
    cli.commands[name].make_context(name, arguments)
    assert f":{found['EXPOSE']}" in found["CMD"]


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
def test_the_containers_steps_and_the_package_in_a_clean_root(tmp_path: Path) -> None:
    release = platform.freedesktop_os_release()
    try:
        source = mirror()
    except MirrorError as error:
        pytest.skip(str(error))
    steps = container()
    script = CHECK
    for word, name in {"RUN": "RUN", "USER": "USER", "ENVIRONMENT": "ENV", "ENTRYPOINT": "ENTRYPOINT", "COMMAND": "CMD"}.items():
        script = script.replace(word, steps[name])
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\n{script}")
    hook.chmod(0o755)
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--keyring={KEYRING}", f"--customize-hook=copy-in {tmp_path}/mayfly_0.deb /tmp"]
    shutil.copyfile(PACKAGES[-1], tmp_path / "mayfly_0.deb")
    command += [f'--customize-hook={hook} "$1"', release["VERSION_CODENAME"], "/dev/null", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
