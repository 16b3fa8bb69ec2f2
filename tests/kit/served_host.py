"""A server that is told to move runs, maybe in a host of its own: `python -m tests.kit.served_host
PORT [OPTION OF mayfly serve]…`, in which $LOOPBACK stands for the address of the loopback of the
machine with the other server.

It has this host's kernels and images, and keeps what it installs besides no longer than it runs.
It first says, in a line of JSON, which keys it takes (of a client, and of a server that moves runs
here) and what LOOPBACK is. Each line of standard input has the words of a `mayfly` command, in
which SOCKET stands for the server's, and the key that it is given of another server; the answer is
its exit status and what it printed. The server ends with standard input.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from mayfly import paths
from mayfly.host.keys import create, default_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mayfly.cli.main", *arguments]


def copy(lines: Iterable[str], listening: threading.Event) -> None:
    for line in lines:
        print(line, end="", file=sys.stderr, flush=True)
        if "listening" in line:
            listening.set()
    listening.set()


def link_data(folder: Path) -> None:
    """Make a data folder with this host's kernels and images."""
    (folder / "images").mkdir(parents=True)
    for entry in [paths.data_dir() / "kernel", *(paths.data_dir() / "images").iterdir()]:
        (folder / entry.relative_to(paths.data_dir())).symlink_to(entry)


def main() -> None:
    listening = threading.Event()
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        link_data(Path(folder, "mayfly"))
        os.environ["XDG_DATA_HOME"] = folder
        keys = {kind: create(default_path(), kind, moves=kind == "moves") for kind in ("client", "moves")}
        socket = str(Path(folder) / "api.sock")
        options = map(os.path.expandvars, sys.argv[2:])
        serve = command("serve", "--socket", socket, "--listen", f"0.0.0.0:{sys.argv[1]}", "--insecure", *options)
        with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            copying = threading.Thread(target=copy, args=(server.stderr, listening))
            copying.start()
            try:
                listening.wait()
                print(json.dumps({**keys, "loopback": os.environ["LOOPBACK"]}), flush=True)
                for asked in sys.stdin:
                    words, key = json.loads(asked)
                    given = command(*(os.path.expandvars(socket if word == "SOCKET" else word) for word in words))
                    done = subprocess.run(given, env={**os.environ, "MAYFLY_MOVE_KEY": key}, stdout=subprocess.PIPE, text=True, check=False)
                    print(json.dumps([done.returncode, done.stdout]), flush=True)
            finally:
                server.terminate()
                copying.join()


if __name__ == "__main__":
    main()
