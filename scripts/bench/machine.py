"""A machine of ours, for benchmarks."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from mayfly.vmm.config import MachineConfig
from mayfly.vmm.process.zygote import Reaped, Zygote


@contextlib.contextmanager
def started(zygote: Zygote, config: MachineConfig) -> Iterator[tuple[socket.socket, list[dict[str, Any]]]]:
    """The channel of such a machine, the only one of `zygote`, and its report, which is filled when
    the machine has ended in the end.
    """
    report: list[dict[str, Any]] = []
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as lines:
        channel, theirs = socket.socketpair()
        with channel:
            with theirs:
                zygote.spawn(1, config, theirs.fileno(), write_end)
            os.close(write_end)
            yield channel, report
        report += map(json.loads, lines)
    if report[-1]["error"]:
        raise SystemExit(f"the machine failed: {report[-1]['error']}")
    while not isinstance(zygote.receive(), Reaped):
        pass
