"""Speak with a guest whose job's last step is a function: load it, and ask it, one request at a
time.

A guest that has been asked answers, or is stopped: no request ever meets what is left of another.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Literal

from mayfly.errors import EncodeError, FunctionCrashedError, FunctionTimeoutError, GuestError, MayflyError, SchemaError
from mayfly.guests.converse import NO_STDIN, Exchange, Listener, converse, hear
from mayfly.guests.job import Job
from mayfly.guests.outcome import Outcome, signal_name
from mayfly.guests.start import Guest, explain
from mayfly.images.manifest import Seconds
from mayfly.protocol.answers import ResponseSoFar
from mayfly.protocol.conversation import Conversation, Event
from mayfly.protocol.frames import Exit, ExitHow, Limit, Response, ResponseKind, Stderr, Stdout
from mayfly.protocol.phases import Phase, Standing
from mayfly.schema import Record, replace

OUTPUT_SHOWN = 2000
"""Bytes of output that the error of a function that does not load has."""
GRACE_S = 1.0
"""How long a machine that came to a bad end may take to report why."""


class FunctionRequest(Record, frozen=True, kw_only=True):
    """What a function is asked; `id` is below 2**32, and comes back with the response."""

    id: int
    content_type: str
    payload: bytes


class FunctionResponse(Record, frozen=True, kw_only=True):
    """What a function answered, or the exception that it raised; `guest_us` are the microseconds
    that it took, as the guest says.
    """

    kind: Literal["answer", "exception"]
    content_type: str
    payload: bytes
    guest_us: int


async def load(guest: Guest, job: Job, listener: Listener) -> None:
    """Let the agent run the job, whose last step is a function, until that is loaded.

    Raises:
        GuestError: a step failed, or the function ended before it was loaded, or with that; the
            message has the end of its output.
        MayflyError: as `converse`. In every case the guest is gone by then.
    """
    outcome = Outcome(job.step_names, kept=OUTPUT_SHOWN)
    await converse(guest, job, _Both(outcome, listener))
    if is_loaded(guest):
        return
    await guest.process.stop(0)
    if outcome.built:
        raise GuestError(f"the step {job.step_names[-1]!r} ended as soon as it was loaded")
    raise GuestError(f"the step {outcome.steps[-1].name!r} {outcome.failure() or 'ended before it was loaded (exited 0)'}")


def is_loaded(guest: Guest) -> bool:
    """Whether the guest's function can be asked, as far as its channel has been read."""
    return guest.conversation.phase is Phase.LOADED


async def ask(guest: Guest, request: FunctionRequest, listener: Listener, timeout_s: float) -> FunctionResponse:
    """Ask the loaded function, and tell `listener` what it prints meanwhile. The guest takes the
    next request then.

    Raises:
        OversizeError: the request is too large; nothing was asked.
        FunctionTimeoutError: there was no whole response after `timeout_s`.
        FunctionCrashedError: the function ended, or broke its contract.
        MayflyError: the machine failed. But for the first one, and also when whoever asks is
            cancelled, the guest is gone by then.
    """
    async with _asked(guest, timeout_s, timeout_s):
        for frame in _frames(guest, request):
            if not await guest.process.write(frame):
                break  # the reader finds the channel's end too
        answer = _Answer()
        while True:
            for event in await hear(guest):
                if answer.take(event, listener):
                    return answer.response()


class Moment(Record, frozen=True, kw_only=True):
    """A request in the middle of its answer: where its conversation stood, its id there, what had
    come of the answer (payloads of RESPONSE), and the seconds that it had left.
    """

    standing: Standing
    id: int
    came: tuple[bytes, ...]
    left_s: Seconds

    def conversation(self, *, arch: str, end_marker: str) -> Conversation:
        """The conversation, to go on in another process.

        Raises:
            SchemaError: it cannot stand so.
        """
        response = ResponseSoFar(self.id)
        wrong = [response.take(piece) for piece in self.pieces()]
        if any(wrong) or response.whole:
            raise SchemaError("a request that is carried over is not in the middle of its answer")
        return Conversation.going_on(self.standing, arch=arch, end_marker=end_marker, response=response)

    def pieces(self) -> list[Response]:
        """What had come of the answer. Raises SchemaError: it cannot be read."""
        pieces = [Response.decode(payload) for payload in self.came]
        if None in pieces:
            raise SchemaError("an answer that is carried over has pieces that are none")
        return [piece for piece in pieces if piece is not None]


