"""A request to a function as it comes, and what becomes of it: its answer, its times, what the
function printed.
"""

from collections.abc import Mapping
from typing import Literal

from mayfly.guests.start import StartKind
from mayfly.host.admission import Tenant
from mayfly.schema import Record


class Invocation(Record, frozen=True, kw_only=True):
    """What a function is asked, by whom and when.

    `content_type` is empty where nothing is said of the payload. `tenant` is whose request it is;
    None: the operator's. `received` is when it came, as Unix time; None: now. It waits at most
    `wait_s` for a guest, if that is less than its function says. A `request_id` is drawn where
    there is none.
    """

    function: str
    payload: bytes
    content_type: str = ""
    tenant: Tenant | None = None
    received: float | None = None
    wait_s: float | None = None
    request_id: str = ""

    @property
    def owner(self) -> str:
        """The tenant's name, or nothing."""
        return self.tenant.name if self.tenant else ""


class Times(Record, frozen=True, kw_only=True):
    """When what happened to a request. `received`, by its gateway, is Unix time in seconds; all
    others are seconds after that: taken into the function's queue, a guest was there for it, handed
    to the guest, its answer was whole. `guest_us` is the function's own time, as its shim measured
    it.
    """

    received: float
    queued_s: float
    started_s: float
    sent_s: float
    answered_s: float
    guest_us: int


class Answer(Record, frozen=True, kw_only=True):
    """What a function answered. An exception of the function is an answer too, a JSON object with
    `error`, `message` and `trace`.

    `content_type` is empty where the function does not say. `log` is what the function printed
    meanwhile, the end of it.
    """

    request_id: str
    function: str
    status: Literal["ok", "exception"]
    content_type: str
    payload: bytes
    start: StartKind
    times: Times
    log: bytes = b""


class LogLine(Record, frozen=True, kw_only=True):
    """A line that a function printed in a request; `at` is the Unix time of its arrival."""

    at: float
    request_id: str
    stream: Literal["stdout", "stderr"]
    text: str


class FunctionFigures(Record, frozen=True, kw_only=True):
    """What a function has done since the server began, and what it has now.

    Every request is in one of `ok`, `exceptions` and `failures` (by the error's code), or is under
    way. `starts` counts those that got a guest, by how that one started; `created` and `evicted`
    count guests, `guests` those there are, by state.
    """

    requests: int
    ok: int
    exceptions: int
    failures: Mapping[str, int]
    starts: Mapping[str, int]
    created: int
    evicted: int
    waiting: int
    guests: Mapping[str, int]
