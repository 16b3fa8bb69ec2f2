"""Functions of this process, for gateways whose requests are lines of JSON."""

from mayfly.functions.answer import Invocation
from mayfly.functions.lines import RequestLine
from mayfly.functions.openloop import Invoke, Reply
from mayfly.functions.service import Functions


def in_process(functions: Functions) -> Invoke:
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
