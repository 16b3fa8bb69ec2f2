"""What is counted of functions: figures of each for its page and for Prometheus, and the statistics
that SnapFaaS's workers write at their end, by its names, with the three failure counters that it
keeps and does not write. Its times are nanoseconds; ours are of the Unix epoch.
"""

import asyncio
import collections
import time
from collections.abc import Mapping
from typing import Any

from mayfly.errors import FunctionGuestError, MayflyError
from mayfly.functions.answer import FunctionFigures
from mayfly.functions.kept import outcome
from mayfly.functions.request import Request
from mayfly.host.observer import Observer
from mayfly.units import MIB

ANSWERED = ("ok", "exception")
"""Ends of requests that have an answer."""
MAX_TIMES = 100_000
"""Times of each kind that are kept, the last ones: of starts, of requests, of evictions."""


class _Counts:
    """Of one function."""

    def __init__(self) -> None:
        self.requests = 0
        self.created = 0
        self.evicted = 0
        self.ends: collections.Counter[str] = collections.Counter()
        self.starts: collections.Counter[str] = collections.Counter()


class Statistics:
    """Counts what happens to requests and guests, and tells the host's observer."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._functions: dict[str, _Counts] = collections.defaultdict(_Counts)
        self._offset = time.time() - asyncio.get_running_loop().time()
        self._created = self._completed = self._dropped = self._evicted = 0
        self._start_failures = self._write_failures = self._read_failures = 0
        self._memory: collections.deque[tuple[int, int]] = collections.deque(maxlen=MAX_TIMES)
        self._boots: collections.deque[tuple[int, int, int]] = collections.deque(maxlen=MAX_TIMES)
        self._requests: collections.deque[tuple[int, int, int]] = collections.deque(maxlen=MAX_TIMES)
        self._evictions: collections.deque[tuple[int, int, int]] = collections.deque(maxlen=MAX_TIMES)

    def _ns(self, at: float) -> int:
        return round((at + self._offset) * 1e9)

    def guest_started(self, function: str, number: int, memory: int, began: float, ended: float) -> None:
        """Count a guest."""
        self._created += 1
        self._functions[function].created += 1
        self._memory.append((number, memory // MIB))
        self._boots.append((number, self._ns(began), self._ns(ended)))
        self._observer.function_guest(function, "created")

    def guest_failed(self, function: str, error: MayflyError) -> None:
        """Count one that did not start."""
        self._start_failures += 1
        self._observer.function_guest(function, "failed")

    def guest_evicted(self, function: str, number: int) -> None:
        """Count one that is ended for the room that it takes."""
        self._evicted += 1
        self._functions[function].evicted += 1
        self._observer.function_guest(function, "evicted")

    def eviction_over(self, number: int, began: float, ended: float) -> None:
        """Note how long that took."""
        self._evictions.append((number, self._ns(began), self._ns(ended)))

    def request_came(self, function: str) -> None:
        """Count a request that is taken or refused soon."""
        self._functions[function].requests += 1

    def request_over(self, request: Request) -> None:
        """Count its end."""
        counts = self._functions[request.function]
        end, error = outcome(request)
        counts.ends[end] += 1
        if request.kind is not None:
            counts.starts[request.kind.value] += 1
        answered = end in ANSWERED
        if answered:
            self._completed += 1
            self._requests.append((request.guest, self._ns(request.sent_at), self._ns(request.answered_at)))
        else:
            self._dropped += 1
            if error is not None and request.kind is not None:
                unread = isinstance(error, FunctionGuestError)
                self._read_failures += unread
                self._write_failures += not unread
        times = request.times()
        phases = {"queue": (times.started_s or times.answered_s) - times.queued_s, "total": times.answered_s}
        if answered:
            phases |= {"answer": times.answered_s - times.sent_s, "guest": times.guest_us / 1e6}
        self._observer.function_answered(request.function, end, request.kind.value if request.kind else "", phases)

    def request_refused(self, function: str, error: MayflyError) -> None:
        """Count one that was not taken."""
        self._dropped += 1
        self._functions[function].ends[error.code] += 1
        self._observer.function_answered(function, error.code, "", {})

    def figures(self, function: str, *, waiting: int, guests: Mapping[str, int]) -> FunctionFigures:
        """Of one function."""
        counts = self._functions.get(function) or _Counts()
        failures = {end: count for end, count in counts.ends.items() if end not in ANSWERED}
        return FunctionFigures(
            requests=counts.requests,
            ok=counts.ends["ok"],
            exceptions=counts.ends["exception"],
            failures=failures,
            starts=dict(counts.starts),
            created=counts.created,
            evicted=counts.evicted,
            waiting=waiting,
            guests=guests,
        )

    def forget(self, function: str) -> None:
        """The function is no more; what it did stays in the sums."""
        self._functions.pop(function, None)

    def to_json(self) -> dict[str, Any]:
        """As SnapFaaS writes it: times by the guest's number, two for each start, each request that
        was completed and each eviction. Only the last ones are kept, all are counted.
        """
        requests: dict[int, list[int]] = collections.defaultdict(list)
        for number, sent, answered in self._requests:
            requests[number] += [sent, answered]
        return {
            "number of vms created": self._created,
            "vm memory sizes": dict(self._memory),
            "number of requests completed": self._completed,
            "number of requests dropped": self._dropped,
            "number of evictions": self._evicted,
            "boot timestamps": {number: [began, ended] for number, began, ended in self._boots},
            "request/response timestamps": requests,
            "eviction timestamps": {number: [began, ended] for number, began, ended in self._evictions},
            "number of vms that failed to start": self._start_failures,
            "number of requests that failed to be written": self._write_failures,
            "number of responses that failed to be read": self._read_failures,
        }
