"""Ask the server of this user over its Unix socket, without the libraries that a client of many
requests needs: loading http.client takes as long as all else that a short run's command does.

Requests are of HTTP/1.0, so an answer ends with its connection and has no chunks.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from mayfly.errors import HostError, MayflyError, from_wire

_T = TypeVar("_T")
MAX_LINE = 65536
"""Bytes of a line of an answer's head, as http.client has it."""
FIRST_ERROR = 400
"""The lowest status that refuses."""


class Request:
    """A request and its answer, whose head has been read. A context manager, which closes it.

    Raises:
        HostError: no server is there.
        MayflyError: it refuses; the error is the server's own.
    """

    def __init__(self, path: Path, method: str, address: str, body: Any = None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {address} HTTP/1.0\r\nHost: mayfly\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.body: IO[bytes] = self._socket.makefile("rb")
        try:
            self._socket.connect(os.fspath(path))
            self._socket.sendall(head.encode() + content)
            self.headers = self._head()
        except (OSError, ValueError, LookupError, TypeError) as error:
            self._close()
            raise self.lost(error) from error
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self.body.close()  # the socket stays open as long as this is
        self._socket.close()

    def _head(self) -> dict[str, str]:
        status = int(self._line().split()[1])
        headers = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if status >= FIRST_ERROR:
            raise from_wire(dict(json.loads(self.body.read())["error"]))
        return headers

    def _line(self) -> str:
        line = self.body.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise ValueError("it closed the connection" if len(line) < MAX_LINE else "not an answer of HTTP")
        return line.decode("latin-1").rstrip("\r\n")

    def read(self, decode: Callable[[bytes], _T]) -> _T:
        """The whole answer."""
        with self:
            try:
                return decode(self.body.read())
            except (OSError, ValueError) as error:
                raise self.lost(error) from error

    def lines(self) -> Iterator[dict[str, Any]]:
        """Its lines of JSON, as they come."""
        with self:
            try:
                for line in self.body:
                    yield json.loads(line)
            except (OSError, ValueError) as error:
                raise self.lost(error) from error

    def lost(self, error: BaseException) -> MayflyError:
        """What a failed connection means."""
        return HostError(f"{self._path}: no server of Mayfly answers: {error}", hint="start it: mayfly serve, or give its --socket")


def lines_of(path: Path, address: str, body: Any) -> Iterator[dict[str, Any]]:
    """The lines of JSON that the server at the socket `path` answers a POST with, as they come.

    Raises:
        HostError, MayflyError: as `Request`.
    """
    yield from Request(path, "POST", address, body).lines()


def ask(path: Path, method: str, address: str, body: Any = None) -> Any:
    """The JSON that the server at the socket `path` answers.

    Raises:
        HostError, MayflyError: as `Request`.
    """
    return Request(path, method, address, body).read(json.loads)


def fetch(path: Path, method: str, address: str) -> bytes:
    """As `ask`, for an answer that is no JSON."""
    return Request(path, method, address).read(bytes)
