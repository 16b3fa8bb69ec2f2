"""kernel/: the check names every option that a configuration lacks; the fragments agree with each
other; the build's command line.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mayfly import paths

KERNEL = Path(__file__).resolve().parents[2] / "kernel"
FRAGMENTS = ("common.config", "x86_64.config")
ARCHES = ("x86_64", "aarch64")


def check(config: Path, arch: str = "x86_64") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, KERNEL / "check.py", config, arch], capture_output=True, text=True, check=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A .config with all that is needed, written as Kconfig writes it."""
    path = tmp_path / ".config"
    lines = [line for name in FRAGMENTS for line in (KERNEL / name).read_text().splitlines() if line.startswith("CONFIG_")]
    path.write_text("".join(f"# {line[:-2]} is not set\n" if line.endswith("=n") else f"{line}\n" for line in lines))
    return path


def test_a_complete_configuration_passes(config: Path) -> None:
    done = check(config)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_that_is_wrong_is_named_at_once(config: Path) -> None:
    text = config.read_text()
    text = text.replace("CONFIG_SMP=y\n", "").replace("CONFIG_VIRTIO_CONSOLE=y", "CONFIG_VIRTIO_CONSOLE=m")
    text = text.replace("# CONFIG_PCI is not set", "CONFIG_PCI=y").replace("CONFIG_NR_CPUS=64", "CONFIG_NR_CPUS=8")
    config.write_text(text)
    done = check(config)
    assert done.returncode == 1
    assert sorted(line.removeprefix(f"{config}: ") for line in done.stderr.splitlines()) == [
        "CONFIG_NR_CPUS is 8; 64 is needed",
        "CONFIG_PCI is y; it must not be set",
        "CONFIG_SMP is not set; y is needed",
        "CONFIG_VIRTIO_CONSOLE is m; y is needed",
    ]


def test_wrong_use_of_the_check(config: Path) -> None:
    assert check(config, "sparc").returncode == 2
    assert check(config.with_name("missing")).returncode == 2


@pytest.mark.parametrize("arch", ARCHES)
def test_no_option_stands_twice(arch: str) -> None:
    """Not in one fragment with two values, and not in the architecture's with what the common one
    already says.
    """
    fragments = ("common.config", f"{arch}.config")
    names = [line.split("=")[0] for name in fragments for line in (KERNEL / name).read_text().splitlines() if line.startswith("CONFIG_")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "sparc"], "no configuration for sparc"),
        (["--arch", "common"], "no configuration for common"),
        (["--tarball", "/missing.tar.xz"], "cannot read /missing.tar.xz"),
        (["--what"], "unknown argument --what"),
    ],
)
def test_the_build_refuses(arguments: list[str], message: str, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run([KERNEL / "build", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(("arch", "files"), [("x86_64", ("vmlinux", "bzImage")), ("aarch64", ("Image",))])
def test_a_kernel_that_is_there_is_not_built_again(
    arch: str, files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a kernel in the cache the build only copies; with the copy in place it writes
    nothing.
    """
    source = tmp_path / "source.tar.xz"
    source.write_bytes(b"any")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    command = [str(KERNEL / "build"), "--arch", arch, "--tarball", str(source)]
    version = subprocess.run(["sha256sum"], input=b"any", capture_output=True, check=True).stdout
    recipe = b"".join((KERNEL / name).read_bytes() for name in ("common.config", f"{arch}.config", "build"))
    hashed = subprocess.run(["sha256sum"], input=version + recipe, capture_output=True, check=True).stdout.split()[0].decode()
    kernel = tmp_path / "cache/mayfly/kernels" / hashed
    kernel.mkdir(parents=True)
    for name in (*files, "config"):
        (kernel / name).write_text(name)
    monkeypatch.setenv("XDG_DATA_HOME", environment["XDG_DATA_HOME"])
    installed = paths.kernel_path(arch)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert installed.read_text() == files[0]
    before = installed.stat()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert installed.stat() == before