class Asking(Exchange):
    """A request under way that can be held, and go on in another machine: as `ask`, or since a
    moment that `at_rest` gave of another one, whose guest is gone.
    """

    def __init__(self, guest: Guest, request: FunctionRequest, listener: Listener, timeout_s: float, since: Moment | None = None) -> None:
        if since is not None:
            hello = guest.hello
            guest = replace(guest, conversation=since.conversation(arch=hello.arch, end_marker=hello.end_marker))
        left_s = since.left_s if since else timeout_s
        super().__init__(guest, listener, NO_STDIN, deadline_s=left_s, rate=math.inf, stdin_ended=True)
        self._request = None if since else request
        self._id = since.id if since else request.id
        self._timeout_s = timeout_s
        self._answer = _Answer()
        for piece in since.pieces() if since else ():
            self._answer.take(piece, listener)

    async def answer(self) -> FunctionResponse:
        """The function's answer. Raises as `ask`."""
        await self.run()
        return self._answer.response()

    async def at_rest(self) -> Moment:
        """This moment, while it is held and the guest stands still.

        Raises:
            GuestError: the function has answered or ended meanwhile, or does not have all of the
                request yet.
        """
        if not await self.stand_still():
            raise GuestError("the request is over, or not sent yet")
        came = tuple(piece.encode() for piece in self._answer.pieces)
        return Moment(standing=self.guest.conversation.standing(), id=self._id, came=came, left_s=self.left_s)

    def watched(self, left_s: float) -> AbstractAsyncContextManager[asyncio.Timeout]:
        """As `ask` does it."""
        return _asked(self.guest, left_s, self._timeout_s)

    def begun(self, job: Job | None) -> Iterator[bytes]:
        """The frames of the request, or what lets it go on."""
        return _frames(self.guest, self._request) if self._request else super().begun(job)

    def heard(self, event: Event) -> bool:
        """Take the event; whether the answer is whole."""
        return self._answer.take(event, self._listener)


def _frames(guest: Guest, request: FunctionRequest) -> Iterator[bytes]:
    """The frames of a request, for a guest that takes one. Raises MayflyError: it takes none."""
    if not is_loaded(guest):
        raise guest.conversation.failure or GuestError("the function has ended since its last request")
    return guest.conversation.request(request.id, request.content_type, request.payload)


@contextlib.asynccontextmanager
async def _asked(guest: Guest, left_s: float, timeout_s: float) -> AsyncIterator[asyncio.Timeout]:
    """Stop the guest if it comes to a bad end or does not answer in the time that is left, and
    raise the error that says why. Gives its deadline.
    """
    try:
        async with asyncio.timeout(left_s) as deadline:
            yield deadline
    except EncodeError:
        raise
    except BaseException as caught:
        ended = await guest.process.stop(GRACE_S if isinstance(caught, MayflyError) else 0)
        if isinstance(caught, TimeoutError):
            late = FunctionTimeoutError(f"the function did not answer within {timeout_s:g} s", hint="give it more time: timeout_s")
            raise explain(late, ended) from caught
        if isinstance(caught, GuestError):
            raise explain(FunctionCrashedError(caught.message, hint=caught.hint), ended) from caught
        raise


async def watch(guest: Guest) -> None:
    """Return when the function, which nobody asks, has ended, or its machine has. To be cancelled
    before the next `ask`; what the function prints meanwhile belongs to no request, and is dropped.
    """
    while is_loaded(guest) and (data := await guest.process.read()):
        guest.conversation.feed(data)


class _Answer:
    """A response as far as it has come."""

    def __init__(self) -> None:
        self.pieces: list[Response] = []
        self._missing = -1

    def take(self, event: Event, listener: Listener) -> bool:
        """Take an event; whether the response is whole. What comes behind that is dropped.

        Raises:
            GuestError: there will be none.
        """
        if not self._missing:
            return True
        match event:
            case Stdout() | Stderr():
                listener.note(event)
            case Exit():
                raise GuestError(f"the function {_ended(event)}", hint="look at its log; the next request gets another guest")
            case Response():
                self.pieces.append(event)
                self._missing = (event.size if self._missing < 0 else self._missing) - len(event.data)
        return not self._missing

    def response(self) -> FunctionResponse:
        """The response, which is whole."""
        last = self.pieces[-1]
        return FunctionResponse(
            kind="answer" if last.kind is ResponseKind.ANSWER else "exception",
            content_type=last.content_type,
            payload=b"".join(piece.data for piece in self.pieces),
            guest_us=last.guest_us,
        )


def _ended(ended: Exit) -> str:
    """How a function ended that should not have."""
    if ended.limit is not Limit.NONE:
        return f"reached its limit: {ended.limit.name.lower().replace('_', ' ')}"
    return f"was killed ({signal_name(ended.code)})" if ended.how is ExitHow.SIGNALED else f"exited with {ended.code}"


class _Both:
    """Two listeners."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def note(self, event: Event) -> None:
        """Tell both."""
        for listener in self._listeners:
            listener.note(event)
