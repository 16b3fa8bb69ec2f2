"""`mayfly run` where a server of the same user is running: the run is the server's, and this
process only passes on what goes in and comes out. It loads little, so that it starts quickly.
"""

import base64
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NoReturn

from mayfly import paths
from mayfly.cli.asking import Request, ask, fetch
from mayfly.cli.ending import explain, show_costs
from mayfly.cli.messages import report
from mayfly.cli.sources import files_in, name_files, read_source
from mayfly.errors import HostError, MayflyError, StoppingError, UnknownLanguageError, from_wire
from mayfly.exit_status import LIMIT_STATUS, OUR_STATUS

USUAL_WALL_S = 10.0
"""`run_wall_s`, if no file of configuration says otherwise."""
PIECE = 65536
CREDENTIALS = "3i"
"""A process, its user and group."""


class _Stopped(BaseException):
    """A signal came."""

    def __init__(self, status: int) -> None:
        self.status = status


def run_at_server(
    file: Path, language: str, wanted: Mapping[str, Any], *, interactive: bool, collect_to: Path | None, as_json: bool, verbose: bool
) -> int | None:
    """Have this user's server run `file`, and give the exit status of docs/api.md; None where no
    such server takes it, and nothing has happened. `wanted` are further fields of the request.

    Raises:
        MayflyError: the server refuses the run, or went away.
    """
    path, wall_s = _settings()
    if not is_ours(path):
        return None
    try:
        known = _language(ask(path, "GET", "/languages")["languages"], language, file, wanted["target"] or "")
    except (HostError, UnknownLanguageError):
        return None
    body = {name: value for name, value in wanted.items() if value and name != "target"}
    body |= {"language": f"{known['language']}@{known['version']}", "interactive": True}
    named = name_files([file], lambda name: known["source_files"].get(PurePath(name).suffix, known["source_file"]))
    body["files"] = {name: _content(read_source(path)) for name, path in named.items()}
    if not interactive:
        body["limits"] = {known["steps"][-1]: {"wall_s": wall_s}}
    try:
        with _signals_stop(), Request(path, "POST", "/run?stream=jsonl", body) as request:
            result = _follow(path, request, known["steps"][-1], shown=not as_json)
    except (StoppingError, UnknownLanguageError):
        return None
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except _Stopped as stopped:
        return stopped.status  # the server ends the run when its client goes away
    status: int = result["exit_status"]
    if as_json:
        print(json.dumps(result, ensure_ascii=False), flush=True)
    else:
        factor = ask(path, "GET", "/version")["time_factor"] if status == LIMIT_STATUS else 1
        explain(result["steps"], status, factor, from_wire(result["error"]) if result["error"] else None)
    kept_files = not wanted["collect"] or _keep_files(path, result, collect_to)
    if verbose:
        print(f"mayfly: run {result['id']} of the server at {path}", file=sys.stderr)
        show_costs(result["phases"], result["exits"])
    return status or (0 if kept_files else OUR_STATUS)


def _settings() -> tuple[Path, float]:
    """Where the server listens, and how long a program may take that nobody talks to."""
    if paths.config_file().exists():
        from mayfly.host.config import Config

        config = Config.load()
        return config.socket, config.run_wall_s
    return paths.runtime_dir() / "api.sock", USUAL_WALL_S


def is_ours(path: Path) -> bool:
    """Whether a server of this user listens there (unix(7), SO_PEERCRED)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(os.fspath(path))
        except OSError:
            return False
        size = struct.calcsize(CREDENTIALS)
        _, uid, _ = struct.unpack(CREDENTIALS, connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.geteuid())


def _language(known: Sequence[Mapping[str, Any]], language: str, file: Path, target: str) -> Mapping[str, Any]:
    """What the server says of the language that is named, or whose extension the file has, or any
    file of the folder.

    Raises:
        UnknownLanguageError: the server has none.
    """
    name, _, version = language.partition("@")
    if name:
        wanted = f"{name}-{target}" if target and name != target else name
        fitting = [one for one in known if one["language"] == wanted and f"{one['version']}.".startswith(f"{version}.".lstrip("."))]
        fitting.sort(key=lambda one: not one["default"])
    else:
        of_target = [one for one in known if target in (one["target"], one["language"])]
        suffixes = [one.suffix for one in files_in(file) if one.suffix]
        fitting = [one for suffix in suffixes for one in of_target if suffix in one["extensions"]]
    if not fitting:
        raise UnknownLanguageError(f"{file}: the server has no language for it")
    return fitting[0]


def _content(data: bytes) -> str | dict[str, str]:
    """Bytes in a request."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _follow(path: Path, request: Request, program: str, *, shown: bool) -> dict[str, Any]:
    """Pass on what goes in and, if `shown`, what comes out, until the run is over; its result. What
    building prints goes to standard error, so that standard output is the snippet's alone.
    """
    run = request.headers["content-location"].removesuffix("/events")
    threading.Thread(target=_feed, args=(path, run), daemon=True).start()
    building = True
    for event in request.lines():
        match event["event"]:
            case "stage":
                building = event["step"] != program
            case "attempt":
                print(f"mayfly: {event['reason']}; it begins again, and what it printed comes again", file=sys.stderr)
            case "stdout" | "stderr" as stream if shown:
                data = base64.b64decode(event["base64"]) if "base64" in event else event["data"].encode()
                _write(1 if stream == "stdout" and not building else 2, data)
            case "done":
                return dict(event["result"])
    raise request.lost(EOFError("the run's events ended before it"))


def _write(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # whoever shares it has made it so
            select.select([], [fd], [])


def _feed(path: Path, run: str) -> None:
    """Send standard input as it comes, to its end; a thread's work, which ends with the process.

    It waits before it reads: in the background of a terminal, reading would stop the process.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:  # the run is over
        connection.connect(os.fspath(path))
        connection.sendall(f"POST {run}/stdin?eof=true HTTP/1.1\r\nHost: mayfly\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        data = b"-"
        while data:
            select.select([0], [], [])
            data = os.read(0, PIECE)
            connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        connection.recv(PIECE)  # the answer: the server has taken all


def _keep_files(path: Path, result: Mapping[str, Any], folder: Path | None) -> bool:
    """Write the files that were asked for to `folder`; false if there are none to be had."""
    if "files_error" in result:
        report(from_wire(result["files_error"]))
        return False
    if not result.get("files", True):
        print("mayfly: the program left no file that --collect asks for", file=sys.stderr)
        return False
    if folder is not None and "files" in result:
        from mayfly.cli.collected import untar, write_files

        try:
            write_files(untar(fetch(path, "GET", f"/runs/{result['id']}/files")), folder)
        except MayflyError as error:
            report(error)
            return False
    return True


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    """SIGINT and SIGTERM raise _Stopped."""
    before = [(number, signal.signal(number, _stop)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _stop(number: int, _: object) -> NoReturn:
    raise _Stopped(128 + number)
