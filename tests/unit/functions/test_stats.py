"""What is counted of functions, by SnapFaaS's names and by ours."""

import asyncio
import json
from collections.abc import Mapping

import pytest

from mayfly.errors import FunctionTimeoutError, HostError, QueueFullError, ResourceExhaustedError
from mayfly.functions import stats
from mayfly.functions.request import Request
from mayfly.functions.stats import Statistics
from mayfly.guests.function import FunctionResponse
from mayfly.guests.start import StartKind
from mayfly.host.metrics import Metrics
from mayfly.host.observer import Observer
from mayfly.units import MIB
from tests.kit.function_fakes import invocation

KEYS = {
    "number of vms created",
    "vm memory sizes",
    "number of requests completed",
    "number of requests dropped",
    "number of evictions",
    "boot timestamps",
    "request/response timestamps",
    "eviction timestamps",
    "number of vms that failed to start",
    "number of requests that failed to be written",
    "number of responses that failed to be read",
}


class Seen(Observer):
    def __init__(self) -> None:
        self.answers: list[tuple[str, str, str]] = []
        self.phases: list[Mapping[str, float]] = []

    def function_answered(self, function: str, status: str, start: str, phases: Mapping[str, float]) -> None:
        self.answers.append((function, status, start))
        self.phases.append(phases)


def fill(statistics: Statistics) -> None:
    """One guest, one answer, one of each failure."""
    loop = asyncio.get_running_loop()
    statistics.guest_started("f", 1, 128 * MIB, loop.time() - 0.5, loop.time())
    statistics.guest_failed("f", HostError("no"))
    good, late, unsent, unserved = (Request(invocation("f")) for _ in range(4))
    for request in (good, late, unsent, unserved):
        statistics.request_came("f")
        request.queued_at = loop.time()
    for request in (good, late, unsent):
        request.taken(StartKind.RESTORED, 1)
        request.sent()
    good.answered(FunctionResponse(kind="exception", content_type="", payload=b"", guest_us=1500))
    late.fail(FunctionTimeoutError("late"))
    unsent.fail(HostError("no"))
    unserved.fail(ResourceExhaustedError("no memory", resource="memory"))
    for request in (good, late, unsent, unserved):
        statistics.request_over(request)
    statistics.request_came("f")
    statistics.request_refused("f", QueueFullError("full"))
    statistics.guest_evicted("f", 1)
    statistics.eviction_over(1, loop.time(), loop.time() + 0.1)


def test_what_snapfaas_writes_and_what_it_forgets() -> None:
    async def scenario() -> None:
        statistics = Statistics(Observer())
        fill(statistics)
        found = json.loads(json.dumps(statistics.to_json()))
        assert set(found) == KEYS
        assert found["number of vms created"] == 1
        assert found["vm memory sizes"] == {"1": 128}
        assert (found["number of requests completed"], found["number of requests dropped"]) == (1, 4)
        assert [found[key] for key in sorted(KEYS) if "fail" in key] == [1, 1, 1]
        (began, ended), (sent, answered) = found["boot timestamps"]["1"], found["request/response timestamps"]["1"]
        assert 0.4e9 < ended - began < 0.6e9
        assert ended <= sent <= answered <= found["eviction timestamps"]["1"][0]
        assert len(found["eviction timestamps"]["1"]) == 2

    asyncio.run(scenario())


def test_a_functions_own_figures() -> None:
    async def scenario() -> None:
        seen = Seen()
        statistics = Statistics(seen)
        fill(statistics)
        figures = statistics.figures("f", waiting=2, guests={"idle": 1})
        assert (figures.requests, figures.ok, figures.exceptions) == (5, 0, 1)
        assert figures.failures == {"function_timeout": 1, "host_failed": 1, "resource_exhausted": 1, "queue_full": 1}
        assert sum(figures.failures.values()) + figures.ok + figures.exceptions == figures.requests
        assert figures.starts == {"restored": 3}
        assert (figures.created, figures.evicted, figures.waiting, figures.guests) == (1, 1, 2, {"idle": 1})
        assert seen.answers[0] == ("f", "exception", "restored")
        assert seen.phases[0]["guest"] == 0.0015
        statistics.forget("f")
        assert statistics.figures("f", waiting=0, guests={}).requests == 0

    asyncio.run(scenario())


def test_prometheus_has_them_too() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        fill(Statistics(metrics))
        text = metrics.text().decode()
        for line in (
            'mayfly_function_requests_total{function="f",status="exception"} 1.0',
            'mayfly_function_starts_total{function="f",kind="restored"} 3.0',
            'mayfly_function_guests_total{function="f",what="evicted"} 1.0',
            'mayfly_function_seconds_count{function="f",phase="guest"} 1.0',
        ):
            assert line in text

    asyncio.run(scenario())


def test_times_are_kept_of_the_last_ones_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "MAX_TIMES", 2)

    async def scenario() -> None:
        statistics = Statistics(Observer())
        for number in range(5):
            statistics.guest_started("f", number, MIB, 0, 1)
        found = statistics.to_json()
        assert found["number of vms created"] == 5
        assert list(found["boot timestamps"]) == [3, 4]

    asyncio.run(scenario())
