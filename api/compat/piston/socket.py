"""Piston's WebSocket, `/api/v2/connect`: a run whose output is sent as it comes, and which takes
standard input and signals.
"""

import asyncio
import contextlib
import enum
import logging
import signal
from collections.abc import Iterator
from typing import Any

import aiohttp
from aiohttp import web

from mayfly.api.compat.dialect import parse_object, start, text_of
from mayfly.api.compat.images import is_interpreted
from mayfly.api.compat.piston.jobs import Job, make_job, runtime_of
from mayfly.api.compat.piston.results import signal_name
from mayfly.api.compat.stages import ended_of, text
from mayfly.api.intake import SERVICE
from mayfly.errors import MayflyError, RequestError, RunEndedError, to_wire
from mayfly.guests.outcome import StepResult
from mayfly.protocol.frames import Stage, Stderr, Stdout
from mayfly.runs.record import Reader, RunEvent
from mayfly.runs.run import Run
from mayfly.runs.stdin import StdinWriter
from mayfly.schema import replace
from mayfly.units import MIB

log = logging.getLogger(__name__)
MAX_MESSAGE = 1 * MIB
"""Bytes of a message; a larger one closes the WebSocket. It is held whole, outside of the bound
that bodies share.
"""
INIT_S = 1.0
"""For the first message, as Piston has it."""
IDLE_S = 30.0
"""Between pings; a client that answers none in half of it is gone."""
CLOSE_S = 5.0
"""For the client's answer to the end."""
PIECE = 16 * 1024
"""Bytes that wait for a slow client before more are rendered."""


class Close(enum.IntEnum):
    """Piston's codes of closing, with its words."""

    ALREADY_INITIALIZED = 4000, "Already Initialized"
    INITIALIZATION_TIMEOUT = 4001, "Initialization Timeout"
    NOTIFIED_ERROR = 4002, "Notified Error"
    NOT_YET_INITIALIZED = 4003, "Not yet initialized"
    ONLY_STDIN = 4004, "Can only write to stdin"
    INVALID_SIGNAL = 4005, "Invalid signal"
    JOB_COMPLETED = 4999, "Job Completed"
    words: str

    def __new__(cls, code: int, words: str) -> "Close":
        """A code with its words."""
        made = int.__new__(cls, code)
        made._value_ = code
        made.words = words
        return made


async def connect(request: web.Request) -> web.StreamResponse:
    """Talk to a client until its run is over; if it goes away, the run is ended.

    Raises:
        RequestError: the request is not one of a WebSocket.
    """
    answer = web.WebSocketResponse(timeout=CLOSE_S, heartbeat=IDLE_S, compress=False, max_msg_size=MAX_MESSAGE, writer_limit=PIECE)
    if not answer.can_prepare(request):
        raise RequestError("a WebSocket is spoken here", hint="POST to /api/v2/execute")
    await answer.prepare(request)
    session = _Session(request, answer)
    try:
        await session.serve()
    except OSError:  # the client is gone
        if request.transport is not None:
            request.transport.abort()
    except Exception:  # nothing but a WebSocket's frames may be sent now
        log.exception("%s %s", request.method, request.path)
        await answer.close(code=aiohttp.WSCloseCode.INTERNAL_ERROR)
    finally:
        await session.end()
    return answer


class _Stages:
    """What is sent of a run's events. A check before an interpreted run is part of that."""

    def __init__(self, *, interpreted: bool, count: int) -> None:
        self._interpreted = interpreted
        self._last = count - 1
        self._stage = ""

    def messages(self, event: RunEvent) -> Iterator[dict[str, Any]]:
        """The messages that an event makes."""
        match event:
            case Stage(step):
                stage = "run" if self._interpreted or step == self._last else "compile"
                if stage != self._stage:
                    yield {"type": "stage", "stage": stage}
                self._stage = stage
            case Stdout(data):
                yield {"type": "data", "stream": "stdout", "data": text(data)}
            case Stderr(data):
                yield {"type": "data", "stream": "stderr", "data": text(data)}
            case StepResult(_, ended):
                _, _, code, number = ended_of(ended)
                if code != 0 or ended.step == self._last or not self._interpreted:
                    yield {"type": "exit", "stage": self._stage, "code": code, "signal": signal_name(number)}


