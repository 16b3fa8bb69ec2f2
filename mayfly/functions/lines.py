"""Requests and answers as lines of JSON: what a file of requests holds, and what is written of it.

A request is `{"time": 15, "user_id": 2, "function": "hello", "payload": {}}`, as SnapFaaS has it.
"""

import base64
from collections.abc import Callable, Iterator
from typing import Annotated, BinaryIO, NamedTuple

from mayfly.errors import SchemaError
from mayfly.schema import Meta, decode, msgspec
from mayfly.units import KIB, MIB

MAX_PAYLOAD = 6 * MIB
"""Bytes of a request's or an answer's payload."""
MAX_LINE = MAX_PAYLOAD + 64 * KIB
"""Bytes of a line: a payload, and what stands around it."""
NOT_SENT = "not_sent"
"""Status of a request that was not sent: too many others were under way."""
TIMED_OUT = "not_answered"
"""Status of a request whose answer did not come for too long."""
INTERRUPTED = "interrupted"
"""Status of a request whose answer nobody waited for any longer."""
NO_PAYLOAD = msgspec.Raw()
"""Of an answer whose payload is not kept."""

UserId = int | str
_Time = Annotated[float, Meta(ge=0, le=10_000_000_000)]


class RequestLine(msgspec.Struct, frozen=True, kw_only=True):
    """A request. `time` counts milliseconds from the beginning; `payload` is JSON, kept as text.

    Other fields are passed over: files and clients that were written for SnapFaaS may have them.
    """

    function: Annotated[str, Meta(min_length=1)]
    payload: msgspec.Raw
    time: _Time = 0.0
    user_id: UserId = 0


class AnswerLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of the request in the line `line` of its file.

    Attributes:
        id: of the request, where a server has taken it.
        status: `ok`, `exception` (of the function's own), the code of an error, or one of the
            statuses above.
        start: how its guest came to be: `cold`, `restored`, `warm`; empty where it had none.
        due_ms: when it was to be sent. This and the next two count from the beginning.
        sent_ms: when it was.
        answered_ms: when its answer was there.
        queued_ms: for how long it waited for a guest, as the server says.
        guest_ms: for how long its function ran, as the server says.
        payload: the answer, as `answer_payload` has it, where answers are kept.
    """

    line: int
    id: str = ""
    function: str
    user_id: UserId = 0
    status: str
    start: str = ""
    due_ms: float
    sent_ms: float | None = None
    answered_ms: float | None = None
    queued_ms: float = 0.0
    guest_ms: float = 0.0
    message: str = ""
    content_type: str = ""
    payload: msgspec.Raw = NO_PAYLOAD


class Summary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the answers do not say. It is the last line of their file, as `{"summary": {…}}`.

    Attributes:
        memory: bytes that guests may have together; 0 if unknown.
        guests_created: meanwhile; None if unknown, as the next.
        guests_evicted: those that were ended to make room for another function's.
        bad_lines: lines of the requests' file that were skipped.
    """

    requests: int = 0
    bad_lines: int = 0
    duration_s: float = 0.0
    memory: int = 0
    guests_created: int | None = None
    guests_evicted: int | None = None


class BadLine(NamedTuple):
    """A line that is not a request: its number, from 1, and why."""

    number: int
    message: str


def parse_line(text: bytes) -> RequestLine:
    """The request in a line.

    Raises:
        SchemaError: it is none.
    """
    try:
        return decode(RequestLine, text.decode())  # what becomes a Raw is not checked for UTF-8
    except UnicodeDecodeError as error:
        raise SchemaError(f"it is not UTF-8 at byte {error.start}") from error


def read_lines(file: BinaryIO, on_bad: Callable[[BadLine], None]) -> Iterator[tuple[int, RequestLine]]:
    """The requests in a file with their lines' numbers, read as they are asked for.

    A line that is not a request is told to `on_bad` and skipped. Blank lines are passed over.
    """
    number = 0
    while text := file.readline(MAX_LINE + 1):
        number += 1
        if len(text) > MAX_LINE:
            while text and not text.endswith(b"\n"):
                text = file.readline(MAX_LINE)
            on_bad(BadLine(number, f"the line has more than {MAX_LINE} bytes"))
            continue
        if not text.strip():
            continue
        try:
            request = parse_line(text)
        except SchemaError as error:
            on_bad(BadLine(number, error.message))
            continue
        yield number, request


def answer_payload(content_type: str, payload: bytes) -> msgspec.Raw:
    """An answer's payload as JSON: JSON as it is, text as a string, other bytes as
    `{"base64": …}`.
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        text = payload.decode()
        if kind == "application/json":
            return msgspec.Raw(msgspec.json.format(text, indent=-1))  # on one line
        if kind.startswith("text/"):
            return msgspec.Raw(msgspec.json.encode(text))
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        pass  # it is not what it says
    return msgspec.Raw(msgspec.json.encode({"base64": base64.b64encode(payload).decode()}))
