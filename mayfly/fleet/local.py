"""A whole fleet on one machine, for trying it out: a server, a gateway and hosts."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mayfly.errors import FleetError
from mayfly.fleet.server import LocalServer
from mayfly.host.admission import DEFAULT_SHARE
from mayfly.host.memory import available_memory

READY = "listening at"
START_S = 60.0


class Member:
    """A process of the fleet; what it says comes to what is in `log`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._from = output.tell()  # another one may have said more before
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)

    def wait_until_ready(self) -> None:
        """Wait until it serves.

        Raises:
            FleetError: it has ended, or takes too long.
        """
        deadline = time.monotonic() + START_S
        while READY not in (said := self.log.read_bytes()[self._from :].decode(errors="replace")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise FleetError(f"a process of the fleet did not start: {said[-400:].strip()}", hint=f"{self.log} has the whole")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as SIGTERM does, or by force."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve_locally(
    hosts: int,
    folder: Path,
    *,
    port: int,
    socket: Path,
    of_gateway: Sequence[str],
    of_hosts: Sequence[str],
    say: Callable[[str], None],
    program: Sequence[str] = (sys.executable, "-m", "mayfly.cli.main"),
) -> None:
    """Serve until SIGTERM, SIGINT, or SIGHUP (the terminal is closed) if that is not ignored; then
    nothing of it is left but what stands in `folder`. Each host has an equal part of the memory
    that one alone would take.

    Raises:
        FleetError, HostError: a part of it does not start.
    """
    share = int(available_memory() * DEFAULT_SHARE) // hosts
    (folder / "log").mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if ending is not signal.SIGHUP or signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(ending, lambda *_: stop.set())
    with LocalServer(folder / "nats", port=port) as server, contextlib.ExitStack() as running:
        say(f"nats-server at {server.url}")

        def start(name: str, *command: str) -> Member:
            member = Member([*program, *command], folder / "log" / f"{name}.log")
            running.callback(member.stop)
            return member

        members = [start("gateway", "gateway", server.url, "--name", "gateway", "--socket", str(socket), *of_gateway)]
        for number in range(1, hosts + 1):
            own = ["--socket", str(folder / f"host-{number}" / "api.sock"), "--name", f"host-{number}"]
            members.append(start(f"host-{number}", "serve", "--join", server.url, *own, "--memory-budget", str(share), *of_hosts))
        for member in members:
            member.wait_until_ready()
        say(f"gateway at {socket}; {hosts} hosts of {share >> 20} MiB; logs in {folder / 'log'}")
        stop.wait()
        say("stopping")
