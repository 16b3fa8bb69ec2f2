"""Draw a report. Only this module needs matplotlib, an extra of the package."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mayfly.errors import HostError
from mayfly.units import GIB
from mayfly.workload.outcome import Outcome
from mayfly.workload.report import MOST_POINTS, report

RESOLUTION = 110
_SMALL = 8
"""Size of the letters in a legend."""


def plot(outcomes: Sequence[Outcome], picture: Path, window_s: float) -> None:
    """Draw latencies and throughput; of several experiments also what memory does to them.

    Raises:
        HostError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise HostError("a plot needs matplotlib, which is not installed", hint="pip install 'mayfly-vm[workload]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    found = report(outcomes, window_s)["experiments"]
    several = len(outcomes) > 1
    figure, grid = pyplot.subplots(2 if several else 1, 2, figsize=(11, 8 if several else 4), squeeze=False)
    try:
        _latencies(grid[0][0], outcomes)
        _throughput(grid[0][1], found)
        if several:
            _success(grid[1][0], found)
            _guests(grid[1][1], found)
        figure.tight_layout()
        figure.savefig(picture, dpi=RESOLUTION)
    finally:
        pyplot.close(figure)


def _latencies(axes: Any, outcomes: Sequence[Outcome]) -> None:
    """The share of answers within a time: by function and (dashed) by start of one experiment, or
    a line for each of several.
    """
    lines: dict[tuple[str, str], array[float]] = {}
    for outcome in outcomes:
        for (function, start), values in outcome.latencies.items():
            names = [(outcome.name, "-")] if len(outcomes) > 1 else [(function, "-"), (start, "--")] if function else [("all", "-")]
            for name in names:
                if name[0]:
                    lines.setdefault(name, array("d")).extend(values)
    for (label, style), values in sorted(lines.items(), key=lambda line: line[0][::-1]):
        ordered = sorted(values)
        indexes = [*range(0, len(ordered), max(1, len(ordered) // MOST_POINTS)), len(ordered) - 1]
        shares = [100 * (index + 1) / len(ordered) for index in indexes]
        axes.plot([1000 * ordered[index] for index in indexes], shares, style, label=label)
    axes.set(xscale="log", xlabel="milliseconds from when it was due", ylabel="% of the answers", title="Latency")
    _legend(axes)


def _throughput(axes: Any, found: Sequence[dict[str, Any]]) -> None:
    for index, each in enumerate(found):
        if index == 0 and each["offered_per_s"]:
            axes.plot(*zip(*each["offered_per_s"], strict=True), color="0.7", label="asked")
        if each["answered_per_s"]:
            axes.plot(*zip(*each["answered_per_s"], strict=True), label=each["name"] if len(found) > 1 else "answered")
    axes.set(xlabel="seconds", ylabel=f"a second, over {found[0]['window_s']:g} s", title="Throughput", ylim=(0, None))
    _legend(axes)


def _places(axes: Any, found: Sequence[dict[str, Any]]) -> list[Any]:
    """Where the experiments stand: at their memory, or by name."""
    if all(each["memory_bytes"] for each in found):
        axes.set(xlabel="memory for guests, GiB")
        return [each["memory_bytes"] / GIB for each in found]
    axes.tick_params(axis="x", labelsize=_SMALL)
    return [each["name"] for each in found]


def _success(axes: Any, found: Sequence[dict[str, Any]]) -> None:
    axes.plot(_places(axes, found), [100 * each["success_rate"] for each in found], marker="o")
    axes.set(ylabel="% of the requests", title="Success", ylim=(0, 105))


def _guests(axes: Any, found: Sequence[dict[str, Any]]) -> None:
    places = _places(axes, found)
    for key, label in (("guests_created", "created"), ("guests_evicted", "evicted")):
        known = [(place, each[key]) for place, each in zip(places, found, strict=True) if each[key] is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", label=label)
    axes.set(ylabel="guests", title="Guests", ylim=(0, None))
    _legend(axes)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=_SMALL)