class _Session:
    """A client, and the run that it started."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self._request = request
        self._socket = socket
        self._service = request.app[SERVICE]
        self._run: Run | None = None
        self._writer: StdinWriter | None = None
        self._telling: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Take the client's messages until one of both closes."""
        try:
            async with asyncio.timeout(INIT_S) as limit:
                while await self._take():
                    if self._run is not None:
                        limit.reschedule(None)
        except TimeoutError:
            await self._close(Close.INITIALIZATION_TIMEOUT)

    async def end(self) -> None:
        """End the run, if it is under way. What must be done is done before the first wait: aiohttp
        cancels this when the connection is lost.
        """
        if self._telling is not None:
            self._telling.cancel()
        if self._run is not None and not self._run.done.is_set():
            await self._service.end(self._run, "the client went away")

    async def _take(self) -> bool:
        """Take a message; False if it was the last one."""
        message = await self._socket.receive()
        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return False
        try:
            data = message.data.encode() if isinstance(message.data, str) else message.data
            code = await self._obey(parse_object(data))
        except RunEndedError:  # what is left will be sent yet
            code = None
        except MayflyError as error:
            await self._send(type="error", message=text_of(to_wire(error)))
            code = Close.NOTIFIED_ERROR
        if code is not None:
            await self._close(code)
        return code is None

    async def _obey(self, said: dict[str, Any]) -> Close | None:
        """Do what the client says; why it must be closed, if it must."""
        match said.get("type"):
            case "init" if self._run is not None:
                return Close.ALREADY_INITIALIZED
            case "init":
                await self._begin(said)
            case "data" | "signal" if self._run is None:
                return Close.NOT_YET_INITIALIZED
            case "data" if said.get("stream") != "stdin":
                return Close.ONLY_STDIN
            case "data":
                await self._write(said.get("data"))
            case "signal":
                return await self._signal(said.get("signal"))
        return None

    async def _begin(self, said: dict[str, Any]) -> None:
        given = said.get("stdin")
        job = make_job(self._service, said)
        snippet = replace(job.snippet, interactive=True, stdin=given.encode() if isinstance(given, str) else b"")
        self._run = await start(self._request, snippet, job.image)
        self._writer = StdinWriter(self._run.stdin)
        runtime = runtime_of(job.image)
        await self._send(type="runtime", language=runtime["language"], version=runtime["version"])
        self._telling = asyncio.create_task(self._tell(self._run, job))

    async def _write(self, data: object) -> None:
        """Give the program text. None, which Piston does not know, is the end of standard input."""
        assert self._writer is not None  # noqa: S101 (it has begun)
        if data is None:
            self._writer.end()
        elif isinstance(data, str):
            await self._writer.write(data.encode())
        else:
            raise RequestError("data must be a string, or null for the end of standard input")

    async def _signal(self, name: object) -> Close | None:
        """Send a signal, by its name, to the program that runs; one that is between two is not
        there to get it.
        """
        number = signal.Signals.__members__.get(name) if isinstance(name, str) else None
        if number is None:
            return Close.INVALID_SIGNAL
        assert self._run is not None  # noqa: S101 (it has begun)
        try:
            await self._service.signal(self._run, number)
        except RequestError:
            log.debug("a signal came while no program was running")
        return None

    async def _tell(self, run: Run, job: Job) -> None:
        """Send what the run brings, to its end."""
        shown = _Stages(interpreted=is_interpreted(job.image), count=len(run.outcome.step_names))
        reader = Reader(run.record, text=True)
        more = True
        with contextlib.suppress(OSError):  # the client is gone: whoever takes its messages sees that too
            while more:
                while (event := reader.take()) is not None:
                    for message in shown.messages(event):
                        await self._send(**message)
                more = await reader.wait()
            if run.outcome.error is None:
                await self._close(Close.JOB_COMPLETED)
            else:
                await self._send(type="error", message=run.outcome.error.message)
                await self._close(Close.NOTIFIED_ERROR)

    async def _send(self, **message: Any) -> None:
        await self._socket.send_json(message)

    async def _close(self, code: Close) -> None:
        await self._socket.close(code=code, message=code.words.encode())
