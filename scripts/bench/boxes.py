"""microsandbox, smolvm and boxlite, which benchmarks measure beside ours: from PyPI, pinned.

Usage: python -m scripts.bench.boxes fetch

`fetch` unpacks them into the cache and prints the folder. Their packages carry kernels of their own
and take no other, nor an initramfs: the root is busybox, as an OCI layout where they take one
(smolvm has its own). Each is used by a process of its own, which can be given up.
"""

import asyncio
import contextlib
import hashlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.bench.wheels import wheel
from scripts.debian.cached import cached

MEMORY_MIB = 256
DEADLINE_S = 240.0
BUSYBOX = Path("/bin/busybox")
ECHO = ("/bin/busybox", "echo", "x")


class Box(NamedTuple):
    """A package, the SHA-256 of its wheels (of Python 3.11 and 3.12 where they differ), and the
    programs in it.
    """

    package: str
    digests: tuple[str, ...]
    programs: tuple[str, ...] = ()


BOXES = {
    "microsandbox": Box(
        "microsandbox==0.7.11",
        ("65f1e4bbf8d721c9f7f557329fb6c8cf41f554c1c6942eac8b941198fa283fe0",),
        ("microsandbox/_bundled/bin/msb",),
    ),
    "smolvm": Box("smolmachines==1.32.2", ("81b104e2622aa0b187b6b7054397c391151b83db2638a16d0e54c517684f0dc2",), ("smol/smol-vmm",)),
    "boxlite": Box(
        "boxlite==0.10.8",
        (
            "bf8ee64adac854c128c8bc51e673c16748f08400718926b066fc6515b0566c5e",
            "2061e6a0e725b73fed044decd4c57c3840457ffb1e919bd3e7d381f66f99b34e",
        ),
    ),
}


def fetch() -> Path:
    """The folder that has each unpacked, by its name.

    Raises:
        SystemExit: one cannot be had.
    """
    pinned = hashlib.sha256(repr((sys.version_info[:2], BOXES)).encode()).hexdigest()
    return cached(f"bench-boxes-{pinned[:12]}", ", ".join(BOXES), _unpack)


def _unpack(folder: Path) -> None:
    for name, box in BOXES.items():
        with wheel(box.package, *box.digests) as package:
            package.extractall(folder / name)  # noqa: S202 (a wheel whose digest is known)
        for program in box.programs:
            (folder / name / program).chmod(0o755)


def one(name: str, folder: Path, work: Path) -> dict[str, float]:
    """Seconds until a program's first byte is here that runs in a new machine, and for another one
    in the same machine.

    Raises:
        SystemExit: it does not come up, or does not within DEADLINE_S.
    """
    home = {"HOME": str(work), "XDG_DATA_HOME": f"{work}/data", "XDG_CACHE_HOME": f"{work}/cache"}
    command = [sys.executable, "-m", "scripts.bench.boxes", name, str(folder / name), str(work)]
    log = work / "said"
    with (
        log.open("wb") as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=os.environ | home, start_new_session=True
        ) as user,
    ):
        late = False
        try:
            user.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(user.pid, signal.SIGKILL)  # and the machine
    last = log.read_text(errors="replace").strip().rpartition("\n")[2][:500]
    if late:
        raise SystemExit(f"no byte of a program within {DEADLINE_S:g} s; {last or 'it says nothing'}")
    if user.returncode:
        raise SystemExit(last or f"it ended with {user.returncode}")
    return dict(json.loads(last))


def make_layout(folder: Path) -> None:
    """Write an OCI layout whose one image is busybox (image-layout.md)."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(BUSYBOX, "bin/busybox")
        entry = tarfile.TarInfo("bin/sh")
        entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(entry)
    layer = blob("layer.v1.tar", packed.getvalue())
    about = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    config = blob("config.v1+json", json.dumps(about).encode())
    manifest = blob("manifest.v1+json", json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode())
    manifest |= {"annotations": {"org.opencontainers.image.ref.name": "busybox:bench"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


Times = dict[str, float]


def _timed(first: Callable[[], object], answer: Callable[[], object]) -> Times:
    began = time.monotonic()
    first()
    up = time.monotonic()
    answer()
    return {"first_s": up - began, "answer_s": time.monotonic() - up}


def microsandbox(folder: Path, work: Path) -> Times:
    """By its command."""

    def msb(*arguments: str) -> None:
        subprocess.run([folder / BOXES["microsandbox"].programs[0], *arguments], check=True, stdout=sys.stderr)

    with tarfile.open(work / "layout.tar", "w") as tar:
        tar.add(work / "layout", ".")
    msb("load", "-q", "-i", str(work / "layout.tar"))

    def first() -> None:
        msb("create", "-q", "--name", "bench", "--memory", f"{MEMORY_MIB}M", "--cpus", "1", "busybox:bench")
        answer()

    def answer() -> None:
        msb("exec", "bench", "--", *ECHO)

    return _timed(first, answer)


def smolvm(folder: Path, work: Path) -> Times:
    """By its library."""
    sys.path.insert(0, str(folder))
    smol: Any = importlib.import_module("smol")
    machine: Any = None

    def first() -> None:
        nonlocal machine
        machine = smol.Machine.create(smol.MachineConfig(resources=smol.ResourceSpec(cpus=1, memory_mb=MEMORY_MIB)))
        answer()

    def answer() -> None:
        machine.exec(["echo", "x"])

    return _timed(first, answer)


def boxlite(folder: Path, work: Path) -> Times:
    """By its library."""
    sys.path.insert(0, str(folder))
    library: Any = importlib.import_module("boxlite")

    async def both() -> Times:
        began = time.monotonic()
        async with library.SimpleBox(rootfs_path=str(work / "layout"), memory_mib=MEMORY_MIB, cpus=1) as box:
            await box.exec(*ECHO)
            up = time.monotonic()
            await box.exec(*ECHO)
            return {"first_s": up - began, "answer_s": time.monotonic() - up}

    return asyncio.run(both())


def main(arguments: Sequence[str]) -> None:
    """Fetch them, or use one."""
    if arguments == ["fetch"]:
        print(fetch())
        return
    name, folder, work = arguments
    uses = {"microsandbox": microsandbox, "smolvm": smolvm, "boxlite": boxlite}
    with tempfile.TemporaryDirectory(dir=work) as place:
        make_layout(Path(place) / "layout")
        print(json.dumps(uses[name](Path(folder), Path(place))))


if __name__ == "__main__":
    main(sys.argv[1:])
