"""A vmm process from a real zygote, for threads that may wait."""

import contextlib
import os
import socket
from pathlib import Path
from typing import Self

from mayfly.guests.told import told
from mayfly.guests.zygote import Zygote
from mayfly.protocol.report import Ended, Line, Running, decode
from mayfly.vmm.config import MachineConfig
from tests.kit.control_client import ControlClient


class Spawned:
    """Our ends of its channel, report and control socket; closed by the context manager."""

    def __init__(self, zygote: Zygote, config: MachineConfig, number: int = 7) -> None:
        self.channel, channel = socket.socketpair()
        self.commands, commands = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read_end, write_end = os.pipe()
        self.lines = os.fdopen(read_end, "rb")
        self.control = ControlClient(self.commands)
        with channel, commands:
            self._socket = f"socket:[{os.fstat(channel.fileno()).st_ino}]"
            zygote.spawn(number, told(config), channel.fileno(), write_end, commands.fileno())
        os.close(write_end)
        self._zygote = zygote
        self.pid: int

    def next_line(self) -> Line:
        """The next line of its report."""
        return decode(self.lines.readline())

    def wait_running(self) -> Running:
        """Its first line, if it came up. `pid` is known then."""
        line = self.next_line()
        assert isinstance(line, Running), line
        pid = self._zygote.pid
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            self.pid = child  # the latest one, where this user may not look
            with contextlib.suppress(OSError):
                if self._socket in [str(fd.readlink()) for fd in Path(f"/proc/{child}/fd").iterdir()]:
                    break
        return line

    def wait_ended(self) -> Ended:
        """The last line of its report."""
        while not isinstance(line := self.next_line(), Ended):
            pass
        return line

    def close(self) -> None:
        """Close all; the machine ends by that."""
        self.channel.close()
        self.commands.close()
        self.lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
