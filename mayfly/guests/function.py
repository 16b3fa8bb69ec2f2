"""Speak with a guest whose job's last step is a function: load it, and ask it, one request at a
time.

A guest that has been asked answers, or is stopped: no request ever meets what is left of another.
"""

import asyncio
from typing import Literal

from mayfly.errors import EncodeError, FunctionCrashedError, FunctionTimeoutError, GuestError, MayflyError
from mayfly.guests.converse import Listener, converse, hear
from mayfly.guests.job import Job
from mayfly.guests.outcome import Outcome, signal_name
from mayfly.guests.start import Guest, explain
from mayfly.protocol.conversation import Event
from mayfly.protocol.frames import Exit, ExitHow, Limit, Response, ResponseKind, Stderr, Stdout
from mayfly.protocol.phases import Phase
from mayfly.schema import Record

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
    try:
        if not is_loaded(guest):
            raise guest.conversation.failure or GuestError("the function has ended since its last request")
        async with asyncio.timeout(timeout_s):
            for frame in guest.conversation.request(request.id, request.content_type, request.payload):
                if not await guest.process.write(frame):
                    break  # the reader finds the channel's end too
            return await _response(guest, listener)
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


async def _response(guest: Guest, listener: Listener) -> FunctionResponse:
    """Listen to the end of the response.

    Raises:
        GuestError: there will be none.
    """
    pieces: list[bytes] = []
    missing = -1
    while True:
        for event in await hear(guest):
            match event:
                case Stdout() | Stderr():
                    listener.note(event)
                case Exit():
                    raise GuestError(f"the function {_ended(event)}", hint="look at its log; the next request gets another guest")
                case Response(kind=kind, content_type=content_type, guest_us=guest_us):
                    pieces.append(event.data)
                    missing = (event.size if missing < 0 else missing) - len(event.data)
                    if not missing:
                        return FunctionResponse(
                            kind="answer" if kind is ResponseKind.ANSWER else "exception",
                            content_type=content_type,
                            payload=b"".join(pieces),
                            guest_us=guest_us,
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
