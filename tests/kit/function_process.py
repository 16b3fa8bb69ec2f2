"""A language's function as an ordinary process, and the agent's side of its descriptor 3."""

import dataclasses
import json
import os
import socket
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

from msgspec.structs import replace

from mayfly.imagegen.languages import load_language
from mayfly.images.manifest import Function, LanguageStep
from tests.kit.prepared_here import here, prepared_here

TO_FUNCTION = struct.Struct("<BIH")
FROM_FUNCTION = struct.Struct("<BIQH")
SIZE = struct.Struct("<I")
REQUEST, RESUMED = 1, 2
LOADED, ANSWER, EXCEPTION = 0, 1, 2
PATIENCE_S = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """What a function said. `log` is what its program has written since the message before."""

    kind: int
    id: int
    took_us: int
    content_type: str
    payload: bytes
    log: bytes = b""

    @property
    def json(self) -> Any:
        """An answer's JSON."""
        assert (self.kind, self.content_type) == (ANSWER, "application/json"), self
        return json.loads(self.payload)

    @property
    def exception(self) -> dict[str, str]:
        """An exception's fields."""
        assert (self.kind, self.content_type) == (EXCEPTION, "application/json"), self
        fields = json.loads(self.payload)
        assert set(fields) == {"error", "message", "trace"}
        return dict(fields)


def function_of(language: str) -> Function:
    """How a language loads a function."""
    found = load_language(language).function
    assert found is not None
    steps = (replace(step, argv=tuple(here(part, prepared_here(language)) for part in step.argv)) for step in found.steps)
    return replace(found, steps=tuple(steps))


class FunctionProcess:
    """A function, built and started in a folder as the steps of its language say; the last of them
    is under way. `prefix` goes before each command; what is written belongs to `user` if there is
    one.
    """

    def __init__(
        self,
        function: Function,
        files: Mapping[str, str | bytes],
        folder: Path,
        *,
        entry: str = "",
        options: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        user: int = -1,
    ) -> None:
        self._prefix = prefix
        self._replaced = {"{entry}": entry or function.entry, **{f"{{{name}}}": value for name, value in (options or {}).items()}}
        self._env = {"PATH": os.environ["PATH"], "HOME": str(Path.home()), "LANG": "C.UTF-8", **(env or {})}
        for path, content in {**function.files, **files}.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
            for written in (target, target.parent):
                os.chown(written, user, user)
        for step in function.steps[:-1]:
            done = subprocess.run(self._argv(step), cwd=folder, env={**self._env, **step.env}, capture_output=True, check=False)
            if done.returncode:
                raise BuildError(done.stderr.decode())
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self._seen = 0
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        self._socket = ours
        self._reader: BinaryIO = ours.makefile("rb")
        step = function.steps[-1]

        def give() -> None:
            os.dup2(theirs.fileno(), 3)
            os.set_inheritable(3, True)

        with theirs:
            self.process = subprocess.Popen(
                self._argv(step),
                cwd=folder,
                env={**self._env, **step.env},
                close_fds=False,
                preexec_fn=give,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
            )

    def _argv(self, step: LanguageStep) -> Sequence[str]:
        return [*self._prefix, *(self._replaced.get(part, part) for part in step.argv)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._socket.close()
        self.process.kill()
        self.process.wait()
        self._output.close()

    def ask(self, payload: bytes = b"", content_type: str = "", *, id: int = 1) -> Message:
        """Send a request, and wait for what the function says to it."""
        self.send(payload, content_type, id=id)
        return self.receive()

    def send(self, payload: bytes = b"", content_type: str = "", *, id: int = 1, kind: int = REQUEST) -> None:
        """Send a request."""
        name = content_type.encode()
        self._socket.sendall(TO_FUNCTION.pack(kind, id, len(name)) + name + SIZE.pack(len(payload)) + payload)

    def receive(self) -> Message:
        """The next message. Raises EOFError when the function has closed its end."""
        kind, number, took_us, length = FROM_FUNCTION.unpack(self._exactly(FROM_FUNCTION.size))
        content_type = self._exactly(length).decode()
        (size,) = SIZE.unpack(self._exactly(SIZE.size))
        payload = self._exactly(size)
        return Message(kind=kind, id=number, took_us=took_us, content_type=content_type, payload=payload, log=self.log())

    def _exactly(self, size: int) -> bytes:
        data = self._reader.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def log(self) -> bytes:
        """What the program has written since this was asked before."""
        size = os.fstat(self._output.fileno()).st_size
        data = os.pread(self._output.fileno(), size - self._seen, self._seen)
        self._seen = size
        return data

    def load(self) -> Message:
        """Wait until the function is loaded.

        Raises:
            LoadError: it ended instead, with this code and log.
        """
        try:
            return self.receive()
        except (EOFError, ConnectionError):
            code = self.process.wait(PATIENCE_S)
            raise LoadError(code, self.log().decode()) from None


class BuildError(Exception):
    """A step before the function failed; the message is its standard error."""


class LoadError(Exception):
    """The function ended before it was loaded."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(f"exit code {code}: {log}")
        self.code, self.log = code, log
