"""`mayfly kernel`: what one host pushes another one pulls, byte for byte, and nothing else."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.cli import kernel
from mayfly.errors import MayflyError, RegistryError
from mayfly.imagegen.build import source_of
from mayfly.imagegen.oci.documents import MANIFEST_TYPE, Source
from mayfly.imagegen.oci.reference import parse_reference
from mayfly.imagegen.progress import Silent
from mayfly.paths import kernel_path
from scripts.debian import local_registry

BYTES = {"kernel": b"\x7fELF and so on" * 100, "config": b"CONFIG_KVM_GUEST=y\n"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Be on a host of this name: with folders of its own."""

    def enter(name: str) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / name / "data"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name / "cache"))

    enter("here")
    return enter


def mayfly(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mayfly.cli.main", "kernel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)


def layout(folder: Path, arch: str = "x86_64", **changes: Any) -> Source:
    """A layout with a kernel's artifact, changed in this way."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    document = {
        "schemaVersion": 2,
        "config": add(json.dumps({"arch": arch}).encode(), kernel.CONFIG_TYPE),
        "layers": [add(BYTES[kind], media_type) for kind, media_type in kernel.FILE_TYPES.items()],
        **changes,
    }
    entry = add(json.dumps(document).encode(), MANIFEST_TYPE)
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return source_of(parse_reference(f"oci:{folder}"), Silent(), insecure=False, offline=False)


def installed(arch: str = "x86_64") -> list[Path]:
    return sorted(path for path in kernel_path(arch).parent.glob("*"))


def test_pushed_here_and_pulled_by_digest_there(home: Callable[[str], None]) -> None:
    folder = kernel_path("x86_64").parent
    folder.mkdir(parents=True)
    kernel_path("x86_64").write_bytes(BYTES["kernel"])
    (folder / "config").write_bytes(BYTES["config"])
    with local_registry.serving() as address:
        pushed = mayfly("push", f"{address}/kernel:1", "--arch", "x86_64")
        assert pushed.returncode == 0, pushed.stderr
        home("there")
        pulled = mayfly("pull", pushed.stdout.strip())
    assert (pulled.returncode, pulled.stdout) == (0, f"{kernel_path('x86_64')}\n"), pulled.stderr
    assert kernel_path("x86_64").read_bytes() == BYTES["kernel"]
    assert kernel_path("x86_64").with_name("config").read_bytes() == BYTES["config"]


def test_of_the_other_architecture_too(home: Callable[[str], None], tmp_path: Path) -> None:
    assert kernel.install(layout(tmp_path / "layout", "aarch64")) == kernel_path("aarch64")
    assert kernel_path("aarch64").read_bytes() == BYTES["kernel"]


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "../../x"},
        {"arch": "vax"},
        {"layers": []},
        {"config": {"mediaType": "application/json", "digest": "sha256:" + 64 * "0", "size": 1}},
        {"layers": [{"mediaType": kind, "digest": "sha256:" + 64 * "0", "size": 1 << 40} for kind in kernel.FILE_TYPES.values()]},
    ],
)
def test_other_artifacts_are_refused(home: Callable[[str], None], tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RegistryError):
        kernel.install(layout(tmp_path / "layout", **changes))
    assert installed() == []


@pytest.mark.parametrize("kind", sorted(BYTES))
def test_changed_bytes_are_not_installed(home: Callable[[str], None], tmp_path: Path, kind: str) -> None:
    source = layout(tmp_path / "layout")
    digest = hashlib.sha256(BYTES[kind]).hexdigest()
    (tmp_path / "layout/blobs/sha256" / digest).write_bytes(BYTES[kind][:-1] + b"!")
    with pytest.raises(MayflyError, match="sha256"):
        kernel.install(source)
    assert not kernel_path("x86_64").exists()


def test_what_fails_is_a_message_with_a_hint(home: Callable[[str], None]) -> None:
    for arguments in (["push", "127.0.0.1:1/kernel"], ["push", "oci:x"], ["pull", "127.0.0.1:1/kernel"], ["pull", "oci:/none"]):
        done = mayfly(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("mayfly: ")
        assert "\n  hint: " in done.stderr


def test_a_build_says_why_it_failed(home: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "source.tar.xz").write_bytes(b"not an archive")
    done = mayfly("build", "--tarball", str(tmp_path / "source.tar.xz"))
    assert done.returncode == 1
    assert "mayfly: the kernel was not built" in done.stderr
    assert installed() == []
