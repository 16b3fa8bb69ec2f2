"""What the tests of api/ stand on: images that are not there, and a zygote whose machines are
ordinary processes (fake_agent.py).
"""

import contextlib
import gc
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mayfly.guests.zygote import Zygote
from mayfly.host.config import Config
from mayfly.images import manifest
from mayfly.protocol.report import pack
from mayfly.protocol.spawning import Reaped
from mayfly.units import MIB
from mayfly.vmm.config import MachineConfig

if TYPE_CHECKING:
    import pytest  # which processes of tests.kit.fake_mayfly need not load

ROOT = Path(__file__).parents[2]
MARKER = "ab" * 32
FIRST_UID = 62_000
"""Each machine's steps run as a user of their own, for an agent kills all that its user has
left.
"""


class FakeZygote(Zygote):
    """A zygote whose machines are agents alone. `fault` is given to them; with `executable` they
    are the real agent.
    """

    def __init__(self, fault: str = "", executable: Path | None = None) -> None:
        self.executable = executable
        self.fault = fault
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.configs: list[MachineConfig] = []
        self.waiters: list[threading.Thread] = []
        client, self._server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(0, client)

    def spawn(self, machine: int, config: MachineConfig, channel: int, report: int, control: int, *group: int) -> None:
        if self._control.fileno() < 0 or self._server.fileno() < 0:
            raise BrokenPipeError("the zygote is dead")
        fds = [str(channel), str(report), str(control)]
        if self.executable:
            script = [str(ROOT / "tests/kit/real_agent.py"), *fds, str(self.executable), str(FIRST_UID + machine)]
        else:
            script = [str(ROOT / "tests/kit/fake_agent.py"), *fds, MARKER, self.fault]
        command = [sys.executable, *script]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_RESTORE": " ".join(layer.folder for layer in config.restore)}
        child = subprocess.Popen(command, pass_fds=[channel, report, control], env=env, start_new_session=True)
        self.configs.append(config)
        self.children[machine] = child
        waiter = threading.Thread(target=self._wait, args=(machine, child))
        waiter.start()
        self.waiters.append(waiter)

    def _wait(self, machine: int, child: "subprocess.Popen[bytes]") -> None:
        reaped = Reaped(machine=machine, status=child.wait())
        with contextlib.suppress(OSError):  # closed
            self._server.send(pack(reaped))

    def signal(self, machine: int, number: int) -> None:
        """Kill the agent."""
        assert number == signal.SIGKILL
        self.kill(machine)

    def kill(self, machine: int) -> None:
        """Kill the agent and, as the end of a real machine does, everything in it: all of its
        session.
        """
        session = self.children[machine].pid
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                    os.kill(int(entry.name), signal.SIGKILL)

    def die(self) -> None:
        """What a `kill -9` of the zygote does: its machines end with it, and the socket is at its
        end.
        """
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for machine in self.children:
            self.kill(machine)

    def close(self) -> None:
        for machine in self.children:
            self.kill(machine)
        for waiter in self.waiters:
            waiter.join()
        self._control.close()
        self._server.close()


def factory(fault: str = "", made: list[FakeZygote] | None = None, executable: Path | None = None) -> Callable[[], Zygote]:
    def start() -> FakeZygote:
        zygote = FakeZygote(fault, executable)
        if made is not None:
            made.append(zygote)
        return zygote

    return start


def install(
    language: str,
    extension: str,
    steps: tuple[manifest.LanguageStep, ...],
    version: str = "1.0",
    folder: str = "",
    marker: str = MARKER,
    warmup: manifest.Warmup | None = None,
    function: manifest.Function | None = None,
    checkpoint: str = "",
    target: str = "",
    profiles: Mapping[str, manifest.Profile] | None = None,
    options: Mapping[str, manifest.Option] | None = None,
) -> None:
    """Put an image into the data folder; its initramfs is a stand-in."""
    from mayfly import paths

    place = paths.image_dir(folder or language, platform.machine())
    place.mkdir(parents=True)
    (place / "initramfs").write_bytes(b"cpio")
    content = manifest.Manifest(
        language=language,
        version=version,
        arch=platform.machine(),
        extensions=(extension,),
        source_file=f"main{extension}",
        steps=steps,
        warmup=warmup or manifest.Warmup(),
        function=function,
        checkpoint=checkpoint,
        target=target,
        profiles=profiles or {},
        options=options or {},
        env={"LANG": "C.UTF-8"},
        source=manifest.ImageSource(reference="oci:x", manifest_digest="", config_digest="", layers=()),
        compression="none",
        initramfs_size=4,
        initramfs_digest="",
        end_marker=marker,
        unpacked_size=32 * MIB,
        entries=1,
        memory=128 * MIB,
        agent_digest="",
        generator="test",
    )
    (place / "manifest.json").write_text(content.to_json())


def rename(argv: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part.replace("main.toy", "main.real") for part in argv)


def install_toys(monkeypatch: "pytest.MonkeyPatch", tmp_path: Path) -> None:
    """Private XDG folders, with `toy` (shell, whose build step is a syntax check; the fake agent
    plays its functions), `py` (one step) and `real` (as `toy`, for the real agent, which has no end
    marker as an ordinary process)."""
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    build = manifest.LanguageStep(name="build", argv=("sh", "-n", "main.toy"))
    run = manifest.LanguageStep(name="run", argv=("sh", "main.toy", "{args}"), stdin=True)
    shim = manifest.LanguageStep(name="function", argv=("shim", "{entry}"))
    loading = manifest.Function(files={".mayfly/shim": "shim"}, steps=(build, shim), source_file="main.toy", entry="handle")
    install("toy", ".toy", (build, run), function=loading)
    install("real", ".real", tuple(msgspec.structs.replace(step, argv=rename(step.argv)) for step in (build, run)), marker="")
    install("py", ".py", (manifest.LanguageStep(name="run", argv=(sys.executable, "-I", "-u", "main.py"), stdin=True),))


def small_config(tmp_path: Path, **changes: Any) -> Config:
    """A configuration for the tests: short limits, a budget of four toy machines."""
    values = {
        "socket": tmp_path / "mayfly" / "api.sock",
        "kernel": tmp_path / "vmlinux",
        "memory_budget": 512 * MIB,
        "time_factor": 1.0,
        "cold": True,
    }
    return Config(**{**values, **changes})


def open_descriptors() -> int:
    """How many descriptors this process has, without those of objects that an earlier test left and
    nobody has collected yet.
    """
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def gone(pid: int) -> bool:
    """Whether the process ends within seconds (one that nobody has waited for yet has ended
    too).
    """
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if not Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False
