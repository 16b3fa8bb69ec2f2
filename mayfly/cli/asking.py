"""Ask the server of this user over its Unix socket, without the libraries that a client of many
requests needs.
"""

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from mayfly.errors import HostError, from_wire

_T = TypeVar("_T")


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """Connect to the server's socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def lines_of(path: Path, address: str, body: Any) -> Iterator[dict[str, Any]]:
    """The lines of JSON that the server at the socket `path` answers a POST with, as they come.

    Raises:
        HostError, MayflyError: as `ask`.
    """
    connection = _UnixConnection(path)
    try:
        connection.request("POST", address, json.dumps(body))
        answer = connection.getresponse()
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            raise from_wire(dict(json.loads(answer.read())["error"]))
        for line in answer:
            yield json.loads(line)
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
        raise _silent(path, error) from error
    finally:
        connection.close()


def _silent(path: Path, error: Exception) -> HostError:
    return HostError(f"{path}: no server of Mayfly answers: {error}", hint="start it: mayfly serve, or give its --socket")


def ask(path: Path, method: str, address: str, body: Any = None) -> Any:
    """The JSON that the server at the socket `path` answers.

    Raises:
        HostError: no server is there.
        MayflyError: it refuses; the error is the server's own.
    """
    return _ask(path, method, address, body, json.loads)


def fetch(path: Path, method: str, address: str) -> bytes:
    """As `ask`, for an answer that is no JSON."""
    return _ask(path, method, address, None, bytes)


def _ask(path: Path, method: str, address: str, body: Any, decode: Callable[[bytes], _T]) -> _T:
    connection = _UnixConnection(path)
    try:
        connection.request(method, address, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        data = answer.read()
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            raise from_wire(dict(json.loads(data)["error"]))
        return decode(data)
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
        raise _silent(path, error) from error
    finally:
        connection.close()
