"""A report of experiments: success, latencies, throughput, and guests against memory."""

import bisect
import math
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from mayfly.units import MIB
from mayfly.workload.outcome import Outcome

RANKS = (50.0, 90.0, 99.0, 99.9)
"""Percentiles that a report gives, besides the greatest."""
WINDOW_S = 2.0
MOST_POINTS = 1000
"""Of a line in a plot."""


def percentile(ordered: Sequence[float], rank: float) -> float:
    """The smallest value that `rank` % of the values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(rank / 100 * len(ordered)) - 1)]


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """The count, the mean and the percentiles of seconds, in milliseconds; None of no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    found = {"count": len(ordered), "mean": _ms(math.fsum(ordered) / len(ordered))}
    return found | {f"p{rank:g}": _ms(percentile(ordered, rank)) for rank in RANKS} | {"max": _ms(ordered[-1])}


def throughput(times: Iterable[float], span_s: float, window_s: float) -> list[tuple[float, float]]:
    """How many of `times` there were a second, over a window that slides by a quarter of its
    length: the window's middle and the rate.
    """
    ordered = sorted(times)
    window_s = min(window_s, span_s)
    if not ordered or window_s <= 0:
        return []
    step = max(window_s / 4, (span_s - window_s) / MOST_POINTS)
    points = []
    for index in range(int((span_s - window_s) / step + 1e-9) + 1):
        begin = index * step
        count = bisect.bisect_right(ordered, begin + window_s) - (bisect.bisect_right(ordered, begin) if index else 0)
        points.append((round(begin + window_s / 2, 3), round(count / window_s, 3)))
    return points


def report(outcomes: Sequence[Outcome], window_s: float = WINDOW_S) -> dict[str, Any]:
    """All that is known of the experiments, as plain data. Times are in the names' units."""
    return {"experiments": [_one(outcome, window_s) for outcome in outcomes]}


def _one(outcome: Outcome, window_s: float) -> dict[str, Any]:
    by_function: dict[str, array[float]] = {}
    by_start: dict[str, array[float]] = {}
    for (function, start), values in sorted(outcome.latencies.items()):
        by_function.setdefault(function, array("d")).extend(values)
        by_start.setdefault(start, array("d")).extend(values)
    return {
        "name": outcome.name,
        "memory_bytes": outcome.memory or None,
        "requests": outcome.requests,
        "statuses": dict(sorted(outcome.statuses.items())),
        "success_rate": round(outcome.success_rate, 6),
        "duration_s": round(outcome.span_s, 3),
        "guests_created": outcome.created,
        "guests_evicted": outcome.evicted,
        "latency_ms": spread(value for values in outcome.latencies.values() for value in values),
        "latency_ms_by_function": {name: spread(values) for name, values in by_function.items() if name},
        "latency_ms_by_start": {name: spread(values) for name, values in by_start.items() if name},
        "requests_by_function": dict(sorted(outcome.asked.items())),
        "late_ms": spread(outcome.late),
        "window_s": window_s,
        "offered_per_s": throughput(outcome.due, outcome.span_s, window_s),
        "answered_per_s": throughput(outcome.done, outcome.span_s, window_s),
        "lines_skipped": outcome.skipped,
    }


def table(found: dict[str, Any]) -> str:
    """The report in words, for a terminal."""
    lines = []
    for each in found["experiments"]:
        memory = f", {each['memory_bytes'] // MIB} MiB" if each["memory_bytes"] else ""
        lines += [
            f"{each['name']}{memory}: {each['requests']} requests in {each['duration_s']:g} s, "
            f"{100 * each['success_rate']:.2f} % succeeded",
            f"  {', '.join(f'{count} {status}' for status, count in each['statuses'].items())}",
        ]
        if each["guests_created"] is not None:
            lines.append(f"  {each['guests_created']} guests created, {each['guests_evicted'] or 0} evicted")
        rows = [("all", each["latency_ms"]), *each["latency_ms_by_function"].items(), *each["latency_ms_by_start"].items()]
        if each["late_ms"]:
            rows.append(("(sent late by)", each["late_ms"]))
        names = [f"p{rank:g}" for rank in RANKS] + ["max"]
        lines.append(f"  {'latency in ms':<24}{'count':>9}{''.join(f'{name:>11}' for name in names)}")
        for name, values in rows:
            if values:
                lines.append(f"  {name:<24}{values['count']:>9}{''.join(f'{values[column]:>11.2f}' for column in names)}")
        if each["lines_skipped"]:
            lines.append(f"  {each['lines_skipped']} lines could not be read")
    return "\n".join(lines)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
