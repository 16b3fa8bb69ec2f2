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
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from scripts.bench.wheels import wheel
from scripts.debian.cached import cached

MEMORY_MIB = 256
DEADLINE_S = 240.0
BUSYBOX = Path("/bin/busybox")
ECHO = ("/bin/busybox", "echo", "x")


Times = dict[str, float]


class Box(NamedTuple):
    """A package, the SHA-256 of its wheels (of Python 3.11 and 3.12 where they differ), and the
    programs in it.
    """

    package: str
    digests: tuple[str, ...]
    programs: tuple[str, ...] = ()


BOXES = {
    "smolvm": Box("smolmachines==1.32.2", ("81b104e2622aa0b187b6b7054397c391151b83db2638a16d0e54c517684f0dc2",), ("smol/smol-vmm",)),
    "boxlite": Box(
        "boxlite==0.10.8",
        (
            "bf8ee64adac854c128c8bc51e673c16748f08400718926b066fc6515b0566c5e",
            "2061e6a0e725b73fed044decd4c57c3840457ffb1e919bd3e7d381f66f99b34e",
        ),
    ),
    # Last, as an emulated host may end by it.
    "microsandbox": Box(
        "microsandbox==0.7.11",
        ("65f1e4bbf8d721c9f7f557329fb6c8cf41f554c1c6942eac8b941198fa283fe0",),
        ("microsandbox/_bundled/bin/msb",),
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


def measure(name: str, folder: Path, work: Path, rounds: int) -> dict[str, list[Any]]:
    """What `use` says of it.

    Raises:
        SystemExit: it does not come up, or not within DEADLINE_S for each.
    """
    work.chmod(0o711)  # where it gives each machine a user of its own
    own = shutil.copytree(folder / name, work / name)
    home = {"HOME": str(work), "XDG_DATA_HOME": f"{work}/data", "XDG_CACHE_HOME": f"{work}/cache"}
    command = [sys.executable, "-m", "scripts.bench.boxes", name, str(own), str(work), str(rounds)]
    log = work / "said"
    with (
        log.open("wb") as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=os.environ | home, start_new_session=True
        ) as user,
    ):
        late = False
        deadline_s = DEADLINE_S * (1 + rounds)
        try:
            user.wait(deadline_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(user.pid, signal.SIGKILL)  # and the machine
    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
    if late:
        raise SystemExit(f"no byte of a program within {deadline_s:g} s; {last or 'it says nothing'}"[:500])
    if user.returncode:
        raise SystemExit(last[:500] or f"it ended with {user.returncode}")
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
        for path, line in (("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n"), ("etc/group", b"root:x:0:\n")):
            entry = tarfile.TarInfo(path)
            entry.size = len(line)
            tar.addfile(entry, io.BytesIO(line))
    layer = blob("layer.v1.tar", packed.getvalue())
    program = {"Cmd": [str(BUSYBOX), "sleep", "1000000"], "Env": ["PATH=/bin"]}
    root = {"type": "layers", "diff_ids": [layer["digest"]]}
    about = {"architecture": "amd64", "os": "linux", "config": program, "rootfs": root}
    config = blob("config.v1+json", json.dumps(about).encode())
    manifest = blob("manifest.v1+json", json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode())
    manifest |= {"annotations": {"org.opencontainers.image.ref.name": "busybox:bench"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


class User(Protocol):
    """What uses one of them."""

    def start(self) -> None:
        """Start a machine, and run a program in it."""

    def answer(self) -> None:
        """Run a program in the machine that was started last."""

    @property
    def fork(self) -> Callable[[], None] | None:
        """Forks the first machine, and runs a program in the fork, which is the one started last;
        none where there are no forks.
        """

    def end(self) -> None:
        """End the machine that was started last, if it is not the first."""


class Microsandbox:
    """By its command."""

    def __init__(self, folder: Path, layout: Path) -> None:
        self._program = folder / BOXES["microsandbox"].programs[0]
        self._number = 0
        archive = layout.with_suffix(".tar")
        with tarfile.open(archive, "w") as tar:
            tar.add(layout, ".")
        self._msb("load", "-q", "-i", str(archive))

    def _msb(self, *arguments: str) -> None:
        subprocess.run([self._program, *arguments], check=True, stdout=sys.stderr)

    def start(self) -> None:
        self._number += 1
        self._msb("create", "-q", "--name", f"bench{self._number}", "--memory", f"{MEMORY_MIB}M", "--cpus", "1", "busybox:bench")
        self.answer()

    def answer(self) -> None:
        self._msb("exec", f"bench{self._number}", "--", *ECHO)

    def fork(self) -> None:
        self._number += 1
        self._msb("fork", "-q", "--name", f"bench{self._number}", "bench1")
        self.answer()

    def end(self) -> None:
        if self._number > 1:
            self._msb("remove", "-q", "-f", f"bench{self._number}")


class Smolvm:
    """By its library."""

    def __init__(self, folder: Path, _layout: Path) -> None:
        sys.path.insert(0, str(folder))
        self._smol: Any = importlib.import_module("smol")
        self._machines: list[Any] = []
        self._number = 0

    def start(self) -> None:
        resources = self._smol.ResourceSpec(cpus=1, memory_mb=MEMORY_MIB)
        self._machines.append(self._smol.Machine.create(self._smol.MachineConfig(resources=resources, branchable=not self._machines)))
        self.answer()

    def answer(self) -> None:
        self._machines[-1].exec(["echo", "x"])

    def fork(self) -> None:
        self._number += 1
        self._machines.append(self._machines[0].branch(f"fork{self._number}"))
        self.answer()

    def end(self) -> None:
        if len(self._machines) > 1:
            self._machines.pop().delete()


class Boxlite:
    """By its library."""

    fork = None

    def __init__(self, folder: Path, layout: Path) -> None:
        sys.path.insert(0, str(folder))
        self._library: Any = importlib.import_module("boxlite")
        self._layout = layout
        self._loop = asyncio.new_event_loop()
        self._box: Any = None

    def start(self) -> None:
        self._box = self._library.SimpleBox(rootfs_path=str(self._layout), memory_mib=MEMORY_MIB, cpus=1)
        self._loop.run_until_complete(self._box.__aenter__())
        self.answer()

    def answer(self) -> None:
        self._loop.run_until_complete(self._box.exec(*ECHO))

    def end(self) -> None:
        self._loop.run_until_complete(self._box.__aexit__(None, None, None))


def use(user: User, rounds: int) -> dict[str, list[Any]]:
    """Start so many machines, besides a first for what is done at the first time, and forks of that
    one. `by api` is what their users wait for.
    """

    def timed(begin: Callable[[], None]) -> Times:
        began = time.monotonic()
        begin()
        up = time.monotonic()
        user.answer()
        times = {"first_s": up - began, "answer_s": time.monotonic() - up}
        user.end()
        return times

    timed(user.start)
    times: dict[str, list[Any]] = {"cold": [timed(user.start) for _ in range(rounds)]}
    if fork := user.fork:
        timed(fork)
        times["restored"] = [timed(fork) for _ in range(rounds)]
    return times | {"by api": [each["first_s"] for each in times.get("restored", times["cold"])]}


def main(arguments: Sequence[str]) -> None:
    """Fetch them, or use one."""
    if arguments == ["fetch"]:
        print(fetch())
        return
    name, folder, work, rounds = arguments
    users: dict[str, Callable[[Path, Path], User]] = {"microsandbox": Microsandbox, "smolvm": Smolvm, "boxlite": Boxlite}
    with tempfile.TemporaryDirectory(dir=work) as place:
        layout = Path(place) / "layout"
        make_layout(layout)
        print(json.dumps(use(users[name](Path(folder), layout), int(rounds))))


if __name__ == "__main__":
    main(sys.argv[1:])
