"""Loads a function, `python3 .mayfly/shim.py MODULE.NAME`, and serves requests to it over
descriptor 3 (agent/PROTOCOL.md, "Functions"). The function's folder is the working directory.

Runs on Python 3.8 and newer. What it imports is loaded once, before the snapshot.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import struct
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO

HERE = os.path.abspath(__file__)
FOLDER = os.getcwd()
DESCRIPTOR = 3
PRIVATE = 1000
"""The descriptor's number while a handler runs, which may close or open what it likes below."""
TO_US = struct.Struct("<BIH")
"""Kind, id, length of the content type. The type, a SIZE and the payload follow."""
FROM_US = struct.Struct("<BIQH")
"""Kind, id, microseconds, length of the content type. The type, a SIZE and the payload follow."""
SIZE = struct.Struct("<I")
REQUEST, RESUMED = 1, 2
LOADED, ANSWER, EXCEPTION = 0, 1, 2
MAX_PAYLOAD = 6 << 20
MAX_MESSAGE, MAX_TRACE = 8 << 10, 64 << 10
"""Characters of an exception's message and trace."""
CO_COROUTINE = 0x80
JSON = "application/json"
NO_BODY = json.dumps({"error": "Exception", "message": "the exception cannot be described", "trace": ""})


class LoadError(Exception):
    """The function cannot be loaded; the message says why."""


class Loop:
    """An event loop that lasts as long as the function, so that what it has opened stays usable."""

    def __init__(self) -> None:
        import asyncio  # only functions that need it pay for it

        self._asyncio = asyncio
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)

    def run(self, awaitable: Any) -> Any:
        """Wait for `awaitable`, and end the tasks that it leaves, as asyncio.run does."""
        try:
            return self._loop.run_until_complete(self._wait(awaitable))
        finally:
            if tasks := self._asyncio.all_tasks(self._loop):
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(self._asyncio.gather(*tasks, return_exceptions=True))

    async def _wait(self, awaitable: Any) -> Any:
        return await awaitable


class Server:
    """The function's side of the descriptor."""

    def __init__(self, handler: Callable[[Any], Any], descriptor: int) -> None:
        self._handler = handler
        self._pid = os.getpid()
        self._requests: BinaryIO = open(descriptor, "rb", closefd=False)  # noqa: SIM115  # as long as the process
        self._answers: BinaryIO = open(descriptor, "wb", closefd=False)  # noqa: SIM115
        is_async = getattr(getattr(handler, "__code__", None), "co_flags", 0) & CO_COROUTINE
        self._loop = Loop() if is_async else None

    def serve(self) -> None:
        """Say that the function is loaded, and answer requests until there are no more."""
        self._send(LOADED, 0, 0, "", b"")
        while True:
            header = self._requests.read(TO_US.size)
            if len(header) < TO_US.size:
                return
            kind, number, length = TO_US.unpack(header)
            content_type = self._requests.read(length).decode("utf-8", "replace")
            (size,) = SIZE.unpack(self._requests.read(SIZE.size))
            payload = self._requests.read(size)
            if kind == RESUMED:
                reseed()
                continue
            begin = time.perf_counter_ns()
            kind, content_type, payload = self._answer(content_type, payload)
            took = (time.perf_counter_ns() - begin) // 1000
            flush()
            self._send(kind, number, took, content_type, payload)

    def _answer(self, content_type: str, payload: bytes) -> tuple[int, str, bytes]:
        try:
            answer = self._handler(decoded(content_type, payload))
            if hasattr(type(answer), "__await__"):
                self._loop = self._loop or Loop()
                answer = self._loop.run(answer)
            if os.getpid() != self._pid:
                sys.exit()  # a child that the handler forked and that came back from it
            return encoded(answer)
        except BaseException as error:  # sys.exit and Ctrl-C too: neither is a reason to load the function again
            if os.getpid() != self._pid:
                raise
            return EXCEPTION, JSON, described(error)

    def _send(self, kind: int, number: int, took: int, content_type: str, payload: bytes) -> None:
        name = content_type.encode()
        self._answers.write(FROM_US.pack(kind, number, took, len(name)) + name + SIZE.pack(len(payload)))
        self._answers.write(payload)
        self._answers.flush()


def decoded(content_type: str, payload: bytes) -> Any:
    """What a handler gets: an object for JSON, text for text/*, else the bytes.

    Without a content type it is an object if the bytes are JSON. No bytes are None then, and for
    JSON.
    """
    name, _, parameters = content_type.lower().partition(";")
    name = name.strip()
    is_json = name == JSON or name.endswith("+json")
    if not payload and (is_json or not name):
        return None
    if is_json:
        try:
            return _json(payload)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the payload is not JSON: {error}") from None
    if name.startswith("text/"):
        charset = parameters.partition("charset=")[2].partition(";")[0].strip(" \"'") or "utf-8"
        try:
            return payload.decode(charset)
        except (ValueError, LookupError) as error:
            raise ValueError(f"the payload is not text in {charset[:80]}: {error}") from None
    if not name:
        with contextlib.suppress(ValueError, RecursionError):
            return _json(payload)
    return payload


def _json(payload: bytes) -> Any:
    # In UTF-8 only: as UTF-16 too much could be JSON that is not meant to be.
    # Not "utf-8-sig": Python imports a module for that at its first use.
    text = payload.decode()
    return json.loads(text[1:] if text.startswith("\ufeff") else text, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"it has no {name}")


