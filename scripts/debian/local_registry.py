"""Serve OCI layouts from Debian's docker-registry on 127.0.0.1.

Usage: python -m scripts.debian.local_registry COMMAND

start DIR…          start one, push the layouts as FOLDERNAME:latest (or their own tags), print
                    its address
stop                end it and remove its data
run DIR… -- CMD…    the same around a command, which finds the address in MAYFLY_REGISTRY
"""

import contextlib
import http.client
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
from typing import Any, BinaryIO

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
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return base / "mayfly" / "local-registry.json"


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
    for folder in map(Path, folders):
        for descriptor in json.loads((folder / "index.json").read_bytes())["manifests"]:
            tag = descriptor.get("annotations", {}).get(TAG, "latest")
            repository = folder.resolve().name.lower()
            push(address, repository, folder / "blobs", descriptor, tag)
            print(f"local-registry: {folder} is {address}/{repository}:{tag}", file=sys.stderr)


def push(address: str, repository: str, blobs: Path, descriptor: dict[str, Any], target: str) -> None:
    """Push a manifest or index with all that it leads to, under the tag or digest `target`."""
    body = blob_path(blobs, descriptor).read_bytes()
    document = json.loads(body)
    for inner in document.get("manifests", []):
        if blob_path(blobs, inner).exists():
            push(address, repository, blobs, inner, inner["digest"])
    if "config" in document:
        for blob in (document["config"], *document["layers"]):
            push_blob(address, repository, blob_path(blobs, blob), blob["digest"])
    media_type = document.get("mediaType") or descriptor["mediaType"]
    request(address, "PUT", f"/v2/{repository}/manifests/{target}", body, {"Content-Type": media_type})


def push_blob(address: str, repository: str, path: Path, digest: str) -> None:
    location = request(address, "POST", f"/v2/{repository}/blobs/uploads/", b"", {})
    separator = "&" if "?" in location else "?"
    with path.open("rb") as body:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
        request(address, "PUT", f"{location}{separator}digest={digest}", body, headers)


def request(address: str, method: str, url: str, body: bytes | BinaryIO, headers: dict[str, str]) -> str:
    """One request (OCI distribution-spec, Pushing); the answer's Location."""
    connection = http.client.HTTPConnection(address, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, url.removeprefix(f"http://{address}"), body=body, headers=headers)
        answer = connection.getresponse()
        text = answer.read()
    if answer.status not in (201, 202):
        sys.exit(f"local-registry: {method} {url.partition('?')[0]} gave {answer.status}: {text[:500].decode(errors='replace')}")
    return answer.headers.get("Location", "")


def blob_path(blobs: Path, descriptor: dict[str, Any]) -> Path:
    algorithm, _, value = str(descriptor["digest"]).partition(":")
    return blobs / algorithm / value


if __name__ == "__main__":
    sys.exit(main())
