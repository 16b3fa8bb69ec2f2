"""What `mayfly run` says on standard error behind a program's output."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mayfly.cli.messages import report
from mayfly.exit_status import LIMIT_STATUS


def explain(steps: Sequence[Mapping[str, Any]], exit_status: int, factor: float, error: Exception | None = None) -> None:
    """Say what the output does not show: cut streams, the limit or signal that ended a step, an
    error of ours. The steps are those of a result (docs/api.md); their limits of time were
    multiplied by `factor`.
    """
    for step in steps:
        for stream in ("stdout", "stderr"):
            if step[f"{stream}_truncated"]:
                print(f"mayfly: step {step['step']}: {stream} was cut at its limit", file=sys.stderr)
    if error is not None:
        report(error)
    elif steps:
        _explain_end(steps[-1], exit_status, factor)


def _explain_end(last: Mapping[str, Any], exit_status: int, factor: float) -> None:
    if exit_status == LIMIT_STATUS and last["limit"]:
        times = f" (times are multiplied by {factor:g} on this host)" if factor != 1 else ""
        name, seconds = last["limit"].replace("_", " "), last["wall_ms"] / 1000
        print(f"mayfly: step {last['step']}: ended by its {name} limit after {seconds:.1f} s{times}", file=sys.stderr)
    elif last["signal"] is not None:
        print(f"mayfly: step {last['step']}: ended by {last['signal_name']}", file=sys.stderr)


def show_costs(phases: Mapping[str, float], exits: Mapping[str, int]) -> None:
    """Print seconds by phase, and exits to the monitor by reason."""
    for name, seconds in phases.items():
        print(f"mayfly: {name:<16} {seconds * 1000:10.1f} ms", file=sys.stderr)
    for name, count in exits.items():
        print(f"mayfly: exits {name:<10} {count:10}", file=sys.stderr)
