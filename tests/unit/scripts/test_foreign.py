"""Roots of another architecture's packages: what is done in the place of the packages' scripts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.debian import foreign
from scripts.debian.root import HostFilesError


def test_alternatives_are_there_where_what_they_stand_for_is(tmp_path: Path) -> None:
    programs = tmp_path / "usr/bin"
    programs.mkdir(parents=True)
    (programs / "gcc").touch()
    java = tmp_path / "usr/lib/jvm/default-java/bin/java"
    java.parent.mkdir(parents=True)
    java.touch()
    foreign.configure(tmp_path, "aarch64")
    assert {path.name for path in programs.iterdir()} == {"gcc", "cc", "java"}
    assert [(programs / name).resolve().relative_to(tmp_path) for name in ("cc", "java")] == [
        Path("usr/bin/gcc"),
        Path("usr/lib/jvm/default-java/bin/java"),
    ]


@pytest.mark.skipif(
    os.geteuid() != 0 and subprocess.run(["unshare", "--map-root-user", "true"], check=False).returncode != 0,
    reason="it takes a root, or user namespaces",
)
def test_a_program_that_fails_is_said_and_leaves_no_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the emulator there is a program that does not know this one."""
    busybox = shutil.which("busybox")
    assert busybox
    monkeypatch.setattr(foreign, "emulator", lambda _: Path(busybox))
    for folder in ("bin", "lib/python3.13"):
        (tmp_path / "usr" / folder).mkdir(parents=True)
    with pytest.raises(HostFilesError, match=r"/usr/bin/python3\.13 of aarch64 failed: emulator: applet not found"):
        foreign.configure(tmp_path, "aarch64")
    assert [path.name for path in tmp_path.iterdir()] == ["usr"]
