"""Serve OCI layouts from Debian's docker-registry on 127.0.0.1.

Usage: python -m scripts.debian.local_registry COMMAND

start DIR…          start one, push the layouts as FOLDERNAME:latest (or their own tags), print
                    its address
stop                end it and remove its data
run DIR… -- CMD…    the same around a command, which finds the address in MAYFLY_REGISTRY
"""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mayfly import paths

CONFIG = """\
version: 0.1
log: {{ level: info, accesslog: {{ disabled: true }} }}
storage: {{ filesystem: {{ rootdirectory: {data} }} }}
http: {{ addr: "127.0.0.1:0" }}
"""
LISTENING = re.compile(rb"listening on (127\.0\.0\.1:\d+)")
START_S = 30
TAG = "org.opencontainers.image.ref.name"


def main() -> int:
    match sys.argv[1:]:
        case ["start", *folders] if folders and "--" not in folders:
            return start(folders)
        case ["stop"]:
            return stop()
        case ["run", *rest] if "--" in rest:
            at = rest.index("--")
            return run(rest[:at], rest[at + 1 :])
        case _:
            print((__doc__ or "").strip(), file=sys.stderr)
            return 2


def state_file() -> Path:
    """What `start` leaves for `stop`: the process and its folder."""
    return paths.cache_dir() / "local-registry.json"


def start(folders: list[str]) -> int:
    state = state_file()
    if state.exists():
        stop()
    state.parent.mkdir(parents=True, exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="mayfly-registry."))
    process, address = launch(data)
    try:
        state.write_text(json.dumps({"pid": process.pid, "data": str(data)}))
        push_all(address, folders)
    except BaseException:
        stop()
        raise
    print(address)
    return 0


def stop() -> int:
    state = state_file()
    try:
        known = json.loads(state.read_text())
    except FileNotFoundError:
        print("local-registry: none was started", file=sys.stderr)
        return 1
    state.unlink()
    # Another process may have the number by now: end only what runs with our configuration.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        handle = os.pidfd_open(known["pid"])
        command = Path(f"/proc/{known['pid']}/cmdline").read_bytes()
        if known["data"].encode() in command:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], START_S)
        os.close(handle)
    shutil.rmtree(known["data"], ignore_errors=True)
    return 0


def run(folders: list[str], command: list[str]) -> int:
    with serving() as address:
        push_all(address, folders)
        return subprocess.run(command, env={**os.environ, "MAYFLY_REGISTRY": address}).returncode


@contextlib.contextmanager
def serving() -> Iterator[str]:
    data = Path(tempfile.mkdtemp(prefix="mayfly-registry."))
    try:
        process, address = launch(data)
        try:
            yield address
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(data, ignore_errors=True)


def launch(data: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the daemon in a session of its own; it takes a free port, and its log says which."""
    config, log = data / "config.yml", data / "log"
    config.write_text(CONFIG.format(data=data / "registry"))
    with log.open("wb") as out:
        try:
            process = subprocess.Popen(
                ["docker-registry", "serve", str(config)], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        except FileNotFoundError:
            sys.exit("local-registry: there is no docker-registry here: apt-get install docker-registry")
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := LISTENING.search(log.read_bytes()):
            return process, found[1].decode()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.kill()
    process.wait()
    sys.exit(f"local-registry: docker-registry did not come up within {START_S} s:\n{log.read_text(errors='replace')}")


def push_all(address: str, folders: list[str]) -> None:
    """Push every image of the layouts, all its platforms, as their blobs are."""
    for folder in map(Path, folders):
        for descriptor in json.loads((folder / "index.json").read_bytes())["manifests"]:
            tag = descriptor.get("annotations", {}).get(TAG, "")
            source = f"oci:{folder}:{tag}" if tag else f"oci:{folder}"
            target = f"{address}/{folder.resolve().name.lower()}:{tag or 'latest'}"
            copy = ["skopeo", "copy", "--quiet", "--all", "--insecure-policy", "--dest-tls-verify=false", "--preserve-digests"]
            try:
                subprocess.run([*copy, source, f"docker://{target}"], stdout=2, check=True)
            except FileNotFoundError:
                sys.exit("local-registry: there is no skopeo here: apt-get install skopeo")
            print(f"local-registry: {folder} is {target}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
