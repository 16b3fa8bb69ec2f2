"""QEMU's microvm, which benchmarks measure beside ours: the same kernel, initramfs and guest's
command line, on the same KVM.
"""

import contextlib
import json
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mayfly.guests.converse import Listener
from mayfly.guests.job import Job, Wanted
from mayfly.guests.told import told
from mayfly.protocol.conversation import Conversation
from mayfly.protocol.frames import Done, Hello
from mayfly.units import MIB
from mayfly.vmm.build import command_line
from mayfly.vmm.config import CHANNEL_PORT_NAME, MachineConfig

# In-kernel interrupt controllers; no PIT, PIC, RTC or serial port.
MACHINE = "microvm,accel=kvm,pit=off,pic=off,rtc=off,isa-serial=off,acpi=off,x-option-roms=off"
OURS_ONLY = ("virtio_mmio.", "earlycon", "keep_bootcon")
DEADLINE_S = 120.0


def command(config: MachineConfig, channel: str, devices: Sequence[str] = ()) -> list[str]:
    """QEMU's command line for a machine like `config`, its virtio channel on the listening Unix
    socket `channel`.
    """
    words = [word for word in command_line(told(config)).split() if not word.startswith(OURS_ONLY)]
    line = ["qemu-system-x86_64", "-M", MACHINE, "-cpu", "host", "-m", f"{config.memory // MIB}", "-smp", str(config.cpus)]
    line += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    line += ["-kernel", config.kernel, "-initrd", str(config.initrd), "-append", " ".join(words)]
    line += ["-chardev", f"socket,id=channel,path={channel}", "-device", "virtio-serial-device,max_ports=2"]
    return [*line, "-device", f"virtserialport,chardev=channel,name={CHANNEL_PORT_NAME}", *devices]


def restoring(file: Path) -> list[str]:
    """What makes a machine go on from what `save` wrote."""
    return ["-incoming", f"exec:cat {shlex.quote(str(file))}"]


def save(config: MachineConfig, file: Path, ready: Callable[[socket.socket], object]) -> None:
    """Boot such a machine until `ready` returns, and write it to `file`."""
    with tempfile.TemporaryDirectory() as work, socket.socket(socket.AF_UNIX) as monitor:
        path = f"{work}/monitor"
        with started(config, ["-qmp", f"unix:{path},server=on,wait=off"]) as channel:
            ready(channel)
            monitor.connect(path)
            with monitor.makefile("rw") as lines:

                def ask(command: str, **arguments: str) -> Any:
                    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                    lines.flush()
                    while "return" not in (answer := json.loads(lines.readline())):
                        if "error" in answer:
                            raise SystemExit(f"bench: QEMU refuses {command}: {answer['error']['desc']}")
                    return answer["return"]

                lines.readline()  # its greeting
                ask("qmp_capabilities")
                ask("migrate", uri=f"exec:cat > {shlex.quote(str(file))}")
                while (status := ask("query-migrate")["status"]) != "completed":
                    if status == "failed":
                        raise SystemExit("bench: QEMU could not save its machine")
                    time.sleep(0.1)
                ask("quit")


@contextlib.contextmanager
def started(config: MachineConfig, devices: Sequence[str] = ()) -> Iterator[socket.socket]:
    """The channel of such a machine, which is killed in the end."""
    with tempfile.TemporaryDirectory() as work, socket.socket(socket.AF_UNIX) as listener:
        path = f"{work}/channel"
        listener.bind(path)
        listener.listen()
        listener.settimeout(DEADLINE_S)
        with subprocess.Popen(command(config, path, devices), stdin=subprocess.DEVNULL) as process:
            try:
                channel, _ = listener.accept()
                with channel:
                    yield channel
            finally:
                process.kill()


def expect(wanted: Wanted) -> Conversation:
    """A conversation with the agent of such a machine."""
    return Conversation(arch=wanted.image.manifest.arch, end_marker=wanted.image.manifest.end_marker)


def wait_hello(channel: socket.socket, conversation: Conversation) -> None:
    """Read what the machine says until its agent's HELLO."""
    channel.settimeout(DEADLINE_S)
    while not any(isinstance(event, Hello) for event in conversation.feed(_receive(channel))):
        pass


def converse(channel: socket.socket, conversation: Conversation, job: Job, listener: Listener) -> None:
    """What mayfly.guests.converse does for a machine of ours: let the agent run a job without
    standard input.
    """
    for frame in conversation.begin(job.start, job.files):
        channel.sendall(frame)
    done = False
    while not done:
        for event in conversation.feed(_receive(channel)):
            listener.note(event)
            done = isinstance(event, Done)


def _receive(channel: socket.socket) -> bytes:
    if not (data := channel.recv(1 << 16)):
        raise SystemExit("bench: QEMU's machine ended too early")
    return data
