"""One run of a command in the emulated KVM host: QEMU's processor emulation has hardware
virtualisation, this machine's KVM may not.

The host's root file system is this machine's, over 9p; that of a host of another architecture is a
Debian of its own, with this machine's home and other folders in their places. The command's streams
go over virtio ports; /init (guest-init.sh) counts what was written to them, so that this side knows
when it has everything."""

import contextlib
import ctypes
import os
import platform
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from scripts.kvmhost import foreign, hostfiles

# No randomised addresses, neither the kernel's nor programs': emulation translates code again for
# each address that it is seen at. No test whether the timer works: where QEMU has no processor for
# the test's 40 ms, x86's kernel panics ("IO-APIC + timer doesn't work").
CMDLINE = "quiet loglevel=1 panic=-1 mitigations=off nokaslr norandmaps audit=0 random.trust_cpu=on cgroup_no_v1=all no_timer_check"
# This machine's files change under the guest only where somebody edits them; what it writes itself
# is flushed at the end.
CACHE_9P = "loose"
PR_SET_PDEATHSIG = 1
PORTS = ("stdin", "stdout", "stderr", "status", "alive")
STANDSTILL_S = 300.0
"""Without a byte from any port, though /init says every ten seconds that it is alive: once in many
hours an emulated processor that waits for an interrupt is never woken. """
LOOPBACK = "10.0.2.2"
"""Where an emulated host finds this machine's loopback, on the network that QEMU makes up."""
ADDRESS = "10.0.2.15"
"""Its own there."""
DEBIANS_OWN = {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "lost+found", "proc", "run", "sbin", "sys", "usr", "var"}
HERE = Path(__file__).resolve().parent


