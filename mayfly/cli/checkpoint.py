"""`mayfly checkpoint`: the state of a program of WebAssembly, in a file."""

import os
import urllib.parse
from pathlib import Path

from mayfly.cli.asking import fetch
from mayfly.errors import HostError
from mayfly.files import atomic_write
from mayfly.host.config import Config
from mayfly.protocol.messages import MAX_FILES_SIZE


def save(run: str, output: Path | None, config: Config) -> str:
    """Have the server stop a run, and write the state that it gives; says what was written.

    Raises:
        HostError: no server is there, or the file cannot be written: the state would be lost then,
            so room for the largest one is taken before.
        MayflyError: the server refuses; the error is its own.
    """
    path = output or Path(f"{run}.checkpoint")
    try:
        with atomic_write(path) as file:
            os.posix_fallocate(file.fileno(), 0, MAX_FILES_SIZE)
            data = fetch(config.socket, "POST", f"/runs/{urllib.parse.quote(run, safe='')}/checkpoint")
            file.write(data)
            file.truncate()
    except OSError as error:
        hint = f"give another --output, where a file of {MAX_FILES_SIZE >> 20} MiB may be"
        raise HostError(f"{path}: cannot be written: {error.strerror}", hint=hint) from error
    return f"{path}: {len(data)} bytes; it goes on with: mayfly resume {path}"
