"""Where Mayfly keeps things: the XDG folders, looked up at each call so that a changed environment
counts.
"""

import functools
import os
from pathlib import Path

from mayfly.errors import HostError

KERNELS = {"x86_64": "vmlinux", "aarch64": "Image"}
"""The file that a machine of each architecture boots first."""


@functools.lru_cache
def _folder(path: str) -> Path:
    """A path, of which each run asks for several that are the same each time."""
    return Path(path)


def _xdg(variable: str, default: str) -> str:
    value = os.environ.get(variable, "")
    if value.startswith("/"):
        return f"{value.rstrip('/')}/mayfly"
    home = os.path.expanduser("~")  # noqa: PTH111 (for each run: a fifth of what a Path costs)
    if home == "~":
        raise HostError(
            f"user {os.geteuid()} has no home folder, and {variable} is not set",
            hint="set HOME, or all of XDG_CONFIG_HOME, XDG_DATA_HOME and XDG_CACHE_HOME",
        )
    return f"{home.rstrip('/')}/{default}/mayfly"


def config_file() -> Path:
    """`$XDG_CONFIG_HOME/mayfly/config.yaml`; it need not exist."""
    return _folder(_xdg("XDG_CONFIG_HOME", ".config") + "/config.yaml")


def _data() -> str:
    return _xdg("XDG_DATA_HOME", ".local/share")


def data_dir() -> Path:
    """State worth keeping: images, kernels, snapshots."""
    return _folder(_data())


def cache_dir() -> Path:
    """What can be made or fetched again: blobs, kernels."""
    return _folder(_xdg("XDG_CACHE_HOME", ".cache"))


def runtime_dir() -> Path:
    """Sockets. `$XDG_RUNTIME_DIR/mayfly`, or `/run/mayfly` for root and `/tmp/mayfly-UID` for
    others where it is unset.
    """
    value = os.environ.get("XDG_RUNTIME_DIR", "")
    if value.startswith("/"):
        return Path(value) / "mayfly"
    return Path("/run/mayfly") if os.geteuid() == 0 else Path(f"/tmp/mayfly-{os.geteuid()}")  # noqa: S108 (made 0700, its owner checked)


def image_dir(language: str, arch: str) -> Path:
    """The folder of one built image: `initramfs` and `manifest.json`. `language` may carry a
    version (`rust@1.85`).
    """
    return _folder(f"{_data()}/images/{language}/{arch}")


def snapshots_dir() -> Path:
    """The folder of snapshots, one folder each."""
    return _folder(f"{_data()}/snapshots")


def saved_runs_dir() -> Path:
    """The folder of runs that outlast their server, one folder each."""
    return data_dir() / "runs"


def kernel_path(arch: str) -> Path:
    """The guests' kernel, as `kernel/build` installs it."""
    return data_dir() / "kernel" / arch / KERNELS.get(arch, "vmlinux")