def command_script(command: Sequence[str], environment: Mapping[str, str], folder: str) -> bytes:
    """The shell script that runs `command` in `folder` with this environment and no other."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    line = shlex.join(["exec", "/usr/bin/env", "-i", *variables, *command])
    return os.fsencode(f"cd {shlex.quote(folder)} || exit 125\n{line}\n")


def network(forwarded: Sequence[int]) -> list[str]:
    """QEMU's options for a network on which this machine's loopback is at LOOPBACK; a connection to
    one of the `forwarded` ports there goes to the same port in the emulated host.
    """
    ports = "".join(f",hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:{port}" for port in forwarded)
    return ["-netdev", f"user,id=net,ipv6=off{ports}", "-device", "virtio-net-pci,netdev=net,romfile="]


def settings(tools: Sequence[Path], data: Path, folders: Sequence[str], address: str) -> bytes:
    """The variables that /init reads. `folders`: of this machine's root, those that a host with a
    root of its own takes over; `address` may be empty.
    """
    values = {"CACHE": CACHE_9P, "TOOLS": " ".join(map(str, tools)), "OUTER_DATA": str(data), "FOLDERS": " ".join(folders)}
    values["ADDRESS"] = f"{address}/24" if address else ""
    return os.fsencode("".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()))


class Emulator:
    """QEMU with one command in it. Made by `start`; `wait` relays the streams and gives the
    command's exit status.
    """

    def __init__(self, process: subprocess.Popen[bytes], sockets: Mapping[str, socket.socket], console: Path) -> None:
        self._process = process
        self._sockets = sockets
        self._console = console

    @classmethod
    def start(
        cls,
        *,
        qemu: Sequence[str],
        host: hostfiles.Host,
        kernel: Path,
        initrd: Path,
        disks: Sequence[Path],
        devices: Sequence[str],
        memory: int,
        cpus: int,
        console: Path,
    ) -> "Emulator":
        """Start QEMU. It is killed when this process ends, however that happens."""
        pairs = {name: socket.socketpair() for name in PORTS}
        command = [*qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", *host.machine]
        command += ["-smp", str(cpus), "-m", f"{memory >> 20}", "-kernel", str(kernel), "-initrd", str(initrd)]
        command += ["-append", f"console={host.console} {CMDLINE}"]
        command += ["-chardev", f"file,id=console,path={_option(console)}", "-serial", "chardev:console"]
        command += ["-fsdev", "local,id=root,path=/,security_model=none,multidevs=remap"]
        command += ["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]
        command += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci,max_ports=8"]
        for number, name in enumerate(PORTS, 1):
            command += ["-chardev", f"socket,id={name},fd={pairs[name][1].fileno()}"]
            command += ["-device", f"virtserialport,chardev={name},name={name},nr={number}"]
        for number, disk in enumerate(disks):
            # `unsafe`: what the guest has written is in this machine's page cache, and only this
            # machine's crash could lose it.
            drive = f"if=none,id=disk{number},format=raw,cache=unsafe,readonly={'on' if number else 'off'},file={_option(disk)}"
            command += ["-drive", drive]
            command += ["-device", f"virtio-blk-pci,drive=disk{number}"]
        command += devices
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=[pair[1].fileno() for pair in pairs.values()],
            start_new_session=True,
            preexec_fn=_dies_with(os.getpid()),
        )
        for _, theirs in pairs.values():
            theirs.close()
        return cls(process, {name: ours for name, (ours, _) in pairs.items()}, console)

    def kill(self) -> None:
        """End QEMU, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Relay until the command is over and all it wrote has arrived; its exit status, or 125
        when the emulated host failed.
        """
        threading.Thread(target=self._feed, daemon=True).start()
        counts = {"stdout": 0, "stderr": 0}
        targets = {"stdout": 1, "stderr": 2}
        report = b""
        reading = {self._sockets[name]: name for name in PORTS if name != "stdin"}
        while reading:
            readable = select.select(list(reading), [], [], STANDSTILL_S)[0]
            if not readable:
                return self._failed("stands still")
            for ready in readable:
                name = reading[ready]
                data = ready.recv(1 << 16)
                if not data:
                    del reading[ready]
                elif name == "status":
                    report += data
                elif name in targets:
                    _write(targets[name], data)
                    counts[name] += len(data)
            if report.endswith(b"\n"):
                status, written_out, written_err = map(int, report.split())
                if counts == {"stdout": written_out, "stderr": written_err}:
                    self.kill()
                    return status
        return self._failed("ended before the command did")

    def _failed(self, what: str) -> int:
        self.kill()
        tail = self._console.read_text(errors="replace")[-4000:].strip() if self._console.exists() else ""
        print(f"with-kvm: the emulated host {what}; the end of its console:\n{tail}", file=sys.stderr)
        return 125

    def _feed(self) -> None:
        """Send standard input, in a thread as only such a one may block on a file or a terminal.
        Its end is sent too.
        """
        port = self._sockets["stdin"]
        with contextlib.suppress(OSError):  # no standard input, a terminal that is not ours, or the emulated host is gone
            while data := os.read(0, 1 << 16):
                port.sendall(data)
        with contextlib.suppress(OSError):
            port.shutdown(socket.SHUT_WR)


def _dies_with(parent: int) -> Callable[[], None]:
    """For a new child: it is killed when `parent` ends, even if that has happened by now (prctl(2),
    PR_SET_PDEATHSIG).
    """
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _option(path: Path) -> str:
    """A file name inside one of QEMU's option lists, where a comma is doubled."""
    return str(path).replace(",", ",,")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def run(
    command: Sequence[str],
    *,
    arch: str,
    project: Path,
    python: Path,
    cache: Path,
    data: Path,
    environment: Mapping[str, str],
    memory: int,
    cpus: int,
    forwarded: Sequence[int] | None,
) -> int:
    """Run `command` in the emulated host and give its exit status.

    Args:
        command: program and arguments.
        arch: the host's architecture.
        project: the checkout.
        python: this machine's, with the project's libraries.
        cache: where the host's files are kept.
        data: mayfly's data folder here, from which newer kernels and images are copied.
        environment: the whole of the command's.
        memory: bytes of the host.
        cpus: processors of the host.
        forwarded: ports of this machine's loopback that lead into the host; None: no network.
    """
    cache.mkdir(parents=True, exist_ok=True)
    host = hostfiles.HOSTS[arch]
    tools: list[Path] = []
    folders: list[str] = []
    disk, held = hostfiles.take_state_disk(cache, arch)
    try:
        # Behind the wait for a state disk: meanwhile others may have replaced what is kept here.
        with hostfiles.preparing(cache):
            qemu = hostfiles.qemu(cache, host)
            if arch == platform.machine():
                kernel, modules = hostfiles.kernel(cache, host)
                tools = hostfiles.python_folders(python)
                disks = [hostfiles.tool_disk(cache, tools)]
            else:
                root = foreign.root(cache, arch, host, project, python)
                foreign.compile_bindings(root, arch, project, python)
                kernel, modules, disks = root / "vmlinux", root / "modules", [root / "root.ext4"]
                folders = [path.name for path in Path("/").iterdir() if path.is_dir() and path.name not in DEBIANS_OWN]
        own = hostfiles.cpio(
            [
                ("init", 0o100755, (HERE / "guest-init.sh").read_bytes()),
                ("settings", 0o100644, settings(tools, data, folders, "" if forwarded is None else ADDRESS)),
                ("command", 0o100600, command_script(command, environment, str(Path.cwd()))),
            ]
        )
        with tempfile.NamedTemporaryFile(dir=cache, prefix="initrd-") as initrd:
            initrd.write(modules.read_bytes() + own)
            initrd.flush()
            console = disk.with_suffix(".console")
            console.unlink(missing_ok=True)
            emulator = Emulator.start(
                qemu=qemu,
                host=host,
                kernel=kernel,
                initrd=Path(initrd.name),
                disks=[disk, *disks],
                devices=[] if forwarded is None else network(forwarded),
                memory=memory,
                cpus=cpus,
                console=console,
            )

            ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

            def stop(number: int, _frame: object) -> NoReturn:
                for another in ends:  # a second one would find Popen's lock held, for ever
                    signal.signal(another, signal.SIG_IGN)
                emulator.kill()
                sys.exit(128 + number)

            for number in ends:
                signal.signal(number, stop)
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)
            try:
                return emulator.wait()
            except BrokenPipeError:
                emulator.kill()  # nobody reads the output any more
                return 128 + signal.SIGPIPE
    finally:
        os.close(held)
