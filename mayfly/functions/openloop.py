"""An open loop: each request is sent at its time, whether or not earlier ones are answered."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from mayfly.errors import MayflyError
from mayfly.functions.answer import Invocation
from mayfly.functions.lines import INTERRUPTED, NO_PAYLOAD, NOT_SENT, TIMED_OUT, AnswerLine, RequestLine, answer_payload
from mayfly.functions.runner import FunctionRunner

MOST_UNDER_WAY = 1000
ANSWER_S = 300.0


class Reply(NamedTuple):
    """A function's answer: `status` is `ok` or `exception`, the rest as in an `AnswerLine`."""

    id: str
    status: str
    start: str
    content_type: str
    payload: bytes
    queued_ms: float = 0.0
    guest_ms: float = 0.0


Invoke = Callable[[RequestLine], Awaitable[Reply]]
"""Has a function answer a request; raises a MayflyError if it cannot."""


def in_process(functions: FunctionRunner) -> Invoke:
    """What has these functions answer."""

    async def invoke(request: RequestLine) -> Reply:
        asked = Invocation(function=request.function, payload=bytes(request.payload), content_type="application/json")
        answer = await functions.invoke(asked)
        times = answer.times
        return Reply(
            id=answer.request_id,
            status=answer.status,
            start=str(answer.start),
            content_type=answer.content_type,
            payload=answer.payload,
            queued_ms=round((times.started_s - times.queued_s) * 1000, 3),
            guest_ms=times.guest_us / 1000,
        )

    return invoke


async def send_all(
    lines: Iterable[tuple[int, RequestLine]],
    invoke: Invoke,
    write: Callable[[AnswerLine], None],
    *,
    most: int = MOST_UNDER_WAY,
    timeout_s: float = ANSWER_S,
    speed: float = 1.0,
    keep_payloads: bool = False,
) -> None:
    """Send all requests and wait for their answers, each of which `write` gets as it comes.

    If it is cancelled, requests under way are answered as `interrupted` before it ends.

    Args:
        lines: the requests with their lines' numbers; read one ahead, not more.
        invoke: sends one.
        write: must not wait.
        most: of so many requests under way, a further one is not sent, and answered so.
        timeout_s: for so long an answer is waited for.
        speed: 2 sends everything in half the time.
        keep_payloads: whether answers hold what the functions returned.
    """
    loop = asyncio.get_running_loop()
    beginning = loop.time()
    under_way = 0

    def now_ms() -> float:
        return round((loop.time() - beginning) * 1000, 3)

    async def send(number: int, request: RequestLine, due_ms: float) -> None:
        nonlocal under_way
        sent_ms = now_ms()

        def answered(status: str, reply: Reply | None = None, message: str = "") -> None:
            write(
                AnswerLine(
                    line=number,
                    id=reply.id if reply else "",
                    function=request.function,
                    user_id=request.user_id,
                    status=status,
                    start=reply.start if reply else "",
                    due_ms=due_ms,
                    sent_ms=sent_ms,
                    answered_ms=now_ms(),
                    queued_ms=reply.queued_ms if reply else 0.0,
                    guest_ms=reply.guest_ms if reply else 0.0,
                    message=message,
                    content_type=reply.content_type if reply and keep_payloads else "",
                    payload=answer_payload(reply.content_type, reply.payload) if reply and keep_payloads else NO_PAYLOAD,
                )
            )

        try:
            async with asyncio.timeout(timeout_s):
                reply = await invoke(request)
        except MayflyError as error:
            answered(error.code, message=error.message)
        except TimeoutError:
            answered(TIMED_OUT, message=f"no answer within {timeout_s:g} s")
        except asyncio.CancelledError:
            answered(INTERRUPTED)
            raise
        else:
            answered(reply.status, reply)
        finally:
            under_way -= 1

    try:
        async with asyncio.TaskGroup() as group:
            for number, request in lines:
                due_ms = round(request.time / speed, 3)
                await asyncio.sleep(due_ms / 1000 - (loop.time() - beginning))  # not above 0: the others have their turn
                if under_way >= most:
                    write(AnswerLine(line=number, function=request.function, user_id=request.user_id, status=NOT_SENT, due_ms=due_ms))
                    continue
                under_way += 1
                group.create_task(send(number, request, due_ms))
    except BaseExceptionGroup as failures:  # of `write` or of what sends: one tells why
        raise failures.exceptions[0] from None
