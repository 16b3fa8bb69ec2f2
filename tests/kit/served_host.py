"""A server that is told to move runs, maybe in a host of its own: `python -m tests.kit.served_host
PORT [OPTION OF mayfly serve]…`.

It first says which keys it takes, in a line of JSON: of a client, and of a server that moves runs
here. Each line of standard input is a run that is to move, the port where LOOPBACK has the other
server, and its key there; the answer are the exit status of `mayfly move` and its lines. The server
ends with standard input.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

from mayfly.host.keys import create, default_path, revoke


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mayfly.cli.main", *arguments]


def copy(lines: Iterable[str], listening: threading.Event) -> None:
    for line in lines:
        print(line, end="", file=sys.stderr, flush=True)
        if "listening" in line:
            listening.set()
    listening.set()


def main() -> None:
    names = {kind: f"{kind}-{secrets.token_hex(4)}" for kind in ("client", "moves")}
    keys = {kind: create(default_path(), name, moves=kind == "moves") for kind, name in names.items()}
    listening = threading.Event()
    with tempfile.TemporaryDirectory(prefix="mayfly-") as folder:
        socket = str(Path(folder) / "api.sock")
        serve = command("serve", "--cold", "--socket", socket, "--listen", f"0.0.0.0:{sys.argv[1]}", "--insecure", *sys.argv[2:])
        with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            copying = threading.Thread(target=copy, args=(server.stderr, listening))
            copying.start()
            try:
                listening.wait()
                print(json.dumps(keys), flush=True)
                for asked in sys.stdin:
                    run, port, key = json.loads(asked)
                    move = command("move", "--json", "--socket", socket, run, "--to", f"http://{os.environ['LOOPBACK']}:{port}")
                    done = subprocess.run(move, env={**os.environ, "MAYFLY_MOVE_KEY": key}, stdout=subprocess.PIPE, text=True, check=False)
                    print(json.dumps([done.returncode, *map(json.loads, done.stdout.splitlines())]), flush=True)
            finally:
                server.terminate()
                for name in names.values():
                    revoke(default_path(), name)
                copying.join()


if __name__ == "__main__":
    main()