def encoded(answer: Any) -> tuple[int, str, bytes]:
    """What is sent for a handler's answer: kind, content type, payload.

    Raises:
        ValueError, TypeError: it cannot be sent; the message says why.
    """
    if isinstance(answer, (bytes, bytearray, memoryview)):
        content_type, payload = "application/octet-stream", bytes(answer)
    elif isinstance(answer, str):
        content_type, payload = "text/plain; charset=utf-8", answer.encode()
    else:
        try:
            content_type, payload = JSON, json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise type(error)(f"the answer cannot be written as JSON: {error}") from None
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"the answer has {len(payload)} bytes; at most {MAX_PAYLOAD} can be sent")
    return ANSWER, content_type, payload


def described(error: BaseException) -> bytes:
    """An exception as JSON: its class, its message and its trace, which begins in the function."""
    try:
        skip_own_frames(error)
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        try:
            message = str(error)
        except BaseException as second:
            message = f"its message cannot be had: {type(second).__name__}"
        texts = {"error": type(error).__name__, "message": message[:MAX_MESSAGE], "trace": _cut(trace)}
        # A lone surrogate would be written as one, which is not JSON for everybody.
        return json.dumps({name: text.encode("utf-8", "backslashreplace").decode() for name, text in texts.items()}).encode()
    except BaseException:  # no memory or stack, or an exception that does not want to be shown
        return NO_BODY.encode()


def _cut(text: str) -> str:
    """The beginning and the end of a long text."""
    half = MAX_TRACE // 2
    return text if len(text) <= MAX_TRACE else f"{text[:half]}\n...\n{text[-half:]}"


def skip_own_frames(error: BaseException) -> None:
    """Let a traceback begin in the function, behind what calls or imports it."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None and not _is_theirs(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    if frame is None:  # it came from what the function called for in a library, or was raised here
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_filename == HERE:
            frame = frame.tb_next
    error.__traceback__ = frame


def _is_theirs(path: str) -> bool:
    return path.startswith(f"{FOLDER}/") and path != HERE


def reseed() -> None:
    """Give every clone of a snapshot random numbers of its own, where they are made in the process.

    os.urandom, secrets and uuid4 ask the kernel, which the agent reseeds.
    """
    loaded = sys.modules
    with contextlib.suppress(KeyError, AttributeError):
        loaded["random"].seed()
    with contextlib.suppress(KeyError, AttributeError):
        loaded["ssl"].RAND_add(os.urandom(64), 64.0)  # OpenSSL's
    with contextlib.suppress(KeyError, AttributeError):
        loaded["numpy"].random.seed()


def flush() -> None:
    """Write out what was printed, so that it belongs to the request."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(BaseException):  # closed, or replaced by anything
            stream.flush()  # type: ignore[union-attr]


def load(entry: str) -> Callable[[Any], Any]:
    """Import the function.

    Raises:
        LoadError: there is no such module or function, or importing it failed.
    """
    own = {os.path.splitext(name)[0] for name in os.listdir(FOLDER) if name.endswith(".py") or is_package(name)} - {"__main__"}
    if hidden := sorted(own & set(sys.modules)):
        raise LoadError(f"its module {hidden[0]} has the name of one of Python's own that is loaded before it; give it another name")
    module_name, _, name = entry.rpartition(".")
    if not module_name or not name:
        raise LoadError(f"the entry is {entry!r}; it must be MODULE.NAME, such as handler.handle")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            names = ", ".join(sorted(name for name in os.listdir(FOLDER) if not name.startswith("."))[:20])
            raise LoadError(f"the entry is {entry!r}, and the function has no module {module_name}; its files are {names}") from None
        raise LoadError(_failure(module_name, error)) from error
    except BaseException as error:
        raise LoadError(_failure(module_name, error)) from error
    handler = getattr(module, name, None)
    if handler is None:
        raise LoadError(f"the entry is {entry!r}, and the module {module_name} has no {name}")
    if not callable(handler):
        raise LoadError(f"the entry is {entry!r}, which is of the type {type(handler).__name__} and cannot be called")
    return handler  # type: ignore[no-any-return]


def is_package(name: str) -> bool:
    """Whether a folder of the function is a package."""
    return os.path.exists(os.path.join(FOLDER, name, "__init__.py"))


def _failure(module: str, error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the module {module} exited while it was imported"
    return f"the module {module} failed while it was imported"


def main() -> None:
    """Load the function and serve it."""
    if len(sys.argv) != 2:
        sys.exit("usage: shim.py MODULE.NAME")
    entry = sys.argv.pop()
    try:
        os.dup2(DESCRIPTOR, PRIVATE, inheritable=False)
        os.close(DESCRIPTOR)
    except OSError:
        sys.exit("descriptor 3 is not open; the guest's agent starts this program")
    os.register_at_fork(after_in_child=lambda: os.close(PRIVATE))
    with contextlib.suppress(AttributeError):
        # What was printed before a crash is in the log, up to the last whole line.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.path[:] = [FOLDER, *(path for path in sys.path if path != os.path.dirname(HERE))]
    try:
        handler = load(entry)
    except LoadError as error:
        flush()
        print(f"the function cannot be loaded: {error}", file=sys.stderr)
        if error.__cause__ is not None:
            skip_own_frames(error.__cause__)
            traceback.print_exception(type(error.__cause__), error.__cause__, error.__cause__.__traceback__)
        flush()
        os._exit(1)  # without waiting for threads that were started meanwhile
    server = Server(handler, PRIVATE)
    encoded(decoded(JSON, b'{"a": [1, 2.5, "b", true, null]}'))  # so that no guest has it to do for the first time
    # What is there now stays: clones of the snapshot share it for as long as nobody writes to it.
    gc.collect()
    gc.freeze()
    flush()
    server.serve()


if __name__ == "__main__":
    main()
